//! Drops texts that say the same thing over and over (Rae et al., 2021, "Gopher",
//! appendix A.1): duplicate paragraphs, duplicate lines, frequent and repeated n-grams.
//!
//! The rules run in a fixed order and the first hit names the reason. The first
//! occurrence of anything is not counted as a duplicate; after a repeated n-gram the
//! scan jumps behind it, so overlaps are counted once. Shares are of the characters of
//! the text. N-grams are hashed, never built.

use serde::{Deserialize, Serialize};

use super::{Candidate, Sheet, Stage, share};
use crate::hash::{HashedSet, combine, hash64};
use crate::words::Words;
use crate::words::chars::is_space;

/// `[repetition]` of a recipe. Shares are 0–1; 1 turns a rule off.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RepetitionConfig {
    /// Whether the stage runs.
    pub enabled: bool,
    /// Most duplicate paragraphs, of all paragraphs.
    pub dup_para_frac: f64,
    /// Most characters in duplicate paragraphs.
    pub dup_para_char_frac: f64,
    /// Most duplicate lines, of all lines.
    pub dup_line_frac: f64,
    /// Most characters in duplicate lines.
    pub dup_line_char_frac: f64,
    /// Most characters in the most frequent 2-, 3- and 4-gram.
    pub top_ngram: [f64; 3],
    /// Occurrences that make an n-gram frequent; Gopher counts from 1, which drops any text
    /// of a few words.
    pub top_ngram_min_count: u32,
    /// Most characters in repeated 5- to 10-grams.
    pub dup_ngram: [f64; 6],
    /// N-gram rules leave texts with fewer words alone.
    pub min_words: usize,
}

impl Default for RepetitionConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            dup_para_frac: 0.3,
            dup_para_char_frac: 0.2,
            dup_line_frac: 0.3,
            dup_line_char_frac: 0.2,
            top_ngram: [0.2, 0.18, 0.16],
            top_ngram_min_count: 2,
            dup_ngram: [0.15, 0.14, 0.13, 0.12, 0.11, 0.10],
            min_words: 0,
        }
    }
}

/// The stage.
pub struct Repetition(pub RepetitionConfig);

impl Stage for Repetition {
    fn name(&self) -> &'static str {
        "repetition"
    }

    fn judge(&self, candidate: &mut Candidate, sheet: &mut Sheet) {
        let c = &self.0;
        let text = candidate.text();
        let total = text.chars().count();

        let (count, all, chars) = duplicates(paragraphs(text.trim_matches(is_space)));
        if sheet.over("dup_para_frac", share(count, all), c.dup_para_frac)
            || sheet.over("dup_para_char_frac", share(chars, total), c.dup_para_char_frac)
        {
            return;
        }
        let (count, all, chars) = duplicates(lines(text));
        if sheet.over("dup_line_frac", share(count, all), c.dup_line_frac)
            || sheet.over("dup_line_char_frac", share(chars, total), c.dup_line_char_frac)
        {
            return;
        }
        let (text, words) = candidate.words();
        if words.tokens.len() < c.min_words {
            return;
        }
        let mut grams = Grams::new(text, words);
        const TOP: [&str; 3] = ["top_2_gram", "top_3_gram", "top_4_gram"];
        for (i, limit) in c.top_ngram.into_iter().enumerate() {
            grams.grow();
            let chars = grams.top(c.top_ngram_min_count);
            if sheet.over(TOP[i], share(chars, total), limit) {
                return;
            }
        }
        const REPEATED: [&str; 6] = [
            "duplicated_5_n_grams",
            "duplicated_6_n_grams",
            "duplicated_7_n_grams",
            "duplicated_8_n_grams",
            "duplicated_9_n_grams",
            "duplicated_10_n_grams",
        ];
        for (i, limit) in c.dup_ngram.into_iter().enumerate() {
            grams.grow();
            if sheet.over(REPEATED[i], share(grams.repeated(), total), limit) {
                return;
            }
        }
    }
}

/// Pieces between runs of two or more newlines.
fn paragraphs(text: &str) -> impl Iterator<Item = &str> {
    Split { rest: Some(text), at_least: 2 }
}

/// Pieces between runs of newlines.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    Split { rest: Some(text), at_least: 1 }
}

