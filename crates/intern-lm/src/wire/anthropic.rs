//! Body of Anthropic's `POST /v1/messages`, and how it reads as a conversation.

use intern_format::conversation::{FunctionCall, Message, ToolCall};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::chat::check_tools;
use super::common::refuse_unknown;
use super::grammar::response_format;
use super::{Common, Invalid, tool_name};
use crate::request::{ChatRequest, ToolChoice};

/// Body of `POST /v1/messages` and of `/v1/messages/count_tokens`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MessagesRequest {
    /// The model's name.
    pub model: Option<String>,
    /// Most tokens to generate.
    pub max_tokens: Option<i64>,
    /// User and assistant in turn.
    pub messages: Vec<Value>,
    /// What the model is told first: text or text blocks.
    pub system: Option<Value>,
    /// Where to stop.
    pub stop_sequences: Option<Vec<String>>,
    /// 0 is greedy; 1 if absent.
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    pub top_p: Option<f32>,
    /// Keep the likeliest.
    pub top_k: Option<i64>,
    /// Answer as server-sent events.
    pub stream: Option<bool>,
    /// Tool declarations with `input_schema`.
    pub tools: Option<Vec<Value>>,
    /// `{"type": "auto" | "any" | "tool" | "none"}`.
    pub tool_choice: Option<Value>,
    /// Whether to think: a variable of the chat template.
    pub thinking: Option<Value>,
    /// `format` of the answer, and `effort`.
    pub output_config: Option<Map<String, Value>>,
    /// The format's older place.
    pub output_format: Option<Value>,
    /// Who asks; changes nothing.
    pub metadata: Option<Value>,
    /// Same request and seed, same tokens (ours).
    pub seed: Option<i64>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl MessagesRequest {
    /// Resolves the request.
    ///
    /// # Errors
    /// For values out of range or not supported, naming the parameter.
    pub fn to_request(&self) -> Result<ChatRequest, Invalid> {
        let mut rest = self.rest.clone();
        // Which capacity to use, and caching, which is automatic here.
        if rest.get("service_tier").is_some_and(|t| t == "standard_only") {
            rest.remove("service_tier");
        }
        rest.remove("cache_control");
        refuse_unknown(&rest)?;
        let common = Common {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            seed: self.seed,
            max_tokens: self.max_tokens,
            stop: self.stop_sequences.clone().map(super::OneOrMany::Many),
            ..Common::default()
        };
        let mut sampling = common.sampling(0)?;
        let config = self.output_config.clone().unwrap_or_default();
        let format = config.get("format").or(self.output_format.as_ref()).filter(|f| !f.is_null());
        if let Some(format) = format {
            let mut format = format.clone();
            if let Some(object) = format.as_object_mut() {
                object.entry("name").or_insert_with(|| "answer".into());
            }
            sampling.grammar = response_format(&format, "output_config.format")?;
        }
        let mut tools = Vec::new();
        for (i, tool) in self.tools.iter().flatten().enumerate() {
            let param = format!("tools[{i}]");
            if let Some(kind) = tool.get("type").and_then(Value::as_str).filter(|k| *k != "custom") {
                let message =
                    format!("{param}: {kind} is not supported\nhint: only tools of your own can be called");
                return Err(Invalid::unsupported(&param, message));
            }
            let mut function = json!({ "name": tool.get("name"), "parameters": tool.get("input_schema") });
            for key in ["description", "strict"] {
                if let Some(value) = tool.get(key).filter(|v| !v.is_null()) {
                    function[key] = value.clone();
                }
            }
            tools.push(json!({ "type": "function", "function": function }));
        }
        check_tools(&tools)?;
        let (tool_choice, single_call) = self.choice(&tools)?;
        let mut template = Map::new();
        match self.thinking.as_ref().and_then(|t| t.get("type")).and_then(Value::as_str) {
            Some("enabled" | "adaptive") => drop(template.insert("enable_thinking".into(), true.into())),
            Some("disabled") => drop(template.insert("enable_thinking".into(), false.into())),
            _ => {}
        }
        if let Some(effort) = config.get("effort").filter(|e| !e.is_null()) {
            template.insert("reasoning_effort".into(), effort.clone());
        }
        let messages = self.read_messages()?;
        Ok(ChatRequest { messages, tools, tool_choice, single_call, template, sampling, raw: false })
    }

    fn choice(&self, tools: &[Value]) -> Result<(ToolChoice, bool), Invalid> {
        let Some(choice) = self.tool_choice.as_ref().filter(|c| !c.is_null()) else {
            return Ok((ToolChoice::Auto, false));
        };
        let bad = |message: String| Invalid::new("tool_choice", message);
        let read = match choice.get("type").and_then(Value::as_str) {
            Some("auto") => ToolChoice::Auto,
            Some("none") => ToolChoice::None,
            Some("any") if tools.is_empty() => return Err(bad("tool_choice any needs tools".into())),
            Some("any") => ToolChoice::Required,
            Some("tool") => {
                let name = choice.get("name").and_then(Value::as_str).unwrap_or_default();
                if !tools.iter().any(|t| tool_name(t) == Some(name)) {
                    return Err(bad(format!("tool_choice names `{name}`, which is not among the tools")));
                }
                ToolChoice::Named(name.to_string())
            }
            _ => return Err(bad("tool_choice must have the type auto, any, tool or none".into())),
        };
        Ok((read, choice.get("disable_parallel_tool_use") == Some(&Value::Bool(true))))
    }

    fn read_messages(&self) -> Result<Vec<Message>, Invalid> {
        let mut messages = Vec::new();
        match &self.system {
            None | Some(Value::Null) => {}
            Some(system) => {
                messages.push(Message::new("system", super::messages::read_text(system, "system")?))
            }
        }
        if self.messages.is_empty() {
            return Err(Invalid::new("messages", "messages is empty\nhint: send at least one user message"));
        }
        for (i, message) in self.messages.iter().enumerate() {
            let at = format!("messages[{i}]");
            let content = message.get("content").unwrap_or(&Value::Null);
            match message.get("role").and_then(Value::as_str) {
                Some("user") => read_user(content, &at, &mut messages)?,
                Some("assistant") if i + 1 == self.messages.len() => {
                    let message = "the last message is the assistant's; answers are not continued\nhint: end with a user message";
                    return Err(Invalid::unsupported(&at, message));
                }
                Some("assistant") => messages.push(read_assistant(content, &at)?),
                Some("system") => {
                    let text = super::messages::read_text(content, &format!("{at}.content"))?;
                    messages.push(Message::new("system", text));
                }
                _ => {
                    let param = format!("{at}.role");
                    return Err(Invalid::new(&param, format!("{param} must be user or assistant")));
                }
            }
        }
        Ok(messages)
    }
}

