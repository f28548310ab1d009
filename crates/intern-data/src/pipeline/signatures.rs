//! The signatures of all pages on disk: what duplicates are found by, without the texts.
//!
//! Per segment two files, little endian. `.sig`: magic `INSIG003`, bands `u32`, then per
//! page a row of `kept u32, chars u32, score f32, shingles u32, at u64, fingerprint 16
//! bytes, url u64, bands × u64`. `.set`: the shingles (`u32` each), a page's `shingles` of them at
//! byte `at`. Of these, memory holds one small row per kept page and one band at a time.
//! The files live in a run's work directory only.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use intern_format::atomic::AtomicFile;

use crate::dedup::Rank;
use crate::dedup::minhash::Signature;

const MAGIC: &[u8; 8] = b"INSIG003";
/// Bytes of a row before its bands.
const ROW: usize = 48;
/// Files kept open at once; systems commonly allow a process 1024.
const MAX_OPEN: usize = 400;

/// One page, without its signature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// Kept by the stages, so duplicates of it matter.
    pub kept: bool,
    /// What decides between copies.
    pub rank: Rank,
    /// Hash of its address, 0 without one.
    pub url: u64,
    /// Hash of its normalized text.
    pub fingerprint: [u8; 16],
}

/// Writes a segment's signatures.
pub struct SignatureWriter {
    rows: AtomicFile,
    sets: AtomicFile,
    bands: usize,
    at: u64,
    buffer: Vec<u8>,
}

impl SignatureWriter {
    /// Starts the files `path` and `path` with extension `.set`, for signatures of `bands` bands.
    ///
    /// # Errors
    /// If one cannot be created.
    pub fn create(path: &Path, bands: usize) -> Result<Self> {
        let mut rows = AtomicFile::create(path)?;
        rows.write_all(MAGIC)?;
        rows.write_all(&(bands as u32).to_le_bytes())?;
        let sets = AtomicFile::create(&path.with_extension("set"))?;
        Ok(Self { rows, sets, bands, at: 0, buffer: Vec::new() })
    }

    /// Adds a page. Pages without a signature get zero bands and no shingles.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn push(&mut self, row: Row, signature: &Signature) -> Result<()> {
        let b = &mut self.buffer;
        b.clear();
        b.extend(u32::from(row.kept).to_le_bytes());
        b.extend(row.rank.chars.to_le_bytes());
        b.extend(row.rank.score.to_le_bytes());
        b.extend((signature.shingles.len() as u32).to_le_bytes());
        b.extend(self.at.to_le_bytes());
        b.extend(row.fingerprint);
        b.extend(row.url.to_le_bytes());
        for band in 0..self.bands {
            b.extend(signature.bands.get(band).copied().unwrap_or(0).to_le_bytes());
        }
        self.rows.write_all(b).with_context(|| self.rows.path().display().to_string())?;
        b.clear();
        signature.shingles.iter().for_each(|s| b.extend(s.to_le_bytes()));
        self.at += b.len() as u64;
        self.sets.write_all(b).with_context(|| self.sets.path().display().to_string())
    }

    /// Gives the files their names.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn finish(self) -> Result<()> {
        self.sets.commit()?;
        Ok(self.rows.commit()?)
    }
}

/// A kept page.
#[derive(Clone, Copy, Debug)]
struct Kept {
    /// Its number among all pages.
    page: u32,
    shingles: u32,
    at: u64,
    rank: Rank,
}

/// The signatures of all segments.
#[derive(Default)]
pub struct Signatures {
    /// Number of each segment's first page, then the number of pages.
    pub starts: Vec<usize>,
    kept: Vec<Kept>,
    /// Index into `kept` of each segment's first kept page.
    kept_starts: Vec<usize>,
    /// The `.sig` files, and the `.set` files, of which the first `MAX_OPEN` stay open.
    files: Vec<(PathBuf, Option<File>)>,
    bands: usize,
}

