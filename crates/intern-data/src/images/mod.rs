//! `intern data images`: pictures and their texts, checked, without copies, as WebDataset shards.
//!
//! Every picture is looked at once (`check`); a marker per input file under `.tmp-work` lets a killed
//! run go on. Then copies are found over all of them (`near`), and the shards are written, each under a
//! temporary name until it is whole. The bytes depend on input and configuration only.

mod check;
pub mod clip;
mod config;
mod copies;
mod judge;
mod near;
mod report;
pub mod sample;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use intern_format::atomic::{AtomicFile, write_atomic, write_json};
use intern_format::provenance;
use intern_progress::Progress;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

pub use check::{Drop, ImageRules, Picture, look};
use clip::Clip;
pub use config::{CaptionRules, ClipConfig, DedupConfig, DocumentRules, ImagesConfig, OutputConfig};
use copies::{Copies, Verdict};
use judge::{Judged, judge};
pub use report::Report;
pub use sample::{Kind, SourceConfig};
use sample::{Sample, Unit};

use crate::job::Job;

const COMMAND: &str = "data images";
/// Samples in memory at once: so many, or as many as hold so many bytes.
const BATCH: (usize, usize) = (256, 64 << 20);

/// What became of the pictures.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Samples read: pairs and documents.
    pub samples: u64,
    /// Pictures in them.
    pub images: u64,
    /// Samples kept.
    pub kept: u64,
    /// Pictures kept.
    pub kept_images: u64,
    /// Rule → samples it dropped.
    pub dropped: BTreeMap<String, u64>,
    /// Rule → pictures it took out of documents.
    pub taken_out: BTreeMap<String, u64>,
    /// Shards written.
    pub shards: u64,
    /// Nothing had to be done.
    #[serde(default)]
    pub up_to_date: bool,
    /// Pictures per second of this call; 0 when it had none to look at.
    #[serde(default)]
    pub images_per_second: f64,
}

/// How many samples were kept, and how many pictures no rule dropped, before a unit.
type Begin = (usize, usize);

/// What becomes of a sample beside all others.
enum Fate {
    /// It stays with these of its pictures.
    Kept(Vec<bool>),
    Dropped(Drop),
}

/// Checks pictures into the directory `out`; goes on there if an earlier run was interrupted.
///
/// # Errors
/// If the configuration makes no sense, a source is missing or the disk refuses.
pub fn run(config: &ImagesConfig, out: &Path) -> Result<Summary> {
    ensure!(!config.source.is_empty(), "there is no [[source]]\nhint: add one with kind and path");
    ensure!(
        config.dedup.max_distance <= 16,
        "dedup.max_distance = {}: at most 16",
        config.dedup.max_distance
    );
    ensure!(config.output.shard_samples > 0, "output.shard_samples = 0: a shard holds at least one sample");
    let units = sample::units(&config.source)?;
    let job = Job::new(out, COMMAND, config, hashes(config, &units)?)?;
    if let Some(counts) = job.finished()? {
        let summary: Summary = serde_json::from_value(json!(counts)).context("reading the record")?;
        return Ok(Summary { up_to_date: true, ..summary });
    }
    let work = job.prepare(&["shards", "dropped.jsonl", "report.json", "report.html"])?.to_path_buf();
    let rate = look_at_all(config, &units, &work)?;
    let run = Run { config, units: &units, work: &work };
    let copies = run.copies()?;
    let (mut summary, kept, report) = run.decide(&copies, out)?;
    summary.shards = run.write(&copies, &kept, out)?;
    write_json(&out.join("report.json"), &report)?;
    write_atomic(&out.join("report.html"), run.page(&report)?.as_bytes())?;
    job.finish(&["shards", "dropped.jsonl", "report.json", "report.html"], &summary)?;
    summary.images_per_second = rate;
    Ok(summary)
}

/// File → content hash, of all that is read. Pictures that documents name by path are not among it.
fn hashes(config: &ImagesConfig, units: &[Unit]) -> Result<BTreeMap<String, String>> {
    let mut paths: Vec<(String, PathBuf)> = Vec::new();
    for unit in units {
        for file in &unit.files {
            let beside = ["txt", "json"].map(|e| file.path.with_extension(e));
            let beside = beside.into_iter().filter(|p| unit.kind == Kind::Files && p.is_file());
            for path in [file.path.clone()].into_iter().chain(beside) {
                paths.push((format!("{}: {}", unit.label, path.display()), path));
            }
        }
    }
    if let Some(model) = &config.clip.model {
        paths.push((model.display().to_string(), model.clone()));
    }
    paths.into_par_iter().map(|(name, path)| Ok((name, provenance::hash_path(&path)?))).collect()
}

