//! `POST /v1/completions`: continues text or token ids, one prompt or many.
//!
//! With `echo` and `logprobs` the prompt's own log-probabilities come back too,
//! which is how lm-evaluation-harness scores.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use intern_lm::wire::{
    CompletionChoice, CompletionLogprobs, CompletionRequest, CompletionResponse, Invalid, MAX_LOGPROBS,
    WirePrompt, WireUsage, write_finish,
};
use intern_lm::{Sampling, TokenLogprob, Usage};
use intern_tokenizer::Tokenizer;

use super::app::{App, Served, unix_time};
use super::body::{Incoming, off_thread, stream_off_thread};
use super::error::ApiError;
use super::gate::Ticket;
use super::generate::{self, Flow, Job, Update};
use super::sse::{self, Dialect, Events};

/// Most sequences one request may ask for (prompts × `n`).
const MAX_SEQUENCES: usize = 2048;

pub(super) async fn handle(
    State(app): State<Arc<App>>,
    Incoming { body, deadline }: Incoming<CompletionRequest>,
) -> Result<Response, ApiError> {
    let served = app.check_model(body.common.model.as_deref())?;
    let planner = app.clone();
    let plan = off_thread(move |_| Plan::new(&planner, served, body, deadline)).await?;
    if plan.stream {
        let (events, response) = sse::channel(Dialect::Completions);
        stream_off_thread(events, move |events| stream(&app, &plan, events));
        return Ok(response);
    }
    let answer = off_thread(move |is_gone| whole(&app, &plan, is_gone)).await?;
    Ok(Json(answer).into_response())
}

/// One prompt: its tokens, and where they are in its text.
struct PromptPlan {
    tokens: Arc<Vec<u32>>,
    sampling: Sampling,
    /// Only filled if it is to be echoed.
    text: String,
    /// Text of each token, and where it begins in `text`, in characters.
    spans: Vec<(String, usize)>,
}

/// A request, checked and tokenized.
struct Plan {
    served: Served,
    id: String,
    created: u64,
    prompts: Vec<PromptPlan>,
    n: usize,
    echo: bool,
    logprobs: Option<usize>,
    stream: bool,
    include_usage: bool,
    return_ids: bool,
    deadline: Option<Instant>,
    _ticket: Ticket,
}

impl Plan {
    fn new(
        app: &App,
        served: Served,
        body: CompletionRequest,
        deadline: Option<Instant>,
    ) -> Result<Self, ApiError> {
        body.check_unknown()?;
        let mut sampling = body.common.sampling(16)?;
        let n = body.common.n()?;
        let echo = body.echo.unwrap_or(false);
        if body.suffix.as_deref().is_some_and(|s| !s.is_empty()) {
            let message = "suffix is not supported\nhint: send the text before the gap as the prompt";
            return Err(Invalid::unsupported("suffix", message).into());
        }
        if body.best_of.is_some_and(|b| b != n as i64) {
            return Err(Invalid::unsupported("best_of", "best_of is not supported\nhint: use n").into());
        }
        sampling.logprobs = match body.logprobs {
            None => None,
            Some(k) if (0..=MAX_LOGPROBS as i64).contains(&k) => Some(k as usize),
            Some(k) => {
                let message = format!("logprobs must lie between 0 and {MAX_LOGPROBS}, not {k}");
                return Err(Invalid::new("logprobs", message).into());
            }
        };
        let number = app.next_request();
        if body.common.seed.is_none() {
            sampling.seed = app.default_seed(number);
        }
        let prompt = body.prompt.ok_or_else(|| Invalid::new("prompt", "prompt is missing"))?;
        let tokenizer = app.engine.tokenizer();
        let prompts = tokenize(tokenizer, prompt, body.add_special_tokens.unwrap_or(true), "prompt")?;
        if prompts.is_empty() || prompts.len() * n > MAX_SEQUENCES {
            let message = format!(
                "the request asks for {} continuations; between 1 and {MAX_SEQUENCES} are possible",
                prompts.len() * n
            );
            return Err(Invalid::new("prompt", message).into());
        }
        let ticket = app.gate.enter(prompts.len() * n, &app.metrics)?;
        let prompts = prompts.into_iter().map(|(tokens, text)| {
            let mut sampling = sampling.clone();
            generate::fit(app, &tokens, &mut sampling, "prompt")?;
            let (text, spans) = if echo { locate(tokenizer, &tokens, text)? } else { Default::default() };
            Ok(PromptPlan { tokens: Arc::new(tokens), sampling, text, spans })
        });
        let plan = Self {
            served,
            id: app.id("cmpl", number),
            created: unix_time(),
            prompts: prompts.collect::<Result<_, ApiError>>()?,
            n,
            echo,
            logprobs: sampling.logprobs,
            stream: body.common.stream.unwrap_or(false),
            include_usage: body.common.stream_options.unwrap_or_default().include_usage,
            return_ids: body.common.return_token_ids.unwrap_or(false),
            deadline,
            _ticket: ticket,
        };
        // The prompts differ in what was checked already.
        plan.jobs().first().map_or(Ok(()), |job| generate::check(app, job))?;
        Ok(plan)
    }

