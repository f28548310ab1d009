//! HTTP with retries, server-sent events, and errors a user can act on.
//!
//! Knows no model: [`super::Remote`] decides what to send.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use crate::wire::ErrorBody;

/// Longest answer we read.
const MAX_BODY: u64 = 256 << 20;

/// The server refused a request, or failed on it.
#[derive(Debug)]
pub(super) struct ApiError {
    pub status: u16,
    /// The server's own words.
    pub message: String,
    pub code: Option<String>,
    /// How long the server asks to wait.
    retry_after: Option<Duration>,
    url: String,
}

impl ApiError {
    /// Whether the request was too long for the model.
    pub fn is_context_exceeded(&self) -> bool {
        let message = self.message.to_lowercase();
        matches!(self.status, 400 | 413 | 422)
            && (self.code.as_deref() == Some("context_length_exceeded")
                || ["context length", "context size", "context window", "maximum context", "too long"]
                    .iter()
                    .any(|m| message.contains(m)))
    }

    /// Whether the model was not found, as opposed to the route.
    pub fn is_model_not_found(&self) -> bool {
        self.status == 404
            && (self.code.as_deref() == Some("model_not_found")
                || self.message.to_lowercase().contains("model"))
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { status, message, url, .. } = self;
        let message = if message.is_empty() { "no explanation" } else { message };
        write!(f, "{url} answered {status}: {message}")?;
        match status {
            _ if message.contains("hint:") => Ok(()),
            401 | 403 => write!(f, "\nhint: give the API key of this server"),
            404 => write!(
                f,
                "\nhint: the base URL usually ends in /v1; check the model's name with GET /v1/models"
            ),
            413 => write!(f, "\nhint: send a shorter request"),
            429 => write!(
                f,
                "\nhint: the server is busy or a quota is used up; try again later or send fewer requests at once"
            ),
            500.. => write!(f, "\nhint: the fault is the server's; look into its log"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for ApiError {}

/// One server, by its base URL.
pub(super) struct Client {
    /// Without a slash at the end, e.g. `http://127.0.0.1:8000/v1`.
    pub base: String,
    api_key: Option<String>,
    agent: Agent,
    /// Tries after the first.
    pub retries: u32,
    /// Wait before the first retry; doubles each time.
    pub wait: Duration,
}

impl Client {
    /// Accepts `http://host:port`, with or without `/v1`, or a URL with a path of its own.
    pub fn new(base_url: &str, api_key: Option<String>) -> Result<Self> {
        let base = base_url.trim().trim_end_matches('/');
        let Some((scheme @ ("http" | "https"), rest)) = base.split_once("://") else {
            bail!("{base_url}: not an HTTP address\nhint: give one like http://127.0.0.1:8000/v1");
        };
        let (host, path) = rest.split_once('/').map_or((rest, ""), |(host, path)| (host, path));
        if host.is_empty() {
            bail!("{base_url}: no host in the address\nhint: give one like http://127.0.0.1:8000/v1");
        }
        let base = if path.is_empty() { format!("{scheme}://{host}/v1") } else { base.to_string() };
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_per_read(Some(Duration::from_secs(1800)))
            .max_idle_connections_per_host(32)
            .user_agent("intern");
        if ["localhost", "127.", "[::1]"].iter().any(|local| host.starts_with(local)) {
            // A proxy for the outside world cannot reach this machine.
            config = config.proxy(None);
        }
        Ok(Self { base, api_key, agent: config.build().into(), retries: 4, wait: Duration::from_millis(500) })
    }

    /// `GET {base}{path}`; retried only if `patient`.
    pub fn get<T: DeserializeOwned>(&self, path: &str, patient: bool) -> Result<T> {
        let url = format!("{}{path}", self.base);
        let retries = if patient { self.retries } else { 0 };
        let response = self.retry(&url, retries, || {
            let mut request = self.agent.get(&url);
            if let Some(key) = &self.api_key {
                request = request.header("authorization", format!("Bearer {key}"));
            }
            request.call()
        })?;
        read_json(&url, response)
    }

    /// `POST {base}{path}`, answered whole; `/../` leads out of `/v1`.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let url = match path.strip_prefix("/..") {
            Some(path) => format!("{}{path}", self.base.trim_end_matches("/v1")),
            None => format!("{}{path}", self.base),
        };
        read_json(&url, self.send(&url, body)?)
    }

    /// `POST {base}{path}`, answered as a stream: `each` sees one event after the other.
    ///
    /// A server that answers whole instead is fine; `each` then sees that answer.
    pub fn stream(
        &self,
        path: &str,
        body: &impl Serialize,
        each: &mut dyn FnMut(Value) -> Result<()>,
    ) -> Result<()> {
        let url = format!("{}{path}", self.base);
        let response = self.send(&url, body)?;
        if response.body().mime_type().is_some_and(|m| m.contains("json")) {
            return each(read_json(&url, response)?);
        }
        let lines = BufReader::new(response.into_body().into_with_config().limit(MAX_BODY).reader()).lines();
        for line in lines {
            let line = line
                .with_context(|| format!("{url}: the stream broke off\nhint: look into the server's log"))?;
            // Comments, event names and the blank lines between events mean nothing here.
            let Some(data) = line.strip_prefix("data:") else { continue };
            let data = data.trim();
            if data == "[DONE]" {
                return Ok(());
            }
            if data.is_empty() {
                continue;
            }
            let event: Value = serde_json::from_str(data)
                .with_context(|| format!("{url}: an event of the stream is not JSON: {data}"))?;
            if event.get("error").is_some_and(|e| !e.is_null()) {
                return Err(explain(&url, 500, data, None).into());
            }
            each(event)?;
        }
        Ok(())
    }

    fn send(&self, url: &str, body: &impl Serialize) -> Result<Response<Body>> {
        let body = serde_json::to_vec(body)?;
        self.retry(url, self.retries, || {
            let mut request = self.agent.post(url).header("content-type", "application/json");
            if let Some(key) = &self.api_key {
                request = request.header("authorization", format!("Bearer {key}"));
            }
            request.send(&body[..])
        })
    }

    /// Tries until the answer is final: success, or an error that waiting does not cure.
    fn retry(
        &self,
        url: &str,
        retries: u32,
        call: impl Fn() -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>> {
        let mut wait = self.wait;
        for attempt in 0.. {
            let (error, retry_after) = match call() {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(mut response) => {
                    let status = response.status();
                    let header =
                        response.headers().get("retry-after").and_then(|h| h.to_str().ok()?.parse().ok());
                    let text =
                        response.body_mut().with_config().limit(1 << 20).lossy_utf8(true).read_to_string();
                    let error = explain(
                        url,
                        status.as_u16(),
                        &text.unwrap_or_default(),
                        header.map(Duration::from_secs),
                    );
                    if !is_temporary(status) {
                        return Err(error.into());
                    }
                    let retry_after = error.retry_after;
                    (error.into(), retry_after)
                }
                Err(error) if is_connection(&error) => (self.unreachable(&error), None),
                Err(error) => return Err(error).with_context(|| format!("cannot ask {url}")),
            };
            if attempt >= retries {
                return Err(error);
            }
            let pause = retry_after.unwrap_or(wait).min(Duration::from_secs(60));
            tracing::warn!("{}; trying again in {:.1} s", first_line(&error), pause.as_secs_f64());
            std::thread::sleep(pause);
            wait *= 2;
        }
        unreachable!("the loop above only ends by returning")
    }

    fn unreachable(&self, error: &ureq::Error) -> anyhow::Error {
        let hint = match error {
            ureq::Error::HostNotFound => "check the host's name in the address",
            ureq::Error::Timeout(_) => "the server is slow or overloaded, or the address is wrong",
            _ => "is the server running? `intern serve api MODEL --port 8000` starts one",
        };
        let why = match error {
            ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                "connection refused".to_string()
            }
            other => other.to_string(),
        };
        anyhow::anyhow!("cannot reach {}: {why}\nhint: {hint}", self.base)
    }
}

fn first_line(error: &anyhow::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_string()
}

fn is_temporary(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504 | 529)
}

/// Errors before any answer arrived, on the way to the server.
fn is_connection(error: &ureq::Error) -> bool {
    matches!(
        error,
        ureq::Error::Io(_)
            | ureq::Error::ConnectionFailed
            | ureq::Error::HostNotFound
            | ureq::Error::Timeout(_)
    )
}

fn explain(url: &str, status: u16, body: &str, retry_after: Option<Duration>) -> ApiError {
    let value: Value = serde_json::from_str(body).unwrap_or_default();
    let (message, code) = match serde_json::from_value::<ErrorBody>(value.clone()) {
        Ok(parsed) if !parsed.error.message.is_empty() => (parsed.error.message, parsed.error.code),
        // Other shapes in the wild: {"message": …}, {"detail": …}, {"error": "…"}.
        _ => {
            let text = ["message", "detail", "error"].iter().find_map(|k| value.get(k)?.as_str());
            (text.unwrap_or(body).chars().take(500).collect(), None)
        }
    };
    let code = code.map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_string));
    ApiError { status, message, code, retry_after, url: url.to_string() }
}

fn read_json<T: DeserializeOwned>(url: &str, mut response: Response<Body>) -> Result<T> {
    let text = response
        .body_mut()
        .with_config()
        .limit(MAX_BODY)
        .read_to_string()
        .with_context(|| format!("{url}: the answer broke off\nhint: look into the server's log"))?;
    serde_json::from_str(&text).with_context(|| {
        let start: String = text.chars().take(80).collect();
        format!("{url}: the answer is not what an OpenAI-compatible server sends: {start}\nhint: check the base URL")
    })
}
