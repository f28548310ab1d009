//! Near duplicates by MinHash and banding (Broder, 1997; Leskovec et al., "Mining of
//! Massive Datasets", ch. 3), with every candidate pair verified by its Jaccard similarity.
//!
//! A document is its set of word n-grams; a Chinese or Japanese character is a word, so
//! there these are character n-grams. Documents that share all rows of any band are
//! candidates; candidates whose sets are similar enough are joined, and of each cluster
//! one document stays. Signatures need `8 · bands` bytes per document in memory; the
//! sets themselves are loaded from disk when compared.

use anyhow::Result;
use intern_kernels::rng::Rng;
use serde::{Deserialize, Serialize};

use super::{Keep, UnionFind};
use crate::hash::{combine, hash64};
use crate::words;

/// Buckets with more documents compare each with one document per cluster only.
const LARGE_BUCKET: usize = 2000;

/// `[dedup.minhash]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
            keep: Keep::First,
            ignore_numbers: false,
            seed: 1,
        }
    }
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
    /// (odd multiplier, offset) per function.
    functions: Vec<(u64, u64)>,
}

impl MinHasher {
    /// Draws the functions from the seed.
    #[must_use]
    pub fn new(config: &MinhashConfig) -> Self {
        let mut rng = Rng::new(config.seed, 0x6d69_6e68);
        let n = config.bands * config.rows;
        let functions = (0..n).map(|_| (rng.next_u64() | 1, rng.next_u64())).collect();
        Self { config: config.clone(), functions }
    }

    /// Signs a text.
    #[must_use]
    pub fn sign(&self, text: &str) -> Signature {
        let shingles = self.shingles(text);
        if shingles.is_empty() {
            return Signature::default();
        }
        let mut mins = vec![u32::MAX; self.functions.len()];
        for &h in &shingles {
            for (min, &(a, b)) in mins.iter_mut().zip(&self.functions) {
                // Multiply-shift: the high half of an affine map modulo 2^64.
                *min = (*min).min((a.wrapping_mul(h).wrapping_add(b) >> 32) as u32);
            }
        }
        let mut row = Vec::with_capacity(self.config.rows);
        let bands = mins
            .chunks(self.config.rows)
            .map(|band| {
                row.clear();
                row.extend(band.iter().map(|&m| u64::from(m)));
                combine(&row)
            })
            .collect();
        let mut set: Vec<u32> = shingles.iter().map(|h| (h >> 32) as u32).collect();
        set.sort_unstable();
        set.dedup();
        Signature { bands, shingles: set }
    }

