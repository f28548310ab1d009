//! What the test files share.

use std::path::{Path, PathBuf};

/// A shared asset, or `None` (with a printed reason) where it is absent.
pub fn asset(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("INTERN_ASSETS").map_or_else(
        || Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/assets")).to_path_buf(),
        PathBuf::from,
    );
    let path = root.join(name);
    if !path.exists() {
        println!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}
