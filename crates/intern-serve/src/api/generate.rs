//! From requests to sequences in the engine, and from its events to answers.
//!
//! All sequences of one HTTP request report to one channel, read on a thread of that
//! request. It looks every few milliseconds whether the client is still there; when
//! it is not, the channel is dropped, and the engine forgets the sequences.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use intern_engine::{EngineRequest, Event, TokenScore};
use intern_lm::wire::Invalid;
use intern_lm::{FinishReason, Sampling, TokenLogprob, Usage};
use intern_tokenizer::Tokenizer;

use super::app::App;
use super::error::ApiError;

/// How long a client's disconnection may go unnoticed.
const GLANCE: Duration = Duration::from_millis(20);

/// One sequence to run.
#[derive(Clone, Default)]
pub(super) struct Job {
    pub tokens: Arc<Vec<u32>>,
    pub sampling: Sampling,
    /// Log-probabilities of the prompt's tokens with this many alternatives.
    pub prompt_logprobs: Option<usize>,
    /// The prompt's embedding instead of an answer.
    pub embed: bool,
    /// When to give up.
    pub deadline: Option<Instant>,
    /// The adapter that answers, if it is not the model itself.
    pub adapter: Option<String>,
}

impl Job {
    fn request(&self) -> EngineRequest {
        EngineRequest {
            score_from: self.prompt_logprobs.map(|_| 1),
            score_top: self.prompt_logprobs.unwrap_or(0),
            embed: self.embed,
            deadline: self.deadline,
            adapter: self.adapter.clone(),
            ..EngineRequest::new(self.tokens.to_vec(), self.sampling.clone())
        }
    }
}

/// What happened to one of the jobs.
pub(super) enum Update {
    /// One more token, and the text that is certain now (may be empty).
    Piece { id: Option<u32>, text: String, logprob: Option<TokenLogprob> },
    /// The prompt's log-probabilities if asked for: one per token, none for the first.
    Prompt(Vec<Option<TokenLogprob>>),
    /// The prompt's embedding if asked for.
    Embedding(Vec<f32>),
    /// The end.
    Done { finish: FinishReason, usage: Usage, cached_tokens: usize },
}

/// Whether a job's answer is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Go,
    /// It is complete; no more of it is computed.
    Stop,
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

/// Finds out before an answer begins what the engine would refuse.
pub(super) fn check(app: &App, job: &Job) -> Result<(), ApiError> {
    let request = job.request();
    let Err(error) = app.engine.check(&request) else { return Ok(()) };
    let mut plain = request;
    let had_grammar = plain.sampling.grammar.take().is_some();
    let message = format!("{error:#}");
    if had_grammar && app.engine.check(&plain).is_ok() {
        return Err(Invalid::unsupported("response_format", message).into());
    }
    let known = ["logit_bias", "stop_token_ids", "temperature", "top_p", "typical_p", "min_p"];
    let param = known.iter().find(|p| message.contains(*p)).map(|p| (*p).to_string());
    Err(Invalid { message, param, code: None }.into())
}

