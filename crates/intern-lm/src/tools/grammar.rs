//! Makes a model call tools, or answer in a form, by grammar.
//!
//! Written in llguidance's dialect of Lark. Markers that are single tokens of the vocabulary
//! are named by id, since as special tokens they match no text; others are plain text.

use serde_json::{Value, json};

use super::ToolFormat;
use crate::request::{Grammar, ToolChoice};
use crate::wire::{lark_string, tool_name};

/// What an answer may be made of.
pub struct Answer<'a> {
    /// How calls are written.
    pub format: ToolFormat,
    /// Declarations of the tools that may be called.
    pub tools: &'a [Value],
    /// Whether they must.
    pub choice: &'a ToolChoice,
    /// At most one call.
    pub single_call: bool,
    /// The form of an answer that is no call.
    pub form: Option<&'a Grammar>,
    /// `None` if the model does not think; else whether the prompt has opened a thought.
    pub inside_thought: Option<bool>,
    /// Mistral's newer form, `[TOOL_CALLS]name[ARGS]{…}`.
    pub mistral_args: bool,
    /// The id of a text that is one token of its own, where it is one.
    pub token: &'a dyn Fn(&str) -> Option<u32>,
}

/// The grammar of the whole answer; `None` where nothing needs to be enforced.
///
/// Calls are enforced if the choice is `required` or a name, or if one of the tools is `strict`.
#[must_use]
pub fn grammar(answer: &Answer) -> Option<Grammar> {
    let offered = match answer.choice {
        ToolChoice::None => Vec::new(),
        ToolChoice::Named(name) => {
            answer.tools.iter().filter(|t| tool_name(t) == Some(name.as_str())).collect()
        }
        ToolChoice::Auto | ToolChoice::Required => answer.tools.iter().collect::<Vec<_>>(),
    };
    let must = matches!(answer.choice, ToolChoice::Required | ToolChoice::Named(_));
    let is_strict = |tool: &&Value| tool.pointer("/function/strict") == Some(&Value::Bool(true));
    let calls = !offered.is_empty()
        && answer.format != ToolFormat::None
        && (must || answer.form.is_some() || offered.iter().any(is_strict));
    if !calls && (answer.form.is_none() || answer.inside_thought.is_none()) {
        return answer.form.cloned();
    }
    let mut rules: Vec<String> = Vec::new();
    let mut body = Vec::new();
    if calls {
        body.push("calls");
        call_rules(answer, &offered, &mut rules);
    }
    if !must {
        body.push("form");
        rules.push(match answer.form {
            None => format!("form: {}", text_without(opening(answer.format))),
            Some(Grammar::JsonObject) => "form: %json {\"type\": \"object\"}".to_string(),
            Some(Grammar::JsonSchema(schema)) => format!("form: %json {schema}"),
            Some(Grammar::Regex(regex)) => format!("form: /{}/", regex.replace('/', "\\/")),
            // Another grammar's rules cannot be put beside ours.
            Some(lark @ Grammar::Lark(_)) => return Some(lark.clone()),
        });
        if calls && answer.form.is_none() {
            // Text may come before calls too.
            body[0] = "form calls";
        }
    }
    let close = marker(answer, "</think>");
    let thought = match answer.inside_thought {
        None => String::new(),
        Some(true) => format!("thought {close} SPACE? "),
        Some(false) => format!("({} thought {close} SPACE?)? ", marker(answer, "<think>")),
    };
    if answer.inside_thought.is_some() {
        rules.push(format!("thought: {}", text_without("</think>")));
        rules.push("SPACE: /[ \\n]+/".to_string());
    }
    rules.insert(0, format!("start: {thought}({})", body.join(" | ")));
    Some(Grammar::Lark(rules.join("\n")))
}

/// The marker that opens a block of calls, as far as text could be taken for it.
fn opening(format: ToolFormat) -> &'static str {
    match format {
        ToolFormat::InternLm2 => "<|action_start|>",
        other => other.starts().first().copied().unwrap_or("<tool_call>"),
    }
}

/// Any text that does not contain `marker`.
fn text_without(marker: &str) -> String {
    let mut escaped = String::new();
    for c in marker.chars() {
        if !c.is_alphanumeric() && c != '_' {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    format!("/(?s:.*)/ & ~/(?s:.*){escaped}(?s:.*)/")
}

/// A marker as a terminal: the token if it is one, else its text.
fn marker(answer: &Answer, text: &str) -> String {
    (answer.token)(text).map_or_else(|| lark_string(text), |id| format!("<[{id}]>"))
}

fn call_rules(answer: &Answer, tools: &[&Value], rules: &mut Vec<String>) {
    let mark = |text: &str| marker(answer, text);
    let key = answer.format.arguments_key();
    let parameters = |tool: &Value| {
        let parameters = tool.pointer("/function/parameters").filter(|p| !p.is_null());
        parameters.cloned().unwrap_or_else(|| json!({ "type": "object" }))
    };
    let object = |tool: &&Value| {
        json!({
            "type": "object",
            "properties": { "name": { "const": tool_name(tool) }, key: parameters(tool) },
            "required": ["name", key],
            "additionalProperties": false,
        })
    };
    let objects: Vec<Value> = tools.iter().map(object).collect();
    let alternatives = || objects.iter().map(|o| format!("%json {o}")).collect::<Vec<_>>().join(" | ");
    let several = |one: &str, separator: &str| match (answer.single_call, separator) {
        (true, _) => format!("calls: {one}"),
        (false, "") => format!("calls: {one}+"),
        (false, separator) => format!("calls: {one} ({} {one})*", lark_string(separator)),
    };
    match answer.format {
        ToolFormat::InternLm2 => {
            let (start, plugin) = (mark("<|action_start|>"), mark("<|plugin|>"));
            rules.push(several("call", ""));
            rules.push(format!("call: {start} {plugin} \"\\n\" object {}", mark("<|action_end|>")));
            rules.push(format!("object: {}", alternatives()));
        }
        ToolFormat::Hermes => {
            rules.push(several("call", "\n"));
            let (start, end) = (mark("<tool_call>"), mark("</tool_call>"));
            rules.push(format!("call: {start} \"\\n\" object \"\\n\" {end}"));
            rules.push(format!("object: {}", alternatives()));
        }
        ToolFormat::Llama3 => {
            rules.push(several("object", "; "));
            rules.push(format!("object: {}", alternatives()));
        }
        ToolFormat::Mistral if answer.mistral_args => {
            rules.push(several("call", ""));
            let call = |tool: &&Value| {
                let (start, args) = (mark("[TOOL_CALLS]"), mark("[ARGS]"));
                let name = lark_string(tool_name(tool).unwrap_or_default());
                format!("{start} {name} {args} %json {}", parameters(tool))
            };
            rules.push(format!("call: {}", tools.iter().map(call).collect::<Vec<_>>().join(" | ")));
        }
        ToolFormat::Mistral => {
            let mut list = json!({ "type": "array", "items": { "anyOf": objects }, "minItems": 1 });
            if answer.single_call {
                list["maxItems"] = 1.into();
            }
            rules.push(format!("calls: {} %json {list}", mark("[TOOL_CALLS]")));
        }
        ToolFormat::None => {}
    }
}
