//! A recipe's configuration: one TOML file is one complete run.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::dedup::bloom::NgramsConfig;
use crate::dedup::exact::ExactConfig;
use crate::dedup::minhash::MinhashConfig;
use crate::dedup::pieces::{PiecesConfig, SentencesConfig, SubstringsConfig};
use crate::extract::ExtractConfig;
use crate::source::SourceConfig;
use crate::stage::{
    Badwords, BadwordsConfig, C4, C4Config, Classify, ClassifyConfig, Decontaminate, DecontaminateConfig,
    Fineweb, FinewebConfig, Language, LanguageConfig, Length, LengthConfig, Lines, LinesConfig, Normalize,
    NormalizeConfig, Perplexity, PerplexityConfig, Pii, PiiConfig, Quality, QualityConfig, Repetition,
    RepetitionConfig, Score, ScoreConfig, Stage, Url, UrlConfig,
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
    /// The order of the stages; those not named follow in the usual one: `url`, `language`,
    /// `normalize`, `lines`, `length`, `repetition`, `quality`, `c4`, `fineweb`, `badwords`,
    /// `classifier`, `perplexity`, `decontaminate`, `score`, `pii`.
    pub order: Vec<String>,
    /// Block lists of addresses.
    pub url: UrlConfig,
    /// Unicode normal forms and simplified Chinese.
    pub normalize: NormalizeConfig,
    /// Clean-up of lines.
    pub lines: LinesConfig,
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
    /// Word lists.
    pub badwords: BadwordsConfig,
    /// Classifiers in fastText's format.
    pub classifier: Vec<ClassifyConfig>,
    /// N-gram language models in KenLM's formats.
    pub perplexity: Vec<PerplexityConfig>,
    /// Test questions of benchmarks.
    pub decontaminate: DecontaminateConfig,
    /// Quality, information and density.
    pub score: ScoreConfig,
    /// Personal data.
    pub pii: PiiConfig,
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
    /// Same address: the first page stays.
    pub url: UrlCopiesConfig,
    /// Same text.
    pub exact: ExactConfig,
    /// Nearly the same text.
    pub minhash: MinhashConfig,
    /// Paragraphs that another document has.
    pub paragraphs: PiecesConfig,
    /// Lines that another document has.
    pub lines: PiecesConfig,
    /// Runs of sentences that another document has.
    pub sentences: SentencesConfig,
    /// Paragraphs or documents of n-grams seen before, by a Bloom filter.
    pub ngrams: NgramsConfig,
    /// Runs of characters that occurred before.
    pub substrings: SubstringsConfig,
}

/// `[dedup.url]` of a recipe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UrlCopiesConfig {
    /// Whether pages with an address seen before are dropped.
    pub enabled: bool,
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
        let d = &self.dedup;
        if d.sentences.run == 0 || d.ngrams.ngram == 0 || d.substrings.min_chars == 0 {
            bail!("dedup: sentences.run, ngrams.ngram and substrings.min_chars must be at least 1");
        }
        if self.output.shard_pages == 0 || self.output.max_page_bytes == 0 {
            bail!("output: shard_pages and max_page_bytes must be at least 1");
        }
        self.names()?.iter().map(|name| self.stage(name)).collect()
    }

    /// Names of the enabled stages, in their order.
    ///
    /// # Errors
    /// If `order` names an unknown stage, or one twice.
    pub fn names(&self) -> Result<Vec<&'static str>> {
        let mut names: Vec<&'static str> = Vec::new();
        for wanted in &self.order {
            let Some(name) = STAGES.iter().find(|s| *s == wanted).filter(|s| !names.contains(s)) else {
                bail!(
                    "order: {wanted:?} is no stage, or is named twice\nhint: the stages are {}",
                    STAGES.join(", ")
                );
            };
            names.push(name);
        }
        let rest: Vec<&str> = STAGES.iter().filter(|s| !names.contains(s)).copied().collect();
        names.extend(rest);
        names.retain(|name| self.is_enabled(name));
        Ok(names)
    }

    /// Whether the stage or deduplication of this name runs.
    #[must_use]
    pub fn is_enabled(&self, name: &str) -> bool {
        match name {
            "url" => self.url.enabled,
            "language" => self.language.enabled,
            "normalize" => self.normalize.enabled,
            "lines" => self.lines.enabled,
            "length" => self.length.enabled,
            "repetition" => self.repetition.enabled,
            "quality" => self.quality.enabled,
            "c4" => self.c4.enabled,
            "fineweb" => self.fineweb.enabled,
            "badwords" => self.badwords.enabled,
            "classifier" => !self.classifier.is_empty(),
            "perplexity" => !self.perplexity.is_empty(),
            "decontaminate" => self.decontaminate.enabled,
            "score" => self.score.enabled,
            "pii" => self.pii.enabled,
            "same_url" => self.dedup.url.enabled,
            "exact" => self.dedup.exact.enabled,
            "minhash" => self.dedup.minhash.enabled,
            "same_paragraphs" => self.dedup.paragraphs.enabled,
            "same_lines" => self.dedup.lines.enabled,
            "same_sentences" => self.dedup.sentences.enabled,
            "same_ngrams" => self.dedup.ngrams.enabled,
            "same_substrings" => self.dedup.substrings.enabled,
            _ => true,
        }
    }

    fn stage(&self, name: &str) -> Result<Box<dyn Stage>> {
        Ok(match name {
            "url" => Box::new(Url::new(&self.url)?),
            "language" => Box::new(Language::new(self.language.clone())?),
            "normalize" => Box::new(Normalize(self.normalize.clone())),
            "lines" => Box::new(Lines(self.lines.clone())),
            "length" => Box::new(Length(self.length.clone())),
            "repetition" => Box::new(Repetition(self.repetition.clone())),
            "quality" => Box::new(Quality(self.quality.clone())),
            "c4" => Box::new(C4(self.c4.clone())),
            "fineweb" => Box::new(Fineweb(self.fineweb.clone())),
            "badwords" => Box::new(Badwords::new(&self.badwords)?),
            "classifier" => Box::new(Classify::new(&self.classifier)?),
            "perplexity" => Box::new(Perplexity::new(&self.perplexity)?),
            "decontaminate" => Box::new(Decontaminate::new(&self.decontaminate)?),
            "score" => Box::new(Score(self.score.clone())),
            "pii" => Box::new(Pii(self.pii.clone())),
            other => bail!("no stage {other:?}"),
        })
    }

    /// Files beside the sources that decide what a run gives: lists, models, benchmarks.
    #[must_use]
    pub fn files(&self) -> Vec<&Path> {
        let mut files: Vec<&Path> = Vec::new();
        if self.url.enabled {
            files.extend(self.url.files().map(PathBuf::as_path));
        }
        if self.badwords.enabled {
            files.extend(self.badwords.files.iter().map(PathBuf::as_path));
        }
        if self.decontaminate.enabled {
            files.extend(self.decontaminate.files());
        }
        files.extend(self.classifier.iter().map(|c| c.model.as_path()));
        for p in &self.perplexity {
            files.push(&p.model);
            files.extend(p.tokenizer.as_deref());
        }
        files.extend(self.language.model.as_deref().filter(|_| self.language.enabled));
        files.extend(self.gold.as_deref());
        files
    }
}

/// The stages in their usual order.
pub const STAGES: [&str; 15] = [
    "url",
    "language",
    "normalize",
    "lines",
    "length",
    "repetition",
    "quality",
    "c4",
    "fineweb",
    "badwords",
    "classifier",
    "perplexity",
    "decontaminate",
    "score",
    "pii",
];
