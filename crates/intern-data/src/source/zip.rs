//! The little of ZIP that books need: the central directory, stored and deflated entries.
//!
//! (The `zip` crate is among our dependencies without its decompressor; turning that on
//! would rebuild the tensor library for everybody.) Follows APPNOTE 6.3, without ZIP64 and
//! encryption, which books do not use.

use std::collections::HashMap;
use std::io::Read;

use anyhow::{Context, Result, bail};
use flate2::read::DeflateDecoder;

/// An archive in memory.
pub struct Archive<'a> {
    bytes: &'a [u8],
    /// Name → (method, offset of the local header, compressed size, encrypted).
    entries: HashMap<String, (u16, usize, usize, bool)>,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?) as usize)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
}

impl<'a> Archive<'a> {
    /// Reads the central directory.
    ///
    /// # Errors
    /// If there is none, or it is damaged.
    pub fn open(bytes: &'a [u8]) -> Result<Self> {
        // The end record stands last, before a comment of at most 64 KiB.
        let from = bytes.len().saturating_sub(22 + 65_535);
        let end =
            (from..bytes.len().saturating_sub(21)).rev().find(|&i| bytes[i..].starts_with(b"PK\x05\x06"));
        let end = end.context("not a ZIP archive: no end of central directory")?;
        let directory = || Some((u16_at(bytes, end + 10)?, u32_at(bytes, end + 16)?));
        let (count, mut at) = directory().context("the ZIP archive is cut short")?;
        let mut entries = HashMap::new();
        for _ in 0..count {
            if !bytes.get(at..).is_some_and(|b| b.starts_with(b"PK\x01\x02")) {
                bail!("the ZIP archive's directory is damaged");
            }
            let field = |offset: usize| u16_at(bytes, at + offset);
            let read = || {
                let (name, extra, comment) = (field(28)?, field(30)?, field(32)?);
                let text = String::from_utf8_lossy(bytes.get(at + 46..at + 46 + name)?).into_owned();
                let entry =
                    (field(10)? as u16, u32_at(bytes, at + 42)?, u32_at(bytes, at + 20)?, field(8)? & 1 == 1);
                Some((text, entry, at + 46 + name + extra + comment))
            };
            let (name, entry, next) = read().context("the ZIP archive's directory is damaged")?;
            entries.insert(name, entry);
            at = next;
        }
        Ok(Self { bytes, entries })
    }

    /// Whether there is an entry of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The first `max` bytes of an entry.
    ///
    /// # Errors
    /// If there is none, or it is damaged, encrypted or compressed in an unknown way.
    pub fn read(&self, name: &str, max: usize) -> Result<Vec<u8>> {
        let &(method, at, size, encrypted) =
            self.entries.get(name).with_context(|| format!("no entry {name}"))?;
        if encrypted {
            bail!("entry {name} is encrypted");
        }
        let data = || {
            let start = at + 30 + u16_at(self.bytes, at + 26)? + u16_at(self.bytes, at + 28)?;
            self.bytes.get(start..start.checked_add(size)?)
        };
        let data = data().with_context(|| format!("entry {name} is cut short"))?;
        let mut out = Vec::new();
        match method {
            0 => out.extend_from_slice(&data[..data.len().min(max)]),
            8 => drop(
                DeflateDecoder::new(data)
                    .take(max as u64)
                    .read_to_end(&mut out)
                    .with_context(|| format!("entry {name} is damaged"))?,
            ),
            other => bail!("entry {name} is compressed by method {other}"),
        }
        Ok(out)
    }
}
