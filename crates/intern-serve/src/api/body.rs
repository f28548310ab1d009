//! Reading request bodies, and blocking work beside the runtime.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use intern_lm::wire::Invalid;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::app::App;
use super::error::ApiError;
use super::sse::Events;

/// How long a client may take to send its body.
const BODY_TIME: Duration = Duration::from_secs(60);

/// A JSON body, and when its answer is no longer wanted.
pub(super) struct Incoming<T> {
    pub body: T,
    pub deadline: Option<Instant>,
}

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Incoming<T> {
    type Rejection = ApiError;

    /// Reads the body, and the header `x-request-timeout` in seconds.
    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, ApiError> {
        let mut seconds = app.max_request_seconds;
        if let Some(header) = request.headers().get("x-request-timeout") {
            let asked = header.to_str().ok().and_then(|text| text.trim().parse::<f64>().ok());
            let asked = asked.filter(|s| s.is_finite() && *s > 0.0).ok_or_else(|| {
                Invalid::new("x-request-timeout", "the header x-request-timeout must be seconds above 0")
            })?;
            seconds = Some(seconds.map_or(asked, |limit| limit.min(asked)));
        }
        let after = |s: f64| Instant::now().checked_add(Duration::try_from_secs_f64(s).ok()?);
        let deadline = seconds.and_then(after);
        let body = read_body(app, request.into_body()).await?;
        Ok(Self { body, deadline })
    }
}

/// Reads a JSON body; errors name the parameter at fault.
async fn read_body<T: DeserializeOwned>(app: &App, body: Body) -> Result<T, ApiError> {
    let reading = axum::body::to_bytes(body, app.max_body_mb << 20);
    let bytes = tokio::time::timeout(BODY_TIME, reading).await.map_err(|_| ApiError::slow_body())?;
    let bytes = bytes.map_err(|e| {
        let text = e.to_string();
        if text.contains("length limit") {
            ApiError::too_large(app.max_body_mb)
        } else {
            Invalid { message: format!("the request body broke off: {text}"), param: None, code: None }.into()
        }
    })?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|e| Invalid {
        message: format!("the request body is not valid JSON: {e}"),
        param: None,
        code: Some("invalid_json"),
    })?;
    let Value::Object(object) = &value else {
        let message = "the request body must be a JSON object".to_string();
        return Err(Invalid { message, param: None, code: None }.into());
    };
    T::deserialize(&value).map_err(|whole| {
        // The type's own error does not say where; try the parameters one by one.
        let fault = object.iter().find_map(|(key, value)| {
            let alone = Value::Object([(key.clone(), value.clone())].into_iter().collect());
            T::deserialize(&alone).err().map(|e| Invalid::new(key, format!("{key}: {e}")))
        });
        let unnamed = || Invalid { message: whole.to_string(), param: None, code: None };
        fault.unwrap_or_else(unnamed).into()
    })
}

/// Runs blocking work on a thread of its own. The work can ask whether the client is gone:
/// then this future was dropped, and nobody waits for the result.
pub(super) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce(&dyn Fn() -> bool) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let result = work(&|| sender.is_closed());
        let _ = sender.send(result);
    });
    // The sender is only dropped unsent if the work panicked.
    receiver.await.unwrap_or_else(|_| Err(ApiError::panicked()))
}

/// Runs a generation whose events are streamed; whatever becomes of it, the stream ends well-formed.
pub(super) fn stream_off_thread(
    events: Events,
    work: impl FnOnce(&Events) -> Result<(), ApiError> + Send + 'static,
) {
    tokio::task::spawn_blocking(move || {
        let result = catch_unwind(AssertUnwindSafe(|| work(&events)));
        if let Err(error) = result.unwrap_or_else(|_| Err(ApiError::panicked())) {
            error.log();
            events.fail(&error);
        }
        events.done();
    });
}
