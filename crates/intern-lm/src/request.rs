//! Requests and answers of [`crate::LanguageModel`].

use std::collections::BTreeMap;

use intern_format::conversation::Message;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Text or token ids to continue.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Text; special tokens in it are recognized, BOS is added if the tokenizer adds it.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<u32>),
}

/// How the next token is chosen, and when to stop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the `k` likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens with this much probability.
    pub top_p: f32,
    /// Drop tokens below this share of the likeliest token's probability.
    pub min_p: f32,
    /// Keep the tokens whose surprise is closest to the expected one, up to this much
    /// probability (locally typical sampling, Meister et al., 2022); 1 is off.
    pub typical_p: f32,
    /// Divides (multiplies if negative) the logits of tokens already seen; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens generated so far; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each time it was generated so far; 0 is off.
    pub frequency_penalty: f32,
    /// Makes it costly to repeat what was said word for word.
    pub dry: Option<Dry>,
    /// Added to the logits of these token ids, from −100 to 100.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seeds the choice; the same request with the same seed gives the same tokens.
    pub seed: u64,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Stop when one of these appears; it is not part of the answer.
    pub stop: Vec<String>,
    /// Tokens that end the answer besides the model's own; part of the ids, not of the text.
    pub stop_ids: Vec<u32>,
    /// What the answer must look like. An answer cut by `max_tokens` is only a beginning of it.
    pub grammar: Option<Grammar>,
    /// Go on past the end-of-text token.
    pub ignore_eos: bool,
    /// Keep special tokens in the text (agent protocols need them).
    pub keep_special: bool,
    /// Log-probabilities of the chosen token and this many alternatives.
    pub logprobs: Option<usize>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            dry: None,
            logit_bias: BTreeMap::new(),
            seed: 0,
            max_tokens: 256,
            stop: Vec::new(),
            stop_ids: Vec::new(),
            grammar: None,
            ignore_eos: false,
            keep_special: false,
            logprobs: None,
        }
    }
}

/// "Don't repeat yourself": a token that would lengthen a repetition of `n` tokens loses
/// `multiplier * base^(n - allowed_length)` (the sampler of that name by p-e-w).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dry {
    /// Size of the penalty; 0 is off.
    pub multiplier: f32,
    /// Growth with the repetition's length.
    pub base: f32,
    /// Repetitions shorter than this are free.
    pub allowed_length: usize,
    /// A repetition begins anew behind a token whose text contains one of these.
    pub sequence_breakers: Vec<String>,
}

impl Default for Dry {
    fn default() -> Self {
        Self {
            multiplier: 0.8,
            base: 1.75,
            allowed_length: 2,
            sequence_breakers: ["\n", ":", "\"", "*"].map(str::to_owned).to_vec(),
        }
    }
}

/// The form an answer must have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that this schema accepts.
    JsonSchema(Value),
    /// Text that this regular expression matches as a whole.
    Regex(String),
    /// Text of this context-free grammar, in llguidance's dialect of Lark.
    Lark(String),
}

/// One prompt to continue.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// What to continue.
    pub prompt: Prompt,
    /// How.
    pub sampling: Sampling,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// End-of-text token or stop string.
    Stop,
    /// `max_tokens` or the context's end.
    Length,
    /// The answer is one or more tool calls.
    ToolCalls,
}

/// Tokens used by one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub completion_tokens: usize,
}

/// The log-probability of one generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Token id (0 from remote servers that do not tell).
    pub id: u32,
    /// Its text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest alternatives: id, text, log-probability.
    pub top: Vec<(u32, String, f32)>,
}

/// The answer to a [`GenerateRequest`].
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The generated text without the stop string.
    pub text: String,
    /// The generated token ids (empty from remote servers that do not tell).
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens used.
    pub usage: Usage,
    /// Present if the request asked for them.
    pub logprobs: Option<Vec<TokenLogprob>>,
}

/// Text whose log-likelihood is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScoreRequest {
    /// log p(continuation | context). Trailing spaces of the context move to the
    /// continuation, both are tokenized together, and the context's own token count
    /// marks the split (lm-evaluation-harness). An empty context becomes BOS (or EOS).
    Continuation {
        /// Text before.
        context: String,
        /// Text to score.
        continuation: String,
    },
    /// log p(text) over windows of the model's context, each token scored once.
    Rolling {
        /// Text to score.
        text: String,
    },
}

/// The answer to a [`ScoreRequest`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Sum of natural log-probabilities of the scored tokens.
    pub logprob: f64,
    /// Whether each scored token was the likeliest one.
    pub is_greedy: bool,
    /// Number of scored tokens.
    pub num_tokens: usize,
}

/// Whether the model may, must or must not call tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// Tools are hidden from the model.
    None,
    /// At least one tool must be called.
    Required,
    /// This tool must be called.
    Named(String),
}

/// One conversation to answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatRequest {
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// Tool declarations in OpenAI's form: `{"type":"function","function":{…}}`.
    pub tools: Vec<Value>,
    /// Whether tools may be called.
    pub tool_choice: ToolChoice,
    /// At most one call.
    pub single_call: bool,
    /// Variables for the chat template, such as `enable_thinking`.
    pub template: Map<String, Value>,
    /// How to generate.
    pub sampling: Sampling,
    /// Return the text as generated, without parsing tool calls.
    pub raw: bool,
}

/// The answer to a [`ChatRequest`].
#[derive(Clone, Debug, PartialEq)]
pub struct ChatResponse {
    /// The assistant's message.
    pub message: Message,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens used.
    pub usage: Usage,
}
