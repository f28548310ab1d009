//! Inputs at other machines: `https://…` files, and what lies under `s3://BUCKET/PREFIX`.
//!
//! What is read is fetched once into the cache, with the state the server names it by (its ETag);
//! another state is fetched anew. So a killed run goes on with what it has, and reads the same bytes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use intern_progress::Progress;
use serde::{Deserialize, Serialize};

use crate::download::{Client, Unreachable, first_line};
use crate::listing::{Checksum, RemoteFile};

/// A file that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Its name below the address.
    pub name: String,
    /// Where it is now.
    pub path: PathBuf,
}

/// What is known of a file before it is fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Bytes.
    pub size: u64,
    /// ETag or date of change; empty if the server tells none.
    pub version: String,
}

/// Whether `address` is at another machine.
#[must_use]
pub fn is_remote(address: &str) -> bool {
    ["http://", "https://", "s3://"].iter().any(|scheme| address.starts_with(scheme))
}

/// Where fetched files are kept: `INTERN_CACHE`, or `intern` in the user's cache directory.
///
/// # Errors
/// If the environment names no such place.
pub fn cache_dir() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let cache = variable("INTERN_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")? + "/intern"))
        .or_else(|| Some(variable("HOME")? + "/.cache/intern"));
    cache
        .map(PathBuf::from)
        .context("there is no place for fetched files\nhint: set INTERN_CACHE to a directory")
}

/// Fetches into `cache` what `address` names as far as it is not there. `fits` chooses among the names
/// below an `s3://` prefix; an `https://` address is one file.
///
/// # Errors
/// If the address is wrong, the server cannot be reached or denies it, or the disk refuses.
pub fn fetch_inputs(address: &str, cache: &Path, fits: impl Fn(&str) -> bool) -> Result<Vec<Input>> {
    if let Some(rest) = address.strip_prefix("s3://") {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        return s3::fetch(bucket, prefix, &cache.join("s3").join(bucket), &fits);
    }
    // A query names another file, but is no part of the name.
    let path = address.split(['?', '#']).next().unwrap_or(address);
    let name = path.rsplit('/').next().filter(|n| !n.is_empty() && path.matches('/').count() > 2);
    let name =
        name.with_context(|| format!("{address} names no file\nhint: a source is a file at a web server"))?;
    let scheme = if address.starts_with("https") { "https" } else { "http" };
    let directory = blake3::hash(address.as_bytes()).to_hex()[..16].to_string();
    let target = cache.join(scheme).join(directory).join(name);
    let client = Client::new("", None);
    let state = match client.state(address) {
        Err(error) if error.is::<Unreachable>() && target.is_file() => {
            tracing::warn!("{}; reading what was fetched before", first_line(&error));
            return Ok(vec![Input { name: name.into(), path: target }]);
        }
        state => state?,
    };
    if !is_here(&target, &state) {
        begin(&target, &state)?;
        let file = RemoteFile { path: name.into(), size: state.size, checksum: Checksum::Unknown };
        let progress = Progress::new(name, state.size, "B");
        client.fetch(address, &file, &target, &progress)?;
        progress.finish();
    }
    Ok(vec![Input { name: name.into(), path: target }])
}

fn state_file(target: &Path) -> PathBuf {
    target.with_added_extension("state.json")
}

/// Whether the whole file is there in this state.
fn is_here(target: &Path, state: &State) -> bool {
    fs::metadata(target).is_ok_and(|m| m.len() == state.size) && is_of(target, state)
}

fn is_of(target: &Path, state: &State) -> bool {
    intern_format::atomic::read_json::<State>(&state_file(target)).is_ok_and(|s| s == *state)
}

/// Removes what is there of another state.
fn begin(target: &Path, state: &State) -> Result<()> {
    if is_of(target, state) {
        return Ok(());
    }
    for old in [target.to_path_buf(), target.with_added_extension("part")] {
        match fs::remove_file(&old) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", old.display()));
            }
            _ => {}
        }
    }
    Ok(intern_format::atomic::write_json(&state_file(target), state)?)
}

