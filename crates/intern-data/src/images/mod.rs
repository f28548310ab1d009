//! `intern data images`: pictures and their texts, checked, without copies, as WebDataset shards.
//!
//! Every picture is looked at once (`check`); a marker per input file under `.tmp-work` lets a killed
//! run go on. Then copies are found over all of them (`near`), and the shards are written, each under a
//! temporary name until it is whole. The bytes depend on input and configuration only.

mod check;
pub mod clip;
mod near;
mod report;
pub mod sample;

use std::collections::{BTreeMap, HashMap, HashSet};
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
pub use report::Report;
pub use sample::{Kind, SourceConfig};
use sample::{Sample, Unit};

use crate::job::Job;
use crate::words::Words;

const COMMAND: &str = "data images";
/// Samples in memory at once: so many, or as many as hold so many bytes.
const BATCH: (usize, usize) = (256, 64 << 20);

/// Configuration of `intern data images`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ImagesConfig {
    /// Where pictures come from.
    pub source: Vec<SourceConfig>,
    /// What a picture must be.
    pub image: ImageRules,
    /// What a pair's text must be.
    pub caption: CaptionRules,
    /// What an interleaved document must be.
    pub document: DocumentRules,
    /// Copies of pictures.
    pub dedup: DedupConfig,
    /// How well texts fit their pictures.
    pub clip: ClipConfig,
    /// What is written.
    pub output: OutputConfig,
}

/// Limits of captions.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CaptionRules {
    /// Fewest words; 0 also allows pictures without a text.
    pub min_words: usize,
    /// Fewest characters.
    pub min_chars: usize,
    /// Most characters; 0 for any number.
    pub max_chars: usize,
}

/// Limits of interleaved documents.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DocumentRules {
    /// Fewest pictures left.
    pub min_images: usize,
    /// Most pictures left; 0 for any number.
    pub max_images: usize,
    /// Fewest characters of text.
    pub min_chars: usize,
    /// In how many documents the same picture may be; one in more (a logo) is taken out of all.
    pub max_copies: usize,
}

impl Default for DocumentRules {
    fn default() -> Self {
        Self { min_images: 1, max_images: 30, min_chars: 0, max_copies: 10 }
    }
}

/// How copies are found. Of pairs the one with the most pixels stays, the largest file and then the
/// first of equals; in documents a picture stays once each.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DedupConfig {
    /// Whether equal files are copies.
    pub exact: bool,
    /// Whether pictures that look alike are.
    pub perceptual: bool,
    /// Bits of 64 in which the perceptual hashes of copies may differ.
    pub max_distance: u32,
}

impl Default for DedupConfig {
    fn default() -> Self {
        Self { exact: true, perceptual: true, max_distance: 6 }
    }
}

/// CLIP's judgement.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClipConfig {
    /// Hugging Face directory of a CLIP model; without one nothing is judged.
    pub model: Option<PathBuf>,
    /// Least cosine of a picture and its text; in a document, the better one beside it.
    pub min_similarity: f32,
}

/// How results are written.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OutputConfig {
    /// Samples of a shard.
    pub shard_samples: usize,
    /// Pictures the report shows of those kept, and of each rule.
    pub report_samples: usize,
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self { shard_samples: 10_000, report_samples: 12 }
    }
}

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

/// What was found out about a sample by itself: a line of a unit's marker.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Judged {
    id: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    document: bool,
    pictures: Vec<Picture>,
    /// CLIP's cosine per picture.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    similarity: Vec<f32>,
    /// Why the sample is left out as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    drop: Option<Drop>,
}

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

fn judge(config: &ImagesConfig, clip: Option<&Clip>, sample: &Result<Sample>) -> Result<Judged> {
    let sample = match sample {
        Ok(sample) => sample,
        Err(e) => {
            let drop = Some(Drop::new("broken", format!("{e:#}").replace('\n', "; ")));
            return Ok(Judged { drop, ..Judged::default() });
        }
    };
    let document = sample.parts.is_some();
    let mut judged = Judged { id: sample.id.clone(), document, ..Judged::default() };
    judged.drop = if document {
        judge_document(&config.document, sample)
    } else {
        judge_caption(&config.caption, sample)
    };
    for (i, image) in sample.images.iter().enumerate() {
        let (mut picture, pixels) = look(&image.bytes, &config.image);
        if let (Some(clip), Some(pixels)) = (clip, pixels) {
            let seen = clip.image(&pixels);
            let mut best = f32::NEG_INFINITY;
            for text in sample.texts_of(i) {
                best = best.max(clip::similarity(&seen, &clip.text(text)?));
            }
            if best < config.clip.min_similarity {
                let why = match best.is_finite() {
                    true => format!("{best:.3}, at least {}", config.clip.min_similarity),
                    false => "there is no text".into(),
                };
                picture.drop = Some(Drop::new("similarity", why));
            }
            judged.similarity.resize(i, 0.0);
            judged.similarity.push(if best.is_finite() { best } else { 0.0 });
        }
        judged.pictures.push(picture);
    }
    Ok(judged)
}

