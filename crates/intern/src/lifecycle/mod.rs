//! Runs a recipe's steps in order and skips those already up to date.
//!
//! A step's *key* hashes its command, its resolved settings, the program's version
//! and the content of everything it reads. `run.json` in the output directory holds
//! the key of each finished step; a step killed half-way is continued by its own
//! command, and one whose key changed starts over.

mod recipe;
mod state;
mod steps;

use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;

pub use recipe::Recipe;
pub use recipe::RecipeFile;
pub use recipe::Step;
pub use state::State;

/// What happened, for `--json`.
#[derive(Serialize)]
pub struct Outcome {
    /// The output directory.
    out: std::path::PathBuf,
    /// One entry per step, in order.
    steps: Vec<StepOutcome>,
    /// The page that shows it all.
    report: std::path::PathBuf,
}

#[derive(Serialize)]
struct StepOutcome {
    name: String,
    command: String,
    skipped: bool,
    seconds: f64,
    summary: Value,
}

/// Runs `recipe`, or only the steps named in `only`.
pub fn run(recipe: &Recipe, only: &[String], quiet: bool) -> Result<Outcome> {
    if let Some(unknown) = only.iter().find(|name| recipe.step(name).is_none()) {
        let names: Vec<&str> = recipe.steps.iter().map(|s| s.name.as_str()).collect();
        bail!(
            "{}: there is no step `{unknown}`\nhint: its steps are {}",
            recipe.path.display(),
            names.join(", ")
        );
    }
    std::fs::create_dir_all(&recipe.out)
        .with_context(|| format!("cannot create the output directory {}", recipe.out.display()))?;
    let _lock = state::Lock::take(&recipe.out)?;
    let mut state = State::load(&recipe.out)?;
    let mut outcomes = Vec::new();
    let chosen: Vec<&Step> =
        recipe.steps.iter().filter(|s| only.is_empty() || only.contains(&s.name)).collect();
    for (i, step) in chosen.iter().enumerate() {
        let started = Instant::now();
        let key = step.key(recipe, &mut state)?;
        let skipped = state.is_fresh(&step.name, &key, &recipe.dir(step))?;
        if !skipped {
            if !quiet {
                eprintln!("[{}/{}] {}: intern {}", i + 1, chosen.len(), step.name, step.command);
            }
            run_step(recipe, step, &key, &mut state)?;
        }
        let summary = state.summary(&step.name);
        let seconds = started.elapsed().as_secs_f64();
        if !quiet {
            let note = if skipped { "up to date".to_string() } else { format!("done in {seconds:.1} s") };
            eprintln!("[{}/{}] {}: {note}", i + 1, chosen.len(), step.name);
        }
        outcomes.push(StepOutcome {
            name: step.name.clone(),
            command: step.command.clone(),
            skipped,
            seconds,
            summary,
        });
    }
    let report = recipe.out.join("report.html");
    if outcomes.iter().any(|o| !o.skipped) || !report.exists() {
        crate::report::write(recipe, &report).context("writing the report")?;
    }
    if !quiet {
        eprintln!("report: {}", report.display());
    }
    Ok(Outcome { out: recipe.out.clone(), steps: outcomes, report })
}

fn run_step(recipe: &Recipe, step: &Step, key: &str, state: &mut State) -> Result<()> {
    let dir = recipe.dir(step);
    // A directory begun under another key holds nothing this step may use.
    if !state.was_started(&step.name, key) && dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot clear {}", dir.display()))?;
    }
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    state.start(&step.name, key)?;
    let started = Instant::now();
    let origin = format!("{} (step {})", recipe.path.display(), step.name);
    let summary = steps::run(&step.command, step.config.clone(), &dir, &origin)
        .with_context(|| format!("step {} (intern {})", step.name, step.command))?;
    state.finish(&step.name, key, &dir, summary, started.elapsed().as_secs_f64())
}

/// Prints what would run.
pub fn plan(recipe: &Recipe) -> Result<()> {
    let mut state = State::load(&recipe.out)?;
    let mut stale: Vec<&str> = Vec::new();
    for step in &recipe.steps {
        let waits = step.dependencies(recipe).into_iter().find(|d| stale.contains(&d.name.as_str()));
        let why = if let Some(dependency) = waits {
            format!("run, after {}", dependency.name)
        } else {
            let key = step.key(recipe, &mut state)?;
            if state.is_fresh(&step.name, &key, &recipe.dir(step))? {
                "up to date".to_string()
            } else if state.was_started(&step.name, &key) {
                "continue".to_string()
            } else {
                "run".to_string()
            }
        };
        if why != "up to date" {
            stale.push(&step.name);
        }
        println!("{:<20} {:<16} {why}", step.name, step.command);
    }
    Ok(())
}