    /// Hashes of the text's distinct shingles.
    fn shingles(&self, text: &str) -> Vec<u64> {
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
        let mut shingles: Vec<u64> = hashes.windows(n).map(combine).collect();
        shingles.sort_unstable();
        shingles.dedup();
        shingles
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

/// The result of `cluster`.
#[derive(Clone, Debug, Default)]
pub struct Clusters {
    /// For each document the one kept in its place and their similarity; `None` for those kept.
    pub duplicate_of: Vec<Option<(usize, f64)>>,
    /// Pairs compared.
    pub compared: u64,
    /// Pairs found similar enough.
    pub similar: u64,
}

/// Clusters documents. `bands` holds `config.bands` hashes per document (all `None`-like
/// documents have `signed[i] == false`), `chars` their lengths; `load` reads a document's shingles.
///
/// # Errors
/// Whatever `load` fails with.
pub fn cluster(
    config: &MinhashConfig,
    bands: &[u64],
    signed: &[bool],
    chars: &[u32],
    mut load: impl FnMut(usize) -> Result<Vec<u32>>,
) -> Result<Clusters> {
    let n = signed.len();
    assert_eq!(bands.len(), n * config.bands);
    let mut sets = UnionFind::new(n);
    let mut out = Clusters { duplicate_of: vec![None; n], ..Clusters::default() };
    let mut order: Vec<(u64, u32)> = Vec::with_capacity(n);
    for band in 0..config.bands {
        order.clear();
        order.extend((0..n).filter(|&i| signed[i]).map(|i| (bands[i * config.bands + band], i as u32)));
        order.sort_unstable();
        for bucket in order.chunk_by(|a, b| a.0 == b.0).filter(|b| b.len() > 1) {
            let members: Vec<usize> = bucket.iter().map(|&(_, i)| i as usize).collect();
            join_bucket(config, &members, &mut sets, &mut out, &mut load)?;
        }
    }
    choose(config, chars, &mut sets, &mut out, &mut load)?;
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

/// Chooses the document that stays in each cluster.
fn choose(
    config: &MinhashConfig,
    chars: &[u32],
    sets: &mut UnionFind,
    out: &mut Clusters,
    load: &mut impl FnMut(usize) -> Result<Vec<u32>>,
) -> Result<()> {
    let n = chars.len();
    let mut best: Vec<Option<usize>> = vec![None; n];
    for i in 0..n {
        let root = sets.find(i);
        let better = best[root].is_none_or(|b| config.keep.prefers((i, chars[i]), (b, chars[b])));
        if better {
            best[root] = Some(i);
        }
    }
    for i in 0..n {
        let kept = best[sets.find(i)].expect("every set has a best");
        if kept != i {
            out.duplicate_of[i] = Some((kept, jaccard(&load(i)?, &load(kept)?)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(config: &MinhashConfig, texts: &[String]) -> Clusters {
        let hasher = MinHasher::new(config);
        let signatures: Vec<Signature> = texts.iter().map(|t| hasher.sign(t)).collect();
        let signed: Vec<bool> = signatures.iter().map(|s| !s.bands.is_empty()).collect();
        let bands: Vec<u64> = signatures
            .iter()
            .flat_map(|s| if s.bands.is_empty() { vec![0; config.bands] } else { s.bands.clone() })
            .collect();
        let chars: Vec<u32> = texts.iter().map(|t| t.chars().count() as u32).collect();
        cluster(config, &bands, &signed, &chars, |i| Ok(signatures[i].shingles.clone())).unwrap()
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
        let got = run(&MinhashConfig::default(), &texts);
        assert_eq!(
            got.duplicate_of.iter().map(|d| d.map(|d| d.0)).collect::<Vec<_>>(),
            [None, None, Some(0), None, None, None]
        );
        assert!((got.duplicate_of[2].unwrap().1 - 91.0 / 105.0).abs() < 1e-9);
        let longest = MinhashConfig { keep: Keep::Longest, ..Default::default() };
        assert_eq!(run(&longest, &texts).duplicate_of[0].map(|d| d.0), Some(2));
    }

    #[test]
    fn chinese_compares_by_characters() {
        let base = "小明在学校的图书馆里借了三本关于天文学的书，他打算周末在家里读完它们，然后写一篇读后感交给老师。";
        let near = base.replace("周末", "假期");
        let other = "今天的天气很好，我们全家一起去公园里散步，看到了很多漂亮的花，还有一些小鸟在树上唱歌。";
        let texts = [base.to_string(), near, other.to_string()];
        let config = MinhashConfig { threshold: 0.6, bands: 30, rows: 4, ..Default::default() };
        let got: Vec<_> = run(&config, &texts).duplicate_of.iter().map(|d| d.map(|d| d.0)).collect();
        assert_eq!(got, [None, Some(0), None]);
    }

    #[test]
    fn numbers_count_unless_ignored() {
        let text = |n: u32| {
            format!("a train drives {n} kilometres in {n} hours and then stops at a station for {n} minutes")
        };
        let texts = [text(3), text(4)];
        assert_eq!(run(&MinhashConfig::default(), &texts).duplicate_of[1], None);
        let config = MinhashConfig { ignore_numbers: true, ..Default::default() };
        assert_eq!(run(&config, &texts).duplicate_of[1], Some((0, 1.0)));
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
            let got: Vec<_> = run(&config, &texts).duplicate_of.iter().map(|d| d.map(|d| d.0)).collect();
            prop_assert_eq!(got, oracle(&config, &texts));
        }
    }
}
