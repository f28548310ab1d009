//! Separates what a model thinks (`<think>…</think>`) from what it answers.

use crate::tools::overlap;

/// Opens a thought.
pub const OPEN: &str = "<think>";
/// Closes it.
pub const CLOSE: &str = "</think>";

/// What the splitter made of the text so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thought {
    /// Part of a thought.
    Thinking(String),
    /// Part of the answer.
    Answer(String),
}

/// Whether a model with this chat template thinks between markers.
#[must_use]
pub fn thinks(chat_template: &str) -> bool {
    chat_template.contains(CLOSE)
}

/// Whether an answer to this prompt begins inside a thought: the template has opened one.
#[must_use]
pub fn begins_inside(prompt: &str) -> bool {
    prompt.trim_end().ends_with(OPEN)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// No text but white space yet; a thought may open.
    Start,
    /// Behind the opening marker, before the thought's first character.
    Opened,
    Inside,
    /// Behind the thought, before the answer's first character.
    After,
    Answer,
}

/// Separates a thought at the beginning of an answer from the rest, while it streams.
///
/// White space around the thought belongs to the markers and is dropped. A thought that never
/// closes is a thought to the end.
#[derive(Debug)]
pub struct ThoughtSplitter {
    place: Place,
    held: String,
}

impl ThoughtSplitter {
    /// Starts an answer, inside of a thought if the prompt has opened one.
    #[must_use]
    pub fn new(begins_inside: bool) -> Self {
        Self { place: if begins_inside { Place::Opened } else { Place::Start }, held: String::new() }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Vec<Thought> {
        self.held.push_str(text);
        let mut out = Vec::new();
        while self.step(&mut out) {}
        out
    }

    /// Ends the answer.
    #[must_use]
    pub fn finish(self) -> Vec<Thought> {
        let piece = match self.place {
            Place::Inside => Thought::Thinking(self.held.trim_end().to_string()),
            Place::Opened | Place::After => Thought::Answer(String::new()),
            Place::Start | Place::Answer => Thought::Answer(self.held),
        };
        let (Thought::Thinking(text) | Thought::Answer(text)) = &piece;
        if text.is_empty() { Vec::new() } else { vec![piece] }
    }

    /// Decides about more of `held`; false when more text is needed.
    fn step(&mut self, out: &mut Vec<Thought>) -> bool {
        let trimmed = self.held.trim_start();
        match self.place {
            Place::Start => {
                if let Some(rest) = trimmed.strip_prefix(OPEN) {
                    self.held = rest.to_string();
                    self.place = Place::Opened;
                    return true;
                }
                // Some models close a thought that the template has opened unseen; others only answer.
                if OPEN.starts_with(trimmed) {
                    return false;
                }
                self.place = Place::Answer;
                true
            }
            Place::Inside => {
                if let Some(at) = self.held.find(CLOSE) {
                    let rest = self.held.split_off(at);
                    emit(out, Thought::Thinking, self.held.trim_end());
                    self.held = rest[CLOSE.len()..].to_string();
                    self.place = Place::After;
                    return true;
                }
                let sure = self.held.len() - overlap(&self.held, CLOSE);
                // White space is the marker's if the marker comes next.
                let sure = self.held[..sure].trim_end().len();
                let rest = self.held.split_off(sure);
                emit(out, Thought::Thinking, &std::mem::replace(&mut self.held, rest));
                false
            }
            Place::Opened | Place::After => {
                if trimmed.is_empty() {
                    return false;
                }
                self.held = trimmed.to_string();
                self.place = if self.place == Place::Opened { Place::Inside } else { Place::Answer };
                true
            }
            Place::Answer => {
                emit(out, Thought::Answer, &std::mem::take(&mut self.held));
                false
            }
        }
    }
}

fn emit(out: &mut Vec<Thought>, kind: fn(String) -> Thought, text: &str) {
    if !text.is_empty() {
        out.push(kind(text.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(inside: bool, text: &str, thinking: &str, answer: &str) {
        let chars: Vec<String> = text.chars().map(String::from).collect();
        for pieces in [vec![text.to_string()], chars] {
            let mut splitter = ThoughtSplitter::new(inside);
            let mut all: Vec<Thought> = pieces.iter().flat_map(|p| splitter.push(p)).collect();
            all.extend(splitter.finish());
            let (mut t, mut a) = (String::new(), String::new());
            for one in all {
                match one {
                    Thought::Thinking(text) => t.push_str(&text),
                    Thought::Answer(text) => a.push_str(&text),
                }
            }
            assert_eq!((t.as_str(), a.as_str()), (thinking, answer), "{text:?}");
        }
    }

    #[test]
    fn thoughts_are_separated() {
        check(false, "<think>\nhm, 1 < 2\n</think>\n\nYes.", "hm, 1 < 2", "Yes.");
        check(false, "\n<think></think>Yes.\n", "", "Yes.\n");
        check(true, "hm\n</think>\n\nYes </think>", "hm", "Yes </think>");
        check(true, "\nhm </thin", "hm </thin", "");
        check(false, "Yes <think>x</think>", "", "Yes <think>x</think>");
        check(false, " <thin", "", " <thin");
        check(false, "", "", "");
        assert!(begins_inside("<|im_start|>assistant\n<think>\n") && !begins_inside("<think></think>"));
    }
}
