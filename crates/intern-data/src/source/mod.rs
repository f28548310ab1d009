//! Where raw pages come from: a recipe's sources → shards of input → raw pages, in one
//! deterministic order.
//!
//! A shard is what a run completes at once: a thousand page files, or one archive or
//! record file. Reading never fails a run for what is inside a file: broken records are
//! told beside the pages, and only a missing or unreadable path is an error.

mod csv;
pub mod encoding;
pub mod epub;
pub mod files;
pub mod http;
pub mod pdf;
pub mod warc;
mod zip;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use intern_format::document::{self, Document};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use files::FileRef;

/// What a source's files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// One page per file.
    Html,
    /// WARC or ARC archives, plain, gzip or zstd; WET files give their text.
    Warc,
    /// One document per row of comma- or tab-separated values, with a column `text` or `content`.
    Csv,
    /// One document per electronic book.
    Epub,
    /// One document per PDF file that holds text.
    Pdf,
    /// One document per file.
    Text,
    /// One document per line.
    Jsonl,
    /// One document per row.
    Parquet,
    /// The documentation that comes with the Rust toolchain in use; needs no path.
    RustcDocs,
}

/// One `[[source]]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Name in ids and reports; the kind's name if not given.
    #[serde(default)]
    pub name: String,
    /// What the files are.
    pub kind: SourceKind,
    /// A file, a directory, or a pattern with `*`, `?` and `**`; also a list of them.
    #[serde(default)]
    pub path: Paths,
    /// At most so many pages: of page files a sample spread over all of them (the first in
    /// the order of their names' hashes), of record files the first ones. 0 takes all.
    #[serde(default)]
    pub limit: u64,
}

/// One path or several.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum Paths {
    /// `path = "pages"`.
    One(PathBuf),
    /// `path = ["a", "b"]`.
    Many(Vec<PathBuf>),
}

impl Default for Paths {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Paths {
    /// All of them.
    #[must_use]
    pub fn as_slice(&self) -> &[PathBuf] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(paths) => paths,
        }
    }
}

impl SourceConfig {
    /// The name, or the kind's.
    #[must_use]
    pub fn label(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        let kind = serde_json::to_value(self.kind).ok();
        kind.and_then(|v| v.as_str().map(String::from)).unwrap_or_default()
    }

    /// Endings of its files.
    #[must_use]
    pub fn extensions(&self) -> &'static [&'static str] {
        match self.kind {
            SourceKind::Html | SourceKind::RustcDocs => &[".html", ".htm", ".xhtml"],
            SourceKind::Warc => &[
                ".warc",
                ".warc.gz",
                ".arc",
                ".arc.gz",
                ".wet",
                ".wet.gz",
                ".warc.wet",
                ".warc.wet.gz",
                ".warc.zst",
                ".wet.zst",
            ],
            SourceKind::Csv => &[".csv", ".tsv"],
            SourceKind::Epub => &[".epub"],
            SourceKind::Pdf => &[".pdf"],
            SourceKind::Text => &[".txt", ".text", ".md"],
            SourceKind::Jsonl => &[
                ".jsonl",
                ".jsonl.gz",
                ".jsonl.zst",
                ".json",
                ".json.gz",
                ".json.zst",
                ".ndjson",
                ".ndjson.gz",
                ".ndjson.zst",
            ],
            SourceKind::Parquet => &[".parquet"],
        }
    }

    /// Whether every file is one page.
    #[must_use]
    pub fn is_page_per_file(&self) -> bool {
        use SourceKind::{Epub, Html, Pdf, RustcDocs, Text};
        matches!(self.kind, Html | Text | RustcDocs | Epub | Pdf)
    }

    /// The source's files, and a note when there is something a reader should know.
    ///
    /// # Errors
    /// If a path is missing or holds nothing that fits.
    pub fn files(&self) -> Result<(Vec<FileRef>, Option<String>)> {
        let label = self.label();
        let mut note = None;
        let mut found = Vec::new();
        if self.kind == SourceKind::RustcDocs && self.path.as_slice().is_empty() {
            match rustc_docs() {
                Some(root) => found = files::list(&root, self.extensions())?,
                None => {
                    note = Some(format!(
                        "Source {label}: this machine's Rust toolchain has no documentation (share/doc/rust/html), so its pages are left out."
                    ));
                }
            }
        } else if self.path.as_slice().is_empty() {
            bail!("source {label}: no path\nhint: add path = \"…\" to this [[source]]");
        }
        let several = self.path.as_slice().len() > 1;
        for path in self.path.as_slice() {
            let mut part = files::list(path, self.extensions()).with_context(|| format!("source {label}"))?;
            if several {
                // Names stay unique when two directories hold files of the same name.
                let stem = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                part.iter_mut()
                    .filter(|f| f.name != stem)
                    .for_each(|f| f.name = format!("{stem}/{}", f.name));
            }
            found.append(&mut part);
        }
        if self.is_page_per_file() && self.limit > 0 && found.len() as u64 > self.limit {
            note = Some(format!("Source {label}: a sample of {} of {} pages.", self.limit, found.len()));
            found = sample(found, self.limit as usize);
        }
        Ok((found, note))
    }
}

