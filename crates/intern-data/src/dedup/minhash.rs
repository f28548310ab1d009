//! Near duplicates by MinHash and banding (Broder, 1997; Leskovec et al., "Mining of
//! Massive Datasets", ch. 3), with every candidate pair verified by its Jaccard similarity.
//!
//! A document is its set of word n-grams; a Chinese or Japanese character is a word, so
//! there these are character n-grams. Hash functions are datatrove's, and with
//! `normalize = "fineweb"` so are the n-grams, so that signatures are equal. Documents that
//! share all rows of any band are candidates; candidates whose sets are similar enough are
//! joined, and of each cluster one document stays. One band at a time is in memory; the
//! sets themselves are loaded from disk when compared.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash64;

use super::minima::{self, PRIME};
use super::numpy::RandomState;
use super::{Keep, Rank, UnionFind};
use crate::hash::{combine, hash64};
use crate::words::simplify::simplify;
use crate::words::{self, Splitter};

/// Buckets with more documents compare each with one document per cluster only.
const LARGE_BUCKET: usize = 2000;

/// `[dedup.minhash]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MinhashConfig {
    /// Whether near duplicates are dropped.
    pub enabled: bool,
    /// Words per shingle.
    pub ngram: usize,
    /// Bands; documents equal in one are candidates.
    pub bands: usize,
    /// Hash functions per band.
    pub rows: usize,
    /// Least Jaccard similarity of two duplicates, 0–1.
    pub threshold: f64,
    /// Whether candidates are compared; `false` joins all documents that share a band, as
    /// datatrove does.
    pub verify: bool,
    /// How text is made alike before it is compared.
    pub normalize: Normalize,
    /// Which copy stays.
    pub keep: Keep,
    /// Takes all numbers for the same word, as FineWeb does. Off by default: exercises and
    /// tables differ in nothing but their numbers.
    pub ignore_numbers: bool,
    /// Seeds the hash functions.
    pub seed: u64,
}

impl Default for MinhashConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            ngram: 5,
            bands: 14,
            rows: 8,
            threshold: 0.7,
            verify: true,
            normalize: Normalize::Words,
            keep: Keep::First,
            ignore_numbers: false,
            seed: 1,
        }
    }
}

/// How text is made alike before it is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Normalize {
    /// Words of letters and digits in lower case; a Chinese or Japanese character is a word.
    #[default]
    Words,
    /// As datatrove does: without numbers, punctuation and diacritics, and words by language.
    Fineweb,
}

/// What is kept of a document to find its near duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signature {
    /// One hash per band; empty for a document without words, which has no duplicates.
    pub bands: Vec<u64>,
    /// The set of shingles, as sorted 32-bit hashes.
    pub shingles: Vec<u32>,
}

/// The hash functions of a configuration.
pub struct MinHasher {
    config: MinhashConfig,
    splitter: Splitter,
    /// (multiplier, offset) per function.
    functions: Vec<(u64, u64)>,
}

impl MinHasher {
    /// Draws the functions from the seed.
    #[must_use]
    pub fn new(config: &MinhashConfig) -> Self {
        let mut rng = RandomState::new(config.seed as u32);
        let n = config.bands * config.rows;
        let multipliers: Vec<u64> = (0..n).map(|_| rng.randint(1, PRIME)).collect();
        let functions = multipliers.into_iter().map(|a| (a, rng.randint(0, PRIME))).collect();
        Self { config: config.clone(), splitter: Splitter::Language, functions }
    }

    /// The same with words found another way, where text is normalized as FineWeb does.
    #[must_use]
    pub fn with_splitter(mut self, splitter: Splitter) -> Self {
        self.splitter = splitter;
        self
    }

    /// Signs a text.
    #[must_use]
    pub fn sign(&self, text: &str) -> Signature {
        let shingles = self.shingles(text);
        let mut row = Vec::with_capacity(self.config.rows);
        let bands = self
            .minima(&shingles)
            .chunks(self.config.rows)
            .map(|band| {
                row.clear();
                row.extend_from_slice(band);
                combine(&row)
            })
            .collect();
        let mut set: Vec<u32> = shingles.iter().map(|h| (h >> 32) as u32).collect();
        set.sort_unstable();
        set.dedup();
        Signature { bands, shingles: set }
    }

    /// The least value of every function over the text's shingles; empty for no shingles.
    #[must_use]
    pub fn rows(&self, text: &str) -> Vec<u64> {
        self.minima(&self.shingles(text))
    }

    fn minima(&self, shingles: &[u64]) -> Vec<u64> {
        if shingles.is_empty() {
            return Vec::new();
        }
        minima::minima(&self.functions, shingles)
    }

    /// Hashes of the text's distinct shingles.
    fn shingles(&self, text: &str) -> Vec<u64> {
        let mut shingles = match self.config.normalize {
            Normalize::Words => self.word_shingles(text),
            Normalize::Fineweb => self.fineweb_shingles(text),
        };
        shingles.sort_unstable();
        shingles.dedup();
        shingles
    }

