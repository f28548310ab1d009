//! intern-train
