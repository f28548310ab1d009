//! `intern data seek`: the documents of a corpus that are most like a set of good ones, as
//! Query-of-CC (Fei et al., 2024) finds more of what a model lacks.
//!
//! Two judges: BM25 (Robertson and Zaragoza, 2009) with the seeds' most telling terms as the
//! query, and a naive Bayes classifier trained in place, seeds against the corpus. Documents
//! are ranked by the sum of both scores, each in standard deviations. The corpus is read
//! three times; memory holds its vocabulary and two numbers per document.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use intern_format::document::DocumentWriter;
use intern_format::provenance;
use intern_progress::Progress;
use serde::Serialize;
use serde_json::{Value, json};

use crate::corpus;
use crate::hash::{HashedMap, content};
use crate::terms::{self, Terms};

const COMMAND: &str = "data seek";
/// Terms of the query.
const QUERY_TERMS: usize = 300;
const K1: f64 = 1.2;
const B: f64 = 0.75;

/// What to seek.
#[derive(Clone, Debug, Serialize)]
pub struct SeekConfig {
    /// Good documents.
    pub seed: Vec<PathBuf>,
    /// The corpus to look through.
    pub documents: Vec<PathBuf>,
    /// How many documents to find.
    pub top: usize,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Good documents learned from.
    pub seeds: u64,
    /// Documents looked through.
    pub documents: u64,
    /// Documents written, best first.
    pub found: usize,
    /// Score of the first and of the last one.
    pub scores: (f64, f64),
}

/// Writes the best documents to `out`/documents, best first, each with its score in `meta`.
///
/// # Errors
/// If documents are missing or the disk refuses.
pub fn run(config: &SeekConfig, out: &Path) -> Result<Summary> {
    if config.top == 0 {
        bail!("--top must be at least 1");
    }
    std::fs::create_dir_all(out.join("documents"))
        .with_context(|| format!("cannot create {}", out.display()))?;
    provenance::clear(out)?;
    let seeds = Terms::of(&config.seed)?;
    let mut known = HashSet::new();
    terms::each_document(&config.seed, |_, d| {
        known.insert(content(&d.text));
        Ok(())
    })?;
    let general = Terms::of(&config.documents)?;
    let weights = seeds.against(&general);
    let query = query(&seeds, &general, &weights);

    let mean_length = general.total as f64 / general.documents.max(1) as f64;
    let progress = Progress::new("score", general.documents, "documents");
    let (mut by_words, mut by_class) = (Vec::new(), Vec::new());
    terms::each_document(&config.documents, |_, d| {
        let (counts, total) = terms::count(&d.text);
        // The seeds themselves are no find.
        let is_seed = known.contains(&content(&d.text));
        by_words.push(if is_seed { f64::NAN } else { bm25(&counts, total, mean_length, &query) });
        by_class.push(if is_seed { f64::NAN } else { terms::score(&counts, &weights) });
        progress.inc(1);
        Ok(())
    })?;
    progress.finish();
    standardize(&mut by_words);
    standardize(&mut by_class);
    let mut ranked: Vec<(f64, usize)> = by_words
        .iter()
        .zip(&by_class)
        .enumerate()
        .map(|(i, (a, b))| (a + b, i))
        .filter(|r| !r.0.is_nan())
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    ranked.truncate(config.top);

    let mut wanted: HashedMap<usize> = HashedMap::default();
    wanted.extend(ranked.iter().enumerate().map(|(rank, (_, i))| (*i as u64, rank)));
    let mut found = vec![None; ranked.len()];
    let mut index = 0u64;
    terms::each_document(&config.documents, |_, mut d| {
        if let Some(&rank) = wanted.get(&index) {
            let score = (ranked[rank].0 * 1e4).round() / 1e4;
            d.meta.insert("seek_score".into(), Value::from(score));
            found[rank] = Some(d);
        }
        index += 1;
        Ok(())
    })?;
    let mut writer = DocumentWriter::create(&out.join("documents").join("00000.jsonl.zst"))?;
    for document in found.iter().flatten() {
        writer.write(document)?;
    }
    writer.finish()?;
    let summary = Summary {
        seeds: seeds.documents,
        documents: general.documents,
        found: ranked.len(),
        scores: (ranked.first().map_or(0.0, |r| r.0), ranked.last().map_or(0.0, |r| r.0)),
    };
    let inputs = corpus::hashes(config.seed.iter().chain(&config.documents))?;
    corpus::record(out, COMMAND, config, inputs, "documents", [("found", json!(summary.found))])?;
    Ok(summary)
}

