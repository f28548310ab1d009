//! Routes, and what every handler shares: the engine, the model's name, the keys, the counts.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use axum::extract::{Path, Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use intern_engine::Engine;
use intern_lm::reasoning;
use intern_lm::tools::ToolFormat;
use intern_lm::wire::{ModelCard, ModelList};
use serde_json::json;
use tower_http::catch_panic::CatchPanicLayer;

use super::auth::{self, Keys};
use super::error::ApiError;
use super::gate::Gate;
use super::metrics::{self, Metrics};
use super::responses::store::Store;
use super::{ApiConfig, chat, completions, embeddings, error, messages, responses, tokens};

/// What every handler sees.
pub(super) struct App {
    pub engine: Engine,
    /// The model's name on the wire.
    pub name: String,
    /// Its path, accepted as a name too.
    path: PathBuf,
    /// How the model writes tool calls.
    pub tool_format: ToolFormat,
    /// Whether the model writes thoughts before answers.
    pub thinks: bool,
    /// Special tokens that never belong into an answer's text, and what they begin with.
    specials: Vec<String>,
    special_starts: Vec<char>,
    pub keys: Keys,
    pub gate: Gate,
    pub metrics: Metrics,
    pub responses: Store,
    pub max_body_mb: usize,
    pub max_request_seconds: Option<f64>,
    seed: u64,
    requests: AtomicU64,
    /// When the server started, in Unix seconds.
    started: u64,
    stopping: AtomicBool,
}

/// Who answers a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Served {
    /// As the client knows it.
    pub name: String,
    /// One of the engine's adapters; the model itself if absent.
    pub adapter: Option<String>,
}

impl App {
    pub fn new(engine: Engine, config: &ApiConfig) -> Self {
        let stem = config.model.canonicalize().unwrap_or_else(|_| config.model.clone());
        let stem = if stem.is_dir() { stem.file_name() } else { stem.file_stem() };
        let stem = stem.map(|s| s.to_string_lossy().into_owned());
        let tokenizer = engine.tokenizer();
        let template = tokenizer.chat_template().map_or("", |t| t.source());
        let tool_format = ToolFormat::detect(template);
        let thinks = reasoning::thinks(template);
        let mut markers = tool_format.markers();
        if thinks {
            markers.extend([reasoning::OPEN, reasoning::CLOSE]);
        }
        let specials: Vec<String> = (0..tokenizer.vocab_size() as u32)
            .filter(|&id| tokenizer.is_special(id))
            .filter_map(|id| tokenizer.id_to_token(id))
            .filter(|token| !token.is_empty() && !markers.iter().any(|m| m.contains(token.as_str())))
            .collect();
        let mut special_starts: Vec<char> = specials.iter().filter_map(|s| s.chars().next()).collect();
        special_starts.sort_unstable();
        special_starts.dedup();
        let keys = config.api_key.iter().chain(&config.api_keys).cloned().collect();
        let config_limit = config.engine.max_num_seqs.saturating_add(config.max_queue);
        Self {
            name: config.served_name.clone().or(stem).unwrap_or_else(|| "model".to_string()),
            path: config.model.clone(),
            tool_format,
            thinks,
            specials,
            special_starts,
            keys: Keys::new(keys),
            gate: Gate::new(config_limit),
            metrics: Metrics::default(),
            responses: Store::default(),
            max_body_mb: config.max_body_mb,
            max_request_seconds: config.max_request_seconds,
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

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
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
        intern_kernels::rng::mix(
            self.seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        )
    }

    /// Whom a request asks: an adapter by its name, or the model itself by the served name, by its
    /// path, or by no name at all.
    pub fn check_model(&self, asked: Option<&str>) -> Result<Served, ApiError> {
        let model = Served { name: self.name.clone(), adapter: None };
        match asked {
            None | Some("") => Ok(model),
            Some(name) if name == self.name || std::path::Path::new(name) == self.path => Ok(model),
            Some(name) if self.engine.adapters().iter().any(|a| a == name) => {
                Ok(Served { name: name.to_owned(), adapter: Some(name.to_owned()) })
            }
            Some(name) => Err(ApiError::model_not_found(name, &self.names().join("`, `"))),
        }
    }

    /// Names a request may ask for.
    fn names(&self) -> Vec<&str> {
        std::iter::once(&self.name).chain(self.engine.adapters()).map(String::as_str).collect()
    }

    /// Takes special tokens out of a piece of text.
    pub fn without_specials(&self, mut text: String) -> String {
        if text.contains(&self.special_starts[..]) {
            for special in &self.specials {
                if text.contains(special.as_str()) {
                    text = text.replace(special.as_str(), "");
                }
            }
        }
        text
    }

    fn card(&self, name: &str) -> ModelCard {
        ModelCard {
            id: name.to_owned(),
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

/// All routes.
///
/// # Errors
/// If an allowed origin is malformed.
pub(super) fn router(app: Arc<App>, cors_origins: &[String]) -> Result<Router> {
    let for_anthropic = Router::new()
        .route("/v1/messages", post(messages::create))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route_layer(middleware::from_fn_with_state(app.clone(), auth::authorize))
        .layer(middleware::map_response(error::for_anthropic));
    let guarded = Router::new()
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/input_tokens", post(responses::input_tokens))
        .route("/v1/responses/{id}", get(responses::retrieve).delete(responses::delete))
        .route("/v1/responses/{id}/cancel", post(responses::cancel))
        .route("/v1/responses/{id}/input_items", get(responses::input_items))
        .route("/v1/embeddings", post(embeddings::handle))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/tokenizer_info", get(tokens::info))
        .route("/metrics", get(metrics::handle))
        .route_layer(middleware::from_fn_with_state(app.clone(), auth::authorize));
    let router = Router::new()
        .route("/", get(async || Html(include_str!("page.html"))))
        .route("/health", get(health))
        .route("/openapi.json", get(openapi))
        .merge(guarded)
        .merge(for_anthropic)
        .method_not_allowed_fallback(async |request: Request| ApiError::wrong_method(&what(&request)))
        .fallback(async |request: Request| ApiError::no_route(&what(&request)))
        .layer(CatchPanicLayer::custom(|_| ApiError::panicked().into_response()))
        .layer(middleware::from_fn_with_state(app.clone(), log))
        .with_state(app);
    Ok(match auth::cors(cors_origins)? {
        Some(layer) => router.layer(layer),
        None => router,
    })
}

fn what(request: &Request) -> String {
    format!("{} {}", request.method(), request.uri().path())
}

/// One log line per request: route, status and time, never what was said.
async fn log(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let begin = Instant::now();
    let response = next.run(request).await;
    let (status, ms) = (response.status().as_u16(), begin.elapsed().as_millis() as u64);
    app.metrics.status(status);
    tracing::info!(%method, path, status, ms, "request");
    response
}

/// Whether the server takes requests; asks nothing of the engine, which may be busy.
async fn health(State(app): State<Arc<App>>) -> Response {
    if app.is_stopping() {
        return ApiError::stopping().into_response();
    }
    Json(json!({ "status": "ok" })).into_response()
}

/// The description of all routes, for tools and people.
async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}

async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    let data = app.names().into_iter().map(|name| app.card(name)).collect();
    Json(ModelList { object: "list".into(), data })
}

async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<ModelCard>, ApiError> {
    Ok(Json(app.card(&app.check_model(Some(&id))?.name)))
}
