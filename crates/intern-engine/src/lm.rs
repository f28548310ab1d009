//! [`LanguageModel`] for the engine: text in, text out, requests of one call batched.

use std::sync::mpsc::channel;

use anyhow::{Context, Result, anyhow, bail, ensure};
use intern_format::conversation::Message;
use intern_lm::reasoning;
use intern_lm::score::{total, windows};
use intern_lm::tools::grammar::{Answer, grammar};
use intern_lm::tools::{Piece, ToolFormat, ToolSplitter};
use intern_lm::{
    ChatRequest, ChatResponse, Completion, FinishReason, GenerateRequest, LanguageModel, Prompt, Sampling,
    Score, ScoreRequest, Sink, TokenLogprob, ToolChoice, Usage,
};

use crate::engine::{Engine, EngineRequest, Event, TokenScore};

/// Everything one request produced.
struct Generated {
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
    scores: Vec<TokenScore>,
    finish: FinishReason,
    usage: Usage,
}

impl Engine {
    /// Runs requests together; answers in order. `sink` gets each new piece of text.
    fn run_all(&self, requests: Vec<EngineRequest>, sink: Sink) -> Result<Vec<Generated>> {
        let (sender, receiver) = channel();
        let mut answers: Vec<Generated> = Vec::with_capacity(requests.len());
        let mut pending = requests.len();
        for (i, request) in requests.into_iter().enumerate() {
            answers.push(Generated {
                text: String::new(),
                tokens: Vec::new(),
                logprobs: Vec::new(),
                scores: Vec::new(),
                finish: FinishReason::Length,
                usage: Usage::default(),
            });
            let sender = sender.clone();
            self.submit_to(request, Box::new(move |event| sender.send((i, event)).is_ok()));
        }
        drop(sender);
        while pending > 0 {
            // Returning on an error drops the receiver, which cancels the others.
            let (i, event) = receiver.recv().context("the engine has stopped")?;
            let answer = &mut answers[i];
            match event {
                Event::Ping | Event::Prefill { .. } => {}
                Event::Token { id, text, logprob } => {
                    answer.tokens.push(id);
                    answer.logprobs.extend(logprob);
                    answer.extend_text(i, &text, sink);
                }
                Event::Done { text, finish, usage, scores, .. } => {
                    answer.extend_text(i, &text, sink);
                    (answer.finish, answer.usage, answer.scores) = (finish, usage, scores);
                    pending -= 1;
                }
                Event::Error(message) => return Err(anyhow!(message).context(format!("request {i}"))),
                Event::Expired => bail!("request {i}: its deadline has passed"),
            }
        }
        Ok(answers)
    }

    /// The engine's request for a conversation, and how to read the answer.
    fn chat_request(&self, request: &ChatRequest) -> Result<(EngineRequest, ToolSplitter)> {
        let tokenizer = self.tokenizer();
        let template = tokenizer.chat_template().context(
            "the tokenizer has no chat template\nhint: add `chat_template` to tokenizer_config.json",
        )?;
        let tools = if request.tool_choice == ToolChoice::None { &[][..] } else { &request.tools[..] };
        let prompt = template.render(&request.messages, tools, true, &request.template)?;
        let tokens = tokenizer.encode(&prompt, false)?;
        let own = if tools.is_empty() { ToolFormat::None } else { ToolFormat::detect(template.source()) };
        check_choice(request, own)?;
        let format = if request.raw { ToolFormat::None } else { own };
        let mut sampling = request.sampling.clone();
        sampling.grammar = grammar(&Answer {
            format: own,
            tools,
            choice: &request.tool_choice,
            single_call: request.single_call,
            form: request.sampling.grammar.as_ref(),
            inside_thought: reasoning::thinks(template.source()).then(|| reasoning::begins_inside(&prompt)),
            mistral_args: template.source().contains("[ARGS]"),
            token: &|text| tokenizer.token_to_id(text),
        });
        // The markers of tool calls are special tokens.
        sampling.keep_special |= format != ToolFormat::None;
        sampling.stop_ids = tokenizer.end_ids();
        let engine_request = EngineRequest::new(tokens, sampling);
        let earlier_calls = request.messages.iter().map(|m| m.tool_calls.len()).sum();
        Ok((engine_request, ToolSplitter::new(format, earlier_calls).with_tools(tools)))
    }
}

/// Fails for a choice of tools that the model cannot be held to.
fn check_choice(request: &ChatRequest, format: ToolFormat) -> Result<()> {
    let name_of = |tool: &serde_json::Value| tool.pointer("/function/name").cloned().unwrap_or_default();
    let declares = |name: &String| request.tools.iter().any(|tool| name_of(tool) == name.as_str());
    match &request.tool_choice {
        ToolChoice::Auto | ToolChoice::None => return Ok(()),
        ToolChoice::Required => {
            ensure!(
                !request.tools.is_empty(),
                "a tool must be called, but there are none\nhint: declare tools"
            );
        }
        ToolChoice::Named(name) => {
            ensure!(declares(name), "the tool {name} must be called, but it is not among the tools");
        }
    }
    ensure!(
        format != ToolFormat::None,
        "this model's chat template knows no tools\nhint: describe the tools in the prompt"
    );
    Ok(())
}

