//! Reads WARC 0.x–1.1 and ARC 1–2 files record by record, plain or gzip (one member per
//! record, or one for all). Broken records are counted and skipped, never fatal.
//!
//! After damage the reader looks for the next place where a record can begin: a gzip
//! member in a compressed file, a `WARC/` or ARC line in plain text. `broken` tells what was
//! given up. Follows ISO 28500:2017; the HTTP inside records is `http`'s.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::GzDecoder;

/// Longest header block of a record, bytes.
const MAX_HEADER: usize = 1 << 20;

/// One record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// `WARC-Type`: `response`, `resource`, `conversion`, …; `response` for ARC documents.
    pub kind: String,
    /// `WARC-Target-URI`, without angle brackets.
    pub uri: String,
    /// `WARC-Record-ID`, empty in ARC files.
    pub id: String,
    /// `WARC-Date`, or the ARC date, as written.
    pub date: String,
    /// `Content-Type` of the block; in ARC files that of the page.
    pub content_type: String,
    /// The block.
    pub body: Vec<u8>,
    /// The block ended before its declared length, or was longer than asked for.
    pub truncated: bool,
}

/// The records of a file.
pub struct Reader<R: BufRead> {
    input: BufReader<Source<R>>,
    max_body: usize,
    /// What was given up, with the number of the record before it.
    broken: Vec<String>,
    count: u64,
    /// First line of a record, found while looking for one.
    pending: Option<Vec<u8>>,
    /// Fields of an ARC line: 5 in version 1, 10 in version 2.
    arc_fields: usize,
    done: bool,
}

impl<R: BufRead> Reader<R> {
    /// Starts reading. Blocks are kept up to `max_body` bytes.
    ///
    /// # Errors
    /// If the first bytes cannot be read.
    pub fn new(mut input: R, max_body: usize) -> io::Result<Self> {
        let gzip = input.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        let source = if gzip { Source::Between(input) } else { Source::Plain(input) };
        let mut reader = Self {
            input: BufReader::with_capacity(1 << 16, source),
            max_body,
            broken: Vec::new(),
            count: 0,
            pending: None,
            arc_fields: 5,
            done: false,
        };
        if gzip {
            reader.next_member();
        }
        Ok(reader)
    }

    /// What was given up so far, one line per place.
    #[must_use]
    pub fn broken(&self) -> &[String] {
        &self.broken
    }

    fn give_up(&mut self, what: &str) {
        self.broken.push(format!("after record {}: {what}", self.count));
    }

    /// Moves to the next gzip member; `false` at the end of the file.
    fn next_member(&mut self) -> bool {
        let (more, skipped) = match self.input.get_mut().next_member() {
            Ok(Next::Member) => (true, 0),
            Ok(Next::End) => (false, 0),
            Ok(Next::Passed(n)) => (true, n),
            Ok(Next::Skipped(n)) => (false, n),
            Err(e) => {
                self.give_up(&e.to_string());
                return false;
            }
        };
        if skipped > 0 {
            self.give_up(&format!("{skipped} bytes that are no gzip member"));
        }
        more
    }

    /// Reads to the next line that can begin a record; `false` if this member has none, or cannot
    /// be read on: a damaged gzip stream gives the same error for ever.
    fn resync(&mut self) -> bool {
        let mut line = Vec::new();
        while let Ok(true) = self.line(&mut line) {
            if line.starts_with(b"WARC/") || arc_line(&line, self.arc_fields).is_some() {
                self.pending = Some(line);
                return true;
            }
        }
        false
    }

