//! Duplicates across the whole corpus: exact ones by a hash of the normalized text,
//! near ones by MinHash signatures whose candidates are verified.
//!
//! Only hashes are held in memory; the shingles that verification compares lie in a
//! spill file beside the documents.

pub mod bloom;
pub mod exact;
pub mod minhash;
mod minima;
mod numpy;
pub mod pieces;
mod union_find;

pub use union_find::UnionFind;

use serde::{Deserialize, Serialize};

/// Which of several copies stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// The first in the order of the sources.
    #[default]
    First,
    /// The one with the most characters, the first of equals.
    Longest,
    /// The one with the best quality score, the longest and then the first of equals.
    Best,
}

/// What decides between copies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rank {
    /// Characters.
    pub chars: u32,
    /// Quality score.
    pub score: f32,
}

impl Keep {
    /// Whether document `a` (index, rank) is kept rather than `b`.
    #[must_use]
    pub fn prefers(self, a: (usize, Rank), b: (usize, Rank)) -> bool {
        let order = match self {
            Self::First => std::cmp::Ordering::Equal,
            Self::Longest => a.1.chars.cmp(&b.1.chars),
            Self::Best => a.1.score.total_cmp(&b.1.score).then(a.1.chars.cmp(&b.1.chars)),
        };
        order.then(b.0.cmp(&a.0)).is_gt()
    }
}
