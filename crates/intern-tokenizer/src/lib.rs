//! intern-tokenizer
