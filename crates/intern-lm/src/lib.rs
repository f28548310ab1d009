//! What any language model can be asked, wherever it runs.
//!
//! [`LanguageModel`] is the one trait between models and everything that uses
//! them: `intern-engine` implements it for local weights, [`remote`] for any
//! OpenAI-compatible server. Evaluation and agents see nothing else.

pub mod reasoning;
pub mod remote;
pub mod request;
pub mod score;
pub mod tools;
pub mod wire;

use anyhow::Result;

pub use request::{
    ChatRequest, ChatResponse, Completion, Dry, FinishReason, GenerateRequest, Grammar, Prompt, Sampling,
    Score, ScoreRequest, TokenLogprob, ToolChoice, Usage,
};

/// Receives text as it is generated: the request's index in the batch, then the new piece.
pub type Sink<'a> = &'a mut dyn FnMut(usize, &str);

/// A language model that answers requests; calls block until all answers are there.
///
/// Implementations batch the requests of one call, so hand over many at once.
pub trait LanguageModel: Send + Sync {
    /// The name used in requests and reports.
    fn name(&self) -> &str;

    /// Longest prompt plus completion in tokens, if known.
    fn max_context(&self) -> Option<usize>;

    /// Continues each prompt. Answers come in the order of `requests`.
    ///
    /// # Errors
    /// If the model cannot run a request at all (too long, unreachable server).
    fn generate(&self, requests: &[GenerateRequest], sink: Sink) -> Result<Vec<Completion>>;

    /// Log-likelihood of each continuation, with lm-evaluation-harness's token split.
    ///
    /// # Errors
    /// As [`LanguageModel::generate`], and if a remote server returns no prompt log-probabilities.
    fn score(&self, requests: &[ScoreRequest]) -> Result<Vec<Score>>;

    /// Answers one conversation; tool calls in the model's own format come back parsed
    /// unless the request asks for raw text.
    ///
    /// # Errors
    /// As [`LanguageModel::generate`].
    fn chat(&self, request: &ChatRequest, sink: Sink) -> Result<ChatResponse>;

    /// Answers many conversations, batched where the model can.
    ///
    /// # Errors
    /// As [`LanguageModel::generate`].
    fn chat_batch(&self, requests: &[ChatRequest]) -> Result<Vec<ChatResponse>> {
        requests.iter().map(|r| self.chat(r, &mut |_, _| {})).collect()
    }
}
