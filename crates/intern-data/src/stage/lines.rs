//! Cleans lines: Unicode in one form, no invisible characters, no lines that are buttons,
//! counters or headings in capitals (RefinedWeb, Penedo et al., 2023, appendix G.2), no
//! line said twice in a row. What loses too much that way is dropped whole.
//!
//! The lists of button texts are English and Chinese.

use std::collections::HashSet;
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};
use unicode_normalization::{UnicodeNormalization, is_nfc};

use super::{Candidate, Sheet, Stage, share};
use crate::words::Words;

/// `[lines]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LinesConfig {
    /// Whether the stage runs.
    pub enabled: bool,
    /// Composes characters (Unicode NFC), removes invisible ones, and makes one of several spaces.
    pub normalize: bool,
    /// Removes short lines with texts of buttons (`Read more`, `Sign in`, `阅读更多`).
    pub buttons: bool,
    /// Removes lines that only count something (`3 likes`, `120 次阅读`).
    pub counters: bool,
    /// Removes lines of digits and punctuation only.
    pub numeric: bool,
    /// Removes lines with a larger share of capitals among their letters; 1 turns the rule off.
    pub max_upper: f64,
    /// Removes lines with fewer words, unless they end a sentence; 0 turns the rule off.
    pub min_words: usize,
    /// Removes lines that repeat the line before.
    pub repeated: bool,
    /// Removes paragraphs that occurred in the document before, if they have so many characters; 0 keeps them.
    pub repeated_paragraph_chars: usize,
    /// Most words in removed lines, of all words; documents that lose more are dropped.
    pub max_removed: f64,
}

impl Default for LinesConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            normalize: true,
            buttons: true,
            counters: true,
            numeric: true,
            max_upper: 0.5,
            min_words: 0,
            repeated: true,
            repeated_paragraph_chars: 0,
            max_removed: 0.05,
        }
    }
}

/// The stage.
pub struct Lines(pub LinesConfig);

/// Button texts count in lines of at most so many words.
const BUTTON_WORDS: usize = 10;

static BUTTONS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"(?i)^(?:sign[- ]?in|log[- ]?in|sign[- ]?up|register|subscribe|share (?:this|on)|follow us|",
        r"print this|skip to|back to top|add to cart|leave a (?:comment|reply)|post a comment|",
        r"登录|注册|分享到|关注我们|返回顶部|返回首页|上一篇|下一篇|相关阅读|相关推荐|责任编辑|版权所有|",
        r"点击查看|免责声明|扫一扫|加入购物车)",
        r"|(?:read more|continue reading|show more|view all|learn more|see more|阅读更多|查看更多|阅读全文|",
        r"查看全文|点击进入|更多>+)\W*$|items? in (?:your )?cart|all rights reserved|icp备\d+",
    ))
    .expect("a valid pattern")
});
static COUNTER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"(?i)^\W*[\d.,]+\s?[km万]?\+?\s*(?:likes?|shares?|comments?|views?|retweets?|replies|reposts?|followers?|",
        r"posts?|reads?|votes?|次(?:阅读|浏览|播放|查看)?|条?(?:评论|回复)|人?(?:点赞|收藏|赞)|粉丝|阅读|浏览)\W*$|",
        r"^(?:likes?|shares?|comments?|views?|阅读|浏览|评论|点赞|收藏|转发)\s*[:：(（]?\s*[\d.,]+\s?[km万]?\W*$",
    ))
    .expect("a valid pattern")
});

impl Stage for Lines {
    fn name(&self) -> &'static str {
        "lines"
    }

    fn judge(&self, candidate: &mut Candidate, sheet: &mut Sheet) {
        let c = &self.0;
        let text = match c.normalize {
            true => normalize(candidate.text()),
            false => candidate.text().to_string(),
        };
        let mut out = String::with_capacity(text.len());
        let mut seen: HashSet<&str> = HashSet::new();
        let mut before = "";
        let (mut words, mut removed) = (0, 0);
        let mut gone: Vec<&'static str> = Vec::new();
        for line in text.split('\n') {
            let line = line.trim_end();
            if line.trim().is_empty() {
                out.push('\n');
                continue;
            }
            let count = Words::split(line).count();
            words += count;
            let why = self.removes(line.trim(), count, before).or_else(|| {
                let long =
                    c.repeated_paragraph_chars > 0 && line.chars().count() >= c.repeated_paragraph_chars;
                (long && !seen.insert(line)).then_some("lines/repeated_paragraph")
            });
            before = line;
            match why {
                Some(what) => {
                    gone.push(what);
                    removed += count;
                }
                None => {
                    out.push_str(line);
                    out.push('\n');
                }
            }
        }
        if sheet.over("max_removed", share(removed, words), c.max_removed) {
            return;
        }
        for what in gone {
            candidate.edited(what, 1);
        }
        let out = blank_lines(out.trim_matches('\n'));
        if out != candidate.text() {
            candidate.set_text(out);
        }
    }
}

