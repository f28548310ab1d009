//! Where the time of a training step goes, on random tokens.
//!
//! `cargo run --release -p intern-train --example step_time -- SHAPE [STEPS]`, SHAPE being
//! `quickstart` (1M parameters, 16 x 256 tokens) or `peer` (the 32M model and 4 x 512 tokens of
//! `torch_train_bench.py`). One JSON line per step: seconds by phase, CPU seconds, peak memory.
//! With `PLAIN_MALLOC=1` the allocator is left as it is.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use intern_kernels::rng::Rng;
use intern_model::{Architecture, Batch, ModelConfig, Transformer};
use intern_train::OptimizerConfig;
use intern_train::optimizer::{AdamW, clip};
use intern_train::params::{Gradients, Params};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let shape = args.next().unwrap_or_else(|| "quickstart".into());
    let steps: u64 = args.next().map_or(Ok(6), |s| s.parse()).context("STEPS is a number")?;
    let (config, b, t) = match shape.as_str() {
        "quickstart" => (ModelConfig::small(Architecture::InternLm2, 2048, 128, 4, 4, 2), 16, 256),
        "peer" => (ModelConfig::small(Architecture::Llama, 8192, 512, 8, 8, 4), 4, 512),
        other => bail!("no shape {other}\nhint: quickstart or peer"),
    };
    let config = match shape.as_str() {
        "peer" => ModelConfig { intermediate_size: 1408, ..config },
        _ => config,
    };
    if std::env::var_os("PLAIN_MALLOC").is_none() {
        intern_train::memory::keep_freed_blocks();
    }
    let model = Transformer::init(&config, 0, &Device::Cpu)?;
    let params = Params::new(model.trainable_vars())?;
    let settings = OptimizerConfig { lr: 1e-4, ..OptimizerConfig::default() };
    let mut optimizer = AdamW::new(&settings, &params);
    let mut gradients = Gradients::new(&params);
    let mut rng = Rng::new(0, 0);
    for step in 1..=steps {
        let rows: Vec<Vec<u32>> =
            (0..b).map(|_| (0..=t).map(|_| rng.below(config.vocab_size as u64) as u32).collect()).collect();
        let batch = Batch::next_token(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let mut last = start;
        let mut lap = || {
            let now = Instant::now();
            let seconds = (now - std::mem::replace(&mut last, now)).as_secs_f64();
            (seconds * 1e4).round() / 1e4
        };
        let loss = model.loss(&batch)?;
        let mean = f64::from(loss.sum.to_scalar::<f32>()?) / loss.count as f64;
        let forward = lap();
        let mut store = loss.sum.backward()?;
        let backward = lap();
        drop(loss);
        gradients.clear();
        gradients.add(&params, &mut store)?;
        let collect = lap();
        let norm = gradients.norm() / batch.num_targets() as f64;
        let scale = clip(norm, 1.0) / batch.num_targets() as f64;
        optimizer.step(&params, &gradients, step, settings.lr, scale)?;
        let update = lap();
        let line = serde_json::json!({
            "step": step, "loss": mean, "forward_s": forward, "backward_s": backward, "collect_s": collect,
            "update_s": update, "wall_s": start.elapsed().as_secs_f64(), "cpu_s": cpu_seconds() - cpu,
            "peak_mb": peak_mb(), "tokens_per_second": (b * t) as f64 / start.elapsed().as_secs_f64(),
        });
        println!("{line}");
    }
    Ok(())
}

/// User and system time of this process, from Linux's `/proc`; 0 elsewhere.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 =
        after_name.split_whitespace().skip(11).take(2).filter_map(|x| x.parse::<f64>().ok()).sum();
    ticks / 100.0
}

/// Largest resident size in MB, from Linux's `/proc`; 0 elsewhere.
fn peak_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
