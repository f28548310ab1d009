//! Bodies of `POST /v1/completions`, `/v1/embeddings`, `/tokenize` and `/detokenize`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::common::refuse_unknown;
use super::{Common, Invalid};

/// Text, texts, token ids, or several lists of them.
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
    /// Everything else.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl CompletionRequest {
    /// Refuses parameters nothing reads.
    ///
    /// # Errors
    /// Names the parameter.
    pub fn check_unknown(&self) -> Result<(), Invalid> {
        refuse_unknown(&self.rest)
    }
}

/// Body of `POST /v1/embeddings`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EmbeddingRequest {
    /// The model's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What to embed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<WirePrompt>,
    /// `float` (if absent) or `base64`: little-endian f32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding_format: Option<String>,
    /// Length of the vectors; only the model's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<i64>,
    /// Everything else.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl EmbeddingRequest {
    /// Refuses parameters nothing reads.
    ///
    /// # Errors
    /// Names the parameter.
    pub fn check_unknown(&self) -> Result<(), Invalid> {
        refuse_unknown(&self.rest)
    }
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
