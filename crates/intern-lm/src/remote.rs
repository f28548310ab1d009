//! Clients for models behind an HTTP API.
//!
//! [`Remote`] speaks OpenAI's API as vLLM, SGLang, LMDeploy, llama.cpp and our own
//! `intern serve api` do: chat and completions, streamed when somebody watches, and
//! log-likelihoods through `echo` and `logprobs`. Requests of one call run side by
//! side. Leaves out: other APIs (they become implementations beside it).

mod http;
mod score;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};

use anyhow::{Context, Result};
use intern_format::conversation::Message;
use serde_json::Value;

use crate::request::{
    ChatRequest, ChatResponse, Completion, FinishReason, GenerateRequest, Prompt, Score, ScoreRequest,
    TokenLogprob, Usage,
};
use crate::wire::{
    ChatCompletion, ChatCompletionRequest, Common, CompletionChoice, CompletionRequest, CompletionResponse,
    Delta, ModelList, StreamOptions, WirePrompt, read_answer, read_finish,
};
use crate::{LanguageModel, Sink};
use http::{ApiError, Client};

/// A model behind an OpenAI-compatible API.
pub struct Remote {
    client: Client,
    model: String,
    max_context: Option<usize>,
    /// `owned_by` of the model's card: which extensions the server knows.
    owner: String,
    /// Whether the server tokenizes for us.
    has_tokenize: bool,
    /// Requests under way at once.
    pub parallel: usize,
}

impl Remote {
    /// Connects to `base_url` (with or without `/v1`). Without a `model`, the first one served is used.
    ///
    /// # Errors
    /// If the server cannot be reached or refuses the key; if it lists no models and none was named.
    pub fn new(base_url: &str, model: Option<String>, api_key: Option<String>) -> Result<Self> {
        let client = Client::new(base_url, api_key)?;
        let cards = match client.get::<ModelList>("/models", false) {
            Ok(list) => list.data,
            Err(error) => match (error.downcast_ref::<ApiError>(), &model) {
                // Not every server has this route.
                (Some(e), Some(_)) if !matches!(e.status, 401 | 403) => Vec::new(),
                _ => return Err(error),
            },
        };
        let card = match &model {
            Some(name) => cards.iter().find(|c| c.id == *name),
            None => cards.first(),
        };
        let card = card.cloned().unwrap_or_default();
        let model = match model {
            Some(name) => name,
            None if !card.id.is_empty() => card.id,
            None => anyhow::bail!("{} lists no models\nhint: name the model to use", client.base),
        };
        let (max_context, owner) = (card.max_model_len, card.owned_by);
        let mut remote = Self { client, model, max_context, owner, has_tokenize: false, parallel: 8 };
        remote.has_tokenize = remote.is_extended() && remote.tokenize("", false).is_ok();
        Ok(remote)
    }

    /// Whether the server is `intern serve api`.
    fn is_ours(&self) -> bool {
        self.owner == "intern"
    }

    /// Whether the server knows vLLM's additions to the API.
    fn is_extended(&self) -> bool {
        self.is_ours() || self.owner == "vllm"
    }

