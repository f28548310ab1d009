//! An answer as response items, and as the events that build them.

use intern_format::conversation::{FunctionCall, Message, ToolCall};
use intern_lm::TokenLogprob;
use intern_lm::wire::ChatTokenLogprob;
use serde_json::{Value, json};

use crate::api::reader::Part;
use crate::api::sse::Events;

/// The items of one answer; every change is an event too, if somebody listens.
pub(super) struct Output<'a> {
    events: Option<&'a Events>,
    sequence: u64,
    /// Makes the items' ids unique.
    suffix: String,
    items: Vec<Value>,
    /// The last item is still being written.
    is_open: bool,
    logprobs: Vec<Value>,
    /// Tokens whose text was a thought.
    pub thinking_tokens: usize,
}

impl<'a> Output<'a> {
    pub fn new(events: Option<&'a Events>, suffix: &str) -> Self {
        let suffix = suffix.to_string();
        Self {
            events,
            sequence: 0,
            suffix,
            items: Vec::new(),
            is_open: false,
            logprobs: Vec::new(),
            thinking_tokens: 0,
        }
    }

    /// The finished items.
    pub fn items(&self) -> Vec<Value> {
        self.items.clone()
    }

    /// Sends an event with its type and number.
    pub fn event(&mut self, kind: &str, mut fields: Value) {
        if let Some(events) = self.events {
            fields["type"] = kind.into();
            fields["sequence_number"] = self.sequence.into();
            self.sequence += 1;
            events.send_named(kind, &fields);
        }
    }

    /// Adds what one token brought.
    pub fn add(&mut self, parts: Vec<Part>, logprob: Option<&TokenLogprob>) {
        self.thinking_tokens += usize::from(parts.iter().any(|p| matches!(p, Part::Thinking(_))));
        let mut logprob =
            logprob.map(|l| serde_json::to_value(ChatTokenLogprob::from(l)).unwrap_or_default());
        for part in parts {
            match part {
                Part::Thinking(text) => self.text("reasoning", &text, None),
                Part::Text(text) => self.text("message", &text, logprob.take()),
                Part::Call { id, name } => {
                    self.open(json!({
                        "type": "function_call", "id": self.id("fc"), "call_id": id, "name": name,
                        "arguments": "", "status": "in_progress",
                    }));
                }
                Part::Arguments(text) => {
                    self.append("/arguments", &text);
                    let fields = json!({ "item_id": self.last_id(), "output_index": self.last_index(), "delta": text });
                    self.event("response.function_call_arguments.delta", fields);
                }
            }
        }
        // A token without text of its own belongs to the text that comes next.
        if let Some(logprob) = logprob {
            self.logprobs.push(logprob);
        }
    }

    /// Closes the last item.
    pub fn finish(&mut self, is_cut: bool) {
        if self.items.is_empty() {
            self.open(message(&self.id("msg")));
        }
        self.close(if is_cut { "incomplete" } else { "completed" });
    }

    /// The answer as a message of a conversation.
    pub fn message(&self) -> Message {
        let mut message = Message::new("assistant", "");
        for item in &self.items {
            let text =
                |pointer: &str| item.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_string();
            match item["type"].as_str() {
                Some("message") => message.content.push_str(&text("/content/0/text")),
                Some("reasoning") => {
                    message.extra.insert("reasoning_content".into(), text("/content/0/text").into());
                }
                _ => {
                    let arguments = text("/arguments");
                    let arguments = serde_json::from_str(&arguments).unwrap_or_else(|_| arguments.into());
                    let function = FunctionCall { name: text("/name"), arguments };
                    message.tool_calls.push(ToolCall {
                        id: text("/call_id"),
                        kind: "function".into(),
                        function,
                    });
                }
            }
        }
        message
    }

    /// Appends text to the last item if it is of this kind, else to a new one.
    fn text(&mut self, kind: &str, text: &str, logprob: Option<Value>) {
        let is_same = self.is_open && self.items.last().is_some_and(|item| item["type"] == kind);
        if !is_same {
            let item = match kind {
                "reasoning" => json!({
                    "type": "reasoning", "id": self.id("rs"), "summary": [],
                    "content": [{ "type": "reasoning_text", "text": "" }], "status": "in_progress",
                }),
                _ => message(&self.id("msg")),
            };
            self.open(item);
        }
        self.append("/content/0/text", text);
        let mut fields = json!({
            "item_id": self.last_id(), "output_index": self.last_index(), "content_index": 0, "delta": text,
        });
        if kind == "reasoning" {
            return self.event("response.reasoning_text.delta", fields);
        }
        let mut logprobs = std::mem::take(&mut self.logprobs);
        logprobs.extend(logprob);
        if let Some(all) =
            self.items.last_mut().and_then(|i| i.pointer_mut("/content/0/logprobs")?.as_array_mut())
        {
            all.extend(logprobs.iter().cloned());
        }
        fields["logprobs"] = logprobs.into();
        self.event("response.output_text.delta", fields);
    }

    fn open(&mut self, item: Value) {
        self.close("completed");
        let index = self.items.len();
        // An item begins without its parts.
        let mut bare = item.clone();
        let part = bare.get_mut("content").and_then(Value::as_array_mut).and_then(Vec::pop);
        self.event("response.output_item.added", json!({ "output_index": index, "item": bare }));
        self.items.push(item);
        self.is_open = true;
        if let Some(part) = part {
            let fields =
                json!({ "item_id": self.last_id(), "output_index": index, "content_index": 0, "part": part });
            self.event("response.content_part.added", fields);
        }
    }

    fn close(&mut self, status: &str) {
        if !std::mem::take(&mut self.is_open) {
            return;
        }
        if let Some(item) = self.items.last_mut() {
            item["status"] = status.into();
        }
        let item = self.items.last().cloned().unwrap_or_default();
        let (id, index) = (item["id"].clone(), self.last_index());
        let part = item.pointer("/content/0").cloned();
        match (item["type"].as_str(), part) {
            (Some("function_call"), _) => {
                let fields = json!({
                    "item_id": id, "output_index": index, "name": item["name"], "arguments": item["arguments"],
                });
                self.event("response.function_call_arguments.done", fields);
            }
            (Some(kind), Some(part)) => {
                let mut fields =
                    json!({ "item_id": id, "output_index": index, "content_index": 0, "text": part["text"] });
                if kind == "reasoning" {
                    self.event("response.reasoning_text.done", fields);
                } else {
                    fields["logprobs"] = part["logprobs"].clone();
                    self.event("response.output_text.done", fields);
                }
                let fields =
                    json!({ "item_id": id, "output_index": index, "content_index": 0, "part": part });
                self.event("response.content_part.done", fields);
            }
            _ => {}
        }
        self.event("response.output_item.done", json!({ "output_index": index, "item": item }));
    }

    fn append(&mut self, pointer: &str, text: &str) {
        if let Some(Value::String(have)) = self.items.last_mut().and_then(|item| item.pointer_mut(pointer)) {
            have.push_str(text);
        }
    }

    fn last_index(&self) -> usize {
        self.items.len().saturating_sub(1)
    }

    fn last_id(&self) -> Value {
        self.items.last().map(|item| item["id"].clone()).unwrap_or_default()
    }

    /// The id of the next item.
    fn id(&self, prefix: &str) -> String {
        format!("{prefix}{}{:02x}", self.suffix, self.items.len())
    }
}

/// An assistant's message without text yet.
fn message(id: &str) -> Value {
    json!({
        "type": "message", "id": id, "role": "assistant", "status": "in_progress",
        "content": [{ "type": "output_text", "text": "", "annotations": [], "logprobs": [] }],
    })
}
