//! Parquet by rows: read any flat or nested columns into named values, write our six.
//!
//! The row interface is slower than Arrow's columns but costs no Arrow in the build,
//! and cleaning text costs far more than reading it.

use std::cell::Cell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use serde_json::{Map, Value};

use super::{Document, Documents, from_fields};
use crate::atomic::AtomicFile;
use crate::{Error, Result};

const SCHEMA: &str = "message document {
    required binary id (UTF8);
    required binary text (UTF8);
    required binary source (UTF8);
    required binary url (UTF8);
    required binary lang (UTF8);
    required binary meta (UTF8);
}";

/// A row group is closed at this many documents or bytes of text, whichever comes first.
const GROUP_ROWS: usize = 10_000;
const GROUP_BYTES: usize = 32 << 20;

fn damaged(path: &Path, at: &str, error: &ParquetError) -> Error {
    let text = error.to_string();
    let text = text.trim_start_matches("Parquet error: ").to_string();
    Error::corrupt(path, at, "a Parquet file", text)
        .with_hint("the file may be damaged or cut short; fetch it again")
}

pub(super) fn open(path: &Path) -> Result<Documents> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let reader = guard(path, "footer", || SerializedFileReader::new(file))?;
    check_columns(path, reader.metadata(), length)?;
    let schema = reader.metadata().file_metadata().schema();
    let columns: Vec<&str> = schema.get_fields().iter().map(|f| f.name()).collect();
    if !columns.iter().any(|c| matches!(*c, "text" | "content")) {
        let found = format!("columns {}", columns.join(", "));
        return Err(Error::corrupt(path, "schema", "a column `text`", found)
            .with_hint("rename the column that holds the text to `text`"));
    }
    let rows = guard(path, "schema", || Ok(RowIter::from_file_into(Box::new(reader))))?;
    Ok(Box::new(Rows { path: path.to_path_buf(), rows, row: 0, failed: false }))
}

thread_local! {
    /// Whether this thread is inside [`guard`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs the Parquet crate, which answers some damage with a panic, and turns either into an error.
///
/// The panic is ours to report, so its message (and with `RUST_BACKTRACE` its backtrace, which costs
/// tens of megabytes to print) is kept off standard error. Other panics are printed as before.
fn guard<T>(path: &Path, at: &str, f: impl FnOnce() -> std::result::Result<T, ParquetError>) -> Result<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                usual(info);
            }
        }));
    });
    GUARDED.set(true);
    let caught = catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(false);
    match caught {
        Ok(result) => result.map_err(|e| damaged(path, at, &e)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("damaged data");
            Err(damaged(path, at, &ParquetError::General(text.to_string())))
        }
    }
}

/// Every column chunk lies within the file, so that a damaged footer asks for no absurd read.
fn check_columns(path: &Path, metadata: &ParquetMetaData, length: u64) -> Result<()> {
    for (i, group) in metadata.row_groups().iter().enumerate() {
        for column in group.columns() {
            let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
            let size = column.compressed_size();
            let end =
                u64::try_from(start).ok().zip(u64::try_from(size).ok()).and_then(|(a, b)| a.checked_add(b));
            if end.is_none_or(|end| end > length) || column.data_page_offset() < 0 {
                let at = format!("row group {}, column `{}`", i + 1, column.column_path());
                let found = format!("{size} bytes at {start}");
                return Err(Error::corrupt(
                    path,
                    at,
                    format!("data within the file's {length} bytes"),
                    found,
                )
                .with_hint("the file may be damaged or cut short; fetch it again"));
            }
        }
    }
    Ok(())
}

struct Rows {
    path: PathBuf,
    rows: RowIter<'static>,
    row: usize,
    /// Nothing is read after an error; the crate's state is unknown then.
    failed: bool,
}

impl Iterator for Rows {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        self.row += 1;
        let at = format!("row {}", self.row);
        let rows = &mut self.rows;
        let document = match guard(&self.path, &at, || rows.next().transpose()) {
            Ok(None) => return None,
            Ok(Some(row)) => from_fields(&self.path, object(row), self.row, &at),
            Err(e) => Err(e),
        };
        self.failed = document.is_err();
        Some(document)
    }
}

