//! Text classifiers in fastText's format (Joulin et al., 2017): read anybody's, train our
//! own with `intern data classifier train`. Directories of BERT's family are read too ([`Bert`]).
//!
//! A directory of ours holds `model.bin`, which fastText reads too, and `classifier.json`,
//! which says how text is prepared before the model sees it. A bare `.bin` or `.ftz` gets
//! the text as it is, on one line. Training runs on one thread, so that the same documents
//! give the same bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use fasttext::args::Args;
use fasttext::{FastText, Prediction};
use intern_format::atomic::{TEMP_PREFIX, read_json, write_json};
use intern_format::provenance;
use intern_progress::Progress;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::bert::Bert;
use crate::corpus;
use crate::words::{Splitter, Words};

const PREFIX: &str = "__label__";
const COMMAND: &str = "data classifier train";

/// How text is prepared for a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Prepare {
    /// As it is, on one line.
    #[default]
    Plain,
    /// Words in lower case by the language's rules, Chinese by dictionary.
    Words,
}

/// A model in memory.
pub struct Classifier {
    model: Model,
    labels: Vec<String>,
}

enum Model {
    FastText(Box<FastText>, Prepare),
    Bert(Box<Bert>),
}

/// `classifier.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    prepare: Prepare,
    labels: Vec<String>,
}

impl Classifier {
    /// Opens a model file, or the directory of a training.
    ///
    /// # Errors
    /// If it is missing or no classifier.
    pub fn open(path: &Path) -> Result<Self> {
        if Bert::is_here(path) {
            let model = Bert::open(path)?;
            return Ok(Self { labels: model.labels().to_vec(), model: Model::Bert(Box::new(model)) });
        }
        let (file, prepare) = if path.is_dir() {
            let description: Description = read_json(&path.join("classifier.json")).with_context(|| {
                format!(
                    "{}: no classifier here\nhint: give the directory of `intern data classifier train`",
                    path.display()
                )
            })?;
            (path.join("model.bin"), description.prepare)
        } else {
            (path.to_path_buf(), Prepare::Plain)
        };
        let mut input = BufReader::with_capacity(
            1 << 20,
            File::open(&file).with_context(|| format!("cannot open the model {}", file.display()))?,
        );
        let model = FastText::load(&mut input)
            .map_err(|e| anyhow!("{}: {e}\nhint: a fastText model (.bin or .ftz)", file.display()))?;
        let labels: Vec<String> =
            model.get_labels().0.iter().map(|l| l.trim_start_matches(PREFIX).to_string()).collect();
        if labels.is_empty() {
            bail!("{}: the model has no labels\nhint: word vectors are no classifier", file.display());
        }
        Ok(Self { model: Model::FastText(Box::new(model), prepare), labels })
    }

    /// The labels, without `__label__`.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The `k` likeliest labels with their probabilities.
    #[must_use]
    pub fn predict(&self, text: &str, k: usize) -> Vec<(String, f32)> {
        match &self.model {
            Model::FastText(model, prepare) => {
                let found = predict_line(model, &prepared(text, *prepare), k);
                found.into_iter().map(|p| (p.label.trim_start_matches(PREFIX).to_string(), p.prob)).collect()
            }
            Model::Bert(model) => {
                let probabilities = model.probabilities(text).unwrap_or_else(|e| {
                    tracing::warn!("a text could not be classified: {e:#}");
                    vec![0.0; self.labels.len()]
                });
                let mut found: Vec<_> = self.labels.iter().cloned().zip(probabilities).collect();
                found.sort_by(|a, b| b.1.total_cmp(&a.1));
                found.truncate(k);
                found
            }
        }
    }

    /// The probability of `label`; 0 for a text without known words.
    #[must_use]
    pub fn probability(&self, text: &str, label: &str) -> f32 {
        self.predict(text, self.labels.len()).into_iter().find(|(l, _)| l == label).map_or(0.0, |(_, p)| p)
    }
}

/// Labels of one line. The line's end is a token that takes part in word n-grams, as in the
/// reference; the crate's own `predict` leaves it out of them.
fn predict_line(model: &FastText, line: &str, k: usize) -> Vec<Prediction> {
    let (mut words, mut labels, mut pending) = (Vec::new(), Vec::new(), false);
    let line = format!("{line}\n");
    model.dict().get_line(&mut line.as_bytes(), &mut words, &mut labels, &mut pending);
    model.predict_on_words(&words, k, 0.0)
}

