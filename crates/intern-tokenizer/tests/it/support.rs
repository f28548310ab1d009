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

/// The files of an archive asset in name order: `.zip`, or `.tar.xz` by the `tar` program.
pub fn archive(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = if path.extension().is_some_and(|e| e == "zip") { unzip(path) } else { untar(path) };
    files.sort();
    files
}

fn untar(path: &Path) -> Vec<(String, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let status =
        std::process::Command::new("tar").arg("-xJf").arg(path).arg("-C").arg(dir.path()).status().unwrap();
    assert!(status.success(), "tar could not unpack {}", path.display());
    let mut files = Vec::new();
    let mut folders = vec![dir.path().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_string();
                files.push((name, std::fs::read(path).unwrap()));
            }
        }
    }
    files
}

/// Reads by the central directory; stored and deflated entries.
fn unzip(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let u16_at = |at: usize| u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()) as usize;
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let end = bytes.windows(4).rposition(|w| w == b"PK\x05\x06").unwrap();
    let mut entry = u32_at(end + 16);
    let mut files = Vec::new();
    for _ in 0..u16_at(end + 10) {
        let (method, packed, header) = (u16_at(entry + 10), u32_at(entry + 20), u32_at(entry + 42));
        let name = String::from_utf8(bytes[entry + 46..entry + 46 + u16_at(entry + 28)].to_vec()).unwrap();
        let data = header + 30 + u16_at(header + 26) + u16_at(header + 28);
        let data = &bytes[data..data + packed];
        if !name.ends_with('/') {
            let mut out = Vec::new();
            match method {
                0 => out.extend_from_slice(data),
                _ => {
                    std::io::copy(&mut flate2::read::DeflateDecoder::new(data), &mut out).map(|_| ()).unwrap()
                }
            }
            files.push((name, out));
        }
        entry += 46 + u16_at(entry + 28) + u16_at(entry + 30) + u16_at(entry + 32);
    }
    files
}

/// The hash of `make_ids.py`: ids as little-endian u32, lines closed by 0xFFFFFFFF.
#[derive(Default)]
pub struct IdHash {
    hasher: blake3::Hasher,
    pub lines: u64,
    pub tokens: u64,
}

impl IdHash {
    pub fn line(&mut self, ids: &[u32]) {
        let bytes: Vec<u8> = ids.iter().chain(&[u32::MAX]).flat_map(|id| id.to_le_bytes()).collect();
        self.hasher.update(&bytes);
        self.lines += 1;
        self.tokens += ids.len() as u64;
    }

    pub fn hex(&self) -> String {
        self.hasher.finalize().to_hex()[..32].to_string()
    }
}
