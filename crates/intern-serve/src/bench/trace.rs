//! When requests arrive, and how long they are: recorded traces, or a fixed shape.
//!
//! Azure's LLM inference traces are CSV (`TIMESTAMP,ContextTokens,GeneratedTokens`), Mooncake's
//! are JSONL whose `hash_ids` say which requests begin with the same 512-token blocks.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use intern_kernels::rng::Rng;
use serde::Deserialize;

/// Tokens that one of Mooncake's hashes stands for.
const HASHED: usize = 512;

/// One request of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Since the first one.
    pub at: Duration,
    /// Tokens of the prompt, at least 1.
    pub input: usize,
    /// Tokens to generate, at least 1.
    pub output: usize,
    /// Equal numbers stand for equal pieces of prompts, from the beginning on; may be empty.
    pub pieces: Vec<u64>,
}

/// The first `limit` requests of a trace, sped up `speed` times, all lengths multiplied by `scale`.
///
/// # Errors
/// If the file is neither of the two kinds; names the line.
pub fn read(path: &Path, limit: usize, speed: f64, scale: f64) -> Result<Vec<Arrival>> {
    ensure!(speed > 0.0 && scale > 0.0, "--speed and --scale must be above 0");
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("cannot read the trace {}\nhint: a CSV of Azure's or a JSONL of Mooncake's", path.display())
    })?;
    let is_json = text.trim_start().starts_with('{');
    let lines = text.lines().enumerate().skip(usize::from(!is_json)).filter(|(_, l)| !l.trim().is_empty());
    let mut arrivals = Vec::new();
    let mut begin = None;
    for (i, line) in lines.take(limit) {
        let parsed = if is_json { mooncake(line) } else { azure(line) };
        let (seconds, input, output, pieces) = parsed
            .with_context(|| format!("{}, line {}: not a request of a trace", path.display(), i + 1))?;
        let begin = *begin.get_or_insert(seconds);
        let scaled = |n: usize| ((n as f64 * scale).round() as usize).max(1);
        let at = Duration::from_secs_f64(((seconds - begin) / speed).max(0.0));
        arrivals.push(Arrival { at, input: scaled(input), output: scaled(output), pieces });
    }
    if arrivals.is_empty() {
        bail!("{} holds no requests", path.display());
    }
    Ok(arrivals)
}

type Line = (f64, usize, usize, Vec<u64>);

fn mooncake(line: &str) -> Result<Line> {
    #[derive(Deserialize)]
    struct Request {
        timestamp: f64,
        input_length: usize,
        output_length: usize,
        #[serde(default)]
        hash_ids: Vec<u64>,
    }
    let r: Request = serde_json::from_str(line)?;
    Ok((r.timestamp / 1000.0, r.input_length, r.output_length, r.hash_ids))
}

fn azure(line: &str) -> Result<Line> {
    let mut fields = line.split(',').map(str::trim);
    let (Some(time), Some(input), Some(output)) = (fields.next(), fields.next(), fields.next()) else {
        bail!("expected TIMESTAMP,ContextTokens,GeneratedTokens");
    };
    Ok((seconds(time)?, input.parse()?, output.parse()?, Vec::new()))
}

/// `2023-11-16 18:17:03.97` as seconds; only differences within a month mean something.
fn seconds(time: &str) -> Result<f64> {
    let (date, clock) = time.split_once([' ', 'T']).context("expected a date and a time")?;
    let day: f64 = date.rsplit('-').next().unwrap_or_default().parse()?;
    let mut total = day * 86_400.0;
    for (part, unit) in clock.trim_end_matches('Z').split(':').zip([3600.0, 60.0, 1.0]) {
        total += part.parse::<f64>()? * unit;
    }
    Ok(total)
}

/// `n` requests of the same shape; `rate` per second at random (Poisson), or all at once.
#[must_use]
pub fn uniform(n: usize, input: usize, output: usize, rate: Option<f64>, seed: u64) -> Vec<Arrival> {
    let mut rng = Rng::new(seed, 1);
    let mut at = 0.0;
    (0..n)
        .map(|_| {
            let arrival = Arrival { at: Duration::from_secs_f64(at), input, output, pieces: Vec::new() };
            at += rate.map_or(0.0, |rate| -(1.0 - rng.unit()).ln() / rate);
            arrival
        })
        .collect()
}

/// The prompt of one arrival: random ids, equal where the trace says so.
pub(super) fn prompt(
    arrival: &Arrival,
    scale: f64,
    seed: u64,
    index: usize,
    low: u64,
    high: u64,
) -> Vec<u32> {
    let mut tokens = Vec::with_capacity(arrival.input);
    let piece = ((HASHED as f64 * scale).round() as usize).max(1);
    let mut fill = |rng: &mut Rng, n: usize| {
        for _ in 0..n.min(arrival.input - tokens.len()) {
            tokens.push((low + rng.below(high - low)) as u32);
        }
    };
    for &hash in &arrival.pieces {
        fill(&mut Rng::new(seed, (1 << 40) + hash), piece);
    }
    fill(&mut Rng::new(seed, (1 << 50) + index as u64), usize::MAX);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_traces_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t");
        std::fs::write(
            &file,
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 23:59:59.5,374,44\n2023-11-17 00:00:01.0,10,1\n",
        )
        .unwrap();
        let azure = read(&file, 10, 3.0, 0.5).unwrap();
        assert_eq!((azure[0].input, azure[0].output, azure[1].output), (187, 22, 1));
        assert_eq!(azure[1].at, Duration::from_millis(500));
        std::fs::write(&file, "{\"timestamp\": 5, \"input_length\": 700, \"output_length\": 3, \"hash_ids\": [0, 7]}\n{\"timestamp\": 1005, \"input_length\": 600, \"output_length\": 3, \"hash_ids\": [0, 8]}").unwrap();
        let mooncake = read(&file, 10, 1.0, 1.0).unwrap();
        assert_eq!(mooncake[1].at, Duration::from_secs(1));
        let (a, b) = (prompt(&mooncake[0], 1.0, 0, 0, 5, 99), prompt(&mooncake[1], 1.0, 0, 1, 5, 99));
        assert_eq!((a.len(), b.len()), (700, 600));
        assert_eq!(a[..512], b[..512]);
        assert_ne!(a[512..600], b[512..]);
        std::fs::write(&file, "TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,2\n").unwrap();
        assert!(format!("{:#}", read(&file, 10, 1.0, 1.0).unwrap_err()).contains("line 2"));
    }

    #[test]
    fn arrivals_keep_their_rate() {
        let all = uniform(2000, 8, 8, Some(50.0), 3);
        let span = all.last().unwrap().at.as_secs_f64();
        assert!((30.0..50.0).contains(&span), "{span}");
        assert!(uniform(3, 8, 8, None, 3).iter().all(|a| a.at.is_zero()));
    }
}
