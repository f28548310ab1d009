//! Filters: what is cut out of a response before it is scored.
//!
//! A pipeline maps the responses to one document (one, since `repeats` is 1) to the
//! answer scored. Names and options are lm-evaluation-harness's.

use anyhow::{Context, Result, bail};
use fancy_regex::Regex;
use serde_json::{Map, Value};

use crate::python;

/// A named pipeline.
pub struct Pipeline {
    /// The part after the comma in `exact_match,NAME`.
    pub name: String,
    steps: Vec<Step>,
}

enum Step {
    TakeFirst,
    TakeFirstK(usize),
    MajorityVote,
    Strip,
    Lower,
    Upper,
    Map { mapping: Map<String, Value>, default: Value },
    Regex(Extract),
    MultiChoice { first: Extract, ignore_case: bool, ignore_punctuation: bool, ignore: Vec<Regex> },
}

struct Extract {
    regex: Regex,
    select: i64,
    fallback: Value,
}

/// Names of all filters, for messages.
const KNOWN: &str = "regex, multi_choice_regex, remove_whitespace, lowercase, uppercase, map, take_first, take_first_k, majority_vote";

impl Pipeline {
    /// The pipeline of tasks that name none.
    #[must_use]
    pub fn take_first() -> Self {
        Self { name: "none".to_string(), steps: vec![Step::TakeFirst] }
    }

    /// Reads one entry of `filter_list`: `{name, filter: [{function, …}]}`.
    ///
    /// # Errors
    /// Names the unknown filter or option.
    pub fn parse(entry: &Value) -> Result<Self> {
        let name = entry["name"].as_str().context("every entry of filter_list needs a `name`")?;
        let steps =
            entry["filter"].as_array().with_context(|| format!("filter {name} needs a list `filter`"))?;
        let steps = steps.iter().map(parse_step).collect::<Result<Vec<_>>>();
        Ok(Self { name: name.to_string(), steps: steps.with_context(|| format!("in filter {name}"))? })
    }

    /// Filters the response to `doc`.
    ///
    /// # Errors
    /// If a regular expression runs away, or a `multi_choice_regex` finds no choices.
    pub fn apply(&self, response: &str, doc: &Map<String, Value>) -> Result<Value> {
        let mut values = vec![Value::from(response)];
        for step in &self.steps {
            values = step.apply(values, doc)?;
        }
        // One response in, one out: pipelines without `take_first` end in a list of one.
        Ok(values.into_iter().next().unwrap_or_default())
    }
}

fn parse_step(step: &Value) -> Result<Step> {
    let name = step["function"].as_str().context("every filter needs a `function`")?;
    let options = step.as_object().cloned().unwrap_or_default();
    let allow =
        |known: &[&str]| match options.keys().find(|k| *k != "function" && !known.contains(&k.as_str())) {
            Some(option) => bail!("{name} has no option `{option}`\nhint: it has {}", known.join(", ")),
            None => Ok(()),
        };
    let text = |option: &str| options.get(option).and_then(Value::as_str);
    let flag = |option: &str| options.get(option).and_then(Value::as_bool).unwrap_or(false);
    let extract = || -> Result<Extract> {
        Ok(Extract {
            regex: python::regex(text("regex_pattern").unwrap_or(r"#### (\-?[0-9\.\,]+)"))?,
            select: options.get("group_select").and_then(Value::as_i64).unwrap_or(0),
            fallback: options.get("fallback").cloned().unwrap_or_else(|| "[invalid]".into()),
        })
    };
    Ok(match name {
        "take_first" => Step::TakeFirst,
        "majority_vote" => Step::MajorityVote,
        "take_first_k" => {
            allow(&["k"])?;
            Step::TakeFirstK(
                options.get("k").and_then(Value::as_u64).context("take_first_k needs a number `k`")? as usize,
            )
        }
        "remove_whitespace" => Step::Strip,
        "lowercase" => Step::Lower,
        "uppercase" => Step::Upper,
        "map" => {
            allow(&["mapping_dict", "default_value"])?;
            Step::Map {
                mapping: options.get("mapping_dict").and_then(Value::as_object).cloned().unwrap_or_default(),
                default: options.get("default_value").cloned().unwrap_or_default(),
            }
        }
        "regex" => {
            allow(&["regex_pattern", "group_select", "fallback"])?;
            Step::Regex(extract()?)
        }
        "multi_choice_regex" => {
            allow(&[
                "regex_pattern",
                "group_select",
                "fallback",
                "ignore_case",
                "ignore_punctuation",
                "regexes_to_ignore",
            ])?;
            Step::MultiChoice {
                first: extract()?,
                ignore_case: flag("ignore_case"),
                ignore_punctuation: flag("ignore_punctuation"),
                ignore: regexes(options.get("regexes_to_ignore"))?,
            }
        }
        other => bail!("there is no filter `{other}`\nhint: filters are {KNOWN}"),
    })
}

