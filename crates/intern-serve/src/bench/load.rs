//! Many requests at once, as users would send them: what each of them waits for.
//!
//! Requests go to the engine in this process or to a server at a URL, when the trace says so
//! (open loop) or as soon as one of `concurrency` places is free (closed loop).

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use intern_engine::{Engine, EngineConfig, EngineRequest, Event};
use serde_json::{Value, json};

use super::report::{Report, Sample};
use super::trace::{self, Arrival};
use super::{exactly, load_engine, ordinary};

/// Most requests under way at once where nothing else limits them.
const MAX_THREADS: usize = 512;

/// Where requests go.
#[derive(Clone, Debug)]
pub enum Target {
    /// The engine in this process.
    Local {
        /// Checkpoint directory or GGUF file.
        model: PathBuf,
        /// Threads, cache and batch sizes.
        engine: EngineConfig,
    },
    /// An OpenAI-compatible server, by its base URL.
    Url {
        /// With or without `/v1`.
        url: String,
        /// The model's name; the first one served if absent.
        model: Option<String>,
        /// Sent as bearer token.
        api_key: Option<String>,
    },
}

/// What to send.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// Where to.
    pub target: Target,
    /// The requests.
    pub arrivals: Vec<Arrival>,
    /// Most requests under way; without a limit, each is sent at its time.
    pub concurrency: Option<usize>,
    /// Factor the trace's lengths were multiplied by.
    pub scale: f64,
    /// Seeds the prompts.
    pub seed: u64,
    /// Highest token id of prompts sent to a URL, exclusive.
    pub vocab: usize,
}

/// Sends all requests and waits for their answers.
///
/// # Errors
/// If the model cannot be loaded, or the server cannot be reached at all. Requests that fail are counted.
pub fn run(config: &LoadConfig) -> Result<Report> {
    let (backend, limit) = Backend::new(config)?;
    let vocab = match &backend {
        Backend::Local(engine) => engine.config().vocab_size,
        Backend::Http(_) => config.vocab,
    };
    let (low, high) = ordinary(vocab);
    let progress = AtomicUsize::new(0);
    let samples = Mutex::new(Vec::new());
    let workers = config.concurrency.unwrap_or(MAX_THREADS).clamp(1, config.arrivals.len());
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let i = progress.fetch_add(1, Ordering::Relaxed);
                    let Some(arrival) = config.arrivals.get(i) else { return };
                    // What does not fit the model is cut.
                    let output = arrival.output.min(limit / 2).max(1);
                    let mut prompt = trace::prompt(arrival, config.scale, config.seed, i, low, high);
                    prompt.truncate((limit - output).max(1));
                    let wait = arrival.at.saturating_sub(begin.elapsed());
                    std::thread::sleep(wait);
                    let sample = backend.send(prompt, output, begin);
                    samples.lock().unwrap_or_else(|e| e.into_inner()).push(sample);
                }
            });
        }
    });
    let wall = begin.elapsed();
    let samples = samples.into_inner().unwrap_or_else(|e| e.into_inner());
    if samples.iter().all(|s| s.error.is_some())
        && let Some(error) = samples.iter().find_map(|s| s.error.as_ref())
    {
        bail!("every request failed, the first with: {error}");
    } else {
        Ok(Report::new(&samples, wall))
    }
}

enum Backend {
    Local(Engine),
    Http(Http),
}

struct Http {
    agent: ureq::Agent,
    url: String,
    model: Value,
    api_key: Option<String>,
}

impl Backend {
    /// Connects; also the longest prompt plus answer.
    fn new(config: &LoadConfig) -> Result<(Self, usize)> {
        match &config.target {
            Target::Local { model, engine } => {
                let engine = load_engine(model, engine, config.concurrency.unwrap_or(1), 2)?;
                let limit = engine.context_length();
                Ok((Self::Local(engine), limit))
            }
            Target::Url { url, model, api_key } => {
                let url = url.trim_end_matches('/');
                let url = if url.ends_with("/v1") { url.to_string() } else { format!("{url}/v1") };
                let agent: ureq::Agent = ureq::Agent::config_builder()
                    .http_status_as_error(false)
                    .max_idle_connections_per_host(256)
                    .timeout_per_read(Some(Duration::from_secs(600)))
                    .proxy(if url.contains("://127.") || url.contains("://localhost") {
                        None
                    } else {
                        ureq::Proxy::try_from_env()
                    })
                    .build()
                    .into();
                let http = Http { agent, url, model: Value::Null, api_key: api_key.clone() };
                let (http, limit) = http.connect(model.as_deref())?;
                Ok((Self::Http(http), limit))
            }
        }
    }

