//! intern-data