    /// `n` jobs per prompt, prompt by prompt; the first has the request's own seed.
    fn jobs(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        for prompt in &self.prompts {
            for i in 0..self.n {
                let seed = prompt.sampling.seed.wrapping_add(i as u64);
                jobs.push(Job {
                    tokens: prompt.tokens.clone(),
                    sampling: Sampling { seed, ..prompt.sampling.clone() },
                    prompt_logprobs: self.logprobs.filter(|_| self.echo),
                    deadline: self.deadline,
                    adapter: self.served.adapter.clone(),
                    ..Job::default()
                });
            }
        }
        jobs
    }

    fn answers(&self) -> Vec<Answer> {
        (0..self.prompts.len() * self.n).map(|_| Answer::default()).collect()
    }

    fn frame(&self, choices: Vec<CompletionChoice>, usage: Option<WireUsage>) -> CompletionResponse {
        let (id, model) = (self.id.clone(), self.served.name.clone());
        CompletionResponse {
            id,
            object: "text_completion".into(),
            created: self.created,
            model,
            choices,
            usage,
        }
    }

    /// Each prompt counts once, however many continuations it gets.
    fn usage(&self, completion_tokens: usize) -> WireUsage {
        let prompt_tokens = self.prompts.iter().map(|p| p.tokens.len()).sum();
        let usage = Usage { prompt_tokens, completion_tokens };
        tracing::info!(id = self.id, usage.prompt_tokens, usage.completion_tokens, "answered");
        usage.into()
    }

    /// What one update adds to continuation `index`.
    ///
    /// The prompt's log-probabilities come last from the engine but first in the answer;
    /// where they are wanted, tokens wait for them.
    fn parts(&self, index: usize, answer: &mut Answer, update: Update) -> Vec<CompletionChoice> {
        if self.echo && self.logprobs.is_some() && !answer.begun && !matches!(update, Update::Prompt(_)) {
            answer.waiting.push(update);
            return Vec::new();
        }
        let mut parts = Vec::new();
        if !answer.begun {
            answer.begun = true;
            let scores = if let Update::Prompt(scores) = &update { &scores[..] } else { &[] };
            parts.extend(self.beginning(index, answer, scores));
        }
        let waiting = std::mem::take(&mut answer.waiting);
        for update in waiting.into_iter().chain([update]) {
            parts.extend(self.part(index, answer, update));
        }
        parts
    }

    /// The echo, where it was asked for.
    fn beginning(
        &self,
        index: usize,
        answer: &mut Answer,
        scores: &[Option<TokenLogprob>],
    ) -> Option<CompletionChoice> {
        let prompt = &self.prompts[index / self.n];
        let mut part = CompletionChoice { index, ..CompletionChoice::default() };
        if self.echo {
            answer.num_chars = prompt.text.chars().count();
            part.text = prompt.text.clone();
            if self.logprobs.is_some() {
                let all = part.logprobs.insert(CompletionLogprobs::default());
                for (i, (text, offset)) in prompt.spans.iter().enumerate() {
                    all.push(*offset, text, scores.get(i).and_then(Option::as_ref));
                }
            }
        }
        if self.return_ids {
            part.prompt_token_ids = Some(prompt.tokens.to_vec());
        }
        (self.echo || self.return_ids).then_some(part)
    }

    fn part(&self, index: usize, answer: &mut Answer, update: Update) -> Option<CompletionChoice> {
        let mut part = CompletionChoice { index, ..CompletionChoice::default() };
        match update {
            Update::Prompt(_) | Update::Embedding(_) => return None,
            Update::Piece { id, text, logprob } => {
                if let Some(logprob) = logprob {
                    let all = part.logprobs.insert(CompletionLogprobs::default());
                    all.push(answer.num_chars, &logprob.token, Some(&logprob));
                }
                answer.num_chars += text.chars().count();
                part.text = text;
                part.token_ids = id.filter(|_| self.return_ids).map(|id| vec![id]);
                if part.text.is_empty() && part.logprobs.is_none() && part.token_ids.is_none() {
                    return None;
                }
            }
            Update::Done { finish, usage, .. } => {
                answer.completion_tokens = usage.completion_tokens;
                part.finish_reason = Some(write_finish(finish).into());
            }
        }
        Some(part)
    }
}

/// One continuation in the making.
#[derive(Default)]
struct Answer {
    /// The echo, if any, is out.
    begun: bool,
    /// What came before the prompt's log-probabilities did.
    waiting: Vec<Update>,
    /// Characters so far, prompt included if it is echoed.
    num_chars: usize,
    completion_tokens: usize,
}

