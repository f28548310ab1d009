//! `intern data run`: raw input → documents, dropped documents, and a report of what
//! became of every page.
//!
//! `plan → clean every shard → find copies → write every segment → report`. Shards are
//! cleaned one after another, in segments of so many pages, pages within one on all cores.
//! Each finished segment leaves a marker under `.tmp-work`, so a killed run continues where
//! it was, within a file too; that directory goes when the run is complete. Nothing written
//! depends on the number of threads.
//!
//! Several processes may clean shards of one run ([`run_share`], for job arrays): they share the
//! output directory, and the run itself then finds the shards clean.

mod config;
mod emit;
mod plan;
mod repeats;
mod signatures;
mod stats;
mod work;

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use intern_format::atomic::{TEMP_PREFIX, read_json, write_atomic, write_json};
use intern_format::provenance::{self, Provenance};
use intern_progress::Progress;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::{Value, json};

pub use config::{DedupConfig, EncodingConfig, OutputConfig, RecipeConfig, STAGES, UrlCopiesConfig};
pub use stats::{Count, FUNNEL, GoldGroup, Sample, Stats};
pub use work::{Judged, SegmentInfo};

use crate::dedup::minhash::MinHasher;
use crate::gold::Gold;
use crate::report;
use crate::source::{self, Shard};
use crate::stage::{Measure, Sheet};
use emit::{Copies, Emitter};
use plan::{Identity, Plan};
use repeats::Repeats;
use signatures::Signatures;
use work::{Cleaner, Segment, SegmentFiles, read_part};

const COMMAND: &str = "data run";
/// Locked by the process that makes the output directory ready.
const PREPARE: &str = ".tmp-prepare";

/// What a run gave.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Pages read.
    pub pages: u64,
    /// Documents kept.
    pub documents: u64,
    /// Characters in them.
    pub characters: u64,
    /// Documents dropped.
    pub dropped: u64,
    /// Broken records skipped.
    pub broken: u64,
    /// Mean F1 of extraction against the gold file, if one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gold_f1: Option<f64>,
    /// Nothing had to be done.
    pub up_to_date: bool,
    /// Wall time of this call, seconds.
    pub seconds: f64,
    /// Pages per second of this call; 0 when it had nothing to clean.
    pub pages_per_second: f64,
}

/// Runs a recipe into the directory `out`; continues there if an earlier run was interrupted.
///
/// # Errors
/// If the recipe is wrong, a source is missing, or the disk refuses.
pub fn run(config: &RecipeConfig, out: &Path) -> Result<Summary> {
    let start = Instant::now();
    let stages = config.stages()?;
    let plan = plan::plan(config)?;
    let identity = Identity::of(config, &plan)?;
    let work = out.join(format!("{TEMP_PREFIX}work"));
    if let Some(done) = finished(out, &identity)? {
        // A run killed right after its last write leaves these.
        clear_work(out, &work)?;
        return summary(&done.counts, 0, start, true);
    }
    prepare(out, &work, &identity)?;

    let gold = config.gold.as_deref().map(Gold::open).transpose()?;
    let hasher = config.dedup.minhash.enabled.then(|| MinHasher::new(&config.dedup.minhash));
    let cleaner = Cleaner { config, stages, gold, hasher };
    let (segments, cleaned) = clean_all(&cleaner, &plan, &work, Share::ALL)?;

    let paths: Vec<PathBuf> = segments.iter().map(|s| SegmentFiles::of(&work, *s).signatures).collect();
    let bands = if config.dedup.minhash.enabled { config.dedup.minhash.bands } else { 0 };
    let signatures = Signatures::open(&paths, bands)?;
    let copies = emit::find_copies(config, &signatures)?;
    let stats = emit_all(config, out, &work, &segments, &signatures, &copies)?;

    let report = report::Report::new(config, &plan.notes, &stats, copies.compared);
    write_json(&out.join("report.json"), &report)?;
    write_atomic(&out.join("report.html"), report.html().as_bytes())?;
    let provenance = record(&identity, out, &stats)?;
    provenance::write(out, &provenance)?;
    clear_work(out, &work)?;
    summary(&provenance.counts, cleaned, start, false)
}

/// Which of a run's shards a process cleans: every `of`th, beginning with number `number`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// From 1.
    pub number: usize,
    /// How many processes there are.
    pub of: usize,
}

impl Share {
    const ALL: Self = Self { number: 1, of: 1 };

    /// Reads `2/8`.
    ///
    /// # Errors
    /// In words, if it is no such thing.
    pub fn parse(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((number, of)) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err("expected I/N with I from 1 to N, e.g. 2/8".into()),
        }
    }
}

/// What a process of a job array did.
#[derive(Clone, Debug, Serialize)]
pub struct ShareSummary {
    /// Shards of the run that are this process's.
    pub shards: usize,
    /// Shards of the whole run.
    pub of: usize,
    /// Pages in them.
    pub pages: u64,
    /// Pages that were not clean before.
    pub cleaned: u64,
    /// Wall time of this call, seconds.
    pub seconds: f64,
}

