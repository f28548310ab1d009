//! From each shape of the field to OpenAI's: one small function per shape.
//!
//! Nothing is dropped in silence: a part, role or field we cannot carry over is an
//! error that names it.

use std::collections::VecDeque;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Conversation, FunctionCall, Message, Preference, ToolCall};
use crate::Error;

/// What is wrong with a record, before its file and line are known.
#[derive(Debug)]
pub(super) struct Mismatch {
    /// Where in the record, e.g. `messages[2]`; empty for the record itself.
    place: String,
    expected: String,
    found: String,
    hint: Option<&'static str>,
}

type Result<T> = std::result::Result<T, Mismatch>;

impl Mismatch {
    fn new(place: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { place: place.into(), expected: expected.into(), found: found.into(), hint: None }
    }

    pub(super) fn at(self, path: &Path, line: usize) -> Error {
        let at = if self.place.is_empty() {
            format!("line {line}")
        } else {
            format!("line {line}, {}", self.place)
        };
        let error = Error::corrupt(path, at, self.expected, self.found);
        match self.hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

/// One record in any shape. Only self-instruct's several `instances` make several conversations.
pub(super) fn conversations(record: Value) -> Result<Vec<Conversation>> {
    match record {
        Value::Object(mut fields) => match fields.shift_remove("instances") {
            Some(Value::Array(instances)) if fields.contains_key("instruction") => instances
                .into_iter()
                .enumerate()
                .map(|(i, instance)| {
                    let Value::Object(instance) = instance else {
                        let place = format!("instances[{i}]");
                        return Err(Mismatch::new(
                            place,
                            "an object with `input` and `output`",
                            brief(&instance),
                        ));
                    };
                    let mut fields = fields.clone();
                    fields.extend(instance);
                    conversation(fields)
                })
                .collect(),
            Some(instances) => {
                fields.insert("instances".into(), instances);
                Ok(vec![conversation(fields)?])
            }
            None => Ok(vec![conversation(fields)?]),
        },
        Value::Array(messages) => Ok(vec![finish(openai(messages, "message")?, Vec::new())?]),
        other => Err(Mismatch::new("", "a conversation object", brief(&other))),
    }
}

fn conversation(mut fields: Map<String, Value>) -> Result<Conversation> {
    for key in ["images", "videos", "audios"] {
        if fields.get(key).and_then(Value::as_array).is_some_and(|list| !list.is_empty()) {
            return Err(Mismatch::new(key, "text only", "a list of files"));
        }
    }
    let tools = tools(fields.shift_remove("tools").unwrap_or(Value::Null))
        .map_err(|found| Mismatch::new("tools", "a list of tools, or one as JSON text", found))?;
    let messages = messages(&mut fields)?;
    finish(messages, tools)
}

fn finish(messages: Vec<Message>, tools: Vec<Value>) -> Result<Conversation> {
    if messages.is_empty() {
        return Err(Mismatch::new("", "at least one message", "none"));
    }
    Ok(Conversation { messages, tools })
}

/// The messages of an object, by the key that tells its shape.
fn messages(fields: &mut Map<String, Value>) -> Result<Vec<Message>> {
    let mut list = |key: &str| match fields.shift_remove(key) {
        Some(Value::Array(list)) => Ok(Some(list)),
        Some(other) => Err(Mismatch::new(key, "a list", brief(&other))),
        None => Ok(None),
    };
    if let Some(list) = list("messages")? {
        return with_system(
            fields,
            if is_sharegpt(&list) { sharegpt(list, "messages") } else { openai(list, "messages") }?,
        );
    }
    if let Some(list) = list("conversations")? {
        let turns =
            if is_sharegpt(&list) { sharegpt(list, "conversations") } else { openai(list, "conversations") }?;
        return with_system(fields, turns);
    }
    if let Some(list) = list("conversation")? {
        return xtuner(list);
    }
    if fields.contains_key("instruction") {
        return alpaca(fields);
    }
    if fields.contains_key("prompt") || fields.contains_key("question") {
        return prompt_completion(fields);
    }
    let keys: Vec<&str> = fields.keys().map(String::as_str).collect();
    Err(Mismatch {
        place: String::new(),
        expected: "`messages`, `conversations`, `conversation`, `instruction` or `prompt`".into(),
        found: if keys.is_empty() { "an empty object".into() } else { format!("fields {}", keys.join(", ")) },
        hint: Some("conversations are read in OpenAI, ShareGPT, XTuner and Alpaca form; see docs/formats.md"),
    })
}

/// A `system` field beside the turns becomes the first message.
fn with_system(fields: &mut Map<String, Value>, mut turns: Vec<Message>) -> Result<Vec<Message>> {
    if let Some(system) = fields.shift_remove("system") {
        let system = text(system).map_err(|found| Mismatch::new("system", "text", found))?;
        if !system.is_empty() {
            turns.insert(0, Message::new("system", system));
        }
    }
    Ok(turns)
}

fn is_sharegpt(list: &[Value]) -> bool {
    list.first().is_some_and(|turn| turn.get("from").is_some() && turn.get("role").is_none())
}

/// OpenAI: `{"role", "content", "tool_calls", …}`, also the older `function_call` and
/// LLaMA-Factory's parts `{"type": "reasoning" | "tool_call", "value"}`.
fn openai(list: Vec<Value>, place: &str) -> Result<Vec<Message>> {
    let mut messages = Vec::with_capacity(list.len());
    let mut calls = Calls::default();
    for (i, value) in list.into_iter().enumerate() {
        let place = format!("{place}[{i}]");
        let Value::Object(mut fields) = value else {
            return Err(Mismatch::new(place, "a message object", brief(&value)));
        };
        let new_calls = typed_parts(&mut fields, &place)?;
        if fields.get("role").and_then(Value::as_str) == Some("function") {
            fields.insert("role".into(), "tool".into());
        }
        let old_call = fields.shift_remove("function_call").filter(|call| !call.is_null());
        let mut message: Message = serde_json::from_value(Value::Object(fields)).map_err(|e| {
            Mismatch::new(place.clone(), "a message with `role` and `content`", e.to_string())
        })?;
        message.extra.retain(|_, value| !value.is_null());
        for call in new_calls.into_iter().chain(old_call) {
            let call = calls
                .make(call)
                .map_err(|found| Mismatch::new(&place, "a call `{name, arguments}`", found))?;
            message.tool_calls.push(call);
        }
        if message.role == "tool" && message.tool_call_id.is_none() {
            message.tool_call_id = calls.answered();
        }
        messages.push(message);
    }
    Ok(messages)
}

/// Takes parts other than text out of `content`: reasoning into `reasoning_content`, calls as values.
fn typed_parts(fields: &mut Map<String, Value>, place: &str) -> Result<Vec<Value>> {
    let Some(Value::Array(parts)) = fields.get_mut("content") else { return Ok(Vec::new()) };
    let mut calls = Vec::new();
    let mut reasoning = String::new();
    let mut kept = Vec::with_capacity(parts.len());
    for part in std::mem::take(parts) {
        let value =
            |part: &Value| part.get("value").or_else(|| part.get("text")).cloned().unwrap_or(Value::Null);
        match part.get("type").and_then(Value::as_str) {
            Some("reasoning") => match value(&part) {
                Value::String(text) => reasoning.push_str(&text),
                other => return Err(Mismatch::new(place, "text in the reasoning part", brief(&other))),
            },
            Some("tool_call") => {
                let call = parse_if_text(value(&part))
                    .map_err(|found| Mismatch::new(place, "JSON in the tool_call part", found))?;
                match call {
                    Value::Array(list) => calls.extend(list),
                    call => calls.push(call),
                }
            }
            _ => kept.push(part),
        }
    }
    *parts = kept;
    if !reasoning.is_empty() {
        fields.insert("reasoning_content".into(), reasoning.into());
    }
    Ok(calls)
}

/// ShareGPT: `{"from", "value"}` with LLaMA-Factory's `function_call` and `observation`.
fn sharegpt(list: Vec<Value>, place: &str) -> Result<Vec<Message>> {
    let mut messages = Vec::with_capacity(list.len());
    let mut calls = Calls::default();
    for (i, turn) in list.into_iter().enumerate() {
        let place = format!("{place}[{i}]");
        let mismatch = |expected: &str, found: String| Mismatch::new(&place, expected, found);
        let from = turn.get("from").and_then(Value::as_str).map(str::to_string);
        let Some(from) = from else {
            return Err(mismatch("a turn with `from` and `value`", brief(&turn)));
        };
        let value = match turn {
            Value::Object(mut turn) => turn.shift_remove("value").unwrap_or(Value::Null),
            _ => Value::Null,
        };
        let role = match from.as_str() {
            "human" | "user" => "user",
            "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
            "system" => "system",
            "observation" | "tool" | "function_response" | "tool_response" => "tool",
            "function_call" | "tool_call" => {
                let value = parse_if_text(value).map_err(|found| mismatch("a call as JSON", found))?;
                let list = match value {
                    Value::Array(list) => list,
                    one => vec![one],
                };
                let mut message = Message::new("assistant", "");
                for call in list {
                    let call =
                        calls.make(call).map_err(|found| mismatch("a call `{name, arguments}`", found))?;
                    message.tool_calls.push(call);
                }
                messages.push(message);
                continue;
            }
            other => {
                let expected = "from `human`, `gpt`, `system`, `function_call` or `observation`";
                return Err(mismatch(expected, format!("`{other}`")));
            }
        };
        // An observation may be JSON rather than text.
        let content = match value {
            Value::Object(_) | Value::Array(_) if role == "tool" => value.to_string(),
            value => text(value).map_err(|found| mismatch("text in `value`", found))?,
        };
        let mut message = Message::new(role, content);
        if role == "tool" {
            message.tool_call_id = calls.answered();
        }
        messages.push(message);
    }
    Ok(messages)
}

/// XTuner: turns of `{"system"?, "input", "output"}`; only the first may have a system text.
fn xtuner(list: Vec<Value>) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    for (i, turn) in list.into_iter().enumerate() {
        let place = format!("conversation[{i}]");
        let Value::Object(mut turn) = turn else {
            return Err(Mismatch::new(place, "a turn with `input` and `output`", brief(&turn)));
        };
        if !turn.contains_key("input") && !turn.contains_key("output") {
            let found = brief(&Value::Object(turn));
            return Err(Mismatch::new(place, "a turn with `input` and `output`", found));
        }
        for (key, role) in [("system", "system"), ("input", "user"), ("output", "assistant")] {
            push_text(&mut messages, &mut turn, key, role, &place)?;
        }
    }
    Ok(messages)
}

/// Alpaca: `instruction` and `input` become the question, `output` (or `response`) the answer;
/// also `system` and LLaMA-Factory's `history` of earlier pairs.
fn alpaca(fields: &mut Map<String, Value>) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    push_text(&mut messages, fields, "system", "system", "")?;
    match fields.shift_remove("history") {
        None | Some(Value::Null) => {}
        Some(Value::Array(pairs)) => {
            for (i, pair) in pairs.into_iter().enumerate() {
                match pair {
                    Value::Array(pair) if pair.len() == 2 => {
                        for (value, role) in pair.into_iter().zip(["user", "assistant"]) {
                            let place = format!("history[{i}]");
                            let content = text(value).map_err(|found| Mismatch::new(place, "text", found))?;
                            messages.push(Message::new(role, content));
                        }
                    }
                    other => {
                        let place = format!("history[{i}]");
                        return Err(Mismatch::new(place, "a pair of question and answer", brief(&other)));
                    }
                }
            }
        }
        Some(other) => return Err(Mismatch::new("history", "a list of pairs", brief(&other))),
    }
    let mut take = |key: &str| {
        text(fields.shift_remove(key).unwrap_or(Value::Null))
            .map_err(|found| Mismatch::new(key, "text", found))
    };
    let instruction = take("instruction")?;
    let input = match take("input")? {
        input if input.is_empty() => take("context")?,
        input => input,
    };
    let question = match (instruction.is_empty(), input.is_empty()) {
        (_, true) => instruction,
        (true, false) => input,
        (false, false) => format!("{instruction}\n{input}"),
    };
    messages.push(Message::new("user", question));
    for key in ["output", "response"] {
        if fields.contains_key(key) {
            push_text(&mut messages, fields, key, "assistant", "")?;
            break;
        }
    }
    Ok(messages)
}

