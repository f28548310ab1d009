//! Runs an evaluation: read tasks → ask the model, group by group → score → write.
//!
//! Groups are fixed runs of `batch` documents, so a continued evaluation sends the
//! model the same batches as one that was never stopped, and ends with the same bytes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use intern_format::atomic::{self, AtomicFile};
use intern_format::provenance::{self, Provenance};
use intern_lm::{GenerateRequest, LanguageModel, ScoreRequest};
use intern_progress::Progress;
use serde_json::{Map, Value, json};

use crate::config::EvalConfig;
use crate::journal::{Journal, Response};
use crate::metrics::{self, Item};
use crate::results::{Column, Summary, summarize};
use crate::tasks::group::collect;
use crate::tasks::spec::OutputType;
use crate::tasks::{Requests, Target, Task};

const JOURNAL: &str = "journal.jsonl";

/// Scores `model` on `config.tasks`; writes `results.json` and `samples.jsonl` to `out`.
///
/// # Errors
/// If a task cannot be read, the model cannot be asked, or `out` cannot be written.
pub fn run(config: &EvalConfig, model: &dyn LanguageModel, out: &Path) -> Result<Summary> {
    if config.tasks.is_empty() || config.batch == 0 {
        bail!("there are no tasks, or `batch` is 0\nhint: tasks = [\"configs/eval/arc_easy.yaml\"]");
    }
    let collection = collect(&config.tasks)?;
    let tasks: Vec<Task> =
        collection.tasks.iter().map(|file| Task::load(file, config)).collect::<Result<Vec<_>>>()?;
    let inputs = hash_inputs(&tasks)?;
    let id = run_id(config, model, &inputs)?;
    if let Some(done) = provenance::read(out)? {
        if done.counts.get("run") == Some(&json!(id)) {
            let _ = fs::remove_file(out.join(JOURNAL));
            return Ok(Summary(atomic::read_json(&out.join("results.json"))?));
        }
        provenance::clear(out)?;
    }
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut journal = Journal::open(&out.join(JOURNAL), &id)?;
    let progress = Progress::new("eval", tasks.iter().map(|t| t.docs.len() as u64).sum(), "docs");
    let mut samples = AtomicFile::create(&out.join("samples.jsonl"))?;
    let mut scored = Vec::new();
    for task in tasks {
        progress.set_message(task.spec.name.as_str());
        let requests = task.requests()?;
        let responses = ask(config, model, &task, &requests, &mut journal, &progress)?;
        let columns = score(&task, &requests, &responses, &mut samples)?;
        scored.push((task, columns));
    }
    progress.finish();
    samples.commit()?;
    let summary = summarize(config, model.name(), &scored, &collection.groups);
    atomic::write_json(&out.join("results.json"), &summary)?;
    write_provenance(config, out, &id, inputs, &scored)?;
    fs::remove_file(out.join(JOURNAL)).context("removing the journal")?;
    Ok(summary)
}

fn hash_inputs(tasks: &[Task]) -> Result<BTreeMap<String, String>> {
    let mut inputs = BTreeMap::new();
    for path in tasks.iter().flat_map(|t| &t.sources) {
        let name = path.display().to_string();
        if let Entry::Vacant(entry) = inputs.entry(name) {
            entry.insert(provenance::hash_path(path)?);
        }
    }
    Ok(inputs)
}

/// Identifies a run by all that decides its outcome.
fn run_id(
    config: &EvalConfig,
    model: &dyn LanguageModel,
    inputs: &BTreeMap<String, String>,
) -> Result<String> {
    let all = json!([env!("CARGO_PKG_VERSION"), config, model.name(), inputs]);
    Ok(blake3::hash(&serde_json::to_vec(&all)?).to_hex()[..16].to_string())
}

