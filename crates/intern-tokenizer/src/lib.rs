//! Text to token ids and back: every tokenizer format the field uses, chat
//! templates, and the masks that say which tokens of a conversation are trained on.
//!
//! [`Tokenizer`] is the one type the other crates hold. All formats (Hugging Face
//! `tokenizer.json`, SentencePiece `.model`, tiktoken ranks, GGUF metadata) become a
//! pipeline of the `tokenizers` crate, so each can be saved as a `tokenizer.json`
//! that `transformers` loads with the same ids. Decoding is ours, since a streaming
//! server must never emit half a character.
//!
//! Knows no model: no weights, no tensors, no vocabulary padding.

mod chat;
mod decode;
mod files;
mod gguf;

pub mod internlm2;
mod pretokenizer;
pub mod sentencepiece;
mod spm;
mod tiktoken;

mod tokenizer;
pub mod train;

pub use chat::{ChatTemplate, ChatTokens};
pub use decode::StreamDecoder;
pub use pretokenizer::PreTokenizer;
pub use tokenizer::{Special, Tokenizer};
