//! What the model has said so far, so that a killed evaluation asks nothing twice.
//!
//! One line per group of documents, written when the whole group is answered. Log
//! likelihoods are kept as the bits of the number, so the scores computed from a
//! journal are those computed at once.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use intern_format::append::AppendLog;
use intern_lm::Score;
use serde::{Deserialize, Serialize};

/// What the model said about one document.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// One score per request.
    Scores(Vec<Score>),
    /// The generated text.
    Text(String),
}

/// [`Response`] on disk.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Stored {
    /// Bits of the log-likelihood, greedy, tokens.
    Scores(Vec<(u64, bool, usize)>),
    Text(String),
}

#[derive(Serialize, Deserialize)]
struct Line {
    task: String,
    /// The group's first document.
    first: usize,
    responses: Vec<Stored>,
}

/// An open journal.
pub struct Journal {
    log: AppendLog,
    groups: BTreeMap<(String, usize), Vec<Response>>,
}

impl Journal {
    /// Opens the journal of `run`; what another run left, or a kill cut off, is dropped.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: &Path, run: &str) -> Result<Self> {
        let header = format!("{{\"run\":\"{run}\"}}\n");
        let (mut groups, mut kept) = (BTreeMap::new(), 0);
        let mut log = AppendLog::open(path, |bytes| {
            let Some(lines) = bytes.strip_prefix(header.as_bytes()) else { return 0 };
            kept = header.len();
            for line in lines.split_inclusive(|&b| b == b'\n') {
                if line.last() != Some(&b'\n') {
                    break;
                }
                let Ok(parsed) = serde_json::from_slice::<Line>(line) else { break };
                kept += line.len();
                let responses = parsed.responses.into_iter().map(Response::from).collect();
                groups.insert((parsed.task, parsed.first), responses);
            }
            kept
        })?;
        if kept == 0 {
            log.append(header.as_bytes())?;
        }
        Ok(Self { log, groups })
    }

    /// The responses to the group of `task` beginning at document `first`, if it is done.
    #[must_use]
    pub fn get(&self, task: &str, first: usize) -> Option<&[Response]> {
        self.groups.get(&(task.to_string(), first)).map(Vec::as_slice)
    }

    /// Adds an answered group.
    ///
    /// # Errors
    /// If the disk is full or the file is gone.
    pub fn add(&mut self, task: &str, first: usize, responses: &[Response]) -> Result<()> {
        let stored = responses.iter().map(Stored::from).collect();
        let mut bytes = serde_json::to_vec(&Line { task: task.to_string(), first, responses: stored })?;
        bytes.push(b'\n');
        Ok(self.log.append(&bytes)?)
    }
}

impl From<&Response> for Stored {
    fn from(response: &Response) -> Self {
        match response {
            Response::Scores(scores) => Self::Scores(
                scores.iter().map(|s| (s.logprob.to_bits(), s.is_greedy, s.num_tokens)).collect(),
            ),
            Response::Text(text) => Self::Text(text.clone()),
        }
    }
}

impl From<Stored> for Response {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Scores(scores) => Self::Scores(
                scores
                    .into_iter()
                    .map(|(bits, is_greedy, num_tokens)| Score {
                        logprob: f64::from_bits(bits),
                        is_greedy,
                        num_tokens,
                    })
                    .collect(),
            ),
            Stored::Text(text) => Self::Text(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_journal_keeps_whole_groups() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal.jsonl");
        let scores =
            vec![Response::Scores(vec![Score { logprob: -0.1 - 0.2, is_greedy: true, num_tokens: 3 }])];
        let text = vec![Response::Text("a\nb".into()), Response::Text(String::new())];
        let mut journal = Journal::open(&path, "r").unwrap();
        journal.add("t", 0, &scores).unwrap();
        journal.add("u", 2, &text).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for cut in (0..=whole.len()).step_by(5) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut journal = Journal::open(&path, "r").unwrap();
            if let Some(found) = journal.get("t", 0) {
                assert_eq!(found, scores);
            } else {
                journal.add("t", 0, &scores).unwrap();
            }
            if let Some(found) = journal.get("u", 2) {
                assert_eq!(found, text);
            } else {
                journal.add("u", 2, &text).unwrap();
            }
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
        assert!(Journal::open(&path, "other").unwrap().get("t", 0).is_none());
    }
}