fn marker(work: &Path, unit: usize) -> PathBuf {
    work.join(format!("{unit:06}.jsonl"))
}

/// Judges the samples of all units that have no marker yet; returns pictures per second.
fn look_at_all(config: &ImagesConfig, units: &[Unit], work: &Path) -> Result<f64> {
    let start = Instant::now();
    let clip = config.clip.model.as_deref().map(Clip::open).transpose()?;
    let progress = Progress::new("check", 0, "pictures");
    for (number, unit) in units.iter().enumerate() {
        let path = marker(work, number);
        if path.is_file() {
            continue;
        }
        let mut file = AtomicFile::create(&path)?;
        let (mut batch, mut bytes): (Vec<Result<Sample>>, usize) = (Vec::new(), 0);
        let mut flush = |batch: &mut Vec<Result<Sample>>| {
            let judged: Vec<Judged> =
                batch.par_iter().map(|s| judge(config, clip.as_ref(), s)).collect::<Result<_>>()?;
            for line in judged {
                progress.inc(line.pictures.len() as u64);
                serde_json::to_writer(&mut file, &line)?;
                file.write_all(b"\n")?;
            }
            batch.clear();
            anyhow::Ok(())
        };
        unit.read(&mut |sample| {
            bytes += sample.as_ref().map_or(0, |s| s.images.iter().map(|i| i.bytes.len()).sum());
            batch.push(sample);
            if batch.len() >= BATCH.0 || bytes >= BATCH.1 {
                flush(&mut batch)?;
                bytes = 0;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        flush(&mut batch)?;
        file.commit()?;
    }
    let images = progress.done();
    progress.finish();
    Ok(images as f64 / start.elapsed().as_secs_f64().max(1e-9))
}

/// A run whose pictures have all been looked at.
struct Run<'a> {
    config: &'a ImagesConfig,
    units: &'a [Unit],
    work: &'a Path,
}

impl Run<'_> {
    /// What was found out about the samples of a unit.
    fn judged(&self, unit: usize) -> Result<impl Iterator<Item = Result<Judged>> + use<>> {
        let path = marker(self.work, unit);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(BufReader::new(file).lines().map(|line| Ok(serde_json::from_str(&line?)?)))
    }

    /// All of it, in order.
    fn all(&self) -> impl Iterator<Item = Result<Judged>> {
        (0..self.units.len()).flat_map(|unit| match self.judged(unit) {
            Ok(lines) => Box::new(lines) as Box<dyn Iterator<Item = _>>,
            Err(e) => Box::new(std::iter::once(Err(e))),
        })
    }

    /// What becomes of a sample; `entry` counts the pictures no rule dropped so far. Also says why
    /// pictures are taken out of a document.
    fn fate(&self, judged: &Judged, copies: &Copies, entry: &mut usize) -> (Fate, Vec<Option<Drop>>) {
        if let Some(drop) = &judged.drop {
            return (Fate::Dropped(drop.clone()), Vec::new());
        }
        let mut drops = Vec::new();
        for picture in &judged.pictures {
            if picture.drop.is_some() {
                drops.push(picture.drop.clone());
                continue;
            }
            drops.push(match copies.verdicts[*entry] {
                Verdict::Unique => None,
                Verdict::CopyOf(n) => Some(Drop::new("copy", format!("of {}", copies.partners[n as usize]))),
                Verdict::Boilerplate(n) => Some(Drop::new("boilerplate", format!("in {n} documents"))),
            });
            *entry += 1;
        }
        if !judged.document {
            return match drops.iter().flatten().next() {
                Some(drop) => (Fate::Dropped(drop.clone()), Vec::new()),
                None => (Fate::Kept(vec![true; drops.len()]), Vec::new()),
            };
        }
        let kept: Vec<bool> = drops.iter().map(Option::is_none).collect();
        let n = kept.iter().filter(|k| **k).count();
        let rules = &self.config.document;
        let fate = if n < rules.min_images {
            Fate::Dropped(Drop::new(
                "min_images",
                format!("{n} pictures left, at least {}", rules.min_images),
            ))
        } else if rules.max_images > 0 && n > rules.max_images {
            Fate::Dropped(Drop::new("max_images", format!("{n} pictures left, at most {}", rules.max_images)))
        } else {
            Fate::Kept(kept)
        };
        (fate, drops)
    }

    /// Counts, and writes why samples are left out. Also returns where each unit's kept samples and
    /// undropped pictures begin.
    fn decide(&self, copies: &Copies, out: &Path) -> Result<(Summary, Vec<Begin>, Report)> {
        let mut file = AtomicFile::create(&out.join("dropped.jsonl"))?;
        let mut summary = Summary::default();
        let mut report = Report::new(self.config.output.report_samples);
        let (mut entry, mut begins) = (0, Vec::new());
        for unit in 0..self.units.len() {
            begins.push((summary.kept as usize, entry));
            for (index, judged) in self.judged(unit)?.enumerate() {
                let judged = judged?;
                summary.samples += 1;
                summary.images += judged.pictures.len() as u64;
                let (fate, taken) = self.fate(&judged, copies, &mut entry);
                for drop in taken.into_iter().flatten() {
                    *summary.taken_out.entry(drop.rule).or_default() += 1;
                }
                report.add(&judged, &fate, (unit, index));
                match fate {
                    Fate::Kept(images) => {
                        summary.kept += 1;
                        summary.kept_images += images.iter().filter(|k| **k).count() as u64;
                    }
                    Fate::Dropped(Drop { rule, why }) => {
                        serde_json::to_writer(
                            &mut file,
                            &json!({"id": judged.id, "rule": rule, "why": why}),
                        )?;
                        file.write_all(b"\n")?;
                        *summary.dropped.entry(rule).or_default() += 1;
                    }
                }
            }
        }
        begins.push((summary.kept as usize, entry));
        file.commit()?;
        report.finish(&summary);
        Ok((summary, begins, report))
    }

    /// Writes the shards that are not there yet; returns how many there are.
    fn write(&self, copies: &Copies, begins: &[Begin], out: &Path) -> Result<u64> {
        let size = self.config.output.shard_samples;
        let kept = begins.last().map_or(0, |b| b.0);
        let shards = kept.div_ceil(size);
        let progress = Progress::new("write", shards as u64, "shards");
        (0..shards).into_par_iter().try_for_each(|shard| {
            let path = out.join("shards").join(format!("{shard:06}.tar"));
            if !path.is_file() {
                self.write_shard(copies, begins, shard * size..kept.min((shard + 1) * size), &path)?;
            }
            progress.inc(1);
            anyhow::Ok(())
        })?;
        progress.finish();
        Ok(shards as u64)
    }

    fn write_shard(
        &self,
        copies: &Copies,
        begins: &[Begin],
        range: std::ops::Range<usize>,
        path: &Path,
    ) -> Result<()> {
        let mut tar = tar::Builder::new(AtomicFile::create(path)?);
        let first = begins.partition_point(|b| b.0 <= range.start) - 1;
        for (unit, begin) in begins.iter().enumerate().take(self.units.len()).skip(first) {
            let (mut number, mut entry) = *begin;
            if number >= range.end {
                break;
            }
            let mut lines = self.judged(unit)?;
            self.units[unit].read(&mut |sample| {
                let judged = lines.next().context("a marker is shorter than its file")??;
                if let (Fate::Kept(images), _) = self.fate(&judged, copies, &mut entry) {
                    if range.contains(&number) {
                        let mut sample = sample?;
                        sample.retain_images(|i| images[i]);
                        let known = known(&judged, &images);
                        for (ending, bytes) in sample.members(&known) {
                            append(&mut tar, &format!("{number:09}.{ending}"), &bytes)?;
                        }
                    }
                    number += 1;
                }
                Ok(if number < range.end { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
        }
        Ok(tar.into_inner()?.commit()?)
    }
}

/// What the JSON of a sample says beside what it said before.
fn known(judged: &Judged, kept: &[bool]) -> Map<String, Value> {
    let round = |x: &f32| json!((f64::from(*x) * 1e4).round() / 1e4);
    let of = |(i, p): (usize, &Picture)| {
        let mut map = Map::new();
        map.insert("width".into(), json!(p.width));
        map.insert("height".into(), json!(p.height));
        map.insert("phash".into(), json!(p.phash));
        if let Some(similarity) = judged.similarity.get(i) {
            map.insert("similarity".into(), round(similarity));
        }
        map
    };
    let mut pictures = judged.pictures.iter().enumerate().filter(|(i, _)| kept[*i]).map(of);
    let mut map = Map::new();
    map.insert("id".into(), json!(judged.id));
    if judged.document {
        map.insert("pictures".into(), pictures.map(Value::Object).collect());
    } else {
        map.extend(pictures.next().unwrap_or_default());
    }
    map
}

/// A member that is the same on every machine.
pub(crate) fn append(tar: &mut tar::Builder<AtomicFile>, name: &str, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    tar.append_data(&mut header, name, bytes).with_context(|| format!("cannot write {name}"))
}
