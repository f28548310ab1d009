//! Training curves: `metrics.jsonl` for scripts and a TensorBoard event file for people.
//!
//! Both grow by whole records. Opening drops a record that a kill cut in half;
//! [`MetricsWriter::truncate_after`] drops everything past the step training resumes
//! from, so a resumed run's curves equal an uninterrupted run's. The event file is
//! TensorFlow's record framing (length, masked CRC-32C, data, masked CRC-32C) around
//! `Event` protobufs, encoded here by hand: two messages do not need a protobuf crate.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use crate::{Error, Result};

const METRICS: &str = "metrics.jsonl";
/// One fixed name, so that a resumed run continues the same file.
const EVENTS: &str = "events.out.tfevents.0.intern";

/// Appends scalars to both files of one run.
#[derive(Debug)]
pub struct MetricsWriter {
    metrics_path: PathBuf,
    events_path: PathBuf,
    metrics: File,
    events: File,
}

impl MetricsWriter {
    /// Opens or creates both files in `dir` for appending.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let (metrics_path, events_path) = (dir.join(METRICS), dir.join(EVENTS));
        let open = |path: &Path| {
            File::options()
                .create(true)
                .truncate(false)
                .read(true)
                .write(true)
                .open(path)
                .map_err(|e| Error::io(path, e))
        };
        let (metrics, events) = (open(&metrics_path)?, open(&events_path)?);
        let mut writer = Self { metrics_path, events_path, metrics, events };
        writer.truncate_after(u64::MAX)?;
        Ok(writer)
    }

    /// Drops every record of a step greater than `last_step`, and any damaged tail.
    pub fn truncate_after(&mut self, last_step: u64) -> Result<()> {
        cut(&mut self.metrics, &self.metrics_path, |bytes| metrics_prefix(bytes, last_step))?;
        let kept = cut(&mut self.events, &self.events_path, |bytes| events_prefix(bytes, last_step))?;
        if kept == 0 {
            let version = event(now(), 0, &Payload::Version);
            self.events.write_all(&frame(&version)).map_err(|e| Error::io(&self.events_path, e))?;
        }
        Ok(())
    }

    /// Records scalars of one step; steps must not decrease. Non-finite values become `null`
    /// in `metrics.jsonl`.
    pub fn log(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let time = now();
        let mut line = Map::new();
        line.insert("step".into(), step.into());
        line.insert("time".into(), time.into());
        for &(name, value) in values {
            line.insert(name.into(), value.into());
        }
        let mut line = Value::Object(line).to_string();
        line.push('\n');
        self.metrics.write_all(line.as_bytes()).map_err(|e| Error::io(&self.metrics_path, e))?;
        let record = frame(&event(time, step, &Payload::Scalars(values)));
        self.events.write_all(&record).map_err(|e| Error::io(&self.events_path, e))
    }
}

/// The lines of a `metrics.jsonl` in `dir` (or the file itself), as objects.
pub fn read(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let path = if path.is_dir() { path.join(METRICS) } else { path.to_path_buf() };
    crate::records::open(&path)?.map(|record| record?.parse(&path)).collect()
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// Shortens a file to the prefix that `keep` chooses and leaves the cursor at its end.
fn cut(file: &mut File, path: &Path, keep: impl Fn(&[u8]) -> usize) -> Result<usize> {
    let io = |e| Error::io(path, e);
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    file.read_to_end(&mut bytes).map_err(io)?;
    let kept = keep(&bytes);
    if kept < bytes.len() {
        file.set_len(kept as u64).map_err(io)?;
    }
    file.seek(SeekFrom::Start(kept as u64)).map_err(io)?;
    Ok(kept)
}

/// Bytes of whole lines up to `last_step`.
fn metrics_prefix(bytes: &[u8], last_step: u64) -> usize {
    let mut kept = 0;
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        let step = serde_json::from_slice::<Value>(line).ok().and_then(|v| v.get("step")?.as_u64());
        if !line.ends_with(b"\n") || step.is_none_or(|step| step > last_step) {
            break;
        }
        kept += line.len();
    }
    kept
}

/// Bytes of whole, undamaged records up to `last_step`.
fn events_prefix(bytes: &[u8], last_step: u64) -> usize {
    let mut kept = 0;
    while let Some((data, size)) = unframe(&bytes[kept..]) {
        if event_step(data).is_none_or(|step| step > last_step) {
            break;
        }
        kept += size;
    }
    kept
}

enum Payload<'a> {
    Version,
    Scalars(&'a [(&'a str, f64)]),
}

