//! Drops texts that an n-gram language model finds unlikely, or too likely, as CCNet does
//! (Wenzek et al., 2020): the model reads line by line, and the perplexity is that of all
//! words and line ends.

use std::path::PathBuf;

use anyhow::{Context, Result};
use intern_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Candidate, Sheet, Stage};
use crate::ngram_model::NgramModel;
use crate::words::{Splitter, Words};

/// `[[perplexity]]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PerplexityConfig {
    /// Name of its rules, and of the value in `meta`.
    #[serde(default = "name")]
    pub name: String,
    /// The model: ARPA (plain, gzip, zstd) or KenLM's probing binary.
    pub model: PathBuf,
    /// Splits lines into the model's words where `tokenizer` is not given: `whitespace`,
    /// `characters`, `english` or `language`.
    #[serde(default = "whitespace")]
    pub words: Splitter,
    /// A tokenizer (SentencePiece `.model`, `tokenizer.json` or a directory) whose pieces are
    /// the model's words, as in CCNet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Whether the model reads lower case.
    #[serde(default)]
    pub lowercase: bool,
    /// Judges only texts in this language; empty judges all.
    #[serde(default)]
    pub language: String,
    /// Drops texts of less perplexity.
    #[serde(default)]
    pub min: f64,
    /// Drops texts of more.
    pub max: f64,
}

fn name() -> String {
    "perplexity".into()
}

fn whitespace() -> Splitter {
    Splitter::Whitespace
}

/// The stage: all models of a recipe.
pub struct Perplexity {
    models: Vec<(PerplexityConfig, NgramModel, Option<Tokenizer>)>,
}

impl Perplexity {
    /// Loads the models.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn new(configs: &[PerplexityConfig]) -> Result<Self> {
        let load = |config: &PerplexityConfig| {
            let tokenizer = config
                .tokenizer
                .as_deref()
                .map(Tokenizer::from_path)
                .transpose()
                .with_context(|| format!("perplexity {}: cannot open the tokenizer", config.name))?;
            Ok((config.clone(), NgramModel::open(&config.model)?, tokenizer))
        };
        Ok(Self { models: configs.iter().map(load).collect::<Result<_>>()? })
    }
}

impl Stage for Perplexity {
    fn name(&self) -> &'static str {
        "perplexity"
    }

    fn judge(&self, candidate: &mut Candidate, sheet: &mut Sheet) {
        for (config, model, tokenizer) in &self.models {
            if !config.language.is_empty() && config.language != candidate.lang {
                continue;
            }
            let (mut sum, mut n) = (0.0, 0);
            for line in candidate.text().lines().filter(|l| !l.trim().is_empty()) {
                let line = if config.lowercase { line.to_lowercase() } else { line.to_string() };
                let (s, k) = match tokenizer {
                    Some(tokenizer) => model.score(pieces(tokenizer, &line).iter().map(String::as_str)),
                    None => {
                        let words = Words::by(config.words, &line);
                        model.score(words.tokens.iter().map(|t| t.of(&line)))
                    }
                };
                sum += s;
                n += k;
            }
            let perplexity = 10f64.powf(-sum / n.max(1) as f64);
            candidate.notes.insert(config.name.clone(), Value::from((perplexity * 10.0).round() / 10.0));
            if sheet.under(&format!("{}_min", config.name), perplexity, config.min)
                || sheet.over(&format!("{}_max", config.name), perplexity, config.max)
            {
                return;
            }
        }
    }
}

fn pieces(tokenizer: &Tokenizer, line: &str) -> Vec<String> {
    let ids = tokenizer.encode_plain(line).unwrap_or_default();
    ids.into_iter().filter_map(|id| tokenizer.id_to_token(id)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::verdict;
    use super::*;

    #[test]
    fn unlikely_texts_go() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("lm.arpa");
        let arpa = "\\data\\\nngram 1=4\nngram 2=2\n\n\\1-grams:\n-3\t<unk>\n-99\t<s>\t0\n-1\t</s>\n-0.5\tthe\t-0.2\n\
                    \n\\2-grams:\n-0.1\t<s> the\n-0.1\tthe </s>\n\n\\end\\\n";
        std::fs::write(&model, arpa).unwrap();
        let config = PerplexityConfig {
            name: name(),
            model,
            words: Splitter::Whitespace,
            tokenizer: None,
            lowercase: true,
            language: String::new(),
            min: 1.1,
            max: 5.0,
        };
        let stage = Perplexity::new(&[config]).unwrap();
        let judge = |text: &str| {
            let mut c = Candidate::new(text, "");
            let rule = verdict(&stage, &mut c).map(|r| r.rule);
            (rule, c.notes["perplexity"].as_f64().unwrap())
        };
        // Two lines, each 10^(0.1 + 0.1) for two steps.
        assert_eq!(judge("The\nthe"), (None, 1.3));
        assert_eq!(judge("unknown words here").0.as_deref(), Some("perplexity_max"));
    }
}