impl Generated {
    fn extend_text(&mut self, i: usize, text: &str, sink: &mut dyn FnMut(usize, &str)) {
        if !text.is_empty() {
            self.text.push_str(text);
            sink(i, text);
        }
    }

    fn into_completion(self, wants_logprobs: bool) -> Completion {
        Completion {
            text: self.text,
            tokens: self.tokens,
            finish: self.finish,
            usage: self.usage,
            logprobs: wants_logprobs.then_some(self.logprobs),
        }
    }
}

/// Content and calls from the splitter's pieces.
fn collect(pieces: Vec<Piece>, message: &mut Message, sink: &mut dyn FnMut(usize, &str)) {
    for piece in pieces {
        match piece {
            Piece::Text(text) => {
                message.content.push_str(&text);
                sink(0, &text);
            }
            Piece::Call(call) => message.tool_calls.push(call),
        }
    }
}

fn response(message: Message, answer: &Generated) -> ChatResponse {
    let finish = match (answer.finish, message.tool_calls.is_empty()) {
        (FinishReason::Stop, false) => FinishReason::ToolCalls,
        (finish, _) => finish,
    };
    ChatResponse { message, finish, usage: answer.usage }
}

impl LanguageModel for Engine {
    fn name(&self) -> &str {
        self.model_name()
    }

    fn max_context(&self) -> Option<usize> {
        Some(self.context_length())
    }

    fn generate(&self, requests: &[GenerateRequest], sink: Sink) -> Result<Vec<Completion>> {
        let engine_requests = requests.iter().map(|request| {
            let tokens = match &request.prompt {
                Prompt::Text(text) => self.tokenizer().encode(text, true)?,
                Prompt::Tokens(tokens) => tokens.clone(),
            };
            Ok(EngineRequest::new(tokens, request.sampling.clone()))
        });
        let answers = self.run_all(engine_requests.collect::<Result<_>>()?, sink)?;
        let wants = requests.iter().map(|r| r.sampling.logprobs.is_some());
        Ok(answers.into_iter().zip(wants).map(|(answer, wants)| answer.into_completion(wants)).collect())
    }

    fn score(&self, requests: &[ScoreRequest]) -> Result<Vec<Score>> {
        let tokenizer = self.tokenizer();
        let encode = |text: &str, special: bool| tokenizer.encode(text, special);
        let prefix = || {
            let token = tokenizer.bos_id().or(tokenizer.eos_id());
            token.context("scoring text without context needs a BOS or EOS token, the tokenizer has neither")
        };
        let mut engine_requests = Vec::new();
        let mut num_windows = Vec::with_capacity(requests.len());
        for request in requests {
            let windows = windows(request, &encode, &prefix, self.context_length())?;
            num_windows.push(windows.len());
            for mut window in windows {
                let from = window.tokens.len() - window.scored;
                // The last token is scored, not read; so one more than the context fits.
                let last = window.tokens.pop().expect("a scored token is there");
                let sampling = Sampling { max_tokens: 0, ..Sampling::default() };
                engine_requests.push(EngineRequest {
                    score_from: Some(from),
                    score_next: Some(last),
                    ..EngineRequest::new(window.tokens, sampling)
                });
            }
        }
        let mut answers = self.run_all(engine_requests, &mut |_, _| {})?.into_iter();
        let score = |n: usize| {
            let scores = answers.by_ref().take(n).flat_map(|a| a.scores);
            total(scores.map(|s| (s.logprob, s.is_greedy)))
        };
        Ok(num_windows.into_iter().map(score).collect())
    }

    fn chat(&self, request: &ChatRequest, sink: Sink) -> Result<ChatResponse> {
        let (engine_request, mut splitter) = self.chat_request(request)?;
        let mut message = Message::new("assistant", "");
        let mut answers = self.run_all(vec![engine_request], &mut |_, text| {
            collect(splitter.push(text), &mut message, sink);
        })?;
        collect(splitter.finish(), &mut message, sink);
        Ok(response(message, &answers.remove(0)))
    }

    fn chat_batch(&self, requests: &[ChatRequest]) -> Result<Vec<ChatResponse>> {
        let prepared = requests.iter().map(|r| self.chat_request(r)).collect::<Result<Vec<_>>>()?;
        let (engine_requests, splitters): (Vec<_>, Vec<_>) = prepared.into_iter().unzip();
        let answers = self.run_all(engine_requests, &mut |_, _| {})?;
        let read = |(answer, mut splitter): (Generated, ToolSplitter)| {
            let mut message = Message::new("assistant", "");
            collect(splitter.push(&answer.text), &mut message, &mut |_, _| {});
            collect(splitter.finish(), &mut message, &mut |_, _| {});
            response(message, &answer)
        };
        Ok(answers.into_iter().zip(splitters).map(read).collect())
    }
}
