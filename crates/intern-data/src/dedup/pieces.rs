//! Lines or paragraphs that occurred anywhere in the corpus before: found by hash, out of
//! core, the first occurrence staying.
//!
//! Every piece's hash goes with its place to a bucket file chosen by the hash; a bucket is
//! sorted and all but the first place of each hash are written down. Memory holds one
//! bucket at a time. Documents are those that are left after whole copies are gone.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::hash::content;

/// `[dedup.lines]` and `[dedup.paragraphs]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PiecesConfig {
    /// Whether repeated pieces are taken out.
    pub enabled: bool,
    /// Pieces with fewer characters stay.
    pub min_chars: usize,
    /// Most characters taken out of a document, of all; documents that lose more are dropped.
    pub max_removed: f64,
}

impl Default for PiecesConfig {
    fn default() -> Self {
        Self { enabled: false, min_chars: 30, max_removed: 0.8 }
    }
}

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Between line ends.
    Line,
    /// Between blank lines.
    Paragraph,
}

impl Unit {
    /// Its stage's name in reasons and reports.
    #[must_use]
    pub fn stage(self) -> &'static str {
        match self {
            Self::Line => "same_lines",
            Self::Paragraph => "same_paragraphs",
        }
    }

    fn separator(self) -> &'static str {
        match self {
            Self::Line => "\n",
            Self::Paragraph => "\n\n",
        }
    }

    /// (index, hash) of the pieces of `text` with at least `min_chars` characters.
    pub fn pieces(self, text: &str, min_chars: usize) -> impl Iterator<Item = (u32, u64)> {
        (0..).zip(text.split(self.separator())).filter_map(move |(i, piece)| {
            let piece = piece.trim();
            let long = piece.len() >= min_chars && piece.chars().count() >= min_chars.max(1);
            long.then(|| (i, u64::from_le_bytes(content(piece)[..8].try_into().expect("8 bytes"))))
        })
    }

    /// `text` without the pieces of the given indices (sorted), and the characters taken out.
    #[must_use]
    pub fn without(self, text: &str, indices: &[u32]) -> (String, usize) {
        let mut removed = 0;
        let kept: Vec<&str> = (0..)
            .zip(text.split(self.separator()))
            .filter_map(|(i, piece)| {
                let gone = indices.binary_search(&i).is_ok();
                removed += if gone { piece.chars().count() } else { 0 };
                (!gone).then_some(piece)
            })
            .collect();
        (kept.join(self.separator()).trim_matches('\n').to_string(), removed)
    }
}

/// Bytes of a record in a bucket: hash, page, index.
const RECORD: usize = 16;

/// Collects the pieces of all documents.
pub struct Pieces {
    buckets: Vec<(PathBuf, BufWriter<File>)>,
}

impl Pieces {
    /// Starts bucket files in `dir` for about `bytes` bytes of text.
    ///
    /// # Errors
    /// If one cannot be created.
    pub fn create(dir: &Path, bytes: u64) -> Result<Self> {
        // Pieces have some sixty bytes; a bucket should sort in well under 100 MB.
        let buckets = (bytes / 60 * RECORD as u64 / (64 << 20) + 1).min(400);
        let buckets = (0..buckets)
            .map(|b| {
                let path = dir.join(format!("{b:03}.pieces"));
                let file =
                    File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
                Ok((path, BufWriter::with_capacity(1 << 16, file)))
            })
            .collect::<Result<_>>()?;
        Ok(Self { buckets })
    }

    /// Adds the piece number `index` of page `page`. Pages may come in any order.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn add(&mut self, hash: u64, page: u32, index: u32) -> Result<()> {
        let bucket = (hash % self.buckets.len() as u64) as usize;
        let (path, out) = &mut self.buckets[bucket];
        let mut record = [0u8; RECORD];
        record[..8].copy_from_slice(&hash.to_le_bytes());
        record[8..12].copy_from_slice(&page.to_le_bytes());
        record[12..].copy_from_slice(&index.to_le_bytes());
        out.write_all(&record).with_context(|| path.display().to_string())
    }

    /// (page, index) of every piece that is not the first of its kind, sorted.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn repeated(self) -> Result<Vec<(u32, u32)>> {
        let mut all = Vec::new();
        for (path, out) in self.buckets {
            out.into_inner().map_err(|e| e.into_error()).with_context(|| path.display().to_string())?;
            let mut bytes = Vec::new();
            BufReader::new(File::open(&path)?).read_to_end(&mut bytes)?;
            let number = |r: &[u8]| u32::from_le_bytes(r.try_into().expect("4 bytes"));
            let mut records: Vec<(u64, u32, u32)> = bytes
                .chunks_exact(RECORD)
                .map(|r| {
                    (
                        u64::from_le_bytes(r[..8].try_into().expect("8 bytes")),
                        number(&r[8..12]),
                        number(&r[12..]),
                    )
                })
                .collect();
            records.sort_unstable();
            for same in records.chunk_by(|a, b| a.0 == b.0) {
                all.extend(same[1..].iter().map(|r| (r.1, r.2)));
            }
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        all.sort_unstable();
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_pieces_go_and_the_first_stays() {
        let texts = ["a common line here\nown first", "own second\n\na common line here\nshort\nshort"];
        let dir = tempfile::tempdir().unwrap();
        let mut pieces = Pieces::create(dir.path(), 1 << 30).unwrap();
        for (page, text) in (0..).zip(texts) {
            for (index, hash) in Unit::Line.pieces(text, 8) {
                pieces.add(hash, page, index).unwrap();
            }
        }
        let repeated = pieces.repeated().unwrap();
        assert_eq!(repeated, [(1, 2)]);
        let (text, removed) = Unit::Line.without(texts[1], &[2]);
        assert_eq!((text.as_str(), removed), ("own second\n\nshort\nshort", 18));
        assert_eq!(Unit::Paragraph.without("a\n\nb\n\nc", &[1]).0, "a\n\nc");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
