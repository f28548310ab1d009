//! Prefill of one prompt and decoding of several streams, each timed by itself.
//!
//! The request pattern is that of the llama.cpp measurement it is paired with: one short
//! request to warm up; then, `repeat` times, one prompt of `prefill` tokens that gets one
//! token, and for each number of streams so many prompts of four tokens that get `decode`
//! tokens each, sent at once.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use intern_engine::{Engine, EngineConfig};
use serde::{Deserialize, Serialize};

use super::{Prompts, load_engine, run_local, timed};

/// Tokens of a prompt whose decoding is timed.
const SHORT: usize = 4;

/// What to measure.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepsConfig {
    /// Checkpoint directory or GGUF file.
    pub model: PathBuf,
    /// Tokens of the long prompt.
    pub prefill: usize,
    /// Tokens generated per stream.
    pub decode: usize,
    /// Numbers of streams decoded together.
    pub streams: Vec<usize>,
    /// Times everything is measured.
    pub repeat: usize,
    /// Seeds the prompts.
    pub seed: u64,
    /// Threads, cache and batch sizes.
    pub engine: EngineConfig,
}

/// One timing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measurement {
    /// `prefill` or `decode`.
    pub what: &'static str,
    /// Requests side by side.
    pub streams: usize,
    /// Tokens per second of all streams together: read ones of a prefill, else generated ones.
    pub tok_s: f64,
    /// The same per second of processor time.
    pub tok_cpu_s: f64,
}

/// Measures; `each` sees every timing as it is taken.
///
/// # Errors
/// If the model cannot be loaded, or its context is too short.
pub fn run(config: &StepsConfig, each: &mut dyn FnMut(&Measurement)) -> Result<Vec<Measurement>> {
    ensure!(config.prefill > 0 && config.decode > 0, "--prefill and --decode must be at least 1");
    ensure!(!config.streams.contains(&0), "--streams must be at least 1 each");
    let most = config.streams.iter().copied().max().unwrap_or(1);
    let positions = (config.prefill + 1).max(SHORT + config.decode);
    let engine = load_engine(&config.model, &config.engine, most, positions)?;
    let mut prompts = Prompts::new(config.seed, engine.config().vocab_size);
    run_local(&engine, vec![prompts.draw(8)], 2)?;
    let mut all = Vec::new();
    for _ in 0..config.repeat {
        let mut take = |what, streams, tokens, prompts, n| -> Result<()> {
            let measured = measure(&engine, what, streams, tokens, prompts, n)?;
            each(&measured);
            all.push(measured);
            Ok(())
        };
        take("prefill", 1, config.prefill, vec![prompts.draw(config.prefill)], 1)?;
        for &n in &config.streams {
            let short = (0..n).map(|_| prompts.draw(SHORT)).collect();
            take("decode", n, n * config.decode, short, config.decode)?;
        }
    }
    Ok(all)
}

fn measure(
    engine: &Engine,
    what: &'static str,
    streams: usize,
    tokens: usize,
    prompts: Vec<Vec<u32>>,
    n: usize,
) -> Result<Measurement> {
    let (wall, cpu) = timed(|| run_local(engine, prompts, n))?;
    let rate = |seconds: f64| (100.0 * tokens as f64 / seconds.max(1e-9)).round() / 100.0;
    Ok(Measurement { what, streams, tok_s: rate(wall), tok_cpu_s: rate(cpu) })
}

/// The medians as a table for people.
#[must_use]
pub fn table(all: &[Measurement]) -> String {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for m in all {
        if !kinds.contains(&(m.what, m.streams)) {
            kinds.push((m.what, m.streams));
        }
    }
    let mut out = format!("{:<10}{:>8}{:>12}{:>16}", "what", "streams", "tok/s", "tok/CPU-s");
    for (what, streams) in kinds {
        let median = |value: fn(&Measurement) -> f64| {
            let mut values: Vec<f64> =
                all.iter().filter(|m| (m.what, m.streams) == (what, streams)).map(value).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let (wall, cpu) = (median(|m| m.tok_s), median(|m| m.tok_cpu_s));
        out.push_str(&format!("\n{what:<10}{streams:>8}{wall:>12.2}{cpu:>16.2}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_medians() {
        let m = |what, streams, tok_s| Measurement { what, streams, tok_s, tok_cpu_s: 2.0 * tok_s };
        let all = [m("prefill", 1, 3.0), m("decode", 4, 7.0), m("prefill", 1, 1.0), m("prefill", 1, 2.0)];
        let text = table(&all);
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["prefill", "1", "2.00", "4.00"]);
        assert_eq!(lines[2], ["decode", "4", "7.00", "14.00"]);
        assert_eq!(lines.len(), 3);
    }
}
