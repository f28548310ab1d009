//! Reading a corpus: the files behind a list of documents, and their identity.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use intern_format::document::{self, Document};
use intern_format::provenance::{self, Provenance};
use serde::Serialize;
use serde_json::Value;

/// The document files that `paths` (files or directories) stand for, in order.
///
/// # Errors
/// If a path is missing or a directory holds no documents.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    if paths.is_empty() {
        bail!("no documents given\nhint: set documents = [\"…/documents\"]");
    }
    let mut all = Vec::new();
    for path in paths {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let mut found = document::files(path)?;
        // A finished `data run` keeps its documents one level down.
        if found.is_empty() && path.join("documents").is_dir() {
            found = document::files(&path.join("documents"))?;
        }
        if found.is_empty() {
            bail!(
                "{}: there are no documents\nhint: the corpus is empty; report.html of `intern data run` tells why \
                 documents were dropped",
                path.display()
            );
        }
        all.append(&mut found);
    }
    Ok(all)
}

/// Path as given → content hash.
///
/// # Errors
/// If one cannot be read.
pub fn hashes<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Result<BTreeMap<String, String>> {
    paths.map(|p| Ok((p.display().to_string(), provenance::hash_path(p)?))).collect()
}

/// Writes what a finished command made in `out`: `output`, a file or directory there.
///
/// # Errors
/// If the output cannot be read or the record not written.
pub fn record<'a>(
    out: &Path,
    command: &str,
    config: &impl Serialize,
    inputs: BTreeMap<String, String>,
    output: &str,
    counts: impl IntoIterator<Item = (&'a str, Value)>,
) -> Result<()> {
    let record = Provenance {
        command: command.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        config: serde_json::to_value(config)?,
        inputs,
        outputs: [(output.to_string(), provenance::hash_path(&out.join(output))?)].into(),
        counts: counts.into_iter().map(|(name, n)| (name.to_string(), n)).collect(),
    };
    Ok(provenance::write(out, &record)?)
}

/// The documents of one file.
///
/// # Errors
/// If it cannot be opened; items fail where it is damaged.
pub fn read(path: &Path) -> Result<impl Iterator<Item = Result<Document>> + use<>> {
    let documents =
        document::open(path).with_context(|| format!("cannot read documents from {}", path.display()))?;
    Ok(documents.map(|d| Ok(d?)))
}
