//! Fine-tuning on conversations, full or LoRA, on the loop of `intern-train`.
//!
//! `samples` turns conversations into tokens with a training mask and says what it found,
//! `packing` and `rows` put them into batches, `sft` runs the job. Merging an adapter into its
//! base is `intern_model::lora::merge`, offered here with its tokenizer as [`merge`].

pub mod config;
pub mod packing;
pub mod rows;
pub mod samples;
pub mod sft;

use std::path::Path;

use anyhow::{Context, Result};
use intern_format::atomic::AtomicDir;

pub use config::TuneConfig;
pub use sft::{Prepared, Summary, job, prepare, run};

/// Writes `out`, the checkpoint `base` with `adapter` merged in; whole or not at all.
///
/// # Errors
/// If the adapter does not belong to the base, or a file is unusable.
pub fn merge(base: &Path, adapter: &Path, out: &Path) -> Result<()> {
    let new = AtomicDir::create(out)?;
    intern_model::lora::merge(base, adapter, new.path())?;
    new.commit().with_context(|| format!("writing {}", out.display()))
}
