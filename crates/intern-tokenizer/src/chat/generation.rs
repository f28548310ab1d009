//! `{% generation %}`: finding out which part of a rendered conversation the assistant wrote.
//!
//! minijinja has no custom tags, so the source is rewritten before compiling: each tag
//! becomes an `if` block that prints a marker. Markers are Unicode noncharacters that
//! occur nowhere in the conversation; they are cut out again while noting where they
//! stood. A plain rendering prints empty markers.

use anyhow::{Result, bail};
use serde_json::{Map, Value};

/// The variable that holds the opening marker.
pub(super) const OPEN: &str = "__generation_open";
/// The variable that holds the closing marker.
pub(super) const CLOSE: &str = "__generation_close";

/// Rewrites the tags; also says whether there were any.
///
/// `{%- generation -%}` becomes `{%- if true %}{{ marker }}{% endif -%}`, whose outer
/// tags keep the whitespace control and the block trimming of the original.
pub(super) fn mark(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len() + 128);
    let mut rest = source;
    let mut found = false;
    while let Some(at) = rest.find("{%") {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let tag = rest;
        let Some(end) = tag.find("%}").map(|i| i + 2) else { break };
        match parse(&tag[..end]) {
            Some((left, name, right)) => {
                found = true;
                let marker = if name == "generation" { OPEN } else { CLOSE };
                out.push_str(&format!("{{%{left} if true %}}{{{{ {marker} }}}}{{% endif {right}%}}"));
                rest = &tag[end..];
            }
            None => {
                out.push_str("{%");
                rest = &tag[2..];
            }
        }
    }
    out.push_str(rest);
    (out, found)
}

/// Splits `{%- generation -%}` into its whitespace controls and name.
fn parse(tag: &str) -> Option<(&str, &str, &str)> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let control = |c: Option<char>| matches!(c, Some('-' | '+'));
    let (left, inner) = inner.split_at(usize::from(control(inner.chars().next())));
    let (inner, right) = inner.split_at(inner.len() - usize::from(control(inner.chars().next_back())));
    let name = inner.trim();
    matches!(name, "generation" | "endgeneration").then_some((left, name, right))
}

/// Two noncharacters that no string of the conversation contains.
pub(super) fn unused_markers(context: &Map<String, Value>) -> Result<(char, char)> {
    let mut used = [false; 32];
    context.values().for_each(|value| scan(value, &mut used));
    let mut free = ('\u{FDD0}'..='\u{FDEF}').zip(used).filter(|(_, used)| !used).map(|(c, _)| c);
    match (free.next(), free.next()) {
        (Some(open), Some(close)) => Ok((open, close)),
        _ => bail!(
            "the conversation uses all of Unicode's noncharacters U+FDD0..U+FDEF\nhint: it is hardly text; drop it"
        ),
    }
}

fn scan(value: &Value, used: &mut [bool; 32]) {
    match value {
        Value::String(text) => scan_text(text, used),
        Value::Array(list) => list.iter().for_each(|v| scan(v, used)),
        Value::Object(map) => map.iter().for_each(|(k, v)| {
            scan_text(k, used);
            scan(v, used);
        }),
        _ => {}
    }
}

fn scan_text(text: &str, used: &mut [bool; 32]) {
    for c in text.chars().filter(|c| ('\u{FDD0}'..='\u{FDEF}').contains(c)) {
        used[c as usize - 0xFDD0] = true;
    }
}

/// Cuts the markers out; returns the text and the byte ranges they enclosed.
pub(super) fn strip(marked: &str, open: char, close: char) -> (String, Vec<(usize, usize)>) {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut start = None;
    for c in marked.chars() {
        if c == open {
            start.get_or_insert(text.len());
        } else if c == close {
            spans.extend(start.take().map(|s| (s, text.len())));
        } else {
            text.push(c);
        }
    }
    (text, spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_keep_their_whitespace_control() {
        let (out, found) = mark("a\n  {%- generation -%} x {% endgeneration %}\n{% if a %}{% endif %}");
        assert!(found);
        assert_eq!(
            out,
            "a\n  {%- if true %}{{ __generation_open }}{% endif -%} x \
             {% if true %}{{ __generation_close }}{% endif %}\n{% if a %}{% endif %}"
        );
        assert_eq!(
            mark("{% for x in y %}{% endfor %} {%"),
            ("{% for x in y %}{% endfor %} {%".to_string(), false)
        );
    }

    #[test]
    fn markers_avoid_what_the_text_uses() {
        let context = serde_json::json!({"messages": [{"content": "\u{FDD0}\u{FDD2}"}]});
        let (open, close) = unused_markers(context.as_object().unwrap()).unwrap();
        assert_eq!((open, close), ('\u{FDD1}', '\u{FDD3}'));
        let (text, spans) = strip("a\u{FDD1}bc\u{FDD3}d", open, close);
        assert_eq!((text.as_str(), spans), ("abcd", vec![(1, 3)]));
    }
}
