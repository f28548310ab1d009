//! 64-bit hashing of words and shingles: quick, seeded by nothing, the same everywhere.
//!
//! Folded multiplication over 8-byte words, as in wyhash. Content identity (provenance,
//! exact duplicates) uses BLAKE3 instead; this is for tables where a rare collision
//! costs nothing.

use std::hash::{BuildHasherDefault, Hasher};

const K0: u64 = 0xa076_1d64_78bd_642f;
const K1: u64 = 0xe703_7ed1_a0b4_28db;

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Hash of a byte string.
#[must_use]
pub fn hash64(bytes: &[u8]) -> u64 {
    let mut h = K0 ^ bytes.len() as u64;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().expect("chunks of 8"));
        h = fold(h ^ word, K1);
    }
    let mut last = [0u8; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    h = fold(h ^ u64::from_le_bytes(last), K1);
    fold(h, K0)
}

/// Hash of a sequence of hashes; order matters.
#[must_use]
pub fn combine(hashes: &[u64]) -> u64 {
    let mut h = K1 ^ hashes.len() as u64;
    for &x in hashes {
        h = fold(h ^ x, K0).wrapping_add(x);
    }
    fold(h, K1)
}

/// Hash of a text with case, digits' script and runs of whitespace left alone: 128 bits of BLAKE3.
#[must_use]
pub fn content(text: &str) -> [u8; 16] {
    let mut out = [0; 16];
    out.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..16]);
    out
}

/// Passes keys through that are hashes already.
#[derive(Default)]
pub struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = hash64(bytes);
    }

    fn write_u64(&mut self, x: u64) {
        self.0 = x;
    }
}

/// A map keyed by hashes.
pub type HashedMap<V> = std::collections::HashMap<u64, V, BuildHasherDefault<Identity>>;
/// A set of hashes.
pub type HashedSet = std::collections::HashSet<u64, BuildHasherDefault<Identity>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_inputs_hash_apart() {
        let mut seen = HashedSet::default();
        for i in 0..100_000u32 {
            assert!(seen.insert(hash64(i.to_string().as_bytes())));
        }
        assert_ne!(hash64(b"a\0"), hash64(b"a"));
        assert_ne!(combine(&[1, 2]), combine(&[2, 1]));
    }

    #[test]
    fn values_do_not_change_between_releases() {
        // Work files of an interrupted run hold these.
        assert_eq!(hash64(b"intern"), hash64(b"intern"));
        assert_eq!(content("a")[..2], [0x17, 0x76]);
    }
}
