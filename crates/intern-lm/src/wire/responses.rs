//! Body of `POST /v1/responses`, and how it reads as a conversation.

use intern_format::conversation::{FunctionCall, Message, ToolCall};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::chat::{check_tools, read_choice};
use super::common::refuse_unknown;
use super::grammar::response_format;
use super::messages::read_text;
use super::{Common, Invalid, MAX_LOGPROBS};
use crate::request::ChatRequest;

/// Body of `POST /v1/responses`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResponsesRequest {
    /// Sampling and streaming, with vLLM's additions.
    #[serde(flatten)]
    pub common: Common,
    /// Text, or items: messages, calls, their outputs, thoughts.
    pub input: Value,
    /// What the model is told first.
    pub instructions: Option<Value>,
    /// Most tokens to generate.
    pub max_output_tokens: Option<i64>,
    /// Tool declarations: functions, without chat completions' inner object.
    pub tools: Option<Vec<Value>>,
    /// `auto`, `none`, `required`, a named function, or some of the tools.
    pub tool_choice: Option<Value>,
    /// False allows one call per answer.
    pub parallel_tool_calls: Option<bool>,
    /// `format` of the text.
    pub text: Option<Map<String, Value>>,
    /// `effort`: a variable of the chat template; `none` also turns thinking off.
    pub reasoning: Option<Map<String, Value>>,
    /// What else to send: `message.output_text.logprobs`.
    pub include: Option<Vec<String>>,
    /// Alternatives per token.
    pub top_logprobs: Option<i64>,
    /// Whether the response can be read again, and continued; true if absent.
    pub store: Option<bool>,
    /// The response this one goes on from.
    pub previous_response_id: Option<String>,
    /// Labels, returned as they are.
    pub metadata: Option<Value>,
    /// What to do if the context is too long: only `disabled`, which is an error.
    pub truncation: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// What of `include` needs nothing done: there are no such items, or they come anyway.
const NO_SUCH_ITEMS: [&str; 7] = [
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
];

