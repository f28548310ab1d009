//! Filters and tests that differ from minijinja's, made to do what Jinja's do.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, Value};

use super::python;

/// `transformers`' `tojson`: Python's `json.dumps`, not Jinja's HTML-safe filter.
pub(super) fn to_json(value: Value, ensure_ascii: Option<bool>, kwargs: Kwargs) -> Result<String, Error> {
    let ensure_ascii = kwargs.get::<Option<bool>>("ensure_ascii")?.or(ensure_ascii);
    let indent: Option<Value> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let indent = indent.filter(|v| !v.is_none()).map(|v| match v.as_str() {
        Some(text) => text.to_string(),
        None => " ".repeat(v.as_usize().unwrap_or(0).min(64)),
    });
    let separators = separators.and_then(|s| <[String; 2]>::try_from(s).ok());
    let between_items = if indent.is_some() { "," } else { ", " };
    let style = python::JsonStyle {
        ensure_ascii: ensure_ascii.unwrap_or(false),
        separators: separators.unwrap_or_else(|| [between_items.to_string(), ": ".to_string()]),
        indent,
        sort_keys: sort_keys.unwrap_or(false),
    };
    python::to_json(&value, &style)
}

/// `string`: Python's `str`, save that a list of tool declarations prints as JSON.
///
/// `transformers` prints Python literals there as well, huggingface.js JSON; templates
/// that write `tools|string` (Hammer 2.1) ask for answers in JSON, so JSON it is.
pub(super) fn string(value: Value) -> Result<String, Error> {
    let is_tool = |item: Value| {
        item.kind() == ValueKind::Map && item.get_attr("function").is_ok_and(|f| f.kind() == ValueKind::Map)
    };
    if value.kind() == ValueKind::Seq && value.len() > Some(0) && value.try_iter()?.all(is_tool) {
        return python::to_json(&value, &python::JsonStyle::default());
    }
    Ok(python::str(&value))
}

/// `indent` with Jinja's treatment of a trailing newline.
pub(super) fn indent(
    text: String,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let width = kwargs.get::<Option<Value>>("width")?.or(width);
    let first = kwargs.get::<Option<bool>>("first")?.or(first).unwrap_or(false);
    let blank = kwargs.get::<Option<bool>>("blank")?.or(blank).unwrap_or(false);
    kwargs.assert_all_used()?;
    let indent = match width {
        None => " ".repeat(4),
        Some(v) => match v.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(v.as_usize().unwrap_or(4).min(1 << 10)),
        },
    };
    // A final newline opens one more, empty line.
    let mut out = String::with_capacity(text.len() + 16 * indent.len());
    for (i, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if i > 0 {
            out.push('\n');
        }
        if (i == 0 && first) || (i > 0 && (blank || !line.is_empty())) {
            out.push_str(&indent);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// `int`: what is no number becomes the default.
pub(super) fn int(value: Value, default: Option<Value>) -> Value {
    let parsed = match value.as_str() {
        Some(text) => {
            let text = text.trim().replace('_', "");
            text.parse::<i64>().ok().or_else(|| text.parse::<f64>().ok().and_then(truncate))
        }
        None if value.kind() == ValueKind::Bool => Some(i64::from(value.is_true())),
        None if value.is_integer() => return value,
        None => f64::try_from(value).ok().and_then(truncate),
    };
    parsed.map_or_else(|| default.unwrap_or_else(|| Value::from(0)), Value::from)
}

fn truncate(float: f64) -> Option<i64> {
    float.is_finite().then_some(float as i64)
}

/// `float`: what is no number becomes the default.
pub(super) fn float(value: Value, default: Option<Value>) -> Value {
    let parsed = match value.as_str() {
        Some(text) => text.trim().replace('_', "").parse::<f64>().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value).ok(),
    };
    parsed.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from)
}

/// `is iterable`: what Python can iterate, which `None` is not.
pub(super) fn is_iterable(value: &Value) -> bool {
    match value.kind() {
        ValueKind::None => false,
        ValueKind::Undefined | ValueKind::String => true,
        _ => value.try_iter().is_ok(),
    }
}
