//! Counting words: the corpus cut by the pre-tokenizer's pattern, on all cores.

use ahash::AHashMap;
use anyhow::Result;
use rayon::prelude::*;
use regex::Regex;

use crate::pretokenizer::PreTokenizer;

/// Text is handed out in pieces of about this size.
const PIECE_BYTES: usize = 256 << 10;
/// Text held at a time before counting it.
const BATCH_BYTES: usize = 16 << 20;

/// The corpus' distinct words as bytes, with how often each occurs, sorted.
pub(super) fn count(
    texts: &mut impl Iterator<Item = String>,
    pre_tokenizer: PreTokenizer,
) -> Result<Vec<(Box<[u8]>, u64)>> {
    let cutter = Cutter::new(pre_tokenizer)?;
    let mut counts = AHashMap::new();
    loop {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES {
            let Some(text) = texts.next() else { break };
            bytes += text.len();
            batch.push(text);
        }
        if batch.is_empty() {
            break;
        }
        let pieces: Vec<&str> = batch.iter().flat_map(|text| pieces(text)).collect();
        let counted = pieces
            .par_iter()
            .fold(AHashMap::new, |mut counts, piece| {
                cutter.for_each_word(piece, |word| add(&mut counts, word.as_bytes(), 1));
                counts
            })
            .reduce(AHashMap::new, merge);
        counts = merge(counts, counted);
    }
    let mut words: Vec<(Box<[u8]>, u64)> = counts.into_iter().collect();
    words.par_sort_unstable(); // a hash map's order is random
    Ok(words)
}

type Counts = AHashMap<Box<[u8]>, u64>;

fn add(counts: &mut Counts, word: &[u8], n: u64) {
    match counts.get_mut(word) {
        Some(count) => *count += n,
        None => {
            counts.insert(word.into(), n);
        }
    }
}

fn merge(a: Counts, b: Counts) -> Counts {
    let (mut large, small) = if a.len() >= b.len() { (a, b) } else { (b, a) };
    for (word, n) in small {
        *large.entry(word).or_insert(0) += n;
    }
    large
}

/// Cuts a long text where no word can be cut: at a space between two ASCII letters.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let bytes = rest.as_bytes();
        let is_cut = |i: &usize| {
            bytes[*i] == b' ' && bytes[i - 1].is_ascii_alphabetic() && bytes[i + 1].is_ascii_alphabetic()
        };
        let cut = (PIECE_BYTES..bytes.len().saturating_sub(1)).find(is_cut).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(cut);
        rest = after;
        Some(piece)
    })
}

/// Finds words by a linear-time regular expression.
///
/// The patterns' only look-ahead, `\s+(?!\S)|\s+`, leaves the last character of a run
/// of whitespace to the word behind it; that is done by hand.
pub(super) struct Cutter {
    word: Regex,
    newlines_end_runs: bool,
}

impl Cutter {
    pub(super) fn new(pre_tokenizer: PreTokenizer) -> Result<Self> {
        let pattern = pre_tokenizer.pattern().replace(r"\s+(?!\S)|\s+", r"\s+");
        Ok(Self {
            word: Regex::new(&format!("^(?:{pattern})"))?,
            newlines_end_runs: pre_tokenizer != PreTokenizer::Gpt2,
        })
    }

    pub(super) fn for_each_word<'t>(&self, text: &'t str, mut each: impl FnMut(&'t str)) {
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let found = self.word.find(rest).map_or(first.len_utf8(), |m| m.end());
            let mut end = found;
            if end < rest.len() && first.is_whitespace() {
                let word = &rest[..end];
                let last = word.chars().next_back().expect("words are not empty");
                let by_newline = self.newlines_end_runs && matches!(last, '\r' | '\n');
                if last.is_whitespace() && !by_newline && word.len() > last.len_utf8() {
                    end -= last.len_utf8();
                }
            }
            let (word, after) = rest.split_at(end);
            each(word);
            rest = after;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper,
    };

    /// The same cuts as the pipeline that will encode.
    #[track_caller]
    fn check(text: &str) {
        for kind in [PreTokenizer::Gpt2, PreTokenizer::Llama3, PreTokenizer::Qwen2] {
            let mut ours = Vec::new();
            Cutter::new(kind).unwrap().for_each_word(text, |w| ours.push(w.to_string()));
            let library: PreTokenizerWrapper = serde_json::from_value(kind.to_json()).unwrap();
            let mut cut = PreTokenizedString::from(text);
            library.pre_tokenize(&mut cut).unwrap();
            let theirs: Vec<String> = cut
                .get_splits(OffsetReferential::Original, OffsetType::Byte)
                .into_iter()
                .map(|(_, (start, end), _)| text[start..end].to_string())
                .collect();
            assert_eq!(ours, theirs, "{kind:?} {text:?}");
        }
    }

    #[test]
    fn words_are_those_of_the_pipeline() {
        check("Hello,  world's   end\n\n  x \t y\r\n 12345 +-*/ ...\n");
        check("  lead and trail  ");
        check("我们'RE 第12章\u{3000}\u{3000}\u{A0}“引号”");
        check(" \n \n x");
        check("\u{85}a \u{2028} b\n");
    }

    #[test]
    fn long_texts_are_cut_between_words() {
        let text = "one two, three 4 ".repeat(40_000);
        let cutter = Cutter::new(PreTokenizer::Qwen2).unwrap();
        let mut whole = Vec::new();
        cutter.for_each_word(&text, |w| whole.push(w));
        let mut parts = Vec::new();
        assert!(pieces(&text).count() > 1);
        pieces(&text).for_each(|p| cutter.for_each_word(p, |w| parts.push(w)));
        assert_eq!(whole, parts);
    }
}
