//! Messages between the wire and [`Message`].

use intern_format::conversation::{Message, ToolCall};
use serde_json::{Value, json};

use super::Invalid;

/// Reads wire messages; arguments of tool calls may be JSON strings, content may be text parts.
/// `developer`, the newer name of `system`, becomes `system`, which is what templates know.
///
/// # Errors
/// Names the message at fault.
pub fn read_messages(messages: &[Value]) -> Result<Vec<Message>, Invalid> {
    if messages.is_empty() {
        return Err(Invalid::new("messages", "messages is empty\nhint: send at least one user message"));
    }
    messages.iter().enumerate().map(|(i, value)| read_message(value, &format!("messages[{i}]"))).collect()
}

fn read_message(value: &Value, at: &str) -> Result<Message, Invalid> {
    let mut value = value.clone();
    let Some(object) = value.as_object_mut() else {
        return Err(Invalid::new(at, format!("{at} must be an object with role and content")));
    };
    for key in ["content", "tool_calls", "name", "tool_call_id", "refusal", "audio", "function_call"] {
        if object.get(key).is_some_and(Value::is_null) {
            object.remove(key);
        }
    }
    if object.get("role").is_some_and(|role| role == "developer") {
        object.insert("role".into(), "system".into());
    }
    if let Some(content) = object.get("content").filter(|c| c.is_array()) {
        let text = read_text(content, &format!("{at}.content"))?;
        object.insert("content".into(), text.into());
    }
    let malformed = |e| Invalid::new(at, format!("{at} is malformed: {e}"));
    let message: Message = serde_json::from_value(value).map_err(malformed)?;
    if message.role.is_empty() {
        return Err(Invalid::new(at, format!("{at} has an empty role")));
    }
    Ok(message)
}

/// Text, or the text of a list of parts.
///
/// # Errors
/// Names the part that is no text.
pub(super) fn read_text(content: &Value, at: &str) -> Result<String, Invalid> {
    let not_text =
        |at: &str| Invalid::unsupported(at, format!("{at} is not text\nhint: this model reads text only"));
    match content {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let read = |(i, part): (usize, &Value)| match part {
                Value::String(text) => Ok(text.clone()),
                part => {
                    let text = part.get("text").or_else(|| part.get("refusal")).and_then(Value::as_str);
                    text.map(str::to_string).ok_or_else(|| not_text(&format!("{at}[{i}]")))
                }
            };
            parts.iter().enumerate().map(read).collect()
        }
        _ => Err(not_text(at)),
    }
}

/// A message in wire form: arguments as JSON strings, `content` null beside calls without text.
#[must_use]
pub fn write_message(message: &Message) -> Value {
    let mut value = json!({ "role": message.role, "content": message.content });
    if message.content.is_empty() && !message.tool_calls.is_empty() {
        value["content"] = Value::Null;
    }
    if let Some(name) = &message.name {
        value["name"] = name.clone().into();
    }
    if !message.tool_calls.is_empty() {
        value["tool_calls"] = message.tool_calls.iter().map(write_call).collect();
    }
    if let Some(id) = &message.tool_call_id {
        value["tool_call_id"] = id.clone().into();
    }
    for (key, extra) in &message.extra {
        value[key] = extra.clone();
    }
    value
}

fn write_call(call: &ToolCall) -> Value {
    json!({
        "id": call.id,
        "type": call.kind,
        "function": { "name": call.function.name, "arguments": call.function.arguments.to_string() },
    })
}
