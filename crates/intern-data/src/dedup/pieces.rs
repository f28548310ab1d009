//! Parts of documents that occurred anywhere in the corpus before: lines, paragraphs, runs of
//! sentences (as C4 does, Raffel et al., 2020) and runs of characters (what a suffix array of
//! the corpus finds; Lee et al., 2022). Out of core; the first occurrence stays.
//!
//! Every piece's hash goes with its place to a bucket file chosen by the hash; a bucket is
//! sorted, and all but the first place of each hash are told. Memory holds one bucket at a
//! time. Of characters there are as many pieces as there are characters, so only those are
//! written whose hash a table of two-bit counters has seen twice.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::hash::{combine, content};
use crate::words::sentences;
use crate::words::simplify::simplify;

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

/// `[dedup.sentences]` of a recipe: runs of sentences that another document has, as C4 takes
/// them out. Case, punctuation and numbers are set aside.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SentencesConfig {
    /// Whether repeated runs are taken out.
    pub enabled: bool,
    /// Sentences in a run.
    pub run: usize,
    /// Most characters taken out of a document, of all; documents that lose more are dropped.
    pub max_removed: f64,
}

impl Default for SentencesConfig {
    fn default() -> Self {
        Self { enabled: false, run: 3, max_removed: 0.8 }
    }
}

/// `[dedup.substrings]` of a recipe: runs of characters that occurred before.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SubstringsConfig {
    /// Whether repeated runs are taken out.
    pub enabled: bool,
    /// Characters in the shortest run that counts.
    pub min_chars: usize,
    /// Most characters taken out of a document, of all; documents that lose more are dropped.
    pub max_removed: f64,
    /// Memory for the counters that tell rare runs from others, MB. Four characters of the
    /// corpus per byte keep the bucket files small; fewer only make them larger. Beside it,
    /// a bit per character is held.
    pub memory_mb: usize,
}

impl Default for SubstringsConfig {
    fn default() -> Self {
        Self { enabled: false, min_chars: 200, max_removed: 0.8, memory_mb: 256 }
    }
}

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Between line ends.
    Line,
    /// Between blank lines.
    Paragraph,
    /// So many sentences; a piece begins at each.
    Sentences(usize),
    /// So many characters; a piece begins at each.
    Characters(usize),
}

impl Unit {
    /// Units of text that a piece covers; an index counts these.
    #[must_use]
    pub fn width(self) -> u32 {
        match self {
            Self::Line | Self::Paragraph => 1,
            Self::Sentences(n) | Self::Characters(n) => n.max(1) as u32,
        }
    }

    fn separator(self) -> &'static str {
        if self == Self::Paragraph { "\n\n" } else { "\n" }
    }

    /// Calls `each` with (index, hash) of the pieces of `text` with at least `min_chars` characters.
    ///
    /// # Errors
    /// Whatever `each` fails with.
    pub fn pieces(
        self,
        text: &str,
        min_chars: usize,
        mut each: impl FnMut(u32, u64) -> Result<()>,
    ) -> Result<()> {
        let hash = |piece: &str| u64::from_le_bytes(content(piece)[..8].try_into().expect("8 bytes"));
        match self {
            Self::Line | Self::Paragraph => {
                for (i, piece) in (0..).zip(text.split(self.separator())) {
                    let piece = piece.trim();
                    if piece.len() >= min_chars && piece.chars().count() >= min_chars.max(1) {
                        each(i, hash(piece))?;
                    }
                }
                Ok(())
            }
            Self::Sentences(n) => {
                let hashes: Vec<u64> = sentences(text).iter().map(|s| hash(&simplify(s))).collect();
                (0..).zip(hashes.windows(n.max(1))).try_for_each(|(i, run)| each(i, combine(run)))
            }
            Self::Characters(n) => windows(text, n.max(1), each),
        }
    }

    /// `text` without the pieces of the given indices (sorted), and the characters taken out.
    #[must_use]
    pub fn without(self, text: &str, indices: &[u32]) -> (String, usize) {
        // Units covered: each index and those its piece goes on to.
        let mut next = 0;
        let mut gone = move |unit: u32| {
            while next < indices.len() && indices[next] + self.width() <= unit {
                next += 1;
            }
            next < indices.len() && indices[next] <= unit
        };
        let mut removed = 0;
        let mut left = |unit: u32, piece: &str| {
            let stays = !gone(unit);
            removed += if stays { 0 } else { piece.chars().count() };
            stays
        };
        let text = match self {
            Self::Line | Self::Paragraph => {
                let pieces = (0..).zip(text.split(self.separator()));
                let kept: Vec<&str> = pieces.filter(|(i, piece)| left(*i, piece)).map(|p| p.1).collect();
                kept.join(self.separator())
            }
            Self::Sentences(_) => {
                (0..).zip(sentences(text)).filter(|(i, piece)| left(*i, piece)).map(|p| p.1).collect()
            }
            Self::Characters(_) => {
                let chars = (0..).zip(text.chars());
                chars.filter(|(i, c)| left(*i, c.encode_utf8(&mut [0; 4]))).map(|p| p.1).collect()
            }
        };
        (text.trim_matches('\n').to_string(), removed)
    }
}

