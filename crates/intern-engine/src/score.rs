//! Log-likelihoods with lm-evaluation-harness's token splits.
//!
//! A continuation is scored after its context as one text: trailing white space of the
//! context moves to the continuation, both are encoded together, and the context's own
//! token count marks the split. Rolling scores cut a text into windows so that every token
//! is scored once, with as much context as fits (`get_rolling_token_windows`).

use anyhow::{Context, Result, ensure};
use intern_lm::{Score, ScoreRequest};
use intern_tokenizer::Tokenizer;

/// Tokens to run and how many at their end to score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The first has only itself as context and is not scored.
    pub tokens: Vec<u32>,
    /// At least 1, less than the number of tokens.
    pub scored: usize,
}

/// The windows of a request: one for a continuation, any number for rolling text.
///
/// `max_context` bounds what the model reads, which is all but the last token.
pub(crate) fn windows(
    request: &ScoreRequest,
    tokenizer: &Tokenizer,
    max_context: usize,
) -> Result<Vec<Window>> {
    let prefix = || {
        tokenizer
            .bos_id()
            .or(tokenizer.eos_id())
            .context("scoring text without context needs a BOS or EOS token, the tokenizer has neither")
    };
    let encode = |text: &str| tokenizer.encode(text, false);
    match request {
        ScoreRequest::Continuation { context, continuation } => {
            let (context, continuation) = if context.is_empty() {
                (vec![prefix()?], encode(continuation)?)
            } else {
                let (context, moved) = context.split_at(rstrip(context).len());
                let whole = encode(&format!("{context}{moved}{continuation}"))?;
                let context = encode(context)?;
                // A context of white space only leaves nothing before the split.
                let context = if context.is_empty() { vec![prefix()?] } else { context };
                let split = context.len().min(whole.len());
                (context, whole[split..].to_vec())
            };
            ensure!(
                continuation.len() <= max_context,
                "the continuation has {} tokens, the context is {max_context}\nhint: use a model with a longer context",
                continuation.len()
            );
            if continuation.is_empty() {
                return Ok(Vec::new());
            }
            Ok(vec![continuation_window(&context, &continuation, max_context)])
        }
        ScoreRequest::Rolling { text } => Ok(rolling_windows(&encode(text)?, prefix()?, max_context)),
    }
}

/// Context and continuation, cut at the left to what fits.
fn continuation_window(context: &[u32], continuation: &[u32], max_context: usize) -> Window {
    let tokens = [context, continuation].concat();
    let from = tokens.len().saturating_sub(max_context + 1);
    Window { tokens: tokens[from..].to_vec(), scored: continuation.len() }
}

/// Disjoint windows over `tokens`: full ones, then a last one filled up with context.
fn rolling_windows(tokens: &[u32], prefix: u32, max_context: usize) -> Vec<Window> {
    let mut out = Vec::new();
    let first = tokens.len().min(max_context);
    if first == 0 {
        return out;
    }
    out.push(Window { tokens: [&[prefix], &tokens[..first]].concat(), scored: first });
    let mut done = first;
    while done < tokens.len() {
        let scored = max_context.min(tokens.len() - done);
        let end = done + scored;
        out.push(Window { tokens: tokens[end - max_context - 1..end].to_vec(), scored });
        done = end;
    }
    out
}

/// `text` without the white space at its end, by Python's definition.
fn rstrip(text: &str) -> &str {
    text.trim_end_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

/// Adds up the scores of a request's windows.
pub(crate) fn total(parts: impl Iterator<Item = (f32, bool)>) -> Score {
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

    #[test]
    fn rolling_windows_score_every_token_once() {
        let tokens: Vec<u32> = (1..=10).collect();
        // The harness's own example: 10 tokens, windows of 4.
        let got = rolling_windows(&tokens, 0, 4);
        let want = [(vec![0, 1, 2, 3, 4], 4), (vec![4, 5, 6, 7, 8], 4), (vec![6, 7, 8, 9, 10], 2)];
        assert_eq!(got, want.map(|(tokens, scored)| Window { tokens, scored }));
        assert_eq!(rolling_windows(&[], 0, 4), []);
        assert_eq!(rolling_windows(&[5], 0, 4), [Window { tokens: vec![0, 5], scored: 1 }]);
    }

    #[test]
    fn long_contexts_lose_their_beginning() {
        let window = continuation_window(&[1, 2, 3, 4, 5], &[6, 7], 4);
        assert_eq!(window, Window { tokens: vec![3, 4, 5, 6, 7], scored: 2 });
    }

    #[test]
    fn white_space_is_pythons() {
        assert_eq!(rstrip("a b \n\u{1d}\u{3000}"), "a b");
    }
}
