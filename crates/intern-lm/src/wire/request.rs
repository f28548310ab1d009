//! What clients send: read leniently, checked strictly.

use intern_format::conversation::{Message, ToolCall};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::request::{ChatRequest, Sampling, ToolChoice};

/// Most alternatives per token that `logprobs` may ask for.
pub const MAX_LOGPROBS: usize = 20;

/// A request that cannot be served as asked; becomes status 400.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong, for the user.
    pub message: String,
    /// The parameter at fault.
    pub param: Option<String>,
    /// OpenAI's machine-readable code, if it has one.
    pub code: Option<&'static str>,
}

impl Invalid {
    /// An error about one parameter.
    #[must_use]
    pub fn new(param: &str, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param.to_string()), code: None }
    }

    /// The same with a code.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// For what OpenAI's API has and this server has not.
    #[must_use]
    pub fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::new(param, message).code("unsupported_value")
    }
}

/// One string or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// Just one.
    One(String),
    /// A list.
    Many(Vec<String>),
}

impl OneOrMany {
    /// As a list.
    #[must_use]
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(s) => vec![s],
            Self::Many(v) => v,
        }
    }
}

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamOptions {
    /// Send one more chunk with the usage at the end.
    pub include_usage: bool,
}

/// What chat and plain completions have in common.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Common {
    /// The model's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// 0 is greedy; 1 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Keep the likeliest; 0 or −1 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<i64>,
    /// Smallest share of the likeliest token's probability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// Only 0 is supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// Only 0 is supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// Only empty is supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_bias: Option<Value>,
    /// Same request and seed, same tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Most tokens to generate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<i64>,
    /// Where to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<OneOrMany>,
    /// Answers per prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<i64>,
    /// Answer as server-sent events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Options of the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// Only `text` is supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_format: Option<Value>,
    /// Go on past the end-of-text token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_eos: Option<bool>,
    /// False keeps special tokens in the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_special_tokens: Option<bool>,
    /// Add `token_ids` to each choice (and `prompt_token_ids`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_token_ids: Option<bool>,
}

impl Common {
    /// Resolves sampling parameters; `max_tokens` is used where the request names none.
    ///
    /// # Errors
    /// For values out of range or not supported, naming the parameter.
    pub fn sampling(&self, max_tokens: usize) -> Result<Sampling, Invalid> {
        let range = |param: &str, value: Option<f32>, low: f32, high: f32| match value {
            Some(v) if !(low..=high).contains(&v) => {
                Err(Invalid::new(param, format!("{param} must lie between {low} and {high}, not {v}")))
            }
            _ => Ok(()),
        };
        range("temperature", self.temperature, 0.0, 100.0)?;
        range("top_p", self.top_p, 0.0, 1.0)?;
        range("min_p", self.min_p, 0.0, 1.0)?;
        if let Some(p) = self.repetition_penalty.filter(|p| p.is_nan() || *p <= 0.0) {
            return Err(Invalid::new(
                "repetition_penalty",
                format!("repetition_penalty must be above 0, not {p}"),
            ));
        }
        for (param, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            if value.is_some_and(|v| v != 0.0) {
                return Err(Invalid::unsupported(
                    param,
                    format!("{param} is not supported\nhint: use repetition_penalty"),
                ));
            }
        }
        if self.logit_bias.as_ref().is_some_and(|b| b.as_object().is_none_or(|o| !o.is_empty())) {
            return Err(Invalid::unsupported("logit_bias", "logit_bias is not supported"));
        }
        if let Some(format) = &self.response_format
            && format.get("type").and_then(Value::as_str) != Some("text")
        {
            return Err(Invalid::unsupported(
                "response_format",
                "only response_format {\"type\": \"text\"} is supported\nhint: ask for JSON in the prompt",
            ));
        }
        let top_k = match self.top_k {
            Some(k) if k < -1 => {
                return Err(Invalid::new("top_k", format!("top_k must be at least -1, not {k}")));
            }
            k => usize::try_from(k.unwrap_or(0)).unwrap_or(0),
        };
        let max_tokens = match self.max_tokens {
            Some(m) => usize::try_from(m)
                .map_err(|_| Invalid::new("max_tokens", format!("max_tokens must be at least 0, not {m}")))?,
            None => max_tokens,
        };
        Ok(Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_k,
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            seed: self.seed.unwrap_or(0) as u64,
            max_tokens,
            stop: self.stop.clone().map(OneOrMany::into_vec).unwrap_or_default(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            keep_special: !self.skip_special_tokens.unwrap_or(true),
            ..Sampling::default()
        })
    }

    /// Answers per prompt, at least 1.
    ///
    /// # Errors
    /// If `n` is below 1 or above 128.
    pub fn n(&self) -> Result<usize, Invalid> {
        match self.n.unwrap_or(1) {
            n @ 1..=128 => Ok(n as usize),
            n => Err(Invalid::new("n", format!("n must lie between 1 and 128, not {n}"))),
        }
    }

