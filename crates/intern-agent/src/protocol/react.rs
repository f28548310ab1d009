//! ReAct as plain text, in Lagent's English wording.

use std::fmt::Write as _;

use intern_format::conversation::{FunctionCall, Message, ToolCall};
use serde_json::{Map, Value};

use super::{Turn, call_id};
use crate::tools::Toolbox;

/// The model must not write the tool's response itself.
pub const STOP: &str = "\nResponse:";

const ACTION: &str = "Action:";
const INPUT: &str = "Action Input:";
const FINAL: &str = "Final Answer:";

const REMINDER: &str = "Please follow the format: either \"Action:\" and \"Action Input:\" on lines of their own, \
or \"Final Answer:\".";

/// The system message: what was configured, the tools, and the format.
pub fn system(system: &str, tools: &Toolbox) -> String {
    let mut out = system.to_string();
    if tools.is_empty() {
        return out;
    }
    if !out.is_empty() {
        out.push_str("\n\n");
    }
    out.push_str("You can use these tools:\n");
    for tool in tools.declarations() {
        let function = &tool["function"];
        let _ = writeln!(
            out,
            "- {}: {} Input, as JSON: {}",
            function["name"].as_str().unwrap_or_default(),
            function["description"].as_str().unwrap_or_default(),
            function["parameters"]
        );
    }
    let _ = write!(
        out,
        "\nTo use a tool, write\n\
         Thought: what you need to find out\n\
         Action: the tool, one of {}\n\
         Action Input: its input as a JSON object\n\n\
         You are then told its result after \"Response:\". When you know the answer, write\n\
         Thought: I know the answer\n\
         Final Answer: the answer",
        tools.names()
    );
    out
}

/// Reads a turn.
pub fn read(text: &str, tools: &Toolbox, first_call: usize) -> (Message, Turn) {
    // Servers that ignore the stop string let the model invent a response; it does not count.
    let text = text.find(STOP).map_or(text, |at| &text[..at]).trim_end();
    let message = Message::new("assistant", text);
    let action = line_start(text, ACTION);
    let answer = line_start(text, FINAL);
    let turn = match (action, answer) {
        (Some(at), answer) if answer.is_none_or(|a| at < a) => match call(&text[at..], tools, first_call) {
            Some(call) => Turn::Calls(vec![call]),
            None => Turn::Malformed(REMINDER.to_string()),
        },
        (_, Some(at)) => Turn::Answer(text[at + FINAL.len()..].trim().to_string()),
        // Without tools there is no format to follow.
        _ if tools.is_empty() => Turn::Answer(text.trim().to_string()),
        _ => Turn::Malformed(REMINDER.to_string()),
    };
    (message, turn)
}

/// Where `label` stands at the beginning of a line.
fn line_start(text: &str, label: &str) -> Option<usize> {
    text.match_indices(label)
        .map(|(at, _)| at)
        .find(|&at| text[..at].rsplit('\n').next().is_none_or(|before| before.trim().is_empty()))
}

/// Reads `Action: name`, `Action Input: {…}`. Text that is no JSON object becomes the only
/// argument, if the tool has only one.
fn call(text: &str, tools: &Toolbox, first_call: usize) -> Option<ToolCall> {
    let input_at = line_start(text, INPUT)?;
    let name = text[ACTION.len()..input_at].trim().trim_matches(['`', '"', '[', ']']);
    let mut input = text[input_at + INPUT.len()..].trim();
    // What follows the input on a line of its own belongs to a turn not yet taken.
    for label in ["Thought:", ACTION, FINAL] {
        if let Some(at) = line_start(input, label) {
            input = input[..at].trim_end();
        }
    }
    let input = input.trim_start_matches("```json").trim_matches('`').trim();
    let arguments = match serde_json::from_str::<Value>(input) {
        Ok(object @ Value::Object(_)) => object,
        // A bare string or number is an argument as it stands.
        Ok(Value::String(text)) => only(tools, name, &text)?,
        _ if input.starts_with('{') || input.is_empty() => return None,
        _ => only(tools, name, input)?,
    };
    let function = FunctionCall { name: name.to_string(), arguments };
    Some(ToolCall { id: call_id(first_call), kind: "function".into(), function })
}

fn only(tools: &Toolbox, name: &str, text: &str) -> Option<Value> {
    // An unknown tool gets its input under any name: the error about the tool matters more.
    let argument = tools.only_text_argument(name).unwrap_or_else(|| "input".to_string());
    Some(Value::Object(Map::from_iter([(argument, Value::from(text))])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::Calculator;

    fn tools() -> Toolbox {
        Toolbox::of(vec![Box::new(Calculator)])
    }

    #[track_caller]
    fn calls(text: &str, expected: &str) {
        let (_, turn) = read(text, &tools(), 0);
        let Turn::Calls(calls) = turn else { panic!("{turn:?}") };
        assert_eq!(format!("{} {}", calls[0].function.name, calls[0].function.arguments), expected);
    }

    #[test]
    fn actions_are_read() {
        calls(
            "Thought: add\nAction: calculator\nAction Input: {\"expression\": \"1 + 1\"}",
            r#"calculator {"expression":"1 + 1"}"#,
        );
        calls("Action: calculator\nAction Input: 3 * 4", r#"calculator {"expression":"3 * 4"}"#);
        calls("Action: calculator\nAction Input: \"3 * 4\"", r#"calculator {"expression":"3 * 4"}"#);
        calls(
            "Action: `calculator`\nAction Input:\n```json\n{\"expression\": \"2\"}\n```",
            r#"calculator {"expression":"2"}"#,
        );
        calls(
            "Action: calculator\nAction Input: 3\nResponse: 3\nFinal Answer: 3",
            r#"calculator {"expression":"3"}"#,
        );
        calls("Action: search\nAction Input: cats", r#"search {"input":"cats"}"#);
    }

    #[test]
    fn answers_are_read() {
        let (_, turn) = read("Thought: I know\nFinal Answer: 42 apples\n", &tools(), 0);
        assert_eq!(turn, Turn::Answer("42 apples".into()));
        let (_, turn) = read("42", &Toolbox::of(Vec::new()), 0);
        assert_eq!(turn, Turn::Answer("42".into()));
    }

    #[test]
    fn other_text_brings_a_reminder() {
        for text in
            ["The answer is 42.", "Action: calculator", "Action: calculator\nAction Input: {\"expression\": "]
        {
            assert!(matches!(read(text, &tools(), 0).1, Turn::Malformed(_)), "{text}");
        }
    }
}
