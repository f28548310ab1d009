//! The clean-up of C4 (Raffel et al., 2020, section 2.2), by datatrove's definitions: lines
//! without an end of sentence, with few words, with scripts or policies go; documents with
//! braces, lorem ipsum or too few sentences go whole.
//!
//! Chinese lines end in Chinese punctuation, their words are counted by dictionary and
//! their sentences by punctuation.

use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};

use super::{Candidate, Sheet, Stage, split_lines};
use crate::words::chars::is_space;
use crate::words::{Splitter, Words, chinese, english, is_chinese};

/// `[c4]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct C4Config {
    /// Whether the stage runs.
    pub enabled: bool,
    /// Drops lines that do not end with one of `. ? ! " '`, or end with `...`.
    pub terminal_punctuation: bool,
    /// Takes out `[1]`, `[edit]` and `[citation needed]`.
    pub citations: bool,
    /// Drops lines with fewer words.
    pub min_words_per_line: usize,
    /// Drops lines with a longer word, in characters; 0 sets no limit.
    pub max_word_length: usize,
    /// Drops lines that mention JavaScript.
    pub javascript: bool,
    /// Drops lines about cookies, terms of use and privacy policies.
    pub policy: bool,
    /// Drops documents with `{`.
    pub curly_bracket: bool,
    /// Drops documents with "lorem ipsum".
    pub lorem_ipsum: bool,
    /// Fewest sentences in what is left.
    pub min_sentences: usize,
    /// Measures Chinese lines by their own measure.
    pub chinese: bool,
}

impl Default for C4Config {
    fn default() -> Self {
        Self {
            enabled: false,
            terminal_punctuation: true,
            citations: true,
            min_words_per_line: 3,
            max_word_length: 1000,
            javascript: true,
            policy: true,
            curly_bracket: true,
            lorem_ipsum: true,
            min_sentences: 5,
            chinese: true,
        }
    }
}

const POLICY: [&str; 6] =
    ["terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies"];

/// The stage.
pub struct C4(pub C4Config);

impl Stage for C4 {
    fn name(&self) -> &'static str {
        "c4"
    }

    fn judge(&self, candidate: &mut Candidate, sheet: &mut Sheet) {
        static CITATION: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(r"\[\d*\]|\[edit\]|\[citation needed\]").expect("a valid pattern"));
        let c = &self.0;
        let mut sentences = 0;
        let mut kept = String::with_capacity(candidate.text().len());
        let mut gone: [(&str, u64); 6] = [
            ("c4/too_long_word", 0),
            ("c4/no_terminal_punctuation", 0),
            ("c4/too_few_words", 0),
            ("c4/javascript", 0),
            ("c4/policy", 0),
            ("c4/citation", 0),
        ];
        let mut first = true;
        for line in split_lines(candidate.text()) {
            let line = line.trim_matches(is_space);
            let mut words = 0;
            let mut too_long = false;
            for word in line.split(is_space).filter(|w| !w.is_empty()) {
                words += 1;
                too_long |= c.max_word_length > 0
                    && word.len() > c.max_word_length
                    && word.chars().count() > c.max_word_length;
            }
            let of_chinese = c.chinese && !line.is_ascii() && is_chinese(line);
            if too_long && !of_chinese {
                gone[0].1 += 1;
                continue;
            }
            let line = match c.citations && line.contains('[') {
                true => CITATION.replace_all(line, ""),
                false => line.into(),
            };
            gone[5].1 += u64::from(matches!(line, std::borrow::Cow::Owned(_)));
            if c.terminal_punctuation {
                let ends = if of_chinese {
                    chinese::ends_sentence(&line)
                } else {
                    line.ends_with(['.', '?', '!', '"', '\'']) && !line.ends_with("...")
                };
                if !ends {
                    gone[1].1 += 1;
                    continue;
                }
            }
            if of_chinese {
                words = Words::by(Splitter::Language, &line).num_words;
            }
            if words < c.min_words_per_line {
                gone[2].1 += 1;
                continue;
            }
            let lower = line.to_lowercase();
            if c.lorem_ipsum && lower.contains("lorem ipsum") && sheet.over("lorem_ipsum", 1.0, 0.0) {
                return;
            }
            if c.javascript && lower.contains("javascript") {
                gone[3].1 += 1;
                continue;
            }
            if c.curly_bracket && line.contains('{') && sheet.over("curly_bracket", 1.0, 0.0) {
                return;
            }
            if c.policy && POLICY.iter().any(|p| lower.contains(p)) {
                gone[4].1 += 1;
                continue;
            }
            // Counting on would cost time and change nothing.
            if sentences < c.min_sentences || sheet.all.is_some() {
                sentences += if of_chinese {
                    chinese::count_sentences(&line)
                } else {
                    english::count_sentences(&line)
                };
            }
            if !first {
                kept.push('\n');
            }
            first = false;
            kept.push_str(&line);
        }
        if sheet.under("min_sentences", sentences as f64, c.min_sentences as f64) {
            return;
        }
        for (what, n) in gone {
            candidate.edited(what, n);
        }
        let kept = kept.trim_matches(is_space);
        if kept != candidate.text() {
            candidate.set_text(kept.to_string());
        }
    }
}
