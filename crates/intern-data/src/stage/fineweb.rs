//! FineWeb's own rules (Penedo et al., 2024, section 3.6), by datatrove's definitions:
//! lists and menus have few ends of sentences, many short lines, repeated lines and many
//! line breaks.
//!
//! In Chinese a line is short at half the characters, and closing quotes may follow the
//! end of a sentence.

use serde::{Deserialize, Serialize};

use super::{Candidate, Sheet, Stage, share};
use crate::hash::{HashedSet, hash64};
use crate::words::chars::{TERMINAL, is, is_space};
use crate::words::chinese;

/// `[fineweb]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FinewebConfig {
    /// Whether the stage runs.
    pub enabled: bool,
    /// Fewest lines that end with terminal punctuation, of all lines.
    pub min_line_punct: f64,
    /// Lets documents pass in which no line does.
    pub line_punct_exclude_zero: bool,
    /// Most short lines, of all lines.
    pub max_short_lines: f64,
    /// Characters of the longest short line.
    pub short_line_length: usize,
    /// The same for Chinese text.
    pub chinese_short_line_length: usize,
    /// Most characters in repeated lines, of all characters.
    pub max_char_duplicates: f64,
    /// Most line breaks per word.
    pub max_new_lines: f64,
    /// Measures Chinese text by its own measure.
    pub chinese: bool,
}

impl Default for FinewebConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            min_line_punct: 0.12,
            line_punct_exclude_zero: false,
            max_short_lines: 0.67,
            short_line_length: 30,
            chinese_short_line_length: 15,
            max_char_duplicates: 0.01,
            max_new_lines: 0.3,
            chinese: true,
        }
    }
}

/// The stage.
pub struct Fineweb(pub FinewebConfig);

impl Stage for Fineweb {
    fn name(&self) -> &'static str {
        "fineweb"
    }

    fn judge(&self, candidate: &mut Candidate, sheet: &mut Sheet) {
        let c = &self.0;
        let of_chinese = c.chinese && candidate.is_chinese();
        let short_length = if of_chinese { c.chinese_short_line_length } else { c.short_line_length };
        let text = candidate.text();
        let (mut lines, mut ended, mut short, mut repeated) = (0, 0, 0, 0);
        let mut seen = HashedSet::default();
        for line in text.split('\n').filter(|l| !l.trim_matches(is_space).is_empty()) {
            let chars = line.chars().count();
            lines += 1;
            let ends = line.chars().next_back().is_some_and(|c| is(c, TERMINAL));
            ended += usize::from(ends || (of_chinese && chinese::ends_sentence(line)));
            short += usize::from(chars <= short_length);
            if !seen.insert(hash64(line.as_bytes())) {
                repeated += chars;
            }
        }
        if lines == 0 {
            sheet.under("empty", 0.0, 1.0);
            return;
        }
        let punctuated = share(ended, lines);
        let excluded = ended == 0 && c.line_punct_exclude_zero;
        if !excluded && sheet.under("line_punct_ratio", punctuated, c.min_line_punct) {
            return;
        }
        if sheet.over("short_line_ratio", share(short, lines), c.max_short_lines) {
            return;
        }
        let breaks = text.matches('\n').count();
        let chars = text.chars().count() - breaks;
        if sheet.over("char_dup_ratio", share(repeated, chars), c.max_char_duplicates) {
            return;
        }
        let (_, words) = candidate.words();
        sheet.over("list_ratio", share(breaks, words.num_words), c.max_new_lines);
    }
}