/// Compiles a list of Python regular expressions.
pub(crate) fn regexes(list: Option<&Value>) -> Result<Vec<Regex>> {
    let items = list.and_then(Value::as_array).into_iter().flatten();
    items.map(|r| python::regex(r.as_str().context("regexes_to_ignore must be a list of text")?)).collect()
}

impl Step {
    fn apply(&self, values: Vec<Value>, doc: &Map<String, Value>) -> Result<Vec<Value>> {
        let each = |f: &dyn Fn(&str) -> Result<Value>| -> Result<Vec<Value>> {
            values.iter().map(|v| f(v.as_str().unwrap_or_default())).collect()
        };
        match self {
            Self::TakeFirst | Self::MajorityVote => Ok(values.into_iter().take(1).collect()),
            Self::TakeFirstK(k) => {
                if values.len() < *k {
                    bail!("take_first_k: {k} responses are wanted and there is {}", values.len());
                }
                Ok(values)
            }
            Self::Strip => each(&|s| Ok(s.trim().into())),
            Self::Lower => each(&|s| Ok(s.to_lowercase().into())),
            Self::Upper => each(&|s| Ok(s.to_uppercase().into())),
            Self::Map { mapping, default } => each(&|s| Ok(mapping.get(s).unwrap_or(default).clone())),
            Self::Regex(extract) => {
                each(&|s| Ok(extract.find(s)?.map_or(extract.fallback.clone(), Value::from)))
            }
            Self::MultiChoice { first, ignore_case, ignore_punctuation, ignore } => {
                let clean = |s: &str| -> Result<String> {
                    let mut s = s.to_string();
                    for regex in ignore {
                        s = regex.try_replacen(&s, 0, "")?.into_owned();
                    }
                    if *ignore_case {
                        s = s.to_lowercase();
                    }
                    if *ignore_punctuation {
                        s.retain(|c| !is_punctuation(c));
                    }
                    Ok(s)
                };
                each(&|s| multi_choice(first, s, doc, &clean))
            }
        }
    }
}

impl Extract {
    /// The selected match of `re.findall`, stripped. With groups, the first that is not empty.
    fn find(&self, text: &str) -> Result<Option<String>> {
        let mut found = Vec::new();
        for captures in self.regex.captures_iter(text) {
            let captures = captures.context("a regular expression took too long")?;
            let groups: Vec<&str> = captures.iter().skip(1).map(|g| g.map_or("", |g| g.as_str())).collect();
            found.push(match groups.as_slice() {
                [] => captures.get(0).map(|m| m.as_str().to_string()),
                [one] => Some((*one).to_string()),
                many => many.iter().find(|g| !g.is_empty()).map(|g| (*g).to_string()),
            });
        }
        let len = found.len() as i64;
        let index = if self.select < 0 { len + self.select } else { self.select };
        if index < 0 || index >= len {
            return Ok(None);
        }
        Ok(found.swap_remove(index as usize).map(|m| m.trim().to_string()))
    }
}

