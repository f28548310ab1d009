//! intern-engine