    fn word_shingles(&self, text: &str) -> Vec<u64> {
        let mut hashes = Vec::new();
        words::normalized(text, |word| {
            let number = self.config.ignore_numbers && word.chars().all(char::is_numeric);
            hashes.push(hash64(if number { b"0" } else { word.as_bytes() }));
        });
        if hashes.is_empty() {
            return hashes;
        }
        // A text shorter than a shingle is one shingle.
        let n = self.config.ngram.clamp(1, hashes.len());
        hashes.windows(n).map(combine).collect()
    }

    /// Texts shorter than a shingle have none, and so no duplicates.
    fn fineweb_shingles(&self, text: &str) -> Vec<u64> {
        let text = simplify(text);
        let words = words::spans(self.splitter, &text);
        let mut shingle = String::new();
        let n = self.config.ngram.max(1);
        let mut hashes = Vec::with_capacity(words.len());
        for gram in words.windows(n) {
            // Mostly the words stand in the text as in the shingle, a space between each two.
            let (from, to) = (gram[0].0 as usize, gram[n - 1].1 as usize);
            let bytes: usize = gram.iter().map(|w| (w.1 - w.0) as usize).sum();
            let apart = gram.windows(2).all(|w| w[0].1 < w[1].0);
            hashes.push(if apart && to - from == bytes + n - 1 {
                XxHash64::oneshot(0, &text.as_bytes()[from..to])
            } else {
                shingle.clear();
                for (i, word) in gram.iter().enumerate() {
                    if i > 0 {
                        shingle.push(' ');
                    }
                    shingle.push_str(&text[word.0 as usize..word.1 as usize]);
                }
                XxHash64::oneshot(0, shingle.as_bytes())
            });
        }
        hashes
    }
}

/// Similarity of two sorted sets, 0–1; two empty sets are not similar.
#[must_use]
pub fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0usize);
    while i < a.len() && j < b.len() {
        let (x, y) = (a[i], b[j]);
        both += usize::from(x == y);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    let all = a.len() + b.len() - both;
    if all == 0 { 0.0 } else { both as f64 / all as f64 }
}

/// The clusters found, and how.
#[derive(Clone, Debug, Default)]
pub struct Clusters {
    /// For each document the one kept in its place; itself for those kept.
    pub kept: Vec<u32>,
    /// Pairs compared.
    pub compared: u64,
    /// Pairs found similar enough.
    pub similar: u64,
}

/// Clusters `n` documents. `band` fills (hash of the band, document) for the documents that
/// have a signature, `rank` decides which copy stays, `load` reads a document's shingles.
///
/// # Errors
/// Whatever `band` or `load` fail with.
pub fn cluster(
    config: &MinhashConfig,
    n: usize,
    mut band: impl FnMut(usize, &mut Vec<(u64, u32)>) -> Result<()>,
    rank: impl Fn(usize) -> Rank,
    mut load: impl FnMut(usize) -> Result<Vec<u32>>,
) -> Result<Clusters> {
    let mut sets = UnionFind::new(n);
    let mut out = Clusters::default();
    let mut order: Vec<(u64, u32)> = Vec::new();
    for index in 0..config.bands {
        order.clear();
        band(index, &mut order)?;
        order.sort_unstable();
        for bucket in order.chunk_by(|a, b| a.0 == b.0).filter(|b| b.len() > 1) {
            if config.verify {
                let members: Vec<usize> = bucket.iter().map(|&(_, i)| i as usize).collect();
                join_bucket(config, &members, &mut sets, &mut out, &mut load)?;
            } else {
                for pair in bucket.windows(2) {
                    sets.union(pair[0].1 as usize, pair[1].1 as usize);
                }
            }
        }
    }
    out.kept = choose(config.keep, rank, &mut sets, n);
    Ok(out)
}

fn join_bucket(
    config: &MinhashConfig,
    members: &[usize],
    sets: &mut UnionFind,
    out: &mut Clusters,
    load: &mut impl FnMut(usize) -> Result<Vec<u32>>,
) -> Result<()> {
    let root = sets.find(members[0]);
    if members.iter().all(|&m| sets.find(m) == root) {
        return Ok(());
    }
    // Documents already compared with, each with its shingles.
    let mut seen: Vec<(usize, Vec<u32>)> = Vec::new();
    for &m in members {
        let shingles = load(m)?;
        for (other, theirs) in &seen {
            if sets.find(*other) == sets.find(m) {
                continue;
            }
            out.compared += 1;
            if jaccard(&shingles, theirs) >= config.threshold {
                out.similar += 1;
                sets.union(*other, m);
            }
        }
        let large = members.len() > LARGE_BUCKET;
        let known = large && seen.iter().any(|(other, _)| sets.find(*other) == sets.find(m));
        if !known {
            seen.push((m, shingles));
        }
    }
    Ok(())
}

