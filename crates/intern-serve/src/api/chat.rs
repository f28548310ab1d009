//! `POST /v1/chat/completions`: answers a conversation, whole or streamed.
//!
//! With tools, the answer runs through the model's [`ToolSplitter`]: text goes on at
//! once, calls when they are complete, first the name and then the arguments.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use intern_format::conversation::{Message, ToolCall};
use intern_lm::tools::{Piece, ToolFormat, ToolSplitter, count_calls};
use intern_lm::wire::{
    ChatChoice, ChatCompletion, ChatCompletionRequest, ChatLogprobs, ChatTokenLogprob, Delta, FunctionDelta,
    Invalid, ToolCallDelta, WireUsage, write_finish, write_message,
};
use intern_lm::{FinishReason, Sampling, ToolChoice, Usage};
use serde_json::Value;

use super::app::{App, off_thread, read_body, unix_time};
use super::error::ApiError;
use super::generate::{self, Job, Update};
use super::sse::{self, Events};

pub(super) async fn handle(State(app): State<Arc<App>>, body: Body) -> Result<Response, ApiError> {
    let body: ChatCompletionRequest = read_body(&app, body).await?;
    app.check_model(body.common.model.as_deref())?;
    let planner = app.clone();
    let plan = off_thread(move |_| Plan::new(&planner, &body)).await?;
    if plan.stream {
        let (events, response) = sse::channel();
        tokio::task::spawn_blocking(move || stream(&app, &plan, &events));
        return Ok(response);
    }
    let answer = off_thread(move |is_gone| whole(&app, &plan, is_gone)).await?;
    Ok(Json(answer).into_response())
}

/// A request, checked and tokenized.
struct Plan {
    id: String,
    created: u64,
    tokens: Arc<Vec<u32>>,
    /// Tokens that end a turn.
    sampling: Sampling,
    n: usize,
    /// How calls in the answer are written; `None` where they are not parsed.
    format: ToolFormat,
    /// Calls earlier in the conversation; ids go on from there.
    first_call: usize,
    /// Special tokens were asked for.
    keep_special: bool,
    stream: bool,
    include_usage: bool,
    return_ids: bool,
}

impl Plan {
    fn new(app: &App, body: &ChatCompletionRequest) -> Result<Self, ApiError> {
        let request = body.to_request(usize::MAX)?;
        let n = body.common.n()?;
        let number = app.next_request();
        let mut sampling = request.sampling;
        if body.common.seed.is_none() {
            sampling.seed = app.default_seed(number);
        }
        let tokenizer = app.engine.tokenizer();
        if tokenizer.chat_template().is_none() {
            let message = "this model has no chat template\nhint: use /v1/completions with a plain prompt";
            return Err(Invalid::unsupported("messages", message).into());
        }
        let tools: &[Value] = if request.tool_choice == ToolChoice::None { &[] } else { &request.tools };
        if !tools.is_empty() && app.tool_format == ToolFormat::None {
            let message = "this model's chat template knows no tools\nhint: describe the tools in the prompt";
            return Err(Invalid::unsupported("tools", message).into());
        }
        let tokens = tokenizer.encode_chat(&request.messages, tools, true).map_err(|e| {
            let message = format!("the chat template refuses these messages: {e:#}");
            ApiError::from(Invalid::new("messages", message))
        })?;
        generate::fit(app, &tokens, &mut sampling, "messages")?;
        let format = if tools.is_empty() || request.raw { ToolFormat::None } else { app.tool_format };
        let keep_special = sampling.keep_special;
        // The markers of calls are special tokens; the others are taken out of the text later.
        sampling.keep_special |= format != ToolFormat::None;
        sampling.stop_ids = tokenizer.end_ids();
        Ok(Self {
            id: app.id("chatcmpl", number),
            created: unix_time(),
            tokens: Arc::new(tokens),
            sampling,
            n,
            format,
            first_call: count_calls(&request.messages),
            keep_special,
            stream: body.common.stream.unwrap_or(false),
            include_usage: body.common.stream_options.unwrap_or_default().include_usage,
            return_ids: body.common.return_token_ids.unwrap_or(false),
        })
    }

