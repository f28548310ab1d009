//! The calculator: exact arithmetic by `fend-core`, narrowed to what a calculator has.
//!
//! fend also knows units, dates, dice, text and variables; an expression may not
//! name them. Work is bounded by a count of steps, not by time, so the same
//! expression gives the same answer on any machine.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};

use super::{Tool, text};

/// Longest expression, in bytes.
const MAX_LENGTH: usize = 300;
/// Deepest nesting of parentheses.
const MAX_DEPTH: usize = 32;
/// Most powers, and most signs in a row: they nest too.
const MAX_CHAIN: usize = 16;
/// How often fend may ask whether to stop.
const MAX_STEPS: u64 = 50_000;
/// Longest answer, in bytes: beyond that the model could not copy it anyway.
const MAX_ANSWER: usize = 400;

/// Words an expression may contain.
const WORDS: &[&str] = &[
    "abs", "acos", "asin", "atan", "ceil", "cos", "e", "exp", "floor", "ln", "log", "log10", "log2", "mod",
    "of", "pi", "round", "sin", "sqrt", "tan",
];

const USE: &str = "use numbers, + - * / ^ ( ) and functions like sqrt";

/// Computes arithmetic expressions.
pub struct Calculator;

impl Tool for Calculator {
    fn name(&self) -> &str {
        "calculator"
    }

    fn declaration(&self) -> Value {
        // The words of the tuning conversations of `intern-data`; a test there compares them.
        json!({
            "type": "function",
            "function": {
                "name": "calculator",
                "description": "Computes an arithmetic expression.",
                "parameters": {
                    "type": "object",
                    "properties": {"expression": {"type": "string", "description": "For example 3 + 4 * 2"}},
                    "required": ["expression"]
                }
            }
        })
    }

    fn call(&self, arguments: &Map<String, Value>) -> Result<String> {
        evaluate(text(arguments, "expression")?)
    }
}

/// The value of `expression` as a plain decimal number.
fn evaluate(expression: &str) -> Result<String> {
    let expression = normalize(expression);
    check(&expression)?;
    let steps = Steps(AtomicU64::new(0));
    let mut context = fend_core::Context::new();
    let result = match fend_core::evaluate_with_interrupt(&expression, &mut context, &steps) {
        Ok(result) => result,
        Err(_) if steps.0.load(Ordering::Relaxed) > MAX_STEPS => bail!("the calculation is too large"),
        Err(message) => bail!("cannot compute `{expression}`: {message}"),
    };
    let answer = result.get_main_result();
    let answer = answer.strip_prefix("approx. ").unwrap_or(answer);
    let number = answer.strip_prefix('-').unwrap_or(answer);
    if !number.starts_with(|c: char| c.is_ascii_digit()) || answer.len() > MAX_ANSWER {
        bail!("the result of `{expression}` is not a number one can write down");
    }
    Ok(answer.to_string())
}

/// Writes the signs of schoolbooks as fend reads them, and drops a final `=`.
fn normalize(expression: &str) -> String {
    let mut out = String::with_capacity(expression.len());
    let chars: Vec<char> = expression.trim().trim_end_matches(['=', ' ', '?']).chars().collect();
    for (i, &c) in chars.iter().enumerate() {
        match c {
            '×' | '·' | '∗' | '✕' => out.push('*'),
            '÷' => out.push('/'),
            '−' | '–' => out.push('-'),
            '（' => out.push('('),
            '）' => out.push(')'),
            '＋' => out.push('+'),
            '０'..='９' => out.push(char::from(b'0' + (u32::from(c) - u32::from('０')) as u8)),
            // A thousands separator, not a list.
            ',' if i > 0
                && chars[i - 1].is_ascii_digit()
                && chars[i + 1..].iter().take_while(|c| c.is_ascii_digit()).count() == 3 => {}
            'x' | 'X' if factor(chars[..i].iter().rev(), ')') && factor(chars[i + 1..].iter(), '(') => {
                out.push('*')
            }
            c => out.push(c),
        }
    }
    out
}

