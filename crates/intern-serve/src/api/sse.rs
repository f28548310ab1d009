//! Server-sent events, in the dialects of the three protocols.

use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::error::ApiError;

/// How a stream is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Chat and plain completions: unnamed events, `[DONE]` at the end.
    Completions,
    /// Responses: events named as their `type`.
    Responses,
    /// Messages: the same, with Anthropic's errors.
    Messages,
}

/// Where a generation's events go.
pub(super) struct Events {
    sender: UnboundedSender<Event>,
    dialect: Dialect,
}

impl Events {
    /// Sends one event without a name; that nobody listens any more is for the generation loop
    /// to notice.
    pub fn send(&self, event: &impl Serialize) {
        let text = serde_json::to_string(event).unwrap_or_default();
        let _ = self.sender.send(Event::default().data(text));
    }

    /// Sends one event with a name.
    pub fn send_named(&self, name: &str, event: &impl Serialize) {
        let text = serde_json::to_string(event).unwrap_or_default();
        let _ = self.sender.send(Event::default().event(name).data(text));
    }

    /// Tells that the request failed after the stream began.
    pub fn fail(&self, error: &ApiError) {
        match self.dialect {
            Dialect::Completions => self.send(&error.body()),
            Dialect::Responses => {
                let detail = error.body().error;
                let event = json!({
                    "type": "error", "sequence_number": 0, "message": detail.message,
                    "code": detail.code, "param": detail.param,
                });
                self.send_named("error", &event);
            }
            Dialect::Messages => self.send_named("error", &error.anthropic()),
        }
    }

    /// Sends what tells clients that the stream is complete, where something does.
    pub fn done(&self) {
        if self.dialect == Dialect::Completions {
            let _ = self.sender.send(Event::default().data("[DONE]"));
        }
    }

    /// Whether the client hung up.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// A sender, and the response that carries what is sent.
pub(super) fn channel(dialect: Dialect) -> (Events, Response) {
    let (sender, receiver): (_, UnboundedReceiver<Event>) = tokio::sync::mpsc::unbounded_channel();
    let stream = UnboundedReceiverStream::new(receiver).map(Ok::<_, Infallible>);
    let mut response = Sse::new(stream).keep_alive(KeepAlive::default()).into_response();
    // Proxies must not collect tokens.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    (Events { sender, dialect }, response)
}
