//! Lets a language model use tools: one question at a time, or a file of problems.
//!
//! The loop is [`batch`]: ask the model for one turn of every open episode, run the
//! tools it calls, write the results into the conversation, until each episode has
//! its answer. What a turn looks like as text is the [`protocol`]'s business, what a
//! tool does is behind the [`Tool`] trait, and where the model runs is unknown here:
//! everything goes through [`intern_lm::LanguageModel`].
//!
//! No answer is ever put into the model's mouth: it chooses the tool and writes the
//! arguments itself, and only what it says at the end is scored.

pub mod answer;
pub mod batch;
pub mod config;
pub mod episode;
pub mod events;
pub mod problems;
pub mod protocol;
pub mod results;
pub mod tools;

pub use batch::{ask, run};
pub use config::{AgentConfig, FileConfig, ToolKind};
pub use protocol::Protocol;
pub use results::{Score, Summary};
pub use tools::{Tool, Toolbox};
