//! Everything that puts a model to use: the HTTP server, the terminal chat, the
//! quantization tool, the bench and the logits dump, all on `intern-engine`.
//!
//! [`api`] speaks OpenAI's protocol, [`chat`] talks in a terminal, [`quantize`]
//! writes GGUF files, [`bench`] measures speed, [`logits`] writes what a model thinks
//! at every position.

pub mod api;
pub mod bench;
pub mod chat;
pub mod logits;
pub mod quantize;