    /// Adds to a "model not found" what the server does have.
    fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            if !error.downcast_ref::<ApiError>().is_some_and(ApiError::is_model_not_found) {
                return error;
            }
            let Ok(list) = self.client.get::<ModelList>("/models", false) else { return error };
            let names: Vec<String> = list.data.into_iter().map(|c| c.id).collect();
            anyhow::anyhow!(
                "{} has no model {}\nhint: it serves {}",
                self.client.base,
                self.model,
                if names.is_empty() { "none".to_string() } else { names.join(", ") }
            )
        })
    }

    fn complete(&self, request: &GenerateRequest, sink: Option<&mut dyn FnMut(&str)>) -> Result<Completion> {
        let mut body = CompletionRequest {
            common: Common::from_sampling(&self.model, &request.sampling),
            prompt: Some(match &request.prompt {
                Prompt::Text(text) => WirePrompt::Text(text.clone()),
                Prompt::Tokens(ids) => WirePrompt::Tokens(ids.clone()),
            }),
            logprobs: request.sampling.logprobs.map(|k| k as i64),
            ..CompletionRequest::default()
        };
        if self.is_extended() {
            body.common.return_token_ids = Some(true);
        }
        let Some(sink) = sink else {
            let answer: CompletionResponse = self.explain(self.client.post("/completions", &body))?;
            let choice = answer.choices.into_iter().next().context("the server sent no choice")?;
            return Ok(read_completion(choice, answer.usage.map(Usage::from).unwrap_or_default()));
        };
        body.common.stream = Some(true);
        body.common.stream_options = Some(StreamOptions { include_usage: true });
        let mut whole = CompletionChoice::default();
        let mut usage = Usage::default();
        self.explain(self.client.stream("/completions", &body, &mut |event| {
            let chunk: CompletionResponse =
                serde_json::from_value(event).context("a chunk of the stream is malformed")?;
            usage = chunk.usage.map_or(usage, Usage::from);
            let Some(choice) = chunk.choices.into_iter().next() else { return Ok(()) };
            if !choice.text.is_empty() {
                sink(&choice.text);
                whole.text.push_str(&choice.text);
            }
            if let Some(more) = choice.logprobs {
                let all = whole.logprobs.get_or_insert_default();
                all.tokens.extend(more.tokens);
                all.token_logprobs.extend(more.token_logprobs);
                all.top_logprobs.extend(more.top_logprobs);
            }
            whole.token_ids.get_or_insert_default().extend(choice.token_ids.unwrap_or_default());
            whole.finish_reason = choice.finish_reason.or(whole.finish_reason.take());
            Ok(())
        }))?;
        self.must_have_ended(whole.finish_reason.is_some())?;
        Ok(read_completion(whole, usage))
    }

    fn chat_body(&self, request: &ChatRequest) -> ChatCompletionRequest {
        let mut body = ChatCompletionRequest::from_request(&self.model, request);
        if !self.is_ours() {
            body.parse_tools = None;
        }
        body
    }

    fn chat_whole(&self, request: &ChatRequest) -> Result<ChatResponse> {
        let answer: ChatCompletion =
            self.explain(self.client.post("/chat/completions", &self.chat_body(request)))?;
        let choice = answer.choices.into_iter().next().context("the server sent no choice")?;
        Ok(ChatResponse {
            message: read_answer(choice.message.unwrap_or_default())?,
            finish: read_finish(choice.finish_reason.as_deref()),
            usage: answer.usage.map(Usage::from).unwrap_or_default(),
        })
    }

    fn must_have_ended(&self, ended: bool) -> Result<()> {
        anyhow::ensure!(
            ended,
            "{}: the stream ended before the answer did\nhint: look into the server's log",
            self.client.base
        );
        Ok(())
    }
}

impl LanguageModel for Remote {
    fn name(&self) -> &str {
        &self.model
    }

    fn max_context(&self) -> Option<usize> {
        self.max_context
    }

    /// One request is streamed; of several, each arrives whole.
    fn generate(&self, requests: &[GenerateRequest], sink: Sink) -> Result<Vec<Completion>> {
        if let [request] = requests {
            return Ok(vec![self.complete(request, Some(&mut |text| sink(0, text)))?]);
        }
        side_by_side(
            self.parallel,
            requests,
            |request| self.complete(request, None),
            &mut |i, done: &Completion| sink(i, &done.text),
        )
    }

    fn score(&self, requests: &[ScoreRequest]) -> Result<Vec<Score>> {
        side_by_side(self.parallel, requests, |request| self.score_one(request), &mut |_, _| {})
    }

