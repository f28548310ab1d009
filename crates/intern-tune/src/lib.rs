//! intern-tune
