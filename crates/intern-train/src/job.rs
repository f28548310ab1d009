//! When a run is finished, when it goes on, and when it starts over.
//!
//! A run's *fingerprint* hashes its settings and the content of its inputs. `provenance.json`,
//! written last, marks a finished run; saved states of the same fingerprint are continued;
//! anything else in the output directory is of another run and makes way.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use intern_format::provenance::{self, Provenance};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::state;

/// Settings that change what is kept and seen, but no weight.
const INCIDENTAL: [&str; 10] = [
    "eval_every",
    "save_every",
    "keep_last",
    "keep_every",
    "save_async",
    "micro_batch",
    "recompute",
    "parallel",
    "peak_flops",
    "samples",
];
/// What a run writes, apart from its metrics.
const OUTPUTS: [&str; 6] =
    ["checkpoint", "checkpoint-ema", "adapter", "trainer", "diverged", "samples.jsonl"];

/// One training command with its output directory.
pub struct Job {
    out: PathBuf,
    record: Provenance,
    fingerprint: String,
}

impl Job {
    /// Describes the run of `command` with `config`, which reads `inputs` (files or directories).
    pub fn new<C: Serialize>(command: &str, config: &C, inputs: &[PathBuf], out: &Path) -> Result<Self> {
        let mut hashes = BTreeMap::new();
        for input in inputs {
            not_inside(input, out)?;
            hashes.insert(input.display().to_string(), provenance::hash_path(input)?);
        }
        let record = Provenance {
            command: command.to_string(),
            version: env!("CARGO_PKG_VERSION").to_string(),
            config: serde_json::to_value(config)?,
            inputs: hashes,
            ..Provenance::default()
        };
        Ok(Self { out: out.to_path_buf(), fingerprint: fingerprint(&record), record })
    }

    /// The output directory.
    #[must_use]
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Where saved states lie.
    #[must_use]
    pub fn trainer(&self) -> PathBuf {
        self.out.join("trainer")
    }

    /// Hash of settings and inputs.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The summary of this very run, if it is finished.
    pub fn finished<S: DeserializeOwned>(&self) -> Result<Option<S>> {
        let Some(record) = provenance::read(&self.out)? else { return Ok(None) };
        if record.counts.get("fingerprint").and_then(Value::as_str) != Some(&self.fingerprint) {
            return Ok(None);
        }
        let summary = record.counts.get("summary").cloned();
        Ok(summary.and_then(|s| serde_json::from_value(s).ok()))
    }

    /// Whether a saved state of this very run is there.
    pub fn can_continue(&self) -> Result<bool> {
        Ok(state::newest(&self.trainer(), &self.fingerprint)?.is_some())
    }

    /// [`Job::finished`]; if it is not, prepares the output directory: what belongs to another
    /// run is removed.
    pub fn begin<S: DeserializeOwned>(&self) -> Result<Option<S>> {
        if let Some(summary) = self.finished()? {
            return Ok(Some(summary));
        }
        self.must_be_ours()?;
        provenance::clear(&self.out)?;
        let trainer = self.trainer();
        if !self.can_continue()? {
            if !state::list(&trainer)?.is_empty() {
                tracing::warn!(
                    "{} holds a run with other settings or data; starting over",
                    self.out.display()
                );
            }
            for name in OUTPUTS {
                let path = self.out.join(name);
                if path.exists() {
                    state::discard(&path)?;
                }
            }
            self.clear_metrics()?;
        }
        fs::create_dir_all(&self.out).with_context(|| format!("creating {}", self.out.display()))?;
        Ok(None)
    }

    /// Refuses to clear away what another command wrote.
    fn must_be_ours(&self) -> Result<()> {
        let found = match provenance::read(&self.out)? {
            Some(record) if record.command == self.record.command => return Ok(()),
            Some(record) => format!("the output of `intern {}`", record.command),
            None if self.trainer().exists() => return Ok(()),
            None => match OUTPUTS.iter().find(|name| self.out.join(name).exists()) {
                Some(name) => format!("a directory {name}/ that no run here wrote"),
                None => return Ok(()),
            },
        };
        bail!("{} holds {found}\nhint: choose another output directory", self.out.display())
    }

    fn clear_metrics(&self) -> Result<()> {
        let Ok(entries) = fs::read_dir(&self.out) else { return Ok(()) };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name == "metrics.jsonl" || name.starts_with("events.out.tfevents") {
                fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Marks the run finished, with the hashes of `outputs` (names in the output directory).
    pub fn finish<S: Serialize>(&self, outputs: &[&str], summary: &S) -> Result<()> {
        let mut record = self.record.clone();
        for name in outputs {
            record.outputs.insert((*name).to_string(), provenance::hash_path(&self.out.join(name))?);
        }
        record.counts.insert("fingerprint".into(), self.fingerprint.clone().into());
        record.counts.insert("summary".into(), serde_json::to_value(summary)?);
        Ok(provenance::write(&self.out, &record)?)
    }
}

/// Refuses an input that starting over would remove.
fn not_inside(input: &Path, out: &Path) -> Result<()> {
    let (Ok(input_path), Ok(out_path)) = (input.canonicalize(), out.canonicalize()) else { return Ok(()) };
    if OUTPUTS.iter().any(|name| input_path.starts_with(out_path.join(name))) {
        bail!(
            "{} is read by this run and lies in its output directory {}\nhint: choose another output directory",
            input.display(),
            out.display()
        );
    }
    Ok(())
}

fn fingerprint(record: &Provenance) -> String {
    let mut config = record.config.clone();
    if let Value::Object(map) = &mut config {
        for key in INCIDENTAL {
            map.remove(key);
        }
    }
    let all = serde_json::json!({"command": record.command, "config": config, "inputs": record.inputs});
    blake3::hash(all.to_string().as_bytes()).to_hex().to_string()
}
