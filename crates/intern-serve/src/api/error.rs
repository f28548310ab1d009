//! Errors in OpenAI's form, `{"error": {"message", "type", "param", "code"}}`, and in Anthropic's.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use intern_lm::wire::{ErrorBody, ErrorDetail, Invalid};
use serde_json::{Value, json};

/// An answer that is an error.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    /// Seconds after which to try again.
    retry_after: Option<u64>,
}

/// The type of most of OpenAI's errors.
const INVALID: &str = "invalid_request_error";

impl ApiError {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: Option<&'static str>,
        message: impl Into<String>,
    ) -> Self {
        Self { status, kind, code, param: None, message: message.into(), retry_after: None }
    }

    pub fn unauthorized() -> Self {
        let message =
            "the API key is missing or wrong\nhint: send `Authorization: Bearer KEY` or `x-api-key: KEY`";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", Some("invalid_api_key"), message)
    }

    pub fn model_not_found(asked: &str, served: &str) -> Self {
        let message = format!("the model `{asked}` is not served here\nhint: use `{served}`");
        let mut error = Self::new(StatusCode::NOT_FOUND, INVALID, Some("model_not_found"), message);
        error.param = Some("model".into());
        error
    }

    pub fn not_found(what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, INVALID, Some("not_found"), format!("there is no {what}"))
    }

    pub fn no_route(what: &str) -> Self {
        let message = format!("there is no {what}\nhint: GET /openapi.json lists what there is");
        Self::new(StatusCode::NOT_FOUND, INVALID, Some("unknown_url"), message)
    }

    pub fn wrong_method(what: &str) -> Self {
        let message = format!("{what} is not allowed\nhint: GET /openapi.json lists each route's method");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, Some("method_not_allowed"), message)
    }

    pub fn too_large(limit_mb: usize) -> Self {
        let message = format!("the request body is larger than {limit_mb} MiB\nhint: send less at once");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("request_too_large"), message)
    }

    pub fn slow_body() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, None, "the request body did not arrive in time")
    }

    pub fn queue_full(inside: usize, retry_after: u64) -> Self {
        let message = format!(
            "the server is busy with {inside} sequences and queues no more\nhint: try again in {retry_after} s"
        );
        let mut error =
            Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("queue_full"), message);
        error.retry_after = Some(retry_after);
        error
    }

    pub fn expired() -> Self {
        let message = "the request's deadline passed before its answer was complete\nhint: ask for fewer tokens, or allow more time";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout_error", Some("deadline_exceeded"), message)
    }

    pub fn stopping() -> Self {
        let message = "the server is shutting down\nhint: try again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("shutting_down"), message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, message)
    }

    pub fn panicked() -> Self {
        Self::internal("this request failed inside the server\nhint: see its log")
    }

    /// The same under the name by which the client knows the parameter.
    pub fn rename(mut self, from: &str, to: &str) -> Self {
        if self.param.as_deref() == Some(from) {
            self.message = self.message.replace(from, to);
            self.param = Some(to.to_string());
        }
        self
    }

    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorDetail {
                message: self.message.clone(),
                kind: self.kind.to_string(),
                param: self.param.clone(),
                code: self.code.map(Into::into),
            },
        }
    }

    /// The same as Anthropic writes it.
    pub fn anthropic(&self) -> Value {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 | 405 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        json!({ "type": "error", "error": { "type": kind, "message": self.message } })
    }

    /// Logs faults of the server's own.
    pub fn log(&self) {
        if self.status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!("{}", self.message);
        }
    }

    fn respond(self, body: Value) -> Response {
        self.log();
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Rewrites errors, wherever they come from, for clients of Anthropic's API.
pub(super) async fn for_anthropic(response: Response) -> Response {
    match response.extensions().get::<ApiError>() {
        Some(error) => {
            let error = error.clone();
            let body = error.anthropic();
            error.respond(body)
        }
        None => response,
    }
}

impl From<Invalid> for ApiError {
    fn from(invalid: Invalid) -> Self {
        let Invalid { message, param, code } = invalid;
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, INVALID, code, message) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = serde_json::to_value(self.body()).unwrap_or_default();
        self.respond(body)
    }
}
