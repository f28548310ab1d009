//! What a run will read, decided before it reads: shards in order, and the content
//! hashes that tell whether an earlier run saw the same input.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use intern_format::provenance;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::RecipeConfig;
use crate::source::Shard;
use crate::source::files::FileRef;

/// A planned run.
pub struct Plan {
    /// Shards, in order.
    pub shards: Vec<Shard>,
    /// What a reader of the report should know about the sources.
    pub notes: Vec<String>,
    /// Source (or gold file) → content hash.
    pub inputs: BTreeMap<String, String>,
    /// Page files, where their number is known beforehand.
    pub pages: Option<u64>,
}

/// What identifies a run: equal identities give equal outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Version of the program.
    pub version: String,
    /// The resolved configuration.
    pub config: Value,
    /// Content hashes of the inputs.
    pub inputs: BTreeMap<String, String>,
}

impl Identity {
    /// Of the run of `config` that `plan` describes.
    ///
    /// # Errors
    /// If the configuration cannot be written as JSON.
    pub fn of(config: &RecipeConfig, plan: &Plan) -> Result<Self> {
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").into(),
            config: serde_json::to_value(config)?,
            inputs: plan.inputs.clone(),
        })
    }
}

/// Lists and hashes the sources of `config`.
///
/// # Errors
/// If a source is missing, or there is nothing to read at all.
pub fn plan(config: &RecipeConfig) -> Result<Plan> {
    let mut plan = Plan { shards: Vec::new(), notes: Vec::new(), inputs: BTreeMap::new(), pages: Some(0) };
    for (source, settings) in config.source.iter().enumerate() {
        let (files, note) = settings.files()?;
        plan.notes.extend(note);
        plan.inputs.insert(format!("source {}", settings.label()), hash_files(&files)?);
        if settings.is_page_per_file() {
            plan.pages = plan.pages.map(|n| n + files.len() as u64);
            for files in files.chunks(config.output.shard_pages) {
                plan.shards.push(Shard { source, files: files.to_vec() });
            }
        } else {
            plan.pages = None;
            plan.shards.extend(files.into_iter().map(|f| Shard { source, files: vec![f] }));
        }
    }
    if plan.shards.is_empty() {
        let why = plan.notes.join(" ");
        bail!("there are no pages to read. {why}\nhint: add a [[source]] whose files are there");
    }
    for path in config.files() {
        plan.inputs.insert(path.display().to_string(), hash_file(path)?);
    }
    Ok(plan)
}

/// Hash of the files' names and contents, in their order.
fn hash_files(files: &[FileRef]) -> Result<String> {
    let hashes: Vec<String> = files.par_iter().map(|f| hash_file(&f.path)).collect::<Result<_>>()?;
    let mut hasher = blake3::Hasher::new();
    for (file, hash) in files.iter().zip(hashes) {
        hasher.update(format!("{}\0{hash}\n", file.name).as_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn hash_file(path: &Path) -> Result<String> {
    provenance::hash_path(path).with_context(|| format!("cannot read {}", path.display()))
}
