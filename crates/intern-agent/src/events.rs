//! The record of a run: `events.jsonl`, append-only, one JSON object per line.
//!
//! Every line has `seq`, `run`, `problem` and `type`; the rest uses the attribute names
//! of OpenTelemetry's semantic conventions for generative AI. There are no times, so
//! the same run writes the same bytes. Episodes are written whole and in the order of
//! the problems, in groups, so that a killed run is cut back to its last whole group.

use std::path::Path;

use anyhow::Result;
use intern_format::append::AppendLog;
use serde_json::{Map, Value};

/// The type of the line that ends an episode.
pub const ANSWER: &str = "answer";

/// One line before it gets its number and its run.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// `question`, `assistant`, `tool_call`, `tool_result`, `reminder` or `answer`.
    pub kind: &'static str,
    /// The other fields, in order.
    pub fields: Map<String, Value>,
}

impl Event {
    /// Starts an event.
    #[must_use]
    pub fn new(kind: &'static str) -> Self {
        Self { kind, fields: Map::new() }
    }

    /// Adds a field.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.to_string(), value.into());
        self
    }

    /// The whole line as an object.
    #[must_use]
    pub fn line(self, seq: u64, run: &str, problem: &str) -> Value {
        let mut line = Map::new();
        line.insert("seq".into(), seq.into());
        line.insert("run".into(), run.into());
        line.insert("problem".into(), problem.into());
        line.insert("type".into(), self.kind.into());
        line.extend(self.fields);
        Value::Object(line)
    }

    /// A transcript line for the terminal, `None` for events a person need not see.
    #[must_use]
    pub fn readable(&self) -> Option<String> {
        let field =
            |name: &str| self.fields.get(name).and_then(Value::as_str).unwrap_or_default().trim().to_string();
        let (who, text) = match self.kind {
            "question" => ("question", field("content")),
            "assistant" => ("model", field("content")),
            "tool_call" => ("calls", field("call")),
            "tool_result" => ("tool", field("content")),
            "reminder" => ("reminder", field("content")),
            _ if field("outcome") != "answered" => ("ended", field("outcome").replace('_', " ")),
            _ => return None,
        };
        if text.is_empty() {
            return None;
        }
        let indented = text.replace('\n', &format!("\n{:>11}", ""));
        Some(format!("{who:>9}  {indented}"))
    }
}

/// An open `events.jsonl`.
pub struct EventLog {
    log: AppendLog,
    run: String,
    seq: u64,
    /// The `answer` line of each finished episode, in order.
    answers: Vec<Value>,
}

impl EventLog {
    /// Opens the log of `run`, keeping whole groups of `group` episodes (or all `total`)
    /// and cutting off the rest; a log of another run is emptied.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: &Path, run: &str, group: usize, total: usize) -> Result<Self> {
        let (mut kept_seq, mut kept_answers) = (0, Vec::new());
        let log = AppendLog::open(path, |text| {
            let (mut kept, mut end) = (0, 0);
            let (mut seq, mut answers) = (0u64, Vec::new());
            for line in text.split_inclusive(|&b| b == b'\n') {
                let Ok(event) = serde_json::from_slice::<Value>(line) else { break };
                if line.last() != Some(&b'\n') || event["run"] != run || event["seq"] != seq {
                    break;
                }
                end += line.len();
                seq += 1;
                if event["type"] == ANSWER {
                    answers.push(event);
                    if answers.len().is_multiple_of(group) || answers.len() == total {
                        (kept, kept_seq) = (end, seq);
                        kept_answers.extend_from_slice(&answers[kept_answers.len()..]);
                    }
                }
            }
            kept
        })?;
        Ok(Self { log, run: run.to_string(), seq: kept_seq, answers: kept_answers })
    }

    /// The `answer` lines so far.
    #[must_use]
    pub fn answers(&self) -> &[Value] {
        &self.answers
    }

    /// Appends the episodes of one group, in one write.
    ///
    /// # Errors
    /// If the disk is full or the file is gone.
    pub fn append(&mut self, episodes: Vec<(String, Vec<Event>)>) -> Result<()> {
        let mut bytes = Vec::new();
        for (problem, events) in episodes {
            for event in events {
                let line = event.line(self.seq, &self.run, &problem);
                self.seq += 1;
                serde_json::to_writer(&mut bytes, &line)?;
                bytes.push(b'\n');
                if line["type"] == ANSWER {
                    self.answers.push(line);
                }
            }
        }
        Ok(self.log.append(&bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn episode(id: &str) -> (String, Vec<Event>) {
        (
            id.to_string(),
            vec![Event::new("question").with("content", "?"), Event::new(ANSWER).with("correct", true)],
        )
    }

    #[test]
    fn a_killed_log_is_cut_back_to_whole_groups() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let open = |run: &str| EventLog::open(&path, run, 2, 5).unwrap();
        let mut log = open("r");
        log.append(vec![episode("a"), episode("b")]).unwrap();
        log.append(vec![episode("c"), episode("d")]).unwrap();
        log.append(vec![episode("e")]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(open("r").answers().len(), 5);
        for cut in (0..whole.len()).step_by(11) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut log = open("r");
            let done = log.answers().len();
            assert!([0, 2, 4].contains(&done), "{done} at {cut}");
            let rest: Vec<_> = ["a", "b", "c", "d", "e"][done..].iter().map(|id| episode(id)).collect();
            log.append(rest).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
        assert_eq!(open("another").answers().len(), 0);
    }
}
