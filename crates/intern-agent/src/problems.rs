//! Reads the problems of a batch run.

use std::path::Path;

use anyhow::{Result, bail};
use intern_format::records;
use serde::Deserialize;
use serde_json::Value;

/// One question, with its answer where there is one to compare with.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Names the problem in the log.
    pub id: String,
    /// What the model is asked.
    pub question: String,
    /// The right answer.
    pub answer: Option<String>,
    /// Language code; results are also counted by it.
    pub lang: Option<String>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    id: Value,
    question: String,
    #[serde(default)]
    answer: Value,
    #[serde(default)]
    lang: Option<String>,
}

/// Reads the first `limit` problems of a JSON or JSONL file.
///
/// # Errors
/// Names the line that does not fit, or says that the file is empty.
pub fn read(path: &Path, limit: Option<usize>) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for (i, record) in records::open(path)?.take(limit.unwrap_or(usize::MAX)).enumerate() {
        let record = record?;
        let line: Line = record.parse(path).map_err(|e| {
            anyhow::anyhow!(
                "{e}\nhint: a line looks like {{\"id\": \"1\", \"question\": \"…\", \"answer\": \"42\"}}"
            )
        })?;
        problems.push(Problem {
            id: plain(&line.id).unwrap_or_else(|| i.to_string()),
            question: line.question,
            answer: plain(&line.answer),
            lang: line.lang,
        });
    }
    if problems.is_empty() {
        bail!(
            "{}: there are no problems in it\nhint: `limit` must not be 0, and the file not empty",
            path.display()
        );
    }
    Ok(problems)
}

/// A string as it is, a number as written, nothing for null.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(s) => Some(s.clone()),
        other => Some(other.to_string()),
    }
}
