//! Evaluation tasks over the held-out set, as lm-evaluation-harness YAML.

use std::path::Path;

use anyhow::Result;
use intern_format::atomic::write_atomic;
use intern_kernels::rng::Rng;
use serde_json::json;

use super::problems::{Language, Problem};

/// Writes `eval/*.yaml` and their data.
pub fn write(heldout: &[Problem], out: &Path) -> Result<()> {
    let mut lines = String::new();
    for (i, p) in heldout.iter().enumerate() {
        let mut rng = Rng::new(i as u64, 99);
        let mut choices = wrong_expressions(&p.expression, &mut rng);
        let gold = rng.below(choices.len() as u64 + 1) as usize;
        choices.insert(gold, p.expression.clone());
        let (ask, solve) = match p.language {
            Language::English => ("Question: ", "\nAnswer: We compute"),
            Language::Chinese => ("问题：", "\n回答：我们计算"),
        };
        let line = json!({
            "query": format!("{ask}{}{solve}", p.question),
            "choices": choices,
            "gold": gold,
            "answer": p.answer.to_string(),
        });
        lines.push_str(&line.to_string());
        lines.push('\n');
    }
    write_atomic(&out.join("eval/problems.jsonl"), lines.as_bytes())?;
    write_atomic(&out.join("eval/choose_expression.yaml"), CHOOSE.as_bytes())?;
    write_atomic(&out.join("eval/solve_alone.yaml"), SOLVE.as_bytes())?;
    write_atomic(&out.join("eval/lessons.yaml"), LESSONS.as_bytes())?;
    Ok(())
}

/// Three expressions over the same numbers that are not the right one.
fn wrong_expressions(right: &str, rng: &mut Rng) -> Vec<String> {
    let operators = ["+", "-", "*", "/"];
    let mut wrong: Vec<String> = Vec::new();
    while wrong.len() < 3 {
        let candidate: Vec<&str> = right
            .split(' ')
            .map(|part| if operators.contains(&part) { *rng.pick(&operators) } else { part })
            .collect();
        let mut candidate = candidate.join(" ");
        if rng.chance(0.4) {
            let reversed: Vec<&str> = candidate.split(' ').rev().collect();
            candidate = reversed.join(" ");
        }
        if value(&candidate) != value(right) && !wrong.contains(&candidate) {
            wrong.push(candidate);
        }
    }
    wrong
}

/// The value of `n op n [op n]`, so that `b + a` is not offered as wrong beside `a + b`.
fn value(expression: &str) -> f64 {
    let parts: Vec<&str> = expression.split(' ').collect();
    let number = |i: usize| parts[i].parse::<f64>().unwrap_or(f64::NAN);
    // Terms are summed at the end; `*` and `/` act on the last one.
    let mut terms = vec![number(0)];
    for i in (1..parts.len()).step_by(2) {
        let n = number(i + 1);
        let last = terms.len() - 1;
        match parts[i] {
            "+" => terms.push(n),
            "-" => terms.push(-n),
            "*" => terms[last] *= n,
            _ => terms[last] /= n,
        }
    }
    terms.iter().sum()
}

const CHOOSE: &str = "# Which expression solves the problem? Four choices over the same numbers.
task: choose_expression
dataset_path: json
dataset_kwargs:
  data_files:
    test: problems.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: query
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
";

const SOLVE: &str = "# The whole problem in one's head: no tool, exact match on the result.
task: solve_alone
dataset_path: json
dataset_kwargs:
  data_files:
    test: problems.jsonl
test_split: test
output_type: generate_until
doc_to_text: query
doc_to_target: answer
generation_kwargs:
  until: [\"\\n\"]
  max_gen_toks: 48
  do_sample: false
filter_list:
  - name: result
    filter:
      - function: regex
        regex_pattern: \"= ?([0-9]+)\"
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
";

const LESSONS: &str = "# How well the model predicts lessons it has not seen.
task: lessons
dataset_path: json
dataset_kwargs:
  data_files:
    test: ../heldout/text.jsonl
test_split: test
output_type: loglikelihood_rolling
doc_to_text: \"\"
doc_to_target: text
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
metadata:
  version: 1.0
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_expressions_are_wrong() {
        assert_eq!(value("2 + 3 * 4"), 14.0);
        let mut rng = Rng::new(1, 0);
        for right in ["12 + 30", "7 * 8", "96 / 4", "5 + 6 * 7"] {
            for wrong in wrong_expressions(right, &mut rng) {
                assert_ne!(value(&wrong), value(right), "{wrong}");
            }
        }
    }
}
