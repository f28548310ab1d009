//! Measures how fast a model is served: by the engine in this process, or by a server at a URL.
//!
//! [`steps`] takes the two ends apart (reading one prompt, decoding 1, 4, 8 streams), in the
//! request pattern that the same figures of llama.cpp are taken with. [`load`] sends many
//! requests as users would, of a fixed shape or replayed from a [`trace`], and [`report`]s what
//! they wait for. Prompts are random token ids, another set each time, so that no cached prefix
//! flatters the result, except where a trace says that prompts begin alike.

pub mod load;
pub mod report;
pub mod steps;
pub mod trace;

use std::time::Instant;

use anyhow::{Context, Result, bail};
use cpu_time::ProcessTime;
use intern_engine::{Engine, EngineConfig, EngineRequest, Event};
use intern_kernels::rng::Rng;
use intern_lm::Sampling;

/// Random prompts of a vocabulary's ordinary tokens.
pub(crate) struct Prompts {
    rng: Rng,
    /// Ids are drawn from here up to `high`, exclusive.
    low: u64,
    high: u64,
}

impl Prompts {
    /// Draws from a vocabulary of `vocab` tokens; small ones are used whole but for the first ids.
    pub(crate) fn new(seed: u64, vocab: usize) -> Self {
        let (low, high) = ordinary(vocab);
        Self { rng: Rng::new(seed, 0), low, high }
    }

    /// `n` random ids.
    pub(crate) fn draw(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| (self.low + self.rng.below(self.high - self.low)) as u32).collect()
    }
}

/// The range of token ids that prompts are drawn from: below lie special and byte tokens.
pub(crate) fn ordinary(vocab: usize) -> (u64, u64) {
    let high = vocab.min(30_000) as u64;
    (if high > 600 { 300 } else { high / 4 }, high)
}

/// Loads `model` with room for `streams` sequences of `positions` tokens each.
pub(crate) fn load_engine(
    model: &std::path::Path,
    engine: &EngineConfig,
    streams: usize,
    positions: usize,
) -> Result<Engine> {
    let config = EngineConfig { max_num_seqs: engine.max_num_seqs.max(streams), ..engine.clone() };
    let engine =
        Engine::load(model, None, &config).with_context(|| format!("loading {}", model.display()))?;
    if engine.context_length() < positions {
        bail!(
            "{} holds {} positions, the measurement needs {positions}\nhint: lower --prefill, or raise --set kv_memory_mb",
            model.display(),
            engine.context_length()
        );
    }
    Ok(engine)
}

/// Greedy, exactly `n` tokens.
pub(crate) fn exactly(n: usize) -> Sampling {
    Sampling { max_tokens: n, ignore_eos: true, ..Sampling::default() }
}

/// Runs the prompts side by side in this process until all are done.
pub(crate) fn run_local(engine: &Engine, prompts: Vec<Vec<u32>>, n: usize) -> Result<()> {
    let receivers: Vec<_> =
        prompts.into_iter().map(|p| engine.submit(EngineRequest::new(p, exactly(n)))).collect();
    for receiver in receivers {
        let mut is_done = false;
        for event in receiver {
            match event {
                Event::Done { .. } => is_done = true,
                Event::Error(message) => bail!(message),
                Event::Expired => anyhow::bail!("the deadline has passed"),
                Event::Ping | Event::Prefill { .. } | Event::Token { .. } => {}
            }
        }
        anyhow::ensure!(is_done, "the engine stopped in the middle of a request");
    }
    Ok(())
}

/// Wall and processor seconds that `work` took, all threads of this process together.
pub(crate) fn timed(work: impl FnOnce() -> Result<()>) -> Result<(f64, f64)> {
    let (wall, cpu) = (Instant::now(), ProcessTime::now());
    work()?;
    Ok((wall.elapsed().as_secs_f64(), cpu.elapsed().as_secs_f64()))
}
