//! intern-agent
