//! Learning-rate schedules, equal to those of `transformers.optimization` update for update.
//!
//! A schedule is a function of the update's index alone, so resuming needs no state.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// `[schedule]`: how the learning rate moves over the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// `cosine` (default), `wsd`, `linear` or `constant`.
    pub kind: ScheduleKind,
    /// Updates over which the rate climbs linearly from 0 (default 0).
    pub warmup_steps: u64,
    /// Final rate as a share of `optimizer.lr`, from 0 to 1 (default 0.1). Not used by `constant`.
    pub min_lr_ratio: f64,
    /// `wsd` only: updates over which the rate falls at the end (default: a tenth of the run).
    pub decay_steps: Option<u64>,
    /// `wsd` only: the shape of the fall (default `cosine`).
    pub decay: Decay,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Cosine,
            warmup_steps: 0,
            min_lr_ratio: 0.1,
            decay_steps: None,
            decay: Decay::Cosine,
        }
    }
}

/// The schedules there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Half a cosine from the peak to the end of the run.
    Cosine,
    /// Warm-up, stable, decay (Hu et al., 2024).
    Wsd,
    /// A straight line from the peak to the end of the run.
    Linear,
    /// The peak throughout.
    Constant,
}

/// How `wsd` falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Half a cosine.
    Cosine,
    /// A straight line.
    Linear,
    /// One minus the root of the progress.
    Sqrt,
}

/// A schedule resolved against the length of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    kind: ScheduleKind,
    warmup: f64,
    total: f64,
    decay_steps: f64,
    decay: Decay,
    floor: f64,
}

impl ScheduleConfig {
    /// Checks the settings against a run of `steps` updates.
    pub fn resolve(&self, steps: u64) -> Result<Schedule> {
        ensure!(
            (0.0..=1.0).contains(&self.min_lr_ratio),
            "schedule.min_lr_ratio is {}, expected 0 to 1\nhint: it is a share of optimizer.lr, not a rate",
            self.min_lr_ratio
        );
        let decay_steps = match self.kind {
            ScheduleKind::Wsd => self.decay_steps.unwrap_or(steps / 10),
            _ => 0,
        };
        ensure!(
            self.warmup_steps + decay_steps <= steps,
            "schedule: {} warm-up and {decay_steps} decay steps do not fit into {steps} steps\n\
             hint: lower schedule.warmup_steps, or raise steps",
            self.warmup_steps
        );
        Ok(Schedule {
            kind: self.kind,
            warmup: self.warmup_steps as f64,
            total: steps as f64,
            decay_steps: decay_steps as f64,
            decay: self.decay,
            floor: self.min_lr_ratio,
        })
    }
}

impl Schedule {
    /// The share of the peak rate for update `i`, counted from 0.
    #[must_use]
    pub fn factor(&self, i: u64) -> f64 {
        let i = i as f64;
        let raise = |share: f64| share * (1.0 - self.floor) + self.floor;
        if i < self.warmup {
            let share = i / self.warmup;
            // As in transformers: only WSD's warm-up starts at the floor.
            return if self.kind == ScheduleKind::Wsd { raise(share) } else { share };
        }
        let share = match self.kind {
            ScheduleKind::Constant => return 1.0,
            ScheduleKind::Cosine => half_cosine((i - self.warmup) / (self.total - self.warmup).max(1.0)),
            ScheduleKind::Linear => ((self.total - i) / (self.total - self.warmup).max(1.0)).max(0.0),
            ScheduleKind::Wsd => {
                let decay_start = self.total - self.decay_steps;
                let progress = (i - decay_start) / self.decay_steps.max(1.0);
                match self.decay {
                    _ if i < decay_start => 1.0,
                    _ if i >= self.total => 0.0,
                    Decay::Cosine => half_cosine(progress),
                    Decay::Linear => 1.0 - progress,
                    Decay::Sqrt => 1.0 - progress.sqrt(),
                }
            }
        };
        raise(share).max(0.0)
    }
}

/// 1 at `progress` 0, 0 at 1.
fn half_cosine(progress: f64) -> f64 {
    0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn factors_equal_those_of_transformers() {
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/schedules.json")).unwrap();
        for case in golden.as_array().unwrap() {
            let config: ScheduleConfig = serde_json::from_value(case["schedule"].clone()).unwrap();
            let schedule = config.resolve(case["steps"].as_u64().unwrap()).unwrap();
            for (i, expect) in case["factors"].as_array().unwrap().iter().enumerate() {
                let (ours, theirs) = (schedule.factor(i as u64), expect.as_f64().unwrap());
                assert!(
                    (ours - theirs).abs() < 1e-15,
                    "{} update {i}: {ours}, not {theirs}",
                    case["schedule"]
                );
            }
        }
    }

    #[test]
    fn settings_that_do_not_fit_are_refused() {
        let config = ScheduleConfig { warmup_steps: 8, ..ScheduleConfig::default() };
        let error = config.resolve(5).unwrap_err().to_string();
        assert!(error.contains("8 warm-up") && error.contains("hint:"), "{error}");
        assert!(ScheduleConfig { min_lr_ratio: 3e-5 + 1.0, ..ScheduleConfig::default() }.resolve(5).is_err());
    }
}
