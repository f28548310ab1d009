//! Separates calls from text while an answer streams in.

use intern_format::conversation::ToolCall;
use serde_json::Value;

use super::scan::{Scan, Seen};
use super::tagged::Declared;
use super::{ToolFormat, read_calls};

/// What the splitter made of the text so far.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Ordinary text.
    Text(String),
    /// One complete call.
    Call(ToolCall),
}

/// As [`Piece`], with calls in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LivePiece {
    /// Ordinary text.
    Text(String),
    /// A call begins.
    Begin {
        /// Unique in the conversation.
        id: String,
        /// The tool.
        name: String,
    },
    /// More of the JSON text of that call's arguments.
    Arguments(String),
}

/// Separates whole calls from text.
///
/// Text is passed on at once, except what may turn out to belong to a call:
/// that is held back until it is decided. The pieces do not depend on how the
/// text was cut (adjacent [`Piece::Text`]s joined).
#[derive(Debug)]
pub struct ToolSplitter(Splitter);

impl ToolSplitter {
    /// Starts an answer whose first call gets the id `call_{first_id}`.
    ///
    /// Count the calls earlier in the conversation, so that ids stay unique in it.
    #[must_use]
    pub fn new(format: ToolFormat, first_id: usize) -> Self {
        Self(Splitter::new(format, first_id, false))
    }

    /// Tells what the tools declare, by which tags are read.
    #[must_use]
    pub fn with_tools(mut self, tools: &[Value]) -> Self {
        self.0.declared = Declared::new(tools);
        self
    }

    /// Takes the next piece of the answer.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut out = Vec::new();
        self.0.push(text, &mut out);
        whole(out)
    }

    /// Ends the answer; an unclosed block still counts if it parses.
    pub fn finish(mut self) -> Vec<Piece> {
        let mut out = Vec::new();
        self.0.finish(&mut out);
        whole(out)
    }
}

fn whole(out: Vec<Out>) -> Vec<Piece> {
    let piece = |out| match out {
        Out::Call(call) => Some(Piece::Call(call)),
        Out::Live(LivePiece::Text(text)) => Some(Piece::Text(text)),
        Out::Live(_) => None, // not from blocks read whole
    };
    out.into_iter().filter_map(piece).collect()
}

/// Separates calls from text, passing on arguments while they are written.
///
/// A call shows once its name is known and its arguments begin. If the block goes wrong
/// after that, what was passed on stays, and the rest of the block is text.
#[derive(Debug)]
pub struct LiveSplitter(Splitter);

impl LiveSplitter {
    /// As [`ToolSplitter::new`].
    #[must_use]
    pub fn new(format: ToolFormat, first_id: usize) -> Self {
        // What is not written as JSON cannot be passed on before it is complete.
        Self(Splitter::new(format, first_id, !format.is_tagged()))
    }

    /// As [`ToolSplitter::with_tools`].
    #[must_use]
    pub fn with_tools(mut self, tools: &[Value]) -> Self {
        self.0.declared = Declared::new(tools);
        self
    }

    /// Takes the next piece of the answer.
    pub fn push(&mut self, text: &str) -> Vec<LivePiece> {
        let mut out = Vec::new();
        self.0.push(text, &mut out);
        live(out)
    }

    /// Ends the answer.
    pub fn finish(mut self) -> Vec<LivePiece> {
        let mut out = Vec::new();
        self.0.finish(&mut out);
        live(out)
    }
}

fn live(out: Vec<Out>) -> Vec<LivePiece> {
    let pieces = |out| match out {
        Out::Live(piece) => vec![piece],
        Out::Call(ToolCall { id, function, .. }) => vec![
            LivePiece::Begin { id, name: function.name },
            LivePiece::Arguments(function.arguments.to_string()),
        ],
    };
    out.into_iter().flat_map(pieces).collect()
}

enum Out {
    Call(ToolCall),
    Live(LivePiece),
}

/// What both have in common: where blocks of calls begin and end.
#[derive(Debug)]
struct Splitter {
    format: ToolFormat,
    declared: Declared,
    next_id: usize,
    /// Text not yet passed on, and the whole of a block.
    held: String,
    /// `held` begins with a block.
    inside: bool,
    /// Read blocks while they are written.
    is_live: bool,
    /// The reader of the block, and the bytes of `held` it has seen.
    scan: Option<(Scan, usize)>,
    /// No text but white space seen yet.
    at_start: bool,
    /// Only white space seen since the last call.
    after_call: bool,
}