/// Cleans a share of the recipe's shards into the directory `out`, which several processes may use
/// at once; [`run`] then completes the run. A killed process goes on like a run.
///
/// # Errors
/// As [`run`]; and if a shard is being cleaned by another process.
pub fn run_share(config: &RecipeConfig, out: &Path, share: Share) -> Result<ShareSummary> {
    let start = Instant::now();
    for source in &config.source {
        ensure!(
            source.limit == 0 || source.is_page_per_file(),
            "source {} has a limit, which counts records over all its files in their order\n\
             hint: leave `limit` out, or run without --shard",
            source.label()
        );
    }
    let stages = config.stages()?;
    let plan = plan::plan(config)?;
    let identity = Identity::of(config, &plan)?;
    let of = plan.shards.len();
    let shards = (share.number - 1..of).step_by(share.of).count();
    if let Some(done) = finished(out, &identity)? {
        let pages = done.counts.get("pages").and_then(Value::as_u64).unwrap_or(0);
        return Ok(ShareSummary { shards, of, pages, cleaned: 0, seconds: start.elapsed().as_secs_f64() });
    }
    let work = out.join(format!("{TEMP_PREFIX}work"));
    prepare(out, &work, &identity)?;
    let gold = config.gold.as_deref().map(Gold::open).transpose()?;
    let hasher = config.dedup.minhash.enabled.then(|| MinHasher::new(&config.dedup.minhash));
    let cleaner = Cleaner { config, stages, gold, hasher };
    let (segments, cleaned) = clean_all(&cleaner, &plan, &work, share)?;
    let pages = segments.iter().map(|s| Ok(SegmentFiles::of(&work, *s).finished()?.map_or(0, |i| i.pages)));
    let pages = pages.sum::<Result<u64>>()?;
    Ok(ShareSummary { shards, of, pages, cleaned, seconds: start.elapsed().as_secs_f64() })
}

/// Every comparison a page went through, and what stages changed in its text.
pub type Inspection = (Vec<Measure>, std::collections::BTreeMap<String, u64>);

/// Judges the page `id` again, and notes every comparison on the way: those, and what stages
/// changed in the text. `None` if no source has it.
///
/// # Errors
/// If the recipe is wrong or a source missing.
pub fn inspect(config: &RecipeConfig, id: &str) -> Result<Option<Inspection>> {
    let cleaner = Cleaner { config, stages: config.stages()?, gold: None, hasher: None };
    for (index, source) in config.source.iter().enumerate() {
        let (files, _) = source.files()?;
        let label = source.label();
        for file in files {
            // Page files carry their names in their ids; only record files must be read.
            if source.is_page_per_file() && id != format!("{label}/{}", file.name) {
                continue;
            }
            let shard = Shard { source: index, files: vec![file] };
            let mut items = source::open(source, &shard, config.output.max_page_bytes)?;
            let found = items.find_map(|item| match item {
                source::Item::Page(raw) if raw.id == id => Some(raw),
                _ => None,
            });
            if let Some(raw) = found {
                let mut sheet = Sheet::noting();
                let judged = cleaner.clean_page(raw, &label, &mut sheet)?;
                return Ok(Some((sheet.all.unwrap_or_default(), judged.edits)));
            }
        }
    }
    Ok(None)
}

/// The record of a finished run with this identity.
fn finished(out: &Path, identity: &Identity) -> Result<Option<Provenance>> {
    if !out.is_dir() {
        return Ok(None);
    }
    Ok(provenance::read(out)?.filter(|p| {
        p.command == COMMAND
            && p.version == identity.version
            && p.config == identity.config
            && p.inputs == identity.inputs
    }))
}

/// Makes `out` ready: keeps the work of an interrupted run with this identity, clears anything else of ours.
fn prepare(out: &Path, work: &Path, identity: &Identity) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    // Processes of a job array start together; one makes it ready.
    let name = out.join(PREPARE);
    let lock = File::create(&name).with_context(|| format!("cannot create {}", name.display()))?;
    lock.lock().with_context(|| format!("cannot lock {}", name.display()))?;
    let path = work.join("identity.json");
    let same = path.is_file() && read_json::<Identity>(&path).is_ok_and(|i| i == *identity);
    if same {
        return Ok(());
    }
    provenance::clear(out)?;
    for dir in [work.to_path_buf(), out.join("documents"), out.join("dropped")] {
        remove_dir(&dir)?;
    }
    for file in ["report.json", "report.html"] {
        remove_file(&out.join(file))?;
    }
    fs::create_dir_all(out.join("documents"))?;
    write_json(&path, identity)?;
    Ok(())
}

