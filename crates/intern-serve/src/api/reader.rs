//! From the model's text to what the protocols tell apart: thoughts, text and calls.

use intern_lm::FinishReason;
use intern_lm::reasoning::{Thought, ThoughtSplitter};
use intern_lm::tools::{LivePiece, LiveSplitter, ToolFormat};

use serde_json::Value;

use super::app::App;
use super::generate::Flow;

/// The next part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Thinking(String),
    Text(String),
    /// A call begins; its arguments follow.
    Call {
        id: String,
        name: String,
    },
    /// More of the JSON text of the last call's arguments.
    Arguments(String),
}

/// Reads one answer while it is generated.
pub(super) struct Reader {
    thoughts: Option<ThoughtSplitter>,
    /// Until the answer ends.
    calls: Option<LiveSplitter>,
    /// Special tokens are to be taken out of the text.
    clean: bool,
    single_call: bool,
    num_calls: usize,
    /// A second call was begun where one is allowed.
    is_full: bool,
}

impl Reader {
    pub fn new(
        format: ToolFormat,
        first_call: usize,
        tools: &[Value],
        single_call: bool,
        inside_thought: Option<bool>,
        clean: bool,
    ) -> Self {
        Self {
            thoughts: inside_thought.map(ThoughtSplitter::new),
            calls: Some(LiveSplitter::new(format, first_call).with_tools(tools)),
            clean,
            single_call,
            num_calls: 0,
            is_full: false,
        }
    }

    /// Takes text as it comes out of the model.
    pub fn push(&mut self, app: &App, text: String) -> Vec<Part> {
        let text = if self.clean { app.without_specials(text) } else { text };
        if text.is_empty() {
            return Vec::new();
        }
        let thoughts = match &mut self.thoughts {
            Some(splitter) => splitter.push(&text),
            None => vec![Thought::Answer(text)],
        };
        self.sort(thoughts)
    }

    /// What was held back, and the reason to report.
    pub fn finish(&mut self, finish: FinishReason) -> (Vec<Part>, FinishReason) {
        let rest = self.thoughts.take().map(ThoughtSplitter::finish).unwrap_or_default();
        let mut parts = self.sort(rest);
        if let Some(calls) = self.calls.take() {
            parts.extend(self.keep(calls.finish()));
        }
        let is_call = self.num_calls > 0 && finish == FinishReason::Stop;
        (parts, if is_call { FinishReason::ToolCalls } else { finish })
    }

    /// Whether the answer should go on.
    pub fn flow(&self) -> Flow {
        if self.is_full { Flow::Stop } else { Flow::Go }
    }

    fn sort(&mut self, thoughts: Vec<Thought>) -> Vec<Part> {
        let mut parts = Vec::new();
        for thought in thoughts {
            match thought {
                Thought::Thinking(text) => parts.push(Part::Thinking(text)),
                Thought::Answer(text) => {
                    let pieces = self.calls.as_mut().map(|c| c.push(&text)).unwrap_or_default();
                    parts.extend(self.keep(pieces));
                }
            }
        }
        parts
    }

    /// Counts calls, and drops what comes behind the only one allowed.
    fn keep(&mut self, pieces: Vec<LivePiece>) -> Vec<Part> {
        let mut parts = Vec::new();
        for piece in pieces {
            if matches!(piece, LivePiece::Begin { .. }) {
                self.is_full |= self.single_call && self.num_calls > 0;
                self.num_calls += usize::from(!self.is_full);
            }
            if self.is_full {
                break;
            }
            parts.push(match piece {
                LivePiece::Text(text) => Part::Text(text),
                LivePiece::Begin { id, name } => Part::Call { id, name },
                LivePiece::Arguments(text) => Part::Arguments(text),
            });
        }
        parts
    }
}

/// One call of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Call {
    pub id: String,
    pub name: String,
    /// JSON text as the model wrote it.
    pub arguments: String,
}

/// The parts of a whole answer, put together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Whole {
    pub thinking: String,
    pub text: String,
    pub calls: Vec<Call>,
}

impl Whole {
    pub fn add(&mut self, part: Part) {
        match part {
            Part::Thinking(text) => self.thinking.push_str(&text),
            Part::Text(text) => self.text.push_str(&text),
            Part::Call { id, name } => self.calls.push(Call { id, name, arguments: String::new() }),
            Part::Arguments(text) => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments.push_str(&text);
                }
            }
        }
    }
}