/// Runs all jobs side by side; `each` sees the updates of job `i` in order until all are done.
/// Blocks; ends early, cancelling what is left, once `is_gone` says so.
pub(super) fn run(
    app: &App,
    jobs: Vec<Job>,
    is_gone: &dyn Fn() -> bool,
    mut each: impl FnMut(usize, Update) -> Flow,
) -> Result<(), ApiError> {
    let (sender, receiver) = channel();
    let mut clocks: Vec<Clock> = jobs.iter().map(|job| Clock::new(job.tokens.len())).collect();
    let wants: Vec<(bool, bool)> =
        jobs.iter().map(|job| (job.prompt_logprobs.is_some(), job.embed)).collect();
    for (i, job) in jobs.iter().enumerate() {
        let (sender, stopped) = (sender.clone(), clocks[i].stopped.clone());
        let listener = move |event| !stopped.load(Ordering::Relaxed) && sender.send((i, event)).is_ok();
        app.engine.submit_to(job.request(), Box::new(listener));
    }
    let deadline = jobs.iter().filter_map(|job| job.deadline).min();
    drop((sender, jobs));
    let mut live = clocks.len();
    while live > 0 {
        if is_gone() {
            app.metrics.cancelled.add(1);
            tracing::info!("the client hung up");
            return Ok(());
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(ApiError::expired());
        }
        let (i, event) = match receiver.recv_timeout(GLANCE) {
            Ok(next) => next,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(ApiError::internal("the engine stopped\nhint: see the server's log"));
            }
        };
        let clock = &mut clocks[i];
        if clock.stopped.load(Ordering::Relaxed) {
            continue; // sent before the job was stopped
        }
        match event {
            Event::Ping => {}
            Event::Prefill { .. } => clock.prefill(app),
            Event::Token { id, text, logprob } => {
                clock.token(app);
                if each(i, Update::Piece { id: Some(id), text, logprob }) == Flow::Stop {
                    live -= 1;
                    clock.stopped.store(true, Ordering::Relaxed);
                    let usage = clock.end(app, FinishReason::Stop);
                    each(i, Update::Done { finish: FinishReason::Stop, usage, cached_tokens: 0 });
                }
            }
            Event::Done { text, finish, usage, scores, embedding, cached_tokens, .. } => {
                live -= 1;
                clock.end(app, finish);
                if wants[i].0 {
                    let named = scores.into_iter().map(|score| Some(named(app.engine.tokenizer(), score)));
                    each(i, Update::Prompt(std::iter::once(None).chain(named).collect()));
                }
                if wants[i].1 {
                    each(i, Update::Embedding(embedding));
                }
                if !text.is_empty() {
                    each(i, Update::Piece { id: None, text, logprob: None });
                }
                each(i, Update::Done { finish, usage, cached_tokens });
            }
            Event::Error(message) => {
                app.metrics.failed.add(1);
                return Err(ApiError::internal(message));
            }
            Event::Expired => return Err(ApiError::expired()),
        }
    }
    Ok(())
}

/// Times of one job, for the metrics, and whether it was stopped.
struct Clock {
    begin: Instant,
    prefill: Option<Instant>,
    first: Option<Instant>,
    last: Instant,
    prompt_tokens: usize,
    tokens: usize,
    stopped: Arc<AtomicBool>,
}

impl Clock {
    fn new(prompt_tokens: usize) -> Self {
        let begin = Instant::now();
        Self {
            begin,
            prefill: None,
            first: None,
            last: begin,
            prompt_tokens,
            tokens: 0,
            stopped: Arc::default(),
        }
    }

    fn prefill(&mut self, app: &App) {
        if self.prefill.is_none() {
            self.prefill = Some(Instant::now());
            app.metrics.queue.add(self.begin.elapsed().as_secs_f64());
        }
    }

    fn token(&mut self, app: &App) {
        let now = Instant::now();
        match self.first {
            None => {
                self.first = Some(now);
                app.metrics.first_token.add((now - self.begin).as_secs_f64());
                app.metrics.prefill.add((now - self.prefill.unwrap_or(self.begin)).as_secs_f64());
            }
            Some(_) => app.metrics.inter_token.add((now - self.last).as_secs_f64()),
        }
        self.last = now;
        self.tokens += 1;
        app.metrics.generated_tokens.add(1);
    }

    fn end(&self, app: &App, finish: FinishReason) -> Usage {
        app.metrics.e2e.add(self.begin.elapsed().as_secs_f64());
        if let Some(first) = self.first {
            app.metrics.decode.add(first.elapsed().as_secs_f64());
        }
        app.metrics.prompt_tokens.add(self.prompt_tokens as u64);
        app.metrics.finish(finish);
        Usage { prompt_tokens: self.prompt_tokens, completion_tokens: self.tokens }
    }
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
