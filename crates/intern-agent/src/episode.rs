//! One question on its way to an answer.

use intern_format::conversation::{Message, ToolCall};
use intern_lm::{ChatRequest, ChatResponse, FinishReason, Usage};
use serde_json::{Value, json};

use crate::answer;
use crate::config::AgentConfig;
use crate::events::{ANSWER, Event};
use crate::problems::Problem;
use crate::protocol::Turn;
use crate::tools::Toolbox;

/// How an episode ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The model answered.
    Answered,
    /// It was still calling tools after the last turn.
    TurnLimit,
    /// The conversation no longer fits the model's context.
    ContextFull,
}

impl Outcome {
    /// The name in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::TurnLimit => "turn_limit",
            Self::ContextFull => "context_full",
        }
    }
}

/// A question, the conversation about it so far, and its events.
pub struct Episode<'a> {
    config: &'a AgentConfig,
    tools: &'a Toolbox,
    model: &'a str,
    problem: Problem,
    messages: Vec<Message>,
    /// Everything that happened.
    pub events: Vec<Event>,
    /// Set when it is over.
    pub outcome: Option<Outcome>,
    answer: String,
    turns: usize,
    tool_calls: usize,
    tool_errors: usize,
    malformed: usize,
    usage: Usage,
    last_usage: Usage,
}

impl<'a> Episode<'a> {
    /// Opens an episode about `problem`.
    #[must_use]
    pub fn new(config: &'a AgentConfig, tools: &'a Toolbox, model: &'a str, problem: Problem) -> Self {
        let messages = config.protocol.opening(&config.system, &problem.question, tools);
        let mut question = Event::new("question")
            .with("gen_ai.operation.name", "invoke_agent")
            .with("gen_ai.request.model", model)
            .with("content", problem.question.as_str());
        if let Some(lang) = &problem.lang {
            question = question.with("lang", lang.as_str());
        }
        Self {
            config,
            tools,
            model,
            problem,
            messages,
            events: vec![question],
            outcome: None,
            answer: String::new(),
            turns: 0,
            tool_calls: 0,
            tool_errors: 0,
            malformed: 0,
            usage: Usage::default(),
            last_usage: Usage::default(),
        }
    }

    /// What to ask the model next.
    #[must_use]
    pub fn request(&self) -> ChatRequest {
        self.config.protocol.request(&self.messages, self.tools, &self.config.sampling)
    }

    /// Whether the next request may exceed `max_context`: the tokens of the last turn are
    /// known, and what was added since has at most one token per byte.
    #[must_use]
    pub fn may_overflow(&self, max_context: Option<usize>) -> bool {
        let Some(max_context) = max_context else { return false };
        let known = self.last_usage.prompt_tokens + self.last_usage.completion_tokens;
        let spoke = self.messages.iter().rposition(|m| m.role == "assistant").map_or(0, |i| i + 1);
        let added: usize = self.messages[spoke..].iter().map(|m| m.content.len() + 32).sum();
        let tools: usize =
            if known == 0 { self.tools.declarations().iter().map(|t| t.to_string().len()).sum() } else { 0 };
        known + added + tools >= max_context
    }

    /// Takes the model's answer: runs the tools it calls, or ends the episode.
    pub fn take(&mut self, response: &ChatResponse) {
        self.turns += 1;
        self.last_usage = response.usage;
        self.usage.prompt_tokens += response.usage.prompt_tokens;
        self.usage.completion_tokens += response.usage.completion_tokens;
        let (message, turn) = self.config.protocol.read(response, self.tools, self.tool_calls);
        self.events.push(self.spoken(&message, response));
        self.messages.push(message);
        match turn {
            Turn::Answer(text) => {
                self.answer = text;
                self.finish(Outcome::Answered);
                return;
            }
            Turn::Calls(calls) => {
                for call in &calls {
                    self.call(call);
                }
            }
            Turn::Malformed(reminder) => {
                self.malformed += 1;
                self.events.push(Event::new("reminder").with("content", reminder.as_str()));
                self.messages.push(self.config.protocol.result(None, &reminder));
            }
        }
        if self.turns >= self.config.max_turns {
            self.finish(Outcome::TurnLimit);
        }
    }

    /// Ends the episode and writes its `answer` event.
    pub fn finish(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
        let found = answer::extract(&self.answer, self.config.answer_marker.as_deref());
        let expected = self.problem.answer.clone();
        let correct = expected.as_ref().map(|e| found.as_ref().is_some_and(|f| answer::matches(f, e)));
        self.events.push(
            Event::new(ANSWER)
                .with("content", self.answer.as_str())
                .with("outcome", outcome.name())
                .with("answer", found)
                .with("expected", expected)
                .with("correct", correct)
                .with("lang", self.problem.lang.clone())
                .with("turns", self.turns)
                .with("tool_calls", self.tool_calls)
                .with("tool_errors", self.tool_errors)
                .with("malformed", self.malformed)
                .with("gen_ai.usage.input_tokens", self.usage.prompt_tokens)
                .with("gen_ai.usage.output_tokens", self.usage.completion_tokens),
        );
    }

    /// The problem's name and its events.
    #[must_use]
    pub fn into_record(self) -> (String, Vec<Event>) {
        (self.problem.id, self.events)
    }

    /// The final text.
    #[must_use]
    pub fn answer(&self) -> &str {
        &self.answer
    }

    fn spoken(&self, message: &Message, response: &ChatResponse) -> Event {
        let finish = match response.finish {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::ToolCalls => "tool_calls",
        };
        Event::new("assistant")
            .with("gen_ai.operation.name", "chat")
            .with("gen_ai.request.model", self.model)
            .with("gen_ai.response.finish_reasons", json!([finish]))
            .with("gen_ai.usage.input_tokens", response.usage.prompt_tokens)
            .with("gen_ai.usage.output_tokens", response.usage.completion_tokens)
            .with("content", message.content.as_str())
    }

    fn call(&mut self, call: &ToolCall) {
        let outcome = self.tools.call(&call.function.name, &call.function.arguments);
        self.tool_calls += 1;
        self.tool_errors += usize::from(!outcome.ok);
        let event = |kind| {
            Event::new(kind)
                .with("gen_ai.operation.name", "execute_tool")
                .with("gen_ai.tool.name", call.function.name.as_str())
                .with("gen_ai.tool.call.id", call.id.as_str())
        };
        self.events.push(
            event("tool_call")
                .with("gen_ai.tool.call.arguments", call.function.arguments.clone())
                .with("call", spell(&call.function.name, &call.function.arguments)),
        );
        let mut result = event("tool_result").with("content", outcome.text.as_str());
        if !outcome.ok {
            result = result.with("error.type", "tool_error");
        }
        self.events.push(result);
        self.messages.push(self.config.protocol.result(Some(call), &outcome.text));
    }
}

/// `calculator(expression: "3 + 4")`, for people.
fn spell(name: &str, arguments: &Value) -> String {
    match arguments.as_object() {
        Some(arguments) => {
            let parts: Vec<String> = arguments.iter().map(|(k, v)| format!("{k}: {v}")).collect();
            format!("{name}({})", parts.join(", "))
        }
        None => format!("{name}({arguments})"),
    }
}
