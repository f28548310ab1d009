//! From token ids to the text a user sees: streaming decode, stop strings, hold-back.

use intern_tokenizer::{StreamDecoder, Tokenizer};

/// The text of one answer as it grows.
pub(crate) struct TextStream {
    decoder: StreamDecoder,
    stops: Vec<String>,
    /// Decoded, but may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl TextStream {
    /// `keep_special` leaves special tokens in the text. Empty stop strings are ignored.
    pub fn new(tokenizer: &Tokenizer, keep_special: bool, stops: &[String]) -> Self {
        let stops = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        Self { decoder: tokenizer.stream(!keep_special), stops, held: String::new(), stopped: false }
    }

    /// Keeps a space at the very start, which some tokenizers' decoders drop.
    pub fn keep_leading_space(&mut self, tokenizer: &Tokenizer) {
        // Behind a letter nothing is at the start any more.
        if let Some(letter) = tokenizer.token_to_id("a") {
            let _ = self.decoder.push(letter);
        }
    }

    /// Takes a token; returns the text that is certain now.
    pub fn push(&mut self, id: u32) -> String {
        // A token our decoder cannot express decodes to nothing; the ids are reported anyway.
        let text = self.decoder.push(id).ok().flatten().unwrap_or_default();
        self.take(&text)
    }

    /// Whether a stop string appeared. What follows it is dropped.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Ends the answer; returns what was held back.
    pub fn finish(&mut self) -> String {
        let rest = self.decoder.finish();
        let mut out = self.take(&rest);
        if !self.stopped {
            out.push_str(&std::mem::take(&mut self.held));
        }
        out
    }

    fn take(&mut self, text: &str) -> String {
        if self.stopped || (text.is_empty() && self.held.is_empty()) {
            return String::new();
        }
        if self.stops.is_empty() {
            return text.to_owned();
        }
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }
}

/// Bytes of the longest end of `text` that begins `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = stop.len().saturating_sub(1).min(text.len());
    (1..=longest)
        .rev()
        .find(|&n| {
            text.is_char_boundary(text.len() - n)
                && stop.as_bytes().starts_with(&text.as_bytes()[text.len() - n..])
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_the_longest() {
        for (text, stop, want) in [
            ("abc", "cd", 1),
            ("abab", "ababc", 4),
            ("ab", "ab", 0),
            ("x", "y", 0),
            ("", "a", 0),
            ("日", "日本", 3),
        ] {
            assert_eq!(overlap(text, stop), want, "{text} {stop}");
        }
    }
}
