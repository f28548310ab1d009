//! What a word is, in any language.
//!
//! Rules that count words, n-grams and shingles all start here. `Splitter` says how words
//! are found: each Chinese or Japanese character by itself (`Characters`, quick and the
//! same for any text), by English rules, by a dictionary where a text is Chinese, or by
//! whitespace alone.

pub mod chars;
pub mod chinese;
pub mod english;
pub mod simplify;
pub mod traditional;

use serde::{Deserialize, Serialize};

use chars::{LETTER, SYMBOL, is, is_space};

/// How a text is cut into words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Splitter {
    /// Whitespace separates words, and each Chinese or Japanese character is one.
    #[default]
    Characters,
    /// Whitespace separates words, as Python's `str.split`.
    Whitespace,
    /// spaCy's English rules: punctuation and clitics (`n't`) are words.
    English,
    /// Chinese text by dictionary, other text by the English rules.
    Language,
}

/// A document's tokens, in order.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// Where they are in the text.
    pub tokens: Vec<Token>,
    /// Tokens that are Chinese or Japanese.
    pub num_cjk: usize,
    /// What ratios per word divide by: all tokens where punctuation belongs to the words
    /// beside it or is split off them by rule, those that are no punctuation in Chinese.
    pub num_words: usize,
}

/// One token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Byte offset of its beginning.
    pub start: u32,
    /// Byte offset behind its end.
    pub end: u32,
    /// Characters in it.
    pub chars: u32,
    /// Whether it touches the token before (no space belongs between them).
    pub joined: bool,
    /// What it consists of.
    pub class: Class,
}

impl Token {
    /// Its text, a slice of the text that was split.
    #[must_use]
    pub fn of(self, text: &str) -> &str {
        &text[self.start as usize..self.end as usize]
    }
}

/// What a token consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// At least one letter.
    Word,
    /// No letter, but a digit or another symbol.
    Number,
    /// Punctuation only.
    Punctuation,
    /// A Chinese or Japanese character or word.
    Cjk,
}

/// Han, kana and their extensions; Korean separates words by spaces and is not among them.
#[must_use]
pub fn is_cjk(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}'
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}')
}

/// Punctuation of CJK text, which stands between characters without spaces.
fn is_cjk_punctuation(c: char) -> bool {
    matches!(c, '\u{3000}'..='\u{303f}' | '\u{ff01}'..='\u{ff0f}' | '\u{ff1a}'..='\u{ff20}' | '\u{ff3b}'..='\u{ff40}'
        | '\u{ff5b}'..='\u{ff65}')
}

/// Punctuation and symbols that make no word: ASCII, Latin-1, general and CJK punctuation.
#[must_use]
pub fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation()
        || is_cjk_punctuation(c)
        || matches!(c, '\u{a1}'..='\u{bf}' if !matches!(c, '\u{aa}' | '\u{b2}' | '\u{b3}' | '\u{b5}' | '\u{b9}' | '\u{ba}' | '\u{bc}'..='\u{be}'))
        || matches!(c, '\u{2010}'..='\u{205e}' | '\u{2e00}'..='\u{2e5d}' | '\u{d7}' | '\u{f7}')
}

/// Whether most letters of `text` are Chinese (or Japanese) characters.
#[must_use]
pub fn is_chinese(text: &str) -> bool {
    // No Chinese character begins with a smaller byte.
    if !text.bytes().any(|b| b >= 0xe3) {
        return false;
    }
    let (mut cjk, mut other) = (0usize, 0usize);
    for c in text.chars() {
        if is_cjk(c) {
            cjk += 1;
        } else {
            other += usize::from(c.is_alphabetic());
        }
    }
    // A Latin word takes about three times the characters of a Chinese one.
    3 * cjk > other
}

impl Words {
    /// Splits `text` in one of the ways.
    #[must_use]
    pub fn by(splitter: Splitter, text: &str) -> Self {
        let mut words = Self { tokens: Vec::with_capacity(text.len() / 5), num_cjk: 0, num_words: 0 };
        match splitter {
            Splitter::Characters => {
                for (start, end) in runs(text) {
                    words.piece(text, start, end);
                }
                words.num_words = words.count();
            }
            Splitter::Language if is_chinese(text) => {
                for (start, end) in chinese::segment(text) {
                    words.add(text, start as usize, end as usize, true);
                }
                words.num_words = words.count();
            }
            Splitter::Language | Splitter::English => {
                for (start, end) in english::tokenize(text) {
                    words.add(text, start as usize, end as usize, false);
                }
                words.num_words = words.tokens.len();
            }
            Splitter::Whitespace => {
                for (start, end) in runs(text) {
                    words.add(text, start, end, false);
                }
                words.num_words = words.tokens.len();
            }
        }
        words
    }

