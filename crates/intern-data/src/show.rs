//! `intern data show`: prints documents for people, from files, a run's directory or a
//! token shard.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use intern_format::document::{self, Document};
use intern_format::shards::{TokenShard, paths};
use intern_tokenizer::Tokenizer;
use serde_json::Value;

/// What to print.
#[derive(Clone, Debug)]
pub struct ShowConfig {
    /// A document file, a directory of them, the directory of a `data run`, or a token shard.
    pub path: PathBuf,
    /// At most so many documents.
    pub n: usize,
    /// Only the document with this id (of a shard: this number).
    pub id: Option<String>,
    /// A run's dropped documents instead of the kept ones.
    pub dropped: bool,
    /// The tokenizer of a shard.
    pub tokenizer: Option<PathBuf>,
}

/// The documents asked for.
///
/// # Errors
/// If the path holds none, or no document has the id.
pub fn find(config: &ShowConfig) -> Result<Vec<Document>> {
    let found = match shard_prefix(&config.path) {
        Some(prefix) => from_shard(&prefix, config)?,
        None => from_documents(config)?,
    };
    if let (true, Some(id)) = (found.is_empty(), &config.id) {
        let other = if config.dropped { "without --dropped" } else { "with --dropped" };
        bail!("{}: no document {id:?}\nhint: look among the others {other}", config.path.display());
    }
    Ok(found)
}

fn from_documents(config: &ShowConfig) -> Result<Vec<Document>> {
    let path = directory(&config.path, config.dropped)?;
    let mut found = Vec::new();
    for document in document::open(&path)? {
        let document = document?;
        if config.id.as_ref().is_none_or(|id| *id == document.id) {
            found.push(document);
        }
        if found.len() >= config.n || (config.id.is_some() && !found.is_empty()) {
            break;
        }
    }
    Ok(found)
}

/// `documents/` or `dropped/` of a run, or the path itself.
fn directory(path: &Path, dropped: bool) -> Result<PathBuf> {
    let name = if dropped { "dropped" } else { "documents" };
    if path.join(name).is_dir() {
        return Ok(path.join(name));
    }
    if dropped && !path.ends_with("dropped") {
        bail!(
            "{}: no dropped documents here\nhint: give the directory of an `intern data run`",
            path.display()
        );
    }
    Ok(path.to_path_buf())
}

/// The prefix of a shard named by prefix, `.bin` or `.idx`.
fn shard_prefix(path: &Path) -> Option<PathBuf> {
    let prefix = match path.extension().and_then(|e| e.to_str()) {
        Some("bin" | "idx") => path.with_extension(""),
        _ => path.to_path_buf(),
    };
    paths(&prefix).1.is_file().then_some(prefix)
}

fn from_shard(prefix: &Path, config: &ShowConfig) -> Result<Vec<Document>> {
    let shard = TokenShard::open(prefix)?;
    let tokenizer = config.tokenizer.as_deref().map(Tokenizer::from_path).transpose()?;
    let numbers = match &config.id {
        None => 0..config.n.min(shard.num_documents()),
        Some(id) => {
            let i: usize =
                id.parse().with_context(|| format!("--id {id}: documents of a shard are numbered from 0"))?;
            if i >= shard.num_documents() {
                bail!("--id {i}: the shard has documents 0–{}", shard.num_documents().saturating_sub(1));
            }
            i..i + 1
        }
    };
    numbers
        .map(|i| {
            let tokens = shard.document(i);
            let text = match &tokenizer {
                Some(t) => t.decode(&tokens, false)?,
                None => format!("{tokens:?}"),
            };
            let mut document = Document::new(i.to_string(), text);
            document.source = prefix.display().to_string();
            document.meta.insert("tokens".into(), Value::from(tokens.len()));
            Ok(document)
        })
        .collect()
}

/// A document for reading: what is known about it, then its text.
#[must_use]
pub fn pretty(document: &Document) -> String {
    let mut out = format!("── {}\n", printable(&document.id));
    let mut facts = Vec::new();
    for (name, value) in [("source", &document.source), ("url", &document.url), ("lang", &document.lang)] {
        if !value.is_empty() {
            facts.push(format!("{name} {}", printable(value)));
        }
    }
    facts.push(format!("{} characters", document.text.chars().count()));
    let _ = writeln!(out, "   {}", facts.join(" · "));
    for (key, value) in &document.meta {
        let value = value.as_str().map_or_else(|| value.to_string(), String::from);
        let _ = writeln!(out, "   {key}: {}", printable(&value));
    }
    out.push('\n');
    out.push_str(&printable(&document.text));
    out.push('\n');
    out
}

/// Without characters that would steer a terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_not_steered() {
        let mut d = Document::new("a", "x\u{1b}[31my\nz");
        d.meta.insert("rule".into(), Value::from("min_chars"));
        assert_eq!(pretty(&d), "── a\n   9 characters\n   rule: min_chars\n\nx[31my\nz\n");
    }
}
