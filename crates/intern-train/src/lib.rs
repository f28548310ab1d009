//! Training: batches, optimizer, schedules, checkpoints that resume exactly, metrics.
//!
//! [`pretrain::run`] reads token shards and a tokenizer and writes a Hugging Face checkpoint;
//! `intern-tune` drives the same [`Trainer`] with conversations. A run is a function of its
//! settings and inputs: the same bytes come out whatever the number of threads and however
//! often it is killed and started again. Knows no task and no server.

pub mod bench;
pub mod config;
pub mod data;
pub mod forecast;
pub mod guard;
pub mod interrupt;
pub mod job;
pub mod lanes;
pub mod memory;
pub mod mesh;
pub mod optimizer;
pub mod params;
pub mod pipeline;
pub mod predict;
pub mod pretrain;
pub mod samples;
pub mod schedule;
mod sharded;
pub mod shuffle;
pub mod state;
pub mod timer;
pub mod trainer;

pub use config::{OptimizerConfig, Plan, TrainConfig};
pub use data::BatchSource;
pub use job::Job;
pub use optimizer::Optimizer;
pub use pretrain::{Summary, run};
pub use schedule::{Schedule, ScheduleConfig};
pub use trainer::Trainer;
