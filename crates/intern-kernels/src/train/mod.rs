//! Forward and backward kernels for training a decoder on the CPU, on plain f32 slices.
//!
//! Each kernel is parallel over rows or heads with rayon, gives the same bits for any number of
//! threads (work is cut by size, never by thread count, and sums are folded in order), and
//! stands beside a plain `reference` it is tested against. `intern-model` wraps them for autograd.
//!
//! Shapes in comments: `N` tokens (all rows of a batch), `B` rows, `T` tokens per row, `C` width
//! of the residual stream, `F` feed-forward width, `V` vocabulary, `H` query heads, `G` key/value
//! heads, `D` head width. Every matrix is row-major.

pub mod adamw;
pub mod attention;
pub mod cross_entropy;
pub mod embedding;
pub mod fixed;
pub mod gemm;
pub mod half;
pub mod math;
pub mod memory;
pub mod moments8;
pub mod muon;
pub mod rms_norm;
pub mod rope;
pub mod swiglu;

#[cfg(test)]
pub(crate) mod testing;
