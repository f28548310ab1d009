//! Compute kernels for the CPU, each beside a plain reference.
//!
//! `quant` and `matmul` work on weights as GGUF stores them, `ops` on rows of activations,
//! `paged` on the block-wise KV cache, `sampling` on rows of logits; `train` has the kernels
//! with backward passes. Instruction sets are chosen at run time. Nothing here knows a model.

pub mod matmul;
pub mod ops;
pub mod paged;
pub mod quant;
pub mod rng;
pub mod sampling;
pub mod train;