    /// Splits `text` by whitespace and CJK characters.
    #[must_use]
    pub fn split(text: &str) -> Self {
        Self::by(Splitter::Characters, text)
    }

    /// Adds a token of a rule-based splitter; whitespace is none.
    fn add(&mut self, text: &str, start: usize, end: usize, chinese: bool) {
        let token = &text[start..end];
        let (mut chars, mut space, mut letter, mut other, mut cjk) = (0, true, false, false, false);
        if token.is_ascii() {
            // Most tokens are.
            chars = token.len() as u32;
            for b in token.bytes() {
                letter |= b.is_ascii_alphabetic();
                other |= b.is_ascii_alphanumeric() || !is(b as char, SYMBOL);
                space &= is_space(b as char);
            }
        } else {
            for c in token.chars() {
                chars += 1;
                letter |= is(c, LETTER);
                other |= !is(c, SYMBOL);
                space &= is_space(c);
                cjk |= is_cjk(c);
            }
        }
        if space {
            return;
        }
        let class = match (chinese && cjk, letter, other) {
            (true, _, _) => Class::Cjk,
            (_, true, _) => Class::Word,
            (_, false, true) => Class::Number,
            (_, false, false) => Class::Punctuation,
        };
        self.num_cjk += usize::from(class == Class::Cjk);
        let joined = chinese && self.tokens.last().is_some_and(|t| t.end as usize == start);
        self.tokens.push(Token { start: start as u32, end: end as u32, chars, joined, class });
    }

    fn piece(&mut self, text: &str, from: usize, to: usize) {
        let first = self.tokens.len();
        let piece = &text[from..to];
        if piece.is_ascii() {
            self.push(text, from, to, first);
            return;
        }
        let mut start = 0;
        for (at, c) in piece.char_indices() {
            if is_cjk(c) || is_cjk_punctuation(c) {
                if start < at {
                    self.push(text, from + start, from + at, first);
                }
                let end = at + c.len_utf8();
                let joined = self.tokens.len() > first;
                let class = if is_cjk(c) { Class::Cjk } else { Class::Punctuation };
                self.num_cjk += usize::from(class == Class::Cjk);
                let (start_at, end_at) = ((from + at) as u32, (from + end) as u32);
                self.tokens.push(Token { start: start_at, end: end_at, chars: 1, joined, class });
                start = end;
            }
        }
        if start < piece.len() {
            self.push(text, from + start, to, first);
        }
    }

    /// Adds a token of a non-CJK run; tokens from `first` on belong to the same piece.
    fn push(&mut self, text: &str, from: usize, to: usize, first: usize) {
        let joined = self.tokens.len() > first;
        let mut chars = 0;
        let (mut letter, mut other) = (false, false);
        for c in text[from..to].chars() {
            chars += 1;
            letter |= c.is_alphabetic();
            other |= !is_punctuation(c);
        }
        let class = match (letter, other) {
            (true, _) => Class::Word,
            (false, true) => Class::Number,
            (false, false) => Class::Punctuation,
        };
        self.tokens.push(Token { start: from as u32, end: to as u32, chars, joined, class });
    }

    /// Tokens that are words: all but pure punctuation.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tokens.iter().filter(|t| t.class != Class::Punctuation).count()
    }

    /// Whether the text is mostly Chinese or Japanese.
    #[must_use]
    pub fn is_cjk(&self) -> bool {
        2 * self.num_cjk > self.count()
    }
}

/// Byte ranges of the words of `text`, whitespace left out.
#[must_use]
pub fn spans(splitter: Splitter, text: &str) -> Vec<english::Span> {
    match splitter {
        Splitter::Characters => Words::split(text).tokens.iter().map(|t| (t.start, t.end)).collect(),
        Splitter::Whitespace => runs(text).map(|(a, b)| (a as u32, b as u32)).collect(),
        Splitter::Language if !text.is_ascii() && is_chinese(text) => chinese::segment(text),
        Splitter::Language | Splitter::English => {
            let mut spans = english::tokenize(text);
            let blank = |&(a, b): &english::Span| text[a as usize..b as usize].chars().all(is_space);
            spans.retain(|span| !blank(span));
            spans
        }
    }
}

/// The sentences of a text, which together are the text: the English ones by spaCy's rules,
/// Chinese ones by their punctuation. A line end ends a sentence.
#[must_use]
pub fn sentences(text: &str) -> Vec<&str> {
    let mut starts = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        // Blank lines belong to the sentence before them.
        if starts.is_empty() || !line.trim_matches(is_space).is_empty() {
            starts.push(at);
        }
        match !line.is_ascii() && is_chinese(line) {
            true => starts.extend(chinese::sentence_starts(line).iter().map(|start| at + start)),
            // Where spaCy lets whitespace begin a sentence, its first word does.
            false => starts.extend(
                english::sentence_starts(line)
                    .map(|start| line.len() - line[start..].trim_start_matches(is_space).len())
                    .filter(|start| *start < line.len())
                    .map(|start| at + start),
            ),
        }
        at += line.len();
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts.iter().zip(ends).map(|(from, to)| &text[*from..to]).collect()
}

