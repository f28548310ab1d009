//! Read-only memory maps that also work for empty files.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::{Error, Result};

/// A file's bytes, mapped. Dereferences to `[u8]`.
#[derive(Debug)]
pub(crate) enum Mapped {
    /// The system refuses to map zero bytes.
    Empty,
    /// Everything else.
    Map(Mmap),
}

impl Mapped {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
        if metadata.is_dir() {
            return Err(Error::io(path, std::io::ErrorKind::IsADirectory.into()));
        }
        if metadata.len() == 0 {
            return Ok(Mapped::Empty);
        }
        // SAFETY: the map is read-only, and every writer of ours replaces files by rename, so
        // mapped bytes do not change under us. Another program that truncates the file while
        // it is mapped ends this process with SIGBUS; no reader that maps can prevent that.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        Ok(Mapped::Map(map))
    }

    /// Gives back the memory of whole pages inside `range`; they are read again when used.
    pub(crate) fn release(&self, range: std::ops::Range<usize>) {
        const PAGE: usize = 4096;
        let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
        if let (Mapped::Map(map), true) = (self, start < end) {
            // It is advice: where it fails, memory is given back later.
            #[cfg(unix)]
            let _ =
                // SAFETY: pages of a read-only file map that are dropped come back as they were.
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
        }
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Mapped::Empty => &[],
            Mapped::Map(map) => map,
        }
    }
}
