//! Exact duplicates: texts that are the same once case, punctuation and whitespace are
//! set aside.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::Keep;
use crate::words;

/// `[dedup.exact]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
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

/// For each document the index of the one kept in its place, `None` for those kept.
/// Documents are (fingerprint, characters).
#[must_use]
pub fn duplicates(documents: &[([u8; 16], u32)], keep: Keep) -> Vec<Option<usize>> {
    let mut best: HashMap<[u8; 16], usize> = HashMap::with_capacity(documents.len());
    for (i, (hash, chars)) in documents.iter().enumerate() {
        best.entry(*hash)
            .and_modify(|b| {
                if keep.prefers((i, *chars), (*b, documents[*b].1)) {
                    *b = i;
                }
            })
            .or_insert(i);
    }
    documents.iter().enumerate().map(|(i, (hash, _))| Some(best[hash]).filter(|b| *b != i)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_point_to_what_is_kept() {
        let doc = |text: &str| (fingerprint(text), text.len() as u32);
        let docs = [doc("A b, c."), doc("other"), doc("a  B c"), doc("a b c d"), doc("a b c!!!!!!!")];
        assert_eq!(duplicates(&docs, Keep::First), [None, None, Some(0), None, Some(0)]);
        assert_eq!(duplicates(&docs, Keep::Longest), [Some(4), None, Some(4), None, None]);
        assert_ne!(fingerprint("ab c"), fingerprint("a bc"));
        assert_ne!(fingerprint("!"), fingerprint("?"));
    }
}