#[cfg(not(feature = "s3"))]
mod s3 {
    use super::{Input, Path, Result, bail};

    pub fn fetch(bucket: &str, prefix: &str, _: &Path, _: &dyn Fn(&str) -> bool) -> Result<Vec<Input>> {
        bail!(
            "s3://{bucket}/{prefix}: this program was built without S3\n\
             hint: build it with --features s3, or copy the files here first"
        );
    }
}

#[cfg(feature = "s3")]
mod s3 {
    //! Through `object_store`, with the `AWS_*` variables of the environment.

    use std::io::Write;

    use futures_util::TryStreamExt;
    use object_store::aws::AmazonS3Builder;
    use object_store::path::Path as Key;
    use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

    use super::{Context, Input, Path, Progress, Result, State, bail, begin, fs, is_here};

    pub fn fetch(
        bucket: &str,
        prefix: &str,
        cache: &Path,
        fits: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<Input>> {
        let address = format!("s3://{bucket}/{prefix}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
        let has = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        // Public buckets need no key; without this the builder would ask the machine's own service for one.
        let keys =
            ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"];
        if !keys.into_iter().any(has) {
            builder = builder.with_skip_signature(true);
        }
        // The TLS that ureq uses too; an error says that it is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store = builder.build().with_context(|| address.clone())?;
        runtime.block_on(async {
            let hint = "the bucket cannot be read\nhint: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY open what is \
                        private, AWS_REGION says where it is, AWS_ENDPOINT_URL names another service";
            // A prefix that is a file itself, or else all below it.
            let key = Key::parse(prefix).with_context(|| address.clone())?;
            let mut found: Vec<ObjectMeta> = match store.head(&key).await {
                Ok(one) if !prefix.is_empty() => vec![one],
                _ => store.list(Some(&key)).try_collect().await.with_context(|| format!("{address}: {hint}"))?,
            };
            found.sort_by(|a, b| a.location.cmp(&b.location));
            let mut inputs = Vec::new();
            for object in found {
                let whole = object.location.as_ref();
                let below = whole.strip_prefix(key.as_ref()).unwrap_or(whole).trim_start_matches('/');
                let name = if below.is_empty() { whole.rsplit('/').next().unwrap_or(whole) } else { below };
                if !below.is_empty() && !fits(name) {
                    continue;
                }
                let target = cache.join(whole);
                get(&store, &object, &target).await.with_context(|| format!("s3://{bucket}/{whole}"))?;
                inputs.push(Input { name: name.to_string(), path: target });
            }
            if inputs.is_empty() {
                bail!("{address}: no fitting files\nhint: check the prefix and the source's kind");
            }
            Ok(inputs)
        })
    }

    async fn get(store: &impl ObjectStore, object: &ObjectMeta, target: &Path) -> Result<()> {
        let version = object.e_tag.clone().unwrap_or_else(|| object.last_modified.to_rfc3339());
        let state = State { size: object.size, version };
        if is_here(target, &state) {
            return Ok(());
        }
        begin(target, &state)?;
        let part = target.with_added_extension("part");
        let mut have = fs::metadata(&part).map_or(0, |m| m.len());
        if have > object.size {
            have = 0;
        }
        let mut out = fs::OpenOptions::new().create(true).append(true).open(&part)?;
        out.set_len(have)?;
        let progress = Progress::new(object.location.filename().unwrap_or("object"), object.size, "B");
        progress.inc(have);
        // `object_store` tries broken requests again; these are pieces small enough to be whole.
        const PIECE: u64 = 16 << 20;
        while have < object.size {
            let piece = store.get_range(&object.location, have..object.size.min(have + PIECE)).await?;
            out.write_all(&piece).context("hint: is the disk full?")?;
            have += piece.len() as u64;
            progress.inc(piece.len() as u64);
        }
        out.sync_all()?;
        progress.finish();
        Ok(fs::rename(&part, target)?)
    }
}
