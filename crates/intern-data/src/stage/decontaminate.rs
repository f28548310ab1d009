//! Drops documents that hold test questions: word n-grams shared with benchmark files
//! (as in GPT-3, Brown et al., 2020, appendix C), weighed per question and by its answer.
//!
//! A question counts as found when enough of its n-grams occur in the document. Where the
//! benchmark names answers, the answer must occur too, unless nearly the whole question
//! does: a page that quotes half a question without its answer teaches nothing wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use intern_format::records;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Candidate, Sheet, Stage};
use crate::hash::{HashedMap, HashedSet, combine, hash64};
use crate::words;

/// `[decontaminate]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DecontaminateConfig {
    /// Whether the stage runs.
    pub enabled: bool,
    /// The benchmarks.
    pub benchmark: Vec<BenchmarkConfig>,
    /// Words per n-gram; a Chinese character is a word.
    pub ngram: usize,
    /// Questions with fewer words are not looked for.
    pub min_words: usize,
    /// Least share of a question's n-grams that must occur.
    pub min_overlap: f64,
    /// With this share the answer need not occur.
    pub sure_overlap: f64,
}

impl Default for DecontaminateConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            benchmark: Vec::new(),
            ngram: 13,
            min_words: 8,
            min_overlap: 0.3,
            sure_overlap: 0.8,
        }
    }
}

/// One benchmark: a JSON-lines file of questions.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BenchmarkConfig {
    /// Its name in reasons; the file's name if not given.
    #[serde(default)]
    pub name: String,
    /// The file (`.jsonl`, also `.gz` and `.zst`).
    pub path: PathBuf,
    /// Fields that make up the question.
    #[serde(default = "question")]
    pub question: Vec<String>,
    /// Field of the answer, if it should occur too. Of `… #### 42` the part behind counts.
    #[serde(default)]
    pub answer: String,
}

fn question() -> Vec<String> {
    ["question", "prompt", "problem", "text"].map(String::from).to_vec()
}

struct Item {
    benchmark: usize,
    id: String,
    /// Distinct n-grams.
    grams: u32,
    answer: Option<String>,
}

/// The stage.
pub struct Decontaminate {
    config: DecontaminateConfig,
    names: Vec<String>,
    items: Vec<Item>,
    /// Hash of an n-gram → items with it.
    index: HashedMap<Vec<u32>>,
    /// Lengths of n-grams in the index: `ngram`, and those of shorter questions.
    lengths: Vec<usize>,
}

impl Decontaminate {
    /// Reads the benchmarks.
    ///
    /// # Errors
    /// If a file cannot be read or none of its records has a question.
    pub fn new(config: &DecontaminateConfig) -> Result<Self> {
        let mut stage = Self {
            config: config.clone(),
            names: Vec::new(),
            items: Vec::new(),
            index: HashedMap::default(),
            lengths: Vec::new(),
        };
        if config.ngram == 0 || config.benchmark.is_empty() {
            bail!("decontaminate: no benchmarks\nhint: add [[decontaminate.benchmark]] with path = \"…\"");
        }
        for (number, benchmark) in config.benchmark.iter().enumerate() {
            let stem = benchmark.path.file_stem().unwrap_or_default().to_string_lossy();
            let name = if benchmark.name.is_empty() { stem.into_owned() } else { benchmark.name.clone() };
            stage.names.push(name);
            let before = stage.items.len();
            stage.read(number, benchmark)?;
            if stage.items.len() == before {
                bail!(
                    "{}: no record has a question of {} words or more in the fields {}\nhint: set question = [\"…\"]",
                    benchmark.path.display(),
                    config.min_words,
                    benchmark.question.join(", ")
                );
            }
        }
        stage.lengths.sort_unstable();
        stage.lengths.dedup();
        Ok(stage)
    }

    fn read(&mut self, number: usize, benchmark: &BenchmarkConfig) -> Result<()> {
        for record in records::open(&benchmark.path)? {
            let record = record?;
            let value: Value = record.parse(&benchmark.path)?;
            let parts: Vec<&str> = benchmark.question.iter().filter_map(|f| value.get(f)?.as_str()).collect();
            let id = ["id", "task_id", "question_id"].iter().find_map(|f| value.get(f)).map_or_else(
                || record.line.to_string(),
                |v| v.as_str().map_or_else(|| v.to_string(), String::from),
            );
            let answer = value.get(&benchmark.answer).and_then(Value::as_str).map(answer_text);
            self.add(number, id, &parts.join("\n"), answer.filter(|a| !a.is_empty()));
        }
        Ok(())
    }