/// Term → weight: the seeds' most telling terms, by how often they occur there and how much
/// they speak for them.
fn query(seeds: &Terms, general: &Terms, weights: &HashedMap<f32>) -> HashedMap<f64> {
    let mut list: Vec<(f64, u64)> = seeds
        .counts
        .iter()
        .filter_map(|(term, (documents, _))| {
            let weight = f64::from(*weights.get(term)?);
            // Terms of a single seed are its own; of a few seeds all count.
            (weight > 0.0 && (*documents > 1 || seeds.documents < 4))
                .then(|| (weight * (1.0 + f64::from(*documents)).ln(), *term))
        })
        .collect();
    list.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    list.truncate(QUERY_TERMS);
    let n = general.documents as f64;
    list.into_iter()
        .map(|(weight, term)| {
            let with = general.counts.get(&term).map_or(0.0, |c| f64::from(c.0));
            (term, weight * (1.0 + (n - with + 0.5) / (with + 0.5)).ln())
        })
        .collect()
}

fn bm25(counts: &HashedMap<u32>, total: u32, mean_length: f64, query: &HashedMap<f64>) -> f64 {
    let norm = K1 * (1.0 - B + B * f64::from(total) / mean_length.max(1.0));
    let mut parts: Vec<f64> = counts
        .iter()
        .filter_map(|(term, n)| {
            let n = f64::from(*n);
            query.get(term).map(|w| w * n * (K1 + 1.0) / (n + norm))
        })
        .collect();
    // One order of summing, whatever the map's.
    parts.sort_by(f64::total_cmp);
    parts.iter().sum()
}

/// Makes mean 0 and standard deviation 1, what is no number set aside.
fn standardize(scores: &mut [f64]) {
    let known: Vec<f64> = scores.iter().copied().filter(|s| !s.is_nan()).collect();
    let n = known.len().max(1) as f64;
    let mean = known.iter().sum::<f64>() / n;
    let deviation = (known.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n).sqrt().max(1e-12);
    scores.iter_mut().for_each(|s| *s = (*s - mean) / deviation);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_like_the_seeds_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = intern_kernels::rng::Rng::new(1, 2);
        let maths =
            ["theorem", "proof", "integral", "prime", "matrix", "lemma", "vector", "polynomial", "group"];
        let other =
            ["garden", "river", "cook", "football", "market", "holiday", "weather", "music", "car", "film"];
        let common = ["the", "of", "and", "is", "we", "that", "in", "a"];
        let mut text = |special: &[&str], share: f64| -> String {
            (0..80)
                .map(|_| {
                    if rng.chance(share) { *rng.pick(special) } else { *rng.pick(&common) }.to_string() + " "
                })
                .collect()
        };
        let mut lines = String::new();
        for i in 0..400 {
            let relevant = i % 20 == 0;
            let text = if relevant { text(&maths, 0.2) } else { text(&other, 0.4) };
            let id = format!("{}{i}", if relevant { "maths" } else { "other" });
            lines += &(json!({"id": id, "text": text}).to_string() + "\n");
        }
        let seeds: String = (0..5)
            .map(|i| json!({"id": format!("s{i}"), "text": text(&maths, 0.2)}).to_string() + "\n")
            .collect();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("corpus.jsonl"), lines).unwrap();
        std::fs::write(at("seeds.jsonl"), seeds).unwrap();
        let config =
            SeekConfig { seed: vec![at("seeds.jsonl")], documents: vec![at("corpus.jsonl")], top: 25 };
        let summary = run(&config, &at("out")).unwrap();
        assert_eq!((summary.seeds, summary.documents, summary.found), (5, 400, 25));
        let found: Vec<String> = intern_format::document::open(&at("out").join("documents"))
            .unwrap()
            .map(|d| d.unwrap().id)
            .collect();
        assert!(found[..20].iter().all(|id| id.starts_with("maths")), "{found:?}");
    }
}