    /// Reads a line without its end into `line`; `false` at the end of the member.
    fn line(&mut self, line: &mut Vec<u8>) -> Result<bool, String> {
        line.clear();
        let read =
            (&mut self.input).take(MAX_HEADER as u64).read_until(b'\n', line).map_err(|e| e.to_string())?;
        while line.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
            line.pop();
        }
        Ok(read > 0)
    }

    /// The next record of the current member.
    fn record(&mut self) -> Result<Option<Record>, String> {
        let mut line = match self.pending.take() {
            Some(line) => line,
            None => {
                let mut line = Vec::new();
                loop {
                    if !self.line(&mut line)? {
                        return Ok(None);
                    }
                    if line.iter().any(|b| !b.is_ascii_whitespace()) {
                        break line;
                    }
                }
            }
        };
        if line.starts_with(b"WARC/") {
            return self.warc(&mut line).map(Some);
        }
        match arc_line(&line, self.arc_fields) {
            Some((record, length)) => {
                if length.is_none() {
                    self.give_up("a record line without a length, taken for an empty record");
                }
                self.arc(record, length.unwrap_or(0)).map(Some)
            }
            None => {
                line.truncate(40);
                Err(format!("expected a record, found {:?}", String::from_utf8_lossy(&line)))
            }
        }
    }

    fn warc(&mut self, line: &mut Vec<u8>) -> Result<Record, String> {
        let mut record = Record::default();
        let mut length = None;
        let mut field: Option<(String, String)> = None;
        let mut total = 0;
        loop {
            let more = self.line(line)?;
            total += line.len();
            if total > MAX_HEADER {
                return Err("a header of more than a megabyte".into());
            }
            let text = String::from_utf8_lossy(line);
            if let Some((_, value)) = field.as_mut().filter(|_| text.starts_with([' ', '\t'])) {
                value.push(' ');
                value.push_str(text.trim());
                continue;
            }
            if let Some((name, value)) = field.take() {
                match name.as_str() {
                    "warc-type" => record.kind = value.to_lowercase(),
                    "warc-target-uri" => record.uri = value.trim_matches(['<', '>']).to_string(),
                    "warc-record-id" => record.id = value.trim_matches(['<', '>']).to_string(),
                    "warc-date" => record.date = value,
                    "content-type" => record.content_type = value,
                    "content-length" => length = value.parse::<u64>().ok(),
                    _ => {}
                }
            }
            if !more {
                return Err("the file ends inside a header".into());
            }
            if text.is_empty() {
                break;
            }
            field = text.split_once(':').map(|(n, v)| (n.trim().to_ascii_lowercase(), v.trim().to_string()));
        }
        let length = length.ok_or("no Content-Length")?;
        self.body(&mut record, length)?;
        Ok(record)
    }

    fn arc(&mut self, mut record: Record, length: u64) -> Result<Record, String> {
        self.body(&mut record, length)?;
        if record.uri.starts_with("filedesc:") {
            record.kind = "warcinfo".into();
            // The version block: "2 0 …" announces ten fields per line.
            self.arc_fields = if record.body.starts_with(b"2 ") { 10 } else { 5 };
        }
        Ok(record)
    }

    fn body(&mut self, record: &mut Record, length: u64) -> Result<(), String> {
        let wanted = length.min(self.max_body as u64);
        // Grows with what is there, so a false length costs nothing.
        record.body.reserve(wanted.min(1 << 16) as usize);
        if let Err(e) = (&mut self.input).take(wanted).read_to_end(&mut record.body) {
            // A cut or damaged stream gives what could be read of it.
            if record.body.is_empty() {
                let whose = if record.uri.is_empty() { "a record" } else { &record.uri };
                return Err(format!("the block of {whose}: {e}"));
            }
        }
        let rest = length - wanted;
        let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink()).unwrap_or(0);
        record.truncated = (record.body.len() as u64) < wanted || skipped < rest || rest > 0;
        Ok(())
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        while !self.done {
            match self.record() {
                Ok(Some(record)) => {
                    self.count += 1;
                    if record.truncated && record.body.len() < self.max_body {
                        self.give_up("the last block ends before its declared length");
                    }
                    return Some(record);
                }
                Ok(None) => self.done = !self.next_member(),
                Err(what) => {
                    self.give_up(&what);
                    if !self.resync() {
                        self.done = !self.next_member();
                    }
                }
            }
        }
        None
    }
}

/// `URL IP date type … length`; the URL may hold spaces, so fields are counted from the right.
fn arc_line(line: &[u8], fields: usize) -> Option<(Record, Option<u64>)> {
    let text = String::from_utf8_lossy(line);
    let parts: Vec<&str> = text.rsplitn(fields, ' ').collect();
    let [length, .., content_type, date, ip, uri] = parts[..] else { return None };
    let plausible = parts.len() == fields
        && date.len() >= 8
        && date.bytes().all(|b| b.is_ascii_digit())
        && !ip.is_empty()
        && ip.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b'.' | b':'))
        && uri.contains(':');
    let record = Record {
        kind: "response".into(),
        uri: uri.to_string(),
        date: date.to_string(),
        content_type: content_type.to_string(),
        ..Record::default()
    };
    plausible.then(|| (record, length.parse().ok()))
}

/// What `next_member` found.
enum Next {
    Member,
    End,
    /// A member after so many bytes that are none.
    Passed(u64),
    /// So many bytes that are none, and the end.
    Skipped(u64),
}

/// The first bytes of a gzip member, found while looking for them, then the rest of the file.
type Found<R> = io::Chain<io::Cursor<&'static [u8]>, R>;

const GZIP_START: &[u8] = &[0x1f, 0x8b, 0x08];

/// Plain bytes, or those of one gzip member at a time: a read of 0 bytes ends the member.
enum Source<R: BufRead> {
    Plain(R),
    Between(R),
    Member(Box<GzDecoder<Found<R>>>),
    Gone,
}

