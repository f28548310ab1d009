//! What a set of documents is about: how often each term occurs there, against how often
//! it does in general. The ground `seek` and `gap` stand on.
//!
//! A term is a word, or two Chinese characters in a row, hashed; numbers are one term.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::corpus;
use crate::hash::{HashedMap, combine, hash64};
use crate::words::{self, is_cjk};

/// Terms of `text` with their counts, and their number.
#[must_use]
pub fn count(text: &str) -> (HashedMap<u32>, u32) {
    let mut counts: HashedMap<u32> = HashedMap::default();
    let mut total = 0;
    let mut before: Option<u64> = None;
    words::normalized(text, |word| {
        let hash = match word.bytes().all(|b| b.is_ascii_digit()) {
            true => hash64(b"0"),
            false => hash64(word.as_bytes()),
        };
        let chinese = word.chars().next().is_some_and(is_cjk);
        let term = match (chinese, before) {
            // One character says little; the pair with its neighbour is nearly a word.
            (true, Some(left)) => combine(&[left, hash]),
            _ => hash,
        };
        before = chinese.then_some(hash);
        *counts.entry(term).or_default() += 1;
        total += 1;
    });
    (counts, total)
}

/// Counts over a set of documents.
#[derive(Debug, Default)]
pub struct Terms {
    /// Term → (documents with it, occurrences).
    pub counts: HashedMap<(u32, u64)>,
    /// Documents.
    pub documents: u64,
    /// Terms in all of them.
    pub total: u64,
}

impl Terms {
    /// Adds a document.
    pub fn add(&mut self, terms: &HashedMap<u32>, total: u32) {
        for (term, n) in terms {
            let entry = self.counts.entry(*term).or_default();
            entry.0 += 1;
            entry.1 += u64::from(*n);
        }
        self.documents += 1;
        self.total += u64::from(total);
    }

    /// Counts the documents of `paths`.
    ///
    /// # Errors
    /// If they cannot be read or there are none.
    pub fn of(paths: &[PathBuf]) -> Result<Self> {
        let mut all = Self::default();
        for file in corpus::files(paths)? {
            for document in corpus::read(&file)? {
                let (terms, total) = count(&document?.text);
                all.add(&terms, total);
            }
        }
        if all.total == 0 {
            let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
            bail!("{}: no words to learn from\nhint: give documents with a text", names.join(", "));
        }
        Ok(all)
    }

    /// The weight of each term that speaks for this set rather than for `general`: the log of
    /// the ratio of its rates (naive Bayes), smoothed so that rare terms weigh little.
    #[must_use]
    pub fn against(&self, general: &Terms) -> HashedMap<f32> {
        let mut weights: HashedMap<f32> = HashedMap::default();
        // As if every term had been seen so often at its general rate.
        const PRIOR: f64 = 4.0;
        let vocabulary = general.counts.len().max(1) as f64;
        for term in self.counts.keys().chain(general.counts.keys()) {
            if weights.contains_key(term) {
                continue;
            }
            let here = self.counts.get(term).map_or(0, |c| c.1) as f64;
            let there = general.counts.get(term).map_or(0, |c| c.1) as f64;
            let rate = (there + 0.5) / (general.total as f64 + 0.5 * vocabulary);
            let own = (here + PRIOR * rate * self.total as f64 / (self.total as f64 + 1.0) + PRIOR * rate)
                / (self.total as f64 + 2.0 * PRIOR);
            weights.insert(*term, (own.max(1e-12) / rate).ln().clamp(-3.0, 6.0) as f32);
        }
        weights
    }
}

/// Mean weight of a document's terms.
#[must_use]
pub fn score(terms: &HashedMap<u32>, weights: &HashedMap<f32>) -> f64 {
    // Repeating a word makes no document more relevant in proportion. Summed in order of the
    // terms, so that the result does not depend on the map.
    let mut list: Vec<(u64, u32)> = terms.iter().map(|(t, n)| (*t, *n)).collect();
    list.sort_unstable();
    let (mut sum, mut all) = (0.0, 0.0);
    for (term, n) in list {
        let n = 1.0 + f64::from(n).ln();
        sum += n * f64::from(weights.get(&term).copied().unwrap_or(0.0));
        all += n;
    }
    // Few words prove little.
    sum / (all + 20.0)
}

/// Reads the documents of `paths` in order.
///
/// # Errors
/// If they cannot be read, or whatever `each` fails with.
pub fn each_document(
    paths: &[PathBuf],
    mut each: impl FnMut(&Path, intern_format::document::Document) -> Result<()>,
) -> Result<()> {
    for file in corpus::files(paths)? {
        for document in corpus::read(&file)? {
            each(&file, document?)?;
        }
    }
    Ok(())
}
