//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's form of chat.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use intern_lm::wire::{Invalid, MessagesRequest};
use intern_lm::{FinishReason, Usage};
use serde_json::{Value, json};

use super::app::App;
use super::body::{Incoming, off_thread, stream_off_thread};
use super::error::ApiError;
use super::gate::Ticket;
use super::generate::{self, Flow, Update};
use super::reader::Part;
use super::sse::{self, Dialect, Events};
use super::turn::Turn;

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Incoming { body, deadline }: Incoming<MessagesRequest>,
) -> Result<Response, ApiError> {
    let served = app.check_model(body.model.as_deref())?;
    if body.max_tokens.is_none_or(|m| m < 1) {
        return Err(Invalid::new("max_tokens", "max_tokens is missing or below 1").into());
    }
    let stream = body.stream.unwrap_or(false);
    let ticket = app.gate.enter(1, &app.metrics)?;
    let planner = app.clone();
    let plan = off_thread(move |_| {
        let number = planner.next_request();
        let stops = body.stop_sequences.clone().unwrap_or_default();
        let turn = Turn::new(&planner, served, body.to_request()?, body.seed, number, deadline)?;
        Ok(Plan { id: planner.id("msg", number).replace('-', "_"), turn, stops, _ticket: ticket })
    })
    .await?;
    if stream {
        let (events, response) = sse::channel(Dialect::Messages);
        stream_off_thread(events, move |events| {
            run(&app, &plan, Some(events), &|| events.is_closed()).map(drop)
        });
        return Ok(response);
    }
    let answer = off_thread(move |is_gone| run(&app, &plan, None, is_gone)).await?;
    Ok(Json(answer).into_response())
}

pub(super) async fn count_tokens(
    State(app): State<Arc<App>>,
    Incoming { body, deadline }: Incoming<MessagesRequest>,
) -> Result<Json<Value>, ApiError> {
    let served = app.check_model(body.model.as_deref())?;
    off_thread(move |_| {
        let turn = Turn::new(&app, served, body.to_request()?, Some(0), 0, deadline)?;
        Ok(Json(json!({ "input_tokens": turn.tokens.len() })))
    })
    .await
}

/// A request, checked and tokenized.
struct Plan {
    id: String,
    turn: Turn,
    stops: Vec<String>,
    _ticket: Ticket,
}

fn run(
    app: &App,
    plan: &Plan,
    events: Option<&Events>,
    is_gone: &dyn Fn() -> bool,
) -> Result<Value, ApiError> {
    let mut message = json!({
        "id": plan.id, "type": "message", "role": "assistant", "model": plan.turn.served.name, "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": usage(plan.turn.tokens.len(), 0, 0),
    });
    let mut blocks = Blocks { events, all: Vec::new(), is_open: false };
    blocks.event("message_start", json!({ "message": message }));
    blocks.event("ping", json!({}));
    let mut reader = plan.turn.reader();
    let mut ids: Vec<u32> = Vec::new();
    let mut end = None;
    generate::run(app, vec![plan.turn.job(0)], is_gone, |_, update| {
        match update {
            Update::Prompt(_) | Update::Embedding(_) => {}
            Update::Piece { id, text, .. } => {
                ids.extend(id);
                reader.push(app, text).into_iter().for_each(|part| blocks.add(part));
            }
            Update::Done { finish, usage, cached_tokens } => {
                let (parts, finish) = reader.finish(finish);
                parts.into_iter().for_each(|part| blocks.add(part));
                end = Some((finish, usage, cached_tokens));
                return Flow::Go;
            }
        }
        reader.flow()
    })?;
    blocks.close();
    let Some((finish, spent, cached)) = end else { return Ok(message) }; // nobody listens
    let Usage { prompt_tokens, completion_tokens } = spent;
    tracing::info!(id = plan.id, prompt_tokens, completion_tokens, "answered");
    let stop = (finish == FinishReason::Stop).then(|| stop_sequence(app, plan, &ids)).flatten();
    let reason = match finish {
        FinishReason::Length => "max_tokens",
        FinishReason::ToolCalls => "tool_use",
        FinishReason::Stop if stop.is_some() => "stop_sequence",
        FinishReason::Stop => "end_turn",
    };
    message["content"] = blocks.finished().into();
    (message["stop_reason"], message["stop_sequence"]) = (reason.into(), stop.into());
    message["usage"] = usage(prompt_tokens, cached, completion_tokens);
    let delta = json!({ "stop_reason": reason, "stop_sequence": message["stop_sequence"] });
    blocks.event("message_delta", json!({ "delta": delta, "usage": message["usage"] }));
    blocks.event("message_stop", json!({}));
    Ok(message)
}

