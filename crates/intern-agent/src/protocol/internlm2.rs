//! InternLM2's tool protocol: calls between special tokens, results as `environment`.
//!
//! The answer is asked for raw, with its special tokens, and read here. Calls are kept
//! in the history as `tool_calls`, so that the model's own chat template writes them
//! back. Both `"parameters"` and `"arguments"` are understood.

use intern_format::conversation::{Message, ToolCall};
use intern_lm::tools::{ToolFormat, parse_from};

use super::Turn;

/// Tokens that may end an answer and are not part of it.
const ENDS: [&str; 2] = ["<|im_end|>", "</s>"];
const START: &str = "<|action_start|>";

const REMINDER: &str = "Error: the call could not be read. Write \
<|action_start|><|plugin|>\n{\"name\": \"TOOL\", \"parameters\": {\"ARGUMENT\": \"VALUE\"}}<|action_end|>";

/// Reads a turn.
pub fn read(message: &Message, first_call: usize) -> (Message, Turn) {
    // A server that does not do raw text has parsed the calls already.
    if !message.tool_calls.is_empty() {
        return super::openai::read(message, first_call);
    }
    let mut text = message.content.as_str();
    while let Some(rest) = ENDS.iter().find_map(|end| text.trim_end().strip_suffix(end)) {
        text = rest;
    }
    let (content, calls): (String, Vec<ToolCall>) = parse_from(ToolFormat::InternLm2, text, first_call);
    let mut kept = Message::new("assistant", content.trim_end_matches('\n'));
    if calls.is_empty() {
        let turn = if text.contains(START) {
            Turn::Malformed(REMINDER.to_string())
        } else {
            Turn::Answer(kept.content.trim().to_string())
        };
        return (kept, turn);
    }
    kept.tool_calls.clone_from(&calls);
    (kept, Turn::Calls(calls))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn turn(text: &str) -> (Message, Turn) {
        read(&Message::new("assistant", text), 0)
    }

    #[test]
    fn calls_are_read_in_both_spellings() {
        for key in ["parameters", "arguments"] {
            let text = format!(
                "I add.<|action_start|><|plugin|>\n{{\"name\": \"calculator\", \"{key}\": {{\"expression\": \"1 + 1\"}}}}<|action_end|><|im_end|>\n"
            );
            let (kept, turn) = turn(&text);
            assert_eq!(kept.content, "I add.");
            let Turn::Calls(calls) = turn else { panic!("{turn:?}") };
            assert_eq!(calls[0].function.name, "calculator");
            assert_eq!(calls[0].function.arguments, json!({"expression": "1 + 1"}));
            assert_eq!(kept.tool_calls, calls);
        }
    }

    #[test]
    fn answers_lose_their_end_tokens() {
        assert_eq!(turn("There are 42.<|im_end|>").1, Turn::Answer("There are 42.".into()));
        assert_eq!(turn("42<|im_end|>\n</s>").1, Turn::Answer("42".into()));
    }

    #[test]
    fn what_cannot_be_read_brings_a_reminder() {
        for text in [
            "<|action_start|><|plugin|>\n{\"name\": \"calculator\", <|action_end|>",
            "<|action_start|><|plugin|>\n{\"name\": \"calcu",
            "<|action_start|><|interpreter|>\nprint(1)<|action_end|>",
        ] {
            let (kept, turn) = turn(text);
            assert!(matches!(turn, Turn::Malformed(_)), "{turn:?}");
            assert_eq!(kept.content, text);
        }
    }
}