/// Hashes of the runs of `n` characters: a polynomial modulo 2^61 − 1, rolled on (Karp and
/// Rabin, 1987). Two different runs of a billion share one with a chance of one in five.
fn windows(text: &str, n: usize, mut each: impl FnMut(u32, u64) -> Result<()>) -> Result<()> {
    const PRIME: u64 = (1 << 61) - 1;
    const BASE: u64 = 0x1d8a_2f5b_9c3e_6a17;
    let times = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        let folded = (product as u64 & PRIME) + (product >> 61) as u64;
        if folded >= PRIME { folded - PRIME } else { folded }
    };
    let leaving = (0..n).fold(1, |power, _| times(power, BASE));
    let mut behind = text.chars();
    let mut hash = 0;
    for (i, c) in text.chars().enumerate() {
        hash = (times(hash, BASE) + u64::from(c) + 1) % PRIME;
        if i >= n {
            let old = u64::from(behind.next().expect("n characters behind")) + 1;
            hash = (hash + PRIME - times(old, leaving)) % PRIME;
        }
        if i + 1 >= n {
            each((i + 1 - n) as u32, combine(&[hash]))?;
        }
    }
    Ok(())
}

/// Which hashes may have come twice: two-bit counters, shared by hashes that fall together.
pub struct Twice(Vec<u64>);

impl Twice {
    /// Counters in so many bytes of memory.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self(vec![0; (bytes / 8).max(1)])
    }

    fn place(&self, hash: u64) -> (usize, u32) {
        let counter = ((u128::from(hash) * (self.0.len() as u128 * 32)) >> 64) as usize;
        (counter / 32, (counter % 32 * 2) as u32)
    }

    /// Counts a hash.
    pub fn count(&mut self, hash: u64) {
        let (word, shift) = self.place(hash);
        let seen = self.0[word] >> shift & 1;
        self.0[word] |= (1 + seen) << shift;
    }

    /// Whether it may have been counted twice.
    #[must_use]
    pub fn is(&self, hash: u64) -> bool {
        let (word, shift) = self.place(hash);
        self.0[word] >> shift & 2 == 2
    }
}

/// Bytes of a record in a bucket: hash, page, index.
const RECORD: usize = 16;

/// Collects the pieces of all documents.
pub struct Pieces {
    buckets: Vec<(PathBuf, BufWriter<File>)>,
    width: u32,
}