    fn send(&self, prompt: Vec<u32>, output: usize, begin: Instant) -> Sample {
        let mut sample = Sample { input: prompt.len(), begin: begin.elapsed(), ..Sample::default() };
        let sent = match self {
            Self::Local(engine) => send_local(engine, prompt, output, &mut sample, begin),
            Self::Http(http) => http.send(&prompt, output, &mut sample, begin),
        };
        sample.end = begin.elapsed();
        sample.error = sent.err().map(|e| format!("{e:#}"));
        sample
    }
}

fn send_local(
    engine: &Engine,
    prompt: Vec<u32>,
    output: usize,
    sample: &mut Sample,
    begin: Instant,
) -> Result<()> {
    for event in engine.submit(EngineRequest::new(prompt, exactly(output))) {
        match event {
            Event::Token { .. } => {
                sample.times.push(begin.elapsed());
                sample.output += 1;
            }
            Event::Done { .. } => return Ok(()),
            Event::Error(message) => bail!(message),
            Event::Expired => bail!("the deadline has passed"),
            Event::Ping | Event::Prefill { .. } => {}
        }
    }
    bail!("the engine has stopped")
}

impl Http {
    fn connect(mut self, model: Option<&str>) -> Result<(Self, usize)> {
        let mut request = self.agent.get(format!("{}/models", self.url));
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let hint = "hint: give the base URL of an OpenAI-compatible server, like http://127.0.0.1:8000/v1";
        let mut response =
            request.call().with_context(|| format!("{} cannot be reached\n{hint}", self.url))?;
        let list: Value = response.body_mut().read_json().unwrap_or_default();
        if !response.status().is_success() {
            bail!("{}/models answered {}: {}\n{hint}", self.url, response.status(), list["error"]["message"]);
        }
        let cards = list["data"].as_array().cloned().unwrap_or_default();
        let card = match model {
            Some(name) => {
                cards.iter().find(|c| c["id"] == name).cloned().unwrap_or_else(|| json!({ "id": name }))
            }
            None => {
                cards.first().cloned().with_context(|| format!("{} lists no models\n{hint}", self.url))?
            }
        };
        self.model = card["id"].clone();
        let limit = card["max_model_len"].as_u64().unwrap_or(4096) as usize;
        Ok((self, limit))
    }

    fn send(&self, prompt: &[u32], output: usize, sample: &mut Sample, begin: Instant) -> Result<()> {
        let body = json!({
            "model": self.model, "prompt": prompt, "max_tokens": output, "temperature": 0, "ignore_eos": true,
            "stream": true, "stream_options": { "include_usage": true },
        });
        let mut request =
            self.agent.post(format!("{}/completions", self.url)).content_type("application/json");
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.send(&serde_json::to_vec(&body)?[..])?;
        if !response.status().is_success() {
            let text = response.body_mut().read_to_string().unwrap_or_default();
            bail!("status {}: {text}", response.status());
        }
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line?;
            let Some(data) = line.strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                return Ok(());
            }
            let event: Value = serde_json::from_str(data).context("a chunk of the stream is malformed")?;
            if let Some(message) = event.pointer("/error/message") {
                bail!("{message}");
            }
            if event["choices"].get(0).is_some_and(|c| c["text"].as_str().is_some_and(|t| !t.is_empty())) {
                sample.times.push(begin.elapsed());
                sample.output = sample.output.max(sample.times.len());
            }
            if let Some(n) = event.pointer("/usage/completion_tokens").and_then(Value::as_u64) {
                sample.output = n as usize;
            }
        }
        bail!("the stream ended before the answer did")
    }
}