/// TRL: `prompt` and `completion`, each text or messages; also `response`, and `question` with `answer`.
fn prompt_completion(fields: &mut Map<String, Value>) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    let answers = &["completion", "response", "answer", "std_answer"][..];
    for (keys, role) in [(&["prompt", "question"][..], "user"), (answers, "assistant")] {
        for key in keys {
            if let Some(value) = fields.shift_remove(*key) {
                messages.extend(turns(value, role, key)?);
                break;
            }
        }
    }
    Ok(messages)
}

/// Text of one role, one message in either form, or a list of messages.
fn turns(value: Value, role: &str, place: &str) -> Result<Vec<Message>> {
    match value {
        Value::String(content) => Ok(vec![Message::new(role, content)]),
        Value::Array(list) if is_sharegpt(&list) => sharegpt(list, place),
        Value::Array(list) => openai(list, place),
        Value::Object(_) if value.get("from").is_some() => sharegpt(vec![value], place),
        Value::Object(_) => openai(vec![value], place),
        other => Err(Mismatch::new(place, "text or messages", brief(&other))),
    }
}

/// A record with `chosen` and `rejected`.
pub(super) fn preference(record: Value) -> Result<Preference> {
    let Value::Object(mut fields) = record else {
        return Err(Mismatch::new("", "an object with `chosen` and `rejected`", brief(&record)));
    };
    let mut answer = |key: &str| {
        let value =
            fields.shift_remove(key).or_else(|| fields.shift_remove(format!("{key}_messages").as_str()));
        let Some(value) = value else {
            let keys: Vec<&str> = fields.keys().map(String::as_str).collect();
            return Err(Mismatch::new("", format!("a field `{key}`"), format!("fields {}", keys.join(", "))));
        };
        turns(value, "assistant", key)
    };
    let (mut chosen, mut rejected) = (answer("chosen")?, answer("rejected")?);
    let tools = tools(fields.shift_remove("tools").unwrap_or(Value::Null))
        .map_err(|found| Mismatch::new("tools", "a list of tools, or one as JSON text", found))?;
    let has_prompt = ["messages", "conversations", "conversation", "instruction", "prompt"]
        .iter()
        .any(|key| fields.contains_key(*key));
    let messages = if has_prompt {
        messages(&mut fields)?
    } else {
        let common = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
        // Two equal answers still leave one message each.
        let common = common.min(chosen.len().min(rejected.len()).saturating_sub(1));
        rejected.drain(..common);
        chosen.drain(..common).collect()
    };
    Ok(Preference { prompt: finish(messages, tools)?, chosen, rejected })
}

