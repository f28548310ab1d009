//! Who may ask: API keys, and which web pages' scripts.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{HeaderName, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower_http::cors::{AllowHeaders, AllowOrigin, Any, CorsLayer};

use super::app::App;
use super::error::ApiError;

/// The keys that open the server; without any, it is open.
pub(super) struct Keys(Vec<String>);

impl Keys {
    pub fn new(keys: Vec<String>) -> Self {
        Self(keys.into_iter().filter(|k| !k.is_empty()).collect())
    }

    /// Whether the request carries one of the keys, as OpenAI's or as Anthropic's clients send it.
    fn open(&self, headers: &HeaderMap) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let text = |name: HeaderName| headers.get(name).and_then(|h| h.to_str().ok());
        let bearer = text(header::AUTHORIZATION)
            .and_then(|h| h.strip_prefix("Bearer ").or_else(|| h.strip_prefix("bearer ")));
        let given = bearer.or_else(|| text(HeaderName::from_static("x-api-key"))).unwrap_or_default().trim();
        // Every key is compared, whichever fits.
        self.0.iter().fold(false, |open, key| open | equal_in_constant_time(given.as_bytes(), key.as_bytes()))
    }
}

/// Takes the same time wherever the difference is, so that a key cannot be guessed byte by byte.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

/// Lets through who has a key, while the server takes requests.
pub(super) async fn authorize(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.is_stopping() {
        return ApiError::stopping().into_response();
    }
    if !app.keys.open(request.headers()) {
        return ApiError::unauthorized().into_response();
    }
    next.run(request).await
}

/// Lets scripts of these origins (`https://host`, or `*` for all) read answers; `None` without any.
///
/// # Errors
/// If an origin cannot stand in a header.
pub(super) fn cors(origins: &[String]) -> anyhow::Result<Option<CorsLayer>> {
    if origins.is_empty() {
        return Ok(None);
    }
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER]);
    if origins.iter().any(|o| o == "*") {
        return Ok(Some(layer.allow_origin(Any)));
    }
    let list: Result<Vec<HeaderValue>, _> = origins.iter().map(|o| o.trim_end_matches('/').parse()).collect();
    let list = list.map_err(|_| {
        anyhow::anyhow!("cors_origins: not an origin\nhint: origins look like https://example.org")
    })?;
    Ok(Some(layer.allow_origin(AllowOrigin::list(list))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_of_the_keys_opens() {
        let keys = Keys::new(vec!["one".into(), String::new(), "three".into()]);
        let with = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
        };
        assert!(keys.open(&with("authorization", "Bearer one")));
        assert!(keys.open(&with("x-api-key", "three")));
        for bad in ["Bearer ", "Bearer on", "one", "Bearer onetwo"] {
            assert!(!keys.open(&with("authorization", bad)), "{bad}");
        }
        assert!(!keys.open(&HeaderMap::new()));
        assert!(Keys::new(Vec::new()).open(&HeaderMap::new()));
    }
}
