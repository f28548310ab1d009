//! Makes a model call tools, or answer in a form, by grammar.
//!
//! Written in llguidance's dialect of Lark. Markers that are single tokens of the vocabulary
//! are named by id, since as special tokens they match no text; others are plain text.

use serde_json::{Value, json};

use super::{ToolFormat, tagged};
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
        // Without a form, text may come before calls.
        let text_first = !must && answer.form.is_none() && answer.format != ToolFormat::Llama3;
        body.push(if text_first { "form calls" } else { "calls" });
        call_rules(answer, &offered, &mut rules);
    }
    if !must {
        body.push("form");
        rules.push(match answer.form {
            // A call of Llama 3 is an object at the beginning.
            None if answer.format == ToolFormat::Llama3 => {
                "form: TEXT\nTEXT: /([^{ \\n](?s:.*))?/".to_string()
            }
            None => format!("form: TEXT\nTEXT: {}", text_without(opening(answer.format))),
            Some(Grammar::JsonObject) => format!("form: {}", inline(json!({ "type": "object" }))),
            Some(Grammar::JsonSchema(schema)) => format!("form: {}", inline(schema.clone())),
            Some(Grammar::Regex(regex)) => format!("form: FORM\nFORM: /{}/", regex.replace('/', "\\/")),
            // Another grammar's rules cannot be put beside ours.
            Some(lark @ Grammar::Lark(_)) => return Some(lark.clone()),
        });
    }
    let close = marker(answer, "</think>");
    let thought = match answer.inside_thought {
        None => String::new(),
        Some(true) => format!("THOUGHT {close} SPACE? "),
        Some(false) => format!("({} THOUGHT {close} SPACE?)? ", marker(answer, "<think>")),
    };
    if answer.inside_thought.is_some() {
        rules.push(format!("THOUGHT: {}", text_without("</think>")));
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

/// Any text that does not contain `marker`, as a terminal.
fn text_without(marker: &str) -> String {
    format!("/(?s:.*)/ & {}", without(marker))
}

/// What does not contain `marker`, for an intersection of terminals.
pub(super) fn without(marker: &str) -> String {
    let mut escaped = String::new();
    for c in marker.chars() {
        if "\\.+*?()|[]{}^$/".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    format!("~/(?s:.*){escaped}(?s:.*)/")
}

/// A schema inside of a rule, written with the white space models know from Python.
fn inline(mut schema: Value) -> String {
    if !schema.is_object() {
        schema = json!({ "allOf": [schema] });
    }
    schema["x-guidance"] =
        json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
    format!("%json {schema}")
}

/// A marker as a terminal: the token if it is one, else its text.
fn marker(answer: &Answer, text: &str) -> String {
    (answer.token)(text).map_or_else(|| lark_string(text), |id| format!("<[{id}]>"))
}

fn call_rules(answer: &Answer, tools: &[&Value], rules: &mut Vec<String>) {
    let mark = |text: &str| marker(answer, text);
    let key = answer.format.arguments_key();
    let name = |tool: &Value| Value::from(tool_name(tool).unwrap_or_default()).to_string();
    // The arguments have a schema of their own, so that its references stay valid.
    let arguments = |tool: &Value| {
        let mut schema = tool.pointer("/function/parameters").cloned().unwrap_or_default();
        if schema.get("type").is_none() {
            schema["type"] = "object".into();
        }
        inline(schema)
    };
    let object = |tool: &&Value| {
        let head = lark_string(&format!("{{\"name\": {}, \"{key}\": ", name(tool)));
        format!("{head} {} \"}}\"", arguments(tool))
    };
    let objects = || format!("object: {}", tools.iter().map(object).collect::<Vec<_>>().join("\n  | "));
    let several = |one: &str, separator: &str| match (answer.single_call, separator) {
        (true, _) => one.to_string(),
        (false, "") => format!("{one}+"),
        (false, separator) => format!("{one} ({} {one})*", lark_string(separator)),
    };
    match answer.format {
        ToolFormat::InternLm2 => {
            let (start, plugin) = (mark("<|action_start|>"), mark("<|plugin|>"));
            rules.push(format!("calls: {}", several("call", "")));
            rules.push(format!("call: {start} {plugin} \"\\n\" object {}", mark("<|action_end|>")));
            rules.push(objects());
        }
        ToolFormat::Hermes => {
            let (start, end) = (mark("<tool_call>"), mark("</tool_call>"));
            rules.push(format!("calls: {}", several("call", "\n")));
            rules.push(format!("call: {start} \"\\n\" object \"\\n\" {end}"));
            rules.push(objects());
        }
        ToolFormat::Llama3 => {
            rules.push(format!("calls: {}", several("object", "; ")));
            rules.push(objects());
        }
        ToolFormat::Mistral if answer.mistral_args => {
            let (start, args) = (mark("[TOOL_CALLS]"), mark("[ARGS]"));
            let call = |tool: &&Value| {
                let name = lark_string(tool_name(tool).unwrap_or_default());
                format!("{start} {name} {args} {}", arguments(tool))
            };
            rules.push(format!("calls: {}", several("call", "")));
            rules.push(format!("call: {}", tools.iter().map(call).collect::<Vec<_>>().join("\n  | ")));
        }
        ToolFormat::Mistral => {
            let start = mark("[TOOL_CALLS]");
            rules.push(format!("calls: {start} \"[\" {} \"]\"", several("object", ", ")));
            rules.push(objects());
        }
        ToolFormat::Qwen3Coder | ToolFormat::Glm => {
            let (start, end) = (mark("<tool_call>"), mark("</tool_call>"));
            let line = if answer.format == ToolFormat::Glm { "" } else { " \"\\n\"" };
            rules.push(format!("calls: {}", several("call", "\n")));
            rules.push(format!("call: {start}{line} object{line} {end}"));
            rules.extend(tagged::rules(answer.format, tools, &inline));
        }
        ToolFormat::None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer<'a>(
        format: ToolFormat,
        tools: &'a [Value],
        choice: &'a ToolChoice,
        token: &'a dyn Fn(&str) -> Option<u32>,
    ) -> Answer<'a> {
        let (single_call, form, inside_thought, mistral_args) = (true, None, None, false);
        Answer { format, tools, choice, single_call, form, inside_thought, mistral_args, token }
    }

    #[test]
    fn only_what_must_be_is_enforced() {
        let tools = [json!({"function": {"name": "f"}})];
        let strict = [json!({"function": {"name": "f", "strict": true}})];
        let none = |_: &str| None;
        let hermes = ToolFormat::Hermes;
        assert_eq!(grammar(&answer(hermes, &tools, &ToolChoice::Auto, &none)), None);
        assert_eq!(grammar(&answer(hermes, &strict, &ToolChoice::None, &none)), None);
        assert!(grammar(&answer(hermes, &strict, &ToolChoice::Auto, &none)).is_some());
        let form = Grammar::JsonObject;
        let plain = Answer { form: Some(&form), ..answer(hermes, &[], &ToolChoice::Auto, &none) };
        assert_eq!(grammar(&plain), Some(Grammar::JsonObject));
        let thinking = Answer { inside_thought: Some(true), ..plain };
        let Some(Grammar::Lark(lark)) = grammar(&thinking) else { panic!("a thought comes first") };
        assert!(lark.starts_with("start: THOUGHT \"</think>\" SPACE? (form)\n"), "{lark}");
    }

    #[test]
    fn markers_are_tokens_where_they_are_tokens() {
        let tools = [json!({"function": {"name": "a\"b"}}), json!({"function": {"name": "c"}})];
        let token = |text: &str| (text == "<tool_call>").then_some(7);
        let named = ToolChoice::Named("a\"b".into());
        let Some(Grammar::Lark(lark)) = grammar(&answer(ToolFormat::Hermes, &tools, &named, &token)) else {
            panic!("a named tool is enforced");
        };
        assert!(lark.contains("call: <[7]> \"\\n\" object \"\\n\" \"</tool_call>\""), "{lark}");
        assert!(
            lark.contains(r#""{\"name\": \"a\\\"b\", \"arguments\": " %json {"type":"object","#),
            "{lark}"
        );
        assert!(!lark.contains("\\\"c\\\""), "{lark}");
    }
}
