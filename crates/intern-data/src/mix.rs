//! `intern data mix`: several corpora → one, by weights or epochs, shuffled.
//!
//! The shuffle holds one bucket in memory: every copy of a document draws a number from
//! the seed and its place in the input, the number's first bits choose its bucket, and a
//! bucket is sorted by the rest. A bucket is an output file. Scattering to the buckets is
//! done once; finished files are not written again when a killed run goes on.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use intern_format::atomic::{read_json, write_json};
use intern_format::document::{Document, DocumentWriter};
use intern_kernels::rng::{Rng, mix};
use intern_progress::Progress;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::corpus;
use crate::job::Job;

const COMMAND: &str = "data mix";

/// Configuration of `intern data mix`.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MixConfig {
    /// The corpora.
    pub source: Vec<SourceConfig>,
    /// Characters to write when sources have weights; 0 writes as many as the sources hold together.
    pub characters: u64,
    /// Most times a document is repeated to reach its source's weight.
    pub max_epochs: f64,
    /// Whether documents are shuffled; `false` keeps the order of the sources.
    pub shuffle: bool,
    /// Seeds the choice of documents and the shuffle.
    pub seed: u64,
    /// Text held in memory per core, MB; also the size of output files.
    pub bucket_mb: u64,
}

impl Default for MixConfig {
    fn default() -> Self {
        Self { source: Vec::new(), characters: 0, max_epochs: 4.0, shuffle: true, seed: 1, bucket_mb: 128 }
    }
}

/// One `[[source]]` of a mixture.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Its name in the report, and `meta.mix` of its documents.
    pub name: String,
    /// Document files or directories.
    pub documents: Vec<PathBuf>,
    /// Share of the characters, relative to the other weights.
    #[serde(default)]
    pub weight: Option<f64>,
    /// How often each document occurs instead; 0.25 takes a quarter of them.
    #[serde(default)]
    pub epochs: Option<f64>,
}

/// What a mixture holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Documents written.
    pub documents: u64,
    /// Characters written.
    pub characters: u64,
    /// Source → what it gave.
    pub sources: BTreeMap<String, Share>,
    /// Nothing had to be done.
    pub up_to_date: bool,
}

/// A source's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// Documents it has.
    pub available: u64,
    /// Characters it has.
    pub available_characters: u64,
    /// How often a document occurs on average.
    pub epochs: f64,
    /// Documents written.
    pub documents: u64,
    /// Characters written.
    pub characters: u64,
}

/// Mixes into the directory `out`.
///
/// # Errors
/// If the configuration makes no sense, documents are missing or the disk refuses.
pub fn run(config: &MixConfig, out: &Path) -> Result<Summary> {
    check(config)?;
    let all: Vec<Vec<PathBuf>> =
        config.source.iter().map(|s| corpus::files(&s.documents)).collect::<Result<_>>()?;
    let inputs = corpus::hashes(config.source.iter().flat_map(|s| &s.documents))?;
    let job = Job::new(out, COMMAND, config, inputs)?;
    if let Some(counts) = job.finished()? {
        let summary: Summary = serde_json::from_value(json!(counts)).context("reading the record")?;
        return Ok(Summary { up_to_date: true, ..summary });
    }
    let work = job.prepare(&["documents"])?.to_path_buf();
    fs::create_dir_all(out.join("documents")).with_context(|| format!("cannot create {}", out.display()))?;
    let scattered = work.join("scattered.json");
    let (summary, buckets): (Summary, usize) = match scattered.is_file() {
        true => read_json(&scattered)?,
        false => {
            let done = scatter(config, &all, &work)?;
            write_json(&scattered, &done)?;
            done
        }
    };
    let progress = Progress::new("write", buckets as u64, "files");
    (0..buckets).into_par_iter().try_for_each(|bucket| {
        gather(bucket, &work, out)?;
        progress.inc(1);
        anyhow::Ok(())
    })?;
    progress.finish();
    job.finish(&["documents"], &summary)?;
    Ok(summary)
}

