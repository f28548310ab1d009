//! How well cleaning did, where the right answer is known: a gold file of texts that
//! extraction should give, compared word by word.
//!
//! Each line is `{"id" or "path": …, "text": …}`; `path` is relative to the gold file.
//! Optional fields: `kind` (groups of pages, e.g. `plain`, `near-duplicate`) and
//! `duplicate_of`, which the report uses to tell how each group fared.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use intern_format::records;
use serde::{Deserialize, Serialize};

use crate::words::Words;

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    path: Option<PathBuf>,
    text: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    duplicate_of: Option<String>,
}

/// What should come of one page.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The main text.
    pub text: String,
    /// Its group.
    pub kind: String,
    /// It copies another page.
    pub is_copy: bool,
}

/// A gold file.
#[derive(Debug, Default)]
pub struct Gold {
    by_id: HashMap<String, Expected>,
    by_path: HashMap<PathBuf, Expected>,
}

/// One page's score; words with their multiplicity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// Share of the extracted words that are in the gold text.
    pub precision: f64,
    /// Share of the gold text's words that were extracted.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f1: f64,
    /// The page's group.
    pub kind: String,
    /// It copies another page.
    pub is_copy: bool,
}

impl Gold {
    /// Reads a gold file.
    ///
    /// # Errors
    /// If it cannot be read, or a line has neither `id` nor `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let base = path.parent().unwrap_or(Path::new(""));
        let mut gold = Self::default();
        let lines =
            records::open(path).with_context(|| format!("cannot read the gold file {}", path.display()))?;
        for record in lines {
            let record = record?;
            let line: Line = record.parse(path)?;
            let expected =
                Expected { text: line.text, kind: line.kind, is_copy: line.duplicate_of.is_some() };
            match (line.id, line.path) {
                (Some(id), _) => drop(gold.by_id.insert(id, expected)),
                (None, Some(p)) => drop(gold.by_path.insert(tidy(&base.join(p)), expected)),
                (None, None) => {
                    bail!("{}: line {}: neither `id` nor `path`", path.display(), record.line);
                }
            }
        }
        Ok(gold)
    }

    /// What should come of the page with this id or in this file.
    #[must_use]
    pub fn find(&self, id: &str, path: &Path) -> Option<&Expected> {
        self.by_id.get(id).or_else(|| self.by_path.get(&tidy(path)))
    }

    /// Pages in the file.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_id.len() + self.by_path.len()
    }

    /// No pages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Expected {
    /// Compares an extracted text.
    #[must_use]
    pub fn score(&self, text: &str) -> Score {
        let mut counts: HashMap<&str, i64> = HashMap::new();
        let gold = Words::split(&self.text);
        for t in &gold.tokens {
            *counts.entry(t.of(&self.text)).or_default() += 1;
        }
        let got = Words::split(text);
        let mut hits = 0;
        for t in &got.tokens {
            if let Some(left) = counts.get_mut(t.of(text)).filter(|n| **n > 0) {
                *left -= 1;
                hits += 1;
            }
        }
        let ratio = |whole: usize| if whole == 0 { 1.0 } else { f64::from(hits) / whole as f64 };
        let (precision, recall) = (ratio(got.tokens.len()), ratio(gold.tokens.len()));
        let sum = precision + recall;
        let f1 = if sum == 0.0 { 0.0 } else { 2.0 * precision * recall / sum };
        Score { precision, recall, f1, kind: self.kind.clone(), is_copy: self.is_copy }
    }
}

/// The path without `.` and `..`, so that two ways of writing one place compare equal.
fn tidy(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if out.file_name().is_some() => drop(out.pop()),
            part => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_compared_with_multiplicity() {
        let gold = Expected { text: "a b b c".into(), kind: String::new(), is_copy: false };
        let s = gold.score("a b d");
        assert!((s.precision - 2.0 / 3.0).abs() < 1e-12 && (s.recall - 0.5).abs() < 1e-12, "{s:?}");
        assert_eq!(gold.score("c b a b").f1, 1.0);
        assert_eq!(gold.score("").f1, 0.0);
    }

    #[test]
    fn pages_are_found_by_path_or_id() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gold.jsonl");
        std::fs::write(&path, "{\"path\":\"pages/a.html\",\"text\":\"x\"}\n{\"id\":\"b\",\"text\":\"y\"}\n")
            .unwrap();
        let gold = Gold::open(&path).unwrap();
        assert_eq!(gold.find("?", &dir.path().join("./x/../pages/a.html")).unwrap().text, "x");
        assert_eq!(gold.find("b", Path::new("")).unwrap().text, "y");
        assert!(gold.find("c", Path::new("pages/c.html")).is_none());
    }
}
