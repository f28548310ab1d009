//! Compute kernels for the CPU, each beside a plain reference.
//!
//! `quant` knows GGUF's block formats, `matmul` multiplies with stored weights and with those
//! that `packed` keeps for integer kernels; `ops` works on rows of activations, `paged` on the
//! block-wise KV cache, `sampling` on rows of logits; `pool` is what they run on. `train` has
//! the kernels with backward passes. Instruction sets are chosen at run time. Nothing here knows a model.

pub mod matmul;
pub mod mersenne;
pub mod ops;
pub mod packed;
pub mod paged;
pub mod pool;
pub mod quant;
pub mod rng;
pub mod sampling;
pub mod train;
