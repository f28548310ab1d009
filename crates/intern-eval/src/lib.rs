//! Scores a language model on tasks described by YAML files, in the field names and with
//! the formulas of lm-evaluation-harness.
//!
//! [`tasks`] reads a task file with its data and turns every document into requests;
//! [`run`] asks the model, group by group, and journals what it said; [`metrics`] turns
//! responses into scores. The model is any [`intern_lm::LanguageModel`].
//!
//! Python hooks (`!function`) are not run: a task that has them is refused by name.

pub mod config;
pub mod filters;
pub mod journal;
pub mod metrics;
pub mod python;
pub mod results;
pub mod rng;
pub mod runner;
pub mod tasks;

pub use config::EvalConfig;
pub use results::Summary;
pub use runner::run;
pub use tasks::Task;
