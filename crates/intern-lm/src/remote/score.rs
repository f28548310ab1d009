//! Log-likelihoods from a server, by `echo` and `logprobs` of `/v1/completions`.
//!
//! The split between context and continuation is found by the tokens' text
//! offsets, as no tokenizer is at hand; where a token straddles it, the server
//! is asked how many tokens the context alone has (lm-evaluation-harness's rule).

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Remote;
use super::http::ApiError;
use crate::request::{Score, ScoreRequest};
use crate::wire::{
    Common, CompletionChoice, CompletionLogprobs, CompletionRequest, CompletionResponse, WirePrompt,
};

const NO_ECHO: &str = "hint: scoring needs /v1/completions with echo and logprobs (intern, vLLM, SGLang); generation tasks need less";

impl Remote {
    pub(super) fn score_one(&self, request: &ScoreRequest) -> Result<Score> {
        match request {
            ScoreRequest::Continuation { context, continuation } => {
                let kept = context.trim_end();
                let continuation = format!("{}{continuation}", &context[kept.len()..]);
                self.continuation(kept, &continuation)
            }
            ScoreRequest::Rolling { text } => self.rolling("", text),
        }
    }

    /// Scores `text` after `context`, dropping the beginning of a context that is too long.
    fn continuation(&self, context: &str, text: &str) -> Result<Score> {
        let mut context = context;
        loop {
            match self.echo(context, text) {
                Err(e) if !context.is_empty() && is_too_long(&e) => {
                    context = &context[middle(context, context.len() / 4)..];
                    tracing::warn!("a context is too long for {}; its beginning is dropped", self.model);
                }
                other => return other,
            }
        }
    }

    /// Scores `text` after `context`; text that is too long is halved, each half following the other's last word.
    fn rolling(&self, context: &str, text: &str) -> Result<Score> {
        match self.echo(context, text) {
            Err(e) if text.chars().count() > 1 && is_too_long(&e) => {
                let (left, right) = text.split_at(middle(text, text.len() / 2));
                let word = left.trim_end().rfind(char::is_whitespace).unwrap_or(0);
                let short = &left[word.max(floor(left, left.len().saturating_sub(64)))..];
                let (a, b) = (self.rolling(context, left)?, self.rolling(short, right)?);
                Ok(Score {
                    logprob: a.logprob + b.logprob,
                    is_greedy: a.is_greedy && b.is_greedy,
                    num_tokens: a.num_tokens + b.num_tokens,
                })
            }
            other => other,
        }
    }

    /// One request: the log-probability of `text` right after `context`.
    fn echo(&self, context: &str, text: &str) -> Result<Score> {
        let prompt = format!("{context}{text}");
        let choice = self.echo_choice(&prompt)?;
        let Some(logprobs) = choice.logprobs else {
            bail!("{} returns no prompt log-probabilities\n{NO_ECHO}", self.client.base);
        };
        let spans = spans(&prompt, &logprobs)?;
        let (start, end) = (context.chars().count(), prompt.chars().count());
        let last = spans.iter().position(|s| s.0 >= end).unwrap_or(spans.len());
        let mut first = spans.iter().position(|s| s.0 >= start).unwrap_or(last);
        if first > 0 && start > 0 && spans[first - 1].1 > start {
            first = self.count_tokens(context)?.min(last);
        }
        let mut score = Score { logprob: 0.0, is_greedy: true, num_tokens: 0 };
        for i in first..last {
            // The very first token has nothing before it.
            let Some(logprob) = logprobs.token_logprobs[i] else { continue };
            score.logprob += f64::from(logprob);
            score.num_tokens += 1;
            let best = logprobs.top_logprobs.get(i).and_then(Option::as_ref);
            let best =
                best.map(|top| top.values().filter_map(Value::as_f64).fold(f64::NEG_INFINITY, f64::max));
            score.is_greedy &= best.is_some_and(|best| f64::from(logprob) >= best - 1e-6);
        }
        Ok(score)
    }

    fn echo_choice(&self, prompt: &str) -> Result<CompletionChoice> {
        let body = CompletionRequest {
            common: Common {
                model: Some(self.model.clone()),
                temperature: Some(0.0),
                // Others than ours may insist on generating something; it is cut off by its offset.
                max_tokens: Some(if self.is_ours() { 0 } else { 1 }),
                ..Common::default()
            },
            prompt: Some(WirePrompt::Text(prompt.to_string())),
            echo: Some(true),
            logprobs: Some(1),
            ..CompletionRequest::default()
        };
        let answer: CompletionResponse = self.explain(self.client.post("/completions", &body))?;
        answer.choices.into_iter().next().context("the server sent no choice")
    }

    /// How many tokens the server makes of `text`.
    fn count_tokens(&self, text: &str) -> Result<usize> {
        let body = CompletionRequest {
            common: Common { model: Some(self.model.clone()), max_tokens: Some(1), ..Common::default() },
            prompt: Some(WirePrompt::Text(text.to_string())),
            ..CompletionRequest::default()
        };
        let answer: CompletionResponse = self.explain(self.client.post("/completions", &body))?;
        Ok(answer.usage.context("the server sent no usage")?.prompt_tokens)
    }
}

/// Where each token begins and ends in `prompt`, in characters. A BOS that is not in
/// the prompt has no width, though some servers count its name.
fn spans(prompt: &str, logprobs: &CompletionLogprobs) -> Result<Vec<(usize, usize)>> {
    let offsets = &logprobs.text_offset;
    if offsets.len() != logprobs.token_logprobs.len() || offsets.is_empty() {
        bail!("the server's logprobs carry no text_offset\n{NO_ECHO}");
    }
    let bos = match logprobs.tokens.first() {
        Some(token) if !token.is_empty() && !prompt.starts_with(token.as_str()) && offsets.len() > 1 => {
            offsets[1] - offsets[0].min(offsets[1])
        }
        _ => 0,
    };
    let begin = |i: usize| offsets.get(i).map(|o| o.saturating_sub(offsets[0] + bos));
    Ok((0..offsets.len())
        .map(|i| {
            let start = begin(i).unwrap_or(0);
            (start, begin(i + 1).unwrap_or(usize::MAX).max(start))
        })
        .collect())
}

fn is_too_long(error: &anyhow::Error) -> bool {
    error.downcast_ref::<ApiError>().is_some_and(ApiError::is_context_exceeded)
}

/// The character boundary at or before byte `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0)
}

/// A byte position near `at` to cut at: before white space if there is any, else between characters.
/// Never 0 for text of two characters or more.
fn middle(text: &str, at: usize) -> usize {
    let at = floor(text, at);
    let space = text[at..].find(char::is_whitespace).map(|i| at + i);
    let next = text.char_indices().nth(1).map_or(text.len(), |(i, _)| i);
    space.filter(|&s| s > 0 && s < text.len()).unwrap_or(at).max(next)
}
