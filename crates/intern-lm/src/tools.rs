//! Tool calls in a model's own text format, to and from OpenAI's form.
//!
//! Models write calls as text between markers of their own. [`parse`] takes a
//! finished answer apart, [`ToolSplitter`] does so while it streams, call by call,
//! [`LiveSplitter`] passes on the arguments too as they are written ([`scan`]), and
//! [`render`] writes calls back. `parse` is the splitter fed once, so both
//! always agree. What does not parse as a call stays in the text: nothing a
//! model wrote is ever dropped. [`grammar`] makes a model call.

pub mod grammar;
mod scan;
mod splitter;
mod tagged;

use intern_format::conversation::{FunctionCall, ToolCall};
use serde_json::{Map, Value, json};
use tagged::Declared;

pub(crate) use splitter::overlap;
pub use splitter::{LivePiece, LiveSplitter, Piece, ToolSplitter};

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
    /// Qwen3-Coder: `<tool_call>\n<function=…>\n<parameter=…>\n…\n</parameter>\n</function>\n</tool_call>`.
    Qwen3Coder,
    /// GLM: `<tool_call>…\n<arg_key>…</arg_key>\n<arg_value>…</arg_value>\n</tool_call>`.
    Glm,
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
        } else if has("<arg_key>") && has("<tool_call>") {
            Self::Glm
        } else if has("<function=") || has("<arg_key>") {
            // Others have tags of their own.
            let is_known = has("<tool_call>") && has("<parameter=");
            if is_known { Self::Qwen3Coder } else { Self::None }
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
        let also: &[&str] = match self {
            Self::Mistral => &["[ARGS]"],
            Self::Glm => &["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
            _ => &[],
        };
        self.starts().iter().copied().chain(self.end()).chain(also.iter().copied()).collect()
    }

    /// Text that opens a block of calls.
    fn starts(self) -> &'static [&'static str] {
        match self {
            Self::InternLm2 => &["<|action_start|><|plugin|>"],
            Self::Hermes | Self::Qwen3Coder | Self::Glm => &["<tool_call>"],
            Self::Llama3 => &["<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]"],
            Self::None => &[],
        }
    }

    /// Text that closes a block; without one, a block ends with the answer.
    fn end(self) -> Option<&'static str> {
        match self {
            Self::InternLm2 => Some("<|action_end|>"),
            Self::Hermes | Self::Qwen3Coder | Self::Glm => Some("</tool_call>"),
            Self::Llama3 | Self::Mistral | Self::None => None,
        }
    }

    /// The key of a call's arguments, where a call is an object.
    fn arguments_key(self) -> &'static str {
        match self {
            Self::InternLm2 | Self::Llama3 => "parameters",
            _ => "arguments",
        }
    }

    /// The id of the `n`-th call of a conversation; Mistral's templates want nine characters.
    fn call_id(self, n: usize) -> String {
        match self {
            Self::Mistral => format!("call{n:05}"),
            _ => format!("call_{n}"),
        }
    }

    /// Whether white space before a block belongs to the block: the template writes it there.
    fn owns_space_before(self) -> bool {
        self == Self::Hermes || self.is_tagged()
    }

    /// Whether arguments are tags, which become JSON only once a call is complete.
    fn is_tagged(self) -> bool {
        matches!(self, Self::Qwen3Coder | Self::Glm)
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
    let object = |c: &ToolCall| {
        let mut call = Map::new();
        call.insert("name".into(), c.function.name.clone().into());
        call.insert(format.arguments_key().into(), c.function.arguments.clone());
        Value::Object(call)
    };
    match format {
        ToolFormat::InternLm2 => {
            calls.iter().map(|c| format!("<|action_start|><|plugin|>\n{}<|action_end|>", object(c))).collect()
        }
        ToolFormat::Hermes => calls
            .iter()
            .map(|c| format!("<tool_call>\n{}\n</tool_call>", object(c)))
            .collect::<Vec<_>>()
            .join("\n"),
        ToolFormat::Llama3 => calls.iter().map(|c| object(c).to_string()).collect::<Vec<_>>().join("; "),
        ToolFormat::Mistral => {
            format!("[TOOL_CALLS]{}", json!(calls.iter().map(object).collect::<Vec<_>>()))
        }
        ToolFormat::Qwen3Coder | ToolFormat::Glm => calls
            .iter()
            .map(|c| format!("<tool_call>{}</tool_call>", tagged::render(format, &c.function)))
            .collect::<Vec<_>>()
            .join("\n"),
        ToolFormat::None => String::new(),
    }
}

/// Number of calls in earlier messages: the `first_id` of the next answer.
#[must_use]
pub fn count_calls(messages: &[intern_format::conversation::Message]) -> usize {
    messages.iter().map(|m| m.tool_calls.len()).sum()
}

/// Reads the calls of one block; `None` unless all of it makes sense.
fn read_calls(format: ToolFormat, body: &str, declared: &Declared) -> Option<Vec<FunctionCall>> {
    if format.is_tagged() {
        return tagged::read(format, body, declared);
    }
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

    /// Checks the text and the calls (`name arguments`) of an answer.
    #[track_caller]
    fn check(format: ToolFormat, text: &str, content: &str, calls: &[&str]) {
        let (got, found) = parse(format, text);
        let found: Vec<String> =
            found.iter().map(|c| format!("{} {} {}", c.id, c.function.name, c.function.arguments)).collect();
        assert_eq!(got, content);
        let calls: Vec<String> =
            calls.iter().enumerate().map(|(i, c)| format!("{} {c}", format.call_id(i))).collect();
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
        for format in [
            ToolFormat::InternLm2,
            ToolFormat::Hermes,
            ToolFormat::Llama3,
            ToolFormat::Mistral,
            ToolFormat::Qwen3Coder,
            ToolFormat::Glm,
        ] {
            let (text, again) = parse(format, &render(format, &calls));
            let functions = |calls: &[ToolCall]| -> Vec<FunctionCall> {
                calls.iter().map(|c| c.function.clone()).collect()
            };
            assert_eq!((text.as_str(), functions(&again)), ("", functions(&calls)), "{format:?}");
        }
    }
}
