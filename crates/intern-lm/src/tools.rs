//! Tool calls in a model's own text format, to and from OpenAI's form.
//!
//! Models write calls as text between markers of their own. [`parse`] takes a
//! finished answer apart, [`ToolSplitter`] does so while it streams, and
//! [`render`] writes calls back. `parse` is the splitter fed once, so both
//! always agree. What does not parse as a call stays in the text: nothing a
//! model wrote is ever dropped.

use intern_format::conversation::{FunctionCall, ToolCall};
use serde_json::{Map, Value, json};

/// How a model writes tool calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<|action_start|><|plugin|>\n{"name":…,"parameters":{…}}<|action_end|>`.
    InternLm2,
    /// Hermes and Qwen: `<tool_call>\n{"name":…,"arguments":{…}}\n</tool_call>`.
    Hermes,
    /// Llama 3: a bare `{"name":…,"parameters":{…}}`, optionally after `<|python_tag|>`.
    Llama3,
    /// Mistral: `[TOOL_CALLS][{"name":…,"arguments":{…}}]` or `[TOOL_CALLS]name[ARGS]{…}`.
    Mistral,
    /// The model has no tool format; text is only text.
    #[default]
    None,
}

/// Text that may follow the last call of an answer and means nothing there.
const END_TOKENS: [&str; 5] = ["<|im_end|>", "<|eom_id|>", "<|eot_id|>", "</s>", "<|endoftext|>"];

impl ToolFormat {
    /// Recognizes the format by the markers in a chat template.
    #[must_use]
    pub fn detect(chat_template: &str) -> Self {
        let has = |marker| chat_template.contains(marker);
        if has("<|plugin|>") {
            Self::InternLm2
        } else if has("<tool_call>") {
            Self::Hermes
        } else if has("[TOOL_CALLS]") {
            Self::Mistral
        } else if has("<|python_tag|>") || (has("ipython") && has("parameters")) {
            Self::Llama3
        } else {
            Self::None
        }
    }

    /// Every piece of text that marks calls; such tokens must stay in text that is to be parsed.
    #[must_use]
    pub fn markers(self) -> Vec<&'static str> {
        let also: &[&str] = if self == Self::Mistral { &["[ARGS]"] } else { &[] };
        self.starts().iter().copied().chain(self.end()).chain(also.iter().copied()).collect()
    }

    /// Text that opens a block of calls.
    fn starts(self) -> &'static [&'static str] {
        match self {
            Self::InternLm2 => &["<|action_start|><|plugin|>"],
            Self::Hermes => &["<tool_call>"],
            Self::Llama3 => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]"],
            Self::None => &[],
        }
    }

    /// Text that closes a block; without one, a block ends with the answer.
    fn end(self) -> Option<&'static str> {
        match self {
            Self::InternLm2 => Some("<|action_end|>"),
            Self::Hermes => Some("</tool_call>"),
            Self::Llama3 | Self::Mistral | Self::None => None,
        }
    }

    /// Whether white space before a block belongs to the block: the template writes it there.
    fn owns_space_before(self) -> bool {
        self == Self::Hermes
    }
}

/// What the splitter made of the text so far.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Ordinary text.
    Text(String),
    /// One complete call.
    Call(ToolCall),
}

/// Separates calls from text while an answer streams in.
///
/// Text is passed on at once, except what may turn out to belong to a call:
/// that is held back until it is decided. The pieces do not depend on how the
/// text was cut (adjacent [`Piece::Text`]s joined).
#[derive(Debug)]
pub struct ToolSplitter {
    format: ToolFormat,
    next_id: usize,
    /// Text not yet passed on.
    held: String,
    /// `held` begins with a block.
    inside: bool,
    /// No text but white space seen yet.
    at_start: bool,
    /// Only white space seen since the last call.
    after_call: bool,
}

impl ToolSplitter {
    /// Starts an answer whose first call gets the id `call_{first_id}`.
    ///
    /// Count the calls earlier in the conversation, so that ids stay unique in it.
    #[must_use]
    pub fn new(format: ToolFormat, first_id: usize) -> Self {
        Self {
            format,
            next_id: first_id,
            held: String::new(),
            inside: false,
            at_start: true,
            after_call: false,
        }
    }

