//! One module per subcommand: its arguments, and the call into its crate.

pub mod agent;
pub mod config_docs;
pub mod data;
mod data_compare;
mod data_get;
mod data_tools;
pub mod eval;
pub mod help;
pub mod run;
pub mod serve;
pub mod train;
mod train_plot;
pub mod tune;
