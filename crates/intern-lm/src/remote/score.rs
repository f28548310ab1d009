//! Log-likelihoods from a server, by `echo` and `logprobs` of `/v1/completions`.
//!
//! A server with `/tokenize` (ours, vLLM) is asked for token ids, and the windows of
//! [`crate::score`] go out: the same sums as in process. From others, the split between
//! context and continuation is found by the tokens' text offsets; where a token
//! straddles it, the server is asked how many tokens the context alone has. Text that
//! is too long is then cut by halves, so long texts score a little lower than they should.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Remote;
use super::http::ApiError;
use crate::request::{Score, ScoreRequest};
use crate::score::{Window, rstrip, total, windows};
use crate::wire::{
    Common, CompletionChoice, CompletionLogprobs, CompletionRequest, CompletionResponse, TokenizeRequest,
    TokenizeResponse, WirePrompt,
};

const NO_ECHO: &str = "hint: scoring needs /v1/completions with echo and logprobs (intern, vLLM, SGLang); generation tasks need less";

/// Context length assumed of servers that tell none.
const DEFAULT_CONTEXT: usize = 2048;

impl Remote {
    pub(super) fn score_one(&self, request: &ScoreRequest) -> Result<Score> {
        if self.has_tokenize {
            return self.score_by_tokens(request);
        }
        match request {
            ScoreRequest::Continuation { context, continuation } => {
                let kept = rstrip(context);
                let continuation = format!("{}{continuation}", &context[kept.len()..]);
                self.continuation(kept, &continuation)
            }
            ScoreRequest::Rolling { text } => self.rolling("", text),
        }
    }

    fn score_by_tokens(&self, request: &ScoreRequest) -> Result<Score> {
        // All tokens are read, and others than ours insist on generating one.
        let spare = if self.is_ours() { 1 } else { 2 };
        let max_scored = self.max_context.unwrap_or(DEFAULT_CONTEXT).saturating_sub(spare).max(1);
        let windows =
            windows(request, &|text, special| self.tokenize(text, special), &|| self.prefix(), max_scored)?;
        let mut parts = Vec::new();
        for Window { tokens, scored } in windows {
            let end = tokens.len();
            let choice = self.echo_choice(WirePrompt::Tokens(tokens))?;
            let logprobs = choice.logprobs.unwrap_or_default();
            if logprobs.token_logprobs.len() < end {
                bail!("{} returns no prompt log-probabilities\n{NO_ECHO}", self.client.base);
            }
            parts.extend((end - scored..end).filter_map(|i| judged(&logprobs, i)));
        }
        Ok(total(parts.into_iter()))
    }

    /// The server's tokens of `text`.
    pub(super) fn tokenize(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let body = TokenizeRequest {
            model: Some(self.model.clone()),
            prompt: Some(text.to_string()),
            add_special_tokens: Some(add_special),
            ..TokenizeRequest::default()
        };
        let answer: TokenizeResponse = self.explain(self.client.post("/../tokenize", &body))?;
        Ok(answer.tokens)
    }

    /// What stands before text without context: BOS, or what our server takes for it.
    fn prefix(&self) -> Result<u32> {
        if let Some(&bos) = self.tokenize("", true)?.first() {
            return Ok(bos);
        }
        let mut body = self.echo_body(WirePrompt::Text(String::new()));
        body.common.return_token_ids = Some(true);
        let answer: CompletionResponse = self.explain(self.client.post("/completions", &body))?;
        let choice = answer.choices.into_iter().next().context("the server sent no choice")?;
        let ids = choice.prompt_token_ids.unwrap_or_default();
        ids.first().copied().context("the server's tokenizer has neither BOS nor EOS to put before the text")
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
        let choice = self.echo_choice(WirePrompt::Text(prompt.clone()))?;
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
        Ok(total((first..last).filter_map(|i| judged(&logprobs, i))))
    }

    fn echo_body(&self, prompt: WirePrompt) -> CompletionRequest {
        CompletionRequest {
            common: Common {
                model: Some(self.model.clone()),
                temperature: Some(0.0),
                // Others than ours may insist on generating something; it is cut off by its place.
                max_tokens: Some(if self.is_ours() { 0 } else { 1 }),
                ..Common::default()
            },
            prompt: Some(prompt),
            echo: Some(true),
            logprobs: Some(1),
            ..CompletionRequest::default()
        }
    }

    fn echo_choice(&self, prompt: WirePrompt) -> Result<CompletionChoice> {
        let answer: CompletionResponse =
            self.explain(self.client.post("/completions", &self.echo_body(prompt)))?;
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

/// Token `i`'s log-probability and whether it was the likeliest; `None` where nothing precedes it.
fn judged(logprobs: &CompletionLogprobs, i: usize) -> Option<(f32, bool)> {
    let logprob = logprobs.token_logprobs[i]?;
    let top = logprobs.top_logprobs.get(i).and_then(Option::as_ref);
    let best = top.map(|top| top.values().filter_map(Value::as_f64).fold(f64::NEG_INFINITY, f64::max));
    Some((logprob, best.is_some_and(|best| f64::from(logprob) >= best - 1e-6)))
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
