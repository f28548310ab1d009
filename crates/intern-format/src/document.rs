//! Documents: one text each, as JSON lines (plain, gzip, zstd) or Parquet.
//!
//! We write `id, text, source, url, lang, meta`. We also read datatrove's
//! `text, id, metadata` and any data set with a `text` column: fields we have no place
//! for land in `meta`, and a missing id becomes `file name/line`.

mod parquet;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::atomic::{AtomicFile, TEMP_PREFIX};
use crate::records::{self, Compression, Record};
use crate::{Error, Result};

/// One text and what is known about it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// Unique within the corpus.
    pub id: String,
    /// The text itself.
    pub text: String,
    /// Where it comes from: a data set, a crawl, a directory.
    #[serde(default)]
    pub source: String,
    /// Address of the page; empty if none.
    #[serde(default)]
    pub url: String,
    /// Language code, e.g. `en`, `zh`; empty if unknown.
    #[serde(default)]
    pub lang: String,
    /// Everything else.
    #[serde(default)]
    pub meta: Map<String, Value>,
}

impl Document {
    /// A document with just an id and a text.
    #[must_use]
    pub fn new(id: impl Into<String>, text: impl Into<String>) -> Self {
        Self { id: id.into(), text: text.into(), ..Self::default() }
    }
}

/// Documents in order; an item that fails ends the file it is in.
pub type Documents = Box<dyn Iterator<Item = Result<Document>> + Send>;

const READABLE: &str = ".jsonl, .ndjson or .json (also .gz or .zst), .parquet";

/// Reads a file by its extension, or every readable file of a directory in name order.
pub fn open(path: &Path) -> Result<Documents> {
    let metadata = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !metadata.is_dir() {
        return open_file(path);
    }
    let files = files(path)?;
    if files.is_empty() {
        return Err(
            Error::missing(path, "documents").with_hint(format!("documents are files named {READABLE}"))
        );
    }
    Ok(Box::new(files.into_iter().flat_map(|file| match open_file(&file) {
        Ok(documents) => documents,
        Err(error) => Box::new(std::iter::once(Err(error))),
    })))
}

/// The files that [`open`] reads from a directory, in name order.
pub fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let path = entry.map_err(|e| Error::io(dir, e))?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        // Reports of ours that may stand beside documents.
        let report = matches!(name.as_str(), "provenance.json" | "report.json" | "metrics.jsonl");
        if !name.starts_with(TEMP_PREFIX)
            && !name.starts_with('.')
            && !report
            && is_readable(&path)
            && path.is_file()
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn is_readable(path: &Path) -> bool {
    match records::extension(path) {
        (_, inner) if matches!(inner.as_str(), "jsonl" | "ndjson" | "json") => true,
        (Compression::Plain, inner) => inner == "parquet",
        _ => false,
    }
}

fn open_file(path: &Path) -> Result<Documents> {
    if !is_readable(path) {
        let what = format!("extension of `{}`", path.file_name().unwrap_or_default().to_string_lossy());
        return Err(Error::unsupported(path, what).with_hint(format!("documents are files named {READABLE}")));
    }
    if records::extension(path).1 == "parquet" {
        return parquet::open(path);
    }
    let owned = path.to_path_buf();
    Ok(Box::new(records::open(path)?.map(move |record| from_record(&owned, &record?))))
}

fn from_record(path: &Path, record: &Record) -> Result<Document> {
    let at = || format!("line {}", record.line);
    match record.parse(path)? {
        Value::Object(fields) => from_fields(path, fields, record.line, &at()),
        other => {
            let found = other.to_string().chars().take(40).collect::<String>();
            Err(Error::corrupt(path, at(), "a JSON object with a `text` field", found))
        }
    }
}