impl ResponsesRequest {
    /// Resolves the request; `earlier` is the conversation it continues.
    ///
    /// # Errors
    /// For values out of range or not supported, naming the parameter.
    pub fn to_request(&self, earlier: &[Message], max_tokens: usize) -> Result<ChatRequest, Invalid> {
        refuse_unknown(&self.rest)?;
        for (param, is_set) in [
            ("n", self.common.n.is_some_and(|n| n != 1)),
            ("response_format", self.common.response_format.is_some()),
            ("max_tokens", self.common.max_tokens.is_some()),
        ] {
            if is_set {
                let message = format!(
                    "{param} is not a parameter of responses\nhint: see text.format and max_output_tokens"
                );
                return Err(Invalid::unsupported(param, message));
            }
        }
        if let Some(other) = self.truncation.as_deref().filter(|t| *t != "disabled") {
            let message = format!("truncation {other} is not supported\nhint: shorten the input");
            return Err(Invalid::unsupported("truncation", message));
        }
        let text = self.text.clone().unwrap_or_default();
        let mut common = Common { max_tokens: self.max_output_tokens, ..self.common.clone() };
        common.stream_options = None;
        let mut sampling =
            common.sampling(max_tokens).map_err(|e| rename(e, "max_tokens", "max_output_tokens"))?;
        if self.max_output_tokens == Some(0) {
            return Err(Invalid::new("max_output_tokens", "max_output_tokens must be at least 1"));
        }
        if let Some(format) = text.get("format").filter(|f| !f.is_null()) {
            sampling.grammar = response_format(format, "text.format")?.or(sampling.grammar);
        }
        sampling.logprobs = self.logprobs()?;
        let mut tools = self.chat_tools()?;
        let tool_choice = read_choice(self.tool_choice.as_ref(), &mut tools)?;
        let mut template = Map::new();
        let reasoning = self.reasoning.clone().unwrap_or_default();
        if let Some(effort) = reasoning.get("effort").filter(|e| !e.is_null()) {
            if effort == "none" {
                template.insert("enable_thinking".into(), false.into());
            }
            template.insert("reasoning_effort".into(), effort.clone());
        }
        let mut messages = Vec::new();
        match &self.instructions {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) => messages.push(Message::new("system", text)),
            Some(items) => messages.extend(read_items(items, "instructions")?),
        }
        messages.extend(earlier.iter().cloned());
        messages.extend(self.input_messages()?);
        let single_call = self.parallel_tool_calls == Some(false);
        Ok(ChatRequest { messages, tools, tool_choice, single_call, template, sampling, raw: false })
    }

    /// The messages of `input` alone.
    ///
    /// # Errors
    /// Names the item at fault.
    pub fn input_messages(&self) -> Result<Vec<Message>, Invalid> {
        match &self.input {
            Value::String(text) => Ok(vec![Message::new("user", text)]),
            Value::Null => Err(Invalid::new("input", "input is missing\nhint: send text or a list of items")),
            items => read_items(items, "input"),
        }
    }

    /// `input` as a list of items.
    #[must_use]
    pub fn input_items(&self) -> Vec<Value> {
        match &self.input {
            Value::Array(items) => items.clone(),
            Value::String(text) => {
                let part = json!({ "type": "input_text", "text": text });
                vec![json!({ "type": "message", "role": "user", "content": [part] })]
            }
            _ => Vec::new(),
        }
    }

    fn logprobs(&self) -> Result<Option<usize>, Invalid> {
        let mut wanted = false;
        for what in self.include.iter().flatten() {
            wanted |= what == "message.output_text.logprobs";
            if what != "message.output_text.logprobs" && !NO_SUCH_ITEMS.contains(&what.as_str()) {
                return Err(Invalid::unsupported("include", format!("include `{what}` is not known")));
            }
        }
        match self.top_logprobs.unwrap_or(0) {
            top @ 0..=20 => Ok(wanted.then_some(top as usize)),
            top => {
                let message = format!("top_logprobs must lie between 0 and {MAX_LOGPROBS}, not {top}");
                Err(Invalid::new("top_logprobs", message))
            }
        }
    }

    /// The tools in chat completions' form.
    fn chat_tools(&self) -> Result<Vec<Value>, Invalid> {
        let nest = |tool: &Value| {
            let mut function = tool.as_object().cloned().unwrap_or_default();
            let kind = function.remove("type").unwrap_or_else(|| "function".into());
            match function.remove("function") {
                Some(inner) => json!({ "type": kind, "function": inner }),
                None => json!({ "type": kind, "function": function }),
            }
        };
        let tools: Vec<Value> = self.tools.iter().flatten().map(nest).collect();
        check_tools(&tools)?;
        Ok(tools)
    }
}

/// An error about a parameter under the name the client knows.
pub(super) fn rename(mut invalid: Invalid, from: &str, to: &str) -> Invalid {
    if invalid.param.as_deref() == Some(from) {
        invalid.message = invalid.message.replace(from, to);
        invalid.param = Some(to.to_string());
    }
    invalid
}

