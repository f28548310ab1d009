//! intern-kernels
