//! A log that only grows. Opened again after a kill, it is cut back to what its owner
//! still trusts, and goes on from there.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A file open for appending.
#[derive(Debug)]
pub struct AppendLog {
    path: PathBuf,
    file: File,
}

impl AppendLog {
    /// Opens or creates `path`. `keep` sees the bytes that are there and says how many of the
    /// first stay; the rest, such as a line cut off by a kill, is removed.
    pub fn open(path: &Path, keep: impl FnOnce(&[u8]) -> usize) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let kept = keep(&bytes).min(bytes.len()) as u64;
        file.set_len(kept).map_err(io)?;
        file.seek(SeekFrom::Start(kept)).map_err(io)?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Appends `bytes` and waits until they are on disk.
    pub fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        written.map_err(|e| Error::io(&self.path, e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_kept_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        AppendLog::open(&path, |b| b.len()).unwrap().append(b"one\ntw").unwrap();
        AppendLog::open(&path, |b| b.len() - 2).unwrap().append(b"2\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"one\n2\n");
    }
}
