//! Between checkpoint layouts: InternLM2 and Llama, and llama2.c files to Hugging Face.
//!
//! Weights are moved byte by byte, one tensor at a time, from a mapped input: nothing is rounded
//! and a model larger than memory converts. Tokenizer files are carried over.

mod internlm2;
mod llama2c;
mod sentencepiece;

pub use internlm2::{internlm2_to_llama, llama_to_internlm2};
pub use llama2c::llama2c_to_hf;

use anyhow::{Context, Result};
use intern_format::atomic::write_atomic;
use std::path::Path;

/// Files that make up a tokenizer, copied where a checkpoint is converted or merged.
const TOKENIZER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
];

/// Copies the tokenizer's files, those that exist.
pub fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    for name in TOKENIZER_FILES {
        let source = from.join(name);
        if source.is_file() {
            let bytes = std::fs::read(&source).with_context(|| source.display().to_string())?;
            write_atomic(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}
