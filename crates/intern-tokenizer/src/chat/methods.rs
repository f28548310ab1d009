//! Python methods that templates call on strings, beyond those of minijinja-contrib.

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Answers a method call that minijinja does not know.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => match of_string(text, method, args) {
            Err(error) if error.kind() == ErrorKind::UnknownMethod => {
                pycompat::unknown_method_callback(state, value, method, args)
            }
            answer => answer,
        },
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn of_string(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    match method {
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(text.strip_prefix(prefix).unwrap_or(text).into())
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(text.strip_suffix(suffix).unwrap_or(text).into())
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let found =
                if method == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
            let parts = match found {
                Some((before, after)) => [before, separator, after],
                None if method == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Ok(Value::from(parts.map(Value::from).to_vec()))
        }
        "rsplit" => {
            let (separator, limit): (Option<&str>, Option<i64>) = from_args(args)?;
            let Some(separator) = separator else {
                return Ok(Value::from(text.split_whitespace().map(Value::from).collect::<Vec<_>>()));
            };
            let mut parts: Vec<Value> = match limit.and_then(|n| usize::try_from(n).ok()) {
                Some(limit) => text.rsplitn(limit + 1, separator).map(Value::from).collect(),
                None => text.rsplit(separator).map(Value::from).collect(),
            };
            parts.reverse();
            Ok(Value::from(parts))
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
            let missing = width.min(1 << 16).saturating_sub(text.chars().count());
            Ok(format!("{sign}{}{digits}", "0".repeat(missing)).into())
        }
        "ljust" | "rjust" => {
            let (width,): (usize,) = from_args(args)?;
            let space = " ".repeat(width.min(1 << 16).saturating_sub(text.chars().count()));
            Ok(if method == "ljust" { text.to_string() + &space } else { space + text }.into())
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}
