//! Conversations: JSONL of OpenAI `messages` (+ `tools`), and readers for the
//! other shapes the field uses.
//!
//! [`open`] tells the shape of each record by its keys; `conversation/shapes.rs` turns
//! every shape into [`Conversation`]. Preference pairs keep their two answers apart,
//! see [`open_preferences`].

mod shapes;

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::atomic::AtomicFile;
use crate::records::{self, Record};
use crate::{Error, Result};

/// One message of a conversation, in OpenAI's form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool` (or a template's own, e.g. `environment`).
    pub role: String,
    /// Text; empty when the assistant only calls tools. A list of text parts is joined on reading.
    #[serde(default, deserialize_with = "text_or_parts")]
    pub content: String,
    /// Speaker or tool name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Calls the assistant makes.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call a `tool` message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Fields we do not interpret but templates may.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, Value>,
}

impl Message {
    /// A message with just a role and text.
    #[must_use]
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_string(), content: content.into(), ..Self::default() }
    }
}

/// One call of a tool by the assistant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Identifies the call within the conversation.
    #[serde(default)]
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// What is called.
    pub function: FunctionCall,
}

/// A function's name and its arguments as a JSON object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FunctionCall {
    /// The tool's name.
    pub name: String,
    /// Arguments as an object; a JSON string (OpenAI's wire form) is parsed on reading.
    #[serde(deserialize_with = "object_or_json_string")]
    pub arguments: Value,
}

/// A whole conversation with the tools declared for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    /// In order.
    pub messages: Vec<Message>,
    /// Tool declarations in OpenAI's form; a JSON string is parsed on reading.
    #[serde(default, deserialize_with = "tools_or_json_string", skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<Value>,
}

/// A prompt with a better and a worse answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Preference {
    /// What both answers answer.
    pub prompt: Conversation,
    /// The preferred continuation.
    pub chosen: Vec<Message>,
    /// The other one.
    pub rejected: Vec<Message>,
}

/// Reads conversations from a `.jsonl` or `.json` file (also `.gz`, `.zst`).
///
/// Shapes: OpenAI `messages`, a bare list of messages, ShareGPT `conversations`, XTuner
/// `conversation`, Alpaca `instruction` (or self-instruct's `instances`), and `prompt` with a
/// `completion` or `question` with an `answer`. Images, audio and video are refused.
pub fn open(path: &Path) -> Result<Vec<Conversation>> {
    Ok(read(path, shapes::conversations)?.into_iter().flatten().collect())
}

/// Reads preference pairs: `chosen` and `rejected` beside a prompt in any of [`open`]'s shapes,
/// or (TRL's implicit prompt) as two whole lists of messages with a common start.
pub fn open_preferences(path: &Path) -> Result<Vec<Preference>> {
    read(path, shapes::preference)
}

fn read<T>(
    path: &Path,
    convert: impl Fn(Value) -> std::result::Result<T, shapes::Mismatch>,
) -> Result<Vec<T>> {
    let convert_one = |record: Result<Record>| {
        let record = record?;
        convert(record.parse(path)?).map_err(|mismatch| mismatch.at(path, record.line))
    };
    records::open(path)?.map(convert_one).collect()
}

/// Writes one OpenAI-shaped conversation per line, all or nothing; their number.
pub fn write_jsonl<'a>(
    path: &Path,
    conversations: impl IntoIterator<Item = &'a Conversation>,
) -> Result<u64> {
    let mut file = AtomicFile::create(path)?;
    let mut count = 0;
    let mut line = Vec::new();
    for conversation in conversations {
        line.clear();
        serde_json::to_writer(&mut line, conversation).map_err(|e| Error::io(path, e.into()))?;
        line.push(b'\n');
        file.write_all(&line).map_err(|e| Error::io(path, e))?;
        count += 1;
    }
    file.commit()?;
    Ok(count)
}

fn function() -> String {
    "function".to_string()
}

fn null_as_empty<'de, T, D>(d: D) -> std::result::Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

fn text_or_parts<'de, D: serde::Deserializer<'de>>(d: D) -> std::result::Result<String, D::Error> {
    shapes::text(Value::deserialize(d)?).map_err(serde::de::Error::custom)
}

fn tools_or_json_string<'de, D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Vec<Value>, D::Error> {
    shapes::tools(Value::deserialize(d)?).map_err(serde::de::Error::custom)
}

fn object_or_json_string<'de, D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Value, D::Error> {
    match Value::deserialize(d)? {
        Value::String(s) if s.trim().is_empty() => Ok(Value::Object(Default::default())),
        Value::String(s) => serde_json::from_str(&s).map_err(serde::de::Error::custom),
        value => Ok(value),
    }
}