/// A prompt's tokens, and its text where the request gave text.
type Encoded = (Vec<u32>, Option<String>);

/// Encodes the prompts that are text; one without tokens becomes BOS or EOS.
pub(super) fn tokenize(
    tokenizer: &Tokenizer,
    prompt: WirePrompt,
    add_special: bool,
    param: &str,
) -> Result<Vec<Encoded>, ApiError> {
    let texts = match prompt {
        WirePrompt::Tokens(ids) => return Ok(vec![(ids, None)]),
        WirePrompt::TokenLists(lists) => return Ok(lists.into_iter().map(|ids| (ids, None)).collect()),
        WirePrompt::Text(text) => vec![text],
        WirePrompt::Texts(texts) => texts,
    };
    let encode = |text: String| {
        let mut ids = tokenizer
            .encode(&text, add_special)
            .map_err(|e| Invalid::new(param, format!("{param} cannot be tokenized: {e:#}")))?;
        if ids.is_empty() {
            // Nothing to continue: begin a text.
            ids.extend(tokenizer.bos_id().or(tokenizer.eos_id()));
        }
        Ok((ids, Some(text)))
    };
    texts.into_iter().map(encode).collect()
}

/// The text to echo, and each token's text and place in it.
fn locate(
    tokenizer: &Tokenizer,
    tokens: &[u32],
    given: Option<String>,
) -> Result<(String, Vec<(String, usize)>), ApiError> {
    let failed = |e: anyhow::Error| ApiError::internal(format!("the prompt cannot be decoded: {e:#}"));
    let mut decoder = tokenizer.stream(false);
    let (mut text, mut spans) = (String::new(), Vec::new());
    for (i, &id) in tokens.iter().enumerate() {
        let offset = text.chars().count();
        let piece = decoder.push(id).map_err(failed)?.unwrap_or_default();
        // A BOS the prompt's text does not have is shown by name but takes no room.
        let is_added = i == 0
            && tokenizer.bos_id() == Some(id)
            && given.as_ref().is_some_and(|g| !g.starts_with(piece.trim_end()) || piece.is_empty());
        spans.push((generate::token_text(tokenizer, id), offset));
        if !is_added {
            text.push_str(&piece);
        }
    }
    text.push_str(&decoder.finish());
    // Tokenizers may normalize; the client gets back what it sent.
    if let Some(given) = given {
        let length = given.chars().count();
        for (_, offset) in &mut spans {
            *offset = (*offset).min(length);
        }
        text = given;
    }
    Ok((text, spans))
}

fn whole(app: &App, plan: &Plan, is_gone: &dyn Fn() -> bool) -> Result<CompletionResponse, ApiError> {
    let mut answers = plan.answers();
    let new = |index| CompletionChoice { index, ..CompletionChoice::default() };
    let mut choices: Vec<CompletionChoice> = (0..answers.len()).map(new).collect();
    generate::run(app, plan.jobs(), is_gone, |i, update| {
        for part in plan.parts(i, &mut answers[i], update) {
            append(&mut choices[i], part);
        }
        Flow::Go
    })?;
    if plan.logprobs.is_some() {
        for choice in &mut choices {
            choice.logprobs.get_or_insert_default();
        }
    }
    let completion_tokens = answers.iter().map(|a| a.completion_tokens).sum();
    Ok(plan.frame(choices, Some(plan.usage(completion_tokens))))
}

/// Adds a part to the whole.
fn append(whole: &mut CompletionChoice, part: CompletionChoice) {
    whole.text.push_str(&part.text);
    if let Some(more) = part.logprobs {
        let all = whole.logprobs.get_or_insert_default();
        all.text_offset.extend(more.text_offset);
        all.token_logprobs.extend(more.token_logprobs);
        all.tokens.extend(more.tokens);
        all.top_logprobs.extend(more.top_logprobs);
    }
    if let Some(ids) = part.token_ids {
        whole.token_ids.get_or_insert_default().extend(ids);
    }
    whole.prompt_token_ids = whole.prompt_token_ids.take().or(part.prompt_token_ids);
    whole.finish_reason = part.finish_reason.or(whole.finish_reason.take());
}

fn stream(app: &App, plan: &Plan, events: &Events) -> Result<(), ApiError> {
    let mut answers = plan.answers();
    generate::run(app, plan.jobs(), &|| events.is_closed(), |i, update| {
        for part in plan.parts(i, &mut answers[i], update) {
            events.send(&plan.frame(vec![part], None));
        }
        Flow::Go
    })?;
    let usage = plan.usage(answers.iter().map(|a| a.completion_tokens).sum());
    if plan.include_usage {
        events.send(&plan.frame(Vec::new(), Some(usage)));
    }
    Ok(())
}
