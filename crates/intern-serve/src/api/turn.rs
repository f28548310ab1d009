//! A conversation made ready to be answered: prompt, sampling, and how to read the answer.
//!
//! Chat completions, responses and messages all answer turns; they differ in what they
//! call things.

use std::sync::Arc;
use std::time::Instant;

use intern_lm::reasoning;
use intern_lm::tools::grammar::{Answer, grammar};
use intern_lm::tools::{ToolFormat, count_calls};
use intern_lm::wire::Invalid;
use intern_lm::{ChatRequest, Sampling, ToolChoice};
use serde_json::Value;

use super::app::{App, Served};
use super::error::ApiError;
use super::generate::{self, Job};
use super::reader::Reader;

/// A conversation, checked and tokenized.
pub(super) struct Turn {
    pub served: Served,
    pub tokens: Arc<Vec<u32>>,
    pub sampling: Sampling,
    deadline: Option<Instant>,
    /// How calls in the answer are written; `None` where they are not parsed.
    format: ToolFormat,
    tools: Vec<Value>,
    /// Calls earlier in the conversation; ids go on from there.
    first_call: usize,
    single_call: bool,
    /// `None` where thoughts are not separated; else whether the answer begins in one.
    inside_thought: Option<bool>,
    /// Special tokens were asked for.
    keep_special: bool,
}

impl Turn {
    /// Renders and checks a conversation; `number` tells requests without a seed apart.
    pub fn new(
        app: &App,
        served: Served,
        request: ChatRequest,
        seed: Option<i64>,
        number: u64,
        deadline: Option<Instant>,
    ) -> Result<Self, ApiError> {
        let ChatRequest { messages, tools, tool_choice, single_call, template, mut sampling, raw } = request;
        if seed.is_none() {
            sampling.seed = app.default_seed(number);
        }
        let tokenizer = app.engine.tokenizer();
        let Some(chat_template) = tokenizer.chat_template() else {
            let message = "this model has no chat template\nhint: use /v1/completions with a plain prompt";
            return Err(Invalid::unsupported("messages", message).into());
        };
        let tools: &[Value] = if tool_choice == ToolChoice::None { &[] } else { &tools };
        if !tools.is_empty() && app.tool_format == ToolFormat::None {
            let message = "this model's chat template knows no tools\nhint: describe the tools in the prompt";
            return Err(Invalid::unsupported("tools", message).into());
        }
        let refused = |e: anyhow::Error| {
            let message = format!("the chat template refuses these messages: {e:#}");
            ApiError::from(Invalid::new("messages", message))
        };
        let prompt = chat_template.render(&messages, tools, true, &template).map_err(refused)?;
        let tokens = tokenizer.encode(&prompt, false).map_err(refused)?;
        generate::fit(app, &tokens, &mut sampling, "messages")?;

        let format = if tools.is_empty() || raw { ToolFormat::None } else { app.tool_format };
        let inside_thought = (app.thinks && !raw).then(|| reasoning::begins_inside(&prompt));
        let token = |text: &str| tokenizer.token_to_id(text);
        sampling.grammar = grammar(&Answer {
            format: if tools.is_empty() { ToolFormat::None } else { app.tool_format },
            tools,
            choice: &tool_choice,
            single_call,
            form: sampling.grammar.as_ref(),
            inside_thought: app.thinks.then(|| reasoning::begins_inside(&prompt)),
            mistral_args: chat_template.source().contains("[ARGS]"),
            token: &token,
        });
        let keep_special = sampling.keep_special;
        // The markers of calls and thoughts may be special tokens; others are taken out of the text later.
        sampling.keep_special |= format != ToolFormat::None || inside_thought.is_some();
        sampling.stop_ids.extend(tokenizer.end_ids());
        let first_call = count_calls(&messages);
        let tokens = Arc::new(tokens);
        let tools = tools.to_vec();
        let turn = Self {
            served,
            tools,
            tokens,
            sampling,
            deadline,
            format,
            first_call,
            single_call,
            inside_thought,
            keep_special,
        };
        generate::check(app, &turn.job(0))?;
        Ok(turn)
    }

    /// Answer `i`; the first has the request's own seed.
    pub fn job(&self, i: usize) -> Job {
        Job {
            tokens: self.tokens.clone(),
            sampling: Sampling { seed: self.sampling.seed.wrapping_add(i as u64), ..self.sampling.clone() },
            deadline: self.deadline,
            adapter: self.served.adapter.clone(),
            ..Job::default()
        }
    }

    /// Reads one answer.
    pub fn reader(&self) -> Reader {
        let clean = !self.keep_special && self.sampling.keep_special;
        Reader::new(self.format, self.first_call, &self.tools, self.single_call, self.inside_thought, clean)
    }
}
