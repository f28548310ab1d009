//! The one error type of this crate. Callers act on its kind; people read its text.
//!
//! Every message names the file, the place in it, and what was expected, and ends
//! with a `hint: …` line where there is something useful to suggest.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a file.
#[derive(Debug)]
pub enum Error {
    /// The operating system refused.
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The bytes are not what the format demands: damaged, cut short, or another format.
    Corrupt {
        /// The file concerned.
        path: PathBuf,
        /// Where in it, e.g. `line 7` or `byte 4096`.
        at: String,
        /// What the format demands there.
        expected: String,
        /// What is there.
        found: String,
        /// What the user can do.
        hint: Option<String>,
    },
    /// A file, field, tensor or key that must be there is not.
    Missing {
        /// The file or directory that lacks it.
        path: PathBuf,
        /// What is missing.
        what: String,
        /// What the user can do.
        hint: Option<String>,
    },
    /// Well-formed, but a kind we do not read or write.
    Unsupported {
        /// The file concerned.
        path: PathBuf,
        /// What is not supported.
        what: String,
        /// What the user can do.
        hint: Option<String>,
    },
}

/// Result of anything that touches a file.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Io`] about `path`; use as `.map_err(|e| Error::io(path, e))`.
    pub fn io(path: impl AsRef<Path>, source: io::Error) -> Self {
        Error::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// An [`Error::Corrupt`] without a hint.
    pub fn corrupt(
        path: impl AsRef<Path>,
        at: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Error::Corrupt {
            path: path.as_ref().to_path_buf(),
            at: at.into(),
            expected: expected.into(),
            found: found.into(),
            hint: None,
        }
    }

    /// An [`Error::Missing`] without a hint.
    pub fn missing(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Missing { path: path.as_ref().to_path_buf(), what: what.into(), hint: None }
    }

    /// An [`Error::Unsupported`] without a hint.
    pub fn unsupported(path: impl AsRef<Path>, what: impl Into<String>) -> Self {
        Error::Unsupported { path: path.as_ref().to_path_buf(), what: what.into(), hint: None }
    }

    /// The same error with a hint for the user (no effect on [`Error::Io`], which has its own).
    #[must_use]
    pub fn with_hint(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Error::Io { .. } => {}
            Error::Corrupt { hint, .. } | Error::Missing { hint, .. } | Error::Unsupported { hint, .. } => {
                *hint = Some(text.into());
            }
        }
        self
    }

    /// The file or directory the error is about.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Error::Io { path, .. }
            | Error::Corrupt { path, .. }
            | Error::Missing { path, .. }
            | Error::Unsupported { path, .. } => path,
        }
    }

    /// The hint, without the leading `hint: `.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Error::Io { source, .. } => io_hint(source.kind()),
            Error::Corrupt { hint, .. } | Error::Missing { hint, .. } | Error::Unsupported { hint, .. } => {
                hint.as_deref()
            }
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { path, source } => write!(f, "{}: {source}", path.display())?,
            Error::Corrupt { path, at, expected, found, .. } => {
                write!(f, "{}: {at}: expected {expected}, found {found}", path.display())?;
            }
            Error::Missing { path, what, .. } => write!(f, "{}: missing {what}", path.display())?,
            Error::Unsupported { path, what, .. } => {
                write!(f, "{}: {what} is not supported", path.display())?;
            }
        }
        match self.hint() {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

// The system's message is part of ours, so `source` would print it twice in an anyhow chain.
impl std::error::Error for Error {}

fn io_hint(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::NotFound => Some("check the path; relative paths start at the current directory"),
        io::ErrorKind::PermissionDenied => Some("check who owns the file and its permissions"),
        io::ErrorKind::StorageFull => {
            Some("the disk is full; free some space and run the same command again, it continues")
        }
        io::ErrorKind::QuotaExceeded => {
            Some("your disk quota is used up; free some space and run the same command again, it continues")
        }
        io::ErrorKind::FileTooLarge => Some(
            "a limit on file sizes was reached (`ulimit -f`, or the file system's own); raise it and run \
                  the same command again, it continues",
        ),
        io::ErrorKind::IsADirectory => Some("a file is needed here, this is a directory"),
        io::ErrorKind::NotADirectory => Some("a directory is needed here, this is a file"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(error: Error, expect: &str) {
        assert_eq!(error.to_string(), expect);
    }

    #[test]
    fn messages_name_file_place_and_hint() {
        check(
            Error::corrupt("a.idx", "byte 9", "version 1", "version 7")
                .with_hint("was it written by Megatron?"),
            "a.idx: byte 9: expected version 1, found version 7\nhint: was it written by Megatron?",
        );
        check(Error::missing("m", "config.json"), "m: missing config.json");
        check(Error::unsupported("m", "dtype F4"), "m: dtype F4 is not supported");
        check(
            Error::io("x", io::Error::new(io::ErrorKind::NotFound, "no such file")),
            "x: no such file\nhint: check the path; relative paths start at the current directory",
        );
    }
}
