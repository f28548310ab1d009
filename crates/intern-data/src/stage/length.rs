//! Drops documents that are too short to teach anything or too long to be one text.

use serde::{Deserialize, Serialize};

use super::{Candidate, Sheet, Stage};

/// `[length]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LengthConfig {
    /// Whether the stage runs.
    pub enabled: bool,
    /// Fewest characters.
    pub min_chars: u64,
    /// Most characters.
    pub max_chars: u64,
    /// Fewest words; a Chinese or Japanese character is a word.
    pub min_words: u64,
    /// Most words.
    pub max_words: u64,
}

impl Default for LengthConfig {
    fn default() -> Self {
        Self { enabled: true, min_chars: 100, max_chars: 5_000_000, min_words: 20, max_words: 1_000_000 }
    }
}

/// The stage.
pub struct Length(pub LengthConfig);

impl Stage for Length {
    fn name(&self) -> &'static str {
        "length"
    }

    fn judge(&self, candidate: &mut Candidate, sheet: &mut Sheet) {
        let c = &self.0;
        let (text, words) = candidate.words();
        let (chars, words) = (text.chars().count() as f64, words.count() as f64);
        let _ = sheet.under("min_chars", chars, c.min_chars as f64)
            || sheet.over("max_chars", chars, c.max_chars as f64)
            || sheet.under("min_words", words, c.min_words as f64)
            || sheet.over("max_words", words, c.max_words as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict;
    use super::*;

    #[test]
    fn limits_hold_at_their_edges() {
        let config = LengthConfig { min_chars: 5, max_chars: 9, min_words: 2, max_words: 3, enabled: true };
        let rule =
            |text: &str| verdict(&Length(config.clone()), &mut Candidate::new(text, "")).map(|d| d.rule);
        assert_eq!(rule("ab c"), Some("min_chars".into()));
        assert_eq!(rule("ab cd"), None);
        assert_eq!(rule("abcdef"), Some("min_words".into()));
        assert_eq!(rule("a b c d e"), Some("max_words".into()));
        assert_eq!(rule("a bcdefghi"), Some("max_chars".into()));
    }
}
