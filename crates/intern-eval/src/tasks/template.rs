//! Columns and Jinja templates: how a document becomes question, answer and choices.
//!
//! minijinja, made to behave like lm-evaluation-harness's Jinja2: undefined names are
//! errors, final line breaks stay, values print as Python prints them.

use anyhow::{Context, Result, bail};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior};
use serde_json::{Map, Value};

use crate::python;

/// A document: one row of a data set.
pub type Doc = Map<String, Value>;

/// Renders templates.
pub struct Templates {
    env: Environment<'static>,
}

impl Default for Templates {
    fn default() -> Self {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        env.set_syntax(
            SyntaxConfig::builder().keep_trailing_newline(true).build().expect("only white space is set"),
        );
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(method);
        env.set_formatter(|out, _, value| {
            let text = match value.as_str() {
                Some(text) => text.to_string(),
                None if value.is_undefined() => return Err(Error::from(ErrorKind::UndefinedError)),
                None => python::text(&json(value)?),
            };
            out.write_str(&text).map_err(|_| Error::new(ErrorKind::WriteFailure, "cannot render"))
        });
        env.add_filter("regex_replace", regex_replace);
        env.add_filter("string", |value: &minijinja::Value| match value.as_str() {
            Some(text) => Ok(text.to_string()),
            None => json(value).map(|v| python::text(&v)),
        });
        Self { env }
    }
}

fn json(value: &minijinja::Value) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// `re.sub` as a filter: `{{ x | regex_replace("a", "b") }}`; groups as `\1`.
fn regex_replace(
    text: &str,
    pattern: &str,
    replacement: &str,
    count: Option<usize>,
) -> Result<String, Error> {
    let bad = |e: String| Error::new(ErrorKind::InvalidOperation, e);
    let regex = python::regex(pattern).map_err(|e| bad(e.to_string()))?;
    let replacement = replacement.replace('$', "$$");
    let groups = python::regex(r"\\(\d)|\\g<(\w+)>").map_err(|e| bad(e.to_string()))?;
    let replacement = groups.replace_all(&replacement, "$${$1$2}").into_owned();
    let replaced = regex.try_replacen(text, count.unwrap_or(0), replacement.as_str());
    replaced.map(|t| t.into_owned()).map_err(|e| bad(e.to_string()))
}

