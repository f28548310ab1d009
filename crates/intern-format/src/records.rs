//! JSON records from text files: JSON lines, JSON arrays, gzip and zstd.
//!
//! Documents and conversations both read through [`open`]. A `.jsonl` file streams
//! line by line; a `.json` file is read whole, since it may be one array or several
//! values over many lines. Each record comes with the line it starts on.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::atomic::json_error;
use crate::{Error, Result};

/// Longest line we accept: guards against compressed files that expand without end.
const MAX_LINE: u64 = 1 << 30;

/// One JSON value's text and where it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Line in the uncompressed file, from 1.
    pub line: usize,
    /// The value's JSON.
    pub text: String,
}

impl Record {
    /// Parses the record; errors name `path` and the line.
    pub fn parse<T: serde::de::DeserializeOwned>(&self, path: &Path) -> Result<T> {
        serde_json::from_str(&self.text).map_err(|e| json_error(path, &e, self.line))
    }
}

/// Compression, told by the last extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// None.
    Plain,
    /// `.gz`, possibly of several members.
    Gzip,
    /// `.zst`, possibly of several frames.
    Zstd,
}

/// Splits `name.jsonl.zst` into compression and the inner extension, lower case (`jsonl`).
#[must_use]
pub fn extension(path: &Path) -> (Compression, String) {
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let (compression, inner) = if let Some(inner) = name.strip_suffix(".gz") {
        (Compression::Gzip, inner)
    } else if let Some(inner) = name.strip_suffix(".zst") {
        (Compression::Zstd, inner)
    } else {
        (Compression::Plain, name.as_str())
    };
    (compression, inner.rsplit_once('.').map_or(String::new(), |(_, e)| e.to_string()))
}

/// Opens a file for reading and decompresses on the way, by extension.
pub fn open_text(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    Ok(match extension(path).0 {
        Compression::Plain => Box::new(BufReader::with_capacity(1 << 16, file)),
        Compression::Gzip => {
            let file = BufReader::with_capacity(1 << 16, file);
            Box::new(BufReader::with_capacity(1 << 16, flate2::bufread::MultiGzDecoder::new(file)))
        }
        Compression::Zstd => {
            let decoder = zstd::Decoder::new(file).map_err(|e| Error::io(path, e))?;
            Box::new(BufReader::with_capacity(1 << 16, decoder))
        }
    })
}

/// The records of a `.jsonl`, `.ndjson` or `.json` file, plain or compressed.
pub fn open(path: &Path) -> Result<Box<dyn Iterator<Item = Result<Record>> + Send>> {
    let reader = open_text(path)?;
    match extension(path).1.as_str() {
        "json" => {
            let text = read_all(path, reader)?;
            let records = split_values(path, &text)?;
            Ok(Box::new(records.into_iter().map(Ok)))
        }
        _ => Ok(Box::new(Lines { path: path.to_path_buf(), reader, line: 0, failed: false })),
    }
}

/// Streams non-blank lines.
struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    line: usize,
    failed: bool,
}

impl Lines {
    fn read(&mut self) -> Result<Option<Record>> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            self.line += 1;
            let n = (&mut self.reader)
                .take(MAX_LINE)
                .read_until(b'\n', &mut bytes)
                .map_err(|e| decode_error(&self.path, &format!("line {}", self.line), e))?;
            if n == 0 {
                return Ok(None);
            }
            if n as u64 == MAX_LINE {
                let at = format!("line {}", self.line);
                return Err(Error::corrupt(&self.path, at, "a line shorter than 1 GiB", "a longer one"));
            }
            if self.line == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
                bytes.drain(..3);
            }
            if !bytes.iter().all(u8::is_ascii_whitespace) {
                break;
            }
        }
        let text =
            String::from_utf8(bytes).map_err(|e| utf8_error(&self.path, self.line, &e.utf8_error()))?;
        Ok(Some(Record { line: self.line, text }))
    }
}

