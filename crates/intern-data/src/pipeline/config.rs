//! A recipe's configuration: one TOML file is one complete run.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::dedup::exact::ExactConfig;
use crate::dedup::minhash::MinhashConfig;
use crate::extract::ExtractConfig;
use crate::source::SourceConfig;
use crate::stage::{
    C4, C4Config, Fineweb, FinewebConfig, Language, LanguageConfig, Length, LengthConfig, Quality,
    QualityConfig, Repetition, RepetitionConfig, Stage,
};
use crate::words::Splitter;

/// Everything `intern data run` needs to know.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RecipeConfig {
    /// Where raw pages come from, in this order.
    pub source: Vec<SourceConfig>,
    /// How bytes become text.
    pub encoding: EncodingConfig,
    /// How pages become text.
    pub extract: ExtractConfig,
    /// How the rules find words: `characters`, `whitespace`, `english` or `language`.
    pub words: Splitter,
    /// Language identification.
    pub language: LanguageConfig,
    /// Too short, too long.
    pub length: LengthConfig,
    /// Texts that repeat themselves.
    pub repetition: RepetitionConfig,
    /// What does not read as text.
    pub quality: QualityConfig,
    /// Lines and documents as C4 cleans them.
    pub c4: C4Config,
    /// Lists and menus, by FineWeb's rules.
    pub fineweb: FinewebConfig,
    /// Copies across the corpus.
    pub dedup: DedupConfig,
    /// What is written.
    pub output: OutputConfig,
    /// Texts that extraction should give, to score it; see `gold`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gold: Option<PathBuf>,
}

/// `[encoding]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EncodingConfig {
    /// Most undecodable places per character; pages with more are dropped, others repaired.
    pub max_errors: f64,
}

impl Default for EncodingConfig {
    fn default() -> Self {
        Self { max_errors: 0.01 }
    }
}

/// `[dedup]` of a recipe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DedupConfig {
    /// Same text.
    pub exact: ExactConfig,
    /// Nearly the same text.
    pub minhash: MinhashConfig,
}

/// `[output]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OutputConfig {
    /// Pages that a run completes at once, and an output file holds.
    pub shard_pages: usize,
    /// Longest page read, bytes; longer ones are cut.
    pub max_page_bytes: usize,
    /// Whether dropped documents are written.
    pub dropped: bool,
    /// Samples per rule in the report.
    pub samples: usize,
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self { shard_pages: 5000, max_page_bytes: 8 << 20, dropped: true, samples: 3 }
    }
}

impl RecipeConfig {
    /// Checks what types cannot and builds the stages.
    ///
    /// # Errors
    /// If a value makes no sense.
    pub fn stages(&self) -> Result<Vec<Box<dyn Stage>>> {
        if self.source.is_empty() {
            bail!("the recipe has no [[source]]\nhint: add one with kind = \"html\" and path = \"…\"");
        }
        let mut labels: Vec<String> = self.source.iter().map(SourceConfig::label).collect();
        labels.sort();
        if let Some(twice) = labels.windows(2).find(|w| w[0] == w[1]) {
            bail!("two sources are named {:?}\nhint: give each [[source]] its own name", twice[0]);
        }
        let m = &self.dedup.minhash;
        if m.enabled && (m.bands == 0 || m.rows == 0 || m.ngram == 0 || !(0.0..=1.0).contains(&m.threshold)) {
            bail!(
                "dedup.minhash: bands, rows and ngram must be at least 1 and threshold within 0–1\n\
                 hint: FineWeb's are bands = 14, rows = 8, ngram = 5"
            );
        }
        if self.output.shard_pages == 0 || self.output.max_page_bytes == 0 {
            bail!("output: shard_pages and max_page_bytes must be at least 1");
        }
        let mut stages: Vec<Box<dyn Stage>> = Vec::new();
        if self.language.enabled {
            stages.push(Box::new(Language::new(self.language.clone())?));
        }
        if self.length.enabled {
            stages.push(Box::new(Length(self.length.clone())));
        }
        if self.repetition.enabled {
            stages.push(Box::new(Repetition(self.repetition.clone())));
        }
        if self.quality.enabled {
            stages.push(Box::new(Quality(self.quality.clone())));
        }
        if self.c4.enabled {
            stages.push(Box::new(C4(self.c4.clone())));
        }
        if self.fineweb.enabled {
            stages.push(Box::new(Fineweb(self.fineweb.clone())));
        }
        Ok(stages)
    }
}
