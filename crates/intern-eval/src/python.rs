//! Python's text forms of values: `str`, `repr` and literals.
//!
//! lm-evaluation-harness renders templates with Jinja2, where a list becomes
//! `['a', 'b']`, and reads such text back with `ast.literal_eval`; so do we.

use anyhow::{Result, bail};
use serde_json::{Map, Number, Value};

/// `str(value)`: text as it is, everything else as [`repr`].
#[must_use]
pub fn text(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        other => repr(other),
    }
}

/// `repr(value)`.
#[must_use]
pub fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".to_string(),
        Value::Bool(true) => "True".to_string(),
        Value::Bool(false) => "False".to_string(),
        Value::Number(n) => match n.as_f64() {
            Some(x) if n.is_f64() => float(x),
            _ => n.to_string(),
        },
        Value::String(s) => quote(s),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", "))
        }
        Value::Object(map) => {
            let parts: Vec<String> = map.iter().map(|(k, v)| format!("{}: {}", quote(k), repr(v))).collect();
            format!("{{{}}}", parts.join(", "))
        }
    }
}

/// `repr(float)`: shortest digits, scientific below 1e-4 and from 1e16 on.
#[must_use]
pub fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_string();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_string();
    }
    let scientific = format!("{x:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) || x == 0.0 {
        let plain = format!("{x}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

fn quote(s: &str) -> String {
    let mark = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
    let mut out = String::with_capacity(s.len() + 2);
    out.push(mark);
    for c in s.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => {
                out.push('\\');
                out.push(c);
            }
            c if !printable(c) => {
                let code = u32::from(c);
                out.push_str(&match code {
                    0..=0xff => format!("\\x{code:02x}"),
                    0x100..=0xffff => format!("\\u{code:04x}"),
                    _ => format!("\\U{code:08x}"),
                });
            }
            c => out.push(c),
        }
    }
    out.push(mark);
    out
}

/// `str.isprintable`, for the separators and format characters found in real text.
fn printable(c: char) -> bool {
    !c.is_control()
        && (c == ' ' || !c.is_whitespace())
        && !matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e000}'..='\u{f8ff}')
}

/// `ast.literal_eval(text)`: numbers, strings, `True`, `False`, `None`, lists, tuples and dicts.
///
/// # Errors
/// Says where the text stops being a literal.
pub fn literal(text: &str) -> Result<Value> {
    let mut parser = Literal { chars: text.chars().collect(), at: 0 };
    let value = parser.value()?;
    parser.blank();
    match parser.peek() {
        None => Ok(value),
        Some(_) => bail!("`{text}` is not a Python literal: unexpected text at character {}", parser.at + 1),
    }
}

struct Literal {
    chars: Vec<char>,
    at: usize,
}

