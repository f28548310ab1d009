//! How long a training step takes, on random tokens: `intern train bench`.
//!
//! The shape [`Bench::peer`] is that of `torch_train_bench.py`, whose JSON lines these are: the same
//! model, batch and optimizer.

use std::time::Instant;

use anyhow::Result;
use candle_core::Device;
use intern_kernels::rng::Rng;
use intern_kernels::train::fixed;
use intern_model::backprop::{Backprop, Precision, Settings};
use intern_model::{Architecture, Batch, ModelConfig, Transformer};
use rayon::prelude::*;
use serde::Serialize;

use crate::OptimizerConfig;
use crate::lanes::Lanes;
use crate::optimizer::{Optimizer, clip};
use crate::params::{Gradients, Params};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The model.
    pub model: ModelConfig,
    /// Sequences per step.
    pub batch_size: usize,
    /// Tokens per sequence.
    pub seq_len: usize,
    /// Steps.
    pub steps: u64,
    /// Share of the layers whose activations are computed twice.
    pub recompute: f64,
    /// Type of operands and kept activations.
    pub precision: Precision,
    /// What makes the updates.
    pub optimizer: OptimizerConfig,
}

/// The figures of one step.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// From 0.
    pub step: u64,
    /// Mean cross-entropy in nats.
    pub loss: f64,
    /// Seconds.
    pub wall_s: f64,
    /// Seconds of all threads together.
    pub cpu_s: f64,
    /// Largest resident size so far in MB; 0 where the system does not tell.
    pub peak_mb: u64,
    /// Seconds of forward and backward passes.
    pub passes_s: f64,
    /// Seconds of norm and update.
    pub update_s: f64,
    /// Tokens per second.
    pub tokens_per_second: f64,
}

impl Bench {
    /// The peer script's: 32 million parameters, 4 x 512 tokens.
    #[must_use]
    pub fn peer() -> Self {
        let model = ModelConfig::small(Architecture::Llama, 8192, 512, 8, 8, 4);
        Self::of(ModelConfig { intermediate_size: 1408, ..model }, 4, 512)
    }

    /// The quickstart's: 1 million parameters, 16 x 256 tokens.
    #[must_use]
    pub fn quickstart() -> Self {
        Self::of(ModelConfig::small(Architecture::InternLm2, 2048, 128, 4, 4, 2), 16, 256)
    }

    fn of(model: ModelConfig, batch_size: usize, seq_len: usize) -> Self {
        let optimizer = OptimizerConfig { lr: 1e-4, ..OptimizerConfig::default() };
        Self { model, batch_size, seq_len, steps: 6, recompute: 0.0, precision: Precision::F32, optimizer }
    }

    /// Makes the steps, giving the figures of each to `each`.
    pub fn run(&self, mut each: impl FnMut(&Line)) -> Result<()> {
        crate::memory::keep_freed_blocks();
        let model = Transformer::init(&self.model, 0, &Device::Cpu)?;
        let settings = &self.optimizer;
        let params = Params::new(model.trainable_vars(), settings)?;
        let mut optimizer = Optimizer::new(settings, 1.0, &params, 0..params.num_elements())?;
        let mut gradients = Gradients::new(&params);
        let mut lanes = Lanes::new(self.batch_size)?;
        let recompute = (self.recompute * self.model.num_layers as f64).ceil() as usize;
        let backprop = Backprop::new(&model, Settings { precision: self.precision, recompute, z_loss: 0.0 });
        let mut rng = Rng::new(0, 0);
        for step in 0..self.steps {
            let mut row = || -> Vec<u32> {
                (0..=self.seq_len).map(|_| rng.below(self.model.vocab_size as u64) as u32).collect()
            };
            let rows: Vec<Vec<u32>> = (0..self.batch_size).map(|_| row()).collect();
            let batch = Batch::next_token(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let tokens = (self.batch_size * self.seq_len) as f64;
            let (start, cpu) = (Instant::now(), cpu_time::ProcessTime::now());

            gradients.sums.begin(self.batch_size * self.seq_len);
            let sink = &gradients;
            let losses =
                lanes.run(self.batch_size, |i, work| Ok(backprop.gradients(&batch, i, work, sink)?))?;
            let passes_s = start.elapsed().as_secs_f64();
            let unit = gradients.sums.unit();
            let sums: &[i64] = gradients.sums.sums();
            let squares: Vec<f64> = sums.par_chunks(fixed::CHUNK).map(fixed::squares).collect();
            let norm = squares.iter().sum::<f64>().sqrt() * f64::from(unit) / tokens;
            optimizer.step(&params, (|r| &sums[r], unit), step + 1, settings.lr, clip(norm, 1.0) / tokens)?;

            let wall_s = start.elapsed().as_secs_f64();
            each(&Line {
                step,
                loss: losses.iter().sum::<f64>() / tokens,
                wall_s,
                cpu_s: cpu.elapsed().as_secs_f64(),
                peak_mb: crate::memory::peak_mb(),
                passes_s,
                update_s: wall_s - passes_s,
                tokens_per_second: tokens / wall_s,
            });
        }
        Ok(())
    }
}
