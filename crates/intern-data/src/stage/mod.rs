//! Stages judge one document at a time: keep it, change it, or drop it for a stated reason.
//!
//! A stage sees a `Candidate` (text, words, language so far) and nothing else, so its
//! verdict depends on no other document and on no order. Every value it compares with a
//! limit goes through a `Sheet`, which ends the stage at the first broken limit, or, when
//! somebody asks why, notes them all. Duplicates need to see many documents and live in
//! `dedup`.

mod badwords;
mod c4;
mod classify;
mod decontaminate;
mod fineweb;
mod language;
mod length;
mod lines;
mod normalize;
mod perplexity;
mod pii;
mod quality;
mod repetition;
mod score;
mod url;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::words::{Splitter, Words, is_chinese};

pub use badwords::{Badwords, BadwordsConfig};
pub use c4::{C4, C4Config};
pub use classify::{Classify, ClassifyConfig};
pub use decontaminate::{BenchmarkConfig, Decontaminate, DecontaminateConfig};
pub use fineweb::{Fineweb, FinewebConfig};
pub use language::{Language, LanguageConfig};
pub use length::{Length, LengthConfig};
pub use lines::{Lines, LinesConfig};
pub use normalize::{Form, Normalize, NormalizeConfig};
pub use perplexity::{Perplexity, PerplexityConfig};
pub use pii::{Pii, PiiConfig};
pub use quality::{Quality, QualityConfig};
pub use repetition::{Repetition, RepetitionConfig};
pub use score::{Score, ScoreConfig, Scores, measure};
pub use url::{Url, UrlConfig};

/// A document while it is judged.
#[derive(Debug, Default)]
pub struct Candidate<'a> {
    text: Cow<'a, str>,
    /// Its address; empty if none.
    pub url: &'a str,
    /// ISO 639-1 code where there is one, else 639-3; empty until known.
    pub lang: String,
    /// How sure the language stage is, 0..=1.
    pub lang_confidence: f64,
    /// What decides between copies of it where the best is kept: its score.
    pub rank: f32,
    /// What stages have to say about it; goes to the document's `meta`.
    pub notes: Map<String, Value>,
    /// `stage/what` → how many pieces of the text a stage took out or replaced.
    pub edits: BTreeMap<String, u64>,
    splitter: Splitter,
    words: Option<Words>,
    chinese: Option<bool>,
}

impl<'a> Candidate<'a> {
    /// Prepares `text`; `lang` as its source declares it, or empty.
    #[must_use]
    pub fn new(text: &'a str, lang: &str) -> Self {
        Self { text: Cow::Borrowed(text), lang: lang.to_string(), ..Self::default() }
    }

    /// The same with words found another way.
    #[must_use]
    pub fn with_splitter(mut self, splitter: Splitter) -> Self {
        self.splitter = splitter;
        self.words = None;
        self
    }

    /// The same with an address.
    #[must_use]
    pub fn at(mut self, url: &'a str) -> Self {
        self.url = url;
        self
    }

    /// Its text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its text and words.
    pub fn words(&mut self) -> (&str, &Words) {
        let words = self.words.get_or_insert_with(|| Words::by(self.splitter, &self.text));
        (&self.text, words)
    }

    /// Whether most of it is Chinese or Japanese.
    pub fn is_chinese(&mut self) -> bool {
        *self.chinese.get_or_insert_with(|| !self.text.is_ascii() && is_chinese(&self.text))
    }

    /// Replaces the text.
    pub fn set_text(&mut self, text: String) {
        self.text = Cow::Owned(text);
        self.words = None;
        self.chinese = None;
    }

    /// Counts `n` edits of the text.
    pub fn edited(&mut self, what: impl Into<String>, n: u64) {
        if n > 0 {
            *self.edits.entry(what.into()).or_default() += n;
        }
    }