impl Iterator for Lines {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.read().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

/// A failure while decompressing is damage, not a refusal of the system.
fn decode_error(path: &Path, at: &str, error: std::io::Error) -> Error {
    use std::io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    let expected = match extension(path).0 {
        Compression::Plain => return Error::io(path, error),
        Compression::Gzip => "a whole gzip stream",
        Compression::Zstd => "a whole zstd stream",
    };
    match error.kind() {
        InvalidData | InvalidInput | UnexpectedEof | Other => {
            let hint = "the file is damaged or was cut short; fetch or write it again";
            Error::corrupt(path, at, expected, error.to_string()).with_hint(hint)
        }
        _ => Error::io(path, error),
    }
}

fn utf8_error(path: &Path, line: usize, error: &std::str::Utf8Error) -> Error {
    let at = format!("line {line}, byte {} of the line", error.valid_up_to() + 1);
    Error::corrupt(path, at, "UTF-8 text", "a byte that is not UTF-8")
        .with_hint("convert the file to UTF-8, e.g. with iconv")
}

fn read_all(path: &Path, reader: Box<dyn BufRead + Send>) -> Result<String> {
    let mut bytes = Vec::new();
    reader.take(8 * MAX_LINE).read_to_end(&mut bytes).map_err(|e| decode_error(path, "start", e))?;
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    String::from_utf8(bytes).map_err(|e| {
        let error = e.utf8_error();
        let before = &e.as_bytes()[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|&&b| b == b'\n').count();
        let at = format!("line {line}, byte {}", error.valid_up_to());
        Error::corrupt(path, at, "UTF-8 text", "a byte that is not UTF-8")
            .with_hint("convert the file to UTF-8, e.g. with iconv")
    })
}

/// Cuts a `.json` file into records: the elements of one array, or each top-level value in turn.
fn split_values(path: &Path, text: &str) -> Result<Vec<Record>> {
    let mut scan = Scan { path, bytes: text.as_bytes(), pos: 0, line: 1 };
    let mut records = Vec::new();
    scan.skip_space();
    let array = scan.peek() == Some(b'[') && !is_array_per_line(text);
    if array {
        scan.pos += 1;
        scan.skip_space();
        if scan.peek() == Some(b']') {
            scan.pos += 1;
        } else {
            loop {
                records.push(scan.value(text)?);
                scan.skip_space();
                match scan.peek() {
                    Some(b',') => scan.pos += 1,
                    Some(b']') => {
                        scan.pos += 1;
                        break;
                    }
                    _ => return Err(scan.error("`,` or `]` after a record")),
                }
                scan.skip_space();
            }
        }
        scan.skip_space();
        if scan.peek().is_some() {
            return Err(scan.error("the end of the file after the array"));
        }
    } else {
        while scan.peek().is_some() {
            records.push(scan.value(text)?);
            scan.skip_space();
        }
    }
    Ok(records)
}

/// JSON lines of arrays (a list of messages per line) under a `.json` name.
fn is_array_per_line(text: &str) -> bool {
    let mut lines = text.lines().filter(|l| !l.trim().is_empty()).map(str::trim);
    let closed = |l: &str| l.starts_with('[') && l.ends_with(']');
    matches!((lines.next(), lines.next()), (Some(a), Some(b)) if closed(a) && closed(b))
}

/// Finds where values begin and end without understanding them; serde_json judges each later.
struct Scan<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    pos: usize,
    line: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.pos).copied()
    }

    fn skip_space(&mut self) {
        while let Some(b) = self.peek().filter(u8::is_ascii_whitespace) {
            self.line += usize::from(b == b'\n');
            self.pos += 1;
        }
    }

    /// One value: up to the bracket that closes it, or for a scalar up to a delimiter.
    fn value(&mut self, text: &str) -> Result<Record> {
        let (start, line) = (self.pos, self.line);
        let (mut depth, mut in_string) = (0usize, false);
        while let Some(b) = self.peek() {
            self.line += usize::from(b == b'\n');
            match b {
                b'\\' if in_string => self.pos += 1,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'[' | b'{' => depth += 1,
                b']' | b'}' if depth > 0 => depth -= 1,
                b']' | b'}' | b',' if depth == 0 => break,
                _ if depth == 0 && b.is_ascii_whitespace() => {
                    self.line -= usize::from(b == b'\n');
                    break;
                }
                _ => {}
            }
            self.pos += 1;
            if depth == 0 && !in_string && matches!(b, b']' | b'}' | b'"') {
                break;
            }
        }
        if self.pos >= self.bytes.len() && (depth > 0 || in_string) {
            self.pos = self.bytes.len();
            let what = format!("the end of the value that starts on line {line}");
            return Err(self.error(&what).with_hint("the file is cut short; fetch or write it again"));
        }
        if self.pos == start {
            return Err(self.error("a JSON value"));
        }
        let end = self.pos.min(self.bytes.len());
        // `get`: an escaped multi-byte character after the last quote cannot split one, but a
        // scan that trusts nothing does not assert it.
        let Some(value) = text.get(start..end) else { return Err(self.error("a JSON value")) };
        Ok(Record { line, text: value.to_string() })
    }

    fn error(&self, expected: &str) -> Error {
        let found = match self.peek() {
            Some(b) if b.is_ascii_graphic() => format!("`{}`", b as char),
            Some(b) => format!("byte 0x{b:02x}"),
            None => "the end of the file".to_string(),
        };
        Error::corrupt(self.path, format!("line {}", self.line), expected, found)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    /// Records of a file with this name and content, as `line:text`.
    fn read(name: &str, content: &[u8]) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        open(&path)?.map(|r| r.map(|r| format!("{}:{}", r.line, r.text.trim_end()))).collect()
    }

    #[track_caller]
    fn check(name: &str, content: &str, expect: &[&str]) {
        assert_eq!(read(name, content.as_bytes()).unwrap(), expect);
    }

    #[track_caller]
    fn fails(name: &str, content: &[u8], expect: &str) {
        let text = read(name, content).unwrap_err().to_string();
        assert!(text.contains(expect), "{text}");
    }

    #[test]
    fn lines_arrays_and_values_in_turn() {
        check("a.jsonl", "\u{feff}{\"a\":1}\r\n\n  \n[2]\n3", &["1:{\"a\":1}", "4:[2]", "5:3"]);
        check(
            "a.json",
            "[\n {\"a\": \"]\\\"}\"},\n\n [1,\n2], 3 ]\n",
            &["2:{\"a\": \"]\\\"}\"}", "4:[1,\n2]", "5:3"],
        );
        check("a.json", "{\"a\":1}\n{\"b\":\n2}", &["1:{\"a\":1}", "2:{\"b\":\n2}"]);
        check("a.json", "[1]\n[2]\n", &["1:[1]", "2:[2]"]);
        check("a.json", " [ ] ", &[]);
        check("a.json", "", &[]);
    }

    #[test]
    fn damage_is_placed() {
        fails(
            "a.json",
            b"[{\"a\": 1},\n {\"b\": ",
            "line 2: expected the end of the value that starts on line 2",
        );
        fails("a.json", b"[1\n 2]", "line 2: expected `,` or `]` after a record, found `2`");
        fails("a.json", b"[1,]", "expected a JSON value, found `]`");
        fails("a.json", b"[1] x", "expected the end of the file after the array, found `x`");
        fails("a.jsonl", b"1\n\"\xff\"", "line 2, byte 2 of the line: expected UTF-8 text");
        fails("a.json", b"1\n\"\xff\"", "line 2, byte 3: expected UTF-8 text");
        fails("a.jsonl.gz", b"not gzip", "line 1: expected a whole gzip stream");
        fails("a.jsonl.zst", b"not zstd", "line 1: expected a whole zstd stream");
    }

    #[test]
    fn compressed_streams_of_several_parts() {
        let mut gz = Vec::new();
        let mut zst = Vec::new();
        for part in ["1\n", "2\n"] {
            let mut encoder = flate2::write::GzEncoder::new(&mut gz, flate2::Compression::fast());
            encoder.write_all(part.as_bytes()).unwrap();
            encoder.finish().unwrap();
            zst.extend(zstd::encode_all(part.as_bytes(), 1).unwrap());
        }
        assert_eq!(read("a.jsonl.gz", &gz).unwrap(), ["1:1", "2:2"]);
        assert_eq!(read("a.JSONL.zst", &zst).unwrap(), ["1:1", "2:2"]);
        fails("a.jsonl.gz", &gz[..gz.len() - 9], "expected a whole gzip stream");
        fails("a.jsonl.zst", &zst[..zst.len() - 3], "expected a whole zstd stream");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[\\[\\]{}\",:\\\\ \n1aé]{0,60}") {
            let _ = read("a.json", text.as_bytes());
            let _ = read("a.jsonl", text.as_bytes());
        }

        #[test]
        fn arrays_split_into_their_elements(values in prop::collection::vec("[a-z\\[\\]\"{}\\\\é]{0,8}", 0..6)) {
            let array = serde_json::to_string_pretty(&values).unwrap();
            let got = read("a.json", array.as_bytes()).unwrap();
            let got: Vec<String> = got.iter().map(|r| serde_json::from_str(r.split_once(':').unwrap().1).unwrap()).collect();
            prop_assert_eq!(got, values);
        }
    }
}