impl Literal {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn blank(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.at += 1;
        }
    }

    fn fail<T>(&self, what: &str) -> Result<T> {
        let text: String = self.chars.iter().collect();
        bail!("`{text}` is not a Python literal: expected {what} at character {}", self.at + 1)
    }

    fn value(&mut self) -> Result<Value> {
        self.blank();
        match self.peek() {
            Some('[') => Ok(Value::Array(self.items(']')?)),
            Some('(') => {
                let mut items = self.items(')')?;
                // `(x)` is x, `(x,)` a tuple.
                let tuple = self.chars[..self.at - 1].iter().rev().find(|c| !c.is_whitespace()) == Some(&',');
                Ok(if items.len() == 1 && !tuple { items.remove(0) } else { Value::Array(items) })
            }
            Some('{') => self.dict(),
            Some('\'' | '"') => {
                let mut text = self.string()?;
                // Neighbouring strings are one.
                loop {
                    self.blank();
                    match self.peek() {
                        Some('\'' | '"') => text.push_str(&self.string()?),
                        _ => return Ok(Value::String(text)),
                    }
                }
            }
            Some(c) if c.is_ascii_digit() || matches!(c, '-' | '+' | '.') => self.number(),
            Some(c) if c.is_ascii_alphabetic() => self.word(),
            _ => self.fail("a value"),
        }
    }

    fn items(&mut self, close: char) -> Result<Vec<Value>> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            self.blank();
            if self.peek() == Some(close) {
                self.at += 1;
                return Ok(items);
            }
            items.push(self.value()?);
            self.blank();
            match self.peek() {
                Some(',') => self.at += 1,
                Some(c) if c == close => {}
                _ => return self.fail("`,` or the end of the list"),
            }
        }
    }

    fn dict(&mut self) -> Result<Value> {
        self.at += 1;
        let mut map = Map::new();
        loop {
            self.blank();
            if self.peek() == Some('}') {
                self.at += 1;
                return Ok(Value::Object(map));
            }
            let key = text(&self.value()?);
            self.blank();
            if self.peek() != Some(':') {
                return self.fail("`:`");
            }
            self.at += 1;
            map.insert(key, self.value()?);
            self.blank();
            match self.peek() {
                Some(',') => self.at += 1,
                Some('}') => {}
                _ => return self.fail("`,` or `}`"),
            }
        }
    }

    fn string(&mut self) -> Result<String> {
        let mark = self.chars[self.at];
        self.at += 1;
        let mut out = String::new();
        loop {
            let Some(c) = self.peek() else { return self.fail("the end of the string") };
            self.at += 1;
            match c {
                c if c == mark => return Ok(out),
                '\n' => return self.fail("the end of the string"),
                '\\' => self.escape(&mut out)?,
                c => out.push(c),
            }
        }
    }

    fn escape(&mut self, out: &mut String) -> Result<()> {
        let Some(c) = self.peek() else { return self.fail("an escape") };
        self.at += 1;
        let simple = match c {
            'n' => Some('\n'),
            't' => Some('\t'),
            'r' => Some('\r'),
            '0' => Some('\0'),
            '\\' | '\'' | '"' => Some(c),
            _ => None,
        };
        out.extend(simple);
        if simple.is_some() || c == '\n' {
            return Ok(());
        }
        let digits = match c {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            // Python keeps the backslash of an escape it does not know.
            c => {
                out.extend(['\\', c]);
                return Ok(());
            }
        };
        let hex: String = self.chars.iter().skip(self.at).take(digits).collect();
        match u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32) {
            Some(c) if hex.len() == digits => out.push(c),
            _ => return self.fail("hexadecimal digits"),
        }
        self.at += digits;
        Ok(())
    }

    fn number(&mut self) -> Result<Value> {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_'))
            || (self.peek().is_some_and(|c| matches!(c, '-' | '+'))
                && (self.at == start || matches!(self.chars[self.at - 1], 'e' | 'E')))
        {
            self.at += 1;
        }
        let text: String = self.chars[start..self.at].iter().filter(|c| **c != '_').collect();
        let plain = text.strip_prefix('+').unwrap_or(&text);
        if let Ok(n) = plain.parse::<i64>() {
            return Ok(n.into());
        }
        match plain.parse::<f64>().ok().and_then(Number::from_f64) {
            Some(n) if plain.contains(['.', 'e', 'E']) => Ok(Value::Number(n)),
            _ => {
                self.at = start;
                self.fail("a number")
            }
        }
    }

    fn word(&mut self) -> Result<Value> {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
            self.at += 1;
        }
        match self.chars[start..self.at].iter().collect::<String>().as_str() {
            "True" => Ok(Value::Bool(true)),
            "False" => Ok(Value::Bool(false)),
            "None" => Ok(Value::Null),
            _ => {
                self.at = start;
                self.fail("a value")
            }
        }
    }
}