/// `Event { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5; }`,
/// `Summary { repeated Value value = 1; }`, `Value { string tag = 1; float simple_value = 2; }`.
fn event(time: f64, step: u64, payload: &Payload<'_>) -> Vec<u8> {
    let mut out = vec![0x09];
    out.extend(time.to_le_bytes());
    out.push(0x10);
    put_varint(&mut out, step);
    match payload {
        Payload::Version => put_bytes(&mut out, 0x1a, b"brain.Event:2"),
        Payload::Scalars(values) => {
            let mut summary = Vec::new();
            for &(tag, value) in *values {
                let mut item = Vec::new();
                put_bytes(&mut item, 0x0a, tag.as_bytes());
                item.push(0x15);
                item.extend((value as f32).to_le_bytes());
                put_bytes(&mut summary, 0x0a, &item);
            }
            put_bytes(&mut out, 0x2a, &summary);
        }
    }
    out
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// The step of an event as [`event`] writes it: time first, then step.
fn event_step(data: &[u8]) -> Option<u64> {
    if data.first() != Some(&0x09) || data.get(9) != Some(&0x10) {
        return None;
    }
    let mut step = 0u64;
    for (i, &b) in data[10..].iter().take(10).enumerate() {
        step |= u64::from(b & 0x7f).checked_shl(7 * i as u32)?;
        if b < 0x80 {
            return Some(step);
        }
    }
    None
}

fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(data.len() + 16);
    out.extend(length);
    out.extend(masked_crc(&length).to_le_bytes());
    out.extend(data);
    out.extend(masked_crc(data).to_le_bytes());
    out
}

/// The first record's data and the bytes it takes; `None` where it is cut short or damaged.
fn unframe(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    if masked_crc(length) != u32::from_le_bytes(*crc) {
        return None;
    }
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let data = rest.get(..length)?;
    let crc = rest[length..].first_chunk::<4>()?;
    (masked_crc(data) == u32::from_le_bytes(*crc)).then_some((data, length + 16))
}

/// TensorFlow stores checksums rotated and offset, so that a checksum of a record holding
/// checksums is not degenerate.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit-reflected polynomial 0x82f63b78, by table.
fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = i as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc: u32, &b| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ b)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_matches_the_published_check_values() {
        // RFC 3720, appendix B.4, and the usual check string.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    fn steps(dir: &Path) -> Vec<u64> {
        read(dir).unwrap().iter().map(|line| line["step"].as_u64().unwrap()).collect()
    }

    fn event_steps(dir: &Path) -> Vec<u64> {
        let bytes = fs::read(dir.join(EVENTS)).unwrap();
        let mut rest = &bytes[..];
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (data, size) = unframe(rest).expect("whole records");
            steps.push(event_step(data).unwrap());
            rest = &rest[size..];
        }
        steps
    }

    #[test]
    fn resume_is_exact() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut writer = MetricsWriter::open(dir).unwrap();
        for step in [1, 2, 300, 300, 301] {
            writer.log(step, &[("train/loss", 0.5), ("lr", f64::NAN)]).unwrap();
        }
        drop(writer);
        assert_eq!(steps(dir), [1, 2, 300, 300, 301]);
        assert_eq!(event_steps(dir), [0, 1, 2, 300, 300, 301]);
        assert_eq!(read(dir).unwrap()[0]["lr"], Value::Null);

        let mut writer = MetricsWriter::open(dir).unwrap();
        writer.truncate_after(300).unwrap();
        writer.log(302, &[("train/loss", 0.25)]).unwrap();
        assert_eq!(steps(dir), [1, 2, 300, 300, 302]);
        assert_eq!(event_steps(dir), [0, 1, 2, 300, 300, 302]);
        writer.truncate_after(0).unwrap();
        assert_eq!(steps(dir), [0u64; 0]);
        assert_eq!(event_steps(dir), [0]);
    }

    #[test]
    fn a_kill_mid_record_costs_only_that_record() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut writer = MetricsWriter::open(dir).unwrap();
        writer.log(1, &[("a", 1.0)]).unwrap();
        writer.log(2, &[("a", 1.0)]).unwrap();
        drop(writer);
        for name in [METRICS, EVENTS] {
            let bytes = fs::read(dir.join(name)).unwrap();
            for cut in 0..bytes.len() {
                fs::write(dir.join(name), &bytes[..cut]).unwrap();
                MetricsWriter::open(dir).unwrap();
                steps(dir);
                event_steps(dir);
            }
            fs::write(dir.join(name), &bytes).unwrap();
        }
    }
}
