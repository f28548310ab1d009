//! Gets one file: goes on where an earlier attempt stopped, and checks it before it gets its name.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use intern_progress::Progress;
use ring::digest;
use serde::de::DeserializeOwned;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use crate::listing::{Checksum, RemoteFile};
use crate::remote::State;

/// Attempts in a row that bring nothing, before a file is given up.
const ATTEMPTS: u32 = 5;
/// Longest listing.
const MAX_LISTING: u64 = 64 << 20;

/// The hub cannot be reached: an older state may do.
#[derive(Debug)]
pub(crate) struct Unreachable(String);

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\nhint: check the connection; for a hub, HF_ENDPOINT names a mirror", self.0)
    }
}

impl std::error::Error for Unreachable {}

/// What went wrong, without the advice.
pub(crate) fn first_line(error: &anyhow::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// One hub.
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    /// The value of the `Authorization` header.
    token: Option<String>,
    /// Before the second attempt in a row; then twice as long each time.
    pause: Duration,
}

impl Client {
    pub fn new(endpoint: &str, token: Option<String>) -> Self {
        // The token stays with the hub: redirects to its storage do not carry it.
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .user_agent("intern")
            .build()
            .into();
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Self { agent, endpoint, token, pause: Duration::from_millis(250) }
    }

    fn get(&self, path: &str, from: u64) -> Result<Response<Body>> {
        let url = format!("{}{path}", self.endpoint);
        let mut request = self.agent.get(&url);
        if let Some(token) = &self.token {
            request = request.header("authorization", token);
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let response = request.call().map_err(|e| Unreachable(format!("{url}: {e}")))?;
        let status = response.status();
        match status {
            _ if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => bail!(
                "{url} answered {status}\nhint: it does not exist, is private, or its licence must be accepted on the \
                 hub's page first; set HF_TOKEN (MODELSCOPE_API_TOKEN, OPENXLAB_TOKEN) to a token that may read it"
            ),
            StatusCode::NOT_FOUND => {
                bail!("{url} answered {status}\nhint: check the name and the revision")
            }
            _ if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Err(Unreachable(format!("{url} answered {status}")).into())
            }
            _ => bail!("{url} answered {status}"),
        }
    }

    /// Size and state of the file at `url`, by its header alone.
    pub fn state(&self, url: &str) -> Result<State> {
        let response = self.agent.head(url).call().map_err(|e| Unreachable(format!("{url}: {e}")))?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Unreachable(format!("{url} answered {status}")).into());
        }
        ensure!(status.is_success(), "{url} answered {status}\nhint: check the address");
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        let size = header("content-length").and_then(|v| v.parse().ok());
        let size = size
            .with_context(|| format!("{url}: the server does not tell the size\nhint: fetch it yourself"))?;
        let version = header("etag").or_else(|| header("last-modified")).unwrap_or_default();
        Ok(State { size, version: version.into() })
    }

    /// `GET path` as JSON.
    pub fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let response = self.get(path, 0)?;
        let text = response.into_body().into_with_config().limit(MAX_LISTING).read_to_vec();
        let text = text.map_err(|e| Unreachable(format!("{}{path}: {e}", self.endpoint)))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{}{path}: the answer is not what a hub says", self.endpoint))
    }

    /// Writes `file` to `path`, through a file beside it that outlives a broken connection.
    pub fn fetch(&self, url: &str, file: &RemoteFile, path: &Path, progress: &Progress) -> Result<()> {
        let part = path.with_added_extension("part");
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        }
        let here = || fs::metadata(&part).map_or(0, |m| m.len());
        if here() > file.size {
            fs::remove_file(&part).with_context(|| part.display().to_string())?;
        }
        progress.inc(here());
        let (mut failures, mut fetched) = (0, here());
        while fetched < file.size || !part.exists() {
            let result = self.append(url, file, &part, fetched, progress);
            let now = here();
            failures = if now > fetched { 0 } else { failures + 1 };
            fetched = now;
            match result {
                Err(error) if failures >= ATTEMPTS || !error.is::<Unreachable>() => return Err(error),
                Err(error) => {
                    tracing::warn!("{}; trying again from byte {fetched}", first_line(&error));
                    std::thread::sleep(self.pause * 2u32.pow(failures));
                }
                Ok(()) if failures >= ATTEMPTS => bail!("{url} ended at byte {fetched} of {}", file.size),
                Ok(()) => {}
            }
        }
        if let Err(error) = check(&part, file) {
            let _ = fs::remove_file(&part); // the next attempt begins anew
            return Err(error);
        }
        fs::rename(&part, path).with_context(|| path.display().to_string())
    }

    /// One request for the rest of a file; what arrives stays.
    fn append(
        &self,
        url: &str,
        file: &RemoteFile,
        part: &Path,
        from: u64,
        progress: &Progress,
    ) -> Result<()> {
        let response = self.get(url, from)?;
        let is_rest = response.status() == StatusCode::PARTIAL_CONTENT;
        let mut out = OpenOptions::new()
            .create(true)
            .write(true)
            .append(is_rest)
            .truncate(!is_rest)
            .open(part)
            .with_context(|| part.display().to_string())?;
        // A hub that knows no ranges sends all of it again.
        let mut left = if is_rest { file.size - from } else { file.size };
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut buffer = vec![0; 1 << 20];
        while left > 0 {
            let n = body.read(&mut buffer).map_err(|e| Unreachable(format!("{url}: {e}")))?;
            if n == 0 {
                return Err(Unreachable(format!("{url} broke off")).into());
            }
            let n = n.min(usize::try_from(left).unwrap_or(n));
            out.write_all(&buffer[..n])
                .with_context(|| format!("writing {}\nhint: is the disk full?", part.display()))?;
            left -= n as u64;
            progress.inc(n as u64);
        }
        out.sync_all().with_context(|| part.display().to_string())
    }
}

/// Compares size and checksum.
fn check(path: &Path, file: &RemoteFile) -> Result<()> {
    let (algorithm, expected) = match &file.checksum {
        Checksum::Sha256(sum) => (&digest::SHA256, sum),
        Checksum::GitBlob(sum) => (&digest::SHA1_FOR_LEGACY_USE_ONLY, sum),
        Checksum::Unknown => {
            let size = fs::metadata(path).with_context(|| path.display().to_string())?.len();
            ensure!(size == file.size, "{}: {size} bytes, expected {}", file.path, file.size);
            return Ok(());
        }
    };
    let mut context = digest::Context::new(algorithm);
    if matches!(file.checksum, Checksum::GitBlob(_)) {
        context.update(format!("blob {}\0", file.size).as_bytes());
    }
    let mut reader = File::open(path).with_context(|| path.display().to_string())?;
    let (mut buffer, mut size) = (vec![0; 1 << 20], 0);
    loop {
        let n = reader.read(&mut buffer).with_context(|| path.display().to_string())?;
        if n == 0 {
            break;
        }
        size += n as u64;
        context.update(&buffer[..n]);
    }
    let found: String = context.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect();
    ensure!(
        size == file.size && found == *expected,
        anyhow!(
            "{}: {size} bytes with checksum {found}, expected {} with {expected}\n\
             hint: fetch it again; a proxy may have changed it",
            file.path,
            file.size
        )
    );
    Ok(())
}
