//! Compute kernels for the CPU, each beside a plain reference.

pub mod rng;
pub mod train;
