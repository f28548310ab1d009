//! The settings of an agent run.

use std::path::PathBuf;

use intern_lm::Sampling;
use serde::{Deserialize, Serialize};

use crate::Protocol;

/// One agent: how it talks, which tools it has, and what it is asked.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentConfig {
    /// How calls and results are written.
    #[serde(default)]
    pub protocol: Protocol,
    /// The system message. ReAct adds the tools and the format to it.
    #[serde(default = "default_system")]
    pub system: String,
    /// Tools the model may call.
    #[serde(default)]
    pub tools: Vec<ToolKind>,
    /// Settings of the `file` tool.
    #[serde(default)]
    pub file: FileConfig,
    /// Most turns of the model in one episode.
    #[serde(default = "default_max_turns")]
    pub max_turns: usize,
    /// JSONL of `{id, question, answer, lang}`; only `question` must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problems: Option<PathBuf>,
    /// Only the first so many problems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Text before the final answer, e.g. `"Answer:"`; without it the last number counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_marker: Option<String>,
    /// Problems worked on at once.
    #[serde(default = "default_batch")]
    pub batch: usize,
    /// How the model chooses its words.
    #[serde(default)]
    pub sampling: Sampling,
    /// Content hash of the model, so that results of another model under the same name
    /// are never continued. The command line fills it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_hash: Option<String>,
}

/// A tool by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolKind {
    /// Arithmetic.
    Calculator,
    /// Files of one directory.
    File,
}

/// What the `file` tool may touch.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FileConfig {
    /// The directory; nothing outside it can be reached.
    pub root: Option<PathBuf>,
    /// Whether files may be written.
    pub write: bool,
}

fn default_system() -> String {
    "You are a helpful assistant.".to_string()
}

fn default_max_turns() -> usize {
    6
}

fn default_batch() -> usize {
    32
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            protocol: Protocol::default(),
            system: default_system(),
            tools: Vec::new(),
            file: FileConfig::default(),
            max_turns: default_max_turns(),
            problems: None,
            limit: None,
            answer_marker: None,
            batch: default_batch(),
            sampling: Sampling::default(),
            model_hash: None,
        }
    }
}
