//! The settings of a fine-tuning run: one TOML file, checked here once.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use intern_model::LoraConfig;
use intern_train::config::{OptimizerConfig, Plan, PlanArgs, WeightType};
use intern_train::schedule::ScheduleConfig;
use serde::{Deserialize, Serialize};

/// One fine-tuning run, complete.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TuneConfig {
    /// Checkpoint directory to start from.
    pub model: PathBuf,
    /// Passes over the data (default 3, where `steps` is not given).
    #[serde(default)]
    pub epochs: Option<f64>,
    /// Updates to make; excludes `epochs`.
    #[serde(default)]
    pub steps: Option<u64>,
    /// Rows per update; a row holds one conversation, or several with `data.packing`.
    pub batch_size: usize,
    /// Most rows worked on at once, one to a thread (default: `batch_size`). Costs memory and changes
    /// no bit of the result.
    #[serde(default)]
    pub micro_batch: Option<usize>,
    /// Decides the order of the rows and LoRA's initial weights (default 0).
    #[serde(default)]
    pub seed: u64,
    /// Updates between validation losses; 0 for only before and after (default: a tenth of the run).
    #[serde(default)]
    pub eval_every: Option<u64>,
    /// Updates between saved states (default: a tenth of the run).
    #[serde(default)]
    pub save_every: Option<u64>,
    /// Saved states to keep (default 1).
    #[serde(default = "one")]
    pub keep_last: usize,
    /// Type of the weights in the final `checkpoint/` of full tuning: `f32` (default), `bf16`, `f16`.
    /// A merged checkpoint keeps the base's type.
    #[serde(default)]
    pub dtype: WeightType,
    /// Trains small matrices beside the frozen weights instead of all weights.
    #[serde(default)]
    pub lora: Option<LoraConfig>,
    /// With LoRA: also write `checkpoint/`, the base with the adapter merged in (default false).
    #[serde(default)]
    pub merge: bool,
    /// What it is trained on.
    pub data: DataConfig,
    /// How gradients become updates.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// How the learning rate moves.
    #[serde(default)]
    pub schedule: ScheduleConfig,
}

/// `[data]`.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Conversation files (`.jsonl` or `.json`, plain or compressed; OpenAI, ShareGPT, Alpaca and
    /// XTuner shapes).
    pub train: Files,
    /// Held-out conversations, for the validation loss.
    #[serde(default)]
    pub valid: Option<Files>,
    /// Most tokens in a row.
    pub seq_len: usize,
    /// Several conversations share a row, without seeing each other (default true).
    #[serde(default = "yes")]
    pub packing: bool,
    /// What happens to conversations longer than a row: `drop` (default), `truncate` or `error`.
    #[serde(default)]
    pub too_long: TooLong,
    /// `internlm2`, or a Jinja file; saved with the model (default: the tokenizer's own).
    #[serde(default)]
    pub chat_template: Option<String>,
}

/// One file or several.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged, expecting = "a file or a list of files")]
pub enum Files {
    /// One.
    One(PathBuf),
    /// Several, read one after the other.
    Many(Vec<PathBuf>),
}

impl Files {
    /// As a list.
    #[must_use]
    pub fn list(&self) -> &[PathBuf] {
        match self {
            Self::One(path) => std::slice::from_ref(path),
            Self::Many(paths) => paths,
        }
    }
}

/// What happens to a conversation longer than a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TooLong {
    /// It is left out and counted.
    #[default]
    Drop,
    /// Its end is cut off, and counted.
    Truncate,
    /// The run refuses to start.
    Error,
}

impl TuneConfig {
    /// Checks what does not need the data.
    pub fn check(&self) -> Result<()> {
        ensure!(self.data.seq_len > 0, "data.seq_len is 0, expected at least 1");
        ensure!(!self.data.train.list().is_empty(), "data.train is empty, expected at least one file");
        match (self.epochs, self.steps) {
            (Some(_), Some(_)) => bail!("both epochs and steps are set\nhint: remove one"),
            (Some(e), None) => ensure!(e > 0.0 && e.is_finite(), "epochs is {e}, expected above 0"),
            _ => {}
        }
        ensure!(
            !self.merge || self.lora.is_some(),
            "merge is set without [lora]\nhint: full tuning needs no merge"
        );
        if let Some(lora) = &self.lora {
            ensure!(lora.r > 0, "lora.r is 0, expected at least 1");
        }
        self.plan(1 << 40).map(|_| ())
    }

    /// The loop's settings for data of `rows` rows; errors name the key.
    pub fn plan(&self, rows: usize) -> Result<Plan> {
        let per_epoch = rows as f64 / self.batch_size.max(1) as f64;
        let steps = match self.steps {
            Some(steps) => steps,
            None => (per_epoch * self.epochs.unwrap_or(3.0)).ceil() as u64,
        };
        ensure!(
            self.optimizer.ema.is_none(),
            "optimizer.ema averages the weights of `intern train run` only\nhint: remove it"
        );
        Plan::new(&PlanArgs {
            steps,
            batch_size: self.batch_size,
            micro_batch: self.micro_batch,
            eval_every: self.eval_every,
            save_every: self.save_every,
            keep_last: self.keep_last,
            optimizer: &self.optimizer,
            schedule: &self.schedule,
        })
    }
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(patch: Value) -> Result<TuneConfig> {
        let mut config = json!({"model": "m", "batch_size": 4, "data": {"train": "a.jsonl", "seq_len": 8}});
        config.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        let config: TuneConfig = serde_json::from_value(config)?;
        config.check().map(|()| config)
    }

    #[test]
    fn epochs_become_steps() {
        assert_eq!(check(json!({})).unwrap().plan(10).unwrap().steps, 8);
        assert_eq!(check(json!({"epochs": 0.5})).unwrap().plan(10).unwrap().steps, 2);
        assert_eq!(check(json!({"steps": 7})).unwrap().plan(10).unwrap().steps, 7);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |patch| format!("{:#}", check(patch).unwrap_err());
        assert!(error(json!({"epochs": 1, "steps": 2})).contains("both epochs and steps"));
        assert!(error(json!({"merge": true})).contains("without [lora]"));
        assert!(error(json!({"lora": {"rank": 8}})).contains("unknown field `rank`"));
    }
}
