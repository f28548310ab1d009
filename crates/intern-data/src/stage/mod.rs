//! Stages judge one document at a time: keep it, or drop it for a stated reason.
//!
//! A stage sees a `Candidate` (text, words, language so far) and nothing else, so its
//! verdict depends on no other document and on no order. Duplicates need to see many
//! documents and live in `dedup`.

mod language;
mod length;
mod quality;
mod repetition;

use serde::{Deserialize, Serialize};

use crate::words::Words;

pub use language::{Language, LanguageConfig};
pub use length::{Length, LengthConfig};
pub use quality::{Quality, QualityConfig};
pub use repetition::{Repetition, RepetitionConfig};

/// A document while it is judged.
#[derive(Debug)]
pub struct Candidate<'a> {
    /// Its text.
    pub text: &'a str,
    /// The words of the text.
    pub words: Words<'a>,
    /// ISO 639-1 code where there is one, else 639-3; empty until known.
    pub lang: String,
    /// How sure the language stage is, 0..=1.
    pub lang_confidence: f64,
}

impl<'a> Candidate<'a> {
    /// Prepares `text`; `lang` as its source declares it, or empty.
    #[must_use]
    pub fn new(text: &'a str, lang: &str) -> Self {
        Self { text, words: Words::split(text), lang: lang.to_string(), lang_confidence: 0.0 }
    }
}

/// Why a document was dropped.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reason {
    /// The stage that dropped it, e.g. `repetition`.
    pub stage: String,
    /// Its rule, e.g. `dup_line_frac`.
    pub rule: String,
    /// The value measured.
    pub value: f64,
    /// The limit it broke.
    pub limit: f64,
    /// The document kept instead, for duplicates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate_of: Option<String>,
}

impl Reason {
    /// A drop by one value against one limit.
    #[must_use]
    pub fn new(stage: &str, rule: impl Into<String>, value: f64, limit: f64) -> Self {
        Self { stage: stage.into(), rule: rule.into(), value, limit, duplicate_of: None }
    }
}

/// One kind of judgement with its parameters.
pub trait Stage: Send + Sync {
    /// The stage's name in configuration, reasons and reports.
    fn name(&self) -> &'static str;

    /// `None` keeps the document.
    fn judge(&self, candidate: &mut Candidate) -> Option<Reason>;
}

/// Share of `part` in `whole`; 0 of nothing.
fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