fn check(config: &MixConfig) -> Result<()> {
    if config.source.is_empty() {
        bail!("the mixture has no [[source]]\nhint: add one with name and documents");
    }
    for s in &config.source {
        if s.weight.is_some() && s.epochs.is_some() {
            bail!("source {}: weight and epochs exclude each other\nhint: remove one", s.name);
        }
        if s.weight.or(s.epochs).is_some_and(|x| !(0.0..=1e6).contains(&x)) {
            bail!("source {}: weight and epochs must be numbers from 0 on", s.name);
        }
    }
    let mut names: Vec<&str> = config.source.iter().map(|s| s.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
        bail!("two sources are named {:?}\nhint: give each its own name", twice[0]);
    }
    Ok(())
}

/// How often documents of each source occur.
fn epochs(config: &MixConfig, available: &[Share]) -> Vec<f64> {
    let weights: f64 = config.source.iter().filter_map(|s| s.weight).sum();
    let total = match config.characters {
        0 => available.iter().map(|a| a.available_characters).sum(),
        n => n,
    };
    let each = config.source.iter().zip(available).map(|(s, a)| match (s.weight, s.epochs) {
        (Some(w), _) => {
            let wanted = total as f64 * w / weights.max(1e-9);
            (wanted / a.available_characters.max(1) as f64).min(config.max_epochs)
        }
        (None, epochs) => epochs.unwrap_or(1.0),
    });
    each.collect()
}

/// Counts the sources and writes every copy of every document to its bucket.
fn scatter(config: &MixConfig, all: &[Vec<PathBuf>], work: &Path) -> Result<(Summary, usize)> {
    let mut shares = vec![Share::default(); all.len()];
    let mut bytes = 0;
    let progress = Progress::new("count", 0, "documents");
    for (share, files) in shares.iter_mut().zip(all) {
        for file in files {
            for document in corpus::read(file)? {
                let document = document?;
                share.available += 1;
                share.available_characters += document.text.chars().count() as u64;
                bytes += document.text.len() as u64;
                progress.inc(1);
            }
        }
    }
    progress.finish();
    let epochs = epochs(config, &shares);
    let most: f64 = epochs.iter().copied().fold(1.0, f64::max);
    let wanted = (bytes as f64 * most / (config.bucket_mb.max(1) << 20) as f64).ceil();
    // Few enough to be open together, and a power of two, so that bits choose.
    let buckets = (wanted as usize).clamp(1, 512).next_power_of_two();
    let path = |b: usize| work.join(format!("{b:05}.bucket.zst"));
    let mut writers: Vec<zstd::Encoder<fs::File>> = (0..buckets)
        .map(|b| {
            let file = fs::File::create(path(b)).with_context(|| path(b).display().to_string())?;
            Ok(zstd::Encoder::new(file, 1)?)
        })
        .collect::<Result<_>>()?;
    let progress = Progress::new("scatter", shares.iter().map(|s| s.available).sum(), "documents");
    let mut place = 0u64;
    for (source, files) in all.iter().enumerate() {
        let rng = Rng::new(config.seed, source as u64);
        shares[source].epochs = epochs[source];
        let mut index = 0;
        for file in files {
            for document in corpus::read(file)? {
                let mut document = document?;
                document.meta.insert("mix".into(), Value::from(config.source[source].name.as_str()));
                let drawn = (rng.at(2 * index) >> 11) as f64 / (1u64 << 53) as f64;
                let copies = epochs[source].floor() as u64 + u64::from(drawn < epochs[source].fract());
                let chars = document.text.chars().count() as u64;
                for copy in 0..copies {
                    let key = mix(rng.at(2 * index + 1).wrapping_add(mix(copy)));
                    let bucket = match config.shuffle {
                        true => (key >> 32) as usize & (buckets - 1),
                        // In order, by share of the documents gone by.
                        false => (place as usize * buckets
                            / (shares.iter().map(|s| s.available).sum::<u64>() as usize).max(1))
                        .min(buckets - 1),
                    };
                    let key = if config.shuffle { key } else { place };
                    let line = serde_json::to_string(&(key, source, index, copy, &document))?;
                    writeln!(writers[bucket], "{line}")
                        .with_context(|| path(bucket).display().to_string())?;
                }
                shares[source].documents += copies;
                shares[source].characters += copies * chars;
                index += 1;
                place += 1;
                progress.inc(1);
            }
        }
    }
    progress.finish();
    for writer in writers {
        writer.finish().context("finishing a bucket")?.sync_all().context("writing a bucket")?;
    }
    let summary = Summary {
        documents: shares.iter().map(|s| s.documents).sum(),
        characters: shares.iter().map(|s| s.characters).sum(),
        sources: config.source.iter().map(|s| s.name.clone()).zip(shares).collect(),
        up_to_date: false,
    };
    Ok((summary, buckets))
}

