//! The decoder transformer for training: one configurable implementation for InternLM2,
//! InternLM3, Llama, Mistral, Qwen2 and Qwen3, differentiable by candle's autograd.
//!
//! `config` and `weights` say what a checkpoint holds, `transformer` is the model, `ops` its
//! operations with their gradients (kernels live in `intern-kernels::train`), `backprop` the same
//! without autograd, for training, `lora` trains small
//! matrices beside frozen weights, `part` is what a rank of a parallel run holds, `convert` maps between layouts, `calibrate` looks at a
//! model's activations. Knows checkpoints and batches;
//! no task, no server, no optimizer.

pub mod backprop;
pub mod batch;
pub mod calibrate;
pub mod checkpoint;
pub mod config;
pub mod convert;
mod init;
pub mod lora;
mod ops;
pub mod part;
pub mod rope;
pub mod transformer;
pub mod weights;

pub use batch::Batch;
pub use config::{Architecture, ModelConfig, RopeScaling};
pub use lora::LoraConfig;
pub use part::Part;
pub use rope::{rope_inv_freq, rope_tables};
pub use transformer::{LossSum, Transformer};
