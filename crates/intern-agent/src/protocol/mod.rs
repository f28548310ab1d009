//! How an episode is written for the model, and how its turn is read.
//!
//! A protocol turns (system, question, tools) into messages, a response into a
//! [`Turn`], and a tool's result into the message the model reads next.

mod internlm2;
mod openai;
mod react;

use intern_format::conversation::{Message, ToolCall};
use intern_lm::{ChatRequest, ChatResponse, Sampling};
use serde::{Deserialize, Serialize};

use crate::tools::Toolbox;

/// The ways of calling tools we speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Text: `Thought:`, `Action:`, `Action Input:`, `Response:`, `Final Answer:`
    /// (Yao et al., 2022, in Lagent's words). Works with any chat model.
    React,
    /// InternLM2's `<|action_start|><|plugin|>` calls and `environment` messages, written by
    /// the model's own chat template.
    #[default]
    Internlm2,
    /// OpenAI function calling: the model's server or our engine parses the calls.
    Openai,
}

/// What the model did in one turn.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    /// It answered.
    Answer(String),
    /// It called tools.
    Calls(Vec<ToolCall>),
    /// It tried to call a tool and the text cannot be read; the reminder says how to.
    Malformed(String),
}

impl Protocol {
    /// The name in configs and results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::React => "react",
            Self::Internlm2 => "internlm2",
            Self::Openai => "openai",
        }
    }

    /// The messages an episode begins with.
    #[must_use]
    pub fn opening(self, system: &str, question: &str, tools: &Toolbox) -> Vec<Message> {
        let system = match self {
            Self::React => react::system(system, tools),
            Self::Internlm2 | Self::Openai => system.to_string(),
        };
        let mut messages = Vec::new();
        if !system.is_empty() {
            messages.push(Message::new("system", system));
        }
        messages.push(Message::new("user", question));
        messages
    }

    /// The request for the model's next turn.
    #[must_use]
    pub fn request(self, messages: &[Message], tools: &Toolbox, sampling: &Sampling) -> ChatRequest {
        let mut request =
            ChatRequest { messages: messages.to_vec(), sampling: sampling.clone(), ..ChatRequest::default() };
        match self {
            Self::React => request.sampling.stop.push(react::STOP.to_string()),
            Self::Internlm2 => {
                request.tools = tools.declarations();
                request.raw = true;
                request.sampling.keep_special = true;
            }
            Self::Openai => request.tools = tools.declarations(),
        }
        request
    }

    /// Reads the model's turn: the message to keep in the history, and what it means.
    #[must_use]
    pub fn read(self, response: &ChatResponse, tools: &Toolbox, first_call: usize) -> (Message, Turn) {
        match self {
            Self::React => react::read(&response.message.content, tools, first_call),
            Self::Internlm2 => internlm2::read(&response.message, first_call),
            Self::Openai => openai::read(&response.message, first_call),
        }
    }

    /// The message that carries a tool's result, or a reminder when there is no call.
    #[must_use]
    pub fn result(self, call: Option<&ToolCall>, text: &str) -> Message {
        match (self, call) {
            (Self::React, _) => Message::new("user", format!("Response: {text}")),
            // A reminder answers no call; OpenAI's servers refuse `tool` messages that answer none.
            (Self::Openai, None) => Message::new("user", text),
            (Self::Internlm2 | Self::Openai, _) => {
                let mut message = Message::new("tool", text);
                message.name = call.map(|c| c.function.name.clone());
                message.tool_call_id = call.map(|c| c.id.clone());
                message
            }
        }
    }
}

/// The identifier of the `n`th call of an episode.
fn call_id(n: usize) -> String {
    format!("call_{n}")
}
