//! Writes the documents and the dropped ones of a segment, once it is known which are copies.

use std::path::Path;

use anyhow::Result;
use intern_format::atomic::{read_json, write_json};
use intern_format::document::{Document, DocumentWriter};
use serde_json::Value;

use super::config::RecipeConfig;
use super::repeats::Repeats;
use super::signatures::Signatures;
use super::stats::Stats;
use super::work::{Judged, Segment, SegmentFiles, read_part};
use crate::dedup::{exact, minhash};
use crate::stage::Reason;

/// Copies over all pages.
pub struct Copies {
    /// Per page the one kept in its place, `NONE` for pages that are no copies.
    kept: Vec<u32>,
    /// Similarity to that page, ten thousandths; 0 for exact copies, `SAME_URL` for pages of one address.
    similarity: Vec<u16>,
    /// Pairs compared, and pairs similar enough.
    pub compared: (u64, u64),
}

const NONE: u32 = u32::MAX;
const SAME_URL: u16 = u16::MAX;

impl Copies {
    /// The page kept in place of `page`: its number, the stage that found it, their similarity.
    #[must_use]
    pub fn of(&self, page: usize) -> Option<(u32, &'static str, f64)> {
        match (self.kept[page], self.similarity[page]) {
            (NONE, _) => None,
            (kept, 0) => Some((kept, "exact", 1.0)),
            (kept, SAME_URL) => Some((kept, "same_url", 1.0)),
            (kept, s) => Some((kept, "minhash", f64::from(s) / 1e4)),
        }
    }

    /// Pages that copies point to, in order.
    #[must_use]
    pub fn wanted(&self) -> Vec<u32> {
        let mut wanted: Vec<u32> = self.kept.iter().copied().filter(|k| *k != NONE).collect();
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }
}

/// Finds all copies: exact ones first, near ones among the rest.
///
/// # Errors
/// If a signature file cannot be read.
pub fn find_copies(config: &RecipeConfig, all: &Signatures) -> Result<Copies> {
    let pages = all.pages();
    let mut copies = Copies { kept: vec![NONE; pages], similarity: vec![0; pages], compared: (0, 0) };
    if config.dedup.url.enabled {
        let mut urls = all.urls()?;
        urls.sort_unstable();
        for same in urls.chunk_by(|a, b| a.0 == b.0) {
            for (_, k) in &same[1..] {
                let page = all.page(*k as usize);
                copies.kept[page] = all.page(same[0].1 as usize) as u32;
                copies.similarity[page] = SAME_URL;
            }
        }
    }
    if config.dedup.exact.enabled {
        let mut fingerprints = all.fingerprints()?;
        fingerprints.retain(|(_, k)| copies.kept[all.page(*k as usize)] == NONE);
        exact::duplicates(
            &mut fingerprints,
            config.dedup.exact.keep,
            |k| all.rank(k),
            |k, kept| {
                copies.kept[all.page(k)] = all.page(kept) as u32;
            },
        );
    }
    let settings = &config.dedup.minhash;
    if settings.enabled {
        let band = |band: usize, out: &mut Vec<(u64, u32)>| {
            all.band(band, out)?;
            out.retain(|(_, k)| copies.kept[all.page(*k as usize)] == NONE);
            Ok(())
        };
        let clusters =
            minhash::cluster(settings, all.num_kept(), band, |k| all.rank(k), |k| all.shingles(k))?;
        copies.compared = (clusters.compared, clusters.similar);
        for (k, kept) in (0..).zip(clusters.kept).filter(|(k, kept)| *k != *kept as usize) {
            let similarity = minhash::jaccard(&all.shingles(k)?, &all.shingles(kept as usize)?);
            copies.kept[all.page(k)] = all.page(kept as usize) as u32;
            copies.similarity[all.page(k)] = ((similarity * 1e4).round() as u16).max(1);
        }
    }
    Ok(copies)
}

/// Where output goes and what is known about all pages.
pub struct Emitter<'a> {
    /// The recipe.
    pub config: &'a RecipeConfig,
    /// The run's directory.
    pub out: &'a Path,
    /// Its work directory.
    pub work: &'a Path,
    /// Copies over all pages.
    pub copies: &'a Copies,
    /// Parts of documents that other documents have.
    pub repeats: &'a Repeats,
    /// Id of every page that a copy points to, by index.
    pub ids: &'a std::collections::HashMap<u32, String>,
}

impl Emitter<'_> {
    /// Writes the `index`-th segment, whose first page is `start`; returns its counts.
    ///
    /// # Errors
    /// If its part file cannot be read or the output not written.
    pub fn emit(&self, index: usize, segment: Segment, start: usize) -> Result<Stats> {
        let marker = self.work.join(format!("{index:05}.emitted.json"));
        if marker.is_file() {
            return Ok(read_json(&marker)?);
        }
        let files = SegmentFiles::of(self.work, segment);
        let mut stats = Stats::default();
        if let Some(info) = files.finished()? {
            stats.add_info(&info);
        }
        let name = format!("{index:05}.jsonl.zst");
        let mut documents = Output::new(self.out.join("documents").join(&name));
        let mut dropped = Output::new(self.out.join("dropped").join(&name));
        for (at, judged) in read_part(&files.part)?.enumerate() {
            let mut judged = judged?;
            let mut reason = judged.reason.take().or_else(|| self.copy_reason(start + at));
            if reason.is_none() {
                reason = self.repeats.take_out(&mut judged, (start + at) as u32);
            }
            stats.count(&judged, reason.as_ref(), self.config.output.samples);
            match reason {
                None => documents.write(&judged.document)?,
                Some(reason) if self.config.output.dropped => dropped.write(&with_reason(judged, &reason))?,
                Some(_) => {}
            }
        }
        documents.finish()?;
        dropped.finish()?;
        write_json(&marker, &stats)?;
        Ok(stats)
    }

    fn copy_reason(&self, page: usize) -> Option<Reason> {
        let (kept, stage, similarity) = self.copies.of(page)?;
        let (rule, limit) = match stage {
            "exact" => ("same_text", 1.0),
            "same_url" => ("same_url", 1.0),
            _ => ("similar_text", self.config.dedup.minhash.threshold),
        };
        let mut reason = Reason::new(stage, rule, similarity, limit);
        reason.duplicate_of = self.ids.get(&kept).cloned();
        Some(reason)
    }
}

/// The document with its reason in `meta`.
fn with_reason(judged: Judged, reason: &Reason) -> Document {
    let mut document = judged.document;
    let meta = &mut document.meta;
    meta.insert("reason".into(), Value::from(reason.stage.as_str()));
    meta.insert("rule".into(), Value::from(reason.rule.as_str()));
    meta.insert("value".into(), Value::from(reason.value));
    meta.insert("limit".into(), Value::from(reason.limit));
    if let Some(kept) = &reason.duplicate_of {
        meta.insert("duplicate_of".into(), Value::from(kept.as_str()));
    }
    document
}

/// A file that is only there if something is written to it.
struct Output {
    path: std::path::PathBuf,
    writer: Option<DocumentWriter>,
}

impl Output {
    fn new(path: std::path::PathBuf) -> Self {
        Self { path, writer: None }
    }

    fn write(&mut self, document: &Document) -> Result<()> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => self.writer.insert(DocumentWriter::create(&self.path)?),
        };
        Ok(writer.write(document)?)
    }

    fn finish(self) -> Result<()> {
        if let Some(writer) = self.writer {
            writer.finish()?;
        }
        Ok(())
    }
}