/// The blocks of a content; a text is one block.
fn blocks(content: &Value, at: &str) -> Result<Vec<Value>, Invalid> {
    match content {
        Value::String(text) => Ok(vec![json!({ "type": "text", "text": text })]),
        Value::Array(blocks) => Ok(blocks.clone()),
        _ => {
            let param = format!("{at}.content");
            Err(Invalid::new(&param, format!("{param} must be text or a list of blocks")))
        }
    }
}

fn field<'a>(block: &'a Value, key: &str, at: &str) -> Result<&'a str, Invalid> {
    let missing = || Invalid::new(&format!("{at}.{key}"), format!("{at}.{key} must be a string"));
    block.get(key).and_then(Value::as_str).ok_or_else(missing)
}

fn unsupported(block: &Value, at: &str) -> Invalid {
    let kind = block.get("type").and_then(Value::as_str).unwrap_or("a block without type");
    Invalid::unsupported(at, format!("{at}: {kind} is not supported here\nhint: this model reads text only"))
}

/// Results of tools become messages of their own, before the user's text.
fn read_user(content: &Value, at: &str, messages: &mut Vec<Message>) -> Result<(), Invalid> {
    let mut text = String::new();
    let blocks = blocks(content, at)?;
    let mut has_text = blocks.is_empty();
    for (i, block) in blocks.iter().enumerate() {
        let at = format!("{at}.content[{i}]");
        match block.get("type").and_then(Value::as_str) {
            Some("text") => {
                text.push_str(field(block, "text", &at)?);
                has_text = true;
            }
            Some("tool_result") => {
                let result = block.get("content").unwrap_or(&Value::Null);
                let result = super::messages::read_text(result, &format!("{at}.content"))?;
                let mut message = Message::new("tool", result);
                message.tool_call_id = Some(field(block, "tool_use_id", &at)?.to_string());
                messages.push(message);
            }
            _ => return Err(unsupported(block, &at)),
        }
    }
    if has_text {
        messages.push(Message::new("user", text));
    }
    Ok(())
}

