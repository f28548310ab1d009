//! The settings of `intern data images`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::check::ImageRules;
use super::sample::SourceConfig;

/// Configuration of `intern data images`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ImagesConfig {
    /// Where pictures come from.
    pub source: Vec<SourceConfig>,
    /// What a picture must be.
    pub image: ImageRules,
    /// What a pair's text must be.
    pub caption: CaptionRules,
    /// What an interleaved document must be.
    pub document: DocumentRules,
    /// Copies of pictures.
    pub dedup: DedupConfig,
    /// How well texts fit their pictures.
    pub clip: ClipConfig,
    /// What is written.
    pub output: OutputConfig,
}

/// Limits of captions.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CaptionRules {
    /// Fewest words; 0 also allows pictures without a text.
    pub min_words: usize,
    /// Fewest characters.
    pub min_chars: usize,
    /// Most characters; 0 for any number.
    pub max_chars: usize,
}

/// Limits of interleaved documents.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DocumentRules {
    /// Fewest pictures left.
    pub min_images: usize,
    /// Most pictures left; 0 for any number.
    pub max_images: usize,
    /// Fewest characters of text.
    pub min_chars: usize,
    /// In how many documents the same picture may be; one in more (a logo) is taken out of all.
    pub max_copies: usize,
}

impl Default for DocumentRules {
    fn default() -> Self {
        Self { min_images: 1, max_images: 30, min_chars: 0, max_copies: 10 }
    }
}

/// How copies are found. Of pairs the one with the most pixels stays, the largest file and then the
/// first of equals; in documents a picture stays once each.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DedupConfig {
    /// Whether equal files are copies.
    pub exact: bool,
    /// Whether pictures that look alike are.
    pub perceptual: bool,
    /// Bits of 64 in which the perceptual hashes of copies may differ.
    pub max_distance: u32,
}

impl Default for DedupConfig {
    fn default() -> Self {
        Self { exact: true, perceptual: true, max_distance: 6 }
    }
}

/// CLIP's judgement.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClipConfig {
    /// Hugging Face directory of a CLIP model; without one nothing is judged.
    pub model: Option<PathBuf>,
    /// Least cosine of a picture and its text; in a document, the better one beside it.
    pub min_similarity: f32,
}

/// How results are written.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OutputConfig {
    /// Samples of a shard.
    pub shard_samples: usize,
    /// Pictures the report shows of those kept, and of each rule.
    pub report_samples: usize,
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self { shard_samples: 10_000, report_samples: 12 }
    }
}
