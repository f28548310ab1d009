//! What a word is, in any language: whitespace separates words, and each Chinese or
//! Japanese character is a word of its own, since those scripts write none.
//!
//! Rules that count words, n-grams and shingles all start here, so Chinese text is
//! measured by the same rules as English. Segmentation by dictionary is not done.

/// A document's tokens, in order.
#[derive(Clone, Debug, Default)]
pub struct Words<'a> {
    /// Slices of the text.
    pub tokens: Vec<Token<'a>>,
    /// Tokens that are one Chinese or Japanese character.
    pub num_cjk: usize,
}

/// One token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    /// Its text.
    pub text: &'a str,
    /// Characters in it.
    pub chars: u32,
    /// Whether the token before touches it (no whitespace between).
    pub joined: bool,
    /// What it consists of.
    pub class: Class,
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
    /// One Chinese or Japanese character.
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

impl<'a> Words<'a> {
    /// Splits `text`.
    #[must_use]
    pub fn split(text: &'a str) -> Self {
        let mut words = Self { tokens: Vec::with_capacity(text.len() / 5), num_cjk: 0 };
        for piece in text.split_whitespace() {
            words.piece(piece);
        }
        words
    }

    fn piece(&mut self, piece: &'a str) {
        let first = self.tokens.len();
        if piece.is_ascii() {
            self.push(piece, first);
            return;
        }
        let mut start = 0;
        for (at, c) in piece.char_indices() {
            if is_cjk(c) || is_cjk_punctuation(c) {
                if start < at {
                    self.push(&piece[start..at], first);
                }
                let end = at + c.len_utf8();
                let joined = self.tokens.len() > first;
                let class = if is_cjk(c) { Class::Cjk } else { Class::Punctuation };
                self.num_cjk += usize::from(class == Class::Cjk);
                self.tokens.push(Token { text: &piece[at..end], chars: 1, joined, class });
                start = end;
            }
        }
        if start < piece.len() {
            self.push(&piece[start..], first);
        }
    }

    /// Adds a token of a non-CJK run; tokens from `first` on belong to the same piece.
    fn push(&mut self, text: &'a str, first: usize) {
        let joined = self.tokens.len() > first;
        let mut chars = 0;
        let (mut letter, mut other) = (false, false);
        for c in text.chars() {
            chars += 1;
            letter |= c.is_alphabetic();
            other |= !is_punctuation(c);
        }
        let class = match (letter, other) {
            (true, _) => Class::Word,
            (false, true) => Class::Number,
            (false, false) => Class::Punctuation,
        };
        self.tokens.push(Token { text, chars, joined, class });
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
        Words::split(text).tokens.iter().map(|t| t.text).collect()
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

    #[test]
    fn comparison_ignores_case_and_punctuation() {
        let mut got = Vec::new();
        normalized("The Cat's 3rd—苹果", |w| got.push(w.to_string()));
        assert_eq!(got, ["the", "cat", "s", "3rd", "苹", "果"]);
    }

    proptest! {
        #[test]
        fn tokens_are_the_text_without_whitespace(text in "\\PC*") {
            let joined: String = Words::split(&text).tokens.iter().map(|t| t.text).collect();
            let expect: String = text.split_whitespace().collect();
            prop_assert_eq!(joined, expect);
        }

        #[test]
        fn tokens_know_their_length_and_neighbours(text in "[a-z\u{4e00}-\u{4e10} ，。.\n]{0,60}") {
            let words = Words::split(&text);
            let mut before: Option<&Token> = None;
            for t in &words.tokens {
                prop_assert_eq!(t.chars as usize, t.text.chars().count());
                prop_assert!(t.chars >= 1);
                if let Some(b) = before {
                    let touching = b.text.as_ptr() as usize + b.text.len() == t.text.as_ptr() as usize;
                    prop_assert_eq!(t.joined, touching);
                }
                before = Some(t);
            }
        }
    }
}