/// Looks for `regex_pattern`, then for the text of a choice, then for `: A`; answers `(A)`.
fn multi_choice(
    first: &Extract,
    response: &str,
    doc: &Map<String, Value>,
    clean: &dyn Fn(&str) -> Result<String>,
) -> Result<Value> {
    if let Some(found) = first.find(response)?.filter(|f| !f.is_empty()) {
        return Ok(found.into());
    }
    let choices = doc
        .get("choices")
        .and_then(Value::as_array)
        .context("multi_choice_regex needs a column `choices`")?;
    let letter = |i: usize| char::from_u32('A' as u32 + i as u32).unwrap_or('?');
    let texts: Vec<String> = choices.iter().map(|c| clean(python::text(c).trim())).collect::<Result<_>>()?;
    // Longest first: a choice that begins another must not hide it.
    let mut longest: Vec<&str> = texts.iter().map(String::as_str).collect();
    longest.sort_by_key(|t| std::cmp::Reverse(t.chars().count()));
    let select = |pattern: String, text: &str| -> Result<Option<String>> {
        let regex = Regex::new(&pattern).context("building the choices' expression")?;
        Extract { regex, select: first.select, fallback: Value::Null }.find(text)
    };
    let escaped: Vec<String> = longest.iter().map(|t| fancy_regex::escape(t).into_owned()).collect();
    if let Some(found) = select(escaped.join("|"), &clean(response)?)?.filter(|f| !f.is_empty()) {
        // A later choice with the same text wins, as in a Python dict.
        let answer = texts.iter().rposition(|t| *t == found).map_or(found, |i| format!("({})", letter(i)));
        return Ok(answer.into());
    }
    let letters: String = (0..choices.len()).map(|i| letter(i).to_string()).collect::<Vec<_>>().join("|");
    if let Some(found) = select(format!(r":[\s]*({letters})"), response)?.filter(|f| !f.is_empty()) {
        return Ok(format!("({found})").into());
    }
    Ok(first.fallback.clone())
}

/// Unicode category P, near enough: ASCII punctuation and the common blocks.
fn is_punctuation(c: char) -> bool {
    match c {
        '$' | '+' | '<' | '=' | '>' | '^' | '`' | '|' | '~' => false,
        c if c.is_ascii() => c.is_ascii_punctuation(),
        '¡' | '§' | '«' | '¶' | '·' | '»' | '¿' => true,
        '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205e}' => !matches!(c, '\u{2044}' | '\u{2052}'),
        '\u{3001}'..='\u{3003}' | '\u{3008}'..='\u{3011}' | '\u{3014}'..='\u{301f}' => true,
        '！'..='／' | '：'..='＠' | '［'..='＿' | '｛'..='･' => {
            !matches!(c, '＄' | '＋' | '＜' | '＝' | '＞' | '＾' | '｜' | '～')
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(filters: Value, response: &str, expected: Value) {
        let pipeline = Pipeline::parse(&json!({"name": "f", "filter": filters})).unwrap();
        let doc = json!({"choices": ["Guilty", "Guilty of Romance", "Not"]});
        assert_eq!(pipeline.apply(response, doc.as_object().unwrap()).unwrap(), expected, "{response}");
    }

    #[test]
    fn extraction() {
        let gsm = json!([{"function": "regex", "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)", "group_select": -1}, {"function": "take_first"}]);
        check(gsm.clone(), "12 plus 30 is 42", json!("42"));
        check(gsm.clone(), "so 7", json!("7"));
        check(gsm, "none", json!("[invalid]"));
        check(
            json!([{"function": "regex", "regex_pattern": r"#### (\d+)", "fallback": "?"}]),
            "#### 5 ",
            json!("5"),
        );
        check(
            json!([{"function": "regex", "regex_pattern": "[a-z]+", "group_select": 3}]),
            "a b",
            json!("[invalid]"),
        );
    }

    #[test]
    fn transformation() {
        check(json!([{"function": "remove_whitespace"}, {"function": "lowercase"}]), " YES \n", json!("yes"));
        check(json!([{"function": "uppercase"}, {"function": "take_first"}]), "no", json!("NO"));
        let map = json!([{"function": "map", "mapping_dict": {"A": 1}, "default_value": 0}]);
        check(map.clone(), "A", json!(1));
        check(map, "B", json!(0));
    }

    #[test]
    fn choices_by_letter_or_text() {
        let filter = json!([{"function": "multi_choice_regex", "regex_pattern": r"(\([A-Z]\))", "ignore_case": true, "ignore_punctuation": true}]);
        check(filter.clone(), "It is (B).", json!("(B)"));
        check(filter.clone(), "it's guilty of romance!", json!("(B)"));
        check(filter.clone(), "I say: C", json!("(C)"));
        check(filter, "dunno", json!("[invalid]"));
    }

    #[test]
    fn unknown_names_are_refused() {
        let parse = |step: Value| {
            format!("{:#}", Pipeline::parse(&json!({"name": "f", "filter": [step]})).err().unwrap())
        };
        assert!(parse(json!({"function": "custom"})).contains("there is no filter `custom`"));
        assert!(parse(json!({"function": "regex", "pattern": "x"})).contains("no option `pattern`"));
    }
}