fn judge_caption(rules: &CaptionRules, sample: &Sample) -> Option<Drop> {
    if sample.images.is_empty() {
        return Some(Drop::new("no_image", "there is no picture"));
    }
    let text = sample.caption.as_deref().unwrap_or_default();
    let chars = text.chars().count();
    if chars < rules.min_chars {
        return Some(Drop::new("caption_chars", format!("{chars} characters, at least {}", rules.min_chars)));
    }
    if rules.max_chars > 0 && chars > rules.max_chars {
        return Some(Drop::new("caption_chars", format!("{chars} characters, at most {}", rules.max_chars)));
    }
    let words = if rules.min_words > 0 { Words::split(text).count() } else { 0 };
    (words < rules.min_words)
        .then(|| Drop::new("caption_words", format!("{words} words, at least {}", rules.min_words)))
}

fn judge_document(rules: &DocumentRules, sample: &Sample) -> Option<Drop> {
    let texts = sample.parts.iter().flatten().filter_map(sample::Part::text);
    let chars: usize = texts.map(|t| t.chars().count()).sum();
    (chars < rules.min_chars)
        .then(|| Drop::new("document_chars", format!("{chars} characters, at least {}", rules.min_chars)))
}

/// A picture no rule dropped, as comparing needs it.
struct Entry {
    /// Number of its sample.
    sample: u32,
    document: bool,
    hash: u128,
    phash: u64,
    pixels: u64,
    bytes: u64,
}

/// What comparing found about the pictures no rule dropped, in order.
#[derive(Default)]
struct Copies {
    /// Why each is to go; the number is into `partners`.
    verdicts: Vec<Verdict>,
    /// Ids of samples that hold the copies kept.
    partners: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    Unique,
    CopyOf(u32),
    /// In so many documents.
    Boilerplate(u32),
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

    fn copies(&self) -> Result<Copies> {
        let config = &self.config.dedup;
        let mut entries: Vec<Entry> = Vec::new();
        for (sample, judged) in self.all().enumerate() {
            let judged = judged?;
            for p in judged.pictures.iter().filter(|p| judged.drop.is_none() && p.drop.is_none()) {
                entries.push(Entry {
                    sample: sample as u32,
                    document: judged.document,
                    hash: u128::from_str_radix(&p.hash, 16)?,
                    phash: u64::from_str_radix(&p.phash, 16)?,
                    pixels: u64::from(p.width) * u64::from(p.height),
                    bytes: p.bytes,
                });
            }
        }
        let mut groups: Vec<usize> = (0..entries.len()).collect();
        if config.exact {
            let mut first: HashMap<u128, usize> = HashMap::new();
            entries.iter().enumerate().for_each(|(i, e)| groups[i] = *first.entry(e.hash).or_insert(i));
        }
        if config.perceptual {
            // Equal files have equal hashes, so these groups hold the exact ones.
            let hashes: Vec<u64> = entries.iter().map(|e| e.phash).collect();
            groups = near::groups(&hashes, config.max_distance);
        }
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, &group) in groups.iter().enumerate() {
            if group != i {
                members.entry(group).or_insert_with(|| vec![group]).push(i);
            }
        }
        let mut verdicts = vec![Verdict::Unique; entries.len()];
        let mut kept_in = Vec::new();
        for group in members.values() {
            self.judge_group(&entries, group, &mut verdicts, &mut kept_in);
        }
        let wanted: HashSet<u32> = kept_in.iter().copied().collect();
        let mut ids: HashMap<u32, String> = HashMap::new();
        for (sample, judged) in self.all().enumerate() {
            if wanted.contains(&(sample as u32)) {
                ids.insert(sample as u32, judged?.id);
            }
        }
        let partners = kept_in.iter().map(|s| ids.get(s).cloned().unwrap_or_default()).collect();
        Ok(Copies { verdicts, partners })
    }

    /// Judges pictures that are copies of one another.
    fn judge_group(
        &self,
        entries: &[Entry],
        group: &[usize],
        verdicts: &mut [Verdict],
        kept_in: &mut Vec<u32>,
    ) {
        let best = |i: &&usize| (entries[**i].pixels, entries[**i].bytes, std::cmp::Reverse(**i));
        let pairs = group.iter().filter(|i| !entries[**i].document);
        if let Some(&kept) = pairs.clone().max_by_key(best) {
            let partner = kept_in.len() as u32;
            kept_in.push(entries[kept].sample);
            pairs.filter(|i| **i != kept).for_each(|&i| verdicts[i] = Verdict::CopyOf(partner));
        }
        let mut documents: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for &i in group.iter().filter(|i| entries[**i].document) {
            documents.entry(entries[i].sample).or_default().push(i);
        }
        let spread = documents.len();
        for (sample, places) in documents {
            if spread > self.config.document.max_copies {
                places.iter().for_each(|&i| verdicts[i] = Verdict::Boilerplate(spread as u32));
            } else if places.len() > 1 {
                let partner = kept_in.len() as u32;
                kept_in.push(sample);
                places[1..].iter().for_each(|&i| verdicts[i] = Verdict::CopyOf(partner));
            }
        }
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
    fn decide(&self, copies: &Copies, out: &Path) -> Result<(Summary, Vec<(usize, usize)>, Report)> {
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
    fn write(&self, copies: &Copies, begins: &[(usize, usize)], out: &Path) -> Result<u64> {
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
        begins: &[(usize, usize)],
        range: std::ops::Range<usize>,
        path: &Path,
    ) -> Result<()> {
        let mut tar = tar::Builder::new(AtomicFile::create(path)?);
        let first = begins.partition_point(|b| b.0 <= range.start) - 1;
        for unit in first..self.units.len() {
            let (mut number, mut entry) = begins[unit];
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
