//! Synthetic lessons with known answers: the quickstart's raw web pages, tool-use
//! conversations and held-out problems, all from one seed.
//!
//! Word problems in English and Chinese are split into training and held-out by
//! their expression and wording, so no held-out problem occurs in training. Lessons
//! are rendered as web pages with menus, ads, duplicates and broken encodings;
//! `gold.jsonl` tells what cleaning should leave. Nothing here is a language model:
//! it is grammar, lists and a random number generator.

mod conversations;
mod lessons;
mod page;
mod problems;
mod tasks;

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result};
use intern_format::atomic::{write_atomic, write_json};
use intern_format::conversation;
use intern_format::document::{Document, DocumentWriter};
use intern_format::provenance::{self, Provenance};
use intern_kernels::rng::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;

pub use conversations::{SYSTEM_PROMPT, calculator_declaration};
pub use problems::{Language, Problem};

/// What to make, and how much of it.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SynthConfig {
    /// Seeds everything.
    pub seed: u64,
    /// Web pages with lessons, before duplicates are added.
    pub pages: usize,
    /// Lessons on each page.
    pub lessons_per_page: usize,
    /// Conversations for tuning.
    pub conversations: usize,
    /// Share of the conversations that need no tool.
    pub no_tool: f64,
    /// Held-out problems.
    pub heldout: usize,
    /// Held-out lesson documents, for the held-out loss.
    pub heldout_documents: usize,
    /// Share of pages that also appear as an exact copy under another address.
    pub exact_duplicates: f64,
    /// Share of pages that also appear slightly changed.
    pub near_duplicates: f64,
    /// Share of pages whose bytes are in another or a damaged encoding.
    pub broken_encodings: f64,
}

impl Default for SynthConfig {
    fn default() -> Self {
        Self {
            seed: 1,
            pages: 2000,
            lessons_per_page: 10,
            conversations: 6000,
            no_tool: 0.1,
            heldout: 200,
            heldout_documents: 100,
            exact_duplicates: 0.05,
            near_duplicates: 0.05,
            broken_encodings: 0.05,
        }
    }
}

/// What was written.
#[derive(Clone, Debug, Serialize)]
pub struct SynthSummary {
    /// HTML files, duplicates included.
    pub pages: usize,
    /// Conversations for tuning.
    pub conversations: usize,
    /// Held-out problems.
    pub heldout: usize,
}

// Streams of the one seed, so that asking for more of one thing changes no other.
const STREAM_HELDOUT: u64 = 1;
const STREAM_PAGES: u64 = 2;
const STREAM_CONVERSATIONS: u64 = 3;
const STREAM_DOCUMENTS: u64 = 4;

/// Writes `pages/`, `gold.jsonl`, `conversations/`, `heldout/` and `eval/` under `out`.
///
/// # Errors
/// If `out` cannot be written.
pub fn run(config: &SynthConfig, out: &Path) -> Result<SynthSummary> {
    let heldout = heldout_problems(config);
    let taken: HashSet<String> = heldout.iter().map(|p| p.key()).collect();

    let pages = page::write_pages(config, &taken, out).context("writing pages")?;
    let conversations = conversations::training(config, &taken);
    conversation::write_jsonl(&out.join("conversations/train.jsonl"), conversations.iter())?;
    write_heldout(config, &heldout, &taken, out).context("writing the held-out set")?;
    tasks::write(&heldout, out).context("writing evaluation tasks")?;

    let summary = SynthSummary { pages, conversations: conversations.len(), heldout: heldout.len() };
    let record = Provenance {
        command: "data synth".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        config: serde_json::to_value(config)?,
        counts: serde_json::from_value(serde_json::to_value(&summary)?)?,
        ..Provenance::default()
    };
    provenance::write(out, &record)?;
    Ok(summary)
}

/// Distinct problems, alternating languages.
fn heldout_problems(config: &SynthConfig) -> Vec<Problem> {
    let mut rng = Rng::new(config.seed, STREAM_HELDOUT);
    let mut seen = HashSet::new();
    let mut problems = Vec::new();
    while problems.len() < config.heldout {
        let language = Language::ALL[problems.len() % Language::ALL.len()];
        let problem = Problem::random(language, &mut rng);
        if seen.insert(problem.key()) {
            problems.push(problem);
        }
    }
    problems
}

/// A problem that is not held out.
fn training_problem(language: Language, taken: &HashSet<String>, rng: &mut Rng) -> Problem {
    loop {
        let problem = Problem::random(language, rng);
        if !taken.contains(&problem.key()) {
            return problem;
        }
    }
}

fn write_heldout(
    config: &SynthConfig,
    heldout: &[Problem],
    taken: &HashSet<String>,
    out: &Path,
) -> Result<()> {
    let mut lines = String::new();
    for (i, p) in heldout.iter().enumerate() {
        let line = json!({
            "id": format!("heldout-{i:04}"),
            "lang": p.language.code(),
            "kind": p.kind,
            "question": p.question,
            "expression": p.expression,
            "answer": p.answer.to_string(),
            "sentence": p.sentence,
        });
        lines.push_str(&line.to_string());
        lines.push('\n');
    }
    write_atomic(&out.join("heldout/problems.jsonl"), lines.as_bytes())?;

    let mut rng = Rng::new(config.seed, STREAM_DOCUMENTS);
    let path = out.join("heldout/text.jsonl");
    let mut writer = DocumentWriter::create(&path)?;
    for i in 0..config.heldout_documents {
        let language = Language::ALL[i % Language::ALL.len()];
        let (title, paragraphs) = lessons::document(language, config.lessons_per_page, taken, &mut rng);
        writer.write(&Document {
            id: format!("heldout-text-{i:04}"),
            text: format!("{title}\n\n{}", paragraphs.join("\n\n")),
            source: "synth".into(),
            url: String::new(),
            lang: language.code().into(),
            meta: serde_json::Map::new(),
        })?;
    }
    writer.finish()?;
    write_json(
        &out.join("heldout/about.json"),
        &json!({"problems": heldout.len(), "documents": config.heldout_documents}),
    )?;
    Ok(())
}
