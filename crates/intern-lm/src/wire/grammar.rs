//! `response_format` and vLLM's guided decoding, as a [`Grammar`].

use serde_json::Value;

use super::{Common, Invalid};
use crate::request::Grammar;

/// The form an answer must have; `None` where any text will do.
///
/// # Errors
/// If a form is malformed or unknown, or two are asked for at once.
pub(super) fn read(common: &Common) -> Result<Option<Grammar>, Invalid> {
    let mut found: Vec<(&str, Grammar)> = Vec::new();
    if let Some(format) = common.response_format.as_ref().filter(|f| !f.is_null()) {
        found.extend(response_format(format, "response_format")?.map(|g| ("response_format", g)));
    }
    let mut guided = |param, value: Option<&Value>, read: Reader| -> Result<(), Invalid> {
        if let Some(value) = value.filter(|v| !v.is_null() && *v != &Value::Bool(false)) {
            found.push((param, read(param, value)?));
        }
        Ok(())
    };
    guided("guided_json", common.guided_json.as_ref(), json)?;
    guided("guided_regex", common.guided_regex.as_ref(), regex)?;
    guided("guided_choice", common.guided_choice.as_ref(), choice)?;
    guided("guided_grammar", common.guided_grammar.as_ref(), lark)?;
    if let Some(all) = common.structured_outputs.as_ref().filter(|v| !v.is_null()) {
        let Some(all) = all.as_object() else {
            return Err(Invalid::new("structured_outputs", "structured_outputs must be an object"));
        };
        for (key, value) in all {
            match key.as_str() {
                "json" => guided("structured_outputs.json", Some(value), json)?,
                "regex" => guided("structured_outputs.regex", Some(value), regex)?,
                "choice" => guided("structured_outputs.choice", Some(value), choice)?,
                "grammar" => guided("structured_outputs.grammar", Some(value), lark)?,
                "json_object" => guided("structured_outputs.json_object", Some(value), any_object)?,
                _ if value.is_null() || value == &Value::Bool(false) => {}
                other => {
                    let param = format!("structured_outputs.{other}");
                    let message =
                        format!("{param} is not supported\nhint: use json, regex, choice or grammar");
                    return Err(Invalid::unsupported(&param, message));
                }
            }
        }
    }
    if let [(one, _), (other, _), ..] = &found[..] {
        let message = format!("{one} and {other} both say what the answer must look like\nhint: keep one");
        return Err(Invalid::new(other, message));
    }
    Ok(found.pop().map(|(_, grammar)| grammar))
}

type Reader = fn(&str, &Value) -> Result<Grammar, Invalid>;

/// Reads `{"type": …}` as chat completions write it (`json_schema` nested) and as responses do (flat).
pub(super) fn response_format(format: &Value, param: &str) -> Result<Option<Grammar>, Invalid> {
    let named = |key: &str| format!("{param}.{key}");
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(Grammar::JsonObject)),
        Some("json_schema") => {
            let (at, inner) = match format.get("json_schema") {
                Some(inner) => (named("json_schema"), inner),
                None => (param.to_string(), format),
            };
            if inner.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
                let at = format!("{at}.name");
                let message = format!(
                    "{at} is missing\nhint: {{\"type\": \"json_schema\", … \"name\": …, \"schema\": {{…}}}}"
                );
                return Err(Invalid::new(&at, message));
            }
            match inner.get("schema") {
                None | Some(Value::Null) => Ok(Some(Grammar::JsonObject)),
                Some(schema) => json(&format!("{at}.schema"), schema).map(Some),
            }
        }
        Some("grammar") if format.get("grammar").is_some() => {
            lark(&named("grammar"), &format["grammar"]).map(Some)
        }
        Some(other) => Err(Invalid::unsupported(
            &named("type"),
            format!(
                "{} \"{other}\" is not supported\nhint: use text, json_object or json_schema",
                named("type")
            ),
        )),
        None => Err(Invalid::new(
            param,
            format!(
                "{param} has no type\nhint: {{\"type\": \"json_object\"}} or {{\"type\": \"json_schema\", …}}"
            ),
        )),
    }
}

/// A schema, as an object, a boolean, or a string that holds one.
fn json(param: &str, value: &Value) -> Result<Grammar, Invalid> {
    let schema = match value {
        Value::String(text) => serde_json::from_str(text)
            .map_err(|e| Invalid::new(param, format!("{param} is not valid JSON: {e}")))?,
        other => other.clone(),
    };
    if !(schema.is_object() || schema.is_boolean()) {
        return Err(Invalid::new(param, format!("{param} must be a JSON schema, an object")));
    }
    Ok(Grammar::JsonSchema(schema))
}

fn any_object(_: &str, _: &Value) -> Result<Grammar, Invalid> {
    Ok(Grammar::JsonObject)
}

fn text<'a>(param: &str, value: &'a Value) -> Result<&'a str, Invalid> {
    value.as_str().ok_or_else(|| Invalid::new(param, format!("{param} must be a string")))
}

fn regex(param: &str, value: &Value) -> Result<Grammar, Invalid> {
    Ok(Grammar::Regex(text(param, value)?.to_string()))
}

fn lark(param: &str, value: &Value) -> Result<Grammar, Invalid> {
    Ok(Grammar::Lark(text(param, value)?.to_string()))
}

/// One of several texts: a JSON string is a Lark string.
fn choice(param: &str, value: &Value) -> Result<Grammar, Invalid> {
    let texts: Option<Vec<String>> = value.as_array().and_then(|all| {
        all.iter().map(|one| one.as_str().filter(|t| !t.is_empty()).map(lark_string)).collect()
    });
    match texts {
        Some(texts) if !texts.is_empty() => Ok(Grammar::Lark(format!("start: {}", texts.join(" | ")))),
        _ => Err(Invalid::new(param, format!("{param} must be a list of texts, not empty"))),
    }
}

/// `text` as a string of Lark, which reads JSON's escapes.
pub(crate) fn lark_string(text: &str) -> String {
    Value::String(text.to_string()).to_string()
}
