//! Cleans one shard: raw pages → judged documents, written beside their signatures.
//!
//! Pages are read in batches of bounded size and cleaned on all cores; results keep the
//! input's order. A segment's `part` file holds every page, kept or dropped, so that
//! later steps only read; its marker file, written last, says that it is complete. A run
//! that goes on skips the records of finished segments.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use intern_format::atomic::{AtomicFile, read_json, write_json};
use intern_format::document::Document;
use intern_progress::Progress;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::RecipeConfig;
use super::signatures::{Row, SignatureWriter};
use crate::dedup::minhash::{MinHasher, Signature};
use crate::dedup::{Rank, exact};
use crate::extract;
use crate::gold::{Gold, Score};
use crate::hash::hash64;
use crate::source::encoding::{self, Decoded};
use crate::source::{self, Body, Item, Raw, Shard, epub, pdf};
use crate::stage::{self, Candidate, Reason, Sheet, Stage};

/// Pages and bytes in one batch.
const BATCH_PAGES: usize = 256;
const BATCH_BYTES: u64 = 24 << 20;
/// Descriptions of broken records kept per shard.
const MAX_TOLD: usize = 20;

/// Everything cleaning a page needs; shared by all threads.
pub struct Cleaner<'a> {
    /// The recipe.
    pub config: &'a RecipeConfig,
    /// The recipe's stages, in order.
    pub stages: Vec<Box<dyn Stage>>,
    /// Expected texts, if a gold file is given.
    pub gold: Option<Gold>,
    /// Signs documents, unless near duplicates stay.
    pub hasher: Option<MinHasher>,
}

/// One page's fate, a line of a `part` file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Judged {
    /// The document; its text is empty if there was none.
    pub document: Document,
    /// Why it was dropped, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// How its extraction compares with the gold file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gold: Option<Score>,
    /// Encoding of its bytes, and what was repaired: places left out, lines mended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoded: Option<(String, usize, usize)>,
    /// What stages changed in the text, counted.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub edits: BTreeMap<String, u64>,
    /// What decides between copies of it where the best is kept.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rank: f32,
}

fn is_zero(x: &f32) -> bool {
    *x == 0.0
}

/// A finished segment's marker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// Pages judged.
    pub pages: u64,
    /// Items of the source read: pages, records that are none, broken ones.
    pub items: u64,
    /// It ends its shard.
    pub last: bool,
    /// Records that are no pages, by kind.
    pub passed: BTreeMap<String, u64>,
    /// Broken records.
    pub broken: u64,
    /// The first of them, in words.
    pub told: Vec<String>,
}

/// A part of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The shard.
    pub shard: usize,
    /// Which part of it.
    pub part: usize,
}

/// A finished segment.
pub struct Done {
    /// Which.
    pub segment: Segment,
    /// Its pages.
    pub pages: u64,
}

/// Files of a segment under `work`.
pub struct SegmentFiles {
    /// All pages, JSON lines in zstd.
    pub part: PathBuf,
    /// Signatures; shingles lie beside.
    pub signatures: PathBuf,
    /// The marker.
    pub marker: PathBuf,
}

impl SegmentFiles {
    /// The names.
    #[must_use]
    pub fn of(work: &Path, segment: Segment) -> Self {
        let name = |e: &str| work.join(format!("{:05}-{:05}.{e}", segment.shard, segment.part));
        Self { part: name("part.zst"), signatures: name("sig"), marker: name("json") }
    }

    /// The marker of a finished segment.
    ///
    /// # Errors
    /// If it is there but unreadable.
    pub fn finished(&self) -> Result<Option<SegmentInfo>> {
        if !self.marker.is_file() {
            return Ok(None);
        }
        Ok(Some(read_json(&self.marker)?))
    }
}

