//! From requests to sequences in the engine, and from its events to answers.
//!
//! All sequences of one HTTP request report to one channel, read on a thread of that
//! request. It looks every few milliseconds whether the client is still there; when
//! it is not, the channel is dropped, and the engine forgets the sequences.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use intern_engine::{EngineRequest, Event, TokenScore};
use intern_lm::wire::Invalid;
use intern_lm::{FinishReason, Sampling, TokenLogprob, Usage};
use intern_tokenizer::Tokenizer;

use super::app::App;
use super::error::ApiError;

/// How long a client's disconnection may go unnoticed.
const GLANCE: Duration = Duration::from_millis(20);

/// One sequence to generate.
pub(super) struct Job {
    pub tokens: Arc<Vec<u32>>,
    pub sampling: Sampling,
    /// Log-probabilities of the prompt's tokens with this many alternatives.
    pub prompt_logprobs: Option<usize>,
}

/// What happened to one of the jobs.
pub(super) enum Update {
    /// One more token, and the text that is certain now (may be empty).
    Piece { id: Option<u32>, text: String, logprob: Option<TokenLogprob> },
    /// The prompt's log-probabilities if asked for: one per token, none for the first.
    Prompt(Vec<Option<TokenLogprob>>),
    /// The end.
    Done { finish: FinishReason, usage: Usage },
}

/// Checks the prompt, and lowers `max_tokens` to what fits the context behind it.
pub(super) fn fit(app: &App, tokens: &[u32], sampling: &mut Sampling, param: &str) -> Result<(), ApiError> {
    let (prompt, limit) = (tokens.len(), app.engine.context_length());
    if prompt == 0 {
        let message = format!("{param} has no tokens\nhint: send some text");
        return Err(Invalid::new(param, message).into());
    }
    let vocab = app.engine.config().vocab_size;
    if let Some(bad) = tokens.iter().find(|&&t| t as usize >= vocab) {
        let message = format!("{param} holds the token id {bad}, but the vocabulary has {vocab} tokens");
        return Err(Invalid::new(param, message).into());
    }
    let room = limit.saturating_sub(prompt);
    if prompt > limit || (room == 0 && sampling.max_tokens > 0) {
        let message = format!(
            "{param} has {prompt} tokens; with the answer, the context length of {limit} is exceeded\n\
             hint: shorten {param}"
        );
        return Err(Invalid::new(param, message).code("context_length_exceeded").into());
    }
    sampling.max_tokens = sampling.max_tokens.min(room);
    Ok(())
}

/// Runs all jobs side by side; `each` sees the updates of job `i` in order until all are done.
/// Blocks; ends early, cancelling what is left, once `is_gone` says so.
pub(super) fn run(
    app: &App,
    jobs: Vec<Job>,
    is_gone: &dyn Fn() -> bool,
    mut each: impl FnMut(usize, Update),
) -> Result<(), ApiError> {
    let (sender, receiver) = channel();
    let mut live = jobs.len();
    let wants_scores: Vec<bool> = jobs.iter().map(|job| job.prompt_logprobs.is_some()).collect();
    for (i, job) in jobs.into_iter().enumerate() {
        let request = EngineRequest {
            score_from: job.prompt_logprobs.map(|_| 1),
            score_top: job.prompt_logprobs.unwrap_or(0),
            ..EngineRequest::new(job.tokens.to_vec(), job.sampling)
        };
        let sender = sender.clone();
        app.engine.submit_to(request, Box::new(move |event| sender.send((i, event)).is_ok()));
    }
    drop(sender);
    while live > 0 {
        if is_gone() {
            tracing::info!("the client hung up");
            return Ok(());
        }
        match receiver.recv_timeout(GLANCE) {
            Ok((_, Event::Prefill { .. })) | Err(RecvTimeoutError::Timeout) => {}
            Ok((i, Event::Token { id, text, logprob })) => {
                each(i, Update::Piece { id: Some(id), text, logprob })
            }
            Ok((i, Event::Done { text, finish, usage, scores, .. })) => {
                live -= 1;
                if wants_scores[i] {
                    let named = scores.into_iter().map(|score| Some(named(app.engine.tokenizer(), score)));
                    each(i, Update::Prompt(std::iter::once(None).chain(named).collect()));
                }
                if !text.is_empty() {
                    each(i, Update::Piece { id: None, text, logprob: None });
                }
                each(i, Update::Done { finish, usage });
            }
            Ok((_, Event::Error(message))) => return Err(ApiError::internal(message)),
            Ok((_, Event::Expired)) => return Err(ApiError::internal("the request's deadline has passed")),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(ApiError::internal("the engine stopped\nhint: see the server's log"));
            }
        }
    }
    Ok(())
}

/// Adds the tokens' texts.
fn named(tokenizer: &Tokenizer, score: TokenScore) -> TokenLogprob {
    let top = score.top.into_iter().map(|(id, logprob)| (id, token_text(tokenizer, id), logprob)).collect();
    TokenLogprob { id: score.id, token: token_text(tokenizer, score.id), logprob: score.logprob, top }
}

/// A token's text, as the engine names tokens.
pub(super) fn token_text(tokenizer: &Tokenizer, id: u32) -> String {
    String::from_utf8_lossy(&tokenizer.token_bytes(id).unwrap_or_default()).into_owned()
}