    /// Takes the next piece of the answer.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut out = Vec::new();
        if self.format == ToolFormat::None {
            push_text(&mut out, text);
            return out;
        }
        self.held.push_str(text);
        while self.step(&mut out) {}
        out
    }

    /// Ends the answer; an unclosed block still counts if it parses.
    pub fn finish(mut self) -> Vec<Piece> {
        let mut out = Vec::new();
        if self.inside {
            let block = std::mem::take(&mut self.held);
            self.close(&block, &block, &mut out);
        } else if !(self.after_call && self.held.trim().is_empty()) {
            push_text(&mut out, &self.held);
        }
        out
    }

    /// Decides about one more part of `held`; false when more text is needed.
    fn step(&mut self, out: &mut Vec<Piece>) -> bool {
        if self.inside {
            let Some(end) = self.format.end() else { return false };
            let Some(at) = self.held.find(end) else { return false };
            let block: String = self.held.drain(..at + end.len()).collect();
            self.inside = false;
            self.close(&block, &block[..at], out);
            return true;
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
    fn emit(&mut self, text: &str, out: &mut Vec<Piece>) {
        if !text.trim().is_empty() {
            self.at_start = false;
            self.after_call = false;
        }
        push_text(out, text);
    }

    /// Passes on a block: its calls, or its text if it holds none. `body` is the block without its end marker.
    fn close(&mut self, block: &str, body: &str, out: &mut Vec<Piece>) {
        let body = body.trim_start();
        let body = self.format.starts().iter().find_map(|s| body.strip_prefix(s)).unwrap_or(body);
        match read_calls(self.format, body) {
            Some(calls) => {
                for function in calls {
                    let id = format!("call_{}", self.next_id);
                    self.next_id += 1;
                    out.push(Piece::Call(ToolCall { id, kind: "function".into(), function }));
                }
                self.after_call = true;
                self.at_start = false;
            }
            None => self.emit(block, out),
        }
    }
}

/// Splits a finished answer into its text and its calls, with ids `call_0`, `call_1`, ….
#[must_use]
pub fn parse(format: ToolFormat, text: &str) -> (String, Vec<ToolCall>) {
    parse_from(format, text, 0)
}

/// As [`parse`], with ids from `call_{first_id}` on.
#[must_use]
pub fn parse_from(format: ToolFormat, text: &str, first_id: usize) -> (String, Vec<ToolCall>) {
    let mut splitter = ToolSplitter::new(format, first_id);
    let mut pieces = splitter.push(text);
    pieces.extend(splitter.finish());
    let (mut content, mut calls) = (String::new(), Vec::new());
    for piece in pieces {
        match piece {
            Piece::Text(t) => content.push_str(&t),
            Piece::Call(c) => calls.push(c),
        }
    }
    (content, calls)
}

/// Writes calls the way the model would.
#[must_use]
pub fn render(format: ToolFormat, calls: &[ToolCall]) -> String {
    let object = |c: &ToolCall, key: &str| {
        let mut call = Map::new();
        call.insert("name".into(), c.function.name.clone().into());
        call.insert(key.into(), c.function.arguments.clone());
        Value::Object(call)
    };
    match format {
        ToolFormat::InternLm2 => calls
            .iter()
            .map(|c| format!("<|action_start|><|plugin|>\n{}<|action_end|>", object(c, "parameters")))
            .collect(),
        ToolFormat::Hermes => calls
            .iter()
            .map(|c| format!("<tool_call>\n{}\n</tool_call>", object(c, "arguments")))
            .collect::<Vec<_>>()
            .join("\n"),
        ToolFormat::Llama3 => {
            calls.iter().map(|c| object(c, "parameters").to_string()).collect::<Vec<_>>().join("; ")
        }
        ToolFormat::Mistral => {
            format!("[TOOL_CALLS]{}", json!(calls.iter().map(|c| object(c, "arguments")).collect::<Vec<_>>()))
        }
        ToolFormat::None => String::new(),
    }
}

/// Number of calls in earlier messages: the `first_id` of the next answer.
#[must_use]
pub fn count_calls(messages: &[intern_format::conversation::Message]) -> usize {
    messages.iter().map(|m| m.tool_calls.len()).sum()
}

fn push_text(out: &mut Vec<Piece>, text: &str) {
    match out.last_mut() {
        _ if text.is_empty() => {}
        Some(Piece::Text(last)) => last.push_str(text),
        _ => out.push(Piece::Text(text.to_string())),
    }
}

/// Length of the longest end of `text` that is a proper beginning of `marker`.
fn overlap(text: &str, marker: &str) -> usize {
    (1..marker.len()).rev().find(|&n| marker.is_char_boundary(n) && text.ends_with(&marker[..n])).unwrap_or(0)
}

/// Reads the calls of one block; `None` unless all of it makes sense.
fn read_calls(format: ToolFormat, body: &str) -> Option<Vec<FunctionCall>> {
    let mut rest = body;
    let mut calls = Vec::new();
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ';' || c == ',');
        if let Some(end) = END_TOKENS.iter().find_map(|t| rest.strip_prefix(t)) {
            rest = end;
            continue;
        }
        if let Some(more) = format.starts().iter().find_map(|s| rest.strip_prefix(s)) {
            rest = more;
            continue;
        }
        if rest.is_empty() {
            return if calls.is_empty() { None } else { Some(calls) };
        }
        if format == ToolFormat::Mistral && !rest.starts_with(['[', '{']) {
            let at = rest.find(['{', '['])?;
            let name = rest[..at].trim();
            let arguments = rest[at..].strip_prefix("[ARGS]").unwrap_or(&rest[at..]);
            let (value, used) = first_value(arguments)?;
            calls.push(call(name, value)?);
            rest = &arguments[used..];
            continue;
        }
        let (value, used) = first_value(rest)?;
        rest = &rest[used..];
        match value {
            Value::Array(many) => {
                for one in many {
                    calls.push(call_object(one)?);
                }
            }
            one => calls.push(call_object(one)?),
        }
    }
}

