//! Tests of the crate from outside, against reference implementations and real files.

mod chat;
mod files;
mod gguf;
mod ids;
mod support;
mod train;
