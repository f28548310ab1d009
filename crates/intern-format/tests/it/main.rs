//! Tests of every format through its public interface.
//!
//! `golden` reads files made by the tools that own the formats, `round_trip` what we
//! write ourselves, `conversations` and `documents` the shapes of the field, `damage`
//! broken files: no panic, no allocation the file does not justify.

mod conversations;
mod damage;
mod documents;
mod golden;
mod round_trip;

use std::path::PathBuf;

/// A file under `tests/golden`.
fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name)
}

/// A path under the shared assets; `None`, with a note, where they are absent.
fn asset(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("INTERN_ASSETS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/assets")),
        PathBuf::from,
    );
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: no {}", path.display());
    None
}