/// Byte ranges of the runs without whitespace.
fn runs(text: &str) -> impl Iterator<Item = (usize, usize)> {
    let base = text.as_ptr() as usize;
    text.split(is_space).filter(|run| !run.is_empty()).map(move |run| {
        let start = run.as_ptr() as usize - base;
        (start, start + run.len())
    })
}

/// The words of `text` for comparing documents: lower case, letters and digits only.
/// Calls `each` with every word; a CJK character is a word.
pub fn normalized(text: &str, mut each: impl FnMut(&str)) {
    let mut word = String::new();
    for c in text.chars() {
        if is_cjk(c) {
            if !word.is_empty() {
                each(&word);
                word.clear();
            }
            each(c.encode_utf8(&mut [0; 4]));
        } else if c.is_ascii() {
            if c.is_ascii_alphanumeric() {
                word.push(c.to_ascii_lowercase());
            } else if !word.is_empty() {
                each(&word);
                word.clear();
            }
        } else if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        } else if !word.is_empty() {
            each(&word);
            word.clear();
        }
    }
    if !word.is_empty() {
        each(&word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(text: &str) -> Vec<&str> {
        Words::split(text).tokens.iter().map(|t| t.of(text)).collect()
    }

    #[test]
    fn chinese_characters_are_words() {
        assert_eq!(texts("小明有3个苹果，"), ["小", "明", "有", "3", "个", "苹", "果", "，"]);
        assert_eq!(texts("a b-c  d."), ["a", "b-c", "d."]);
        let words = Words::split("他说:\"hi\" 。 -- 42");
        assert_eq!(words.num_cjk, 2);
        assert_eq!(words.count(), 4);
        assert!(Words::split("小明有3个苹果").is_cjk());
        assert!(!Words::split("the word 书 means book").is_cjk());
    }

    /// Tokens of spaCy 3.8's blank English pipeline, without whitespace, and its sentences.
    #[test]
    fn english_is_split_as_spacy_splits_it() {
        let golden = include_str!("english_golden.jsonl");
        for line in golden.lines() {
            let case: serde_json::Value = serde_json::from_str(line).unwrap();
            let text = case["text"].as_str().unwrap();
            let words = Words::by(Splitter::English, text);
            let got: Vec<&str> = words.tokens.iter().map(|t| t.of(text)).collect();
            let expect: Vec<&str> =
                case["words"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
            assert_eq!(got, expect, "{text:?}");
            assert_eq!(english::count_sentences(text) as u64, case["sentences"], "{text:?}");
        }
    }

    #[test]
    fn chinese_is_split_by_dictionary() {
        let text = "我来到北京清华大学。";
        let words = Words::by(Splitter::Language, text);
        let got: Vec<&str> = words.tokens.iter().map(|t| t.of(text)).collect();
        assert_eq!(got, ["我", "来到", "北京", "清华大学", "。"]);
        assert_eq!((words.num_words, words.num_cjk, words.is_cjk()), (4, 4, true));
    }

    #[test]
    fn sentences_are_the_whole_text() {
        let text = "One. Two is here! \nThree, e.g. four\n\n他说：“好。”然后走了。再见";
        let parts =
            ["One. ", "Two is here! \n", "Three, e.g. four\n\n", "他说：“好。”", "然后走了。", "再见"];
        assert_eq!(sentences(text), parts);
        assert!(sentences("").is_empty());
    }

    #[test]
    fn comparison_ignores_case_and_punctuation() {
        let mut got = Vec::new();
        normalized("The Cat's 3rd—苹果", |w| got.push(w.to_string()));
        assert_eq!(got, ["the", "cat", "s", "3rd", "苹", "果"]);
    }

    proptest! {
        #[test]
        fn tokens_are_the_text_without_whitespace(text in "\\PC*") {
            let joined: String = Words::split(&text).tokens.iter().map(|t| t.of(&text)).collect();
            let expect: String = text.split(is_space).collect();
            prop_assert_eq!(joined, expect);
        }

        #[test]
        fn tokens_know_their_length_and_neighbours(text in "[a-z\u{4e00}-\u{4e10} ，。.\n]{0,60}") {
            let words = Words::split(&text);
            let mut before: Option<&Token> = None;
            for t in &words.tokens {
                prop_assert_eq!(t.chars as usize, t.of(&text).chars().count());
                prop_assert!(t.chars >= 1);
                if let Some(b) = before {
                    prop_assert_eq!(t.joined, b.end == t.start);
                }
                before = Some(t);
            }
        }
    }
}