/// Sorts a bucket into its output file.
fn gather(bucket: usize, work: &Path, out: &Path) -> Result<()> {
    let path = out.join("documents").join(format!("{bucket:05}.jsonl.zst"));
    if path.is_file() {
        return Ok(());
    }
    let from = work.join(format!("{bucket:05}.bucket.zst"));
    let file = fs::File::open(&from).with_context(|| format!("cannot open {}", from.display()))?;
    let mut rows: Vec<(u64, usize, u64, u64, Document)> = Vec::new();
    for line in BufReader::new(zstd::Decoder::new(file)?).lines() {
        rows.push(serde_json::from_str(&line?).with_context(|| format!("{} is damaged", from.display()))?);
    }
    rows.sort_by_key(|r| (r.0, r.1, r.2, r.3));
    let mut writer = DocumentWriter::create(&path)?;
    for (_, _, _, copy, mut document) in rows {
        if copy > 0 {
            document.id = format!("{}~{}", document.id, copy + 1);
        }
        writer.write(&document)?;
    }
    writer.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus_of(dir: &Path, name: &str, n: usize) -> Vec<PathBuf> {
        let path = dir.join(format!("{name}.jsonl"));
        let lines: String = (0..n)
            .map(|i| json!({"id": format!("{name}{i}"), "text": format!("{name} {i:04}")}).to_string() + "\n")
            .collect();
        fs::write(&path, lines).unwrap();
        vec![path]
    }

    fn ids(out: &Path) -> Vec<String> {
        intern_format::document::open(&out.join("documents")).unwrap().map(|d| d.unwrap().id).collect()
    }

    #[test]
    fn weights_and_epochs_hold_and_the_order_is_the_seeds() {
        let dir = tempfile::tempdir().unwrap();
        let source = |name: &str, n, weight, epochs| SourceConfig {
            name: name.into(),
            documents: corpus_of(dir.path(), name, n),
            weight,
            epochs,
        };
        let config = MixConfig {
            source: vec![source("a", 400, None, Some(1.5)), source("b", 100, None, Some(0.5))],
            ..MixConfig::default()
        };
        let first = run(&config, &dir.path().join("1")).unwrap();
        let (a, b) = (first.sources["a"].documents, first.sources["b"].documents);
        assert!((550..=650).contains(&a) && (30..=70).contains(&b), "{a} {b}");
        assert_eq!(ids(&dir.path().join("1")).len() as u64, a + b);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| run(&config, &dir.path().join("2")).unwrap());
        assert_eq!(ids(&dir.path().join("1")), ids(&dir.path().join("2")));
        assert!(run(&config, &dir.path().join("2")).unwrap().up_to_date);
        let other = MixConfig { seed: 2, ..config.clone() };
        run(&other, &dir.path().join("3")).unwrap();
        assert_ne!(ids(&dir.path().join("1")), ids(&dir.path().join("3")));

        let weighted = MixConfig {
            source: vec![source("a", 400, Some(1.0), None), source("b", 100, Some(1.0), None)],
            ..MixConfig::default()
        };
        let summary = run(&weighted, &dir.path().join("4")).unwrap();
        let ratio = summary.sources["a"].characters as f64 / summary.sources["b"].characters as f64;
        assert!((0.85..1.18).contains(&ratio), "{summary:?}");
        let ordered =
            MixConfig { source: vec![source("b", 20, None, None)], shuffle: false, ..MixConfig::default() };
        run(&ordered, &dir.path().join("5")).unwrap();
        assert_eq!(ids(&dir.path().join("5")), (0..20).map(|i| format!("b{i}")).collect::<Vec<_>>());
    }
}
