//! `POST /v1/responses` and the routes around it: OpenAI's newer form of chat.
//!
//! [`output`] turns an answer into items and events, [`store`] remembers responses so that
//! they can be read again and continued.

mod output;
pub(super) mod store;

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use intern_lm::wire::{Invalid, ResponsesRequest};
use serde::Deserialize;
use serde_json::{Value, json};

use super::app::{App, unix_time};
use super::body::{Incoming, off_thread, stream_off_thread};
use super::error::ApiError;
use super::gate::Ticket;
use super::generate::{self, Flow, Update};
use super::sse::{self, Dialect, Events};
use super::turn::Turn;
use output::Output;
use store::Stored;

pub(super) async fn create(
    State(app): State<Arc<App>>,
    Incoming { body, deadline }: Incoming<ResponsesRequest>,
) -> Result<Response, ApiError> {
    let served = app.check_model(body.common.model.as_deref())?;
    let ticket = app.gate.enter(1, &app.metrics)?;
    let planner = app.clone();
    let plan = off_thread(move |_| {
        let mut messages = match &body.previous_response_id {
            None => Vec::new(),
            Some(id) => planner.responses.get(id).ok_or_else(|| unknown_previous(id))?.messages,
        };
        let request = body.to_request(&messages, usize::MAX)?;
        let number = planner.next_request();
        messages.extend(body.input_messages()?);
        let turn = Turn::new(&planner, served, request, body.common.seed, number, deadline).map_err(|e| {
            // The client calls its messages input.
            e.rename("messages", "input")
        })?;
        let id = planner.id("resp", number).replace('-', "_");
        Ok(Plan { frame: frame(&body, &id, &turn), turn, messages, body, number, id, _ticket: ticket })
    })
    .await?;
    if plan.body.common.stream.unwrap_or(false) {
        let (events, response) = sse::channel(Dialect::Responses);
        stream_off_thread(events, move |events| {
            run(&app, plan, Some(events), &|| events.is_closed()).map(drop)
        });
        return Ok(response);
    }
    let answer = off_thread(move |is_gone| run(&app, plan, None, is_gone)).await?;
    Ok(Json(answer).into_response())
}

fn unknown_previous(id: &str) -> ApiError {
    let message = format!(
        "there is no response {id}\nhint: responses are kept until the server ends or newer ones need the room"
    );
    Invalid::new("previous_response_id", message).code("previous_response_not_found").into()
}

/// A request, checked and tokenized.
struct Plan {
    turn: Turn,
    body: ResponsesRequest,
    /// The conversation to store: what came before, and the input.
    messages: Vec<intern_format::conversation::Message>,
    /// The response without its output.
    frame: Value,
    number: u64,
    id: String,
    _ticket: Ticket,
}

/// Everything of a response that is known before it is generated.
fn frame(body: &ResponsesRequest, id: &str, turn: &Turn) -> Value {
    let text = body.text.clone().map_or_else(|| json!({ "format": { "type": "text" } }), Value::Object);
    json!({
        "id": id,
        "object": "response",
        "created_at": unix_time(),
        "status": "in_progress",
        "background": false,
        "error": null,
        "incomplete_details": null,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata.clone().unwrap_or_else(|| json!({})),
        "model": turn.served.name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls.unwrap_or(true),
        "previous_response_id": body.previous_response_id,
        "reasoning": body.reasoning.clone().map_or_else(|| json!({ "effort": null, "summary": null }), Value::Object),
        "service_tier": "default",
        "store": body.store.unwrap_or(true),
        "temperature": turn.sampling.temperature,
        "text": text,
        "tool_choice": body.tool_choice.clone().unwrap_or_else(|| "auto".into()),
        "tools": shown_tools(body.tools.as_deref().unwrap_or_default()),
        "top_p": body.common.top_p.unwrap_or(1.0),
        "top_logprobs": body.top_logprobs.unwrap_or(0),
        "truncation": "disabled",
    })
}

/// The tools with the fields that OpenAI's clients expect to find.
fn shown_tools(tools: &[Value]) -> Vec<Value> {
    let show = |tool: &Value| {
        let mut tool = tool.clone();
        if let Some(tool) = tool.as_object_mut() {
            tool.entry("strict").or_insert(Value::Null);
            tool.entry("parameters").or_insert(Value::Null);
        }
        tool
    };
    tools.iter().map(show).collect()
}

