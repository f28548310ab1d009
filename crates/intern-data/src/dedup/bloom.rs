//! What mostly consists of word n-grams seen before, by a Bloom filter (Bloom, 1970), as
//! dolma and DCLM's BFF do: fixed memory for any corpus, one pass, approximate.
//!
//! Documents pass in order. A piece (a paragraph or the whole document) of whose n-grams a
//! share is in the filter goes; the n-grams of the others are added to it.

use serde::{Deserialize, Serialize};

use crate::hash::{combine, hash64};
use crate::words;

/// `[dedup.ngrams]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NgramsConfig {
    /// Whether pieces of known n-grams are taken out.
    pub enabled: bool,
    /// What is judged as one, and goes as one.
    pub unit: Scope,
    /// Words in an n-gram; a piece with fewer is one n-gram.
    pub ngram: usize,
    /// Share of known n-grams from which a piece goes, 0–1.
    pub threshold: f64,
    /// Share of new n-grams that the filter may take for known ones.
    pub false_positives: f64,
    /// Most memory for the filter, MB. A corpus that needs more gets more false positives.
    pub memory_mb: u64,
    /// Most characters taken out of a document, of all; documents that lose more are dropped.
    pub max_removed: f64,
}

impl Default for NgramsConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            unit: Scope::Paragraph,
            ngram: 13,
            threshold: 0.8,
            false_positives: 0.01,
            memory_mb: 1024,
            max_removed: 0.8,
        }
    }
}

/// What is judged as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Paragraphs.
    #[default]
    Paragraph,
    /// Whole documents.
    Document,
}

/// The filter and how it is asked.
pub struct Ngrams {
    ngram: usize,
    threshold: f64,
    bits: Vec<u64>,
    functions: u32,
}

impl Ngrams {
    /// An empty filter for about so many n-grams.
    #[must_use]
    pub fn new(config: &NgramsConfig, expected: u64) -> Self {
        let ln2 = std::f64::consts::LN_2;
        let expected = expected.max(1) as f64;
        let wanted = -expected * config.false_positives.clamp(1e-9, 0.5).ln() / (ln2 * ln2);
        let words = ((wanted / 64.0).ceil() as u64).clamp(16, (config.memory_mb << 20) / 8);
        let functions = (words as f64 * 64.0 / expected * ln2).round().clamp(1.0, 16.0) as u32;
        Self {
            ngram: config.ngram.max(1),
            threshold: config.threshold,
            bits: vec![0; words as usize],
            functions,
        }
    }

    /// Hashes of a piece's n-grams, for `is_known`. Any thread may make them.
    #[must_use]
    pub fn of(&self, text: &str) -> Vec<u64> {
        let mut words = Vec::new();
        words::normalized(text, |word| words.push(hash64(word.as_bytes())));
        if words.is_empty() {
            return words;
        }
        words.windows(self.ngram.min(words.len())).map(combine).collect()
    }

    /// Whether a piece with these n-grams consists of known ones; if not, they are from now on.
    /// A piece without words is new and stays so.
    pub fn is_known(&mut self, grams: &[u64]) -> bool {
        let known = grams.iter().filter(|g| self.places(**g).all(|(word, bit)| self.bits[word] & bit > 0));
        if !grams.is_empty() && known.count() as f64 >= self.threshold * grams.len() as f64 {
            return true;
        }
        for gram in grams {
            for (word, bit) in self.places(*gram) {
                self.bits[word] |= bit;
            }
        }
        false
    }

    /// Words and bits of an n-gram (double hashing; Kirsch and Mitzenmacher, 2006).
    fn places(&self, gram: u64) -> impl Iterator<Item = (usize, u64)> + use<> {
        let size = self.bits.len() as u128 * 64;
        let step = combine(&[gram]) | 1;
        (0..self.functions).map(move |i| {
            let hash = gram.wrapping_add(step.wrapping_mul(u64::from(i)));
            let bit = ((u128::from(hash) * size) >> 64) as usize;
            (bit / 64, 1 << (bit % 64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(from: usize, n: usize) -> String {
        (from..from + n).map(|i| format!("w{i} ")).collect()
    }

    #[test]
    fn what_is_mostly_known_is_found() {
        let config = NgramsConfig { ngram: 5, ..NgramsConfig::default() };
        let mut filter = Ngrams::new(&config, 10_000);
        let mut judge = |text: &str| {
            let grams = filter.of(text);
            filter.is_known(&grams)
        };
        assert!(!judge(&text(0, 100)));
        assert!(judge(&text(0, 100)) && judge(&text(10, 50)));
        // 46 of its 96 n-grams are known.
        assert!(!judge(&text(50, 100)));
        assert!(!judge("too short") && judge("Too short!") && !judge("..."));
    }

    #[test]
    fn false_positives_stay_in_their_bound() {
        let mut filter = Ngrams::new(&NgramsConfig { ngram: 1, ..NgramsConfig::default() }, 50_000);
        for i in 0..50_000 {
            filter.is_known(&[combine(&[i])]);
        }
        let wrong = (50_000..60_000).filter(|i| filter.is_known(&[combine(&[*i])])).count();
        assert!(wrong < 200, "{wrong} of 10,000");
    }
}
