//! Everything that puts a model to use: the HTTP server, the terminal chat, the
//! quantization tool and the logits dump, all on `intern-engine`.
//!
//! [`api`] speaks OpenAI's protocol, [`chat`] talks in a terminal, [`quantize`]
//! writes GGUF files, [`logits`] writes what a model thinks at every position.

pub mod api;
pub mod chat;
pub mod logits;
pub mod quantize;
