//! The HTTP server: OpenAI's and Anthropic's routes over one engine.
//!
//! A request is let in ([`auth`], [`gate`]), read and checked ([`body`],
//! [`wire`](intern_lm::wire)), becomes sequences in the engine ([`turn`], [`generate`]),
//! and comes back whole or as server-sent events ([`chat`], [`completions`]), its text
//! taken apart by [`reader`]. Whoever hangs up is no longer computed for: the
//! events' receiver is dropped, and the engine forgets the sequence.

mod app;
mod auth;
mod body;
mod chat;
mod completions;
mod embeddings;
mod error;
mod gate;
mod generate;
mod messages;
mod metrics;
mod reader;
mod responses;
mod sse;
mod tls;
mod tokens;
mod turn;

use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::serve::ListenerExt;
use intern_engine::{Engine, EngineConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use axum::Router;
use tokio_rustls::TlsAcceptor;

use app::App;
use tls::TlsListener;

/// What to serve, and where.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiConfig {
    /// Checkpoint directory or GGUF file.
    pub model: PathBuf,
    /// PEFT adapter merged into the weights.
    #[serde(default)]
    pub adapter: Option<PathBuf>,
    /// Address to listen on; `0.0.0.0` for every network interface.
    #[serde(default = "localhost")]
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Name in `/v1/models` and in requests; the model's file or directory name if absent.
    #[serde(default)]
    pub served_name: Option<String>,
    /// Required as `Authorization: Bearer KEY` (or `x-api-key: KEY`) on all routes but `/`,
    /// `/health` and `/openapi.json`; nothing is required if absent.
    #[serde(default, skip_serializing)]
    pub api_key: Option<String>,
    /// More keys, each as good as the other.
    #[serde(default, skip_serializing)]
    pub api_keys: Vec<String>,
    /// PEM file with the certificate chain; with `tls_key`, the server speaks HTTPS.
    #[serde(default)]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's private key.
    #[serde(default)]
    pub tls_key: Option<PathBuf>,
    /// Web pages whose scripts may ask, as `https://host`, or `*` for all; none if empty.
    #[serde(default)]
    pub cors_origins: Vec<String>,
    /// Where the seeds of requests without one come from.
    #[serde(default)]
    pub seed: u64,
    /// Longest request body in MiB.
    #[serde(default = "default_body")]
    pub max_body_mb: usize,
    /// Sequences that may wait beside those that run; beyond, requests get status 429.
    #[serde(default = "default_queue")]
    pub max_queue: usize,
    /// Longest time for one request, in seconds; a client may ask for less in the header
    /// `x-request-timeout`. No limit if absent.
    #[serde(default)]
    pub max_request_seconds: Option<f64>,
    /// How long running requests may go on after SIGTERM, in seconds.
    #[serde(default = "default_drain")]
    pub drain_seconds: u64,
    /// Threads, cache and batch sizes.
    #[serde(default)]
    pub engine: EngineConfig,
}

impl ApiConfig {
    /// The defaults for `model`: 127.0.0.1:8000, no key.
    #[must_use]
    pub fn new(model: &Path) -> Self {
        Self {
            model: model.to_path_buf(),
            adapter: None,
            host: localhost(),
            port: default_port(),
            served_name: None,
            api_key: None,
            api_keys: Vec::new(),
            tls_cert: None,
            tls_key: None,
            cors_origins: Vec::new(),
            seed: 0,
            max_body_mb: default_body(),
            max_queue: default_queue(),
            max_request_seconds: None,
            drain_seconds: default_drain(),
            engine: EngineConfig::default(),
        }
    }
}

fn localhost() -> String {
    "127.0.0.1".to_string()
}

fn default_port() -> u16 {
    8000
}

fn default_body() -> usize {
    16
}

fn default_queue() -> usize {
    256
}

fn default_drain() -> u64 {
    30
}

/// Serves until SIGTERM or ctrl-C, then lets running requests finish; a second signal ends at once.
///
/// # Errors
/// If the port is taken or the model cannot be loaded.
pub fn serve(config: &ApiConfig) -> Result<()> {
    let server = Server::bind(config)?;
    println!("serving {} at {}/v1 (ctrl-C ends)", server.app.name, server.url());
    server.run(async {
        let signal = stop_signal().await;
        eprintln!("{signal}: no new requests; waiting for the running ones (once more to end at once)");
    })
}

