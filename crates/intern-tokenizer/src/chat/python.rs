//! Values as Python prints them: `str`, `repr` and `json.dumps`.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// JSON as a template value; object order is kept.
pub(super) fn to_value(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(b) => Value::from(*b),
        serde_json::Value::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (None, Some(u)) => Value::from(u),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(s) => Value::from(s.as_str()),
        serde_json::Value::Array(list) => Value::from(list.iter().map(to_value).collect::<Vec<_>>()),
        serde_json::Value::Object(map) => {
            Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), to_value(v))))
        }
    }
}

/// Python's `str(value)`; undefined prints as nothing.
pub(super) fn str(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => String::new(),
        ValueKind::String => value.as_str().unwrap_or_default().to_string(),
        _ => repr(value),
    }
}

/// Python's `repr(value)`.
fn repr(value: &Value) -> String {
    match value.kind() {
        ValueKind::Undefined => "Undefined".to_string(),
        ValueKind::None => "None".to_string(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.to_string(),
        ValueKind::Number => number(value),
        ValueKind::String => quote(value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            let items = keys(value).map(|key| {
                let item = value.get_item(&key).unwrap_or_default();
                format!("{}: {}", repr(&key), repr(&item))
            });
            format!("{{{}}}", items.collect::<Vec<_>>().join(", "))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<String> = value.try_iter().into_iter().flatten().map(|v| repr(&v)).collect();
            match (value.is_tuple(), items.len()) {
                (true, 1) => format!("({},)", items[0]),
                (true, _) => format!("({})", items.join(", ")),
                _ => format!("[{}]", items.join(", ")),
            }
        }
        _ => value.to_string(),
    }
}

fn keys(map: &Value) -> impl Iterator<Item = Value> {
    map.try_iter().into_iter().flatten()
}

/// A number as Python prints it: `1.0`, `1e-05`, `1e+16`.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let float = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    if float.is_nan() {
        return "nan".to_string();
    }
    if float.is_infinite() {
        return if float > 0.0 { "inf" } else { "-inf" }.to_string();
    }
    // Rust's `{:?}` switches to exponents where Python does but writes them shorter.
    let text = format!("{float:?}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let exponent: i32 = exponent.parse().expect("Rust printed it");
            format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        None => text,
    }
}

/// A string literal in Python's favourite quotes.
fn quote(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if (c as u32) < 0x20 || (0x7F..0xA1).contains(&(c as u32)) || c == '\u{AD}' => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// The arguments of `json.dumps`.
pub(super) struct JsonStyle {
    /// Escape everything beyond ASCII.
    pub ensure_ascii: bool,
    /// Between items; between key and value.
    pub separators: [String; 2],
    /// What one level is indented by; `None` keeps all on one line.
    pub indent: Option<String>,
    pub sort_keys: bool,
}

impl Default for JsonStyle {
    fn default() -> Self {
        Self { ensure_ascii: false, separators: [", ".into(), ": ".into()], indent: None, sort_keys: false }
    }
}

/// Python's `json.dumps(value)`.
pub(super) fn to_json(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    dump(value, style, 0, &mut out)?;
    Ok(out)
}

fn dump(value: &Value, style: &JsonStyle, depth: usize, out: &mut String) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&json_number(value)),
        ValueKind::String => dump_str(value.as_str().unwrap_or_default(), style, out),
        ValueKind::Map => {
            let mut keys: Vec<Value> = keys(value).collect();
            if style.sort_keys {
                keys.sort();
            }
            dump_items('{', '}', &keys, style, depth, out, |key, out| {
                let name = match key.kind() {
                    ValueKind::String => key.as_str().unwrap_or_default().to_string(),
                    ValueKind::Number => json_number(key),
                    ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_string(),
                    _ => "null".to_string(),
                };
                dump_str(&name, style, out);
                out.push_str(&style.separators[1]);
                dump(&value.get_item(key)?, style, depth + 1, out)
            })?;
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            dump_items('[', ']', &items, style, depth, out, |item, out| dump(item, style, depth + 1, out))?;
        }
        _ => {
            let message = format!("Object of type {} is not JSON serializable", value.kind());
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    Ok(())
}

fn dump_items(
    open: char,
    close: char,
    items: &[Value],
    style: &JsonStyle,
    depth: usize,
    out: &mut String,
    mut each: impl FnMut(&Value, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let newline = |depth: usize, out: &mut String| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    };
    out.push(open);
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push_str(&style.separators[0]);
        }
        newline(depth + 1, out);
        each(item, out)?;
    }
    if !items.is_empty() {
        newline(depth, out);
    }
    out.push(close);
    Ok(())
}

fn json_number(value: &Value) -> String {
    match number(value).as_str() {
        "nan" => "NaN".to_string(),
        "inf" => "Infinity".to_string(),
        "-inf" => "-Infinity".to_string(),
        text => text.to_string(),
    }
}

fn dump_str(text: &str, style: &JsonStyle, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{C}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c if style.ensure_ascii && !(' '..='~').contains(&c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: serde_json::Value, expected: &str) {
        assert_eq!(str(&to_value(&json)), expected);
    }

    #[test]
    fn values_print_as_in_python() {
        check(serde_json::json!(null), "None");
        check(serde_json::json!(true), "True");
        check(serde_json::json!(1.0), "1.0");
        check(serde_json::json!(1e16), "1e+16");
        check(serde_json::json!(0.00001), "1e-05");
        check(serde_json::json!("it's"), "it's");
        check(serde_json::json!(["it's", "a\n", {"b": [1, null]}]), r#"["it's", 'a\n', {'b': [1, None]}]"#);
    }

    #[test]
    fn json_is_spaced_and_not_escaped_for_html() {
        let value = to_value(&serde_json::json!({"z": "<a> & 'é' 中\u{1}", "a": [1, 2.5, {}], "e": []}));
        let mut style = JsonStyle::default();
        assert_eq!(
            to_json(&value, &style).unwrap(),
            "{\"z\": \"<a> & 'é' 中\\u0001\", \"a\": [1, 2.5, {}], \"e\": []}"
        );
        style.ensure_ascii = true;
        style.sort_keys = true;
        style.indent = Some("  ".into());
        style.separators[0] = ",".into();
        assert_eq!(
            to_json(&value, &style).unwrap(),
            "{\n  \"a\": [\n    1,\n    2.5,\n    {}\n  ],\n  \"e\": [],\n  \"z\": \"<a> & '\\u00e9' \\u4e2d\\u0001\"\n}"
        );
    }
}
