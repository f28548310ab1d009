//! Every byte on disk: one module per format, readers that trust nothing, atomic writers.
//!
//! Nothing here knows a model or a tensor operation; the crate turns paths into
//! typed values and back. Readers check lengths and offsets before they allocate,
//! and name the file, the place in it and what was expected when a check fails.
//! Writers go through [`atomic`], so a killed process never leaves half a file
//! under a final name. `docs/formats.md` describes each format.

pub mod adapter;
pub mod append;
pub mod atomic;
pub mod checkpoint;
pub mod conversation;
pub mod document;
pub mod error;
pub mod gguf;
pub mod metrics;
pub mod provenance;
pub mod records;
pub mod safetensors;
pub mod shards;

mod mapped;

pub use error::{Error, Result};