impl Splitter {
    fn new(format: ToolFormat, first_id: usize, is_live: bool) -> Self {
        Self {
            format,
            declared: Declared::default(),
            next_id: first_id,
            held: String::new(),
            inside: false,
            is_live,
            scan: None,
            at_start: true,
            after_call: false,
        }
    }

    fn push(&mut self, text: &str, out: &mut Vec<Out>) {
        if self.format == ToolFormat::None {
            push_text(out, text);
            return;
        }
        self.held.push_str(text);
        while self.step(out) {}
    }

    fn finish(&mut self, out: &mut Vec<Out>) {
        if self.inside {
            let block = std::mem::take(&mut self.held);
            self.close(&block, block.len(), out);
        } else if !(self.after_call && self.held.trim().is_empty()) {
            push_text(out, &self.held);
        }
    }

    /// Decides about one more part of `held`; false when more text is needed.
    fn step(&mut self, out: &mut Vec<Out>) -> bool {
        if self.inside {
            let end = self.format.end();
            if let Some((end, at)) = end.and_then(|end| Some((end, self.held.find(end)?))) {
                let block: String = self.held.drain(..at + end.len()).collect();
                self.inside = false;
                self.close(&block, at, out);
                return true;
            }
            if self.is_live {
                let sure = self.held.len() - end.map_or(0, |end| overlap(&self.held, end));
                let held = std::mem::take(&mut self.held);
                self.read_live(&held[..sure], out);
                self.held = held;
            }
            return false;
        }
        let blank = self.held.len() - self.held.trim_start().len();
        if self.format == ToolFormat::Llama3 && self.at_start {
            if blank == self.held.len() {
                return false;
            }
            if self.held[blank..].starts_with('{') {
                self.inside = true;
                return true;
            }
        }
        let starts = self.format.starts();
        if let Some(at) = starts.iter().filter_map(|s| self.held.find(s)).min() {
            let before: String = self.held.drain(..at).collect();
            self.inside = true;
            if self.format.owns_space_before() {
                // Kept with the block, so that it is still there if the block is no call.
                let text = before.trim_end();
                self.emit(text, out);
                self.held.insert_str(0, &before[text.len()..]);
            } else if !(self.after_call && before.trim().is_empty()) {
                self.emit(&before, out);
            }
            return true;
        }
        // Keep what may be the beginning of a marker, and white space whose owner is not known yet.
        let mut keep = self.held.len() - starts.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        if self.format.owns_space_before() || (self.after_call && self.held[..keep].trim().is_empty()) {
            keep = self.held[..keep].trim_end().len();
        }
        let text: String = self.held.drain(..keep).collect();
        self.emit(&text, out);
        false
    }

    /// Passes on text outside of blocks.
    fn emit(&mut self, text: &str, out: &mut Vec<Out>) {
        if !text.trim().is_empty() {
            self.at_start = false;
            self.after_call = false;
        }
        push_text(out, text);
    }

    /// Where the calls of a block begin: behind white space and its marker.
    fn body(&self, block: &str) -> usize {
        let body = block.trim_start();
        let body = self.format.starts().iter().find_map(|s| body.strip_prefix(s)).unwrap_or(body);
        block.len() - body.len()
    }

    /// Reads what is new of a block, all of which is `block` so far.
    fn read_live(&mut self, block: &str, out: &mut Vec<Out>) {
        let (mut scan, from) = self.scan.take().unwrap_or_else(|| (Scan::new(self.format), self.body(block)));
        let mut seen = Vec::new();
        scan.push(block.get(from..).unwrap_or_default(), &mut seen);
        for seen in seen {
            out.push(Out::Live(match seen {
                Seen::Begin(name) => LivePiece::Begin { id: self.new_id(), name },
                Seen::Arguments(text) => LivePiece::Arguments(text),
            }));
        }
        self.scan = Some((scan, block.len().max(from)));
    }

    fn new_id(&mut self) -> String {
        let id = self.format.call_id(self.next_id);
        self.next_id += 1;
        id
    }