    /// One job per answer; the first has the request's own seed.
    fn jobs(&self) -> Vec<Job> {
        let job = |i: usize| Job {
            tokens: self.tokens.clone(),
            sampling: Sampling { seed: self.sampling.seed.wrapping_add(i as u64), ..self.sampling.clone() },
            prompt_logprobs: None,
        };
        (0..self.n).map(job).collect()
    }

    fn frame(
        &self,
        app: &App,
        object: &str,
        choices: Vec<ChatChoice>,
        usage: Option<WireUsage>,
    ) -> ChatCompletion {
        let (id, model) = (self.id.clone(), app.name.clone());
        ChatCompletion { id, object: object.into(), created: self.created, model, choices, usage }
    }

    /// The prompt counts once, however many answers it gets.
    fn usage(&self, completion_tokens: usize) -> WireUsage {
        let usage = Usage { prompt_tokens: self.tokens.len(), completion_tokens };
        tracing::info!(id = self.id, usage.prompt_tokens, usage.completion_tokens, "answered");
        usage.into()
    }
}

/// One answer in the making.
struct Answer {
    /// Where calls are parsed: the splitter, until the answer ends.
    splitter: Option<ToolSplitter>,
    /// Special tokens to take out of the text.
    clean: bool,
    num_calls: usize,
}

impl Answer {
    fn new(plan: &Plan) -> Self {
        let splitter =
            (plan.format != ToolFormat::None).then(|| ToolSplitter::new(plan.format, plan.first_call));
        Self { clean: splitter.is_some() && !plan.keep_special, splitter, num_calls: 0 }
    }

    /// Text as it comes out of the model, to pieces for the client.
    fn push(&mut self, app: &App, text: String) -> Vec<Piece> {
        let text = if self.clean { without(&app.specials, text) } else { text };
        let pieces = match &mut self.splitter {
            _ if text.is_empty() => Vec::new(),
            Some(splitter) => splitter.push(&text),
            None => vec![Piece::Text(text)],
        };
        self.count(pieces)
    }

    /// What was held back, and the reason to report.
    fn finish(&mut self, finish: FinishReason) -> (Vec<Piece>, FinishReason) {
        let pieces = self.splitter.take().map(ToolSplitter::finish).unwrap_or_default();
        let pieces = self.count(pieces);
        let finish =
            if self.num_calls > 0 && finish == FinishReason::Stop { FinishReason::ToolCalls } else { finish };
        (pieces, finish)
    }

    fn count(&mut self, pieces: Vec<Piece>) -> Vec<Piece> {
        self.num_calls += pieces.iter().filter(|p| matches!(p, Piece::Call(_))).count();
        pieces
    }
}

/// Takes special tokens out of a piece of text.
fn without(specials: &[String], mut text: String) -> String {
    for special in specials {
        if text.contains(special.as_str()) {
            text = text.replace(special.as_str(), "");
        }
    }
    text
}

fn whole(app: &App, plan: &Plan, is_gone: &dyn Fn() -> bool) -> Result<ChatCompletion, ApiError> {
    struct Done {
        answer: Answer,
        message: Message,
        logprobs: Vec<ChatTokenLogprob>,
        ids: Vec<u32>,
        finish: FinishReason,
    }
    let new = |_| Done {
        answer: Answer::new(plan),
        message: Message::new("assistant", ""),
        logprobs: Vec::new(),
        ids: Vec::new(),
        finish: FinishReason::Stop,
    };
    let mut all: Vec<Done> = (0..plan.n).map(new).collect();
    let mut completion_tokens = 0;
    generate::run(app, plan.jobs(), is_gone, |i, update| {
        let done = &mut all[i];
        let pieces = match update {
            Update::Prompt(_) => Vec::new(),
            Update::Piece { id, text, logprob } => {
                done.ids.extend(id);
                done.logprobs.extend(logprob.as_ref().map(ChatTokenLogprob::from));
                done.answer.push(app, text)
            }
            Update::Done { finish, usage } => {
                completion_tokens += usage.completion_tokens;
                let (pieces, finish) = done.answer.finish(finish);
                done.finish = finish;
                pieces
            }
        };
        for piece in pieces {
            match piece {
                Piece::Text(text) => done.message.content.push_str(&text),
                Piece::Call(call) => done.message.tool_calls.push(call),
            }
        }
    })?;
    let choice = |(index, done): (usize, Done)| ChatChoice {
        index,
        message: Some(write_message(&done.message)),
        logprobs: plan.sampling.logprobs.map(|_| ChatLogprobs { content: done.logprobs, refusal: None }),
        finish_reason: Some(write_finish(done.finish).into()),
        token_ids: plan.return_ids.then_some(done.ids),
        ..ChatChoice::default()
    };
    let choices = all.into_iter().enumerate().map(choice).collect();
    Ok(plan.frame(app, "chat.completion", choices, Some(plan.usage(completion_tokens))))
}