/// The JSON value at the beginning of `text`, and its length in bytes.
fn first_value(text: &str) -> Option<(Value, usize)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let value = values.next()?.ok()?;
    Some((value, values.byte_offset()))
}

fn call_object(value: Value) -> Option<FunctionCall> {
    let Value::Object(mut object) = value else { return None };
    let Some(Value::String(name)) = object.remove("name") else { return None };
    let arguments = object.remove("parameters").or_else(|| object.remove("arguments"));
    call(&name, arguments.unwrap_or_else(|| json!({})))
}

fn call(name: &str, arguments: Value) -> Option<FunctionCall> {
    let arguments = match arguments {
        Value::Null => json!({}),
        Value::String(text) => serde_json::from_str(&text).ok()?,
        other => other,
    };
    (!name.is_empty() && arguments.is_object()).then(|| FunctionCall { name: name.to_string(), arguments })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Checks the text and the calls (`name arguments`) of an answer.
    #[track_caller]
    fn check(format: ToolFormat, text: &str, content: &str, calls: &[&str]) {
        let (got, found) = parse(format, text);
        let found: Vec<String> =
            found.iter().map(|c| format!("{} {} {}", c.id, c.function.name, c.function.arguments)).collect();
        assert_eq!(got, content);
        let calls: Vec<String> = calls.iter().enumerate().map(|(i, c)| format!("call_{i} {c}")).collect();
        assert_eq!(found, calls);
    }

    #[test]
    fn internlm2_calls() {
        let f = ToolFormat::InternLm2;
        check(f, "just text", "just text", &[]);
        check(
            f,
            "I add.\n<|action_start|><|plugin|>\n{\"name\": \"calc\", \"parameters\": {\"e\": \"1+1\"}}<|action_end|>\n",
            "I add.\n",
            &[r#"calc {"e":"1+1"}"#],
        );
        check(
            f,
            "<|action_start|><|plugin|>{\"name\":\"a\",\"arguments\":\"{\\\"x\\\":1}\"}",
            "",
            &[r#"a {"x":1}"#],
        );
        check(f, "<|action_start|><|plugin|>\n{\"name\":\"a\"}<|im_end|>", "", &["a {}"]);
        let two = "<|action_start|><|plugin|>{\"name\":\"a\"}<|action_end|>\n<|action_start|><|plugin|>{\"name\":\"b\"}<|action_end|>";
        check(f, two, "", &["a {}", "b {}"]);
        check(
            f,
            "<|action_start|><|plugin|>{\"name\":\"a\"}<|action_end|> and so on",
            " and so on",
            &["a {}"],
        );
    }

    #[test]
    fn what_does_not_parse_stays_text() {
        let f = ToolFormat::InternLm2;
        for text in [
            "a<|action_start|><|plugin|>{\"name\":\"a\", oops<|action_end|>b",
            "<|action_start|><|plugin|>{\"parameters\":{}}<|action_end|>",
            "<|action_start|><|plugin|>{\"name\":\"a\",\"parameters\":[1]}<|action_end|>",
            "<|action_start|><|plugin|>",
            "<|action_start|><|interpreter|>\n```python\n1\n```<|action_end|>",
            "<|action_sta",
        ] {
            check(f, text, text, &[]);
        }
        check(
            ToolFormat::Hermes,
            " x \n<tool_call>\n{\n</tool_call> \n",
            " x \n<tool_call>\n{\n</tool_call> \n",
            &[],
        );
        check(ToolFormat::None, "<tool_call>{}</tool_call>", "<tool_call>{}</tool_call>", &[]);
    }

    #[test]
    fn the_other_formats() {
        let h = "Let me see.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": 1}}\n</tool_call>\n<tool_call>\n{\"name\":\"b\"}\n</tool_call>";
        check(ToolFormat::Hermes, h, "Let me see.", &[r#"a {"x":1}"#, "b {}"]);
        check(
            ToolFormat::Llama3,
            " {\"name\":\"a\",\"parameters\":{\"x\":1}}; {\"name\":\"b\"}<|eot_id|>",
            "",
            &[r#"a {"x":1}"#, "b {}"],
        );
        check(ToolFormat::Llama3, "hm<|python_tag|>{\"name\":\"a\"}", "hm", &["a {}"]);
        check(ToolFormat::Llama3, "{\"answer\": 4}", "{\"answer\": 4}", &[]);
        check(
            ToolFormat::Mistral,
            "[TOOL_CALLS][{\"name\":\"a\",\"arguments\":{\"x\":1}},{\"name\":\"b\"}]",
            "",
            &[r#"a {"x":1}"#, "b {}"],
        );
        check(
            ToolFormat::Mistral,
            "[TOOL_CALLS]a[ARGS]{\"x\":1}[TOOL_CALLS]b{}",
            "",
            &[r#"a {"x":1}"#, "b {}"],
        );
    }

    #[test]
    fn formats_are_detected_and_round_trip() {
        assert_eq!(ToolFormat::detect("… <|action_start|><|plugin|> …"), ToolFormat::InternLm2);
        assert_eq!(ToolFormat::detect("… <tool_call> …"), ToolFormat::Hermes);
        assert_eq!(ToolFormat::detect("{{ messages }}"), ToolFormat::None);
        let (_, calls) = parse(
            ToolFormat::Mistral,
            "[TOOL_CALLS][{\"name\":\"a\",\"arguments\":{\"x\":\"é\"}},{\"name\":\"b\"}]",
        );
        for format in [ToolFormat::InternLm2, ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral] {
            assert_eq!(parse(format, &render(format, &calls)), (String::new(), calls.clone()), "{format:?}");
        }
    }

    const PARTS: [&str; 16] = [
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
            for format in [ToolFormat::InternLm2, ToolFormat::Hermes, ToolFormat::Llama3, ToolFormat::Mistral, ToolFormat::None] {
                let join = |pieces: Vec<Piece>| {
                    let mut out = Vec::new();
                    for piece in pieces {
                        match piece {
                            Piece::Text(t) => push_text(&mut out, &t),
                            call => out.push(call),
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
                let mut at = 0;
                for &n in cuts.iter().cycle() {
                    if at >= chars.len() { break; }
                    let end = (at + n).min(chars.len());
                    pieces.extend(splitter.push(&chars[at..end].iter().collect::<String>()));
                    at = end;
                }
                pieces.extend(splitter.finish());
                prop_assert_eq!(join(pieces), join(whole), "{:?} {:?}", format, text);
            }
        }
    }
}
