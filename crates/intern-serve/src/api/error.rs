//! Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use intern_lm::wire::{ErrorBody, ErrorDetail, Invalid};

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
}

impl ApiError {
    fn new(
        status: StatusCode,
        kind: &'static str,
        code: Option<&'static str>,
        message: impl Into<String>,
    ) -> Self {
        Self { status, kind, code, param: None, message: message.into() }
    }

    pub fn unauthorized() -> Self {
        let message = "the API key is missing or wrong\nhint: send `Authorization: Bearer KEY`";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", Some("invalid_api_key"), message)
    }

    pub fn model_not_found(asked: &str, served: &str) -> Self {
        let message = format!("the model `{asked}` is not served here\nhint: use `{served}`");
        let mut error =
            Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("model_not_found"), message);
        error.param = Some("model".into());
        error
    }

    pub fn no_route(what: &str) -> Self {
        let message = format!(
            "there is no {what}\nhint: routes are /v1/chat/completions, /v1/completions, /v1/models, /tokenize, /detokenize, /health"
        );
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("unknown_url"), message)
    }

    pub fn wrong_method(what: &str) -> Self {
        let message = format!("{what} is not allowed\nhint: completions take POST, the others GET");
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "invalid_request_error",
            Some("method_not_allowed"),
            message,
        )
    }

    pub fn too_large(limit_mb: usize) -> Self {
        let message = format!("the request body is larger than {limit_mb} MiB\nhint: send less at once");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", Some("request_too_large"), message)
    }

    pub fn stopping() -> Self {
        let message = "the server is shutting down\nhint: try again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("shutting_down"), message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, message)
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
}

impl From<Invalid> for ApiError {
    fn from(invalid: Invalid) -> Self {
        let Invalid { message, param, code } = invalid;
        Self { status: StatusCode::BAD_REQUEST, kind: "invalid_request_error", code, param, message }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::error!(status = self.status.as_u16(), "{}", self.message);
        }
        let mut response = (self.status, Json(self.body())).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