/// The `n` files whose names hash lowest, in their old order.
fn sample(files: Vec<FileRef>, n: usize) -> Vec<FileRef> {
    let hash = |f: &FileRef| *blake3::hash(f.name.as_bytes()).as_bytes();
    let mut hashes: Vec<[u8; 32]> = files.iter().map(hash).collect();
    let cut = *hashes.select_nth_unstable(n - 1).1;
    files.into_iter().filter(|f| hash(f) <= cut).collect()
}

/// Where the documentation of the Rust toolchain in use is, if it is installed.
#[must_use]
pub fn rustc_docs() -> Option<PathBuf> {
    let output = std::process::Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
    let sysroot = String::from_utf8(output.stdout).ok()?;
    let root = Path::new(sysroot.trim()).join("share/doc/rust/html");
    root.is_dir().then_some(root)
}

/// What a run completes at once.
#[derive(Clone, Debug)]
pub struct Shard {
    /// Index of its source in the recipe.
    pub source: usize,
    /// Its files; several only where every file is one page.
    pub files: Vec<FileRef>,
}

/// A page before cleaning.
#[derive(Debug)]
pub struct Raw {
    /// Id of the document it becomes.
    pub id: String,
    /// Its address; empty if none.
    pub url: String,
    /// The file it is in.
    pub path: PathBuf,
    /// What it holds.
    pub body: Body,
    /// Goes to the document's `meta`.
    pub meta: Map<String, Value>,
}

/// A raw page's content.
#[derive(Debug)]
pub enum Body {
    /// An electronic book, not read yet.
    Book {
        /// A PDF file, or EPUB.
        pdf: bool,
    },
    /// A whole file, not read yet.
    File {
        /// HTML, or plain text.
        html: bool,
    },
    /// Bytes of a page.
    Bytes {
        /// The bytes.
        bytes: Vec<u8>,
        /// HTML, or plain text.
        html: bool,
        /// Charset of the HTTP header.
        charset: Option<String>,
    },
    /// A document that needs no extraction.
    Document(Box<Document>),
}

/// A raw page, or why a record gave none.
pub enum Item {
    /// A page.
    Page(Raw),
    /// A record that is no page by its nature (`request`, an image, status 404): its kind.
    Passed(String),
    /// A damaged record or file.
    Broken(String),
}

/// The items of a shard, in order.
pub type Items = Box<dyn Iterator<Item = Item> + Send>;

/// Opens a shard. `max_bytes` bounds one page.
///
/// # Errors
/// If a file cannot be opened.
pub fn open(source: &SourceConfig, shard: &Shard, max_bytes: usize) -> Result<Items> {
    let label = source.label();
    if source.is_page_per_file() {
        let kind = source.kind;
        let files = shard.files.clone();
        return Ok(Box::new(files.into_iter().map(move |f| {
            Item::Page(Raw {
                id: format!("{label}/{}", f.name),
                url: String::new(),
                path: f.path,
                body: match kind {
                    SourceKind::Epub => Body::Book { pdf: false },
                    SourceKind::Pdf => Body::Book { pdf: true },
                    kind => Body::File { html: kind != SourceKind::Text },
                },
                meta: Map::new(),
            })
        })));
    }
    let file = shard.files.first().context("a record shard has one file")?;
    match source.kind {
        SourceKind::Warc => warc_items(&label, file, max_bytes),
        SourceKind::Csv => csv::items(label, file),
        _ => document_items(label, file),
    }
}

/// Reads a page file, up to `max_bytes`.
///
/// # Errors
/// If the file cannot be read.
pub fn read_page(path: &Path, max_bytes: usize) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut bytes = Vec::new();
    file.take(max_bytes as u64)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(bytes)
}