impl Cleaner<'_> {
    /// Cleans `shard`, at most `limit` pages of it, and writes its segments under `work`;
    /// returns them all, and how many pages were not done before.
    ///
    /// # Errors
    /// If its files cannot be read or the results not written.
    pub fn run_shard(
        &self,
        shard: &Shard,
        index: usize,
        limit: u64,
        work: &Path,
        progress: &Progress,
    ) -> Result<(Vec<Done>, u64)> {
        let (mut done, mut items_done, mut pages) = (Vec::new(), 0, 0);
        let mut cleaned = 0;
        let mut items: Option<source::Items> = None;
        for part in 0.. {
            let segment = Segment { shard: index, part };
            let files = SegmentFiles::of(work, segment);
            let info = match files.finished()? {
                Some(info) => {
                    progress.inc(info.pages);
                    info
                }
                None => {
                    if items.is_none() {
                        let settings = &self.config.source[shard.source];
                        let mut all = source::open(settings, shard, self.config.output.max_page_bytes)?;
                        if items_done > 0 {
                            all.nth(items_done as usize - 1);
                        }
                        items = Some(all);
                    }
                    let items = items.as_mut().expect("just opened");
                    let info = self.run_segment(shard, &files, items, limit - pages, progress)?;
                    cleaned += info.pages;
                    info
                }
            };
            items_done += info.items;
            pages += info.pages;
            done.push(Done { segment, pages: info.pages });
            if info.last {
                break;
            }
        }
        Ok((done, cleaned))
    }

    fn run_segment(
        &self,
        shard: &Shard,
        files: &SegmentFiles,
        items: &mut source::Items,
        limit: u64,
        progress: &Progress,
    ) -> Result<SegmentInfo> {
        let label = self.config.source[shard.source].label();
        let room = limit.min(self.config.output.shard_pages as u64);
        let mut info = SegmentInfo::default();
        let mut part = zstd::Encoder::new(AtomicFile::create(&files.part)?, 1).context("starting zstd")?;
        let mut signatures = SignatureWriter::create(&files.signatures, self.bands())?;

        let mut batch = read_batch(items, room, &mut info);
        while !batch.is_empty() {
            let left = room - info.pages - batch.len() as u64;
            let mut next_info = SegmentInfo::default();
            let (cleaned, next) = rayon::join(
                || batch.into_par_iter().map(|raw| self.clean(raw, &label)).collect::<Vec<_>>(),
                || read_batch(items, left, &mut next_info),
            );
            for cleaned in cleaned {
                let (judged, row, signature) = cleaned?;
                serde_json::to_writer(&mut part, &judged).context("writing a part file")?;
                part.write_all(b"\n").with_context(|| files.part.display().to_string())?;
                signatures.push(row, &signature)?;
                info.pages += 1;
                progress.inc(1);
            }
            info.add(next_info);
            batch = next;
        }
        // Page files are cut into shards beforehand; of records, more may follow.
        info.last |= info.pages == limit || self.config.source[shard.source].is_page_per_file();
        part.finish().with_context(|| files.part.display().to_string())?.commit()?;
        signatures.finish()?;
        write_json(&files.marker, &info)?;
        Ok(info)
    }

    fn bands(&self) -> usize {
        if self.hasher.is_some() { self.config.dedup.minhash.bands } else { 0 }
    }

    /// One page from bytes to verdict.
    fn clean(&self, raw: Raw, source: &str) -> Result<(Judged, Row, Signature)> {
        let id = raw.id.clone();
        let done = catch_unwind(AssertUnwindSafe(|| self.clean_page(raw, source, &mut Sheet::default())));
        let judged = match done {
            Ok(judged) => judged?,
            // A page that breaks the extractor must not end a run of millions.
            Err(_) => Judged {
                document: Document { id, source: source.to_string(), ..Document::default() },
                reason: Some(Reason::new("extract", "panic", 1.0, 0.0)),
                gold: None,
                decoded: None,
                edits: BTreeMap::new(),
                rank: 0.0,
            },
        };
        let text = &judged.document.text;
        let kept = judged.reason.is_none();
        let signature = match &self.hasher {
            Some(hasher) if kept => hasher.sign(text),
            _ => Signature::default(),
        };
        let exact = self.config.dedup.exact.enabled;
        let fingerprint = if kept && exact { exact::fingerprint(text) } else { [0; 16] };
        let rank = Rank { chars: text.chars().count() as u32, score: judged.rank };
        let url = match judged.document.url.as_str() {
            "" => 0,
            url => hash64(url.split('#').next().unwrap_or(url).trim_end_matches('/').as_bytes()).max(1),
        };
        let row = Row { kept, rank, url, fingerprint };
        Ok((judged, row, signature))
    }

    /// Judges one page, noting comparisons on `sheet`.
    ///
    /// # Errors
    /// If its file cannot be read.
    pub fn clean_page(&self, raw: Raw, source: &str, sheet: &mut Sheet) -> Result<Judged> {
        let Raw { id, url, path, body, meta } = raw;
        let mut document = Document { id, url, meta, source: source.to_string(), ..Document::default() };
        let mut judged = Judged {
            document: Document::default(),
            reason: None,
            gold: None,
            decoded: None,
            edits: BTreeMap::new(),
            rank: 0.0,
        };
        let (decoded, html) = match body {
            Body::Document(d) => {
                document.lang = d.lang;
                if !d.source.is_empty() {
                    document.meta.insert("source".into(), Value::String(d.source));
                }
                (Decoded { text: d.text, encoding: "UTF-8", errors: 0, mended_lines: 0 }, false)
            }
            Body::Book { pdf } => {
                // Pictures make books large; the limit is for the text.
                let bytes = source::read_page(&path, 1 << 30)?;
                let max = self.config.output.max_page_bytes;
                let book = match pdf {
                    true => pdf::read(&bytes, max),
                    false => epub::read(&bytes, self.config.extract.format, max),
                };
                let book = match book {
                    Ok(book) => book,
                    Err(e) => {
                        tracing::warn!("{}: {e:#}", path.display());
                        epub::Book::default()
                    }
                };
                document.lang = book.lang;
                for (key, value) in [("title", book.title), ("author", book.author)] {
                    if !value.is_empty() {
                        document.meta.insert(key.into(), Value::String(value));
                    }
                }
                (Decoded { text: book.text, encoding: "UTF-8", errors: 0, mended_lines: 0 }, false)
            }
            Body::File { html } => {
                let bytes = source::read_page(&path, self.config.output.max_page_bytes)?;
                (encoding::decode(&bytes, None, html), html)
            }
            Body::Bytes { bytes, html, charset } => {
                (encoding::decode(&bytes, charset.as_deref(), html), html)
            }
        };
        judged.decoded = Some((decoded.encoding.to_string(), decoded.errors, decoded.mended_lines));
        let errors = decoded.errors as f64 / decoded.text.chars().count().max(1) as f64;
        let limit = self.config.encoding.max_errors;
        if html {
            self.extract(&decoded.text, &mut document);
        } else {
            document.text = plain(&decoded.text);
        }
        if let Some(expected) = self.gold.as_ref().and_then(|g| g.find(&document.id, &path)) {
            judged.gold = Some(expected.score(&document.text));
        }
        judged.reason = if errors > limit {
            Some(Reason::new("encoding", "max_errors", errors, limit))
        } else if document.text.is_empty() {
            Some(Reason::new("extract", "no_text", 0.0, 1.0))
        } else {
            self.judge(&mut judged, &mut document, sheet)
        };
        judged.document = document;
        Ok(judged)
    }

    fn extract(&self, html: &str, document: &mut Document) {
        let page = extract::extract(html, &self.config.extract);
        document.text = page.text;
        document.lang = page.lang;
        if document.url.is_empty() {
            document.url = page.canonical;
        }
        for (key, value) in [("title", page.title), ("author", page.author), ("published", page.date)] {
            if !value.is_empty() {
                document.meta.insert(key.into(), Value::String(value));
            }
        }
    }

    /// Judges a document, and leaves it as the stages changed it.
    fn judge(&self, judged: &mut Judged, document: &mut Document, sheet: &mut Sheet) -> Option<Reason> {
        let mut candidate =
            Candidate::new(&document.text, &document.lang).with_splitter(self.config.words).at(&document.url);
        stage::judge(&self.stages, &mut candidate, sheet);
        judged.rank = candidate.rank;
        judged.edits = std::mem::take(&mut candidate.edits);
        document.meta.append(&mut candidate.notes);
        document.lang = std::mem::take(&mut candidate.lang);
        if let Some(text) = candidate.into_changed() {
            document.text = text;
        }
        sheet.reason.take()
    }
}