/// Items to messages: calls join the assistant's message before them, thoughts the one behind.
fn read_items(items: &Value, at: &str) -> Result<Vec<Message>, Invalid> {
    let Some(items) = items.as_array().filter(|items| !items.is_empty()) else {
        return Err(Invalid::new(at, format!("{at} must be text or a list of items, not empty")));
    };
    let mut messages: Vec<Message> = Vec::new();
    let mut thought = String::new();
    for (i, item) in items.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let text = |key: &str| {
            let missing = || Invalid::new(&format!("{at}.{key}"), format!("{at}.{key} must be a string"));
            item.get(key).and_then(Value::as_str).map(str::to_string).ok_or_else(missing)
        };
        match item.get("type").and_then(Value::as_str).unwrap_or("message") {
            "message" => {
                let role = match text("role")?.as_str() {
                    "developer" => "system".to_string(),
                    role => role.to_string(),
                };
                let content =
                    read_text(item.get("content").unwrap_or(&Value::Null), &format!("{at}.content"))?;
                let mut message = Message::new(&role, content);
                if role == "assistant" {
                    add_thought(&mut message, &mut thought);
                }
                messages.push(message);
            }
            "function_call" => {
                let arguments = text("arguments")?;
                let arguments = serde_json::from_str(&arguments).map_err(|e| {
                    Invalid::new(&format!("{at}.arguments"), format!("{at}.arguments is not valid JSON: {e}"))
                })?;
                let function = FunctionCall { name: text("name")?, arguments };
                let call = ToolCall { id: text("call_id")?, kind: "function".into(), function };
                match messages.last_mut() {
                    Some(message) if message.role == "assistant" && thought.is_empty() => {
                        message.tool_calls.push(call);
                    }
                    _ => {
                        let mut message = Message::new("assistant", "");
                        message.tool_calls.push(call);
                        add_thought(&mut message, &mut thought);
                        messages.push(message);
                    }
                }
            }
            "function_call_output" => {
                let output = read_text(item.get("output").unwrap_or(&Value::Null), &format!("{at}.output"))?;
                let mut message = Message::new("tool", output);
                message.tool_call_id = Some(text("call_id")?);
                messages.push(message);
            }
            "reasoning" => {
                let content = item.get("content").filter(|c| !c.is_null());
                if let Some(content) = content.or(item.get("summary")) {
                    thought.push_str(&read_text(content, &format!("{at}.content"))?);
                }
            }
            other => {
                let param = format!("{at}.type");
                let message = format!(
                    "{param} {other} is not supported\nhint: send messages, function calls and their outputs"
                );
                return Err(Invalid::unsupported(&param, message));
            }
        }
    }
    if messages.is_empty() {
        return Err(Invalid::new(at, format!("{at} holds no message")));
    }
    Ok(messages)
}

fn add_thought(message: &mut Message, thought: &mut String) {
    if !thought.is_empty() {
        message.extra.insert("reasoning_content".into(), std::mem::take(thought).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Grammar, ToolChoice};

    fn read(body: Value) -> Result<ChatRequest, Invalid> {
        serde_json::from_value::<ResponsesRequest>(body).unwrap().to_request(&[], 100)
    }

    #[test]
    fn items_become_messages() {
        let request = read(json!({
            "instructions": "Be kind.", "max_output_tokens": 7, "store": false, "user": "me",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "1"}, {"type": "input_text", "text": "2"}]},
                {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{\"x\":1}"},
                {"type": "function_call", "call_id": "d", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "ok"},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true}],
            "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": false,
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "array"}}},
            "reasoning": {"effort": "none"},
            "include": ["message.output_text.logprobs"], "top_logprobs": 3,
        }))
        .unwrap();
        let roles: Vec<&str> = request.messages.iter().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool"]);
        assert_eq!(request.messages[1].content, "12");
        assert_eq!(request.messages[2].tool_calls.len(), 2);
        assert_eq!(request.messages[2].extra["reasoning_content"], "hm");
        assert_eq!(request.tools[0]["function"]["strict"], true);
        assert_eq!((request.tool_choice, request.single_call), (ToolChoice::Named("f".into()), true));
        assert_eq!(request.sampling.grammar, Some(Grammar::JsonSchema(json!({"type": "array"}))));
        assert_eq!((request.sampling.max_tokens, request.sampling.logprobs), (7, Some(3)));
        assert_eq!(request.template["enable_thinking"], false);
    }

    #[test]
    fn faults_are_named() {
        for (body, param) in [
            (json!({}), "input"),
            (json!({"input": []}), "input"),
            (json!({"input": 5}), "input"),
            (json!({"input": [{"type": "item_reference", "id": "x"}]}), "input[0].type"),
            (
                json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}),
                "input[0].content[0]",
            ),
            (json!({"input": "x", "truncation": "auto"}), "truncation"),
            (json!({"input": "x", "max_output_tokens": -1}), "max_output_tokens"),
            (json!({"input": "x", "n": 2}), "n"),
            (json!({"input": "x", "background": true}), "background"),
            (json!({"input": "x", "conversation": "c"}), "conversation"),
            (json!({"input": "x", "tools": [{"type": "web_search"}]}), "tools[0].type"),
            (json!({"input": "x", "include": ["everything"]}), "include"),
        ] {
            assert_eq!(read(body).unwrap_err().param.as_deref(), Some(param));
        }
    }
}