    fn chat(&self, request: &ChatRequest, sink: Sink) -> Result<ChatResponse> {
        let mut body = self.chat_body(request);
        body.common.stream = Some(true);
        body.common.stream_options = Some(StreamOptions { include_usage: true });
        let mut message = Message::new("assistant", "");
        let mut calls: Vec<Value> = Vec::new();
        let (mut finish, mut usage) = (None, Usage::default());
        let mut whole = None;
        self.explain(self.client.stream("/chat/completions", &body, &mut |event| {
            let chunk: ChatCompletion =
                serde_json::from_value(event).context("a chunk of the stream is malformed")?;
            usage = chunk.usage.map_or(usage, Usage::from);
            let Some(choice) = chunk.choices.into_iter().next() else { return Ok(()) };
            if let Some(answer) = choice.message {
                whole = Some(answer);
            }
            let delta = choice.delta.unwrap_or_default();
            if let Some(text) = delta.content.as_deref().filter(|t| !t.is_empty()) {
                sink(0, text);
                message.content.push_str(text);
            }
            add_calls(&mut calls, &delta);
            finish = choice.finish_reason.or(finish.take());
            Ok(())
        }))?;
        self.must_have_ended(finish.is_some())?;
        if let Some(answer) = whole {
            message = read_answer(answer)?;
            sink(0, &message.content);
        }
        for call in calls {
            let name = call["function"]["name"].as_str().unwrap_or_default().to_string();
            let call = serde_json::from_value(call)
                .with_context(|| format!("the arguments of the call to {name} are not valid JSON"))?;
            message.tool_calls.push(call);
        }
        let finish = match read_finish(finish.as_deref()) {
            FinishReason::Stop if !message.tool_calls.is_empty() => FinishReason::ToolCalls,
            other => other,
        };
        Ok(ChatResponse { message, finish, usage })
    }

    fn chat_batch(&self, requests: &[ChatRequest]) -> Result<Vec<ChatResponse>> {
        side_by_side(self.parallel, requests, |request| self.chat_whole(request), &mut |_, _| {})
    }
}

fn read_completion(choice: CompletionChoice, usage: Usage) -> Completion {
    let tokens = choice.token_ids.unwrap_or_default();
    let logprobs = choice.logprobs.map(|l| {
        let mut top = l.top_logprobs.into_iter();
        let entries = l.tokens.into_iter().zip(l.token_logprobs).enumerate();
        entries
            .map(|(i, (token, logprob))| TokenLogprob {
                id: tokens.get(i).copied().unwrap_or(0),
                token,
                logprob: logprob.unwrap_or(0.0),
                top: top
                    .next()
                    .flatten()
                    .unwrap_or_default()
                    .into_iter()
                    .map(|(token, l)| (0, token, l.as_f64().unwrap_or(f64::NEG_INFINITY) as f32))
                    .collect(),
            })
            .collect()
    });
    let finish = read_finish(choice.finish_reason.as_deref());
    Completion { text: choice.text, tokens, finish, usage, logprobs }
}

/// Joins the parts of streamed calls.
fn add_calls(calls: &mut Vec<Value>, delta: &Delta) {
    for part in delta.tool_calls.iter().flatten() {
        while calls.len() <= part.index {
            calls.push(serde_json::json!({"id": "", "function": {"name": "", "arguments": ""}}));
        }
        let call = &mut calls[part.index];
        let mut append = |pointer: &str, text: &Option<String>| {
            if let (Some(Value::String(have)), Some(more)) = (call.pointer_mut(pointer), text) {
                have.push_str(more);
            }
        };
        append("/id", &part.id);
        append("/function/name", &part.function.name);
        append("/function/arguments", &part.function.arguments);
    }
}

/// Runs `ask` on every request, `threads` at a time; answers in order, the first error ends it.
/// `done` sees the answers as they arrive, on the calling thread.
fn side_by_side<Q: Sync, A: Send>(
    threads: usize,
    requests: &[Q],
    ask: impl Fn(&Q) -> Result<A> + Sync,
    done: &mut dyn FnMut(usize, &A),
) -> Result<Vec<A>> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let mut answers: Vec<Option<A>> = requests.iter().map(|_| None).collect();
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, requests.len().max(1)) {
            let sender = sender.clone();
            let (next, failure, ask) = (&next, &failure, &ask);
            scope.spawn(move || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(request) = requests.get(i) else { return };
                    match ask(request) {
                        Ok(answer) => drop(sender.send((i, answer))),
                        Err(error) => {
                            next.store(requests.len(), Ordering::Relaxed);
                            let mut failure = failure.lock().unwrap_or_else(|e| e.into_inner());
                            failure.get_or_insert(error);
                        }
                    }
                }
            });
        }
        drop(sender);
        for (i, answer) in receiver {
            done(i, &answer);
            answers[i] = Some(answer);
        }
    });
    match failure.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(error) => Err(error),
        None => Ok(answers.into_iter().flatten().collect()),
    }
}

#[cfg(test)]
mod tests;