/// One line of text for a model.
fn prepared(text: &str, prepare: Prepare) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    match prepare {
        Prepare::Plain => out.extend(text.chars().map(|c| if c == '\n' || c == '\r' { ' ' } else { c })),
        Prepare::Words => {
            let text = text.to_lowercase();
            for t in &Words::by(Splitter::Language, &text).tokens {
                // A text that names a label must not become one.
                if !t.of(&text).starts_with(PREFIX) {
                    out.push_str(t.of(&text));
                    out.push(' ');
                }
            }
        }
    }
    out
}

/// Writes a JSON line per document of `file` to `out`: id and the `k` likeliest labels.
///
/// # Errors
/// If the model or the documents cannot be read, or `out` refuses.
pub fn predict(model: &Path, file: &Path, k: usize, out: &mut impl Write) -> Result<()> {
    let model = Classifier::open(model)?;
    for file in corpus::files(&[file.to_path_buf()])? {
        for document in corpus::read(&file)? {
            let document = document?;
            let labels: Vec<_> = model
                .predict(&document.text, k)
                .into_iter()
                .map(|(label, p)| json!({"label": label, "probability": p}))
                .collect();
            writeln!(out, "{}", json!({"id": document.id, "labels": labels}))?;
        }
    }
    Ok(())
}

/// Configuration of `intern data classifier train`.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// The classes; at least two.
    pub class: Vec<ClassConfig>,
    /// How text is prepared.
    pub prepare: Prepare,
    /// Passes over the documents.
    pub epochs: u32,
    /// Learning rate.
    pub learning_rate: f64,
    /// Size of the vectors.
    pub dim: u32,
    /// Longest word n-gram.
    pub word_ngrams: u32,
    /// Slots that n-grams are hashed to.
    pub buckets: u32,
    /// Words that occur less often are left out.
    pub min_count: u32,
    /// Characters of a document that are read; 0 reads all.
    pub max_chars: usize,
    /// One document in so many is held out and measured; 0 holds none out.
    pub held_out: u64,
    /// Seeds the vectors.
    pub seed: u32,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            class: Vec::new(),
            prepare: Prepare::Words,
            epochs: 5,
            learning_rate: 0.5,
            dim: 32,
            word_ngrams: 2,
            buckets: 200_000,
            min_count: 1,
            max_chars: 10_000,
            held_out: 10,
            seed: 1,
        }
    }
}

/// One `[[class]]`.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassConfig {
    /// Its label.
    pub label: String,
    /// Document files or directories.
    pub documents: Vec<PathBuf>,
    /// At most so many documents; 0 takes all.
    #[serde(default)]
    pub limit: u64,
}

/// What a training gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Documents learned from.
    pub documents: u64,
    /// Documents held out.
    pub held_out: u64,
    /// Share of the held-out ones labelled right.
    pub accuracy: f64,
    /// Label → precision, recall and F1 on the held-out ones.
    pub labels: BTreeMap<String, [f64; 3]>,
}

/// Trains a classifier into the directory `out`.
///
/// # Errors
/// If the configuration makes no sense, documents are missing or the disk refuses.
pub fn train(config: &TrainConfig, out: &Path) -> Result<Summary> {
    check(config)?;
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    provenance::clear(out)?;
    let lines = out.join(format!("{TEMP_PREFIX}train.txt"));
    let (documents, held) = write_lines(config, &lines)?;

    let mut args = Args::new();
    args.apply_supervised_defaults();
    args.input = lines.clone();
    args.epoch = config.epochs as i32;
    args.lr = config.learning_rate;
    args.dim = config.dim as i32;
    args.word_ngrams = config.word_ngrams as i32;
    args.bucket = if config.word_ngrams > 1 { config.buckets as i32 } else { 0 };
    args.min_count = config.min_count as i32;
    args.seed = config.seed as i32;
    args.verbose = 0;
    // More would race for the weights, and the result depend on who wins.
    args.thread = 1;
    let progress = Progress::new("train", 1, "models");
    let model = FastText::train(args).map_err(|e| anyhow!("training failed: {e}"))?;
    progress.inc(1);
    progress.finish();
    std::fs::remove_file(&lines).with_context(|| format!("cannot remove {}", lines.display()))?;

    let part = out.join(format!("{TEMP_PREFIX}model.bin"));
    model.save_model(&part).map_err(|e| anyhow!("cannot write {}: {e}", part.display()))?;
    std::fs::rename(&part, out.join("model.bin")).context("naming model.bin")?;
    let labels: Vec<String> = config.class.iter().map(|c| c.label.clone()).collect();
    write_json(&out.join("classifier.json"), &Description { prepare: config.prepare, labels })?;

    let summary = measure(&model, &held, documents);
    write_json(&out.join("report.json"), &summary)?;
    let files: Vec<PathBuf> = config.class.iter().flat_map(|c| c.documents.clone()).collect();
    let counts = [
        ("documents", json!(documents)),
        ("held_out", json!(held.len())),
        ("accuracy", json!(summary.accuracy)),
    ];
    corpus::record(out, COMMAND, config, corpus::hashes(files.iter())?, "model.bin", counts)?;
    Ok(summary)
}

