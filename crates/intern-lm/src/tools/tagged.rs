//! Calls whose arguments are tags around text, as Qwen3-Coder and GLM write them.
//!
//! ```text
//! <function=NAME>                          NAME
//! <parameter=KEY>                          <arg_key>KEY</arg_key>
//! VALUE                                    <arg_value>VALUE</arg_value>
//! </parameter>
//! </function>
//! ```
//!
//! A value is plain text where the tool declares a string, and JSON elsewhere; so whoever reads
//! or enforces such calls needs the declarations.

use std::collections::BTreeMap;

use intern_format::conversation::FunctionCall;
use serde_json::{Map, Value, json};

use super::ToolFormat;
use crate::wire::{lark_string, tool_name};

/// The parameters that tools declare.
#[derive(Clone, Debug, Default)]
pub(super) struct Declared(BTreeMap<String, Map<String, Value>>);

impl Declared {
    /// `tools` in OpenAI's form.
    pub fn new(tools: &[Value]) -> Self {
        let properties = |tool: &Value| {
            let properties = tool.pointer("/function/parameters/properties").and_then(Value::as_object);
            Some((tool_name(tool)?.to_owned(), properties.cloned().unwrap_or_default()))
        };
        Self(tools.iter().filter_map(properties).collect())
    }

    /// What `text` is as parameter `key` of `tool`; JSON if it can be, where nothing is declared.
    fn read(&self, tool: &str, key: &str, text: &str) -> Value {
        match self.0.get(tool).and_then(|properties| properties.get(key)) {
            Some(schema) if is_text(schema) => text.into(),
            _ => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        }
    }
}

/// Whether every value of this schema is a string.
fn is_text(schema: &Value) -> bool {
    let all_strings = |values: &Value| values.as_array().is_some_and(|v| v.iter().all(Value::is_string));
    match schema.get("type") {
        Some(ty) => ty == "string",
        None => {
            schema.get("enum").is_some_and(all_strings) || schema.get("const").is_some_and(Value::is_string)
        }
    }
}

/// The calls of one block; `None` unless all of it makes sense.
pub(super) fn read(format: ToolFormat, body: &str, declared: &Declared) -> Option<Vec<FunctionCall>> {
    match format {
        ToolFormat::Qwen3Coder => read_functions(body, declared),
        _ => Some(vec![read_keys(body, declared)?]),
    }
}

fn read_functions(body: &str, declared: &Declared) -> Option<Vec<FunctionCall>> {
    let (mut rest, mut calls) = (body.trim(), Vec::new());
    while !rest.is_empty() {
        let (name, mut inside) = rest.strip_prefix("<function=")?.split_once('>')?;
        let mut arguments = Map::new();
        rest = loop {
            inside = inside.trim_start();
            if let Some(behind) = inside.strip_prefix("</function>") {
                break behind.trim();
            }
            let (key, value) = inside.strip_prefix("<parameter=")?.split_once('>')?;
            let (value, behind) = value.split_once("</parameter>")?;
            // The line breaks next to the tags are the tags'.
            let value = value.strip_prefix('\n').unwrap_or(value);
            let value = value.strip_suffix('\n').unwrap_or(value);
            arguments.insert(key.to_owned(), declared.read(name, key, value));
            inside = behind;
        };
        calls.push(call(name, arguments)?);
    }
    (!calls.is_empty()).then_some(calls)
}

fn read_keys(body: &str, declared: &Declared) -> Option<FunctionCall> {
    let at = body.find("<arg_key>").unwrap_or(body.len());
    let (name, mut rest) = (body[..at].trim(), body[at..].trim());
    let mut arguments = Map::new();
    while !rest.is_empty() {
        let (key, behind) = rest.strip_prefix("<arg_key>")?.split_once("</arg_key>")?;
        let (value, behind) = behind.trim_start().strip_prefix("<arg_value>")?.split_once("</arg_value>")?;
        arguments.insert(key.to_owned(), declared.read(name, key, value));
        rest = behind.trim_start();
    }
    call(name, arguments)
}

