//! The signatures of a shard on disk: what duplicates are found by, without the texts.
//!
//! Layout, little endian: magic `INSIG001`, bands `u32`, then per page a row of
//! `kept u32, chars u32, fingerprint 16 bytes, shingles u32, bands × u64` followed by its
//! shingles (`u32` each). The file lives in a run's work directory only.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use intern_format::atomic::AtomicFile;

use crate::dedup::minhash::Signature;

const MAGIC: &[u8; 8] = b"INSIG001";
/// Files kept open at once; systems commonly allow a process 1024.
const MAX_OPEN: usize = 400;

/// One page, without its signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Kept by the stages, so duplicates of it matter.
    pub kept: bool,
    /// Characters of its text.
    pub chars: u32,
    /// Hash of its normalized text.
    pub fingerprint: [u8; 16],
}

/// Writes a shard's signatures.
pub struct SignatureWriter {
    file: AtomicFile,
    bands: usize,
    buffer: Vec<u8>,
}

impl SignatureWriter {
    /// Starts a file for signatures of `bands` bands.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create(path: &Path, bands: usize) -> Result<Self> {
        let mut file = AtomicFile::create(path)?;
        file.write_all(MAGIC)?;
        file.write_all(&(bands as u32).to_le_bytes())?;
        Ok(Self { file, bands, buffer: Vec::new() })
    }

    /// Adds a page. Pages without a signature get zero bands and no shingles.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn push(&mut self, row: Row, signature: &Signature) -> Result<()> {
        let b = &mut self.buffer;
        b.clear();
        b.extend(u32::from(row.kept).to_le_bytes());
        b.extend(row.chars.to_le_bytes());
        b.extend(row.fingerprint);
        b.extend((signature.shingles.len() as u32).to_le_bytes());
        for band in 0..self.bands {
            b.extend(signature.bands.get(band).copied().unwrap_or(0).to_le_bytes());
        }
        signature.shingles.iter().for_each(|s| b.extend(s.to_le_bytes()));
        self.file.write_all(b).with_context(|| self.file.path().display().to_string())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn finish(self) -> Result<()> {
        Ok(self.file.commit()?)
    }
}

/// The signatures of all shards: rows and bands in memory, shingles on disk.
#[derive(Default)]
pub struct Signatures {
    /// One row per page, over all shards in order.
    pub rows: Vec<Row>,
    /// `bands` hashes per kept page, in the order of `kept`.
    pub bands: Vec<u64>,
    /// Indices into `rows` of the kept pages.
    pub kept: Vec<u32>,
    /// Index of each shard's first row, then the number of rows.
    pub starts: Vec<usize>,
    /// The files; the first `MAX_OPEN` stay open.
    files: Vec<(PathBuf, Option<File>)>,
    /// Per kept page: file, byte offset, number of shingles.
    shingles: Vec<(u32, u64, u32)>,
}

impl Signatures {
    /// Reads the files of all shards, in order.
    ///
    /// # Errors
    /// If one is missing or damaged.
    pub fn open(paths: &[PathBuf], bands: usize) -> Result<Self> {
        let mut all = Self::default();
        for path in paths {
            all.starts.push(all.rows.len());
            all.read(path, bands).with_context(|| format!("cannot read {}", path.display()))?;
        }
        all.starts.push(all.rows.len());
        Ok(all)
    }

    fn read(&mut self, path: &Path, bands: usize) -> Result<()> {
        let file = if self.files.len() < MAX_OPEN { Some(File::open(path)?) } else { None };
        let mut input = BufReader::with_capacity(1 << 18, File::open(path)?);
        let mut head = [0u8; 12];
        input.read_exact(&mut head)?;
        if &head[..8] != MAGIC || head[8..] != (bands as u32).to_le_bytes() {
            bail!(
                "not a signature file of {bands} bands\nhint: remove the output directory's .tmp-work and run again"
            );
        }
        let mut at = 12u64;
        let mut row = vec![0u8; 28 + 8 * bands];
        while read_or_end(&mut input, &mut row)? {
            at += row.len() as u64;
            let u32_at = |i: usize| u32::from_le_bytes(row[i..i + 4].try_into().expect("4 bytes"));
            let mut fingerprint = [0; 16];
            fingerprint.copy_from_slice(&row[8..24]);
            let parsed = Row { kept: u32_at(0) == 1, chars: u32_at(4), fingerprint };
            let count = u32_at(24);
            if parsed.kept {
                self.kept.push(self.rows.len() as u32);
                self.shingles.push((self.files.len() as u32, at, count));
                self.bands.extend(
                    row[28..].chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes"))),
                );
            }
            self.rows.push(parsed);
            let bytes = u64::from(count) * 4;
            input.seek_relative(bytes as i64)?;
            at += bytes;
        }
        self.files.push((path.to_path_buf(), file));
        Ok(())
    }

    /// The shingles of the `k`-th kept page.
    ///
    /// # Errors
    /// If its file cannot be read.
    pub fn shingles(&self, k: usize) -> Result<Vec<u32>> {
        let (file, at, count) = self.shingles[k];
        let (path, file) = &self.files[file as usize];
        let mut bytes = vec![0u8; count as usize * 4];
        let read = match file {
            Some(file) => file.read_exact_at(&mut bytes, at),
            None => File::open(path).and_then(|f| f.read_exact_at(&mut bytes, at)),
        };
        read.with_context(|| format!("cannot read {}", path.display()))?;
        Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes"))).collect())
    }

    /// Whether the `k`-th kept page has a signature.
    #[must_use]
    pub fn is_signed(&self, k: usize) -> bool {
        self.shingles[k].2 > 0
    }
}

/// Fills `buffer`; `false` at the end of the file.
fn read_or_end(input: &mut impl Read, buffer: &mut [u8]) -> Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..])? {
            0 if filled == 0 => return Ok(false),
            0 => bail!("the file ends inside a row"),
            n => filled += n,
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_shingles_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = (0..2).map(|i| dir.path().join(format!("{i}.sig"))).collect();
        let row = |kept, n: u8| Row { kept, chars: u32::from(n), fingerprint: [n; 16] };
        let signature = |n: u32| Signature { bands: vec![u64::from(n), 7], shingles: (0..n).collect() };
        for (i, path) in paths.iter().enumerate() {
            let mut w = SignatureWriter::create(path, 2).unwrap();
            w.push(row(true, 1 + 10 * i as u8), &signature(3 + i as u32)).unwrap();
            w.push(row(false, 2), &Signature::default()).unwrap();
            w.push(row(true, 3), &signature(0)).unwrap();
            w.finish().unwrap();
        }
        let all = Signatures::open(&paths, 2).unwrap();
        assert_eq!(all.starts, [0, 3, 6]);
        assert_eq!(all.kept, [0, 2, 3, 5]);
        assert_eq!(all.rows[3], row(true, 11));
        assert_eq!(all.bands, [3, 7, 0, 7, 4, 7, 0, 7]);
        assert_eq!(all.shingles(2).unwrap(), [0, 1, 2, 3]);
        assert!(!all.is_signed(1));
        assert!(Signatures::open(&paths, 3).is_err());
    }
}
