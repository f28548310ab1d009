//! The file tool: read, write and list inside one directory, and nowhere else.
//!
//! Paths are opened one component at a time relative to the directory above, never
//! following symbolic links, so neither `..` nor a link, nor one swapped in while we
//! look, leads out. Only regular files and directories are touched.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Map, Value, json};

use super::{Tool, text};

/// Most bytes of a file shown to the model.
const MAX_READ: usize = 32 << 10;
/// Most bytes written at once.
const MAX_WRITE: usize = 1 << 20;
/// Most entries listed.
const MAX_ENTRIES: usize = 200;

/// Reads, writes and lists files below one directory.
#[derive(Debug)]
pub struct FileTool {
    root: OwnedFd,
    write: bool,
}

impl FileTool {
    /// Opens `root`; files may be written only if `write`.
    ///
    /// # Errors
    /// If `root` is not a directory.
    pub fn new(root: &Path, write: bool) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty()).with_context(|| {
            format!(
                "cannot open the file tool's directory {}\nhint: file.root must be an existing directory",
                root.display()
            )
        })?;
        Ok(Self { root, write })
    }

    fn read(&self, path: &str) -> Result<String> {
        let (parent, name) = self.parent(path, false)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent, name, flags, Mode::empty()).map_err(|e| refusal(e, path))?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| refusal(e, path))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => bail!("{path} is a directory; list it instead"),
            _ => bail!("{path} is not a regular file"),
        }
        let mut bytes = Vec::new();
        File::from(fd).take(MAX_READ as u64 + 1).read_to_end(&mut bytes).context("reading failed")?;
        let cut = bytes.len() > MAX_READ;
        bytes.truncate(MAX_READ);
        let text = match std::str::from_utf8(&bytes) {
            Ok(text) => text,
            // The cut may fall inside a character.
            Err(e) if cut && e.error_len().is_none() => std::str::from_utf8(&bytes[..e.valid_up_to()])?,
            Err(_) => bail!("{path} is not UTF-8 text"),
        };
        Ok(if cut { format!("{text}\n[cut after {MAX_READ} bytes]") } else { text.to_string() })
    }

    fn write(&self, path: &str, content: &str) -> Result<String> {
        if !self.write {
            bail!("files may only be read here");
        }
        if content.len() > MAX_WRITE {
            bail!("the content is longer than {MAX_WRITE} bytes");
        }
        let (parent, name) = self.parent(path, true)?;
        if let Ok(stat) = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)
            && FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
        {
            bail!("{path} exists and is not a regular file");
        }
        // A temporary name and a rename: a killed run leaves the old file or the new one.
        let temp = format!(".tmp-{name}");
        match rustix::fs::unlinkat(&parent, &temp, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(refusal(e, path)),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent, &temp, flags, Mode::from_raw_mode(0o644))
            .map_err(|e| refusal(e, path))?;
        let written = File::from(fd).write_all(content.as_bytes());
        if let Err(error) = written {
            let _ = rustix::fs::unlinkat(&parent, &temp, AtFlags::empty());
            return Err(error).context("writing failed");
        }
        rustix::fs::renameat(&parent, &temp, &parent, name).map_err(|e| refusal(e, path))?;
        Ok(format!("wrote {} bytes to {path}", content.len()))
    }

    fn list(&self, path: &str) -> Result<String> {
        let mut dir = rustix::io::dup(&self.root).map_err(|e| refusal(e, path))?;
        for part in components(path)? {
            dir = open_dir(&dir, part).map_err(|e| refusal(e, path))?;
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir).map_err(|e| refusal(e, path))? {
            let entry = entry.map_err(|e| refusal(e, path))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "." || name == ".." || name.starts_with(".tmp-") {
                continue;
            }
            let stat = rustix::fs::statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
            match stat.map(|s| FileType::from_raw_mode(s.st_mode)) {
                Ok(FileType::Directory) => names.push(format!("{name}/")),
                Ok(FileType::RegularFile) => names.push(name),
                _ => {}
            }
        }
        names.sort();
        let more = names.len().saturating_sub(MAX_ENTRIES);
        names.truncate(MAX_ENTRIES);
        if more > 0 {
            names.push(format!("[and {more} more]"));
        }
        Ok(if names.is_empty() { "(empty)".to_string() } else { names.join("\n") })
    }

    /// Opens the directory `path` is in, making missing ones if `create`; returns it and the last name.
    fn parent<'p>(&self, path: &'p str, create: bool) -> Result<(OwnedFd, &'p str)> {
        let parts = components(path)?;
        let Some((name, above)) = parts.split_last() else { bail!("`path` must name a file") };
        let mut dir = rustix::io::dup(&self.root).map_err(|e| refusal(e, path))?;
        for part in above {
            if create {
                match rustix::fs::mkdirat(&dir, *part, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(refusal(e, path)),
                }
            }
            dir = open_dir(&dir, part).map_err(|e| refusal(e, path))?;
        }
        Ok((dir, name))
    }
}

impl Tool for FileTool {
    fn name(&self) -> &str {
        "file"
    }

    fn declaration(&self) -> Value {
        let actions = if self.write { json!(["read", "write", "list"]) } else { json!(["read", "list"]) };
        let mut properties = json!({
            "action": {"type": "string", "enum": actions, "description": "What to do"},
            "path": {"type": "string", "description": "Relative path, for example notes/today.txt; empty for the top directory"}
        });
        if self.write {
            properties["content"] = json!({"type": "string", "description": "Text to write"});
        }
        json!({
            "type": "function",
            "function": {
                "name": "file",
                "description": "Works with text files of one directory.",
                "parameters": {"type": "object", "properties": properties, "required": ["action", "path"]}
            }
        })
    }

