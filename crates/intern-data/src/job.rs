//! A long job that writes one directory: done already, to be gone on with, or to be begun.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use intern_format::atomic::{TEMP_PREFIX, read_json, write_json};
use intern_format::provenance::{self, Provenance};
use serde::Serialize;
use serde_json::Value;

/// What a finished job counted.
pub type Counts = BTreeMap<String, Value>;

/// A job with its output directory.
pub struct Job {
    record: Provenance,
    out: PathBuf,
    work: PathBuf,
}

impl Job {
    /// `command` with this configuration over inputs of these hashes, into the directory `out`.
    ///
    /// # Errors
    /// If the configuration has no JSON.
    pub fn new(
        out: &Path,
        command: &str,
        config: &impl Serialize,
        inputs: BTreeMap<String, String>,
    ) -> Result<Self> {
        let record = Provenance {
            command: command.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            config: serde_json::to_value(config)?,
            inputs,
            ..Provenance::default()
        };
        Ok(Self { record, out: out.into(), work: out.join(format!("{TEMP_PREFIX}work")) })
    }

    /// What the job counted if it has ended already.
    ///
    /// # Errors
    /// If the record cannot be read, or what a kill at the very end left cannot be removed.
    pub fn finished(&self) -> Result<Option<Counts>> {
        if !self.out.is_dir() {
            return Ok(None);
        }
        let Some(done) = provenance::read(&self.out)?.filter(|p| self.is_same(p)) else { return Ok(None) };
        remove(&self.work)?;
        Ok(Some(done.counts))
    }

    /// The directory for what lets a killed job go on: as it was left by such a job, or empty, with
    /// `outputs` (names below the output directory) and the old record removed.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn prepare(&self, outputs: &[&str]) -> Result<&Path> {
        let identity = self.work.join("identity.json");
        if identity.is_file() && read_json::<Provenance>(&identity).is_ok_and(|p| self.is_same(&p)) {
            return Ok(&self.work);
        }
        fs::create_dir_all(&self.out).with_context(|| format!("cannot create {}", self.out.display()))?;
        provenance::clear(&self.out)?;
        remove(&self.work)?;
        for name in outputs {
            remove(&self.out.join(name))?;
        }
        write_json(&identity, &self.record)?;
        Ok(&self.work)
    }

    /// Records the outputs and what was counted, and removes the work.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn finish(mut self, outputs: &[&str], counts: &impl Serialize) -> Result<()> {
        if let Value::Object(map) = serde_json::to_value(counts)? {
            self.record.counts = map.into_iter().collect();
        }
        for name in outputs {
            let path = self.out.join(name);
            if path.exists() {
                self.record.outputs.insert((*name).to_string(), provenance::hash_path(&path)?);
            }
        }
        provenance::write(&self.out, &self.record)?;
        remove(&self.work)
    }

    fn is_same(&self, other: &Provenance) -> bool {
        let key = |p: &Provenance| (p.command.clone(), p.version.clone(), p.config.clone(), p.inputs.clone());
        key(&self.record) == key(other)
    }
}

/// Removes a file or a directory with all it holds; nothing where there is none.
///
/// # Errors
/// If the disk refuses.
pub fn remove(path: &Path) -> Result<()> {
    let done = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match done {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