/// Anthropic counts cached tokens beside the others, not among them.
fn usage(prompt: usize, cached: usize, output: usize) -> Value {
    json!({
        "input_tokens": prompt.saturating_sub(cached), "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0, "output_tokens": output,
    })
}

/// The stop sequence that ended the answer, if one did: the first in the text of all its tokens.
fn stop_sequence(app: &App, plan: &Plan, ids: &[u32]) -> Option<String> {
    let ended = ids
        .last()
        .is_some_and(|id| plan.turn.sampling.stop_ids.contains(id) || app.engine.eos_ids().contains(id));
    if ended || plan.stops.is_empty() {
        return None;
    }
    let text = app.engine.tokenizer().decode(ids, false).ok()?;
    let places =
        plan.stops.iter().filter(|s| !s.is_empty()).filter_map(|s| Some((text.find(s.as_str())?, s)));
    places.min().map(|(_, stop)| stop.clone())
}

/// The blocks of one answer; every change is an event too, if somebody listens.
struct Blocks<'a> {
    events: Option<&'a Events>,
    all: Vec<Value>,
    is_open: bool,
}

impl Blocks<'_> {
    fn event(&self, kind: &str, mut fields: Value) {
        if let Some(events) = self.events {
            fields["type"] = kind.into();
            events.send_named(kind, &fields);
        }
    }

    fn add(&mut self, part: Part) {
        match part {
            Part::Thinking(text) => {
                self.text("thinking", "thinking", "thinking_delta", &text);
            }
            Part::Text(text) => self.text("text", "text", "text_delta", &text),
            Part::Call { id, name } => {
                self.open(json!({ "type": "tool_use", "id": id, "name": name, "input": {} }));
                // Its JSON text, until it is complete.
                if let Some(block) = self.all.last_mut() {
                    block["partial"] = "".into();
                }
            }
            Part::Arguments(text) => {
                self.append("partial", &text);
                let delta = json!({ "type": "input_json_delta", "partial_json": text });
                self.event("content_block_delta", json!({ "index": self.last(), "delta": delta }));
            }
        }
    }

    fn text(&mut self, kind: &str, key: &str, delta: &str, text: &str) {
        if !(self.is_open && self.all.last().is_some_and(|b| b["type"] == kind)) {
            let mut block = json!({ "type": kind, key: "" });
            if kind == "thinking" {
                block["signature"] = "".into();
            }
            self.open(block);
        }
        self.append(key, text);
        self.event(
            "content_block_delta",
            json!({ "index": self.last(), "delta": { "type": delta, key: text } }),
        );
    }

    fn open(&mut self, block: Value) {
        self.close();
        self.event("content_block_start", json!({ "index": self.all.len(), "content_block": block }));
        self.all.push(block);
        self.is_open = true;
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.is_open) {
            self.event("content_block_stop", json!({ "index": self.last() }));
        }
    }

    fn append(&mut self, key: &str, text: &str) {
        if let Some(Value::String(have)) = self.all.last_mut().and_then(|block| block.get_mut(key)) {
            have.push_str(text);
        }
    }

    fn last(&self) -> usize {
        self.all.len().saturating_sub(1)
    }

    /// The blocks with the calls' inputs as values; one that is not JSON is passed on as text.
    fn finished(&self) -> Vec<Value> {
        let finish = |block: &Value| {
            let mut block = block.clone();
            if let Some(Value::String(partial)) = block.as_object_mut().and_then(|b| b.remove("partial")) {
                block["input"] = serde_json::from_str(&partial)
                    .ok()
                    .filter(Value::is_object)
                    .unwrap_or_else(|| json!({ "INVALID_JSON": partial }));
            }
            block
        };
        self.all.iter().map(finish).collect()
    }
}
