//! Drops what does not read as natural text (Rae et al., 2021, "Gopher", appendix A.1).
//!
//! The rules hold for Chinese too: a character counts as a word, word length is
//! measured on the other words only, and stop words and bullets come in both
//! languages. The defaults suit mixed web text with code and numbers;
//! `configs/data/gopher.toml` has the paper's own limits for English prose.

use serde::{Deserialize, Serialize};

use super::{Candidate, Reason, Stage, share};
use crate::words::Class;

/// `[quality]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QualityConfig {
    /// Whether the stage runs.
    pub enabled: bool,
    /// Shortest mean word length, in characters; CJK characters are left out of the mean.
    pub min_mean_word_length: f64,
    /// Longest mean word length.
    pub max_mean_word_length: f64,
    /// Most `#` per word.
    pub max_hash_ratio: f64,
    /// Most ellipses per word.
    pub max_ellipsis_ratio: f64,
    /// Most lines that begin with a bullet, of all lines.
    pub max_bullet_lines: f64,
    /// Most lines that end with an ellipsis, of all lines.
    pub max_ellipsis_lines: f64,
    /// Fewest words with a letter, of all words.
    pub min_alpha_words: f64,
    /// Fewest different stop words (`the be to of and that have with`, or `的 是 在 了 和 有 不 我 这 一`
    /// where most words are Chinese); 0 turns the rule off, and texts of other languages pass.
    pub min_stop_words: usize,
}

impl Default for QualityConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            min_mean_word_length: 2.0,
            max_mean_word_length: 15.0,
            max_hash_ratio: 0.1,
            max_ellipsis_ratio: 0.1,
            max_bullet_lines: 0.95,
            max_ellipsis_lines: 0.3,
            min_alpha_words: 0.5,
            min_stop_words: 0,
        }
    }
}

const ENGLISH_STOP_WORDS: &[&str] = &["the", "be", "to", "of", "and", "that", "have", "with"];
const CHINESE_STOP_WORDS: &[&str] = &["的", "是", "在", "了", "和", "有", "不", "我", "这", "一"];

/// The stage.
pub struct Quality(pub QualityConfig);

impl Stage for Quality {
    fn name(&self) -> &'static str {
        "quality"
    }

    fn judge(&self, candidate: &mut Candidate) -> Option<Reason> {
        let c = &self.0;
        let over = |rule: &str, value: f64, limit: f64| {
            (value > limit).then(|| Reason::new("quality", rule, value, limit))
        };
        let under = |rule: &str, value: f64, limit: f64| {
            (value < limit).then(|| Reason::new("quality", rule, value, limit))
        };
        let (text, words) = (candidate.text, &candidate.words);

        let (mut count, mut spelled, mut letters, mut alpha) = (0, 0usize, 0usize, 0);
        for t in &words.tokens {
            match t.class {
                Class::Punctuation => continue,
                Class::Cjk => {}
                Class::Word | Class::Number => {
                    spelled += 1;
                    letters += t.chars as usize;
                }
            }
            count += 1;
            alpha += usize::from(matches!(t.class, Class::Word | Class::Cjk));
        }
        let mean_length = share(letters, spelled);
        // A few spelled words among Chinese text (names, numbers) say nothing about their length.
        let by_length = if words.is_cjk() || spelled == 0 {
            None
        } else {
            under("min_mean_word_length", mean_length, c.min_mean_word_length)
                .or_else(|| over("max_mean_word_length", mean_length, c.max_mean_word_length))
        };
        by_length
            .or_else(|| over("max_hash_ratio", share(text.matches('#').count(), count), c.max_hash_ratio))
            .or_else(|| over("max_ellipsis_ratio", share(ellipses(text), count), c.max_ellipsis_ratio))
            .or_else(|| {
                let (mut lines, mut bullets, mut trailing) = (0, 0, 0);
                for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
                    lines += 1;
                    bullets += usize::from(line.starts_with(['•', '-', '*', '·', '●', '▪', '◆', '※']));
                    trailing += usize::from(line.ends_with("...") || line.ends_with('…'));
                }
                over("max_bullet_lines", share(bullets, lines), c.max_bullet_lines)
                    .or_else(|| over("max_ellipsis_lines", share(trailing, lines), c.max_ellipsis_lines))
            })
            .or_else(|| under("min_alpha_words", share(alpha, count), c.min_alpha_words))
            .or_else(|| {
                let list = match (words.is_cjk(), candidate.lang.as_str()) {
                    (true, _) => CHINESE_STOP_WORDS,
                    (false, "en" | "") => ENGLISH_STOP_WORDS,
                    _ => return None,
                };
                let found = list.iter().filter(|w| words.tokens.iter().any(|t| t.text == **w)).count();
                under("min_stop_words", found as f64, c.min_stop_words as f64)
            })
    }
}

/// `...` and `…`; the Chinese six-dot ellipsis counts once.
fn ellipses(text: &str) -> usize {
    text.matches("...").count() + text.replace("……", "…").matches('…').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Option<&str>) {
        let config = QualityConfig { min_alpha_words: 0.8, min_stop_words: 2, ..Default::default() };
        let drop = Quality(config).judge(&mut Candidate::new(text, ""));
        assert_eq!(drop.as_ref().map(|d| d.rule.as_str()), expect, "{text:?} → {drop:?}");
    }

    #[test]
    fn each_rule_names_itself() {
        check("It is the end of the day and we have to go.", None);
        check("我们在学校里学习，今天的天气是好的。", None);
        check("a b c d e f g", Some("min_mean_word_length"));
        check("the of #tag #tag #tag", Some("max_hash_ratio"));
        check("the of what... is... this...", Some("max_ellipsis_ratio"));
        check("- the\n- of\n- and", Some("max_bullet_lines"));
        check("the 12 34 56 78 of", Some("min_alpha_words"));
        check("Hello dear reader", Some("min_stop_words"));
        check("天地玄黄宇宙洪荒", Some("min_stop_words"));
    }
}