fn stream(app: &App, plan: &Plan, events: &Events) {
    let send =
        |choice: ChatChoice| events.send(&plan.frame(app, "chat.completion.chunk", vec![choice], None));
    let chunk =
        |index: usize, delta: Delta| ChatChoice { index, delta: Some(delta), ..ChatChoice::default() };
    for index in 0..plan.n {
        let delta = Delta { role: Some("assistant".into()), content: Some(String::new()), tool_calls: None };
        send(chunk(index, delta));
    }
    let mut answers: Vec<Answer> = (0..plan.n).map(|_| Answer::new(plan)).collect();
    let mut completion_tokens = 0;
    let result = generate::run(app, plan.jobs(), &|| events.is_closed(), |i, update| {
        let mut num_sent = answers[i].num_calls;
        let (pieces, ids, logprobs, finish) = match update {
            Update::Prompt(_) => return,
            Update::Piece { id, text, logprob } => {
                let logprob = logprob.as_ref().map(ChatTokenLogprob::from);
                let logprobs = logprob.map(|l| ChatLogprobs { content: vec![l], refusal: None });
                (
                    answers[i].push(app, text),
                    id.filter(|_| plan.return_ids).map(|id| vec![id]),
                    logprobs,
                    None,
                )
            }
            Update::Done { finish, usage } => {
                completion_tokens += usage.completion_tokens;
                let (pieces, finish) = answers[i].finish(finish);
                (pieces, None, None, Some(finish))
            }
        };
        let mut deltas: Vec<Delta> = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => deltas.push(Delta { content: Some(text), ..Delta::default() }),
                Piece::Call(call) => {
                    deltas.extend(call_deltas(num_sent, call));
                    num_sent += 1;
                }
            }
        }
        // What belongs to the token travels with its first piece of text, or alone.
        if deltas.is_empty() && (ids.is_some() || logprobs.is_some()) {
            deltas.push(Delta::default());
        }
        let mut extra = (ids, logprobs);
        for delta in deltas {
            let (token_ids, logprobs) = (extra.0.take(), extra.1.take());
            send(ChatChoice { token_ids, logprobs, ..chunk(i, delta) });
        }
        if let Some(finish) = finish {
            send(ChatChoice {
                finish_reason: Some(write_finish(finish).into()),
                ..chunk(i, Delta::default())
            });
        }
    });
    match result {
        Err(error) => events.send(&error.body()),
        Ok(()) => {
            let usage = plan.usage(completion_tokens);
            if plan.include_usage {
                events.send(&plan.frame(app, "chat.completion.chunk", Vec::new(), Some(usage)));
            }
        }
    }
    events.done();
}

/// A call as OpenAI streams it: id and name, then the arguments.
fn call_deltas(index: usize, call: ToolCall) -> [Delta; 2] {
    let arguments = call.function.arguments.to_string();
    let name = FunctionDelta { name: Some(call.function.name), arguments: Some(String::new()) };
    let first = ToolCallDelta { index, id: Some(call.id), kind: Some(call.kind), function: name };
    let function = FunctionDelta { name: None, arguments: Some(arguments) };
    let second = ToolCallDelta { index, function, ..ToolCallDelta::default() };
    [first, second].map(|part| Delta { tool_calls: Some(vec![part]), ..Delta::default() })
}