    /// Passes on a block: its calls, or its text if it holds none. The end marker, if any, is at `end`.
    fn close(&mut self, block: &str, end: usize, out: &mut Vec<Out>) {
        if self.is_live {
            self.read_live(&block[..end], out);
            let Some((scan, _)) = self.scan.take() else { return };
            if !scan.has_told() {
                return self.emit(block, out);
            }
            self.after_call = true;
            self.at_start = false;
            if scan.is_broken() {
                self.emit(&block[self.body(block) + scan.told..], out);
            }
            return;
        }
        match read_calls(self.format, &block[self.body(&block[..end])..end], &self.declared) {
            Some(calls) => {
                for function in calls {
                    let call = ToolCall { id: self.new_id(), kind: "function".into(), function };
                    out.push(Out::Call(call));
                }
                self.after_call = true;
                self.at_start = false;
            }
            None => self.emit(block, out),
        }
    }
}

fn push_text(out: &mut Vec<Out>, text: &str) {
    match out.last_mut() {
        _ if text.is_empty() => {}
        Some(Out::Live(LivePiece::Text(last))) => last.push_str(text),
        _ => out.push(Out::Live(LivePiece::Text(text.to_string()))),
    }
}

/// Length of the longest end of `text` that is a proper beginning of `marker`.
pub(crate) fn overlap(text: &str, marker: &str) -> usize {
    (1..marker.len()).rev().find(|&n| marker.is_char_boundary(n) && text.ends_with(&marker[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FORMATS: [ToolFormat; 7] = [
        ToolFormat::Qwen3Coder,
        ToolFormat::Glm,
        ToolFormat::InternLm2,
        ToolFormat::Hermes,
        ToolFormat::Llama3,
        ToolFormat::Mistral,
        ToolFormat::None,
    ];

    /// Text and calls, as one line each: calls as `name(arguments)`.
    fn live_lines(format: ToolFormat, pieces: &[&str]) -> Vec<String> {
        let mut splitter = LiveSplitter::new(format, 0);
        let mut all: Vec<LivePiece> = pieces.iter().flat_map(|p| splitter.push(p)).collect();
        all.extend(splitter.finish());
        let mut lines: Vec<String> = Vec::new();
        let mut in_call = false;
        for piece in all {
            match (piece, lines.last_mut()) {
                (LivePiece::Text(t), Some(last)) if !in_call => last.push_str(&t),
                (LivePiece::Text(t), _) => {
                    lines.push(t);
                    in_call = false;
                }
                (LivePiece::Begin { name, .. }, _) => {
                    lines.push(format!("{name}:"));
                    in_call = true;
                }
                (LivePiece::Arguments(t), Some(last)) => last.push_str(&t),
                (LivePiece::Arguments(_), None) => panic!("arguments of no call"),
            }
        }
        lines
    }

    #[track_caller]
    fn check(format: ToolFormat, text: &str, lines: &[&str]) {
        assert_eq!(live_lines(format, &[text]), lines);
        let chars: Vec<String> = text.chars().map(String::from).collect();
        assert_eq!(live_lines(format, &chars.iter().map(String::as_str).collect::<Vec<_>>()), lines);
    }

    #[test]
    fn arguments_stream_as_written() {
        let intern = ToolFormat::InternLm2;
        check(
            intern,
            "Hm.<|action_start|><|plugin|>\n{\"name\": \"a\", \"parameters\": {\"x\": \"}\\\"<\"}}<|action_end|>\n",
            &["Hm.", "a:{\"x\": \"}\\\"<\"}"],
        );
        check(
            intern,
            "<|action_start|><|plugin|>{\"parameters\": {\"x\": [1]}, \"name\": \"a\"}<|action_end|>",
            &["a:{\"x\": [1]}"],
        );
        check(intern, "<|action_start|><|plugin|>{\"name\":\"a\"}<|action_end|>b", &["a:{}", "b"]);
        check(
            ToolFormat::Hermes,
            "x\n<tool_call>\n{\"name\": \"a\", \"arguments\": \"{\\\"y\\\":2}\"}\n</tool_call>\n<tool_call>{\"name\":\"b\",\"arguments\":null}</tool_call>",
            &["x", "a:{\"y\":2}", "b:{}"],
        );
        check(
            ToolFormat::Llama3,
            "{\"type\": \"function\", \"name\": \"a\", \"parameters\": {}}; {\"name\":\"b\",\"parameters\":{\"k\":1}}<|eot_id|>",
            &["a:{}", "b:{\"k\":1}"],
        );
        check(
            ToolFormat::Mistral,
            "[TOOL_CALLS][{\"name\": \"a\", \"arguments\": {}}, {\"name\": \"b\", \"arguments\": {\"z\": [2]}}]</s>",
            &["a:{}", "b:{\"z\": [2]}"],
        );
        check(
            ToolFormat::Mistral,
            "[TOOL_CALLS]a[ARGS]{\"x\":1}[TOOL_CALLS]b[CALL_ID]123[ARGS]{}",
            &["a:{\"x\":1}", "b:{}"],
        );
    }

    #[test]
    fn what_goes_wrong_is_not_lost() {
        let intern = ToolFormat::InternLm2;
        // Nothing was passed on: the block is text.
        for text in [
            "a<|action_start|><|plugin|>{\"name\":\"a\", oops<|action_end|>b",
            "<|action_start|><|plugin|>{\"parameters\":{}}<|action_end|>",
            "<|action_start|><|plugin|>{\"name\":\"a\",\"parameters\":[1]}<|action_end|>",
            "<|action_start|><|plugin|>",
        ] {
            check(intern, text, &[text]);
        }
        check(ToolFormat::Llama3, "{\"answer\": 4}", &["{\"answer\": 4}"]);
        // The arguments break off.
        check(
            intern,
            "<|action_start|><|plugin|>{\"name\":\"a\",\"parameters\":{\"x\": \"y",
            &["a:{\"x\": \"y"],
        );
        // Something else follows a call in its block.
        check(
            intern,
            "<|action_start|><|plugin|>{\"name\":\"a\",\"parameters\":{}} but<|action_end|>",
            &["a:{}", " but<|action_end|>"],
        );
    }

    const PARTS: [&str; 20] = [
        "<function=f>",
        "<parameter=x>1</parameter>",
        "</function>",
        "<arg_key>x</arg_key><arg_value>1</arg_value>",
        "<|action_start|>",
        "<|plugin|>",
        "<|action_end|>",
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        "{\"name\":\"f\",\"arguments\":{\"é\":1}}",
        "{\"name\":",
        "\n",
        " ",
        "héllo",
        "<",
        "[",
        "<|",
        "{",
    ];

    proptest! {
        #[test]
        fn any_cut_gives_the_same_pieces(
            parts in prop::collection::vec(0..PARTS.len(), 0..12),
            cuts in prop::collection::vec(1usize..7, 1..12),
        ) {
            let text: String = parts.iter().map(|&i| PARTS[i]).collect();
            for format in FORMATS {
                let join = |pieces: Vec<Piece>| {
                    let mut out: Vec<Piece> = Vec::new();
                    for piece in pieces {
                        match (piece, out.last_mut()) {
                            (Piece::Text(more), Some(Piece::Text(text))) => text.push_str(&more),
                            (piece, _) => out.push(piece),
                        }
                    }
                    out
                };
                let mut once = ToolSplitter::new(format, 3);
                let mut whole = once.push(&text);
                whole.extend(once.finish());
                let mut splitter = ToolSplitter::new(format, 3);
                let mut pieces = Vec::new();
                let chars: Vec<char> = text.chars().collect();
                let mut cut: Vec<String> = Vec::new();
                let mut at = 0;
                for &n in cuts.iter().cycle() {
                    if at >= chars.len() { break; }
                    let end = (at + n).min(chars.len());
                    cut.push(chars[at..end].iter().collect());
                    pieces.extend(splitter.push(&cut[cut.len() - 1]));
                    at = end;
                }
                pieces.extend(splitter.finish());
                prop_assert_eq!(join(pieces), join(whole), "{:?} {:?}", format, text);
                let cut: Vec<&str> = cut.iter().map(String::as_str).collect();
                prop_assert_eq!(live_lines(format, &cut), live_lines(format, &[&text]), "{:?} {:?}", format, text);
            }
        }
    }
}
