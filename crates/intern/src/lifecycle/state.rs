//! `run.json`: which steps have finished, under which key, with which content.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use intern_format::{atomic, provenance};
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Default, Serialize, Deserialize)]
struct Record {
    /// Key under which the step was last begun.
    started: String,
    /// Key under which it last finished.
    finished: Option<String>,
    /// Hash of what it wrote.
    content: String,
    /// Names, sizes and times of what it wrote: cheap to compare.
    fingerprint: String,
    /// What its command reported.
    summary: Value,
    /// How long it took, over all attempts of the last one.
    seconds: f64,
}

/// The state of a recipe's output directory.
pub struct State {
    path: PathBuf,
    steps: BTreeMap<String, Record>,
}

impl State {
    /// Reads the state, or starts an empty one.
    pub fn load(out: &Path) -> Result<Self> {
        let path = out.join("run.json");
        let steps = if path.exists() { atomic::read_json(&path)? } else { BTreeMap::new() };
        Ok(Self { path, steps })
    }

    /// Whether the step finished under `key` and its output is as it was left.
    pub fn is_fresh(&mut self, name: &str, key: &str, dir: &Path) -> Result<bool> {
        let Some(record) = self.steps.get_mut(name) else { return Ok(false) };
        if record.finished.as_deref() != Some(key) || !dir.exists() {
            return Ok(false);
        }
        let fingerprint = fingerprint(dir)?;
        if record.fingerprint == fingerprint {
            return Ok(true);
        }
        // Touched but perhaps not changed: compare the content itself.
        if provenance::hash_path(dir)? != record.content {
            record.finished = None;
            record.started.clear();
            return Ok(false);
        }
        record.fingerprint = fingerprint;
        Ok(true)
    }

    /// Whether the step was begun under `key`, so that its command can continue.
    pub fn was_started(&self, name: &str, key: &str) -> bool {
        self.steps.get(name).is_some_and(|r| r.started == key)
    }

    /// Hash of what the finished step wrote.
    pub fn content(&self, name: &str, dir: &Path) -> Result<String> {
        match self.steps.get(name) {
            Some(record) if record.finished.is_some() => Ok(record.content.clone()),
            _ => bail!("{} is not finished", dir.display()),
        }
    }

    /// What the step's command reported.
    pub fn summary(&self, name: &str) -> Value {
        self.steps.get(name).map(|r| r.summary.clone()).unwrap_or_default()
    }

    /// How long the step took.
    pub fn seconds(&self, name: &str) -> Option<f64> {
        self.steps.get(name).map(|r| r.seconds)
    }

    /// Notes that the step begins (or continues) under `key`.
    pub fn start(&mut self, name: &str, key: &str) -> Result<()> {
        let record = self.steps.entry(name.to_string()).or_default();
        record.started = key.to_string();
        record.finished = None;
        self.save()
    }

    /// Notes that the step has finished and what it left in `dir`.
    pub fn finish(&mut self, name: &str, key: &str, dir: &Path, summary: Value, seconds: f64) -> Result<()> {
        let record = Record {
            started: key.to_string(),
            finished: Some(key.to_string()),
            content: provenance::hash_path(dir)?,
            fingerprint: fingerprint(dir)?,
            summary,
            seconds,
        };
        self.steps.insert(name.to_string(), record);
        self.save()
    }

    fn save(&self) -> Result<()> {
        Ok(atomic::write_json(&self.path, &self.steps)?)
    }
}

/// Hash of the names, sizes and modification times of all files under `dir`.
fn fingerprint(dir: &Path) -> Result<String> {
    let mut lines = Vec::new();
    collect(dir, dir, &mut lines)?;
    lines.sort();
    Ok(blake3::hash(lines.join("\n").as_bytes()).to_hex().to_string())
}

fn collect(root: &Path, dir: &Path, lines: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let meta = entry.metadata()?;
        let path = entry.path();
        if meta.is_dir() {
            collect(root, &path, lines)?;
        } else {
            let time = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            let name = path.strip_prefix(root).unwrap_or(&path);
            lines.push(format!("{} {} {time}", name.display(), meta.len()));
        }
    }
    Ok(())
}

/// Keeps two runs out of one directory. Released by the system when the process ends,
/// however it ends.
pub struct Lock {
    _file: std::fs::File,
}

impl Lock {
    /// Takes the lock of `out`.
    pub fn take(out: &Path) -> Result<Self> {
        let path = out.join(".lock");
        let file =
            std::fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        if file.try_lock().is_err() {
            bail!(
                "another `intern run` is writing to {}\nhint: wait for it, or choose another directory with --out",
                out.display()
            );
        }
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_output_is_noticed_and_a_touched_one_is_not() {
        let out = tempfile::tempdir().unwrap();
        let dir = out.path().join("a");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("x"), "1").unwrap();
        let mut state = State::load(out.path()).unwrap();
        state.start("a", "k").unwrap();
        assert!(!state.is_fresh("a", "k", &dir).unwrap());
        state.finish("a", "k", &dir, Value::Null, 0.0).unwrap();

        let mut state = State::load(out.path()).unwrap();
        assert!(state.is_fresh("a", "k", &dir).unwrap());
        assert!(!state.is_fresh("a", "other", &dir).unwrap());
        std::fs::write(dir.join("x"), "1").unwrap();
        assert!(state.is_fresh("a", "k", &dir).unwrap());
        std::fs::write(dir.join("x"), "2").unwrap();
        assert!(!state.is_fresh("a", "k", &dir).unwrap());
        assert!(!state.was_started("a", "k"), "a damaged output must not be continued");
    }

    #[test]
    fn two_runs_exclude_each_other() {
        let out = tempfile::tempdir().unwrap();
        let lock = Lock::take(out.path()).unwrap();
        assert!(Lock::take(out.path()).is_err());
        drop(lock);
        assert!(Lock::take(out.path()).is_ok());
    }
}
