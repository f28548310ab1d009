//! intern-model
