//! The commands a recipe may run, each a call into its crate.

use std::path::Path;

use anyhow::{Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use toml::Table;

use crate::model;

/// Every value of a step's `run`.
pub const COMMANDS: &[&str] = &[
    "data synth",
    "data run",
    "data tokenizer",
    "data tokenize",
    "train run",
    "tune run",
    "serve quantize",
    "eval run",
    "agent run",
];

/// Runs `command` with `config`, writing to `dir`; returns the command's summary.
pub fn run(command: &str, mut config: Table, dir: &Path, origin: &str) -> Result<Value> {
    match command {
        "data synth" => job(config, dir, origin, intern_data::synth::run),
        "data run" => job(config, dir, origin, intern_data::pipeline::run),
        "data tokenizer" => job(config, dir, origin, intern_data::tokenizer::run),
        "data tokenize" => job(config, dir, origin, intern_data::tokenize::run),
        "train run" => job(config, dir, origin, intern_train::run),
        "tune run" => job(config, dir, origin, intern_tune::run),
        "serve quantize" => job(config, &dir.join("model.gguf"), origin, intern_engine::quantize::run),
        "eval run" => {
            let model = model::from_config(&mut config, origin)?;
            job(config, dir, origin, |c, d| intern_eval::run(c, model.as_ref(), d))
        }
        "agent run" => {
            let model = model::from_config(&mut config, origin)?;
            job(config, dir, origin, |c, d| intern_agent::run(c, model.as_ref(), d))
        }
        other => bail!("{origin}: no command {other}"),
    }
}

fn job<C: DeserializeOwned, S: Serialize>(
    config: Table,
    out: &Path,
    origin: &str,
    run: impl FnOnce(&C, &Path) -> Result<S>,
) -> Result<Value> {
    let config: C = crate::config::resolve(config, &[], origin)?;
    Ok(serde_json::to_value(run(&config, out)?)?)
}
