//! Which tokens a score is the sum of: lm-evaluation-harness's rules.
//!
//! A continuation is scored after its context as one text: trailing white space of the
//! context moves to the continuation, both are encoded together, and the context's own
//! token count marks the split. Rolling scores cut a text into windows so that every token
//! is scored once, with as much context as fits (`get_rolling_token_windows`).

use anyhow::{Result, ensure};

use crate::request::{Score, ScoreRequest};

/// Tokens to run and how many at their end to score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The first has only itself as context and is not scored.
    pub tokens: Vec<u32>,
    /// At least 1, less than the number of tokens.
    pub scored: usize,
}

/// The windows of a request: one for a continuation (none if it has no tokens), any number
/// for rolling text. Each has at most `max_scored + 1` tokens.
///
/// `encode` turns text into tokens, with those the tokenizer adds by itself if asked; `prefix` is
/// the token to put before text without context, BOS or EOS.
///
/// # Errors
/// If a continuation alone is too long, and where `encode` and `prefix` fail.
pub fn windows(
    request: &ScoreRequest,
    encode: &dyn Fn(&str, bool) -> Result<Vec<u32>>,
    prefix: &dyn Fn() -> Result<u32>,
    max_scored: usize,
) -> Result<Vec<Window>> {
    let (context, continuation) = match request {
        ScoreRequest::Rolling { text } => return Ok(rolling(&encode(text, true)?, prefix()?, max_scored)),
        ScoreRequest::Continuation { context, continuation } if context.is_empty() => {
            (vec![prefix()?], encode(continuation, false)?)
        }
        ScoreRequest::Continuation { context, continuation } => {
            let whole = encode(&format!("{context}{continuation}"), true)?;
            let before = encode(rstrip(context), true)?;
            // A context of white space only leaves nothing before the split.
            let before = if before.is_empty() { vec![prefix()?] } else { before };
            let split = before.len().min(whole.len());
            (before, whole[split..].to_vec())
        }
    };
    ensure!(
        continuation.len() <= max_scored,
        "the continuation has {} tokens, the context is {max_scored}\nhint: use a model with a longer context",
        continuation.len()
    );
    if continuation.is_empty() {
        return Ok(Vec::new());
    }
    let tokens = [context, continuation.clone()].concat();
    let from = tokens.len().saturating_sub(max_scored + 1);
    Ok(vec![Window { tokens: tokens[from..].to_vec(), scored: continuation.len() }])
}

/// Disjoint windows over `tokens`: full ones, then a last one filled up with context.
fn rolling(tokens: &[u32], prefix: u32, max_scored: usize) -> Vec<Window> {
    let mut out = Vec::new();
    let first = tokens.len().min(max_scored);
    if first == 0 {
        return out;
    }
    out.push(Window { tokens: [&[prefix], &tokens[..first]].concat(), scored: first });
    let mut done = first;
    while done < tokens.len() {
        let scored = max_scored.min(tokens.len() - done);
        let end = done + scored;
        out.push(Window { tokens: tokens[end - max_scored - 1..end].to_vec(), scored });
        done = end;
    }
    out
}

/// `text` without the white space at its end, by Python's definition.
pub(crate) fn rstrip(text: &str) -> &str {
    text.trim_end_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

/// Adds up log-probabilities, each with whether its token was the likeliest.
pub fn total(parts: impl Iterator<Item = (f32, bool)>) -> Score {
    let mut score = Score { logprob: 0.0, is_greedy: true, num_tokens: 0 };
    for (logprob, is_greedy) in parts {
        score.logprob += f64::from(logprob);
        score.is_greedy &= is_greedy;
        score.num_tokens += 1;
    }
    score
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One token per character, its code point.
    #[track_caller]
    fn check(request: ScoreRequest, max_scored: usize, want: &[(&str, usize)]) {
        let encode = |text: &str, _: bool| Ok(text.chars().map(|c| c as u32).collect());
        let got = windows(&request, &encode, &|| Ok('^' as u32), max_scored).unwrap();
        let text = |w: &Window| w.tokens.iter().filter_map(|&t| char::from_u32(t)).collect::<String>();
        let got: Vec<(String, usize)> = got.iter().map(|w| (text(w), w.scored)).collect();
        let want: Vec<(String, usize)> = want.iter().map(|(t, n)| (t.to_string(), *n)).collect();
        assert_eq!(got, want);
    }

    fn after(context: &str, continuation: &str) -> ScoreRequest {
        ScoreRequest::Continuation { context: context.into(), continuation: continuation.into() }
    }

    #[test]
    fn rolling_windows_score_every_token_once() {
        let text = "abcdefghij".to_string();
        // The harness's own example: 10 tokens, windows of 4.
        check(ScoreRequest::Rolling { text }, 4, &[("^abcd", 4), ("defgh", 4), ("fghij", 2)]);
        check(ScoreRequest::Rolling { text: String::new() }, 4, &[]);
        check(ScoreRequest::Rolling { text: "a".into() }, 4, &[("^a", 1)]);
    }

    #[test]
    fn continuations_split_where_the_context_ends() {
        check(after("ab", "cd"), 9, &[("abcd", 2)]);
        check(after("ab \n", "cd"), 9, &[("ab \ncd", 4)]);
        check(after("", "cd"), 9, &[("^cd", 2)]);
        check(after("ab", ""), 9, &[]);
        check(after("abcdef", "gh"), 4, &[("defgh", 2)]);
    }

    #[test]
    fn tokenizers_that_add_a_token_add_it_before_contexts() {
        let encode = |text: &str, special: bool| {
            Ok(special.then_some(1).into_iter().chain(text.bytes().map(u32::from)).collect())
        };
        let tokens = |request| windows(&request, &encode, &|| Ok(1), 9).unwrap()[0].tokens.clone();
        assert_eq!(tokens(after("a", "b")), [1, 97, 98]);
        assert_eq!(tokens(after("", "b")), [1, 98]);
        // As in the harness, the text's own first token is predicted too.
        assert_eq!(tokens(ScoreRequest::Rolling { text: "a".into() }), [1, 1, 97]);
    }

    #[test]
    fn white_space_is_pythons() {
        assert_eq!(rstrip("a b \n\u{1d}\u{3000}"), "a b");
    }
}