impl Signatures {
    /// Reads the rows of all segments, in order.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn open(paths: &[PathBuf], bands: usize) -> Result<Self> {
        let mut all = Self { bands, ..Self::default() };
        let mut pages = 0;
        for path in paths {
            all.starts.push(pages);
            all.kept_starts.push(all.kept.len());
            let sets = path.with_extension("set");
            let open = if all.files.len() < MAX_OPEN { Some(File::open(&sets)?) } else { None };
            all.files.push((path.clone(), open));
            let mut kept = Vec::new();
            rows(path, bands, |row| {
                if u32_at(row, 0) == 1 {
                    let score = f32::from_le_bytes(row[8..12].try_into().expect("4 bytes"));
                    let at = u64::from_le_bytes(row[16..24].try_into().expect("8 bytes"));
                    let rank = Rank { chars: u32_at(row, 4), score };
                    kept.push(Kept { page: pages as u32, shingles: u32_at(row, 12), at, rank });
                }
                pages += 1;
            })
            .with_context(|| format!("cannot read {}", path.display()))?;
            all.kept.append(&mut kept);
        }
        all.starts.push(pages);
        all.kept_starts.push(all.kept.len());
        Ok(all)
    }

    /// Pages in all segments.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Pages that the stages kept.
    #[must_use]
    pub fn num_kept(&self) -> usize {
        self.kept.len()
    }

    /// The number among all pages of the `k`-th kept one.
    #[must_use]
    pub fn page(&self, k: usize) -> usize {
        self.kept[k].page as usize
    }

    /// What decides between the `k`-th kept page and its copies.
    #[must_use]
    pub fn rank(&self, k: usize) -> Rank {
        self.kept[k].rank
    }

    /// (fingerprint, k) of every kept page.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn fingerprints(&self) -> Result<Vec<([u8; 16], u32)>> {
        let mut all = Vec::with_capacity(self.kept.len());
        self.each_kept(|k, row| all.push((row[24..40].try_into().expect("16 bytes"), k)))?;
        Ok(all)
    }

    /// (hash of the address, k) of every kept page that has one.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn urls(&self) -> Result<Vec<(u64, u32)>> {
        let mut all = Vec::new();
        self.each_kept(|k, row| {
            let url = u64::from_le_bytes(row[40..48].try_into().expect("8 bytes"));
            if url != 0 {
                all.push((url, k));
            }
        })?;
        Ok(all)
    }

    /// Characters of all kept pages.
    #[must_use]
    pub fn kept_chars(&self) -> u64 {
        self.kept.iter().map(|k| u64::from(k.rank.chars)).sum()
    }

    /// Appends (hash of band `band`, k) of every kept page with a signature.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn band(&self, band: usize, out: &mut Vec<(u64, u32)>) -> Result<()> {
        let at = ROW + 8 * band;
        self.each_kept(|k, row| {
            if u32_at(row, 12) > 0 {
                out.push((u64::from_le_bytes(row[at..at + 8].try_into().expect("8 bytes")), k));
            }
        })
    }

    fn each_kept(&self, mut each: impl FnMut(u32, &[u8])) -> Result<()> {
        for ((path, _), first) in self.files.iter().zip(&self.kept_starts) {
            let mut k = *first as u32;
            rows(path, self.bands, |row| {
                if u32_at(row, 0) == 1 {
                    each(k, row);
                    k += 1;
                }
            })
            .with_context(|| format!("cannot read {}", path.display()))?;
        }
        Ok(())
    }

    /// The shingles of the `k`-th kept page.
    ///
    /// # Errors
    /// If its file cannot be read.
    pub fn shingles(&self, k: usize) -> Result<Vec<u32>> {
        let Kept { at, shingles, .. } = self.kept[k];
        let segment = self.kept_starts.partition_point(|&s| s <= k) - 1;
        let (path, file) = &self.files[segment];
        let path = path.with_extension("set");
        let mut bytes = vec![0u8; shingles as usize * 4];
        let read = match file {
            Some(file) => file.read_exact_at(&mut bytes, at),
            None => File::open(&path).and_then(|f| f.read_exact_at(&mut bytes, at)),
        };
        read.with_context(|| format!("cannot read {}", path.display()))?;
        Ok(bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("4 bytes"))).collect())
    }
}

fn u32_at(row: &[u8], i: usize) -> u32 {
    u32::from_le_bytes(row[i..i + 4].try_into().expect("4 bytes"))
}

/// Calls `each` with the rows of a `.sig` file.
fn rows(path: &Path, bands: usize, mut each: impl FnMut(&[u8])) -> Result<()> {
    let mut input = BufReader::with_capacity(1 << 18, File::open(path)?);
    let mut head = [0u8; 12];
    input.read_exact(&mut head)?;
    if &head[..8] != MAGIC || head[8..] != (bands as u32).to_le_bytes() {
        bail!(
            "not a signature file of {bands} bands\nhint: remove the output directory's .tmp-work and run again"
        );
    }
    let mut row = vec![0u8; ROW + 8 * bands];
    while read_or_end(&mut input, &mut row)? {
        each(&row);
    }
    Ok(())
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
        let row = |kept, n: u8| Row {
            kept,
            rank: Rank { chars: u32::from(n), score: 0.5 },
            url: u64::from(n % 2),
            fingerprint: [n; 16],
        };
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
        assert_eq!((0..4).map(|k| all.page(k)).collect::<Vec<_>>(), [0, 2, 3, 5]);
        assert_eq!(all.rank(2), Rank { chars: 11, score: 0.5 });
        let mut band = Vec::new();
        all.band(0, &mut band).unwrap();
        assert_eq!(band, [(3, 0), (4, 2)]);
        assert_eq!(all.fingerprints().unwrap()[3], ([3; 16], 3));
        assert_eq!(all.urls().unwrap(), [(1, 0), (1, 1), (1, 2), (1, 3)]);
        assert_eq!(all.shingles(2).unwrap(), [0, 1, 2, 3]);
        assert!(all.shingles(1).unwrap().is_empty());
        assert!(Signatures::open(&paths, 3).is_err());
    }
}