/// Makes tool calls with ids, and remembers which of them still wait for an answer.
#[derive(Default)]
struct Calls {
    made: usize,
    waiting: VecDeque<String>,
}

impl Calls {
    /// From `{"name", "arguments"}` or OpenAI's `{"function": {…}}`; the error says what was found.
    fn make(&mut self, value: Value) -> std::result::Result<ToolCall, String> {
        let value = match value {
            Value::Object(mut map) if map.contains_key("function") => {
                map.shift_remove("function").unwrap_or_default()
            }
            value => value,
        };
        let function: FunctionCall = serde_json::from_value(value).map_err(|e| e.to_string())?;
        self.made += 1;
        // Nine letters and digits, since Mistral's templates insist on that.
        let id = format!("call{:05}", self.made);
        self.waiting.push_back(id.clone());
        Ok(ToolCall { id, kind: super::function(), function })
    }

    /// The oldest call without an answer.
    fn answered(&mut self) -> Option<String> {
        self.waiting.pop_front()
    }
}

/// Moves a non-empty text field into a message.
fn push_text(
    messages: &mut Vec<Message>,
    fields: &mut Map<String, Value>,
    key: &str,
    role: &str,
    place: &str,
) -> Result<()> {
    let Some(value) = fields.shift_remove(key) else { return Ok(()) };
    let place = if place.is_empty() { key.to_string() } else { format!("{place}.{key}") };
    let content = text(value).map_err(|found| Mismatch::new(place, "text", found))?;
    // An empty system text means none; an empty question or answer is still a turn.
    if !(content.is_empty() && role == "system") {
        messages.push(Message::new(role, content));
    }
    Ok(())
}