/// Translates a Python regular expression into `fancy-regex`'s dialect: `[`, `&` and `~` are
/// plain inside a class, `\Z` is the very end, `$` also stands before a final line break.
///
/// # Errors
/// If the expression is not valid.
pub fn regex(pattern: &str) -> Result<fancy_regex::Regex> {
    let multiline = pattern.starts_with("(?") && pattern.split(')').next().is_some_and(|f| f.contains('m'));
    let mut out = String::with_capacity(pattern.len());
    let mut class = false;
    let mut class_start = 0;
    let chars: Vec<char> = pattern.chars().collect();
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i];
        match c {
            '\\' => {
                let next = chars.get(i + 1).copied();
                match next {
                    Some('Z') => out.push_str("\\z"),
                    Some(n) => out.extend(['\\', n]),
                    None => out.push('\\'),
                }
                i += 1;
            }
            '[' if !class => {
                class = true;
                class_start = i + if chars.get(i + 1) == Some(&'^') { 2 } else { 1 };
                out.push('[');
            }
            ']' if class && i == class_start => out.push_str("\\]"),
            ']' if class => {
                class = false;
                out.push(']');
            }
            '[' | '&' | '~' if class => out.extend(['\\', c]),
            '$' if !class && !multiline => out.push_str(r"(?=\n?\z)"),
            c => out.push(c),
        }
        i += 1;
    }
    fancy_regex::Regex::new(&out).map_err(|e| anyhow::anyhow!("`{pattern}` is not a regular expression: {e}"))
}

/// `len(re.split(r"\s+", text))`.
#[must_use]
pub fn count_words(text: &str) -> usize {
    let mut words = 1;
    let mut in_space = false;
    for c in text.chars() {
        // Python counts the four information separators as white space too.
        let space = c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
        words += usize::from(space && !in_space);
        in_space = space;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_forms_are_pythons() {
        let value = json!(["it's", "a \"b\"", "both ' and \"", "line\nbreak\u{3000}", true, null, 1, 1.0, {"k": [2]}]);
        assert_eq!(
            repr(&value),
            r#"["it's", 'a "b"', 'both \' and "', 'line\nbreak\u3000', True, None, 1, 1.0, {'k': [2]}]"#
        );
        assert_eq!(text(&json!("as it is")), "as it is");
        let floats = [
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (1e-4, "0.0001"),
            (1.5e-5, "1.5e-05"),
            (0.1, "0.1"),
            (-0.0, "-0.0"),
        ];
        for (x, expected) in floats {
            assert_eq!(float(x), expected);
        }
    }

    #[test]
    fn literals_round_trip() {
        let value =
            json!(["it's", "a \"b\"", "both ' and \" \\ \u{3000}\n", true, null, -1, 1.5, {"k": [2]}, []]);
        assert_eq!(literal(&repr(&value)).unwrap(), value);
        assert_eq!(literal("('a', 'b')").unwrap(), json!(["a", "b"]));
        assert_eq!(literal("('a')").unwrap(), json!("a"));
        assert_eq!(literal("('a',)").unwrap(), json!(["a"]));
        assert_eq!(literal(" [ 'a' 'b' , 1_000, ] ").unwrap(), json!(["ab", 1000]));
        for bad in ["", "[a]", "[1", "'x", "1 2", "__import__('os')", "1e999"] {
            assert!(literal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn regexes_mean_what_they_mean_in_python() {
        let check = |pattern: &str, text: &str, expected: bool| {
            assert_eq!(regex(pattern).unwrap().is_match(text).unwrap(), expected, "{pattern} on {text:?}");
        };
        check(r"#### (\-?[0-9\.\,]+)", "#### -1,234.5", true);
        check("[[]x", "[x", true);
        check("[]a]+z", "]az", true);
        check("[a&&b]", "&", true);
        check("a$", "a\n", true);
        check("a$", "a\nb", false);
        check(r"a\Z", "a\n", false);
        check(r"(?<=Answer: )\w", "Answer: B", true);
        check(r"(?i)YES", "yes", true);
        assert!(regex("(").is_err());
    }

    #[test]
    fn words_are_counted_as_re_split_does() {
        for (text, n) in [("", 1), ("a b", 2), (" a  b\n", 4), ("a", 1), ("\u{3000}a", 2)] {
            assert_eq!(count_words(text), n, "{text:?}");
        }
    }
}
