//! Server-sent events: one JSON text per event, `[DONE]` at the end.

use std::convert::Infallible;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// Where a generation's events go.
pub(super) struct Events(UnboundedSender<String>);

impl Events {
    /// Sends one event; that nobody listens any more is for the generation loop to notice.
    pub fn send(&self, event: &impl Serialize) {
        let text = serde_json::to_string(event).unwrap_or_default();
        let _ = self.0.send(text);
    }

    /// Sends what tells clients that the stream is complete.
    pub fn done(&self) {
        let _ = self.0.send("[DONE]".to_string());
    }

    /// Whether the client hung up.
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

/// A sender, and the response that carries what is sent.
pub(super) fn channel() -> (Events, Response) {
    let (sender, receiver): (_, UnboundedReceiver<String>) = tokio::sync::mpsc::unbounded_channel();
    let stream =
        UnboundedReceiverStream::new(receiver).map(|text| Ok::<_, Infallible>(Event::default().data(text)));
    let mut response = Sse::new(stream).keep_alive(KeepAlive::default()).into_response();
    // Proxies must not collect tokens.
    response.headers_mut().insert("x-accel-buffering", axum::http::HeaderValue::from_static("no"));
    (Events(sender), response)
}