/// Whether the nearest character apart from spaces belongs to a number, or is `paren`.
fn factor<'a>(mut chars: impl Iterator<Item = &'a char>, paren: char) -> bool {
    chars.find(|c| **c != ' ').is_some_and(|c| c.is_ascii_digit() || *c == paren)
}

/// Lets only arithmetic through.
fn check(expression: &str) -> Result<()> {
    if expression.is_empty() {
        bail!("the expression is empty");
    }
    if expression.len() > MAX_LENGTH {
        bail!("the expression is longer than {MAX_LENGTH} characters");
    }
    let (mut depth, mut powers, mut signs) = (0usize, 0usize, 0usize);
    let mut word = String::new();
    for c in expression.chars().chain([' ']) {
        if c.is_ascii_alphabetic() || (!word.is_empty() && c.is_ascii_digit()) {
            word.push(c.to_ascii_lowercase());
            continue;
        }
        if !word.is_empty() && !WORDS.contains(&word.as_str()) {
            bail!("`{word}` is not arithmetic: {USE}");
        }
        word.clear();
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '^' | '!' => powers += 1,
            '-' | '+' => signs += 1,
            '*' | '/' | '%' | '.' | ' ' | '0'..='9' => {}
            other => bail!("`{other}` is not arithmetic: {USE}"),
        }
        if !matches!(c, '-' | '+' | ' ') {
            signs = 0;
        }
        if depth > MAX_DEPTH || powers > MAX_CHAIN || signs > MAX_CHAIN {
            bail!("the expression is nested too deeply");
        }
    }
    Ok(())
}

/// Counts how often fend asks whether to go on.
struct Steps(AtomicU64);

impl fend_core::Interrupt for Steps {
    fn should_interrupt(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) >= MAX_STEPS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(expression: &str, expected: &str) {
        match evaluate(expression) {
            Ok(value) => assert_eq!(value, expected, "{expression}"),
            Err(error) => panic!("{expression}: {error}"),
        }
    }

    #[track_caller]
    fn refuses(expression: &str, expected: &str) {
        let error = evaluate(expression).unwrap_err().to_string();
        assert!(error.contains(expected), "{expression}: {error}");
    }

    #[test]
    fn computes() {
        check("37 + 12", "49");
        check("3 + 4 * 2 =", "11");
        check("96 / 4", "24");
        check("7 / 2", "3.5");
        check("1 / 3", "0.3333333333");
        check("5 - 8", "-3");
        check("(2 + 3) × 4 ÷ 5", "4");
        check("1,234 + 1", "1235");
        check("2^10", "1024");
        check("sqrt(144)", "12");
        check("17 mod 5", "2");
        check("0.1 + 0.2", "0.3");
        check("3 x 4", "12");
        check("１２ ＋ ３", "15");
        check("10 + 20 + 30 + 40 - 5 - 5 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1", "102");
    }

    #[test]
    fn only_arithmetic() {
        refuses("roll d6", "`roll` is not arithmetic");
        refuses("5 km to miles", "`km` is not arithmetic");
        refuses("\"a\" + \"b\"", "is not arithmetic");
        refuses("a = 3", "`a` is not arithmetic");
        refuses("1 / 0", "cannot compute");
        refuses("2 +", "cannot compute");
        refuses("", "empty");
    }

    #[test]
    fn work_is_bounded() {
        refuses("9^9^9^9", "too large");
        refuses("99999!", "too large");
        refuses("7^999", "is not a number one can write down");
        refuses(&"1+".repeat(200), "longer than");
        refuses(&"(".repeat(100), "nested too deeply");
        refuses(&"-".repeat(100), "nested too deeply");
        refuses(&format!("{}1", "2^".repeat(100)), "nested too deeply");
    }
}
