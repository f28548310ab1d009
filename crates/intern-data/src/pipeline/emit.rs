//! Writes the documents and the dropped ones of a shard, once it is known which are copies.

use std::path::Path;

use anyhow::Result;
use intern_format::atomic::{read_json, write_json};
use intern_format::document::{Document, DocumentWriter};
use serde_json::Value;

use super::config::RecipeConfig;
use super::signatures::Signatures;
use super::stats::Stats;
use super::work::{Judged, ShardFiles, read_part};
use crate::dedup::{exact, minhash};
use crate::stage::Reason;

/// Copies over all pages: index of the kept page, the stage that found it, similarity.
pub struct Copies {
    /// One entry per page, over all shards in order.
    pub of: Vec<Option<(u32, &'static str, f64)>>,
    /// Pairs compared, and pairs similar enough.
    pub compared: (u64, u64),
}

/// Finds all copies: exact ones first, near ones among the rest.
///
/// # Errors
/// If a signature file cannot be read.
pub fn find_copies(config: &RecipeConfig, all: &Signatures) -> Result<Copies> {
    let mut copies = Copies { of: vec![None; all.rows.len()], compared: (0, 0) };
    let pages: Vec<usize> = all.kept.iter().map(|&i| i as usize).collect();
    let mut alone: Vec<bool> = vec![true; pages.len()];
    if config.dedup.exact.enabled {
        let hashes: Vec<([u8; 16], u32)> =
            pages.iter().map(|&i| (all.rows[i].fingerprint, all.rows[i].chars)).collect();
        for (k, kept) in exact::duplicates(&hashes, config.dedup.exact.keep).into_iter().enumerate() {
            if let Some(kept) = kept {
                alone[k] = false;
                copies.of[pages[k]] = Some((pages[kept] as u32, "exact", 1.0));
            }
        }
    }
    let settings = &config.dedup.minhash;
    if settings.enabled {
        let signed: Vec<bool> = (0..pages.len()).map(|k| alone[k] && all.is_signed(k)).collect();
        let chars: Vec<u32> = pages.iter().map(|&i| all.rows[i].chars).collect();
        let clusters = minhash::cluster(settings, &all.bands, &signed, &chars, |k| all.shingles(k))?;
        copies.compared = (clusters.compared, clusters.similar);
        for (k, kept) in clusters.duplicate_of.into_iter().enumerate() {
            if let Some((kept, similarity)) = kept {
                copies.of[pages[k]] = Some((pages[kept] as u32, "minhash", similarity));
            }
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
    /// Id of every page that a copy points to, by index.
    pub ids: &'a std::collections::HashMap<u32, String>,
}

impl Emitter<'_> {
    /// Writes shard `index`, whose first page is `start`; returns its counts.
    ///
    /// # Errors
    /// If its part file cannot be read or the output not written.
    pub fn emit(&self, index: usize, start: usize) -> Result<Stats> {
        let marker = self.work.join(format!("{index:05}.emitted.json"));
        if marker.is_file() {
            return Ok(read_json(&marker)?);
        }
        let files = ShardFiles::of(self.work, index);
        let mut stats = Stats::default();
        if let Some(info) = files.finished()? {
            stats.add_info(&info);
        }
        let name = format!("{index:05}.jsonl.zst");
        let mut documents = Output::new(self.out.join("documents").join(&name));
        let mut dropped = Output::new(self.out.join("dropped").join(&name));
        for (at, judged) in read_part(&files.part)?.enumerate() {
            let mut judged = judged?;
            let reason = judged.reason.take().or_else(|| self.copy_reason(start + at));
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
        let (kept, stage, similarity) = self.copies.of[page]?;
        let (rule, limit) = match stage {
            "exact" => ("same_text", 1.0),
            _ => ("similar_text", self.config.dedup.minhash.threshold),
        };
        let mut reason = Reason::new(stage, rule, (similarity * 1e4).round() / 1e4, limit);
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