/// A server running in the background until it is stopped or dropped (for tests and embedding).
pub struct Running {
    addr: SocketAddr,
    url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Running {
    /// Its address with the port it got.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://host:port`, or `https`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Shuts down as SIGTERM would, and waits for it.
    ///
    /// # Errors
    /// If serving had failed.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        drop(self.stop.take());
        match self.thread.take().map(std::thread::JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => anyhow::bail!("the server's thread panicked"),
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Starts a server in the background; it answers as soon as this returns.
///
/// # Errors
/// As [`serve`].
pub fn start(config: &ApiConfig) -> Result<Running> {
    let server = Server::bind(config)?;
    let (addr, url) = (server.addr, server.url());
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("intern-api".into()).spawn(move || {
        server.run(async {
            let _ = stopped.await;
        })
    })?;
    Ok(Running { addr, url, stop: Some(stop), thread: Some(thread) })
}

struct Server {
    app: Arc<App>,
    router: Router,
    listener: TcpListener,
    addr: SocketAddr,
    tls: Option<TlsAcceptor>,
    drain: Duration,
    /// One per request that is computed, and some for those being read.
    threads: usize,
}

impl Server {
    /// Takes the port first: when it is taken, one should not wait for a model to load to hear of it.
    fn bind(config: &ApiConfig) -> Result<Self> {
        let at = format!("{}:{}", config.host, config.port);
        let listener =
            TcpListener::bind((config.host.as_str(), config.port)).map_err(|e| explain_bind(&e, &at))?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let tls = match (&config.tls_cert, &config.tls_key) {
            (Some(cert), Some(key)) => Some(tls::acceptor(cert, key)?),
            (None, None) => None,
            _ => anyhow::bail!("tls_cert and tls_key belong together\nhint: give both, or none"),
        };
        let engine = Engine::load(&config.model, config.adapter.as_deref(), &config.engine)
            .with_context(|| format!("loading {}", config.model.display()))?;
        let app = Arc::new(App::new(engine, config));
        if app.engine.adapters().contains(&app.name) {
            anyhow::bail!("the model and an adapter are both called {}\nhint: rename one", app.name);
        }
        let router = app::router(app.clone(), &config.cors_origins)?;
        let drain = Duration::from_secs(config.drain_seconds);
        let threads = config.engine.max_num_seqs.saturating_add(config.max_queue).saturating_add(64);
        Ok(Self { app, router, listener, addr, tls, drain, threads })
    }

    fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.addr)
    }

    /// Answers requests until `stop`, then for as long as running ones need, at most `drain`.
    fn run(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(self.threads)
            .thread_name("intern-http")
            .enable_all()
            .build()?;
        let result = runtime.block_on(async {
            // Tokens are small packets; each should leave at once.
            let listener = tokio::net::TcpListener::from_std(self.listener)?;
            let (stopping, mut is_stopping) = watch::channel(false);
            let (app, router) = (self.app.clone(), self.router);
            let stopped = async move {
                stop.await;
                app.stop_accepting();
                let _ = stopping.send(true);
            };
            let tls = self.tls;
            let serving = async move {
                match tls {
                    Some(tls) => {
                        let listener = TlsListener::new(listener, tls)?;
                        axum::serve(listener, router).with_graceful_shutdown(stopped).await?;
                    }
                    None => {
                        let listener = listener.tap_io(|tcp| {
                            let _ = tcp.set_nodelay(true);
                        });
                        axum::serve(listener, router).with_graceful_shutdown(stopped).await?;
                    }
                }
                anyhow::Ok(())
            };
            let patience = async {
                let _ = is_stopping.wait_for(|&s| s).await;
                tokio::select! {
                    () = tokio::time::sleep(self.drain) => {}
                    _ = stop_signal() => {}
                }
            };
            tokio::select! {
                result = serving => result.context("serving HTTP"),
                () = patience => {
                    tracing::warn!("ended with requests still running");
                    Ok(())
                }
            }
        });
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    }
}

fn explain_bind(error: &std::io::Error, at: &str) -> anyhow::Error {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::AddrInUse => anyhow::anyhow!(
            "cannot listen on {at}: the port is in use\nhint: another program serves there; choose another port with --port"
        ),
        ErrorKind::PermissionDenied => anyhow::anyhow!(
            "cannot listen on {at}: permission denied\nhint: ports below 1024 need privileges; choose one above with --port"
        ),
        _ => anyhow::anyhow!(
            "cannot listen on {at}: {error}\nhint: --host takes an address of this machine, such as 127.0.0.1 or 0.0.0.0"
        ),
    }
}

/// Waits for SIGTERM or ctrl-C; its name.
async fn stop_signal() -> &'static str {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => "interrupted",
        () = terminate => "SIGTERM",
    }
}