/// Python's methods of text, lists and dicts.
fn method(
    state: &mut State,
    value: &minijinja::Value,
    name: &str,
    args: &[minijinja::Value],
) -> Result<minijinja::Value, Error> {
    if let ("index", [wanted]) = (name, args) {
        let missing = || Error::new(ErrorKind::InvalidOperation, format!("{wanted} is not in {value}"));
        match value.kind() {
            ValueKind::Seq => {
                return value
                    .try_iter()?
                    .position(|v| v == *wanted)
                    .map(minijinja::Value::from)
                    .ok_or_else(missing);
            }
            ValueKind::String => {
                let (text, part) = (value.as_str().unwrap_or_default(), wanted.as_str().unwrap_or_default());
                let at = text.find(part).ok_or_else(missing)?;
                return Ok(text[..at].chars().count().into());
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

impl Templates {
    /// Renders `source` with the document's columns as variables.
    ///
    /// # Errors
    /// If the template is wrong or names a column that is not there.
    pub fn render(&self, source: &str, doc: &Doc) -> Result<String> {
        self.env.render_str(source, minijinja::Value::from(minijinja::value::Serde(doc))).map_err(|e| {
            let columns: Vec<&str> = doc.keys().map(String::as_str).collect();
            match e.kind() {
                ErrorKind::UndefinedError => {
                    anyhow::anyhow!("`{source}`: {e}\nhint: the columns are {}", columns.join(", "))
                }
                _ => anyhow::anyhow!("`{source}`: {e:#}"),
            }
        })
    }

    /// A field that may name a column or be a template (`description`, `gen_prefix`).
    ///
    /// # Errors
    /// As [`Templates::render`].
    pub fn resolve(&self, field: &str, doc: &Doc) -> Result<String> {
        match doc.get(field) {
            Some(value) => Ok(python::text(value)),
            None if field.is_empty() => Ok(String::new()),
            None => self.render(field, doc),
        }
    }

    /// `doc_to_text`: text, or an index where the choices are the contexts.
    ///
    /// # Errors
    /// As [`Templates::render`].
    pub fn text(&self, field: &Value, doc: &Doc, has_choices: bool) -> Result<Value> {
        let Value::String(source) = field else { return Ok(field.clone()) };
        if let Some(value) = doc.get(source) {
            return Ok(value.clone());
        }
        let text = self.render(source, doc)?;
        Ok(if has_choices { number(&text).unwrap_or(text.into()) } else { text.into() })
    }

    /// `doc_to_target`: text, the index of a choice, or a list of answers.
    ///
    /// # Errors
    /// As [`Templates::render`].
    pub fn target(&self, field: &Value, doc: &Doc, has_choices: bool) -> Result<Value> {
        let Value::String(source) = field else { return Ok(field.clone()) };
        if let Some(value) = doc.get(source) {
            return Ok(value.clone());
        }
        let text = self.render(source, doc)?;
        if has_choices && let Some(index) = number(&text) {
            return Ok(index);
        }
        if text.len() >= 2 && text.starts_with('[') && text.ends_with(']') {
            return Ok(python::literal(&text).unwrap_or(text.into()));
        }
        Ok(text.into())
    }

    /// `doc_to_choice`: the continuations (or contexts) to choose from.
    ///
    /// # Errors
    /// As [`Templates::render`], or if the result is no list of text.
    pub fn choices(&self, field: &Value, doc: &Doc) -> Result<Vec<String>> {
        let value = match field {
            Value::String(source) => match doc.get(source) {
                Some(value) => value.clone(),
                None => python::literal(&self.render(source, doc)?)?,
            },
            Value::Object(map) => Value::Array(map.values().cloned().collect()),
            other => other.clone(),
        };
        let Value::Array(items) = &value else {
            bail!("doc_to_choice must give a list, not {}", python::repr(&value))
        };
        let text = |v: &Value| v.as_str().map(str::to_string);
        items.iter().map(text).collect::<Option<Vec<_>>>().with_context(|| {
            format!(
                "doc_to_choice must give a list of text, not {}\nhint: quote words like yes and no in YAML",
                python::repr(&value)
            )
        })
    }
}

/// An index written with digits only.
fn number(text: &str) -> Option<Value> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if digits { text.parse::<i64>().ok().map(Value::from) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn doc() -> Doc {
        let doc = json!({"q": "What?", "choices": {"text": ["a", "it's"], "label": ["A", "B"]}, "key": "B", "n": 1.0, "ok": true});
        doc.as_object().unwrap().clone()
    }

    #[track_caller]
    fn check(template: &str, expected: &str) {
        assert_eq!(Templates::default().render(template, &doc()).unwrap(), expected);
    }

    #[test]
    fn templates_behave_like_jinja2() {
        check("Question: {{q}}\nAnswer:", "Question: What?\nAnswer:");
        check(
            "{{choices.text}} {{n}} {{ok}} {{choices}}",
            "['a', \"it's\"] 1.0 True {'text': ['a', \"it's\"], 'label': ['A', 'B']}",
        );
        check("{{choices.label.index(key)}}", "1");
        check("{{['A', 'B'].index(key)}}{{'xyz'.index('z')}}", "12");
        check("{{q.lower().strip('?').split('a')[0]}}!\n", "wh!\n");
        check("{% for t in choices.text %}{{loop.index}}. {{t}}\n{% endfor %}", "1. a\n2. it's\n");
        check("{{q | regex_replace('(W)h', '\\\\1H')}}", "WHat?");
        check("{{choices.text | join(', ')}}{{choices.text | length}}{{n | string}}", "a, it's21.0");
        check("<b>{{'<&>'}}</b>", "<b><&></b>");
        let error = Templates::default().render("{{question}}", &doc()).unwrap_err().to_string();
        assert!(error.contains("the columns are q, choices"), "{error}");
    }

    #[test]
    fn fields_resolve_to_values() {
        let t = Templates::default();
        let d = doc();
        assert_eq!(t.text(&json!("q"), &d, true).unwrap(), json!("What?"));
        assert_eq!(t.text(&json!("{{1}}"), &d, true).unwrap(), json!(1));
        assert_eq!(t.text(&json!("{{1}}"), &d, false).unwrap(), json!("1"));
        assert_eq!(t.target(&json!("{{choices.text}}"), &d, false).unwrap(), json!(["a", "it's"]));
        assert_eq!(t.target(&json!("[see below]"), &d, false).unwrap(), json!("[see below]"));
        assert_eq!(t.target(&json!(0), &d, true).unwrap(), json!(0));
        assert_eq!(t.choices(&json!("{{choices.text}}"), &d).unwrap(), ["a", "it's"]);
        assert_eq!(t.choices(&json!(["x", "y"]), &d).unwrap(), ["x", "y"]);
        assert!(t.choices(&json!("q"), &d).unwrap_err().to_string().contains("must give a list"));
        assert!(t.choices(&json!([true]), &d).unwrap_err().to_string().contains("list of text"));
    }
}
