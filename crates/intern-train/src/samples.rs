//! What the model writes while it is trained: a few continuations, for the eye.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{D, DType};
use intern_format::atomic;
use intern_kernels::rng::Rng;
use intern_model::{Batch, Transformer};
use intern_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// `[samples]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SamplesConfig {
    /// Texts that the model goes on with, written to `samples.jsonl` (default: none).
    pub prompts: Vec<String>,
    /// Updates between samples; 0 for only at the end (default 0).
    pub every: u64,
    /// Tokens of each (default 48).
    pub tokens: usize,
    /// 0 takes the likeliest token, more spreads the choice (default 0.8).
    pub temperature: f64,
}

impl Default for SamplesConfig {
    fn default() -> Self {
        Self { prompts: Vec::new(), every: 0, tokens: 48, temperature: 0.8 }
    }
}

impl SamplesConfig {
    /// Errors name the key.
    pub(crate) fn check(&self, whole_model: bool) -> Result<()> {
        let t = self.temperature;
        ensure!(t >= 0.0 && t.is_finite(), "samples.temperature is {t}, expected at least 0");
        ensure!(
            self.prompts.is_empty() || whole_model,
            "samples.prompts needs the whole model on a rank\n\
             hint: remove it, or parallel.pipeline and parallel.tensor"
        );
        Ok(())
    }
}

/// Writes continuations of a model in training.
pub struct Sampler {
    config: SamplesConfig,
    tokenizer: Tokenizer,
    seed: u64,
}

impl Sampler {
    /// As `config` says; the same `seed` gives the same samples.
    #[must_use]
    pub fn new(config: &SamplesConfig, tokenizer: Tokenizer, seed: u64) -> Self {
        Self { config: config.clone(), tokenizer, seed }
    }

    /// Whether samples are due after update `step` of `steps`.
    #[must_use]
    pub fn is_due(&self, step: u64, steps: u64) -> bool {
        let every = self.config.every;
        !self.config.prompts.is_empty() && (step == steps || (every > 0 && step.is_multiple_of(every)))
    }

    /// Adds the continuations of update `step` to `samples.jsonl` in `out`, without those that an
    /// earlier process left of this step and later ones.
    ///
    /// # Errors
    /// If the model or the disk refuses.
    pub fn write(&self, model: &Transformer, step: u64, out: &Path) -> Result<Vec<String>> {
        let path = out.join("samples.jsonl");
        let before = fs::read_to_string(&path).unwrap_or_default();
        let is_earlier = |line: &&str| {
            serde_json::from_str::<Value>(line).is_ok_and(|v| v["step"].as_u64().is_some_and(|s| s < step))
        };
        let mut lines: String = before.lines().filter(is_earlier).map(|l| format!("{l}\n")).collect();
        let mut texts = Vec::new();
        for (i, prompt) in self.config.prompts.iter().enumerate() {
            let text = self.go_on(model, prompt, Rng::new(self.seed ^ step, i as u64))?;
            lines += &format!("{}\n", json!({"step": step, "prompt": prompt, "text": text}));
            texts.push(text);
        }
        atomic::write_atomic(&path, lines.as_bytes())?;
        Ok(texts)
    }

    /// One continuation. Every token costs a pass over all before it, which is little here.
    fn go_on(&self, model: &Transformer, prompt: &str, mut rng: Rng) -> Result<String> {
        let mut ids = self.tokenizer.encode(prompt, true)?;
        if ids.is_empty() {
            ids.extend(self.tokenizer.bos_id().or(self.tokenizer.eos_id()).or(Some(0)));
        }
        // Some templates end a text at once.
        if ids.len() > 1 && ids.last().copied() == self.tokenizer.eos_id() {
            ids.pop();
        }
        let (begin, most) = (ids.len(), model.config().max_position_embeddings);
        while ids.len() < begin + self.config.tokens && ids.len() < most {
            let batch = Batch::from_rows(&[&ids]);
            let last = model.forward(&batch)?.detach().squeeze(0)?.get(ids.len() - 1)?;
            let logits: Vec<f32> = last.to_dtype(DType::F32)?.to_vec1()?;
            let next = if self.config.temperature == 0.0 {
                last.argmax(D::Minus1)?.to_scalar::<u32>()?
            } else {
                draw(&logits, self.config.temperature, rng.unit())
            };
            if Some(next) == self.tokenizer.eos_id() {
                break;
            }
            ids.push(next);
        }
        self.tokenizer.decode(&ids[begin..], true).context("decoding a sample")
    }
}

/// The token whose share of the probability `u`, 0 to 1, falls into.
fn draw(logits: &[f32], temperature: f64, u: f64) -> u32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |x: &f32| (f64::from(x - top) / temperature).exp();
    let mut left = u * logits.iter().map(weight).sum::<f64>();
    for (id, x) in logits.iter().enumerate() {
        left -= weight(x);
        if left < 0.0 {
            return id as u32;
        }
    }
    logits.len() as u32 - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [0.0, 2.0f32.ln(), f32::NEG_INFINITY, 0.0];
        let u = |i: u32| (f64::from(i) + 0.5) / 1000.0;
        let count = |id| (0..1000).filter(|i| draw(&logits, 1.0, u(*i)) == id).count();
        assert_eq!([count(0), count(1), count(2), count(3)], [250, 500, 0, 250]);
    }
}
