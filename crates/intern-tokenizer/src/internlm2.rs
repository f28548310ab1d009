//! InternLM2's chat format with its plugin (tool) protocol: special tokens and template.
//!
//! A tool call is what the assistant writes between `<|action_start|><|plugin|>` and
//! `<|action_end|>`; its result comes back as an `environment` message.

/// The special tokens in id order, as a tokenizer of this family begins.
pub const SPECIAL_TOKENS: [&str; 9] = [
    "<unk>",
    "<s>",
    "</s>",
    "<|plugin|>",
    "<|interpreter|>",
    "<|action_end|>",
    "<|action_start|>",
    "<|im_end|>",
    "<|im_start|>",
];

/// The pieces of the released SentencePiece model that stand for the chat tokens.
pub(crate) const ALIASES: [(&str, &str); 6] = [
    ("[UNUSED_TOKEN_141]", "<|plugin|>"),
    ("[UNUSED_TOKEN_142]", "<|interpreter|>"),
    ("[UNUSED_TOKEN_143]", "<|action_end|>"),
    ("[UNUSED_TOKEN_144]", "<|action_start|>"),
    ("[UNUSED_TOKEN_145]", "<|im_end|>"),
    ("[UNUSED_TOKEN_146]", "<|im_start|>"),
];

/// The chat template. `{% generation %}` encloses all the assistant writes, its
/// `<|im_end|>` included, so masks cover exactly what the model must produce.
pub const CHAT_TEMPLATE: &str = include_str!("internlm2.jinja");