    /// The text, if a stage changed it.
    #[must_use]
    pub fn into_changed(self) -> Option<String> {
        match self.text {
            Cow::Owned(text) => Some(text),
            Cow::Borrowed(_) => None,
        }
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

/// One value that a stage compared with a limit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// The stage.
    pub stage: String,
    /// Its rule.
    pub rule: String,
    /// The value.
    pub value: f64,
    /// The limit.
    pub limit: f64,
    /// Whether the value may be at most (`true`) or must be at least the limit.
    pub at_most: bool,
    /// Whether the limit holds.
    pub ok: bool,
}

/// What stages write their comparisons on.
#[derive(Debug, Default)]
pub struct Sheet {
    stage: &'static str,
    /// The first broken limit.
    pub reason: Option<Reason>,
    /// All comparisons, when asked for.
    pub all: Option<Vec<Measure>>,
}

impl Sheet {
    /// A sheet that notes everything and lets stages go on after a broken limit.
    #[must_use]
    pub fn noting() -> Self {
        Self { all: Some(Vec::new()), ..Self::default() }
    }

    /// Breaks the rule if `value > limit`. `true`: the stage is over.
    pub fn over(&mut self, rule: &str, value: f64, limit: f64) -> bool {
        self.compare(rule, value, limit, true)
    }

    /// Breaks the rule if `value < limit`. `true`: the stage is over.
    pub fn under(&mut self, rule: &str, value: f64, limit: f64) -> bool {
        self.compare(rule, value, limit, false)
    }

    fn compare(&mut self, rule: &str, value: f64, limit: f64, at_most: bool) -> bool {
        // Not the negation of `<=`: what cannot be computed breaks no rule.
        let broken = if at_most { value > limit } else { value < limit };
        if broken && self.reason.is_none() {
            self.reason = Some(Reason::new(self.stage, rule, value, limit));
        }
        match &mut self.all {
            None => broken,
            Some(all) => {
                let (stage, rule) = (self.stage.to_string(), rule.to_string());
                all.push(Measure { stage, rule, value, limit, at_most, ok: !broken });
                false
            }
        }
    }
}

/// One kind of judgement with its parameters.
pub trait Stage: Send + Sync {
    /// The stage's name in configuration, reasons and reports.
    fn name(&self) -> &'static str;

    /// Compares the document with the stage's limits, and may change its text.
    fn judge(&self, candidate: &mut Candidate, sheet: &mut Sheet);
}

/// Runs `stages` in order up to the first that drops the document.
pub fn judge(stages: &[Box<dyn Stage>], candidate: &mut Candidate, sheet: &mut Sheet) {
    for stage in stages {
        sheet.stage = stage.name();
        stage.judge(candidate, sheet);
        if sheet.reason.is_some() && sheet.all.is_none() {
            return;
        }
    }
}

/// What one stage says about a document: `None` keeps it.
pub fn verdict(stage: &dyn Stage, candidate: &mut Candidate) -> Option<Reason> {
    let mut sheet = Sheet { stage: stage.name(), ..Sheet::default() };
    stage.judge(candidate, &mut sheet);
    sheet.reason
}

/// Share of `part` in `whole`; 0 of nothing.
fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Lines as Python's `str.splitlines` cuts them.
fn split_lines(text: &str) -> impl Iterator<Item = &str> {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut rest = Some(text).filter(|t| !t.is_empty());
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(at) = text.find(ends) else {
            rest = None;
            return Some(text);
        };
        let end = text[at..].chars().next().map_or(1, char::len_utf8);
        let skip = if text[at..].starts_with("\r\n") { 2 } else { end };
        rest = Some(&text[at + skip..]).filter(|t| !t.is_empty());
        Some(&text[..at])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_where_python_ends_them() {
        let lines = |text| split_lines(text).collect::<Vec<_>>();
        assert_eq!(lines("a\r\nb\n\nc\u{2028}d\u{c}"), ["a", "b", "", "c", "d"]);
        assert!(lines("").is_empty());
        assert_eq!(lines("\n"), [""]);
    }

    #[test]
    fn a_sheet_stops_or_notes() {
        let mut sheet = Sheet::default();
        assert!(!sheet.over("a", 1.0, 1.0) && !sheet.over("nan", f64::NAN, 0.0));
        assert!(sheet.under("b", 0.5, 1.0));
        let mut noting = Sheet::noting();
        assert!(!noting.over("a", 2.0, 1.0) && !noting.over("b", 3.0, 1.0));
        assert_eq!(noting.reason.unwrap().rule, "a");
        assert_eq!(noting.all.unwrap().len(), 2);
    }
}
