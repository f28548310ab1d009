//! `POST /v1/chat/completions`: answers a conversation, whole or streamed.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use intern_lm::wire::{
    ChatChoice, ChatCompletion, ChatCompletionRequest, ChatLogprobs, ChatTokenLogprob, Delta, FunctionDelta,
    ToolCallDelta, WireUsage, write_finish,
};
use intern_lm::{FinishReason, Usage};
use serde_json::{Value, json};

use super::app::{App, unix_time};
use super::body::{Incoming, off_thread, stream_off_thread};
use super::error::ApiError;
use super::gate::Ticket;
use super::generate::{self, Flow, Job, Update};
use super::reader::{Part, Whole};
use super::sse::{self, Dialect, Events};
use super::turn::Turn;

pub(super) async fn handle(
    State(app): State<Arc<App>>,
    Incoming { body, deadline }: Incoming<ChatCompletionRequest>,
) -> Result<Response, ApiError> {
    let served = app.check_model(body.common.model.as_deref())?;
    let n = body.common.n()?;
    let ticket = app.gate.enter(n, &app.metrics)?;
    let planner = app.clone();
    let plan = off_thread(move |_| {
        let request = body.to_request(usize::MAX)?;
        let number = planner.next_request();
        Ok(Plan {
            id: planner.id("chatcmpl", number),
            created: unix_time(),
            turn: Turn::new(&planner, served, request, body.common.seed, number, deadline)?,
            n,
            stream: body.common.stream.unwrap_or(false),
            include_usage: body.common.stream_options.unwrap_or_default().include_usage,
            return_ids: body.common.return_token_ids.unwrap_or(false),
            _ticket: ticket,
        })
    })
    .await?;
    if plan.stream {
        let (events, response) = sse::channel(Dialect::Completions);
        stream_off_thread(events, move |events| stream(&app, &plan, events));
        return Ok(response);
    }
    let answer = off_thread(move |is_gone| whole(&app, &plan, is_gone)).await?;
    Ok(Json(answer).into_response())
}

/// A request, checked and tokenized.
struct Plan {
    id: String,
    created: u64,
    turn: Turn,
    n: usize,
    stream: bool,
    include_usage: bool,
    return_ids: bool,
    _ticket: Ticket,
}

impl Plan {
    fn jobs(&self) -> Vec<Job> {
        (0..self.n).map(|i| self.turn.job(i)).collect()
    }

    fn frame(&self, object: &str, choices: Vec<ChatChoice>, usage: Option<WireUsage>) -> ChatCompletion {
        let (id, model) = (self.id.clone(), self.turn.served.name.clone());
        ChatCompletion { id, object: object.into(), created: self.created, model, choices, usage }
    }

    /// The prompt counts once, however many answers it gets.
    fn usage(&self, spent: Spent) -> WireUsage {
        let usage =
            Usage { prompt_tokens: self.turn.tokens.len(), completion_tokens: spent.completion_tokens };
        tracing::info!(id = self.id, usage.prompt_tokens, usage.completion_tokens, "answered");
        WireUsage::from(usage).with_cached(spent.cached_tokens)
    }
}

/// Tokens of all answers together.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    completion_tokens: usize,
    cached_tokens: usize,
}

impl Spent {
    fn add(&mut self, usage: Usage, cached_tokens: usize) {
        self.completion_tokens += usage.completion_tokens;
        self.cached_tokens = self.cached_tokens.max(cached_tokens);
    }
}

fn whole(app: &App, plan: &Plan, is_gone: &dyn Fn() -> bool) -> Result<ChatCompletion, ApiError> {
    let mut readers: Vec<_> = (0..plan.n).map(|_| plan.turn.reader()).collect();
    let mut wholes = vec![Whole::default(); plan.n];
    let mut choices: Vec<ChatChoice> =
        (0..plan.n).map(|index| ChatChoice { index, ..ChatChoice::default() }).collect();
    let mut spent = Spent::default();
    generate::run(app, plan.jobs(), is_gone, |i, update| {
        let parts = match update {
            Update::Prompt(_) | Update::Embedding(_) => Vec::new(),
            Update::Piece { id, text, logprob } => {
                if plan.return_ids {
                    choices[i].token_ids.get_or_insert_default().extend(id);
                }
                if let Some(logprob) = &logprob {
                    let all = choices[i].logprobs.get_or_insert_default();
                    all.content.push(ChatTokenLogprob::from(logprob));
                }
                readers[i].push(app, text)
            }
            Update::Done { finish, usage, cached_tokens } => {
                spent.add(usage, cached_tokens);
                let (parts, finish) = readers[i].finish(finish);
                choices[i].finish_reason = Some(write_finish(finish).into());
                parts
            }
        };
        parts.into_iter().for_each(|part| wholes[i].add(part));
        readers[i].flow()
    })?;
    for (choice, whole) in choices.iter_mut().zip(wholes) {
        choice.message = Some(message(whole));
        if plan.turn.sampling.logprobs.is_some() {
            choice.logprobs.get_or_insert_default();
        }
        choice.finish_reason.get_or_insert_with(|| write_finish(FinishReason::Stop).into());
    }
    Ok(plan.frame("chat.completion", choices, Some(plan.usage(spent))))
}