/// Splits at runs of at least so many newlines; a text that begins or ends with one yields an empty piece.
struct Split<'a> {
    rest: Option<&'a str>,
    at_least: usize,
}

impl<'a> Iterator for Split<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.rest?;
        let bytes = text.as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            let run = bytes[i..].iter().take_while(|&&b| b == b'\n').count();
            if run >= self.at_least {
                self.rest = Some(&text[i + run..]);
                return Some(&text[..i]);
            }
            i += run.max(1);
        }
        self.rest = None;
        Some(text)
    }
}

/// (duplicates, pieces, characters in duplicates).
fn duplicates<'a>(pieces: impl Iterator<Item = &'a str>) -> (usize, usize, usize) {
    let mut seen = HashedSet::default();
    let (mut duplicates, mut all, mut chars) = (0, 0, 0);
    for piece in pieces {
        all += 1;
        if !seen.insert(hash64(piece.as_bytes())) {
            duplicates += 1;
            chars += piece.chars().count();
        }
    }
    (duplicates, all, chars)
}

/// The n-grams of a text's tokens, for one n after another.
///
/// An n-gram can only occur twice where both (n−1)-grams in it do, so that of every n only
/// those places are looked at.
struct Grams {
    hashes: Vec<u64>,
    /// `chars[i]`: characters in the tokens before `i`.
    chars: Vec<usize>,
    /// `gaps[i]`: spaces before the tokens up to `i`.
    gaps: Vec<usize>,
    n: usize,
    /// First token and hash of every n-gram that occurs more than once, in order.
    again: Vec<(u32, u64)>,
    /// Occurrences of the most frequent n-gram (the earliest of equals), and its first token.
    top: (u32, usize),
}

impl Grams {
    fn new(text: &str, words: &Words) -> Self {
        let n = words.tokens.len();
        let (mut hashes, mut chars, mut gaps) = (Vec::with_capacity(n), vec![0], Vec::with_capacity(n));
        let (mut length, mut spaces) = (0, 0);
        for t in &words.tokens {
            hashes.push(hash64(t.of(text).as_bytes()));
            length += t.chars as usize;
            chars.push(length);
            spaces += usize::from(!t.joined);
            gaps.push(spaces);
        }
        Self { hashes, chars, gaps, n: 1, again: Vec::new(), top: (0, 0) }
    }

    /// Goes on to n-grams of one token more; the first are 2-grams.
    fn grow(&mut self) {
        self.n += 1;
        let n = self.n;
        let places: Vec<(u32, u64)> = if n == 2 {
            (0..).zip(self.hashes.windows(2).map(combine)).collect()
        } else {
            let neighbours = self.again.windows(2).filter(|w| w[0].0 + 1 == w[1].0).map(|w| w[0].0);
            neighbours.map(|i| (i, combine(&self.hashes[i as usize..i as usize + n]))).collect()
        };
        let mut counts = Counts::of(places.len());
        places.iter().for_each(|&(i, hash)| counts.add(hash, i));
        self.again = places.into_iter().filter(|(_, hash)| counts.get(*hash).0 > 1).collect();
        // Where none occurs twice, the first is as frequent as any.
        self.top = (u32::from(self.hashes.len() >= n), 0);
        for (_, hash) in &self.again {
            let (count, first) = counts.get(*hash);
            if count > self.top.0 {
                self.top = (count, first as usize);
            }
        }
    }

    /// Characters in all occurrences of the most frequent n-gram, spaces included; 0 if it
    /// occurs less than `min_count` times.
    fn top(&self, min_count: u32) -> usize {
        let (count, first) = self.top;
        if count == 0 || count < min_count {
            return 0;
        }
        let last = first + self.n;
        let length = self.chars[last] - self.chars[first] + self.gaps[last - 1] - self.gaps[first];
        length * count as usize
    }

    /// Characters in n-grams seen before, spaces excluded.
    fn repeated(&self) -> usize {
        let mut seen = HashedSet::default();
        let (mut next, mut chars) = (0, 0);
        for &(i, hash) in &self.again {
            let i = i as usize;
            if i >= next && !seen.insert(hash) {
                next = i + self.n;
                chars += self.chars[next] - self.chars[i];
            }
        }
        chars
    }
}

/// Counts hashes, and remembers where each came first: open addressing, half of it free.
struct Counts(Vec<Slot>);

