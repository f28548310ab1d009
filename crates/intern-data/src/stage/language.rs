//! Names a document's language (by the built-in model or a fastText one) and drops those not
//! asked for.
//!
//! Of the built-in identification, only prose is looked at: lines that are mostly letters, from the whole document up
//! to a sample size, so that code and tables do not decide.

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use super::{Candidate, Sheet, Stage};
use crate::classifier::Classifier;
use crate::language::{MODEL, short};

/// Bytes of prose looked at; more change next to no verdict.
const SAMPLE: usize = 1024;

/// `[language]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LanguageConfig {
    /// Whether the stage runs.
    pub enabled: bool,
    /// Languages to keep (`en`, `zh`, or three-letter codes); empty keeps all.
    pub keep: Vec<String>,
    /// Chooses only among `keep`, instead of among all languages known. Helps short or
    /// mixed texts where nothing else is expected.
    pub only_these: bool,
    /// Least confidence of the identification, 0–1.
    pub min_confidence: f64,
    /// A fastText model (`lid.176.bin`, `lid.176.ftz`, GlotLID) to use instead of the built-in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
}

impl Default for LanguageConfig {
    fn default() -> Self {
        Self { enabled: true, keep: Vec::new(), only_these: false, min_confidence: 0.0, model: None }
    }
}

/// The stage.
pub struct Language {
    config: LanguageConfig,
    keep: HashSet<String>,
    identifier: Identifier,
}

enum Identifier {
    /// The built-in model; chooses among these languages, if there are any.
    BuiltIn(Vec<&'static str>),
    Fasttext(Box<Classifier>),
}

impl Language {
    /// Fails on a language code nobody knows.
    ///
    /// # Errors
    /// If `keep` names an unknown language.
    pub fn new(config: LanguageConfig) -> Result<Self> {
        if let Some(path) = &config.model {
            let model = Classifier::open(path)?;
            let known: HashSet<String> = model.labels().iter().map(|l| code(l)).collect();
            let keep: HashSet<String> = config.keep.iter().map(|k| code(k)).collect();
            if let Some(unknown) = keep.iter().find(|k| !known.contains(*k)) {
                bail!(
                    "language.keep: {} does not know {unknown:?}\nhint: languages are named as in its labels",
                    path.display()
                );
            }
            return Ok(Self { config, keep, identifier: Identifier::Fasttext(Box::new(model)) });
        }
        let mut allowed = Vec::new();
        for name in &config.keep {
            let Some(known) = MODEL.codes().iter().find(|c| **c == short(name)) else {
                bail!(
                    "language.keep: unknown language {name:?}\nhint: known languages: {}",
                    MODEL.codes().join(", ")
                );
            };
            allowed.push(*known);
        }
        let keep = allowed.iter().map(ToString::to_string).collect();
        if !config.only_these {
            allowed.clear();
        }
        Ok(Self { config, keep, identifier: Identifier::BuiltIn(allowed) })
    }

    /// Code and confidence.
    fn identify(&self, text: &str) -> (String, f64) {
        match &self.identifier {
            Identifier::BuiltIn(allowed) => {
                let allowed = Some(allowed.as_slice()).filter(|a| !a.is_empty());
                let guess = MODEL.identify(&prose(text), allowed);
                guess.map_or(("und".into(), 0.0), |g| (g.code.to_string(), g.confidence))
            }
            // The whole text, as datatrove gives it.
            Identifier::Fasttext(model) => {
                let found = model.predict(text, 1).into_iter().next();
                found.map_or(("und".into(), 0.0), |(label, p)| (code(&label), f64::from(p)))
            }
        }
    }
}

/// A model's label as a language code: `zho_Hans` is `zh`.
fn code(label: &str) -> String {
    short(label.split(['_', '-']).next().unwrap_or(label)).to_string()
}

impl Stage for Language {
    fn name(&self) -> &'static str {
        "language"
    }

    fn judge(&self, candidate: &mut Candidate, sheet: &mut Sheet) {
        let (lang, confidence) = self.identify(candidate.text());
        candidate.lang_confidence = confidence;
        let rounded = (confidence * 1000.0).round() / 1000.0;
        candidate.notes.insert("lang_confidence".into(), rounded.into());
        let other = !self.keep.is_empty() && !self.keep.contains(&lang);
        let _ = (other && sheet.over(&format!("language_{lang}"), 1.0, 0.0))
            || sheet.under("min_confidence", confidence, self.config.min_confidence);
        candidate.lang = lang;
    }
}

/// The prose of a text, up to `SAMPLE` bytes; all of it when there is no prose.
fn prose(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let (mut letters, mut chars) = (0, 0);
        for c in line.chars() {
            chars += 1;
            letters += usize::from(c.is_alphabetic() || c == ' ');
        }
        if chars >= 3 && 5 * letters >= 4 * chars {
            out.push_str(line);
            out.push('\n');
        }
        if out.len() >= SAMPLE {
            break;
        }
    }
    if out.is_empty() {
        out.push_str(text);
    }
    let mut end = out.len().min(SAMPLE);
    while !out.is_char_boundary(end) {
        end -= 1;
    }
    out.truncate(end);
    out
}

#[cfg(test)]
mod tests {
    use super::super::verdict;
    use super::*;

    fn judge(config: LanguageConfig, text: &str) -> (String, Option<String>) {
        let mut c = Candidate::new(text, "");
        let drop = verdict(&Language::new(config).unwrap(), &mut c);
        (c.lang, drop.map(|d| d.rule))
    }

    #[test]
    fn languages_are_named_and_kept() {
        let all = LanguageConfig::default();
        assert_eq!(judge(all.clone(), "小明有三个苹果，又买了两个。他现在有几个？").0, "zh");
        assert_eq!(judge(all.clone(), "The quick brown fox jumps over the lazy dog and runs away.").0, "en");
        let en = LanguageConfig { keep: vec!["eng".into()], ..all };
        let german = "Der schnelle braune Fuchs springt über den faulen Hund und läuft davon.";
        assert_eq!(judge(en.clone(), german), ("de".into(), Some("language_de".into())));
        assert_eq!(judge(en, "These are the words of an English sentence.").1, None);
    }

    #[test]
    fn code_does_not_decide() {
        let text = "Returns the number of elements that the vector can hold without reallocating.\n\n\
                    let v = Vec::<u8>::with_capacity(10);\nassert_eq!(v.capacity(), 10);\nv.push(0x7f);";
        assert_eq!(judge(LanguageConfig::default(), text).0, "en");
    }

    #[test]
    fn an_unknown_code_is_refused() {
        let config = LanguageConfig { keep: vec!["xx".into()], ..Default::default() };
        assert!(Language::new(config).err().unwrap().to_string().contains("hint:"));
    }
}
