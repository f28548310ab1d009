//! The article's text as a page declares it to search engines (schema.org `articleBody` in
//! JSON-LD), for pages whose markup holds none.

use serde_json::Value;

use super::ExtractConfig;

/// The longest `articleBody` of the page; empty if there is none.
#[must_use]
pub fn article_body(html: &str) -> String {
    let mut best = String::new();
    let mut rest = html;
    while let Some(at) = rest.find("application/ld+json") {
        rest = &rest[at..];
        let Some(start) = rest.find('>') else { break };
        let end = rest.find("</script").unwrap_or(rest.len());
        if start < end
            && let Ok(value) = serde_json::from_str::<Value>(rest[start + 1..end].trim())
        {
            search(&value, &mut best);
        }
        rest = &rest[end.max(1)..];
    }
    if best.contains('<') && best.contains("</") {
        let config = ExtractConfig { main_content: false, ..ExtractConfig::default() };
        return super::extract(&best, &config).text;
    }
    best
}

/// Looks through nested objects, which serde_json bounds in depth.
fn search(value: &Value, best: &mut String) {
    match value {
        Value::Array(list) => list.iter().for_each(|v| search(v, best)),
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), value) {
                    ("articleBody", Value::String(text)) if text.trim().len() > best.len() => {
                        *best = text.trim().to_string();
                    }
                    _ => search(value, best),
                }
            }
        }
        _ => {}
    }
}