fn run(
    app: &App,
    plan: Plan,
    events: Option<&Events>,
    is_gone: &dyn Fn() -> bool,
) -> Result<Value, ApiError> {
    let Plan { turn, body, mut messages, mut frame, number, id, _ticket } = plan;
    let mut reader = turn.reader();
    let mut output = Output::new(events, &app.id("", number).replace('-', "_"));
    output.event("response.created", json!({ "response": frame }));
    output.event("response.in_progress", json!({ "response": frame }));
    let mut end = None;
    let result = generate::run(app, vec![turn.job(0)], is_gone, |_, update| {
        match update {
            Update::Prompt(_) | Update::Embedding(_) => {}
            Update::Piece { text, logprob, .. } => {
                output.add(reader.push(app, text), logprob.as_ref());
            }
            Update::Done { finish, usage, cached_tokens } => {
                let (parts, finish) = reader.finish(finish);
                output.add(parts, None);
                end = Some((finish, usage, cached_tokens));
                return Flow::Go;
            }
        }
        reader.flow()
    });
    if let Err(error) = result {
        if events.is_some() {
            error.log();
            frame["status"] = "failed".into();
            frame["error"] = json!({ "code": "server_error", "message": error.body().error.message });
            output.event("response.failed", json!({ "response": frame }));
            return Ok(frame);
        }
        return Err(error);
    }
    let Some((finish, usage, cached_tokens)) = end else { return Ok(frame) }; // nobody listens
    let is_cut = finish == intern_lm::FinishReason::Length;
    output.finish(is_cut);
    frame["output"] = output.items().into();
    frame["status"] = if is_cut { "incomplete".into() } else { "completed".into() };
    if is_cut {
        frame["incomplete_details"] = json!({ "reason": "max_output_tokens" });
    } else {
        frame["completed_at"] = unix_time().into();
    }
    frame["usage"] = json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": { "cached_tokens": cached_tokens, "cache_write_tokens": 0 },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": { "reasoning_tokens": output.thinking_tokens },
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    });
    tracing::info!(id, usage.prompt_tokens, usage.completion_tokens, "answered");
    if body.store.unwrap_or(true) {
        messages.push(output.message());
        let stored = Stored { response: frame.clone(), input: body.input_items(), messages };
        app.responses.put(&id, stored);
    }
    let last = if is_cut { "response.incomplete" } else { "response.completed" };
    output.event(last, json!({ "response": frame }));
    Ok(frame)
}

/// Query of the routes that read.
#[derive(Deserialize)]
pub(super) struct Reading {
    stream: Option<bool>,
}

pub(super) async fn retrieve(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Query(query): Query<Reading>,
) -> Result<Json<Value>, ApiError> {
    if query.stream == Some(true) {
        return Err(Invalid::unsupported("stream", "stored responses are not streamed").into());
    }
    let stored = app.responses.get(&id).ok_or_else(|| ApiError::not_found(&format!("response {id}")))?;
    Ok(Json(stored.response))
}

pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    match app.responses.remove(&id) {
        true => Ok(Json(json!({ "id": id, "object": "response", "deleted": true }))),
        false => Err(ApiError::not_found(&format!("response {id}"))),
    }
}

/// Only background responses can be cancelled, and there are none.
pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    app.responses.get(&id).ok_or_else(|| ApiError::not_found(&format!("response {id}")))?;
    Err(Invalid::unsupported("response_id", "only background responses can be cancelled, and this is none")
        .into())
}

/// Query of the list of items.
#[derive(Deserialize)]
pub(super) struct Listing {
    limit: Option<usize>,
    order: Option<String>,
    after: Option<String>,
}

pub(super) async fn input_items(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Query(query): Query<Listing>,
) -> Result<Json<Value>, ApiError> {
    let stored = app.responses.get(&id).ok_or_else(|| ApiError::not_found(&format!("response {id}")))?;
    let mut items = stored.input;
    for (i, item) in items.iter_mut().enumerate() {
        if let Some(item) = item.as_object_mut() {
            item.entry("id").or_insert_with(|| format!("msg_{i}_{id}").into());
            item.entry("type").or_insert_with(|| "message".into());
        }
    }
    if query.order.as_deref() != Some("asc") {
        items.reverse();
    }
    if let Some(after) = &query.after {
        let at = items.iter().position(|item| item["id"] == after.as_str());
        items.drain(..at.map_or(0, |at| at + 1));
    }
    let limit = query.limit.unwrap_or(20).clamp(1, 100);
    let has_more = items.len() > limit;
    items.truncate(limit);
    let end = |item: Option<&Value>| item.map(|i| i["id"].clone()).unwrap_or_default();
    let (first, last) = (end(items.first()), end(items.last()));
    Ok(Json(
        json!({ "object": "list", "data": items, "first_id": first, "last_id": last, "has_more": has_more }),
    ))
}

/// Counts what a request would read.
pub(super) async fn input_tokens(
    State(app): State<Arc<App>>,
    Incoming { body, deadline }: Incoming<ResponsesRequest>,
) -> Result<Json<Value>, ApiError> {
    let served = app.check_model(body.common.model.as_deref())?;
    off_thread(move |_| {
        let earlier = match &body.previous_response_id {
            None => Vec::new(),
            Some(id) => app.responses.get(id).ok_or_else(|| unknown_previous(id))?.messages,
        };
        let request = body.to_request(&earlier, usize::MAX)?;
        let turn = Turn::new(&app, served, request, Some(0), 0, deadline)
            .map_err(|e| e.rename("messages", "input"))?;
        Ok(Json(json!({ "object": "response.input_tokens", "input_tokens": turn.tokens.len() })))
    })
    .await
}
