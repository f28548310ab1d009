//! `intern data tokenizer`: trains a byte-level BPE tokenizer on documents and saves it as
//! a Hugging Face directory with InternLM2's chat template.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use intern_format::provenance::{self, Provenance};
use intern_progress::Progress;
use intern_tokenizer::train::{BpeConfig, train_bpe};
use intern_tokenizer::{PreTokenizer, internlm2};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::corpus;

const COMMAND: &str = "data tokenizer";

/// What to train.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    /// Document files or directories.
    pub documents: Vec<PathBuf>,
    /// Size of the vocabulary: special tokens, 256 bytes, merges.
    #[serde(default = "default_vocab_size")]
    pub vocab_size: usize,
    /// Pairs seen less often are not merged.
    #[serde(default = "default_min_frequency")]
    pub min_frequency: u64,
    /// How text is cut into words: `gpt2`, `llama3`, `qwen2`.
    #[serde(default)]
    pub pre_tokenizer: PreTokenizer,
    /// Tokens with ids 0, 1, …; InternLM2's by default.
    #[serde(default = "default_special_tokens")]
    pub special_tokens: Vec<String>,
    /// Reads no more characters than this; 0 reads all.
    #[serde(default)]
    pub max_characters: u64,
    /// A Jinja chat template; InternLM2's by default.
    #[serde(default = "default_chat_template")]
    pub chat_template: String,
}

fn default_vocab_size() -> usize {
    32_000
}

fn default_min_frequency() -> u64 {
    2
}

fn default_special_tokens() -> Vec<String> {
    internlm2::SPECIAL_TOKENS.iter().map(ToString::to_string).collect()
}

fn default_chat_template() -> String {
    internlm2::CHAT_TEMPLATE.to_string()
}

/// What was trained.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Tokens in the vocabulary.
    pub vocab_size: u64,
    /// Documents read.
    pub documents: u64,
    /// Characters read.
    pub characters: u64,
    /// Nothing had to be done.
    pub up_to_date: bool,
}

/// Trains into the directory `out`.
///
/// # Errors
/// If the documents cannot be read or hold no text, or the vocabulary is too small.
pub fn run(config: &TokenizerConfig, out: &Path) -> Result<Summary> {
    let files = corpus::files(&config.documents)?;
    let mut record = Provenance {
        command: COMMAND.into(),
        version: env!("CARGO_PKG_VERSION").into(),
        config: serde_json::to_value(config)?,
        inputs: corpus::hashes(config.documents.iter())?,
        ..Provenance::default()
    };
    if out.is_dir()
        && let Some(done) = provenance::read(out)?.filter(|p| {
            p.command == COMMAND
                && p.version == record.version
                && p.config == record.config
                && p.inputs == record.inputs
        })
    {
        let count = |key: &str| done.counts.get(key).and_then(Value::as_u64).unwrap_or(0);
        return Ok(Summary {
            vocab_size: count("vocab_size"),
            documents: count("documents"),
            characters: count("characters"),
            up_to_date: true,
        });
    }
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    provenance::clear(out)?;

    let progress = Progress::new("tokenizer", 0, "documents");
    let mut texts = Texts {
        config,
        files: files.into_iter(),
        open: None,
        documents: 0,
        characters: 0,
        error: None,
        progress,
    };
    let bpe = BpeConfig {
        vocab_size: config.vocab_size,
        min_frequency: config.min_frequency,
        special_tokens: config.special_tokens.clone(),
        pre_tokenizer: config.pre_tokenizer,
    };
    let trained = train_bpe(&bpe, &mut texts);
    texts.progress.finish();
    // A corpus that cannot be read comes before whatever the trainer made of half of it.
    if let Some(error) = texts.error {
        return Err(error);
    }
    let tokenizer = trained?.with_chat_template(config.chat_template.clone());
    tokenizer.save(out)?;
    let summary = Summary {
        vocab_size: tokenizer.vocab_size() as u64,
        documents: texts.documents,
        characters: texts.characters,
        up_to_date: false,
    };
    for (key, n) in [
        ("vocab_size", summary.vocab_size),
        ("documents", summary.documents),
        ("characters", summary.characters),
    ] {
        record.counts.insert(key.into(), Value::from(n));
    }
    record.outputs.insert("tokenizer.json".into(), provenance::hash_path(&out.join("tokenizer.json"))?);
    provenance::write(out, &record)?;
    Ok(summary)
}

type Documents = Box<dyn Iterator<Item = Result<intern_format::document::Document>>>;

/// The corpus as the trainer takes it; an error ends it and is kept.
struct Texts<'a> {
    config: &'a TokenizerConfig,
    files: std::vec::IntoIter<PathBuf>,
    open: Option<Documents>,
    documents: u64,
    characters: u64,
    error: Option<anyhow::Error>,
    progress: Progress,
}

impl Iterator for Texts<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        let limit = self.config.max_characters;
        while self.error.is_none() && (limit == 0 || self.characters < limit) {
            match self.open.as_mut().and_then(Iterator::next) {
                Some(Ok(document)) => {
                    self.documents += 1;
                    self.characters += document.text.chars().count() as u64;
                    self.progress.inc(1);
                    return Some(document.text);
                }
                Some(Err(e)) => self.error = Some(e),
                None => match corpus::read(&self.files.next()?) {
                    Ok(documents) => self.open = Some(Box::new(documents)),
                    Err(e) => self.error = Some(e),
                },
            }
        }
        None
    }
}
