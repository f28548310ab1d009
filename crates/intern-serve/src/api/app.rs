//! Routes, and what every handler shares: the engine, the model's name, the key.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use intern_engine::Engine;
use intern_lm::tools::ToolFormat;
use intern_lm::wire::{Invalid, ModelCard, ModelList};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::error::ApiError;
use super::{ApiConfig, chat, completions, tokens};

/// What every handler sees.
pub(super) struct App {
    pub engine: Engine,
    /// The model's name on the wire.
    pub name: String,
    /// Its path, accepted as a name too.
    path: PathBuf,
    /// How the model writes tool calls.
    pub tool_format: ToolFormat,
    /// Special tokens that never belong into an answer's text.
    pub specials: Vec<String>,
    api_key: Option<String>,
    max_body_mb: usize,
    seed: u64,
    requests: AtomicU64,
    /// When the server started, in Unix seconds.
    started: u64,
    stopping: AtomicBool,
}

impl App {
    pub fn new(engine: Engine, config: &ApiConfig) -> Self {
        let stem = config.model.canonicalize().unwrap_or_else(|_| config.model.clone());
        let stem = if stem.is_dir() { stem.file_name() } else { stem.file_stem() };
        let stem = stem.map(|s| s.to_string_lossy().into_owned());
        let tokenizer = engine.tokenizer();
        let tool_format = tokenizer
            .chat_template()
            .map_or(ToolFormat::None, |template| ToolFormat::detect(template.source()));
        let markers = tool_format.markers();
        let specials = (0..tokenizer.vocab_size() as u32)
            .filter(|&id| tokenizer.is_special(id))
            .filter_map(|id| tokenizer.id_to_token(id))
            .filter(|token| !token.is_empty() && !markers.iter().any(|m| m.contains(token.as_str())))
            .collect();
        Self {
            name: config.served_name.clone().or(stem).unwrap_or_else(|| "model".to_string()),
            path: config.model.clone(),
            tool_format,
            specials,
            api_key: config.api_key.clone(),
            max_body_mb: config.max_body_mb,
            seed: config.seed,
            requests: AtomicU64::new(0),
            started: unix_time(),
            stopping: AtomicBool::new(false),
            engine,
        }
    }

    /// From now on requests are refused.
    pub fn stop_accepting(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Numbers requests; ids and seeds derive from it.
    pub fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    /// An id such as `chatcmpl-…`, unique across restarts.
    pub fn id(&self, prefix: &str, number: u64) -> String {
        format!("{prefix}-{:08x}{number:08x}", self.started)
    }

    /// The seed of a request that names none: another for each, the same when all is repeated.
    pub fn default_seed(&self, number: u64) -> u64 {
        // SplitMix64.
        let mut z = self.seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Accepts the served name, the model's path, or no name at all.
    pub fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            None | Some("") => Ok(()),
            Some(name) if name == self.name || std::path::Path::new(name) == self.path => Ok(()),
            Some(name) => Err(ApiError::model_not_found(name, &self.name)),
        }
    }

    fn card(&self) -> ModelCard {
        ModelCard {
            id: self.name.clone(),
            object: "model".into(),
            created: self.started,
            owned_by: "intern".into(),
            max_model_len: Some(self.engine.context_length()),
        }
    }
}

/// Seconds since 1970.
pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

pub(super) fn router(app: Arc<App>) -> Router {
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route_layer(middleware::from_fn_with_state(app.clone(), authorize));
    Router::new()
        .route("/", get(index))
        .route("/health", get(health))
        .merge(guarded)
        .method_not_allowed_fallback(async |request: Request| ApiError::wrong_method(&what(&request)))
        .fallback(async |request: Request| ApiError::no_route(&what(&request)))
        .layer(middleware::from_fn(log))
        .with_state(app)
}

fn what(request: &Request) -> String {
    format!("{} {}", request.method(), request.uri().path())
}

/// One log line per request: route, status and time, never what was said.
async fn log(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let begin = Instant::now();
    let response = next.run(request).await;
    let (status, ms) = (response.status().as_u16(), begin.elapsed().as_millis() as u64);
    tracing::info!(%method, path, status, ms, "request");
    response
}

async fn authorize(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if app.stopping.load(Ordering::Relaxed) {
        return ApiError::stopping().into_response();
    }
    if let Some(key) = &app.api_key {
        let given = request.headers().get(header::AUTHORIZATION).and_then(|h| h.to_str().ok());
        let given = given.and_then(|h| h.strip_prefix("Bearer ").or_else(|| h.strip_prefix("bearer ")));
        if !given.is_some_and(|given| equal_in_constant_time(given.trim().as_bytes(), key.as_bytes())) {
            return ApiError::unauthorized().into_response();
        }
    }
    next.run(request).await
}

/// Takes the same time wherever the difference is, so that a key cannot be guessed byte by byte.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

async fn index(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({
        "server": format!("intern {}", env!("CARGO_PKG_VERSION")),
        "model": app.name,
        "routes": {
            "POST /v1/chat/completions": "answer a conversation, with tools, streamed if asked",
            "POST /v1/completions": "continue text or token ids, with log-probabilities if asked",
            "GET /v1/models": "the model served",
            "POST /tokenize": "text or messages to token ids",
            "POST /detokenize": "token ids to text",
            "GET /health": "whether the server is up",
        },
    }))
}

async fn health(State(app): State<Arc<App>>) -> Response {
    if app.stopping.load(Ordering::Relaxed) {
        return ApiError::stopping().into_response();
    }
    Json(json!({ "status": "ok" })).into_response()
}

async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    Json(ModelList { object: "list".into(), data: vec![app.card()] })
}

async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<ModelCard>, ApiError> {
    app.check_model(Some(&id))?;
    Ok(Json(app.card()))
}

/// Reads a JSON body; errors name the parameter at fault.
pub(super) async fn read_body<T: DeserializeOwned>(app: &App, body: Body) -> Result<T, ApiError> {
    let bytes = axum::body::to_bytes(body, app.max_body_mb << 20).await.map_err(|e| {
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
    let failed = |_| Err(ApiError::internal("this request failed inside the server\nhint: see its log"));
    receiver.await.unwrap_or_else(failed)
}