    fn add(&mut self, benchmark: usize, id: String, question: &str, answer: Option<String>) {
        let hashes = word_hashes(question);
        if hashes.len() < self.config.min_words.max(1) {
            return;
        }
        let n = self.config.ngram.min(hashes.len());
        let grams: HashedSet = hashes.windows(n).map(combine).collect();
        let item = self.items.len() as u32;
        for gram in &grams {
            self.index.entry(*gram).or_default().push(item);
        }
        self.lengths.push(n);
        self.items.push(Item { benchmark, id, grams: grams.len() as u32, answer });
    }
}

/// An answer for comparison: `… #### 42` gives `42`.
fn answer_text(answer: &str) -> String {
    let answer = answer.rsplit_once("####").map_or(answer, |(_, last)| last);
    normalized(answer)
}

fn normalized(text: &str) -> String {
    let mut out = String::new();
    words::normalized(text, |w| {
        out.push_str(w);
        out.push(' ');
    });
    out
}

fn word_hashes(text: &str) -> Vec<u64> {
    let mut hashes = Vec::new();
    words::normalized(text, |w| hashes.push(hash64(w.as_bytes())));
    hashes
}

impl DecontaminateConfig {
    /// All files, whose content belongs to a run's identity.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.benchmark.iter().map(|b| b.path.as_path())
    }
}

impl Stage for Decontaminate {
    fn name(&self) -> &'static str {
        "decontaminate"
    }

    fn judge(&self, candidate: &mut Candidate, sheet: &mut Sheet) {
        let hashes = word_hashes(candidate.text());
        // Item → distinct n-grams of it that occur.
        let mut hits: BTreeMap<u32, HashedSet> = BTreeMap::new();
        for &n in &self.lengths {
            for gram in hashes.windows(n).map(combine) {
                for item in self.index.get(&gram).into_iter().flatten() {
                    hits.entry(*item).or_default().insert(gram);
                }
            }
        }
        let mut text: Option<String> = None;
        let mut worst: Option<(f64, &Item)> = None;
        for (item, grams) in hits {
            let item = &self.items[item as usize];
            let overlap = grams.len() as f64 / f64::from(item.grams.max(1));
            let answered = match &item.answer {
                Some(answer) if overlap >= self.config.min_overlap && overlap < self.config.sure_overlap => {
                    let text = text.get_or_insert_with(|| format!(" {}", normalized(candidate.text())));
                    text.contains(&format!(" {answer}"))
                }
                _ => true,
            };
            if answered && worst.is_none_or(|(most, _)| overlap > most) {
                worst = Some((overlap, item));
            }
        }
        let Some((overlap, item)) = worst else { return };
        // At the limit a question counts as found.
        let limit = self.config.min_overlap - 1e-9;
        let first = sheet.reason.is_none();
        sheet.over(&self.names[item.benchmark], overlap, limit);
        if let (true, Some(reason)) = (first, &mut sheet.reason) {
            reason.limit = self.config.min_overlap;
            reason.duplicate_of = Some(format!("{}/{}", self.names[item.benchmark], item.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict;
    use super::*;

    #[test]
    fn questions_are_found_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("quiz.jsonl");
        let question = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. \
                        How many clips did Natalia sell altogether in April and May?";
        let chinese = "小明有三个苹果，又买了两个苹果，他把一个苹果给了妹妹，现在小明一共还有几个苹果？";
        let lines = [
            serde_json::json!({"id": "n1", "question": question, "answer": "She sold 24. #### 72"}),
            serde_json::json!({"id": "z1", "question": chinese, "answer": "四个"}),
            serde_json::json!({"id": "short", "question": "What is it?", "answer": "x"}),
        ];
        std::fs::write(&path, lines.map(|l| l.to_string()).join("\n")).unwrap();
        let config = DecontaminateConfig {
            benchmark: vec![BenchmarkConfig {
                name: String::new(),
                path,
                question: self::question(),
                answer: "answer".into(),
            }],
            ..DecontaminateConfig::default()
        };
        let stage = Decontaminate::new(&config).unwrap();
        let judge = |text: &str| verdict(&stage, &mut Candidate::new(text, ""));
        let found = judge(&format!("A page. {} End.", question.to_uppercase())).unwrap();
        assert_eq!((found.rule.as_str(), found.value), ("quiz", 1.0));
        assert_eq!(found.duplicate_of.as_deref(), Some("quiz/n1"));
        let half =
            "natalia sold clips to 48 of her friends in april and then she sold half as many clips in may";
        assert!(judge(half).is_none(), "half a question without its answer");
        assert!(judge(&format!("{half}: 72 in all")).is_some());
        assert_eq!(judge(&format!("题目：{chinese}")).unwrap().duplicate_of.as_deref(), Some("quiz/z1"));
        assert!(
            judge("Clips are sold in April and in May by many friends of hers, as everybody knows.")
                .is_none()
        );
    }
}