fn read_assistant(content: &Value, at: &str) -> Result<Message, Invalid> {
    let mut message = Message::new("assistant", "");
    for (i, block) in blocks(content, at)?.iter().enumerate() {
        let at = format!("{at}.content[{i}]");
        match block.get("type").and_then(Value::as_str) {
            Some("text") => message.content.push_str(field(block, "text", &at)?),
            Some("tool_use") => {
                let arguments = block.get("input").cloned().unwrap_or_else(|| json!({}));
                let function = FunctionCall { name: field(block, "name", &at)?.to_string(), arguments };
                let id = field(block, "id", &at)?.to_string();
                message.tool_calls.push(ToolCall { id, kind: "function".into(), function });
            }
            Some("thinking") => {
                let thought = field(block, "thinking", &at)?;
                message.extra.insert("reasoning_content".into(), thought.into());
            }
            Some("redacted_thinking") => {}
            _ => return Err(unsupported(block, &at)),
        }
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<ChatRequest, Invalid> {
        serde_json::from_value::<MessagesRequest>(body).unwrap().to_request()
    }

    #[test]
    fn blocks_become_messages() {
        let request = read(json!({
            "max_tokens": 9, "stop_sequences": ["x"], "metadata": {"user_id": "me"}, "thinking": {"type": "disabled"},
            "system": [{"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "1+1?"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""}, {"type": "text", "text": "Calculating"},
                    {"type": "tool_use", "id": "t", "name": "add", "input": {"x": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": "2"}]},
                    {"type": "text", "text": "and?"}]},
            ],
            "tools": [{"name": "add", "description": "adds", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "tool", "name": "add", "disable_parallel_tool_use": true},
        }))
        .unwrap();
        let roles: Vec<&str> = request.messages.iter().map(|m| m.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "user"]);
        assert_eq!(request.messages[2].tool_calls[0].function.arguments, json!({"x": 1}));
        assert_eq!(request.messages[3].tool_call_id.as_deref(), Some("t"));
        assert_eq!((request.tool_choice, request.single_call), (ToolChoice::Named("add".into()), true));
        assert_eq!(request.tools[0]["function"]["parameters"], json!({"type": "object"}));
        assert_eq!((request.sampling.max_tokens, request.sampling.stop.len()), (9, 1));
    }

    #[test]
    fn faults_are_named() {
        let user = json!([{"role": "user", "content": "x"}]);
        for (body, param) in [
            (json!({}), "messages"),
            (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "user", "content": 5}]}), "messages[0].content"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
                "messages[0].content[0]",
            ),
            (json!({"messages": [{"role": "assistant", "content": "x"}]}), "messages[0]"),
            (json!({"messages": user, "tools": [{"type": "bash_20250124", "name": "bash"}]}), "tools[0]"),
            (json!({"messages": user, "tool_choice": {"type": "any"}}), "tool_choice"),
            (json!({"messages": user, "mcp_servers": [1]}), "mcp_servers"),
        ] {
            assert_eq!(read(body).unwrap_err().param.as_deref(), Some(param));
        }
    }
}
