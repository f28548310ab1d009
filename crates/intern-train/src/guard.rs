//! Leaves out updates that would do harm: spikes of the loss or of the gradient.
//!
//! An update is skipped where its loss, or the logarithm of its gradient's norm, lies more than
//! [`GuardConfig::z`] standard deviations above the mean of those taken before it (as OLMo and
//! PaLM's authors skip by hand; Chowdhery et al., 2022). What is taken and skipped depends on the
//! values alone, which are the same for any number of ranks, and is saved with the run's state.

use serde::{Deserialize, Serialize};

/// `[guard]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GuardConfig {
    /// Standard deviations above the mean that make an outlier; 0 for no guard (default 0; 6 is
    /// usual for long runs).
    pub z: f64,
    /// Updates that mean and deviation are taken over (default 128).
    pub window: usize,
    /// First updates, of which none is skipped (default 100).
    pub warmup: u64,
    /// Updates skipped in a row before the run stops (default 16).
    pub patience: u32,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self { z: 0.0, window: 128, warmup: 100, patience: 16 }
    }
}

/// What the guard has seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    /// Losses of the last updates taken.
    losses: Vec<f64>,
    /// Logarithms of their gradients' norms.
    norms: Vec<f64>,
    /// Updates skipped since the last one taken.
    in_a_row: u32,
    /// Updates skipped in all.
    pub skipped: u64,
}

/// Deviations below these are taken as these: a quiet run has no outliers of a thousandth.
const LEAST: [f64; 2] = [0.01, 0.05];

impl Guard {
    /// Whether nothing was seen: a run without a guard.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether update `step` (from 1) is to be made. `Err` with a description if too many in a row
    /// are not.
    pub fn takes(&mut self, config: &GuardConfig, step: u64, loss: f64, norm: f64) -> Result<bool, String> {
        if config.z <= 0.0 {
            return Ok(true);
        }
        let now = [loss, norm.max(f64::MIN_POSITIVE).ln()];
        let seen = [&self.losses, &self.norms];
        let enough = step > config.warmup && seen[0].len() >= config.window.min(16);
        let z = |i: usize| {
            let n = seen[i].len() as f64;
            let mean = seen[i].iter().sum::<f64>() / n;
            let variance = seen[i].iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            (now[i] - mean) / variance.sqrt().max(LEAST[i])
        };
        if enough && z(0).max(z(1)) > config.z {
            self.skipped += 1;
            self.in_a_row += 1;
            let what = format!(
                "loss {loss:.4} ({:.1} deviations above the mean), gradient norm {norm:.3} ({:.1})",
                z(0),
                z(1)
            );
            if self.in_a_row > config.patience {
                return Err(format!(
                    "{} updates in a row would have been skipped; the last: {what}",
                    self.in_a_row
                ));
            }
            tracing::warn!("step {step} is skipped: {what}");
            return Ok(false);
        }
        self.in_a_row = 0;
        for (values, value) in [(&mut self.losses, now[0]), (&mut self.norms, now[1])] {
            values.push(value);
            let surplus = values.len().saturating_sub(config.window.max(1));
            values.drain(..surplus);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spikes_are_skipped_and_slow_changes_taken() {
        let config = GuardConfig { z: 6.0, window: 50, warmup: 20, patience: 2 };
        let mut guard = Guard::default();
        let wave = |i: u64| 0.1 * (i as f64).sin();
        for step in 1..=100 {
            let loss = 5.0 - 0.01 * step as f64 + wave(step);
            assert_eq!(guard.takes(&config, step, loss, 1.0 + wave(step)), Ok(true), "{step}");
        }
        assert_eq!(guard.losses.len(), 50);
        let before = guard.clone();
        assert_eq!(guard.takes(&config, 101, 8.0, 1.0), Ok(false));
        assert_eq!(guard.takes(&config, 102, 4.0, 90.0), Ok(false));
        assert_eq!((guard.skipped, &guard.losses), (2, &before.losses));
        assert!(guard.clone().takes(&config, 103, 9.0, 90.0).unwrap_err().contains("3 updates in a row"));
        // A good one ends the row, and low values are no outliers.
        assert_eq!(guard.takes(&config, 103, 1.0, 0.1), Ok(true));
        assert_eq!(guard.takes(&config, 104, 9.0, 1.0), Ok(false));
        // The state that is saved goes on the same.
        let text = serde_json::to_string(&guard).unwrap();
        assert_eq!(serde_json::from_str::<Guard>(&text).unwrap(), guard);
    }

    #[test]
    fn without_a_guard_all_are_taken() {
        let mut guard = Guard::default();
        for step in 1..300 {
            assert_eq!(guard.takes(&GuardConfig::default(), step, 1e9 * (step % 7) as f64, 1.0), Ok(true));
        }
        assert!(guard.is_empty());
    }
}
