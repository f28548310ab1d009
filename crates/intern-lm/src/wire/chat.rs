//! Body of `POST /v1/chat/completions`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::common::refuse_unknown;
use super::{Common, Invalid, MAX_LOGPROBS, read_messages, write_message};
use crate::request::{ChatRequest, ToolChoice};

/// Body of `POST /v1/chat/completions`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatCompletionRequest {
    /// Sampling and streaming.
    #[serde(flatten)]
    pub common: Common,
    /// The conversation, read by [`read_messages`].
    pub messages: Vec<Value>,
    /// Tool declarations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<Value>>,
    /// `auto`, `none`, `required`, a named function, or some of the tools.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<Value>,
    /// False allows one call per answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
    /// The newer name of `max_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<i64>,
    /// Whether log-probabilities are wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<bool>,
    /// Alternatives per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<i64>,
    /// How much to think: a variable of the chat template; `none` also turns thinking off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<String>,
    /// Variables for the chat template (vLLM's name), such as `enable_thinking`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template_kwargs: Option<Map<String, Value>>,
    /// False leaves tool calls and thoughts in the text (ours).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parse_tools: Option<bool>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl ChatCompletionRequest {
    /// Resolves the request; `max_tokens` is used where it names none.
    ///
    /// # Errors
    /// For values out of range or not supported, naming the parameter.
    pub fn to_request(&self, max_tokens: usize) -> Result<ChatRequest, Invalid> {
        refuse_unknown(&self.rest)?;
        let common = Common {
            max_tokens: self.max_completion_tokens.or(self.common.max_tokens),
            ..self.common.clone()
        };
        let mut sampling = common.sampling(max_tokens)?;
        let top = self.top_logprobs.unwrap_or(0);
        if !(0..=MAX_LOGPROBS as i64).contains(&top) {
            let message = format!("top_logprobs must lie between 0 and {MAX_LOGPROBS}, not {top}");
            return Err(Invalid::new("top_logprobs", message));
        }
        match self.logprobs {
            Some(true) => sampling.logprobs = Some(top as usize),
            _ if top > 0 => return Err(Invalid::new("top_logprobs", "top_logprobs needs logprobs: true")),
            _ => {}
        }
        let mut tools = self.tools.clone().unwrap_or_default();
        check_tools(&tools)?;
        let tool_choice = read_choice(self.tool_choice.as_ref(), &mut tools)?;
        let mut template = Map::new();
        if let Some(effort) = &self.reasoning_effort {
            template.insert("reasoning_effort".into(), effort.clone().into());
            if effort == "none" {
                template.insert("enable_thinking".into(), false.into());
            }
        }
        template.extend(self.chat_template_kwargs.clone().unwrap_or_default());
        Ok(ChatRequest {
            messages: read_messages(&self.messages)?,
            tools,
            tool_choice,
            single_call: self.parallel_tool_calls == Some(false),
            template,
            sampling,
            raw: self.parse_tools == Some(false),
        })
    }

    /// The body a client sends for `request`.
    #[must_use]
    pub fn from_request(model: &str, request: &ChatRequest) -> Self {
        let mut common = Common::from_sampling(model, &request.sampling);
        if request.raw {
            common.skip_special_tokens = Some(false);
        }
        let has_tools = !request.tools.is_empty();
        let choice = match &request.tool_choice {
            ToolChoice::Auto => None,
            ToolChoice::None => Some(json!("none")),
            ToolChoice::Required => Some(json!("required")),
            ToolChoice::Named(name) => Some(json!({ "type": "function", "function": { "name": name } })),
        };
        Self {
            common,
            messages: request.messages.iter().map(write_message).collect(),
            tools: has_tools.then(|| request.tools.clone()),
            tool_choice: choice.filter(|_| has_tools),
            parallel_tool_calls: (has_tools && request.single_call).then_some(false),
            logprobs: request.sampling.logprobs.map(|_| true),
            top_logprobs: request.sampling.logprobs.filter(|&k| k > 0).map(|k| k as i64),
            chat_template_kwargs: (!request.template.is_empty()).then(|| request.template.clone()),
            parse_tools: request.raw.then_some(false),
            ..Self::default()
        }
    }
}

