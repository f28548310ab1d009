//! Drops what does not read as natural text (Rae et al., 2021, "Gopher", appendix A.1),
//! by datatrove's definitions.
//!
//! Chinese text has its own measure: only words written in letters have a length, stop
//! words are Chinese, more characters count as bullets, and `……` is one ellipsis. The
//! defaults suit mixed web text with code and numbers; `configs/data/gopher.toml` has the
//! paper's own limits for English prose.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{Candidate, Sheet, Stage, share, split_lines};
use crate::words::Class;
use crate::words::chars::is_space;

/// `[quality]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QualityConfig {
    /// Whether the stage runs.
    pub enabled: bool,
    /// Fewest words that are not punctuation.
    pub min_words: u64,
    /// Most such words; 0 sets no limit.
    pub max_words: u64,
    /// Shortest mean word length, in characters; Chinese words are left out of the mean.
    pub min_mean_word_length: f64,
    /// Longest mean word length.
    pub max_mean_word_length: f64,
    /// Most `#` per word.
    pub max_hash_ratio: f64,
    /// Most ellipses per word.
    pub max_ellipsis_ratio: f64,
    /// Most lines that begin with a bullet (`•` or `-`, in Chinese also `* · ● ▪ ◆ ※`), of all lines.
    pub max_bullet_lines: f64,
    /// Most lines that end with an ellipsis, of all lines.
    pub max_ellipsis_lines: f64,
    /// Fewest words with a letter, of all words.
    pub min_alpha_words: f64,
    /// Fewest different stop words (`the be to of and that have with`, or `的 是 在 了 和 有 不 我 这 一`
    /// where most words are Chinese); 0 turns the rule off.
    pub min_stop_words: usize,
    /// Texts in other languages than English and Chinese pass the stop word rule.
    pub stop_words_by_language: bool,
    /// Measures Chinese text by its own measure.
    pub chinese: bool,
}

impl Default for QualityConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            min_words: 0,
            max_words: 0,
            min_mean_word_length: 2.0,
            max_mean_word_length: 15.0,
            max_hash_ratio: 0.1,
            max_ellipsis_ratio: 0.1,
            max_bullet_lines: 0.95,
            max_ellipsis_lines: 0.3,
            min_alpha_words: 0.5,
            min_stop_words: 0,
            stop_words_by_language: true,
            chinese: true,
        }
    }
}

impl QualityConfig {
    /// The limits of the paper.
    #[must_use]
    pub fn gopher() -> Self {
        Self {
            min_words: 50,
            max_words: 100_000,
            min_mean_word_length: 3.0,
            max_mean_word_length: 10.0,
            max_bullet_lines: 0.9,
            min_alpha_words: 0.8,
            min_stop_words: 2,
            ..Self::default()
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

    fn judge(&self, candidate: &mut Candidate, sheet: &mut Sheet) {
        let c = &self.0;
        let chinese = c.chinese && candidate.is_chinese();
        let lang = std::mem::take(&mut candidate.lang);
        let other_language = c.stop_words_by_language && !chinese && !matches!(lang.as_str(), "en" | "");
        candidate.lang = lang;
        let (text, words) = candidate.words();

        let (mut count, mut spelled, mut letters, mut alpha) = (0usize, 0usize, 0usize, 0usize);
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
        if sheet.under("min_words", count as f64, c.min_words as f64)
            || (c.max_words > 0 && sheet.over("max_words", count as f64, c.max_words as f64))
        {
            return;
        }
        // A few spelled words among Chinese text (names, numbers) say nothing about their length.
        if !chinese && spelled > 0 {
            let mean = letters as f64 / spelled as f64;
            if sheet.under("min_mean_word_length", mean, c.min_mean_word_length)
                || sheet.over("max_mean_word_length", mean, c.max_mean_word_length)
            {
                return;
            }
        }
        let all = words.num_words;
        let dots = ellipses(text, chinese);
        if sheet.over("max_hash_ratio", share(text.matches('#').count(), all), c.max_hash_ratio)
            || sheet.over("max_ellipsis_ratio", share(dots, all), c.max_ellipsis_ratio)
        {
            return;
        }
        let bullets: &[char] =
            if chinese { &['•', '-', '*', '·', '●', '▪', '◆', '※'] } else { &['•', '-'] };
        let (mut lines, mut bulleted, mut trailing) = (0, 0, 0);
        for line in split_lines(text) {
            let line = line.trim_matches(is_space);
            lines += 1;
            bulleted += usize::from(line.starts_with(bullets));
            trailing += usize::from(line.ends_with("...") || line.ends_with('…'));
        }
        if sheet.over("max_bullet_lines", share(bulleted, lines), c.max_bullet_lines)
            || sheet.over("max_ellipsis_lines", share(trailing, lines), c.max_ellipsis_lines)
            || sheet.under("min_alpha_words", share(alpha, all), c.min_alpha_words)
            || c.min_stop_words == 0
            || other_language
        {
            return;
        }
        let list = if chinese { CHINESE_STOP_WORDS } else { ENGLISH_STOP_WORDS };
        let mut found: HashSet<&str> = HashSet::new();
        for t in &words.tokens {
            // One of a Chinese word's characters is enough: `不是` has two.
            if chinese && t.class == Class::Cjk {
                found.extend(list.iter().copied().filter(|w| t.of(text).contains(w)));
            } else if t.chars <= 4 {
                found.extend(list.iter().copied().filter(|w| *w == t.of(text)));
            }
            // Counting on would cost time and change nothing.
            if sheet.all.is_none() && found.len() >= c.min_stop_words {
                break;
            }
        }
        sheet.under("min_stop_words", found.len() as f64, c.min_stop_words as f64);
    }
}

/// `...` and `…`; the Chinese six-dot ellipsis counts once in Chinese.
fn ellipses(text: &str, chinese: bool) -> usize {
    let dots = text.matches("...").count();
    let long = if chinese { text.matches("……").count() } else { 0 };
    dots + text.matches('…').count() - long
}

#[cfg(test)]
mod tests {
    use super::super::verdict;
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Option<&str>) {
        let config = QualityConfig { min_alpha_words: 0.8, min_stop_words: 2, ..Default::default() };
        let drop = verdict(&Quality(config), &mut Candidate::new(text, ""));
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
