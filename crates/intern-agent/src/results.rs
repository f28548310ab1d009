//! What a run came to: counted from the `answer` events, written to `results.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Right answers out of all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// `correct / total`.
    pub accuracy: f64,
    /// Right answers.
    pub correct: usize,
    /// Problems that have a known answer.
    pub total: usize,
}

impl Score {
    fn count(&mut self, correct: bool) {
        self.total += 1;
        self.correct += usize::from(correct);
        self.accuracy = self.correct as f64 / self.total as f64;
    }
}

/// The contents of `results.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The model's name.
    pub model: String,
    /// The protocol's name.
    pub protocol: String,
    /// Over all problems that have a known answer.
    #[serde(flatten)]
    pub score: Score,
    /// Episodes.
    pub problems: usize,
    /// Episodes that ended with an answer of the model.
    pub answered: usize,
    /// Episodes in which at least one tool was called.
    pub tool_used: usize,
    /// Calls of tools.
    pub tool_calls: usize,
    /// Calls that failed: unknown tool, wrong arguments, no result.
    pub tool_errors: usize,
    /// Turns that could not be read.
    pub malformed: usize,
    /// Turns of the model.
    pub turns: usize,
    /// Tokens of all prompts.
    pub input_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Episodes by how they ended.
    pub outcomes: BTreeMap<String, usize>,
    /// The score by language code.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub by_lang: BTreeMap<String, Score>,
}

impl Summary {
    /// Counts the `answer` lines of a log.
    #[must_use]
    pub fn count(model: &str, protocol: &str, answers: &[Value]) -> Self {
        let mut sum = Self { model: model.to_string(), protocol: protocol.to_string(), ..Self::default() };
        for line in answers {
            let number = |name: &str| line[name].as_u64().unwrap_or(0);
            let outcome = line["outcome"].as_str().unwrap_or_default();
            sum.problems += 1;
            sum.answered += usize::from(outcome == "answered");
            *sum.outcomes.entry(outcome.to_string()).or_default() += 1;
            sum.tool_used += usize::from(number("tool_calls") > 0);
            sum.tool_calls += number("tool_calls") as usize;
            sum.tool_errors += number("tool_errors") as usize;
            sum.malformed += number("malformed") as usize;
            sum.turns += number("turns") as usize;
            sum.input_tokens += number("gen_ai.usage.input_tokens");
            sum.output_tokens += number("gen_ai.usage.output_tokens");
            let Some(correct) = line["correct"].as_bool() else { continue };
            sum.score.count(correct);
            if let Some(lang) = line["lang"].as_str() {
                sum.by_lang.entry(lang.to_string()).or_default().count(correct);
            }
        }
        sum
    }

    /// A few lines for the terminal.
    #[must_use]
    pub fn table(&self) -> String {
        let mut lines = vec![format!("model      {} ({} protocol)", self.model, self.protocol)];
        if self.score.total > 0 {
            let show = |s: &Score| format!("{:.1} % ({} of {})", 100.0 * s.accuracy, s.correct, s.total);
            lines.push(format!("right      {}", show(&self.score)));
            for (lang, score) in &self.by_lang {
                lines.push(format!("  in {lang:<5} {}", show(score)));
            }
        }
        lines.push(format!("answered   {} of {}", self.answered, self.problems));
        lines.push(format!(
            "tools      used in {} episodes: {} calls, {} failed; {} turns could not be read",
            self.tool_used, self.tool_calls, self.tool_errors, self.malformed
        ));
        lines.push(format!(
            "tokens     {} read, {} written in {} turns",
            self.input_tokens, self.output_tokens, self.turns
        ));
        lines.join("\n")
    }
}