impl SegmentInfo {
    fn add(&mut self, other: SegmentInfo) {
        self.items += other.items;
        self.last |= other.last;
        self.broken += other.broken;
        for (kind, n) in other.passed {
            *self.passed.entry(kind).or_default() += n;
        }
        for told in other.told {
            if self.told.len() < MAX_TOLD {
                self.told.push(told);
            }
        }
    }
}

/// Pages up to the batch's bounds and `limit`; what is no page goes to `info`.
fn read_batch(items: &mut source::Items, limit: u64, info: &mut SegmentInfo) -> Vec<Raw> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while batch.len() < BATCH_PAGES && bytes < BATCH_BYTES && (batch.len() as u64) < limit {
        let item = items.next();
        info.items += u64::from(item.is_some());
        match item {
            None => {
                info.last = true;
                break;
            }
            Some(Item::Page(raw)) => {
                bytes += size(&raw);
                batch.push(raw);
            }
            Some(Item::Passed(kind)) => *info.passed.entry(kind).or_default() += 1,
            Some(Item::Broken(what)) => {
                info.broken += 1;
                if info.told.len() < MAX_TOLD {
                    info.told.push(what);
                }
            }
        }
    }
    batch
}

fn size(raw: &Raw) -> u64 {
    match &raw.body {
        Body::File { .. } | Body::Book { .. } => std::fs::metadata(&raw.path).map_or(0, |m| m.len()),
        Body::Bytes { bytes, .. } => bytes.len() as u64,
        Body::Document(d) => d.text.len() as u64,
    }
}

/// Plain text with `\n` line ends, without trailing spaces, control characters and outer blank lines.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let line = line.trim_end();
        out.extend(line.chars().filter(|c| !c.is_control() || *c == '\t'));
        out.push('\n');
    }
    out.trim_matches('\n').to_string()
}

/// The pages of a finished segment, in order.
///
/// # Errors
/// If its part file cannot be opened; items fail where it is damaged.
pub fn read_part(path: &Path) -> Result<impl Iterator<Item = Result<Judged>>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let lines = BufReader::with_capacity(1 << 16, zstd::Decoder::new(file)?).lines();
    let path = path.to_path_buf();
    Ok(lines.map(move |line| {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&line).with_context(|| format!("{} is damaged", path.display()))
    }))
}
