//! The settings of an evaluation.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Which tasks to score, and how much of them.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Task or group files; a directory means every `.yaml` in it.
    pub tasks: Vec<PathBuf>,
    /// Only the first so many documents of each task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Solved examples before each question; tasks that say 0 themselves stay at 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_fewshot: Option<usize>,
    /// Chooses the examples, and the words when a task samples.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Resamplings for standard errors that have no formula; 0 leaves them out.
    #[serde(default = "default_bootstrap")]
    pub bootstrap_iters: usize,
    /// Documents sent to the model at once.
    #[serde(default = "default_batch")]
    pub batch: usize,
    /// Content hash of the model, so that results of another model under the same name
    /// are never continued. The command line fills it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_hash: Option<String>,
}

fn default_seed() -> u64 {
    1234
}

fn default_bootstrap() -> usize {
    100_000
}

fn default_batch() -> usize {
    32
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            tasks: Vec::new(),
            limit: None,
            num_fewshot: None,
            seed: default_seed(),
            bootstrap_iters: default_bootstrap(),
            batch: default_batch(),
            model_hash: None,
        }
    }
}
