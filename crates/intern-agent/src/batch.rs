//! Runs episodes to their end, many at once, and continues after a kill.
//!
//! Problems are taken in fixed groups of `batch`. A group goes round by round, each
//! round one turn of every open episode in one call to the model, and is written to
//! the log when all of it is done. A run that was killed repeats its last group from
//! the start, in the same rounds, so it ends with the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use intern_format::atomic;
use intern_format::provenance::{self, Provenance};
use intern_lm::{ChatRequest, ChatResponse, LanguageModel};
use intern_progress::Progress;
use serde_json::json;

use crate::config::AgentConfig;
use crate::episode::{Episode, Outcome};
use crate::events::{Event, EventLog};
use crate::problems::{self, Problem};
use crate::results::Summary;
use crate::tools::Toolbox;

/// Answers `config.problems` and writes `events.jsonl` and `results.json` to `out`.
///
/// # Errors
/// If the config names no problems, they cannot be read, or the model cannot be asked.
pub fn run(config: &AgentConfig, model: &dyn LanguageModel, out: &Path) -> Result<Summary> {
    validate(config)?;
    let Some(path) = &config.problems else {
        bail!(
            "the agent has nothing to do\nhint: set `problems` to a JSONL file, or ask one thing with --question"
        );
    };
    let tools = Toolbox::new(config)?;
    let input = provenance::hash_path(path)?;
    let id = run_id(config, model, &input)?;
    if let Some(done) = provenance::read(out)? {
        if done.counts.get("run") == Some(&json!(id)) {
            return Ok(atomic::read_json(&out.join("results.json"))?);
        }
        provenance::clear(out)?;
    }
    let problems = problems::read(path, config.limit)?;
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut log = EventLog::open(&out.join("events.jsonl"), &id, config.batch, problems.len())?;
    let progress = Progress::new("agent", problems.len() as u64, "problems");
    progress.inc(log.answers().len() as u64);
    let done = log.answers().len();
    for group in problems[done..].chunks(config.batch) {
        log.append(solve(config, &tools, model, group, &progress)?)?;
        let score = Summary::count("", "", log.answers()).score;
        if score.total > 0 {
            progress.set_message(format!("{:.1} % right", 100.0 * score.accuracy));
        }
    }
    progress.finish();
    let summary = Summary::count(model.name(), config.protocol.name(), log.answers());
    atomic::write_json(&out.join("results.json"), &summary)?;
    let mut record = Provenance {
        command: "agent run".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        config: serde_json::to_value(config)?,
        inputs: BTreeMap::from([(path.display().to_string(), input)]),
        counts: BTreeMap::from([("run".into(), json!(id)), ("problems".into(), json!(problems.len()))]),
        ..Provenance::default()
    };
    for name in ["events.jsonl", "results.json"] {
        record.outputs.insert(name.into(), provenance::hash_path(&out.join(name))?);
    }
    provenance::write(out, &record)?;
    Ok(summary)
}

/// Answers one question, showing each event as it happens; returns the final text.
///
/// # Errors
/// If the tools cannot be set up or the model cannot be asked.
pub fn ask(
    config: &AgentConfig,
    model: &dyn LanguageModel,
    question: &str,
    show: &mut dyn FnMut(&Event),
) -> Result<String> {
    validate(config)?;
    let tools = Toolbox::new(config)?;
    let problem = Problem { id: "0".into(), question: question.to_string(), answer: None, lang: None };
    let mut episode = Episode::new(config, &tools, model.name(), problem);
    let mut shown = 0;
    while episode.outcome.is_none() {
        let mut responses = round(model, std::slice::from_ref(&episode))?;
        match responses.pop().flatten() {
            Some(response) => episode.take(&response),
            None => episode.finish(Outcome::ContextFull),
        }
        for event in &episode.events[shown..] {
            show(event);
        }
        shown = episode.events.len();
    }
    Ok(episode.answer().to_string())
}

fn validate(config: &AgentConfig) -> Result<()> {
    if config.max_turns == 0 || config.batch == 0 {
        bail!("`max_turns` and `batch` must be at least 1");
    }
    Ok(())
}

/// Identifies a run by all that decides its outcome.
fn run_id(config: &AgentConfig, model: &dyn LanguageModel, problems: &str) -> Result<String> {
    let all = json!([env!("CARGO_PKG_VERSION"), config, model.name(), problems]);
    Ok(blake3::hash(&serde_json::to_vec(&all)?).to_hex()[..16].to_string())
}

/// Plays every episode of a group to its end.
fn solve(
    config: &AgentConfig,
    tools: &Toolbox,
    model: &dyn LanguageModel,
    group: &[Problem],
    progress: &Progress,
) -> Result<Vec<(String, Vec<Event>)>> {
    let mut open: Vec<(usize, Episode)> =
        group.iter().map(|p| Episode::new(config, tools, model.name(), p.clone())).enumerate().collect();
    let mut done: BTreeMap<usize, Episode> = BTreeMap::new();
    while !open.is_empty() {
        let (places, mut episodes): (Vec<usize>, Vec<Episode>) = open.into_iter().unzip();
        let responses = round(model, &episodes)?;
        for (episode, response) in episodes.iter_mut().zip(&responses) {
            match response {
                Some(response) => episode.take(response),
                None => episode.finish(Outcome::ContextFull),
            }
        }
        open = Vec::new();
        for (place, episode) in places.into_iter().zip(episodes) {
            if episode.outcome.is_some() {
                progress.inc(1);
                done.insert(place, episode);
            } else {
                open.push((place, episode));
            }
        }
    }
    Ok(done.into_values().map(Episode::into_record).collect())
}

/// Asks the model for one turn of every episode; `None` where the conversation has outgrown it.
fn round(model: &dyn LanguageModel, episodes: &[Episode]) -> Result<Vec<Option<ChatResponse>>> {
    let requests: Vec<ChatRequest> = episodes.iter().map(Episode::request).collect();
    let error = match model.chat_batch(&requests) {
        Ok(responses) => return Ok(responses.into_iter().map(Some).collect()),
        Err(error) => error,
    };
    // One conversation that is too long fails the whole batch: find it. Any other fault is the run's.
    let limit = model.max_context();
    if !episodes.iter().any(|e| e.may_overflow(limit)) {
        return Err(error);
    }
    let mut responses = Vec::with_capacity(requests.len());
    for (request, episode) in requests.iter().zip(episodes) {
        match model.chat(request, &mut |_, _| {}) {
            Ok(response) => responses.push(Some(response)),
            Err(_) if episode.may_overflow(limit) => responses.push(None),
            Err(error) => return Err(error),
        }
    }
    Ok(responses)
}
