//! Between checkpoint layouts: InternLM2 and Llama, and llama2.c files to Hugging Face.

use anyhow::{Context, Result};
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
            intern_format::atomic::write_atomic(&to.join(name), &bytes)?;
        }
    }
    Ok(())
}