/// Removes what a finished run needs no more.
fn clear_work(out: &Path, work: &Path) -> Result<()> {
    remove_dir(work)?;
    remove_file(&out.join(PREPARE))
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Cleans the segments of a share that are not finished; returns all of it, and how many pages that
/// were.
fn clean_all(cleaner: &Cleaner, plan: &Plan, work: &Path, share: Share) -> Result<(Vec<Segment>, u64)> {
    let pages = if share.of == 1 { plan.pages.unwrap_or(0) } else { 0 };
    let progress = Progress::new("clean", pages, "pages");
    let (mut segments, mut cleaned) = (Vec::new(), 0);
    // Pages so far per source, since a limit counts over all files of its source.
    let mut taken: HashMap<usize, u64> = HashMap::new();
    for (index, shard) in plan.shards.iter().enumerate().skip(share.number - 1).step_by(share.of) {
        let _lock = lock_shard(work, index, shard)?;
        let taken = taken.entry(shard.source).or_default();
        let limit = match cleaner.config.source[shard.source].limit {
            0 => u64::MAX,
            n => n.saturating_sub(*taken),
        };
        let (parts, pages) = cleaner.run_shard(shard, index, limit, work, &progress)?;
        for part in parts {
            *taken += part.pages;
            segments.push(part.segment);
        }
        cleaned += pages;
    }
    progress.finish();
    Ok((segments, cleaned))
}

/// Keeps other processes from cleaning the same shard until it is dropped.
fn lock_shard(work: &Path, index: usize, shard: &Shard) -> Result<File> {
    let path = work.join(format!("{index:05}.lock"));
    let lock = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!(
            "{} is being cleaned by another process\nhint: give every process of a job array its own \
             --shard, and run without it when all have ended",
            shard.files.first().map_or_else(String::new, |f| f.path.display().to_string())
        ),
        Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Writes all segments, several at once; their counts are merged in order.
fn emit_all(
    config: &RecipeConfig,
    out: &Path,
    work: &Path,
    segments: &[Segment],
    all: &Signatures,
    copies: &Copies,
) -> Result<Stats> {
    let ids = kept_ids(work, segments, all, copies)?;
    let repeats = Repeats::find(config, work, segments, all, copies)?;
    let emitter = Emitter { config, out, work, copies, repeats: &repeats, ids: &ids };
    let progress = Progress::new("write", all.pages() as u64, "documents");
    let parts: Vec<Stats> = segments
        .par_iter()
        .enumerate()
        .map(|(index, segment)| {
            let stats = emitter.emit(index, *segment, all.starts[index])?;
            progress.inc(stats.pages);
            Ok(stats)
        })
        .collect::<Result<_>>()?;
    progress.finish();
    let mut stats = Stats::default();
    for part in parts {
        stats.merge(part, config.output.samples);
    }
    Ok(stats)
}

/// Ids of the pages that copies point to.
fn kept_ids(
    work: &Path,
    segments: &[Segment],
    all: &Signatures,
    copies: &Copies,
) -> Result<HashMap<u32, String>> {
    let wanted = copies.wanted();
    let found: Vec<Vec<(u32, String)>> = segments
        .par_iter()
        .enumerate()
        .map(|(s, segment)| {
            let (start, end) = (all.starts[s], all.starts[s + 1]);
            let from = wanted.partition_point(|&w| (w as usize) < start);
            let mut found = Vec::new();
            if wanted.get(from).is_none_or(|&w| w as usize >= end) {
                return Ok(found);
            }
            for (page, judged) in (start as u32..).zip(read_part(&SegmentFiles::of(work, *segment).part)?) {
                let judged = judged?;
                if wanted.binary_search(&page).is_ok() {
                    found.push((page, judged.document.id));
                }
            }
            Ok(found)
        })
        .collect::<Result<_>>()?;
    Ok(found.into_iter().flatten().collect())
}

fn record(identity: &Identity, out: &Path, stats: &Stats) -> Result<Provenance> {
    let mut outputs = std::collections::BTreeMap::new();
    outputs.insert("documents".to_string(), provenance::hash_path(&out.join("documents"))?);
    let (pages, sum) = stats.gold.values().fold((0, 0.0), |(n, s), g| (n + g.pages, s + g.sums[2]));
    let f1 = if pages > 0 { json!(sum / pages as f64) } else { Value::Null };
    let counts = [
        ("pages", json!(stats.pages)),
        ("documents", json!(stats.kept.documents)),
        ("characters", json!(stats.kept.characters)),
        ("dropped", json!(stats.pages - stats.kept.documents)),
        ("broken", json!(stats.broken)),
        ("gold_f1", f1),
    ];
    Ok(Provenance {
        command: COMMAND.into(),
        version: identity.version.clone(),
        config: identity.config.clone(),
        inputs: identity.inputs.clone(),
        outputs,
        counts: counts.into_iter().map(|(k, v)| (k.to_string(), v)).collect(),
    })
}

fn summary(
    counts: &std::collections::BTreeMap<String, Value>,
    cleaned: u64,
    start: Instant,
    up_to_date: bool,
) -> Result<Summary> {
    let count = |key: &str| counts.get(key).and_then(Value::as_u64).unwrap_or(0);
    let seconds = start.elapsed().as_secs_f64();
    Ok(Summary {
        pages: count("pages"),
        documents: count("documents"),
        characters: count("characters"),
        dropped: count("dropped"),
        broken: count("broken"),
        gold_f1: counts.get("gold_f1").and_then(Value::as_f64),
        up_to_date,
        seconds,
        pages_per_second: cleaned as f64 / seconds.max(1e-9),
    })
}