fn call(name: &str, arguments: Map<String, Value>) -> Option<FunctionCall> {
    let is_name = !name.is_empty() && !name.contains(['<', '>', '\n']);
    is_name.then(|| FunctionCall { name: name.to_owned(), arguments: Value::Object(arguments) })
}

/// Writes one call the way the model would, without the marks around it.
pub(super) fn render(format: ToolFormat, call: &FunctionCall) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let arguments = call.arguments.as_object().into_iter().flatten();
    match format {
        ToolFormat::Qwen3Coder => {
            let one = |(key, value)| format!("<parameter={key}>\n{}\n</parameter>\n", text(value));
            format!("\n<function={}>\n{}</function>\n", call.name, arguments.map(one).collect::<String>())
        }
        _ => {
            let one =
                |(key, value)| format!("<arg_key>{key}</arg_key>\n<arg_value>{}</arg_value>\n", text(value));
            format!("{}\n{}", call.name, arguments.map(one).collect::<String>())
        }
    }
}

/// Keys of a tool's parameters that [`rules`] follows; others cannot be written as tags.
const FOLLOWED: [&str; 11] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "$defs",
    "definitions",
    "$schema",
    "title",
    "description",
    "default",
    "examples",
];

/// Grammar rules for calls of these tools, the first of which is `object`.
pub(super) fn rules(format: ToolFormat, tools: &[&Value], inline: &dyn Fn(Value) -> String) -> Vec<String> {
    let mut out = Vec::new();
    let (close, frame) = match format {
        ToolFormat::Qwen3Coder => ("</parameter>", ["<parameter=", ">\n", "\n</parameter>\n"]),
        _ => ("</arg_value>", ["<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"]),
    };
    let mut objects = Vec::new();
    for (t, tool) in tools.iter().enumerate() {
        let name = tool_name(tool).unwrap_or_default();
        let schema = tool.pointer("/function/parameters").cloned().unwrap_or_else(|| json!({}));
        let follows = schema.as_object().is_none_or(|s| s.keys().all(|key| FOLLOWED.contains(&key.as_str())));
        let empty = Map::new();
        let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let undeclared =
            required.iter().filter(|key| !properties.contains_key(**key)).map(|key| (*key, json!({})));
        let all = properties.iter().map(|(key, schema)| (key.as_str(), schema.clone())).chain(undeclared);
        let mut parts = String::new();
        for (p, (key, mut property)) in all.enumerate() {
            for defs in ["$defs", "definitions"] {
                if let (Some(found), Some(property)) = (schema.get(defs), property.as_object_mut()) {
                    property.insert(defs.to_owned(), found.clone());
                }
            }
            let value = match text_rule(&property, close) {
                Some(terminal) => {
                    out.push(format!("T_{t}_{p}: {terminal}"));
                    format!("T_{t}_{p}")
                }
                None => inline(property),
            };
            let [before, between, after] = frame;
            let head = lark_string(&format!("{before}{key}{between}"));
            out.push(format!("p_{t}_{p}: {head} {value} {}", lark_string(after)));
            parts += &format!(" p_{t}_{p}{}", if required.contains(&key) { "" } else { "?" });
        }
        if !follows {
            // Fails closed: nothing satisfies it.
            parts += &format!(" {}", inline(json!({ "not": {} })));
        }
        objects.push(match format {
            ToolFormat::Qwen3Coder => {
                format!("{}{parts} \"</function>\"", lark_string(&format!("<function={name}>\n")))
            }
            _ => format!("{}{parts}", lark_string(&format!("{name}\n"))),
        });
    }
    out.insert(0, format!("object: {}", objects.join("\n  | ")));
    out
}