/// Content as text: a string, null, or a list of text parts; the error says what was found.
pub(super) fn text(value: Value) -> std::result::Result<String, String> {
    match value {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Array(parts) => parts.into_iter().map(part).collect(),
        other => Err(brief(&other)),
    }
}

fn part(part: Value) -> std::result::Result<String, String> {
    match part {
        Value::String(text) => Ok(text),
        Value::Object(mut map) => {
            let kind = map.get("type").and_then(Value::as_str).unwrap_or("text").to_string();
            if !matches!(kind.as_str(), "text" | "input_text" | "output_text") {
                return Err(format!("a content part of type `{kind}`, but only text is read"));
            }
            match map.shift_remove("text").or_else(|| map.shift_remove("value")) {
                Some(Value::String(text)) => Ok(text),
                _ => Err("a text part without text".to_string()),
            }
        }
        other => Err(brief(&other)),
    }
}

/// Tools as a list, or as JSON text of one; bare declarations get OpenAI's wrapper.
pub(super) fn tools(value: Value) -> std::result::Result<Vec<Value>, String> {
    match parse_if_text(value)? {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => Ok(list.into_iter().map(wrap_tool).collect()),
        tool @ Value::Object(_) => Ok(vec![wrap_tool(tool)]),
        other => Err(brief(&other)),
    }
}

fn wrap_tool(tool: Value) -> Value {
    if tool.get("name").is_some()
        && tool.get("function").is_none()
        && tool.get("type").is_none_or(|t| t != "function")
    {
        return json!({ "type": "function", "function": tool });
    }
    tool
}

fn parse_if_text(value: Value) -> std::result::Result<Value, String> {
    match value {
        Value::String(text) if text.trim().is_empty() => Ok(Value::Null),
        Value::String(text) => {
            serde_json::from_str(&text).map_err(|e| format!("text that is not JSON ({e})"))
        }
        value => Ok(value),
    }
}

/// The start of a value, for messages.
fn brief(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