impl<R: BufRead> Source<R> {
    fn next_member(&mut self) -> io::Result<Next> {
        let mut input = match std::mem::replace(self, Self::Gone) {
            Self::Plain(_) | Self::Gone => return Ok(Next::End),
            Self::Between(input) => input,
            Self::Member(decoder) => decoder.into_inner().into_inner().1,
        };
        let (mut matched, mut skipped) = (0, 0u64);
        while matched < GZIP_START.len() {
            let buffer = input.fill_buf()?;
            if buffer.is_empty() {
                return Ok(if skipped > 0 { Next::Skipped(skipped) } else { Next::End });
            }
            let mut used = 0;
            for &b in buffer {
                used += 1;
                let was = matched;
                matched = if b == GZIP_START[was] { was + 1 } else { usize::from(b == GZIP_START[0]) };
                if matched <= was {
                    // Zero padding between members is usual and no damage.
                    skipped += was as u64 + u64::from(matched == 0 && b != 0);
                }
                if matched == GZIP_START.len() {
                    break;
                }
            }
            input.consume(used);
        }
        *self = Self::Member(Box::new(GzDecoder::new(io::Cursor::new(GZIP_START).chain(input))));
        if skipped > 0 {
            return Ok(Next::Passed(skipped));
        }
        Ok(Next::Member)
    }
}

impl<R: BufRead> Read for Source<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buf),
            Self::Member(decoder) => decoder.read(buf),
            Self::Between(_) | Self::Gone => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn record(uri: &str, body: &str) -> String {
        format!(
            "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: <{uri}>\r\nContent-Length: {}\r\n\r\n{body}\r\n\r\n",
            body.len()
        )
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        e.write_all(text.as_bytes()).unwrap();
        e.finish().unwrap()
    }

    #[track_caller]
    fn check(bytes: &[u8], uris: &[&str], broken: usize) {
        let mut reader = Reader::new(bytes, 1 << 20).unwrap();
        let got: Vec<String> = reader.by_ref().map(|r| r.uri).collect();
        assert_eq!(got, uris);
        assert_eq!(reader.broken().len(), broken, "{:?}", reader.broken());
    }

    #[test]
    fn records_in_any_packing() {
        let (a, b) = (record("http://a/", "one"), record("http://b/", "two"));
        check(format!("{a}{b}").as_bytes(), &["http://a/", "http://b/"], 0);
        check(&gzip(&format!("{a}{b}")), &["http://a/", "http://b/"], 0);
        check(&[gzip(&a), vec![0; 100], gzip(&b)].concat(), &["http://a/", "http://b/"], 0);
        check(b"", &[], 0);
    }

    #[test]
    fn damage_costs_one_record() {
        let (a, b) = (record("http://a/", "one"), record("http://b/", "two"));
        check(format!("{a}garbage\n{b}").as_bytes(), &["http://a/", "http://b/"], 1);
        let no_length = a.replace("Content-Length", "Content-Lenth");
        check(format!("{no_length}{b}").as_bytes(), &["http://b/"], 1);
        let mut bad = gzip(&record("http://x/", &"long body ".repeat(200)));
        let middle = bad.len() / 2;
        bad[middle] ^= 0xff;
        bad[middle + 1] ^= 0xff;
        let bytes = [gzip(&a), bad, gzip(&b)].concat();
        let mut reader = Reader::new(&bytes[..], 1 << 20).unwrap();
        let got: Vec<String> = reader.by_ref().map(|r| r.uri).collect();
        assert!(got.starts_with(&["http://a/".into()]) && got.ends_with(&["http://b/".into()]), "{got:?}");
        assert!(!reader.broken().is_empty());
        let cut = record("http://a/", "one and more");
        check(&cut.as_bytes()[..cut.len() - 10], &["http://a/"], 1);
    }

    #[test]
    fn any_damage_to_gzip_ends() {
        let whole = [gzip(&record("http://a/", &"some text ".repeat(30))), gzip(&record("http://b/", "two"))]
            .concat();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            let mut reader = Reader::new(&bytes[..], 1 << 20).unwrap();
            assert!(reader.by_ref().take(10).count() < 10 && reader.broken().len() < 20, "byte {at}");
            let mut cut = Reader::new(&whole[..at], 1 << 20).unwrap();
            assert!(cut.by_ref().take(10).count() < 10 && cut.broken().len() < 20, "cut at {at}");
        }
    }

    #[test]
    fn arc_lines_may_hold_spaces() {
        let head = "filedesc://x.arc 0.0.0.0 20240101000000 text/plain 76\n1 0 test\nURL IP-address Archive-date Content-type Archive-length\n";
        let head = head.replace(" 76\n", &format!(" {}\n", head.len() - head.find('\n').unwrap() - 1));
        let page = "http://a/b c 1.2.3.4 20240101000000 text/html 4\nbody\n";
        check(
            format!("{head}\n{page}{page}").as_bytes(),
            &["filedesc://x.arc", "http://a/b c", "http://a/b c"],
            0,
        );
    }
}