/// A terminal for a string as plain text up to the tag `close`; `None` if it is not one.
fn text_rule(schema: &Value, close: &str) -> Option<String> {
    if !is_text(schema) {
        return None;
    }
    let one = schema.get("const").map(std::slice::from_ref);
    if let Some(choices) = one.or(schema.get("enum").and_then(Value::as_array).map(Vec::as_slice)) {
        let texts: Vec<String> = choices.iter().filter_map(Value::as_str).map(lark_string).collect();
        return Some(texts.join(" | "));
    }
    let bound = |key: &str| schema.get(key).and_then(Value::as_u64);
    let mut terminal = match (bound("minLength").unwrap_or(0), bound("maxLength")) {
        (0, None) => "/(?s:.*)/".to_owned(),
        (min, None) => format!("/(?s:.){{{min},}}/"),
        (min, Some(max)) => format!("/(?s:.){{{min},{max}}}/"),
    };
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
        // It may match anywhere, unless it says where.
        let (begin, rest) = pattern.strip_prefix('^').map_or(("(?s:.*)", pattern), |rest| ("", rest));
        let (middle, end) = rest.strip_suffix('$').map_or((rest, "(?s:.*)"), |rest| (rest, ""));
        terminal += &format!(" & /{begin}({}){end}/", middle.replace('/', "\\/"));
    }
    Some(format!("{terminal} & {}", super::grammar::without(close)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::{Piece, ToolSplitter};

    fn tools() -> Vec<Value> {
        vec![
            json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {
            "text": {"type": "string"}, "n": {"type": "integer"}, "kind": {"enum": ["1", "2"]}}}}}),
        ]
    }

    #[track_caller]
    fn check(format: ToolFormat, text: &str, content: &str, calls: &[Value]) {
        for cut in [1, 3, text.len()] {
            let mut splitter = ToolSplitter::new(format, 0).with_tools(&tools());
            let chars: Vec<char> = text.chars().collect();
            let mut pieces: Vec<Piece> =
                chars.chunks(cut).flat_map(|c| splitter.push(&c.iter().collect::<String>())).collect();
            pieces.extend(splitter.finish());
            let (mut got, mut found) = (String::new(), Vec::new());
            for piece in pieces {
                match piece {
                    Piece::Text(text) => got += &text,
                    Piece::Call(call) => found.push(json!([call.function.name, call.function.arguments])),
                }
            }
            assert_eq!((got.as_str(), &found[..]), (content, calls));
        }
    }

    #[test]
    fn values_are_read_as_declared() {
        let arguments = json!({"text": "5", "n": 5, "kind": "1", "other": [1], "word": "so"});
        check(
            ToolFormat::Qwen3Coder,
            "Well.\n<tool_call>\n<function=f>\n<parameter=text>\n5\n</parameter>\n<parameter=n>\n5\n</parameter>\n\
             <parameter=kind>\n1\n</parameter>\n<parameter=other>\n[1]\n</parameter>\n<parameter=word>\nso\n</parameter>\n\
             </function>\n</tool_call>",
            "Well.",
            &[json!(["f", arguments])],
        );
        check(
            ToolFormat::Glm,
            "Well.\n<tool_call>f\n<arg_key>text</arg_key>\n<arg_value>5</arg_value>\n<arg_key>n</arg_key>\n<arg_value>5</arg_value>\n\
             <arg_key>kind</arg_key><arg_value>1</arg_value>\n<arg_key>other</arg_key>\n<arg_value>[1]</arg_value>\n\
             <arg_key>word</arg_key>\n<arg_value>so</arg_value>\n</tool_call>\n<tool_call>g</tool_call>",
            "Well.",
            &[json!(["f", arguments]), json!(["g", {}])],
        );
        // Text keeps its own line breaks.
        check(
            ToolFormat::Qwen3Coder,
            "<tool_call><function=f><parameter=text>\n\na\nb\n\n</parameter></function></tool_call>",
            "",
            &[json!(["f", {"text": "\na\nb\n"}])],
        );
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for text in [
            "<tool_call>\n<function=f>\n<parameter=text>\n5\n</function>\n</tool_call>",
            "<tool_call>{\"name\": \"f\"}</tool_call>",
            "<tool_call></tool_call>",
        ] {
            check(ToolFormat::Qwen3Coder, text, text, &[]);
        }
        for text in ["<tool_call>f\n<arg_key>n</arg_key></tool_call>", "<tool_call></tool_call>"] {
            check(ToolFormat::Glm, text, text, &[]);
        }
    }
}
