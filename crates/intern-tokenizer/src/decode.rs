//! Token ids back to text, whole or as a stream that never emits half a character.
//!
//! Nearly every tokenizer is one of two kinds: byte-level (each token is a string of
//! bytes spelled with GPT-2's characters) and SentencePiece-like (`▁` for a space,
//! `<0xE4>` for a byte). Both turn tokens into bytes, so one incremental UTF-8 reader
//! serves the whole decode and the stream alike: their texts are equal by construction.
//! Anything else (WordPiece) goes through the `tokenizers` decoder, streamed by the
//! difference of successive decodes.

use anyhow::Result;
use serde_json::Value;

use crate::pretokenizer::char_to_byte;
use crate::tokenizer::Tokenizer;

/// SentencePiece's stand-in for a space.
pub(crate) const SPACE: char = '▁';

/// What happens to a space at the very start of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeadingSpace {
    /// Stays.
    Keep,
    /// One is dropped (the dummy prefix of the encoder).
    DropOne,
    /// All spaces that open the first token are dropped (the `Metaspace` decoder).
    DropFromFirstToken,
}

/// How a tokenizer's tokens become text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decoding {
    ByteLevel,
    SentencePiece(LeadingSpace),
    /// By the `tokenizers` decoder.
    Other,
}

impl Decoding {
    /// Recognises the `decoder` entry of a `tokenizer.json`.
    pub(crate) fn from_json(decoder: &Value) -> Self {
        let steps = match decoder["type"].as_str() {
            Some("Sequence") => decoder["decoders"].as_array().cloned().unwrap_or_default(),
            Some(_) => vec![decoder.clone()],
            None => return Self::Other,
        };
        let mut kind = None;
        let mut leading = LeadingSpace::Keep;
        for step in &steps {
            match step["type"].as_str().unwrap_or_default() {
                "ByteLevel" if kind.is_none() => kind = Some(Self::ByteLevel),
                "Fuse" => {}
                "Replace" | "ByteFallback" | "Metaspace" if kind == Some(Self::ByteLevel) => {
                    return Self::Other;
                }
                "Replace" if step["pattern"]["String"] == "▁" && step["content"] == " " => {
                    kind = Some(Self::SentencePiece(LeadingSpace::Keep));
                }
                "ByteFallback" => kind = Some(Self::SentencePiece(LeadingSpace::Keep)),
                "Strip" if step["content"] == " " && step["stop"] == 0 => match step["start"].as_u64() {
                    Some(0) => {}
                    Some(1) => leading = LeadingSpace::DropOne,
                    _ => return Self::Other,
                },
                "Metaspace" if step["replacement"] == "▁" => {
                    kind = Some(Self::SentencePiece(LeadingSpace::Keep));
                    if step["prepend_scheme"] != "never" {
                        leading = LeadingSpace::DropFromFirstToken;
                    }
                }
                _ => return Self::Other,
            }
        }
        match kind {
            Some(Self::SentencePiece(_)) => Self::SentencePiece(leading),
            Some(Self::ByteLevel) if leading == LeadingSpace::Keep => Self::ByteLevel,
            _ => Self::Other,
        }
    }

    /// The bytes a token stands for (a leading space included).
    pub(crate) fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => token
                .chars()
                .map(char_to_byte)
                .collect::<Option<Vec<u8>>>()
                // Added tokens are plain text, not spelled bytes.
                .unwrap_or_else(|| token.as_bytes().to_vec()),
            Self::SentencePiece(_) => match byte_piece(token) {
                Some(byte) => vec![byte],
                None => token.replace(SPACE, " ").into_bytes(),
            },
            Self::Other => token.as_bytes().to_vec(),
        }
    }
}

/// The byte of a byte-fallback piece such as `<0x0A>`.
pub(crate) fn byte_piece(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(hex, 16).ok())
        .flatten()
}

/// Decodes token by token.
///
/// The texts returned by [`push`](Self::push) and [`finish`](Self::finish), one after
/// the other, are exactly [`Tokenizer::decode`] of all ids.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Bytes { utf8: Utf8Reader, leading: LeadingSpace },
    Text { ids: Vec<u32>, emitted: String },
}

