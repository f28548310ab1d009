//! Inference on the CPU: stored weights, a paged KV cache, continuous batching, sampling.
//!
//! The main loop is `schedule → run → postprocess`: `scheduler` and `block_manager` decide
//! (without touching tensors), `runner` computes on flat buffers with `intern-kernels`,
//! `sampler` chooses within what `penalties` and `grammar` leave, `speculate` and `draft` guess
//! ahead, `worker` drives them, `engine` is the handle. `weights` (with `packed4`) and
//! `gguf_model` load checkpoints and GGUF files, `quantize` writes the latter. `lm` makes it a
//! [`intern_lm::LanguageModel`]. Speaks no HTTP.

mod active;
pub mod block_manager;
mod check;
mod compute;
mod draft;
mod engine;
mod gguf_model;
mod grammar;
mod lm;
mod packed4;
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
mod weights;
mod worker;

pub use engine::{Engine, EngineConfig, EngineRequest, Event, KvType, Listener, Stats, TokenScore};
