//! Duplicates across the whole corpus: exact ones by a hash of the normalized text,
//! near ones by MinHash signatures whose candidates are verified.
//!
//! Only hashes are held in memory; the shingles that verification compares lie in a
//! spill file beside the documents.

pub mod exact;
pub mod minhash;
mod union_find;

pub use union_find::UnionFind;

use serde::{Deserialize, Serialize};

/// Which of several copies stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// The first in the order of the sources.
    #[default]
    First,
    /// The one with the most characters, the first of equals.
    Longest,
}

impl Keep {
    /// Whether document `a` (index, characters) is kept rather than `b`.
    #[must_use]
    pub fn prefers(self, a: (usize, u32), b: (usize, u32)) -> bool {
        match self {
            Self::First => a.0 < b.0,
            Self::Longest => (a.1, std::cmp::Reverse(a.0)) > (b.1, std::cmp::Reverse(b.0)),
        }
    }
}
