//! The compiled character replacements of a SentencePiece model (`precompiled_charsmap`):
//! a double-array trie of byte strings (Yata's darts-clone) and the strings they become.
//!
//! Lookups are checked, so a damaged map gives wrong replacements, never a panic.

use anyhow::{Result, ensure};

/// The replacements.
pub(super) struct Charsmap {
    trie: Vec<u32>,
    replacements: String, // each ends with NUL
}

impl Charsmap {
    /// Reads `u32` byte length of the trie, its units, then the replacements.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let damaged = "damaged precompiled_charsmap in the SentencePiece model\nhint: fetch the file again";
        let header = bytes.split_first_chunk::<4>();
        let (size, rest) = header.ok_or_else(|| anyhow::anyhow!("{damaged}"))?;
        let size = u32::from_le_bytes(*size) as usize;
        ensure!(size.is_multiple_of(4) && size <= rest.len() && size > 0, "{damaged}");
        let (trie, replacements) = rest.split_at(size);
        let units = trie.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().expect("four bytes")));
        let replacements = String::from_utf8(replacements.to_vec());
        ensure!(replacements.is_ok(), "{damaged}");
        Ok(Self { trie: units.collect(), replacements: replacements.unwrap_or_default() })
    }

    /// The longest prefix that has a replacement: its length and what it becomes.
    pub(super) fn longest(&self, text: &[u8]) -> Option<(usize, &str)> {
        let offset = |unit: u32| (unit >> 10) << ((unit & (1 << 9)) >> 6);
        let mut node = offset(*self.trie.first()?);
        let mut best = None;
        for (i, &byte) in text.iter().enumerate() {
            node ^= u32::from(byte);
            let Some(&unit) = self.trie.get(node as usize) else { break };
            if unit & (1 << 31 | 0xFF) != u32::from(byte) {
                break;
            }
            node ^= offset(unit);
            if unit >> 8 & 1 == 1 {
                let Some(&leaf) = self.trie.get(node as usize) else { break };
                best = Some((i + 1, leaf & !(1 << 31)));
            }
        }
        let (length, at) = best?;
        let replacement = self.replacements.get(at as usize..)?;
        Some((length, replacement.split('\0').next().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn damaged_maps_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120), text: String) {
            if let Ok(map) = Charsmap::parse(&bytes) {
                let _ = map.longest(text.as_bytes());
            }
        }
    }
}