impl StreamDecoder {
    pub(crate) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        let state = match tokenizer.decoding() {
            Decoding::ByteLevel => State::Bytes { utf8: Utf8Reader::lossy(), leading: LeadingSpace::Keep },
            Decoding::SentencePiece(leading) => State::Bytes { utf8: Utf8Reader::bytewise(), leading },
            Decoding::Other => State::Text { ids: Vec::new(), emitted: String::new() },
        };
        Self { tokenizer, skip_special, state }
    }

    /// Takes the next id; returns the text that is now certain, if any.
    ///
    /// Ids outside the vocabulary (models pad theirs) decode to nothing.
    ///
    /// # Errors
    /// Fails when the tokenizer's own decoder does.
    pub fn push(&mut self, id: u32) -> Result<Option<String>> {
        if self.skip_special && self.tokenizer.is_special(id) {
            return Ok(None);
        }
        let text = match &mut self.state {
            State::Bytes { utf8, leading } => {
                let Some(mut bytes) = self.tokenizer.token_bytes_ref(id) else { return Ok(None) };
                match *leading {
                    LeadingSpace::DropOne if !bytes.is_empty() => {
                        bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
                        *leading = LeadingSpace::Keep;
                    }
                    LeadingSpace::DropFromFirstToken => {
                        bytes = bytes.trim_ascii_start_spaces();
                        *leading = LeadingSpace::Keep;
                    }
                    _ => {}
                }
                utf8.push(bytes)
            }
            State::Text { ids, emitted } => {
                ids.push(id);
                let all = self.tokenizer.decode_by_library(ids, self.skip_special)?;
                // A trailing replacement character may be the start of a real one.
                match all.strip_prefix(emitted.as_str()) {
                    Some(new) if !all.ends_with(char::REPLACEMENT_CHARACTER) => {
                        let new = new.to_string();
                        *emitted = all;
                        new
                    }
                    _ => String::new(),
                }
            }
        };
        Ok((!text.is_empty()).then_some(text))
    }

    /// What is left: an unfinished character becomes replacement characters.
    pub fn finish(&mut self) -> String {
        match &mut self.state {
            State::Bytes { utf8, .. } => utf8.finish(),
            State::Text { ids, emitted } => {
                let all = self.tokenizer.decode_by_library(ids, self.skip_special).unwrap_or_default();
                let new = all.strip_prefix(emitted.as_str()).unwrap_or_default().to_string();
                *emitted = all;
                new
            }
        }
    }
}

trait TrimSpaces {
    fn trim_ascii_start_spaces(&self) -> &Self;
}

impl TrimSpaces for [u8] {
    fn trim_ascii_start_spaces(&self) -> &[u8] {
        let spaces = self.iter().take_while(|&&b| b == b' ').count();
        &self[spaces..]
    }
}

/// Reads UTF-8 piecemeal, holding back a character until it is whole.
#[derive(Clone, Debug)]
struct Utf8Reader {
    pending: Vec<u8>, // at most the first three bytes of a character
    /// One replacement character per bad byte, as SentencePiece does; otherwise one
    /// per broken sequence, as `String::from_utf8_lossy` does.
    per_byte: bool,
}

impl Utf8Reader {
    fn lossy() -> Self {
        Self { pending: Vec::new(), per_byte: false }
    }

    fn bytewise() -> Self {
        Self { pending: Vec::new(), per_byte: true }
    }

    fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut out = String::with_capacity(self.pending.len());
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    out.push_str(std::str::from_utf8(valid).expect("checked just now"));
                    rest = after;
                    match error.error_len() {
                        None => break, // may still become a character
                        Some(bad) => {
                            let count = if self.per_byte { bad } else { 1 };
                            out.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, count));
                            rest = &rest[bad..];
                        }
                    }
                }
            }
        }
        self.pending = rest.to_vec();
        out
    }

    fn finish(&mut self) -> String {
        let count = if self.per_byte { self.pending.len() } else { usize::from(!self.pending.is_empty()) };
        self.pending.clear();
        std::iter::repeat_n(char::REPLACEMENT_CHARACTER, count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_wait_until_whole() {
        let mut reader = Utf8Reader::lossy();
        let snowman = "☃".as_bytes();
        assert_eq!(reader.push(&snowman[..1]), "");
        assert_eq!(reader.push(&snowman[1..2]), "");
        assert_eq!(reader.push(&snowman[2..]), "☃");
        assert_eq!(reader.push(&snowman[..2]), "");
        assert_eq!(reader.push(b"a"), "\u{FFFD}a");
        reader.push(&snowman[..2]);
        assert_eq!(reader.finish(), "\u{FFFD}");

        let mut reader = Utf8Reader::bytewise();
        reader.push(&snowman[..2]);
        assert_eq!(reader.push(b"a"), "\u{FFFD}\u{FFFD}a");
    }

    #[test]
    fn byte_pieces_are_two_hex_digits() {
        assert_eq!(byte_piece("<0x0A>"), Some(10));
        assert_eq!(byte_piece("<0xZZ>"), None);
        assert_eq!(byte_piece("<0x0A"), None);
    }
}