/// Gets every document's response, from the journal or from the model.
fn ask(
    config: &EvalConfig,
    model: &dyn LanguageModel,
    task: &Task,
    requests: &[Requests],
    journal: &mut Journal,
    progress: &Progress,
) -> Result<Vec<Response>> {
    let name = &task.spec.name;
    let mut all = Vec::with_capacity(requests.len());
    for (i, group) in requests.chunks(config.batch).enumerate() {
        let first = i * config.batch;
        match journal.get(name, first) {
            Some(known) if known.len() == group.len() => all.extend_from_slice(known),
            _ => {
                let responses = ask_group(config, model, group).with_context(|| {
                    format!("task {name}, documents {first} to {}", first + group.len() - 1)
                })?;
                journal.add(name, first, &responses)?;
                all.extend(responses);
            }
        }
        progress.inc(group.len() as u64);
    }
    Ok(all)
}

fn ask_group(config: &EvalConfig, model: &dyn LanguageModel, group: &[Requests]) -> Result<Vec<Response>> {
    // All documents of a task ask for the same kind of thing.
    if let Some(Requests::Generate(_)) = group.first() {
        let texts: Vec<GenerateRequest> = group
            .iter()
            .filter_map(|r| match r {
                Requests::Generate(request) => {
                    let mut request = GenerateRequest::clone(request);
                    request.sampling.seed = config.seed;
                    Some(request)
                }
                Requests::Score(_) => None,
            })
            .collect();
        let answers = model.generate(&texts, &mut |_, _| {})?;
        let cut = |(answer, request): (intern_lm::Completion, &GenerateRequest)| {
            let mut text = answer.text;
            // Servers differ in whether the stop string is part of the answer.
            for stop in &request.sampling.stop {
                if let Some(at) = text.find(stop) {
                    text.truncate(at);
                }
            }
            Response::Text(text)
        };
        return Ok(answers.into_iter().zip(&texts).map(cut).collect());
    }
    let scores: Vec<ScoreRequest> = group
        .iter()
        .filter_map(|r| match r {
            Requests::Score(requests) => Some(requests),
            Requests::Generate(_) => None,
        })
        .flatten()
        .cloned()
        .collect();
    let mut answers = model.score(&scores)?.into_iter();
    let counts = group.iter().map(|r| match r {
        Requests::Score(requests) => requests.len(),
        Requests::Generate(_) => 0,
    });
    Ok(counts.map(|n| Response::Scores(answers.by_ref().take(n).collect())).collect())
}

/// Scores every document, and writes it to `samples.jsonl`.
fn score(
    task: &Task,
    requests: &[Requests],
    responses: &[Response],
    out: &mut AtomicFile,
) -> Result<Vec<Column>> {
    let spec = &task.spec;
    let mut columns = Vec::new();
    for filter in &spec.filters {
        let mut rows: Vec<Vec<Item>> = Vec::with_capacity(task.docs.len());
        for (i, doc) in task.docs.iter().enumerate() {
            let place = || format!("{}, document {i}", spec.path.display());
            let target = match spec.output_type {
                OutputType::MultipleChoice | OutputType::GenerateUntil => {
                    task.target(doc).with_context(place)?
                }
                _ => Target::Text(vec![task.target_text(doc).with_context(place)?]),
            };
            let (items, filtered) = match (&responses[i], &target) {
                (Response::Text(text), target) => {
                    let answer = filter.apply(text, doc).with_context(place)?;
                    (metrics::generated(&spec.metrics, &answer, target).with_context(place)?, answer)
                }
                (Response::Scores(scores), Target::Choice(gold)) => {
                    let choices = task.choices(doc).with_context(place)?;
                    (metrics::choose(&spec.metrics, scores, &choices, gold), Value::Null)
                }
                (Response::Scores(scores), Target::Text(texts)) => {
                    let score = *scores.first().with_context(|| format!("{}: no score", place()))?;
                    let items = match spec.output_type {
                        OutputType::LoglikelihoodRolling => metrics::rolling(&spec.metrics, score, &texts[0]),
                        _ => metrics::likelihood(&spec.metrics, score),
                    };
                    (items, Value::Null)
                }
            };
            let sample = Sample {
                task,
                index: i,
                request: &requests[i],
                response: &responses[i],
                filtered,
                items: &items,
            };
            let mut line = serde_json::to_vec(&sample.line(&filter.name)?)?;
            line.push(b'\n');
            out.write_all(&line).context("writing samples.jsonl")?;
            rows.push(items);
        }
        for metric in 0..spec.metrics.len() {
            let items = rows.iter().map(|row| row[metric]).collect();
            columns.push(Column { metric, filter: filter.name.clone(), items });
        }
    }
    Ok(columns)
}