/// A document from named values; `number` is its line or row, from 1.
fn from_fields(path: &Path, mut fields: Map<String, Value>, number: usize, at: &str) -> Result<Document> {
    let text = match fields.shift_remove("text").or_else(|| fields.shift_remove("content")) {
        Some(Value::String(text)) => text,
        Some(Value::Null) => String::new(),
        Some(other) => {
            let found = other.to_string().chars().take(40).collect::<String>();
            return Err(Error::corrupt(path, at, "a string in field `text`", found));
        }
        None => {
            let keys: Vec<&str> = fields.keys().map(String::as_str).collect();
            return Err(Error::corrupt(path, at, "a field `text`", format!("fields {}", keys.join(", ")))
                .with_hint("rename the column that holds the text to `text`"));
        }
    };
    let id = match fields.shift_remove("id") {
        Some(Value::String(id)) if !id.is_empty() => id,
        Some(Value::Number(id)) => id.to_string(),
        _ => format!("{}/{number}", path.file_name().unwrap_or_default().to_string_lossy()),
    };
    let mut meta = Map::new();
    for key in ["meta", "metadata"] {
        match fields.shift_remove(key) {
            Some(Value::Object(map)) => meta.extend(map),
            Some(Value::Null) | None => {}
            // Parquet files hold metadata as JSON text.
            Some(Value::String(json)) => match serde_json::from_str(&json) {
                Ok(Value::Object(map)) => meta.extend(map),
                _ => drop(meta.insert(key.into(), Value::String(json))),
            },
            Some(other) => drop(meta.insert(key.into(), other)),
        }
    }
    let mut take = |names: &[&str]| {
        let text = |map: &mut Map<String, Value>, name: &str| match map.get(name) {
            Some(Value::String(_)) => map.shift_remove(name),
            _ => None,
        };
        let found = names
            .iter()
            .find_map(|n| text(&mut fields, n))
            .or_else(|| names.iter().find_map(|n| text(&mut meta, n)));
        match found {
            Some(Value::String(s)) => s,
            _ => String::new(),
        }
    };
    let (source, url, lang) = (take(&["source"]), take(&["url"]), take(&["lang", "language"]));
    meta.extend(fields.into_iter().filter(|(_, value)| !value.is_null()));
    Ok(Document { id, text, source, url, lang, meta })
}

/// Writes documents; the file appears whole on [`DocumentWriter::finish`].
pub struct DocumentWriter {
    path: PathBuf,
    sink: Sink,
    count: u64,
    line: Vec<u8>,
}

enum Sink {
    Plain(AtomicFile),
    Gzip(flate2::write::GzEncoder<AtomicFile>),
    Zstd(zstd::Encoder<'static, AtomicFile>),
    Parquet(Box<parquet::Writer>),
}

impl DocumentWriter {
    /// Starts a file; its extension chooses the format: `.jsonl`, `.jsonl.gz`, `.jsonl.zst`, `.parquet`.
    pub fn create(path: &Path) -> Result<Self> {
        let (compression, inner) = records::extension(path);
        let sink = match (compression, inner.as_str()) {
            (Compression::Plain, "parquet") => Sink::Parquet(Box::new(parquet::Writer::create(path)?)),
            (Compression::Plain, "jsonl" | "ndjson") => Sink::Plain(AtomicFile::create(path)?),
            (Compression::Gzip, "jsonl" | "ndjson") => Sink::Gzip(flate2::write::GzEncoder::new(
                AtomicFile::create(path)?,
                flate2::Compression::new(6),
            )),
            (Compression::Zstd, "jsonl" | "ndjson") => {
                let file = AtomicFile::create(path)?;
                let mut encoder = zstd::Encoder::new(file, 3).map_err(|e| Error::io(path, e))?;
                encoder.include_checksum(true).map_err(|e| Error::io(path, e))?;
                Sink::Zstd(encoder)
            }
            _ => {
                let what = format!(
                    "writing documents as `{}`",
                    path.file_name().unwrap_or_default().to_string_lossy()
                );
                return Err(Error::unsupported(path, what)
                    .with_hint("end the name in .jsonl, .jsonl.gz, .jsonl.zst or .parquet"));
            }
        };
        Ok(Self { path: path.to_path_buf(), sink, count: 0, line: Vec::new() })
    }

    /// Appends one document.
    pub fn write(&mut self, document: &Document) -> Result<()> {
        let io = |e| Error::io(&self.path, e);
        let out: &mut dyn Write = match &mut self.sink {
            Sink::Parquet(writer) => {
                self.count += 1;
                return writer.write(document);
            }
            Sink::Plain(out) => out,
            Sink::Gzip(out) => out,
            Sink::Zstd(out) => out,
        };
        self.line.clear();
        serde_json::to_writer(&mut self.line, document).map_err(|e| io(e.into()))?;
        self.line.push(b'\n');
        out.write_all(&self.line).map_err(io)?;
        self.count += 1;
        Ok(())
    }

    /// Documents so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Completes the file and gives it its name; the number of documents.
    pub fn finish(self) -> Result<u64> {
        let io = |e| Error::io(&self.path, e);
        match self.sink {
            Sink::Plain(file) => file,
            Sink::Gzip(encoder) => encoder.finish().map_err(io)?,
            Sink::Zstd(encoder) => encoder.finish().map_err(io)?,
            Sink::Parquet(writer) => writer.finish()?,
        }
        .commit()?;
        Ok(self.count)
    }
}