/// A hash, its count (0: the slot is free) and its first place.
#[derive(Clone, Copy, Default)]
struct Slot(u64, u32, u32);

impl Counts {
    /// Room for `n` hashes.
    fn of(n: usize) -> Self {
        Self(vec![Slot::default(); (2 * n).next_power_of_two().max(2)])
    }

    fn slot(&mut self, hash: u64) -> &mut Slot {
        let mask = self.0.len() - 1;
        let mut i = hash as usize & mask;
        while self.0[i].1 > 0 && self.0[i].0 != hash {
            i = (i + 1) & mask;
        }
        &mut self.0[i]
    }

    fn add(&mut self, hash: u64, place: u32) {
        let slot = self.slot(hash);
        if slot.1 == 0 {
            *slot = Slot(hash, 0, place);
        }
        slot.1 += 1;
    }

    /// Count and first place.
    fn get(&mut self, hash: u64) -> (u32, u32) {
        let slot = self.slot(hash);
        (slot.1, slot.2)
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict;
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, expect: Option<&str>) {
        let drop = verdict(&Repetition(RepetitionConfig::default()), &mut Candidate::new(text, ""));
        assert_eq!(drop.as_ref().map(|d| d.rule.as_str()), expect, "{text:?} → {drop:?}");
    }

    #[test]
    fn each_rule_names_itself() {
        check("one two three four five six seven eight nine ten eleven twelve", None);
        check("same\n\nsame\n\nother words here that differ", Some("dup_para_frac"));
        check("aaaaaaaaaaaaaaaaaaaa\n\nb\n\nc\n\nd\n\naaaaaaaaaaaaaaaaaaaa", Some("dup_para_char_frac"));
        check("same\nsame\nsame\nother words here that differ from the rest of it", Some("dup_line_frac"));
        check("bla bla bla bla bla bla bla bla bla bla x y", Some("top_2_gram"));
        check("天天向上天天向上天天向上天天向上天天向上", Some("top_2_gram"));
    }

    #[test]
    fn a_repeated_sentence_is_found() {
        let filler: String = (0..120).map(|i| format!("word{i} ")).collect();
        let sentence = "this very long sentence of exactly ten words comes again ";
        let text = format!("{filler}{sentence}{filler}").replace("word1", "other1");
        let doubled = format!("{text}{sentence}{sentence}{sentence}{sentence}{sentence}{sentence}");
        check(&text, Some("duplicated_5_n_grams"));
        check(&doubled, Some("duplicated_5_n_grams"));
    }

    /// The definitions, word for word and slow.
    mod slow {
        pub fn top(words: &[&str], n: usize) -> usize {
            let grams: Vec<String> = words.windows(n).map(|w| w.join(" ")).collect();
            let mut best = (0, 0);
            for g in &grams {
                let count = grams.iter().filter(|h| *h == g).count();
                if count > best.0 {
                    best = (count, g.chars().count());
                }
            }
            best.0 * best.1
        }

        pub fn repeated(words: &[&str], n: usize) -> usize {
            let mut seen = Vec::new();
            let (mut i, mut chars) = (0, 0);
            while i + n <= words.len() {
                let gram: Vec<&str> = words[i..i + n].to_vec();
                if seen.contains(&gram) {
                    chars += gram.concat().chars().count();
                    i += n;
                } else {
                    seen.push(gram);
                    i += 1;
                }
            }
            chars
        }
    }

    proptest! {
        #[test]
        fn hashed_ngrams_equal_the_definition(text in "([abé]{1,2} ){0,40}") {
            let words: Vec<&str> = text.split_whitespace().collect();
            let mut grams = Grams::new(&text, &Words::split(&text));
            for n in 2..=6 {
                grams.grow();
                prop_assert_eq!(grams.top(1), slow::top(&words, n));
                prop_assert_eq!(grams.repeated(), slow::repeated(&words, n));
            }
        }

        #[test]
        fn splitting_loses_only_newlines(text in "[ab\n]{0,30}") {
            prop_assert_eq!(lines(&text).collect::<String>(), text.replace('\n', ""));
            let joined: String = paragraphs(&text).collect();
            prop_assert_eq!(joined.replace('\n', ""), text.replace('\n', ""));
        }
    }
}
