//! Exact duplicates: texts that are the same once case, punctuation and whitespace are
//! set aside.

use serde::{Deserialize, Serialize};

use super::{Keep, Rank};
use crate::words;

/// `[dedup.exact]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExactConfig {
    /// Whether exact duplicates are dropped.
    pub enabled: bool,
    /// Which copy stays.
    pub keep: Keep,
}

impl Default for ExactConfig {
    fn default() -> Self {
        Self { enabled: true, keep: Keep::First }
    }
}

/// 128-bit hash of a text's words in lower case. Texts without a letter or digit hash as they are.
#[must_use]
pub fn fingerprint(text: &str) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = Vec::with_capacity(1 << 12);
    let mut any = false;
    words::normalized(text, |word| {
        any = true;
        buffer.extend_from_slice(word.as_bytes());
        buffer.push(b' ');
        if buffer.len() >= 1 << 12 {
            hasher.update(&buffer);
            buffer.clear();
        }
    });
    hasher.update(if any { &buffer } else { text.as_bytes() });
    let mut out = [0; 16];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    out
}

/// Calls `copy(document, kept)` for each document that another one is kept for, in the order
/// of the documents. `fingerprints` holds documents by index, each with its hash; sorted here.
pub fn duplicates(
    fingerprints: &mut [([u8; 16], u32)],
    keep: Keep,
    rank: impl Fn(usize) -> Rank,
    mut copy: impl FnMut(usize, usize),
) {
    fingerprints.sort_unstable();
    for group in fingerprints.chunk_by(|a, b| a.0 == b.0).filter(|g| g.len() > 1) {
        let members = || group.iter().map(|(_, i)| *i as usize);
        let first = group[0].1 as usize;
        let best = members()
            .fold(first, |best, i| if keep.prefers((i, rank(i)), (best, rank(best))) { i } else { best });
        members().filter(|i| *i != best).for_each(|i| copy(i, best));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_point_to_what_is_kept() {
        let texts = ["A b, c.", "other", "a  B c", "a b c d", "a b c!!!!!!!"];
        let find = |keep| {
            let mut hashes: Vec<_> = (0u32..).zip(texts).map(|(i, t)| (fingerprint(t), i)).collect();
            let mut found = [None; 5];
            let rank = |i: usize| Rank { chars: texts[i].len() as u32, score: -(i as f32) };
            duplicates(&mut hashes, keep, rank, |i, kept| found[i] = Some(kept));
            found
        };
        assert_eq!(find(Keep::First), [None, None, Some(0), None, Some(0)]);
        assert_eq!(find(Keep::Longest), [Some(4), None, Some(4), None, None]);
        assert_eq!(find(Keep::Best), [None, None, Some(0), None, Some(0)]);
        assert_ne!(fingerprint("ab c"), fingerprint("a bc"));
        assert_ne!(fingerprint("!"), fingerprint("?"));
    }
}
