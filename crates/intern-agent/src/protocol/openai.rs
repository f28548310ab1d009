//! OpenAI function calling: calls arrive parsed.

use intern_format::conversation::Message;

use super::{Turn, call_id};

/// Reads a turn; calls without an identifier get one.
pub fn read(message: &Message, first_call: usize) -> (Message, Turn) {
    let mut message = message.clone();
    if message.tool_calls.is_empty() {
        let answer = message.content.trim().to_string();
        return (message, Turn::Answer(answer));
    }
    for (i, call) in message.tool_calls.iter_mut().enumerate() {
        if call.id.is_empty() {
            call.id = call_id(first_call + i);
        }
    }
    let calls = message.tool_calls.clone();
    (message, Turn::Calls(calls))
}

#[cfg(test)]
mod tests {
    use super::*;
    use intern_format::conversation::{FunctionCall, ToolCall};
    use serde_json::json;

    #[test]
    fn calls_get_identifiers() {
        let mut message = Message::new("assistant", "");
        let function = FunctionCall { name: "f".into(), arguments: json!({}) };
        message.tool_calls.push(ToolCall { id: String::new(), kind: "function".into(), function });
        let (kept, turn) = read(&message, 3);
        assert_eq!(kept.tool_calls[0].id, "call_3");
        assert_eq!(turn, Turn::Calls(kept.tool_calls));
        assert_eq!(read(&Message::new("assistant", " 42 "), 0).1, Turn::Answer("42".into()));
    }
}
