//! What a request may ask of an engine; checked before anything runs.

use anyhow::{Result, bail, ensure};
use intern_lm::Sampling;

use crate::engine::EngineRequest;

/// The model's bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Tokens of the model.
    pub vocab_size: usize,
    /// Longest prompt plus answer.
    pub max_context: usize,
}

impl Limits {
    /// Finds what would make a request fail.
    pub fn check(&self, request: &EngineRequest) -> Result<()> {
        let n = request.tokens.len();
        ensure!(n > 0, "the prompt is empty\nhint: give at least one token");
        ensure!(
            n <= self.max_context,
            "the prompt has {n} tokens, the context is {}\nhint: shorten the prompt or raise max_context and kv_memory_mb",
            self.max_context
        );
        if let Some(id) = request.tokens.iter().find(|&&id| id as usize >= self.vocab_size) {
            bail!("token id {id}, expected below the vocabulary size {}", self.vocab_size);
        }
        let s = &request.sampling;
        check_sampling(s)?;
        if let Some(id) = s.logit_bias.keys().chain(&s.stop_ids).find(|&&id| id as usize >= self.vocab_size) {
            bail!("token id {id}, expected below the vocabulary size {}", self.vocab_size);
        }
        ensure!(!request.embed || s.max_tokens == 0, "embed needs max_tokens = 0");
        ensure!(!request.prompt_logits || s.max_tokens == 0, "prompt_logits needs max_tokens = 0");
        if let Some(id) = request.score_next {
            ensure!(
                s.max_tokens == 0 && request.score_from.is_some(),
                "score_next needs score_from and max_tokens = 0"
            );
            ensure!(
                (id as usize) < self.vocab_size,
                "token id {id}, expected below the vocabulary size {}",
                self.vocab_size
            );
        }
        ensure!(
            request.score_from != Some(0),
            "score_from is 0, expected at least 1: the first token has no context"
        );
        Ok(())
    }
}

fn check_sampling(s: &Sampling) -> Result<()> {
    let range = |name: &str, value: f32, low: f32, high: f32| {
        ensure!((low..=high).contains(&value), "{name} is {value}, expected from {low} to {high}");
        Ok(())
    };
    ensure!(
        s.temperature.is_finite() && s.temperature >= 0.0,
        "temperature is {}, expected at least 0",
        s.temperature
    );
    ensure!(s.top_p > 0.0 && s.top_p <= 1.0, "top_p is {}, expected above 0 and at most 1", s.top_p);
    ensure!(
        s.typical_p > 0.0 && s.typical_p <= 1.0,
        "typical_p is {}, expected above 0 and at most 1",
        s.typical_p
    );
    range("min_p", s.min_p, 0.0, 1.0)?;
    ensure!(
        s.repetition_penalty.is_finite() && s.repetition_penalty > 0.0,
        "repetition_penalty is {}, expected above 0",
        s.repetition_penalty
    );
    range("presence_penalty", s.presence_penalty, -100.0, 100.0)?;
    range("frequency_penalty", s.frequency_penalty, -100.0, 100.0)?;
    s.logit_bias.values().try_for_each(|&bias| range("logit_bias", bias, -100.0, 100.0))?;
    if let Some(dry) = &s.dry {
        range("dry.multiplier", dry.multiplier, 0.0, 1000.0)?;
        range("dry.base", dry.base, 1.0, 1000.0)?;
    }
    Ok(())
}