impl Lines {
    /// What is wrong with a line of `words` words.
    fn removes(&self, line: &str, words: usize, before: &str) -> Option<&'static str> {
        let c = &self.0;
        if c.repeated && line == before.trim() {
            return Some("lines/repeated");
        }
        let short = words <= BUTTON_WORDS || line.chars().count() <= 20;
        if c.buttons && short && BUTTONS.is_match(line) {
            return Some("lines/button");
        }
        if c.counters && short && COUNTER.is_match(line) {
            return Some("lines/counter");
        }
        let (mut letters, mut upper) = (0, 0);
        for ch in line.chars().filter(|ch| ch.is_alphabetic()) {
            letters += 1;
            upper += usize::from(ch.is_uppercase());
        }
        if c.numeric && letters == 0 && line.chars().any(|ch| ch.is_numeric()) {
            return Some("lines/numeric");
        }
        if share(upper, letters) > c.max_upper && letters > 1 {
            return Some("lines/upper_case");
        }
        let ends = line.ends_with(['.', '!', '?', '"', '。', '！', '？', '”', '…', '：', ':']);
        (words < c.min_words && !ends).then_some("lines/few_words")
    }
}

/// NFC, without invisible and control characters, with one space for several within a line.
fn normalize(text: &str) -> String {
    let composed: String = if is_nfc(text) { text.to_string() } else { text.nfc().collect() };
    let mut out = String::with_capacity(composed.len());
    let mut at_start = true;
    for c in composed.chars() {
        match c {
            '\r' => {}
            '\n' => {
                out.push('\n');
                at_start = true;
            }
            // Zero-width space and marks, soft hyphen, byte order mark, directions.
            '\u{ad}'
            | '\u{200b}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'
            | '\u{2066}'..='\u{2069}'
            | '\u{feff}' => {}
            '\t' if at_start => out.push('\t'),
            // The beginning of a line is left alone: code has its indentation there.
            ' ' if at_start => out.push(' '),
            c if c.is_whitespace() && c != '\u{3000}' => {
                if !out.ends_with(' ') {
                    out.push(' ');
                }
            }
            c if c.is_control() => {}
            c => {
                out.push(c);
                at_start = false;
            }
        }
    }
    out
}

/// At most one blank line in a row.
fn blank_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut breaks = 0;
    for c in text.chars() {
        breaks = if c == '\n' { breaks + 1 } else { 0 };
        if breaks <= 2 {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::verdict;
    use super::*;

    #[track_caller]
    fn clean(config: LinesConfig, text: &str) -> (Option<String>, String) {
        let mut c = Candidate::new(text, "");
        let rule = verdict(&Lines(config), &mut c).map(|r| r.rule);
        (rule, c.text().to_string())
    }

    #[test]
    fn buttons_counters_and_capitals_go() {
        let prose = "The river was low that summer, and the masons worked from both banks.\n".repeat(4);
        let prose = prose.replacen("low", "very low", 1).replacen("summer", "year", 2);
        let text = format!(
            "Read more...\n3 likes\n120 次阅读\nBREAKING NEWS TODAY\n2024-01-05\n阅读全文\n分享到：微博\n\n\n\n{prose}"
        );
        let config = LinesConfig { max_removed: 0.5, ..LinesConfig::default() };
        let (rule, kept) = clean(config, &text);
        assert_eq!(rule, None);
        assert_eq!(kept.lines().count(), 3, "{kept}");
        assert_eq!(clean(LinesConfig::default(), &text).0.as_deref(), Some("max_removed"));
    }

    #[test]
    fn characters_are_made_one_form() {
        let config = LinesConfig { max_removed: 1.0, ..LinesConfig::default() };
        let (_, kept) = clean(config, "cafe\u{301}\u{200b}  ole\u{301} \u{a0}x.\n    let a  = 1;\u{feff}\n");
        assert_eq!(kept, "café olé x.\n    let a = 1;");
    }
}