/// The document that stays in each document's cluster.
fn choose(keep: Keep, rank: impl Fn(usize) -> Rank, sets: &mut UnionFind, n: usize) -> Vec<u32> {
    const NONE: u32 = u32::MAX;
    let mut best = vec![NONE; n];
    for i in 0..n {
        let root = sets.find(i);
        let b = best[root];
        if b == NONE || keep.prefers((i, rank(i)), (b as usize, rank(b as usize))) {
            best[root] = i as u32;
        }
    }
    (0..n).map(|i| best[sets.find(i)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(config: &MinhashConfig, texts: &[String]) -> Vec<Option<usize>> {
        let hasher = MinHasher::new(config);
        let signatures: Vec<Signature> = texts.iter().map(|t| hasher.sign(t)).collect();
        let band = |b: usize, out: &mut Vec<(u64, u32)>| {
            out.extend((0u32..).zip(&signatures).filter_map(|(i, s)| Some((*s.bands.get(b)?, i))));
            Ok(())
        };
        let rank = |i: usize| Rank { chars: texts[i].chars().count() as u32, score: 0.0 };
        let clusters =
            cluster(config, texts.len(), band, rank, |i| Ok(signatures[i].shingles.clone())).unwrap();
        (0..).zip(clusters.kept).map(|(i, kept)| Some(kept as usize).filter(|k| *k != i)).collect()
    }

    /// All pairs, by sets of strings.
    fn oracle(config: &MinhashConfig, texts: &[String]) -> Vec<Option<usize>> {
        let sets: Vec<std::collections::BTreeSet<Vec<String>>> = texts
            .iter()
            .map(|t| {
                let mut words = Vec::new();
                words::normalized(t, |w| words.push(w.to_string()));
                let n = config.ngram.min(words.len()).max(1);
                words.windows(n).map(<[String]>::to_vec).collect()
            })
            .collect();
        let mut clusters = UnionFind::new(texts.len());
        for i in 0..texts.len() {
            for j in 0..i {
                let both = sets[i].intersection(&sets[j]).count() as f64;
                let all = sets[i].union(&sets[j]).count() as f64;
                if all > 0.0 && both / all >= config.threshold {
                    clusters.union(i, j);
                }
            }
        }
        (0..texts.len()).map(|i| (0..i).find(|&j| clusters.find(i) == clusters.find(j))).collect()
    }

    /// A text of `n` words, `changes` of them different from the base text's.
    fn variant(base: u64, n: usize, changes: &[usize]) -> String {
        (0..n)
            .map(|i| if changes.contains(&i) { format!("x{base}y{i} ") } else { format!("w{base}v{i} ") })
            .collect()
    }

    #[test]
    fn near_copies_are_found_and_the_first_or_longest_stays() {
        let texts: Vec<String> = vec![
            variant(1, 100, &[]),
            variant(2, 100, &[]),
            variant(1, 104, &[50]),
            variant(1, 100, &(0..50).collect::<Vec<_>>()),
            String::new(),
            "!!".into(),
        ];
        assert_eq!(run(&MinhashConfig::default(), &texts), [None, None, Some(0), None, None, None]);
        let sign = |i: usize| MinHasher::new(&MinhashConfig::default()).sign(&texts[i]).shingles;
        assert!((jaccard(&sign(0), &sign(2)) - 91.0 / 105.0).abs() < 1e-9);
        let longest = MinhashConfig { keep: Keep::Longest, ..Default::default() };
        assert_eq!(run(&longest, &texts)[0], Some(2));
    }

    #[test]
    fn chinese_compares_by_characters() {
        let base = "小明在学校的图书馆里借了三本关于天文学的书，他打算周末在家里读完它们，然后写一篇读后感交给老师。";
        let near = base.replace("周末", "假期");
        let other = "今天的天气很好，我们全家一起去公园里散步，看到了很多漂亮的花，还有一些小鸟在树上唱歌。";
        let texts = [base.to_string(), near, other.to_string()];
        let config = MinhashConfig { threshold: 0.6, bands: 30, rows: 4, ..Default::default() };
        assert_eq!(run(&config, &texts), [None, Some(0), None]);
    }

    #[test]
    fn numbers_count_unless_ignored() {
        let text = |n: u32| {
            format!("a train drives {n} kilometres in {n} hours and then stops at a station for {n} minutes")
        };
        let texts = [text(3), text(4)];
        assert_eq!(run(&MinhashConfig::default(), &texts)[1], None);
        let config = MinhashConfig { ignore_numbers: true, ..Default::default() };
        assert_eq!(run(&config, &texts)[1], Some(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn clusters_equal_all_pairs(
            plan in proptest::collection::vec((0..3u64, proptest::collection::vec(0..60usize, 0..12)), 2..12)
        ) {
            let texts: Vec<String> = plan.iter().map(|(base, changes)| variant(*base, 60, changes)).collect();
            // So many bands that a pair at the threshold is missed once in 10^12.
            let config = MinhashConfig { ngram: 2, bands: 80, rows: 2, threshold: 0.6, ..Default::default() };
            prop_assert_eq!(run(&config, &texts), oracle(&config, &texts));
        }
    }
}
