//! The integration tests: the real binary, run as a user runs it.

mod docs;
mod errors;
mod lifecycle;
mod lm_eval;
mod support;
