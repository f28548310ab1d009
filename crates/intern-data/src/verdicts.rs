//! `intern data verdicts`: what the rule filters say about each document of a JSONL file,
//! in the words of datatrove, so that both can be compared line by line.
//!
//! The filters are datatrove's with its defaults: every one sees the text as it is in the
//! file, and Chinese text is measured like any other.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::stage::{
    C4, C4Config, Candidate, Fineweb, FinewebConfig, Quality, QualityConfig, Repetition, RepetitionConfig,
    Stage, verdict,
};
use crate::words::Splitter;

/// Time one filter took.
#[derive(Clone, Debug, Serialize)]
pub struct Timing {
    /// The filter.
    pub filter: &'static str,
    /// Documents judged.
    pub docs: usize,
    /// CPU time, seconds.
    pub cpu_s: f64,
    /// Documents per CPU second.
    pub docs_per_cpu_s: f64,
}

/// datatrove's filters: name there, our stage.
fn filters() -> [(&'static str, Box<dyn Stage>); 4] {
    let quality = QualityConfig { chinese: false, stop_words_by_language: false, ..QualityConfig::gopher() };
    [
        (
            "GopherRepetitionFilter",
            Box::new(Repetition(RepetitionConfig { top_ngram_min_count: 1, ..Default::default() })),
        ),
        ("GopherQualityFilter", Box::new(Quality(quality))),
        ("C4QualityFilter", Box::new(C4(C4Config { chinese: false, ..Default::default() }))),
        ("FineWebQualityFilter", Box::new(Fineweb(FinewebConfig { chinese: false, ..Default::default() }))),
    ]
}

/// datatrove's name of our rule.
fn reason<'a>(stage: &str, rule: &'a str) -> &'a str {
    match (stage, rule) {
        ("quality", "min_words") => "gopher_short_doc",
        ("quality", "max_words") => "gopher_long_doc",
        ("quality", "min_mean_word_length") => "gopher_below_avg_threshold",
        ("quality", "max_mean_word_length") => "gopher_above_avg_threshold",
        ("quality", "max_hash_ratio") => "gopher_too_many_hashes",
        ("quality", "max_ellipsis_ratio") => "gopher_too_many_ellipsis",
        ("quality", "max_bullet_lines") => "gopher_too_many_bullets",
        ("quality", "max_ellipsis_lines") => "gopher_too_many_end_ellipsis",
        ("quality", "min_alpha_words") => "gopher_below_alpha_threshold",
        ("quality", "min_stop_words") => "gopher_enough_stop_words",
        ("c4", "min_sentences") => "too_few_sentences",
        _ => rule,
    }
}

/// Judges every line of `path` and writes a JSON line per filter and document to `out`.
///
/// # Errors
/// If the file cannot be read, a line is no JSON object with a `text`, or `out` refuses.
pub fn run(path: &Path, words: Splitter, out: &mut impl Write) -> Result<Vec<Timing>> {
    let documents = read(path)?;
    let mut timings = Vec::new();
    for (name, stage) in filters() {
        let start = cpu_seconds();
        let mut lines = Vec::with_capacity(documents.len());
        for (id, text) in &documents {
            let mut candidate = Candidate::new(text, "").with_splitter(words);
            let drop = if text.is_empty() && stage.name() == "repetition" {
                Some("empty".to_string())
            } else {
                verdict(&*stage, &mut candidate).map(|r| reason(&r.stage, &r.rule).to_string())
            };
            let changed = candidate.into_changed().filter(|_| drop.is_none());
            lines.push((id, drop, changed));
        }
        let cpu = cpu_seconds() - start;
        for (id, drop, changed) in lines {
            let filter = Value::from(name);
            let (keep, drop) = (drop.is_none(), Value::from(drop));
            let changed = Value::from(changed);
            writeln!(
                out,
                "{{\"id\": {id}, \"filter\": {filter}, \"keep\": {keep}, \"reason\": {drop}, \"text\": {changed}}}"
            )?;
        }
        let docs = documents.len();
        timings.push(Timing { filter: name, docs, cpu_s: cpu, docs_per_cpu_s: docs as f64 / cpu.max(1e-9) });
    }
    Ok(timings)
}

fn read(path: &Path) -> Result<Vec<(Value, String)>> {
    let file = File::open(path).with_context(|| {
        format!("cannot open {}\nhint: a file of JSON lines with `id` and `text`", path.display())
    })?;
    let mut documents = Vec::new();
    for (i, line) in BufReader::new(file).lines().enumerate() {
        let at = || {
            format!(
                "{}: line {}: not a JSON object with a string `text`\nhint: one document per line, {{\"id\": …, \"text\": …}}",
                path.display(),
                i + 1
            )
        };
        let line = line.with_context(at)?;
        if line.trim().is_empty() {
            continue;
        }
        let mut value: Value = serde_json::from_str(&line).with_context(at)?;
        let id = value.get("id").cloned().unwrap_or_else(|| Value::from(i));
        match value.get_mut("text").map(Value::take) {
            Some(Value::String(text)) => documents.push((id, text)),
            _ => anyhow::bail!(at()),
        }
    }
    Ok(documents)
}

/// CPU time of this process, seconds, to a hundredth; wall time where the system does not say.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the command's name, which may hold spaces, user and system time are fields 12 and 13.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: Option<f64> =
        fields.get(11..13).and_then(|f| Some(f[0].parse::<f64>().ok()? + f[1].parse::<f64>().ok()?));
    ticks.map_or_else(
        || {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0.0, |d| d.as_secs_f64())
        },
        |t| t / 100.0,
    )
}
