//! `provenance.json`: what made a directory, from which bytes.
//!
//! Written last by every long command, so its presence marks completion; `intern run`
//! compares it to decide whether a step is up to date.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::atomic::{TEMP_PREFIX, read_json, write_json};
use crate::{Error, Result};

const NAME: &str = "provenance.json";

/// The record beside every output.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The subcommand, e.g. `data run`.
    pub command: String,
    /// Version of the program.
    pub version: String,
    /// The resolved configuration.
    pub config: Value,
    /// Path as given → content hash.
    #[serde(default)]
    pub inputs: BTreeMap<String, String>,
    /// Path relative to the output directory → content hash.
    #[serde(default)]
    pub outputs: BTreeMap<String, String>,
    /// What was counted: documents, tokens, steps, ….
    #[serde(default)]
    pub counts: BTreeMap<String, Value>,
}

/// Where the record of an output is: in a directory, or beside a file (`model.gguf.provenance.json`).
#[must_use]
pub fn location(out: &Path) -> PathBuf {
    if out.is_file() {
        let mut name = out.as_os_str().to_os_string();
        name.push(".");
        name.push(NAME);
        return PathBuf::from(name);
    }
    out.join(NAME)
}

/// Writes the record of a directory or file that exists.
pub fn write(out: &Path, provenance: &Provenance) -> Result<()> {
    write_json(&location(out), provenance)
}

/// Reads the record of a directory or file; `None` when it was never completed.
pub fn read(out: &Path) -> Result<Option<Provenance>> {
    let path = location(out);
    match fs::metadata(&path) {
        Ok(_) => read_json(&path).map(Some),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(e) => Err(Error::io(path, e)),
    }
}

/// Removes the record, so that an output about to be rewritten does not look complete.
pub fn clear(out: &Path) -> Result<()> {
    let path = location(out);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

/// Content hash, 64 hex digits: BLAKE3 of a file's bytes, or of a directory's sorted list of
/// relative names and hashes.
///
/// Skipped in directories: provenance records, metrics, TensorBoard events, logs and
/// temporary files, none of which change what the directory means.
pub fn hash_path(path: &Path) -> Result<String> {
    let metadata = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !metadata.is_dir() {
        return hash_file(path);
    }
    let mut files = Vec::new();
    walk(path, String::new(), &mut files)?;
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for (name, file) in files {
        hasher.update(name.as_bytes());
        hasher.update(b"\0");
        hasher.update(hash_file(&file)?.as_bytes());
        hasher.update(b"\n");
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn walk(dir: &Path, prefix: String, files: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let entry = entry.map_err(|e| Error::io(dir, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_incidental(&name) {
            continue;
        }
        let path = entry.path();
        let name = format!("{prefix}{name}");
        // Follows links: what they point to is what a reader sees.
        if fs::metadata(&path).map_err(|e| Error::io(&path, e))?.is_dir() {
            walk(&path, format!("{name}/"), files)?;
        } else {
            files.push((name, path));
        }
    }
    Ok(())
}

fn is_incidental(name: &str) -> bool {
    name == NAME
        || name.ends_with(".provenance.json")
        || name == "metrics.jsonl"
        || name.contains(".tfevents.")
        || name == "tensorboard"
        || name == "logs"
        || name.ends_with(".log")
        || name.starts_with(TEMP_PREFIX)
}

fn hash_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 17];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finalize().to_hex().to_string()),
            Ok(n) => {
                hasher.update(&buffer[..n]);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io(path, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_round_trips_for_directories_and_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("model.gguf");
        fs::write(&file, "x").unwrap();
        let record = Provenance {
            command: "serve quantize".into(),
            version: "0.0.0".into(),
            config: serde_json::json!({"quant": "q8_0"}),
            inputs: [("model".to_string(), hash_path(&file).unwrap())].into(),
            ..Provenance::default()
        };
        for out in [dir.path(), &file] {
            assert_eq!(read(out).unwrap(), None);
            write(out, &record).unwrap();
            assert_eq!(read(out).unwrap(), Some(record.clone()));
            clear(out).unwrap();
            clear(out).unwrap();
            assert_eq!(read(out).unwrap(), None);
        }
        assert_eq!(read(&dir.path().join("nowhere")).unwrap(), None);
    }

    #[test]
    fn hash_sees_names_and_bytes_but_not_logs() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/one"), "1").unwrap();
        let hash = || hash_path(root).unwrap();
        let before = hash();
        fs::write(root.join("provenance.json"), "{}").unwrap();
        fs::write(root.join("a/metrics.jsonl"), "{}").unwrap();
        fs::write(root.join("events.out.tfevents.0.intern"), "{}").unwrap();
        fs::write(root.join(".tmp-x"), "{}").unwrap();
        fs::create_dir_all(root.join("logs")).unwrap();
        fs::write(root.join("logs/x"), "{}").unwrap();
        assert_eq!(hash(), before);
        fs::write(root.join("a/b/one"), "2").unwrap();
        let changed = hash();
        assert_ne!(changed, before);
        fs::rename(root.join("a/b/one"), root.join("a/b/two")).unwrap();
        assert_ne!(hash(), changed);
        // BLAKE3 of the empty input, from its specification.
        fs::write(root.join("empty"), "").unwrap();
        assert_eq!(
            hash_path(&root.join("empty")).unwrap(),
            "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
        );
    }
}
