//! Files and directories that appear whole or not at all.
//!
//! A writer works under a temporary name beside its target, is synced to disk, and
//! is renamed on commit. The temporary name depends only on the target, so a run
//! killed half-way leaves at most one stale file, which the next run overwrites; a
//! lock keeps two living writers of one target apart.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Leading part of every temporary name; hashing and directory readers skip such entries.
pub const TEMP_PREFIX: &str = ".tmp-";

/// Writes `bytes` to `path`, replacing what was there, all or nothing.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(|e| Error::io(path, e))?;
    file.commit()
}

/// Writes `value` as indented JSON with a final newline, all or nothing.
pub fn write_json<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::io(path, e.into()))?;
    bytes.push(b'\n');
    write_atomic(path, &bytes)
}

/// Reads a JSON file into `T`; errors name line and column.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| json_error(path, &e, 1))
}

/// Turns a JSON error into ours; `first_line` is the file's line on which the parsed text starts.
pub(crate) fn json_error(path: &Path, error: &serde_json::Error, first_line: usize) -> Error {
    let line = first_line + error.line().saturating_sub(1);
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or(&text).to_string();
    let expected = match error.classify() {
        serde_json::error::Category::Data => "the documented fields",
        _ => "valid JSON",
    };
    Error::corrupt(path, format!("line {line}, column {}", error.column()), expected, text)
}

/// A file under a temporary name until [`AtomicFile::commit`]; dropped without it, it is removed.
#[derive(Debug)]
pub struct AtomicFile {
    target: PathBuf,
    temp: PathBuf,
    /// `None` once committed.
    file: Option<BufWriter<File>>,
}

impl AtomicFile {
    /// Opens a temporary file in `path`'s directory, which is created where needed.
    pub fn create(path: &Path) -> Result<Self> {
        let (dir, name) = split(path)?;
        fs::create_dir_all(&dir).map_err(|e| Error::io(&dir, e))?;
        let (temp, file) = open_temp(&dir, &name).map_err(|e| Error::io(path, e))?;
        Ok(Self { target: path.to_path_buf(), temp, file: Some(BufWriter::with_capacity(1 << 16, file)) })
    }

    /// The final path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Flushes, syncs and renames to the final path.
    pub fn commit(mut self) -> Result<()> {
        let Some(writer) = self.file.take() else { return Ok(()) };
        let result = finish(writer, &self.temp, &self.target);
        if result.is_err() {
            let _ = fs::remove_file(&self.temp);
        }
        result.map_err(|e| Error::io(&self.target, e))
    }

    fn writer(&mut self) -> io::Result<&mut BufWriter<File>> {
        self.file.as_mut().ok_or_else(|| io::Error::other("file already committed"))
    }
}

fn finish(writer: BufWriter<File>, temp: &Path, target: &Path) -> io::Result<()> {
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    fs::rename(temp, target)?;
    sync_parent(target)
}

impl Write for AtomicFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.writer()?.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer()?.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        self.writer()?.seek(pos)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            let _ = fs::remove_file(&self.temp);
        }
    }
}

/// A directory under a temporary name until [`AtomicDir::commit`]; dropped without it, it is removed.
///
/// Use it where several files only make sense together, e.g. a checkpoint and its tokenizer.
#[derive(Debug)]
pub struct AtomicDir {
    target: PathBuf,
    temp: PathBuf,
    committed: bool,
}

impl AtomicDir {
    /// Makes an empty temporary directory beside `path`.
    pub fn create(path: &Path) -> Result<Self> {
        let (dir, name) = split(path)?;
        let temp = dir.join(format!("{TEMP_PREFIX}{name}"));
        remove_dir(&temp)?;
        fs::create_dir_all(&temp).map_err(|e| Error::io(&temp, e))?;
        Ok(Self { target: path.to_path_buf(), temp, committed: false })
    }

    /// Where to write until the commit.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.temp
    }

    /// Renames to the final path. A directory already there is moved aside first and removed
    /// after; between the two renames neither is there, which a reader sees as "missing".
    pub fn commit(mut self) -> Result<()> {
        let (dir, name) = split(&self.target)?;
        let aside = dir.join(format!("{TEMP_PREFIX}old-{name}"));
        remove_dir(&aside)?;
        let io = |e| Error::io(&self.target, e);
        sync_dir(&self.temp).map_err(io)?;
        if self.target.exists() {
            fs::rename(&self.target, &aside).map_err(io)?;
        }
        fs::rename(&self.temp, &self.target).map_err(io)?;
        sync_parent(&self.target).map_err(io)?;
        self.committed = true;
        remove_dir(&aside)
    }
}

impl Drop for AtomicDir {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.temp);
        }
    }
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(path, e)),
        _ => Ok(()),
    }
}

/// Parent directory and file name of a path that names a file or directory.
fn split(path: &Path) -> Result<(PathBuf, String)> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::missing(path, "a file name").with_hint("give a path that ends in a name"))?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_path_buf(),
        _ => PathBuf::from("."),
    };
    Ok((dir, name.to_string_lossy().into_owned()))
}

/// Opens, locks and empties the temporary file for `name`; a second name where the first is in use.
fn open_temp(dir: &Path, name: &str) -> io::Result<(PathBuf, File)> {
    let temp = dir.join(format!("{TEMP_PREFIX}{name}"));
    for _ in 0..8 {
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&temp)?;
        if file.try_lock().is_err() {
            break; // A living writer has it, or this file system has no locks.
        }
        // Between our open and our lock another writer may have renamed the file to its target.
        if same_file(&file, &temp) {
            file.set_len(0)?;
            return Ok((temp, file));
        }
    }
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let temp = dir.join(format!("{TEMP_PREFIX}{name}.{}-{n}", std::process::id()));
    let file = File::options().create(true).truncate(true).read(true).write(true).open(&temp)?;
    Ok((temp, file))
}

#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => a.dev() == b.dev() && a.ino() == b.ino(),
        _ => false,
    }
}

#[cfg(not(unix))]
fn same_file(_: &File, _: &Path) -> bool {
    false
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => sync_dir(dir),
        _ => sync_dir(Path::new(".")),
    }
}

#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn sync_dir(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn commit_replaces_and_drop_removes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/a.txt");
        write_atomic(&path, b"one").unwrap();
        {
            let mut file = AtomicFile::create(&path).unwrap();
            file.write_all(b"never").unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), b"one");
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(path.parent().unwrap()), ["a.txt"]);
    }

    #[test]
    fn stale_temporary_is_reused_and_two_writers_do_not_mix() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        fs::write(dir.path().join(format!("{TEMP_PREFIX}a")), "a longer stale half").unwrap();
        let mut first = AtomicFile::create(&path).unwrap();
        let mut second = AtomicFile::create(&path).unwrap();
        first.write_all(b"first").unwrap();
        second.write_all(b"second").unwrap();
        first.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        second.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn directory_appears_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        for round in ["one", "two"] {
            let new = AtomicDir::create(&path).unwrap();
            write_atomic(&new.path().join(round), b"x").unwrap();
            new.commit().unwrap();
            assert_eq!(names(&path), [round]);
        }
        drop(AtomicDir::create(&path).unwrap());
        assert_eq!(names(dir.path()), ["model"]);
    }

    #[test]
    fn json_errors_name_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        fs::write(&path, "{\n \"a\": 1,\n oops }").unwrap();
        let error = read_json::<serde_json::Value>(&path).unwrap_err().to_string();
        assert!(
            error.contains("line 3, column 2: expected valid JSON, found key must be a string"),
            "{error}"
        );
    }
}