/// One line of `samples.jsonl`.
struct Sample<'a> {
    task: &'a Task,
    index: usize,
    request: &'a Requests,
    response: &'a Response,
    /// What the filters left of a generated answer.
    filtered: Value,
    items: &'a [Item],
}

impl Sample<'_> {
    fn line(&self, filter: &str) -> Result<Value> {
        let doc = &self.task.docs[self.index];
        let (resps, filtered) = match self.response {
            Response::Text(text) => (json!([[text]]), json!([self.filtered])),
            Response::Scores(scores) => {
                let pairs: Vec<Value> = scores.iter().map(|s| json!([s.logprob, s.is_greedy])).collect();
                (pairs.iter().map(|p| json!([p])).collect(), Value::Array(pairs))
            }
        };
        let mut line = json!({
            "task": self.task.spec.name,
            "doc_id": self.index,
            "doc": doc,
            "target": self.task.raw_target(doc)?,
            "arguments": arguments(self.request),
            "resps": resps,
            "filtered_resps": filtered,
            "filter": filter,
            "metrics": self.task.spec.metrics.iter().map(|m| m.name.as_str()).collect::<Vec<_>>(),
        });
        for (metric, item) in self.task.spec.metrics.iter().zip(self.items) {
            line[&metric.name] = item.value();
        }
        Ok(line)
    }
}

/// `gen_args_0: {arg_0: context, arg_1: continuation}`, ….
fn arguments(requests: &Requests) -> Value {
    let mut out = Map::new();
    let mut add = |parts: Vec<Value>| {
        let named = parts.into_iter().enumerate().map(|(i, p)| (format!("arg_{i}"), p)).collect();
        out.insert(format!("gen_args_{}", out.len()), Value::Object(named));
    };
    match requests {
        Requests::Score(requests) => {
            for request in requests {
                add(match request {
                    ScoreRequest::Continuation { context, continuation } => {
                        vec![context.as_str().into(), continuation.as_str().into()]
                    }
                    ScoreRequest::Rolling { text } => vec![text.as_str().into()],
                });
            }
        }
        Requests::Generate(request) => {
            let intern_lm::Prompt::Text(context) = &request.prompt else { return Value::Null };
            let s = &request.sampling;
            add(vec![
                context.as_str().into(),
                json!({"until": s.stop, "max_gen_toks": s.max_tokens, "temperature": s.temperature}),
            ]);
        }
    }
    Value::Object(out)
}

fn write_provenance(
    config: &EvalConfig,
    out: &Path,
    id: &str,
    inputs: BTreeMap<String, String>,
    scored: &[(Task, Vec<Column>)],
) -> Result<()> {
    let docs: usize = scored.iter().map(|(task, _)| task.docs.len()).sum();
    let mut record = Provenance {
        command: "eval run".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        config: serde_json::to_value(config)?,
        inputs,
        counts: BTreeMap::from([
            ("run".into(), json!(id)),
            ("tasks".into(), json!(scored.len())),
            ("documents".into(), json!(docs)),
        ]),
        ..Provenance::default()
    };
    for name in ["results.json", "samples.jsonl"] {
        record.outputs.insert(name.into(), provenance::hash_path(&out.join(name))?);
    }
    Ok(provenance::write(out, &record)?)
}