impl Pieces {
    /// Starts bucket files in `dir` for about so many pieces of a unit.
    ///
    /// # Errors
    /// If one cannot be created.
    pub fn create(dir: &Path, unit: Unit, pieces: u64) -> Result<Self> {
        // A bucket should sort in well under 100 MB.
        let buckets = (pieces * RECORD as u64 / (64 << 20) + 1).min(400);
        let buckets = (0..buckets)
            .map(|b| {
                let path = dir.join(format!("{b:03}.pieces"));
                let file =
                    File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
                Ok((path, BufWriter::with_capacity(1 << 16, file)))
            })
            .collect::<Result<_>>()?;
        Ok(Self { buckets, width: unit.width() })
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

    /// Calls `each` with (page, index) of every piece that is not the first of its kind, in no
    /// useful order. What overlaps the first is part of it.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn repeated(self, mut each: impl FnMut(u32, u32)) -> Result<()> {
        for (path, out) in self.buckets {
            out.into_inner().map_err(|e| e.into_error()).with_context(|| path.display().to_string())?;
            let mut bytes = Vec::new();
            BufReader::new(File::open(&path)?).read_to_end(&mut bytes)?;
            let number = |r: &[u8]| u32::from_le_bytes(r.try_into().expect("4 bytes"));
            let hash = |r: &[u8]| u64::from_le_bytes(r.try_into().expect("8 bytes"));
            let mut records: Vec<(u64, u32, u32)> = bytes
                .chunks_exact(RECORD)
                .map(|r| (hash(&r[..8]), number(&r[8..12]), number(&r[12..])))
                .collect();
            records.sort_unstable();
            for same in records.chunk_by(|a, b| a.0 == b.0) {
                let (_, page, index) = same[0];
                let apart = same[1..].iter().filter(|r| r.1 != page || r.2 >= index + self.width);
                apart.for_each(|r| each(r.1, r.2));
            }
            std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Texts without what came before.
    fn left(unit: Unit, min_chars: usize, texts: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let mut pieces = Pieces::create(dir.path(), unit, 1 << 24).unwrap();
        for (page, text) in (0..).zip(texts) {
            unit.pieces(text, min_chars, |index, hash| pieces.add(hash, page, index)).unwrap();
        }
        let mut repeated = Vec::new();
        pieces.repeated(|page, index| repeated.push((page, index))).unwrap();
        repeated.sort_unstable();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let of = |page: u32| repeated.iter().filter(|r| r.0 == page).map(|r| r.1).collect::<Vec<_>>();
        (0..).zip(texts).map(|(page, text)| unit.without(text, &of(page)).0).collect()
    }

    #[test]
    fn later_pieces_go_and_the_first_stays() {
        let texts = ["a common line here\nown first", "own second\n\na common line here\nshort\nshort"];
        assert_eq!(left(Unit::Line, 8, &texts), [texts[0], "own second\n\nshort\nshort"]);
        assert_eq!(Unit::Line.without(texts[1], &[2]).1, 18);
        assert_eq!(Unit::Paragraph.without("a\n\nb\n\nc", &[1]).0, "a\n\nc");
    }

    #[test]
    fn three_sentences_go_together() {
        let texts = [
            "One is here. Two follows it. Three ends. Four is new.",
            "Before it all. ONE is here! Two follows it. Three ends. After it all.",
            "One is here. Two follows it. Something else. Three ends.",
            "你好。今天很好。我们走吧。再见。",
            "他说：今天很好。你好。今天很好。我们走吧。",
        ];
        let got = left(Unit::Sentences(3), 0, &texts);
        assert_eq!(got[1], "Before it all. After it all.");
        assert_eq!(got[4], "他说：今天很好。");
        assert_eq!((got[0].as_str(), got[2].as_str(), got[3].as_str()), (texts[0], texts[2], texts[3]));
    }

    #[test]
    fn counters_forget_nothing_that_came_twice() {
        let mut twice = Twice::new(1 << 12);
        let hash = |i: u64| combine(&[i]);
        (0..4000).for_each(|i| twice.count(hash(i)));
        (0..2000).for_each(|i| twice.count(hash(i)));
        assert!((0..2000).all(|i| twice.is(hash(i))));
        assert!((2000..4000).filter(|i| twice.is(hash(*i))).count() < 1000);
    }

    /// Every character of a run of `n` that stands somewhere before, by comparing all.
    fn slow(texts: &[&str], n: usize) -> Vec<String> {
        let all: Vec<Vec<char>> = texts.iter().map(|t| t.chars().collect()).collect();
        let runs = |t: usize| all[t].len().saturating_sub(n - 1);
        (0..all.len())
            .map(|t| {
                let mut gone = vec![false; all[t].len()];
                for i in 0..runs(t) {
                    let first = (0..=t)
                        .flat_map(|u| (0..runs(u)).map(move |j| (u, j)))
                        .find(|&(u, j)| all[u][j..j + n] == all[t][i..i + n]);
                    if first.is_some_and(|(u, j)| u != t || i >= j + n) {
                        gone[i..i + n].iter_mut().for_each(|g| *g = true);
                    }
                }
                all[t].iter().zip(gone).filter(|(_, gone)| !gone).map(|(c, _)| *c).collect()
            })
            .collect()
    }

    proptest! {
        #[test]
        fn substrings_are_those_of_all_pairs(texts in proptest::collection::vec("[ab书]{0,24}", 1..5)) {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            for n in [1, 3, 5] {
                prop_assert_eq!(left(Unit::Characters(n), 0, &texts), slow(&texts, n));
            }
        }
    }
}