fn check(config: &TrainConfig) -> Result<()> {
    let mut labels: Vec<&str> = config.class.iter().map(|c| c.label.as_str()).collect();
    labels.sort_unstable();
    labels.dedup();
    if labels.len() < 2 || labels.len() < config.class.len() {
        bail!(
            "a classifier needs two classes with labels of their own\nhint: add [[class]] with label and documents"
        );
    }
    if labels.iter().any(|l| l.is_empty() || l.contains(char::is_whitespace)) {
        bail!("labels must not be empty or hold spaces\nhint: label = \"good\"");
    }
    if config.epochs == 0 || config.dim == 0 || config.word_ngrams == 0 {
        bail!("epochs, dim and word_ngrams must be at least 1");
    }
    Ok(())
}

/// Writes the training lines, classes mixed; returns their number and the held-out (label, line).
fn write_lines(config: &TrainConfig, path: &Path) -> Result<(u64, Vec<(String, String)>)> {
    let mut lines: Vec<(u64, String, String)> = Vec::new();
    for class in &config.class {
        let mut taken = 0;
        for file in corpus::files(&class.documents)? {
            for document in corpus::read(&file)? {
                let document = document?;
                if class.limit > 0 && taken >= class.limit {
                    break;
                }
                taken += 1;
                let cut: String = match config.max_chars {
                    0 => document.text,
                    n => document.text.chars().take(n).collect(),
                };
                let line = prepared(&cut, config.prepare);
                // The order of training and what is held out depend on the text alone.
                let hash = u64::from_le_bytes(crate::hash::content(&line)[..8].try_into().expect("8 bytes"));
                lines.push((hash, class.label.clone(), line));
            }
        }
        if taken == 0 {
            bail!("class {}: no documents\nhint: documents = [\"…\"]", class.label);
        }
    }
    lines.sort();
    let mut out =
        BufWriter::new(File::create(path).with_context(|| format!("cannot create {}", path.display()))?);
    let (mut documents, mut held) = (0, Vec::new());
    for (hash, label, line) in lines {
        if config.held_out > 0 && (hash >> 32).is_multiple_of(config.held_out) {
            held.push((label, line));
        } else {
            writeln!(out, "{PREFIX}{label} {line}").with_context(|| path.display().to_string())?;
            documents += 1;
        }
    }
    out.flush().with_context(|| path.display().to_string())?;
    Ok((documents, held))
}

fn measure(model: &FastText, held: &[(String, String)], documents: u64) -> Summary {
    // Label → right, given, wanted.
    let mut counts: BTreeMap<String, [u64; 3]> = BTreeMap::new();
    let mut right = 0;
    for (label, line) in held {
        let got = predict_line(model, line, 1);
        let got = got.first().map_or("", |p| p.label.trim_start_matches(PREFIX)).to_string();
        let hit = got == *label;
        right += u64::from(hit);
        counts.entry(label.clone()).or_default()[2] += 1;
        let given = counts.entry(got).or_default();
        given[1] += 1;
        given[0] += u64::from(hit);
    }
    let ratio = |a: u64, b: u64| if b == 0 { 0.0 } else { a as f64 / b as f64 };
    let labels = counts.into_iter().map(|(label, [hit, given, wanted])| {
        let (p, r) = (ratio(hit, given), ratio(hit, wanted));
        (label, [p, r, if p + r > 0.0 { 2.0 * p * r / (p + r) } else { 0.0 }])
    });
    Summary {
        documents,
        held_out: held.len() as u64,
        accuracy: ratio(right, held.len() as u64),
        labels: labels.collect(),
    }
}
