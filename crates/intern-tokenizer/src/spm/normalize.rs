//! How SentencePiece prepares text: replacements, spaces, the dummy prefix, `▁`.

use anyhow::Result;
use regex::bytes::Regex;

use super::charsmap::Charsmap;
use super::longest_first;
use crate::decode::SPACE;
use crate::sentencepiece::Model;

pub(super) struct Normalizer {
    charsmap: Option<Charsmap>,
    user_defined: Option<Regex>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
}

/// Prepared text, with where each of its bytes comes from.
#[derive(Default)]
pub(super) struct Normalized {
    pub text: String,
    /// `source[i]`: byte of the original that byte `i` stems from; one more for the end.
    pub source: Vec<u32>,
}

impl Normalized {
    fn push(&mut self, c: char, source: usize) {
        self.text.push(c);
        self.source.resize(self.text.len(), source as u32);
    }
}

impl Normalizer {
    pub(super) fn new<'a>(model: &Model, user_defined: impl Iterator<Item = &'a str>) -> Result<Self> {
        Ok(Self {
            charsmap: if model.charsmap.is_empty() { None } else { Some(Charsmap::parse(&model.charsmap)?) },
            user_defined: longest_first(user_defined)?,
            add_dummy_prefix: model.add_dummy_prefix,
            remove_extra_whitespaces: model.remove_extra_whitespaces,
        })
    }

    /// Follows `Normalizer::Normalize` of SentencePiece step by step.
    pub(super) fn normalize(&self, text: &str) -> Normalized {
        let mut out = Normalized::default();
        out.text.reserve(text.len() + text.len() / 4);
        out.source.reserve(text.len() + text.len() / 4);
        let mut chunks = self.chunks(text).peekable();
        if self.remove_extra_whitespaces {
            while chunks.next_if(|(_, chunk)| *chunk == " ").is_some() {}
        }
        let Some(&(start, _)) = chunks.peek() else {
            out.source.push(text.len() as u32);
            return out;
        };
        if self.add_dummy_prefix {
            out.push(SPACE, start);
        }
        let mut after_space = self.remove_extra_whitespaces;
        for (at, chunk) in chunks {
            let chunk = if after_space { chunk.trim_start_matches(' ') } else { chunk };
            for c in chunk.chars() {
                out.push(if c == ' ' { SPACE } else { c }, at);
            }
            if !chunk.is_empty() {
                after_space = self.remove_extra_whitespaces && chunk.ends_with(' ');
            }
        }
        if self.remove_extra_whitespaces {
            let kept = out.text.trim_end_matches(SPACE).len();
            out.text.truncate(kept);
            let end = out.source.get(kept).copied();
            out.source.truncate(kept);
            out.source.push(end.unwrap_or(text.len() as u32));
        } else {
            out.source.push(text.len() as u32);
        }
        out
    }

    /// The text cut into what is replaced as a unit: (byte position, replacement).
    /// User-defined symbols and characters without a rule stay as they are.
    fn chunks<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
        let mut at = 0;
        let mut symbols =
            self.user_defined.as_ref().map(|r| r.find_iter(text.as_bytes())).into_iter().flatten().peekable();
        std::iter::from_fn(move || {
            let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
            let start = at;
            // A replacement may have run past the start of a symbol.
            while symbols.next_if(|s| s.start() < at).is_some() {}
            if let Some(symbol) = symbols.next_if(|s| s.start() == at) {
                at = symbol.end();
                return Some((start, &text[start..at]));
            }
            match self.charsmap.as_ref().and_then(|map| map.longest(rest.as_bytes())) {
                Some((length, replacement)) if text.is_char_boundary(at + length) => {
                    at += length;
                    Some((start, replacement))
                }
                _ => {
                    at += rest.chars().next()?.len_utf8();
                    Some((start, &text[start..at]))
                }
            }
        })
    }

    /// Cuts prepared text at user-defined symbols: (start, end, whether it is one).
    pub(super) fn split_user_defined(&self, text: &str) -> Vec<(usize, usize, bool)> {
        let mut parts = Vec::new();
        let mut done = 0;
        for found in self.user_defined.iter().flat_map(|r| r.find_iter(text.as_bytes())) {
            parts.extend((done < found.start()).then_some((done, found.start(), false)));
            parts.push((found.start(), found.end(), true));
            done = found.end();
        }
        parts.extend((done < text.len()).then_some((done, text.len(), false)));
        parts
    }
}
