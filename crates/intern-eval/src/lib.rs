//! intern-eval
