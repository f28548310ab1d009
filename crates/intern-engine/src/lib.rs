//! Inference on the CPU: stored weights, a paged KV cache, continuous batching, sampling.
//!
//! The main loop is `schedule → run → postprocess`: `scheduler` and `block_manager` decide
//! (without touching tensors), `runner` computes on flat buffers with `intern-kernels`,
//! `watch` tells it who is still there, `parallel` shares the model between ranks,
//! `sampler` chooses within what `penalties` and `grammar` leave, `speculate` and `draft` guess
//! ahead, `worker` drives them, `engine` is the handle. `weights` (with `packed4`),
//! `gguf_model` and `adapter` load checkpoints, GGUF files and adapters, `quantize` writes the latter. `lm` makes it a
//! [`intern_lm::LanguageModel`]. Speaks no HTTP.

mod active;
mod adapter;
pub mod block_manager;
mod check;
mod compute;
mod draft;
mod engine;
mod gguf_model;
mod grammar;
mod lm;
mod load;
mod packed4;
mod parallel;
mod penalties;
mod prepare;
pub mod quantize;
mod rope;
mod runner;
mod sampler;
pub mod scheduler;
pub mod sequence;
mod speculate;
mod text;
mod watch;
mod weights;
mod worker;

pub use engine::{Engine, EngineConfig, EngineRequest, Event, KvType, Listener, Stats, TokenScore};
pub use load::follow;
