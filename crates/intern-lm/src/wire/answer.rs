//! What servers answer: whole answers, chunks of a stream, the model list, errors.

use anyhow::Context;
use intern_format::conversation::Message;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::request::{FinishReason, TokenLogprob, Usage};

/// An assistant's message in an answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Delta {
    /// Sent once, at the beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// New text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// New text of a thought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// New parts of calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCallDelta>>,
}

/// A part of a call: the first has id and name, the following append to the arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ToolCallDelta {
    /// Which call of the message.
    pub index: usize,
    /// The call's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Name and arguments.
    pub function: FunctionDelta,
}

/// A part of a call's name and arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FunctionDelta {
    /// The tool's name, whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments' JSON text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}

/// One answer among `n`: whole (`message`) or in parts (`delta`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatChoice {
    /// Which of the answers.
    pub index: usize,
    /// The whole message ([`write_message`]).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<Value>,
    /// The next part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<Delta>,
    /// Log-probabilities of the tokens.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: Option<String>,
    /// Generated ids, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
}

/// Log-probabilities of a chat answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatLogprobs {
    /// One entry per token.
    pub content: Vec<ChatTokenLogprob>,
    /// Always null.
    pub refusal: Option<Value>,
}

/// Log-probability of one token of a chat answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatTokenLogprob {
    /// The token's text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its text in UTF-8.
    pub bytes: Option<Vec<u8>>,
    /// The likeliest alternatives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<Vec<ChatTokenLogprob>>,
}

impl From<&TokenLogprob> for ChatTokenLogprob {
    fn from(t: &TokenLogprob) -> Self {
        let one = |token: &str, logprob: f32| Self {
            token: token.to_string(),
            logprob: finite(logprob),
            bytes: Some(token.as_bytes().to_vec()),
            top_logprobs: None,
        };
        let top = t.top.iter().map(|(_, token, logprob)| one(token, *logprob)).collect();
        Self { top_logprobs: Some(top), ..one(&t.token, t.logprob) }
    }
}

/// Answer of `/v1/chat/completions`, whole or one chunk of a stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatCompletion {
    /// Identifies the request.
    pub id: String,
    /// `chat.completion` or `chat.completion.chunk`.
    pub object: String,
    /// Unix time in seconds.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// The answers.
    pub choices: Vec<ChatChoice>,
    /// Tokens used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<WireUsage>,
}

/// Answer of `/v1/completions`, whole or one chunk of a stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CompletionResponse {
    /// Identifies the request.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Unix time in seconds.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// The answers: `n` per prompt, prompt by prompt.
    pub choices: Vec<CompletionChoice>,
    /// Tokens used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<WireUsage>,
}

/// One continuation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CompletionChoice {
    /// Which of the answers.
    pub index: usize,
    /// The text, after the prompt if `echo` asked for it.
    pub text: String,
    /// Log-probabilities, if asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`.
    pub finish_reason: Option<String>,
    /// Generated ids, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// The prompt's ids, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
}

/// Log-probabilities of a continuation, as parallel lists.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CompletionLogprobs {
    /// Where each token begins, in characters from the beginning of `text`.
    pub text_offset: Vec<usize>,
    /// Natural logarithms; null for the prompt's first token.
    pub token_logprobs: Vec<Option<f32>>,
    /// The tokens' texts.
    pub tokens: Vec<String>,
    /// The likeliest tokens; null for the prompt's first token.
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
}

impl CompletionLogprobs {
    /// Appends one token; `offset` is where it begins, `None` for one nothing predicts.
    pub fn push(&mut self, offset: usize, text: &str, logprob: Option<&TokenLogprob>) {
        self.text_offset.push(offset);
        self.tokens.push(text.to_string());
        self.token_logprobs.push(logprob.map(|t| finite(t.logprob)));
        self.top_logprobs.push(logprob.map(|t| {
            let mut top = Map::new();
            for (_, token, logprob) in &t.top {
                // Of several tokens with the same text the likeliest counts.
                top.entry(token.clone()).or_insert_with(|| same_digits(*logprob));
            }
            top.entry(t.token.clone()).or_insert_with(|| same_digits(t.logprob));
            top
        }));
    }
}

/// JSON has no infinity.
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

/// The number a client reads from `logprob`'s own digits, so that a token's value in the map of
/// the likeliest equals its value in the list (lm-evaluation-harness compares them).
fn same_digits(logprob: f32) -> Value {
    let logprob = finite(logprob);
    logprob.to_string().parse::<f64>().unwrap_or(logprob.into()).into()
}

/// `usage` of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WireUsage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
    /// Their sum.
    pub total_tokens: usize,
    /// What is known of the prompt's tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptDetails>,
}

/// `prompt_tokens_details` of a usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PromptDetails {
    /// Tokens that were not read again, because an earlier request began the same way.
    #[serde(deserialize_with = "super::null_as_default")]
    pub cached_tokens: usize,
}

impl WireUsage {
    /// Adds the number of prompt tokens found in the cache.
    #[must_use]
    pub fn with_cached(self, cached_tokens: usize) -> Self {
        Self { prompt_tokens_details: Some(PromptDetails { cached_tokens }), ..self }
    }
}

impl From<Usage> for WireUsage {
    fn from(u: Usage) -> Self {
        Self {
            prompt_tokens: u.prompt_tokens,
            completion_tokens: u.completion_tokens,
            total_tokens: u.prompt_tokens + u.completion_tokens,
            prompt_tokens_details: None,
        }
    }
}

impl From<WireUsage> for Usage {
    fn from(u: WireUsage) -> Self {
        Self { prompt_tokens: u.prompt_tokens, completion_tokens: u.completion_tokens }
    }
}

/// Answer of `GET /v1/models`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// The models served.
    pub data: Vec<ModelCard>,
}

/// One model served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelCard {
    /// The name to use in requests.
    pub id: String,
    /// `model`.
    pub object: String,
    /// Unix time in seconds.
    pub created: u64,
    /// Who serves it.
    pub owned_by: String,
    /// Longest prompt plus completion, if the server tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_model_len: Option<usize>,
}

/// Answer of `POST /tokenize`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TokenizeResponse {
    /// Number of tokens.
    pub count: usize,
    /// Longest prompt plus completion.
    pub max_model_len: usize,
    /// The token ids.
    pub tokens: Vec<u32>,
}

/// Body of every error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorDetail {
    /// For the user.
    pub message: String,
    /// `invalid_request_error`, `server_error`, ….
    #[serde(rename = "type")]
    pub kind: String,
    /// The parameter at fault.
    pub param: Option<String>,
    /// Machine-readable kind; a string, or a number with some servers.
    pub code: Option<Value>,
}

/// The wire's name for why generation ended.
#[must_use]
pub fn write_finish(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
    }
}

/// Reads the wire's reason; unknown ones count as `stop`.
#[must_use]
pub fn read_finish(reason: Option<&str>) -> FinishReason {
    match reason {
        Some("length") => FinishReason::Length,
        Some("tool_calls" | "function_call") => FinishReason::ToolCalls,
        _ => FinishReason::Stop,
    }
}

/// Reads an assistant message of an answer.
///
/// # Errors
/// If it is not a message.
pub fn read_answer(message: Value) -> anyhow::Result<Message> {
    let mut value = message;
    if let Some(object) = value.as_object_mut() {
        // Servers send nulls for what is absent (`tool_calls`, `refusal`, `audio`, …).
        object.retain(|_, v| !v.is_null());
        object.entry("role").or_insert_with(|| "assistant".into());
    }
    serde_json::from_value(value).context("the server's message is malformed")
}