    fn call(&self, arguments: &Map<String, Value>) -> Result<String> {
        let path = text(arguments, "path")?;
        match text(arguments, "action")? {
            "read" => self.read(path),
            "write" => self.write(path, text(arguments, "content")?),
            _ => self.list(path),
        }
    }
}

/// Splits a relative path into names; refuses everything that could lead out.
fn components(path: &str) -> Result<Vec<&str>> {
    if path.starts_with('/') || path.contains('\0') || path.contains('\\') {
        bail!("`{path}` is not a relative path with forward slashes");
    }
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if parts.contains(&"..") {
        bail!("`{path}` leads out of the directory");
    }
    Ok(parts)
}

fn open_dir(dir: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

fn refusal(errno: Errno, path: &str) -> anyhow::Error {
    match errno {
        Errno::NOENT => anyhow::anyhow!("{path} does not exist"),
        Errno::LOOP => anyhow::anyhow!("{path} is or passes a symbolic link, which is not followed"),
        Errno::NOTDIR => anyhow::anyhow!("{path} passes something that is not a directory"),
        other => anyhow::anyhow!("{path}: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Scene {
        _dir: tempfile::TempDir,
        base: std::path::PathBuf,
        tool: FileTool,
    }

    /// `base/secret.txt` lies outside, `base/root` is the tool's.
    fn scene(write: bool) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().to_path_buf();
        std::fs::create_dir_all(base.join("root/notes")).unwrap();
        std::fs::write(base.join("secret.txt"), "secret").unwrap();
        std::fs::write(base.join("root/notes/a.txt"), "hello").unwrap();
        let tool = FileTool::new(&base.join("root"), write).unwrap();
        Scene { _dir: dir, base, tool }
    }

    fn call(tool: &FileTool, action: &str, path: &str) -> Result<String> {
        let arguments = json!({"action": action, "path": path, "content": "text"});
        tool.call(arguments.as_object().unwrap())
    }

    #[track_caller]
    fn refuses(tool: &FileTool, action: &str, path: &str, expected: &str) {
        let error = call(tool, action, path).unwrap_err().to_string();
        assert!(error.contains(expected), "{action} {path}: {error}");
    }

    #[test]
    fn reads_writes_and_lists() {
        let s = scene(true);
        assert_eq!(call(&s.tool, "list", "").unwrap(), "notes/");
        assert_eq!(call(&s.tool, "read", "notes/a.txt").unwrap(), "hello");
        assert_eq!(call(&s.tool, "write", "new/deep/b.txt").unwrap(), "wrote 4 bytes to new/deep/b.txt");
        assert_eq!(std::fs::read_to_string(s.base.join("root/new/deep/b.txt")).unwrap(), "text");
        assert_eq!(call(&s.tool, "write", "./notes//a.txt").unwrap(), "wrote 4 bytes to ./notes//a.txt");
        assert_eq!(call(&s.tool, "list", "notes/").unwrap(), "a.txt");
        refuses(&s.tool, "read", "notes", "is a directory");
        refuses(&s.tool, "read", "notes/none", "does not exist");
        refuses(&s.tool, "write", "notes", "not a regular file");
    }

    #[test]
    fn nothing_outside_is_reached() {
        let s = scene(true);
        for action in ["read", "write", "list"] {
            refuses(&s.tool, action, "../secret.txt", "leads out");
            refuses(&s.tool, action, "notes/../../secret.txt", "leads out");
            refuses(&s.tool, action, "/etc/passwd", "not a relative path");
        }
        symlink(s.base.join("secret.txt"), s.base.join("root/link")).unwrap();
        symlink(&s.base, s.base.join("root/up")).unwrap();
        symlink("../secret.txt", s.base.join("root/relative")).unwrap();
        symlink(s.base.join("made.txt"), s.base.join("root/dangling")).unwrap();
        refuses(&s.tool, "read", "link", "symbolic link");
        refuses(&s.tool, "read", "relative", "symbolic link");
        refuses(&s.tool, "read", "up/secret.txt", "not a directory");
        refuses(&s.tool, "list", "up", "not a directory");
        refuses(&s.tool, "write", "link", "not a regular file");
        refuses(&s.tool, "write", "dangling", "not a regular file");
        refuses(&s.tool, "write", "up/made.txt", "not a directory");
        assert!(!s.base.join("made.txt").exists());
        assert_eq!(std::fs::read_to_string(s.base.join("secret.txt")).unwrap(), "secret");
        // A link under the temporary name is replaced, not followed.
        symlink(s.base.join("secret.txt"), s.base.join("root/.tmp-c.txt")).unwrap();
        call(&s.tool, "write", "c.txt").unwrap();
        assert_eq!(std::fs::read_to_string(s.base.join("secret.txt")).unwrap(), "secret");
        assert_eq!(std::fs::read_to_string(s.base.join("root/c.txt")).unwrap(), "text");
        assert_eq!(call(&s.tool, "list", "").unwrap(), "c.txt\nnotes/");
    }

    #[test]
    fn odd_files_are_refused() {
        let s = scene(false);
        refuses(&s.tool, "write", "b.txt", "only be read");
        std::fs::write(s.base.join("root/binary"), [0xff, 0xfe, 0x00]).unwrap();
        refuses(&s.tool, "read", "binary", "not UTF-8");
        std::fs::write(s.base.join("root/long"), "é".repeat(MAX_READ)).unwrap();
        let text = call(&s.tool, "read", "long").unwrap();
        assert!(text.len() < MAX_READ + 40 && text.ends_with("bytes]"), "{}", text.len());
        let fifo = s.base.join("root/fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        refuses(&s.tool, "read", "fifo", "not a regular file");
        assert!(FileTool::new(&s.base.join("none"), false).is_err());
    }
}
