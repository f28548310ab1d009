//! Kernel benchmarks: GMAC/s and GB/s beside the plain reference.

fn main() {}
