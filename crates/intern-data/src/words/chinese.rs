//! Chinese words by dictionary and hidden Markov model (jieba), and sentences by their
//! punctuation.

use std::sync::LazyLock;

use jieba_rs::Jieba;

use super::english::Span;
use super::{is_cjk, is_cjk_punctuation};

static JIEBA: LazyLock<Jieba> = LazyLock::new(Jieba::new);

/// Words of `text`, byte offsets; whitespace is left out.
#[must_use]
pub fn segment(text: &str) -> Vec<Span> {
    let mut out = Vec::with_capacity(text.len() / 5);
    let words = JIEBA.cut(text, true).into_iter();
    out.extend(words.filter(|w| !w.word.trim().is_empty()).map(|w| (w.byte_start as u32, w.byte_end as u32)));
    out
}

/// Number of sentences: runs of text up to `。！？…` or their western forms; the rest counts as one.
#[must_use]
pub fn count_sentences(text: &str) -> usize {
    let (mut sentences, mut words) = (0, false);
    for c in text.chars() {
        if matches!(c, '。' | '！' | '？' | '!' | '?' | '…' | '；') {
            sentences += usize::from(words);
            words = false;
        } else if is_cjk(c) || c.is_alphanumeric() {
            words = true;
        }
    }
    sentences + usize::from(words)
}

/// Byte offsets of the sentences after the first: behind `。！？…；` and the quotes that close there.
#[must_use]
pub fn sentence_starts(text: &str) -> Vec<usize> {
    let (mut starts, mut ended) = (Vec::new(), false);
    for (at, c) in text.char_indices() {
        let ends = matches!(c, '。' | '！' | '？' | '!' | '?' | '…' | '；');
        let closes = matches!(c, '”' | '’' | '」' | '』' | '）' | ')' | '"' | '》');
        if ended && !ends && !closes && !c.is_whitespace() {
            starts.push(at);
            ended = false;
        }
        ended |= ends;
    }
    starts
}

/// Whether `line` ends as a Chinese sentence does, closing quotes and brackets set aside.
#[must_use]
pub fn ends_sentence(line: &str) -> bool {
    let line = line.trim_end_matches(['”', '’', '」', '』', '）', ')', '"', '》']);
    line.ends_with(['。', '！', '？', '…', '；', '.', '!', '?'])
}

/// Whether the text holds any Chinese character or punctuation.
#[must_use]
pub fn occurs_in(text: &str) -> bool {
    !text.is_ascii() && text.chars().any(|c| is_cjk(c) || is_cjk_punctuation(c))
}