/// An assistant's message on the wire.
fn message(whole: Whole) -> Value {
    let mut message = json!({ "role": "assistant", "content": whole.text, "refusal": null });
    if !whole.thinking.is_empty() {
        message["reasoning_content"] = whole.thinking.into();
    }
    if !whole.calls.is_empty() {
        if whole.text.is_empty() {
            message["content"] = Value::Null;
        }
        let call = |c: super::reader::Call| json!({ "id": c.id, "type": "function", "function": { "name": c.name, "arguments": c.arguments } });
        message["tool_calls"] = whole.calls.into_iter().map(call).collect();
    }
    message
}

fn stream(app: &App, plan: &Plan, events: &Events) -> Result<(), ApiError> {
    let send = |choice: ChatChoice| events.send(&plan.frame("chat.completion.chunk", vec![choice], None));
    let chunk =
        |index: usize, delta: Delta| ChatChoice { index, delta: Some(delta), ..ChatChoice::default() };
    for index in 0..plan.n {
        let content = Some(String::new());
        send(chunk(index, Delta { role: Some("assistant".into()), content, ..Delta::default() }));
    }
    let mut readers: Vec<_> = (0..plan.n).map(|_| plan.turn.reader()).collect();
    let mut num_calls = vec![0; plan.n];
    let mut spent = Spent::default();
    generate::run(app, plan.jobs(), &|| events.is_closed(), |i, update| {
        let (parts, ids, logprobs, finish) = match update {
            Update::Prompt(_) | Update::Embedding(_) => return Flow::Go,
            Update::Piece { id, text, logprob } => {
                let logprob = logprob.as_ref().map(ChatTokenLogprob::from);
                let logprobs = logprob.map(|l| ChatLogprobs { content: vec![l], refusal: None });
                let ids = id.filter(|_| plan.return_ids).map(|id| vec![id]);
                (readers[i].push(app, text), ids, logprobs, None)
            }
            Update::Done { finish, usage, cached_tokens } => {
                spent.add(usage, cached_tokens);
                let (parts, finish) = readers[i].finish(finish);
                (parts, None, None, Some(finish))
            }
        };
        let mut deltas: Vec<Delta> = parts.into_iter().map(|part| delta(part, &mut num_calls[i])).collect();
        // What belongs to the token travels with its first piece of text, or alone.
        if deltas.is_empty() && (ids.is_some() || logprobs.is_some()) {
            deltas.push(Delta::default());
        }
        let mut extra = (ids, logprobs);
        for delta in deltas {
            let (token_ids, logprobs) = (extra.0.take(), extra.1.take());
            send(ChatChoice { token_ids, logprobs, ..chunk(i, delta) });
        }
        if let Some(finish) = finish {
            let finish_reason = Some(write_finish(finish).into());
            send(ChatChoice { finish_reason, ..chunk(i, Delta::default()) });
        }
        readers[i].flow()
    })?;
    let usage = plan.usage(spent);
    if plan.include_usage {
        events.send(&plan.frame("chat.completion.chunk", Vec::new(), Some(usage)));
    }
    Ok(())
}

/// A part as OpenAI streams it: of a call, id and name first, then the arguments.
fn delta(part: Part, num_calls: &mut usize) -> Delta {
    match part {
        Part::Thinking(text) => Delta { reasoning_content: Some(text), ..Delta::default() },
        Part::Text(text) => Delta { content: Some(text), ..Delta::default() },
        Part::Call { id, name } => {
            *num_calls += 1;
            let function = FunctionDelta { name: Some(name), arguments: Some(String::new()) };
            let kind = Some("function".into());
            let call = ToolCallDelta { index: *num_calls - 1, id: Some(id), kind, function };
            Delta { tool_calls: Some(vec![call]), ..Delta::default() }
        }
        Part::Arguments(text) => {
            let function = FunctionDelta { name: None, arguments: Some(text) };
            let call =
                ToolCallDelta { index: num_calls.saturating_sub(1), function, ..ToolCallDelta::default() };
            Delta { tool_calls: Some(vec![call]), ..Delta::default() }
        }
    }
}