fn document_items(label: String, file: &FileRef) -> Result<Items> {
    let FileRef { path, name } = file.clone();
    let mut number = 0u64;
    Ok(Box::new(document::open(&path)?.map(move |read| match read {
        Ok(mut d) => {
            number += 1;
            let file_name = path.file_name().unwrap_or_default().to_string_lossy();
            // Ids made up from the line get the source's name, so that they stay unique.
            if d.id.is_empty() || d.id.starts_with(&*file_name) {
                d.id = format!("{label}/{name}/{number}");
            }
            Item::Page(Raw {
                id: d.id.clone(),
                url: d.url.clone(),
                path: path.clone(),
                meta: std::mem::take(&mut d.meta),
                body: Body::Document(Box::new(d)),
            })
        }
        Err(e) => Item::Broken(e.to_string().lines().next().unwrap_or_default().to_string()),
    })))
}

fn warc_items(label: &str, file: &FileRef, max_bytes: usize) -> Result<Items> {
    let input = File::open(&file.path).with_context(|| format!("cannot open {}", file.path.display()))?;
    let mut input = BufReader::with_capacity(1 << 16, input);
    // zstd archives come as one frame per record or one for all; both read as one stream.
    let zstd = input.fill_buf().is_ok_and(|b| b.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]));
    let input: Box<dyn Read + Send> = match zstd {
        true => Box::new(zstd::Decoder::with_buffer(input).context("starting zstd")?),
        false => Box::new(input),
    };
    let reader = warc::Reader::new(BufReader::with_capacity(1 << 16, input), max_bytes)
        .with_context(|| format!("cannot read {}", file.path.display()))?;
    Ok(Box::new(WarcItems {
        reader,
        id: format!("{label}/{}", file.name),
        path: file.path.clone(),
        max_bytes,
        number: 0,
        told: 0,
    }))
}

struct WarcItems {
    reader: warc::Reader<BufReader<Box<dyn Read + Send>>>,
    id: String,
    path: PathBuf,
    max_bytes: usize,
    number: u64,
    told: usize,
}

impl Iterator for WarcItems {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        // What was given up comes before the record that follows it.
        if let Some(what) = self.reader.broken().get(self.told) {
            self.told += 1;
            return Some(Item::Broken(format!("{}: {what}", self.path.display())));
        }
        match self.reader.next() {
            Some(record) => {
                self.number += 1;
                Some(self.item(record))
            }
            None if self.reader.broken().len() > self.told => self.next(),
            None => None,
        }
    }
}

impl WarcItems {
    fn item(&self, record: warc::Record) -> Item {
        let mut meta = Map::new();
        for (key, value) in [("date", &record.date), ("warc_record", &record.id)] {
            if !value.is_empty() {
                meta.insert(key.into(), Value::String(value.clone()));
            }
        }
        let is_http = record.body.starts_with(b"HTTP/");
        let (bytes, html, charset) = match record.kind.as_str() {
            "conversion" => (record.body, false, Some("utf-8".to_string())),
            "response" | "resource" if is_http => match http::parse(&record.body, self.max_bytes) {
                Err(e) => {
                    return Item::Broken(format!("{} record {}: {e}", self.path.display(), self.number));
                }
                Ok(r) if r.status != 200 => return Item::Passed(format!("HTTP status {}", r.status)),
                Ok(r) => match is_html(&r.media_type, &r.body) {
                    Some(html) => (r.body, html, r.charset),
                    None => return Item::Passed(passed_type(&r.media_type)),
                },
            },
            "response" | "resource" => {
                let (media_type, charset) = http::content_type(&record.content_type);
                match is_html(&media_type, &record.body) {
                    Some(html) => (record.body, html, charset),
                    None => return Item::Passed(passed_type(&media_type)),
                }
            }
            other => return Item::Passed(format!("{other} record")),
        };
        Item::Page(Raw {
            id: format!("{}#{}", self.id, self.number),
            url: record.uri,
            path: self.path.clone(),
            body: Body::Bytes { bytes, html, charset },
            meta,
        })
    }
}

fn passed_type(media_type: &str) -> String {
    let kind = media_type.split('/').next().unwrap_or_default();
    match kind {
        "" => "unknown type".into(),
        "text" => media_type.to_string(),
        kind => format!("{kind} file"),
    }
}

/// `Some(true)` for HTML, `Some(false)` for plain text, `None` for what is neither.
fn is_html(media_type: &str, body: &[u8]) -> Option<bool> {
    match media_type {
        "text/html" | "application/xhtml+xml" => Some(true),
        "text/plain" => Some(false),
        "" => {
            let head: String = body.iter().take(512).map(|b| b.to_ascii_lowercase() as char).collect();
            (head.contains("<html") || head.contains("<!doctype html")).then_some(true)
        }
        _ => None,
    }
}
