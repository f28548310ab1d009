//! intern-serve