/// The name of the function a tool declares.
pub(crate) fn tool_name(tool: &Value) -> Option<&str> {
    tool.pointer("/function/name").and_then(Value::as_str).filter(|name| !name.is_empty())
}

pub(super) fn check_tools(tools: &[Value]) -> Result<(), Invalid> {
    for (i, tool) in tools.iter().enumerate() {
        if let Some(kind) = tool.get("type").filter(|&kind| kind != "function") {
            let param = format!("tools[{i}].type");
            let message = format!("{param} {kind} is not supported\nhint: only functions can be called");
            return Err(Invalid::unsupported(&param, message));
        }
        if tool_name(tool).is_none() {
            let message = format!(
                "tools[{i}] has no function name\nhint: a tool is {{\"type\":\"function\",\"function\":{{\"name\":…}}}}"
            );
            return Err(Invalid::new(&format!("tools[{i}].function.name"), message));
        }
        let parameters = tool.pointer("/function/parameters");
        if parameters.is_some_and(|p| !p.is_object() && !p.is_null()) {
            let param = format!("tools[{i}].function.parameters");
            return Err(Invalid::new(&param, format!("{param} must be a JSON schema, an object")));
        }
    }
    Ok(())
}

/// Reads `tool_choice`; a choice of some of the tools takes the others out.
pub(super) fn read_choice(choice: Option<&Value>, tools: &mut Vec<Value>) -> Result<ToolChoice, Invalid> {
    let bad = |what: &Value| {
        let message = format!(
            "tool_choice {what} is not supported\nhint: \"auto\", \"none\", \"required\" or {{\"type\":\"function\",\"function\":{{\"name\":…}}}}"
        );
        Invalid::unsupported("tool_choice", message)
    };
    let mode = |mode: &Value| match mode.as_str() {
        Some("auto") => Ok(ToolChoice::Auto),
        Some("none") => Ok(ToolChoice::None),
        Some("required" | "any") => Ok(ToolChoice::Required),
        _ => Err(bad(mode)),
    };
    let Some(choice) = choice.filter(|c| !c.is_null()) else { return Ok(ToolChoice::Auto) };
    let read = match choice.get("type").and_then(Value::as_str) {
        Some("function") => {
            // Chat completions nest the name, responses do not.
            let name =
                choice.pointer("/function/name").or_else(|| choice.get("name")).and_then(Value::as_str);
            ToolChoice::Named(name.ok_or_else(|| bad(choice))?.to_string())
        }
        Some("allowed_tools") => {
            let inner = choice.get("allowed_tools").unwrap_or(choice);
            let allowed = inner.get("tools").and_then(Value::as_array).ok_or_else(|| bad(choice))?;
            let name = |tool: &Value| {
                tool_name(tool).or_else(|| tool.get("name").and_then(Value::as_str)).map(str::to_string)
            };
            let names: Vec<String> = allowed.iter().filter_map(name).collect();
            tools.retain(|tool| tool_name(tool).is_some_and(|t| names.iter().any(|n| n == t)));
            mode(inner.get("mode").unwrap_or(&json!("auto")))?
        }
        Some(_) => return Err(bad(choice)),
        None => mode(choice)?,
    };
    let none = |message: &str| Err(Invalid::new("tool_choice", message));
    match &read {
        ToolChoice::Required if tools.is_empty() => {
            none("tool_choice wants a tool called, but there are no tools\nhint: send tools")
        }
        ToolChoice::Named(name) if !tools.iter().any(|t| tool_name(t) == Some(name)) => {
            none(&format!("tool_choice names `{name}`, which is not among the tools"))
        }
        _ => Ok(read),
    }
}