fn object(row: Row) -> Map<String, Value> {
    row.into_columns().into_iter().map(|(name, field)| (name, value(field))).collect()
}

fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(v) => v.into(),
        Field::Byte(v) => v.into(),
        Field::Short(v) => v.into(),
        Field::Int(v) | Field::Date(v) | Field::TimeMillis(v) => v.into(),
        Field::Long(v) | Field::TimeMicros(v) | Field::TimestampMillis(v) | Field::TimestampMicros(v) => {
            v.into()
        }
        Field::UByte(v) => v.into(),
        Field::UShort(v) => v.into(),
        Field::UInt(v) => v.into(),
        Field::ULong(v) => v.into(),
        Field::Float16(v) => f64::from(v).into(),
        Field::Float(v) => f64::from(v).into(),
        Field::Double(v) => v.into(),
        Field::Str(v) => v.into(),
        // Some writers omit the string annotation.
        Field::Bytes(v) => String::from_utf8_lossy(v.data()).into_owned().into(),
        Field::Decimal(_) => field.to_string().into(),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => Value::Array(list.elements().iter().cloned().map(value).collect()),
        Field::MapInternal(map) => {
            let key = |field: &Field| match value(field.clone()) {
                Value::String(key) => key,
                other => other.to_string(),
            };
            Value::Object(map.entries().iter().map(|(k, v)| (key(k), value(v.clone()))).collect())
        }
    }
}

pub(super) struct Writer {
    path: PathBuf,
    inner: SerializedFileWriter<AtomicFile>,
    /// One per column of [`SCHEMA`].
    columns: [Vec<ByteArray>; 6],
    bytes: usize,
}

impl Writer {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let schema = parse_message_type(SCHEMA).expect("our own schema");
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).expect("a level in range")))
            // Texts and ids repeat too rarely for a dictionary to pay.
            .set_column_dictionary_enabled(ColumnPath::from("text"), false)
            .set_column_dictionary_enabled(ColumnPath::from("id"), false)
            .build();
        let inner =
            SerializedFileWriter::new(AtomicFile::create(path)?, Arc::new(schema), Arc::new(properties))
                .map_err(|e| write_error(path, e))?;
        Ok(Self { path: path.to_path_buf(), inner, columns: Default::default(), bytes: 0 })
    }

    pub(super) fn write(&mut self, document: &Document) -> Result<()> {
        let meta = serde_json::to_string(&document.meta).map_err(|e| Error::io(&self.path, e.into()))?;
        let Document { id, text, source, url, lang, .. } = document;
        for (column, value) in self.columns.iter_mut().zip([id, text, source, url, lang, &meta]) {
            self.bytes += value.len();
            column.push(value.as_str().into());
        }
        if self.bytes >= GROUP_BYTES || self.columns[0].len() >= GROUP_ROWS {
            self.flush().map_err(|e| write_error(&self.path, e))?;
        }
        Ok(())
    }

    fn flush(&mut self) -> std::result::Result<(), ParquetError> {
        let mut group = self.inner.next_row_group()?;
        for values in &mut self.columns {
            if let Some(mut column) = group.next_column()? {
                column.typed::<ByteArrayType>().write_batch(values, None, None)?;
                column.close()?;
            }
            values.clear();
        }
        self.bytes = 0;
        group.close().map(|_| ())
    }

    pub(super) fn finish(mut self) -> Result<AtomicFile> {
        if !self.columns[0].is_empty() {
            self.flush().map_err(|e| write_error(&self.path, e))?;
        }
        self.inner.into_inner().map_err(|e| write_error(&self.path, e))
    }
}

/// The crate wraps the system's error; ours keeps its kind (disk full) for the hint.
fn write_error(path: &Path, error: ParquetError) -> Error {
    match error {
        ParquetError::External(inner) => match inner.downcast::<std::io::Error>() {
            Ok(io) => Error::io(path, *io),
            Err(other) => Error::io(path, std::io::Error::other(other)),
        },
        other => Error::io(path, std::io::Error::other(other)),
    }
}