    /// The parameters a client sends for `sampling`; defaults of other servers stay unsaid.
    #[must_use]
    pub fn from_sampling(model: &str, sampling: &Sampling) -> Self {
        Self {
            model: Some(model.to_string()),
            temperature: Some(sampling.temperature),
            top_p: (sampling.top_p != 1.0).then_some(sampling.top_p),
            top_k: (sampling.top_k != 0).then_some(sampling.top_k as i64),
            min_p: (sampling.min_p != 0.0).then_some(sampling.min_p),
            repetition_penalty: (sampling.repetition_penalty != 1.0).then_some(sampling.repetition_penalty),
            seed: Some((sampling.seed & i64::MAX as u64) as i64),
            max_tokens: Some(sampling.max_tokens as i64),
            stop: (!sampling.stop.is_empty()).then(|| OneOrMany::Many(sampling.stop.clone())),
            ignore_eos: sampling.ignore_eos.then_some(true),
            skip_special_tokens: sampling.keep_special.then_some(false),
            ..Self::default()
        }
    }
}

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
    /// `auto`, `none`, `required` or a named function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<Value>,
    /// The newer name of `max_tokens`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<i64>,
    /// Whether log-probabilities are wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<bool>,
    /// Alternatives per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<i64>,
    /// False leaves tool calls in the text (ours).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parse_tools: Option<bool>,
}

impl ChatCompletionRequest {
    /// Resolves the request; `max_tokens` is used where it names none.
    ///
    /// # Errors
    /// For values out of range or not supported, naming the parameter.
    pub fn to_request(&self, max_tokens: usize) -> Result<ChatRequest, Invalid> {
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
        let tools = self.tools.clone().unwrap_or_default();
        for (i, tool) in tools.iter().enumerate() {
            if tool.pointer("/function/name").and_then(Value::as_str).is_none_or(str::is_empty) {
                let message = format!(
                    "tools[{i}] has no function name\nhint: a tool is {{\"type\":\"function\",\"function\":{{\"name\":…}}}}"
                );
                return Err(Invalid::new(&format!("tools[{i}].function.name"), message));
            }
        }
        let tool_choice = match &self.tool_choice {
            None | Some(Value::Null) => ToolChoice::Auto,
            Some(Value::String(s)) if s == "auto" => ToolChoice::Auto,
            Some(Value::String(s)) if s == "none" => ToolChoice::None,
            Some(other) => {
                let message = format!(
                    "tool_choice {other} is not supported\nhint: use \"auto\" or \"none\" and ask for the tool in the prompt"
                );
                return Err(Invalid::unsupported("tool_choice", message));
            }
        };
        Ok(ChatRequest {
            messages: read_messages(&self.messages)?,
            tools,
            tool_choice,
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
        Self {
            common,
            messages: request.messages.iter().map(write_message).collect(),
            tools: has_tools.then(|| request.tools.clone()),
            tool_choice: (has_tools && request.tool_choice == ToolChoice::None).then(|| "none".into()),
            logprobs: request.sampling.logprobs.map(|_| true),
            top_logprobs: request.sampling.logprobs.filter(|&k| k > 0).map(|k| k as i64),
            parse_tools: request.raw.then_some(false),
            ..Self::default()
        }
    }
}

/// Reads wire messages; arguments of tool calls may be JSON strings, content may be text parts.
///
/// # Errors
/// Names the message at fault.
pub fn read_messages(messages: &[Value]) -> Result<Vec<Message>, Invalid> {
    if messages.is_empty() {
        return Err(Invalid::new("messages", "messages is empty\nhint: send at least one user message"));
    }
    let read = |(i, value): (usize, &Value)| {
        let mut value = value.clone();
        for key in ["content", "tool_calls", "name", "tool_call_id"] {
            if value.get(key).is_some_and(Value::is_null) {
                value.as_object_mut().map(|o| o.remove(key));
            }
        }
        if let Some(parts) = value.get("content").and_then(Value::as_array) {
            let text = parts.iter().enumerate().map(|(p, part)| match part {
                Value::String(text) => Ok(text.as_str()),
                part => part.get("text").and_then(Value::as_str).ok_or_else(|| {
                    let param = format!("messages[{i}].content[{p}]");
                    Invalid::unsupported(
                        &param,
                        format!("{param} is not text\nhint: this model reads text only"),
                    )
                }),
            });
            value["content"] = text.collect::<Result<String, Invalid>>()?.into();
        }
        serde_json::from_value(value)
            .map_err(|e| Invalid::new(&format!("messages[{i}]"), format!("messages[{i}] is malformed: {e}")))
    };
    messages.iter().enumerate().map(read).collect()
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

/// The prompts of `POST /v1/completions`: text, texts, token ids, or several lists of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum WirePrompt {
    /// One text.
    Text(String),
    /// Several texts.
    Texts(Vec<String>),
    /// One list of token ids.
    Tokens(Vec<u32>),
    /// Several lists.
    TokenLists(Vec<Vec<u32>>),
}

/// Body of `POST /v1/completions`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CompletionRequest {
    /// Sampling and streaming.
    #[serde(flatten)]
    pub common: Common,
    /// What to continue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<WirePrompt>,
    /// Text after the completion; not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suffix: Option<String>,
    /// Repeat the prompt in the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub echo: Option<bool>,
    /// Log-probabilities with this many alternatives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<i64>,
    /// Candidates to choose from; only `n` is supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_of: Option<i64>,
    /// Whether to add BOS to text prompts (vLLM's name; true if absent).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_special_tokens: Option<bool>,
}

/// Body of `POST /tokenize` (vLLM's): a prompt or a conversation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenizeRequest {
    /// The model's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Text to encode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Instead of a prompt: messages for the chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<Value>>,
    /// Tools for the chat template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<Value>>,
    /// With messages: end where the assistant begins (true if absent).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_generation_prompt: Option<bool>,
    /// With a prompt: add BOS as the tokenizer does (true if absent).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_special_tokens: Option<bool>,
}

/// Body of `POST /detokenize` (vLLM's).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DetokenizeRequest {
    /// The model's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Token ids to decode.
    pub tokens: Vec<u32>,
}
