//! Training byte-level BPE: the same merges for any number of threads.
//!
//! Words are counted in parallel, then pairs are merged by one thread, greatest count
//! first (Sennrich et al., 2016). Ties go to the pair with the smaller ids, as in the
//! `tokenizers` crate, whose merges ours therefore equal.

mod merge;
mod words;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::pretokenizer::{PreTokenizer, byte_level, byte_to_char};
use crate::tokenizer::{Special, Tokenizer};

/// What to train.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BpeConfig {
    /// Size of the vocabulary: special tokens, 256 bytes, merges.
    pub vocab_size: usize,
    /// Pairs seen less often are not merged.
    #[serde(default = "default_min_frequency")]
    pub min_frequency: u64,
    /// Tokens with ids 0, 1, …, never split and never learned.
    #[serde(default = "default_special_tokens")]
    pub special_tokens: Vec<String>,
    /// How text is cut into words.
    #[serde(default)]
    pub pre_tokenizer: PreTokenizer,
}

fn default_min_frequency() -> u64 {
    2
}

fn default_special_tokens() -> Vec<String> {
    crate::internlm2::SPECIAL_TOKENS.iter().map(ToString::to_string).collect()
}

impl BpeConfig {
    /// A vocabulary of this size with InternLM2's special tokens and Qwen2's words.
    #[must_use]
    pub fn new(vocab_size: usize) -> Self {
        Self {
            vocab_size,
            min_frequency: default_min_frequency(),
            special_tokens: default_special_tokens(),
            pre_tokenizer: PreTokenizer::default(),
        }
    }
}

/// Trains a byte-level BPE tokenizer on texts.
///
/// The result has no chat template; see [`Tokenizer::with_chat_template`]. With less
/// text than the vocabulary needs, fewer merges are learned.
///
/// # Errors
/// Fails when the vocabulary has no room for the bytes and special tokens, or when
/// there is no text at all.
pub fn train_bpe<I: Iterator<Item = String>>(config: &BpeConfig, texts: &mut I) -> Result<Tokenizer> {
    let num_special = config.special_tokens.len();
    if config.vocab_size < num_special + 256 {
        bail!(
            "vocab_size = {} is too small: {num_special} special tokens and 256 bytes come first\n\
             hint: set vocab_size to at least {}",
            config.vocab_size,
            num_special + 256
        );
    }
    let words = words::count(texts, config.pre_tokenizer)?;
    if words.is_empty() {
        bail!("the corpus is empty\nhint: check that the input documents have text");
    }
    // Symbols are numbered as the alphabet will be: by the character that spells the byte.
    let mut alphabet: Vec<u8> = (0..=255).collect();
    alphabet.sort_unstable_by_key(|&byte| byte_to_char(byte));
    let mut symbol_of_byte = [0; 256];
    for (symbol, &byte) in alphabet.iter().enumerate() {
        symbol_of_byte[byte as usize] = symbol as u32;
    }
    let forbidden = config.special_tokens.iter().map(|t| t.as_bytes().to_vec()).collect();
    let max_tokens = config.vocab_size - num_special - 256;
    let merges = merge::learn(&words, &symbol_of_byte, max_tokens, config.min_frequency, &forbidden);
    assemble(config, &alphabet, &merges)
}

/// One learned merge; symbols are numbered bytes first, then tokens as learned.
struct Merge {
    pair: (u32, u32),
    token: u32,
}

/// Builds the pipeline: special tokens, then the bytes, then the learned tokens.
fn assemble(config: &BpeConfig, alphabet: &[u8], merges: &[Merge]) -> Result<Tokenizer> {
    let mut spelled: Vec<String> = alphabet.iter().map(|&byte| byte_to_char(byte).to_string()).collect(); // by symbol
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        let pair = [merge.pair.0, merge.pair.1].map(|symbol| spelled[symbol as usize].clone());
        if merge.token as usize == spelled.len() {
            spelled.push(pair.concat());
        }
        pairs.push(pair);
    }
    let tokens: Vec<&String> = config.special_tokens.iter().chain(&spelled).collect();
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, t)| (t.to_string(), id.into())).collect();
    if vocab.len() != tokens.len() {
        bail!("special_tokens has a duplicate or a single byte's name\nhint: give each a unique name");
    }
    let added = config.special_tokens.iter().enumerate().map(|(id, t)| added_token(id as u32, t, true));
    let special = Special::guess(|name| config.special_tokens.iter().any(|t| t == name));
    let bos = special.bos.as_deref().and_then(|t| Some((t, vocab.get(t)?.as_u64()? as u32)));
    let pipeline = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": config.pre_tokenizer.to_json(),
        "post_processor": bos_processor(bos),
        "decoder": byte_level(false),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": pairs,
        },
    });
    let library = serde_json::from_value(pipeline).context("assembling the trained tokenizer")?;
    Tokenizer::new(library, Some(special), Map::new())
}

/// One entry of `added_tokens`, matched as written.
pub(crate) fn added_token(id: u32, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special})
}

/// A post-processor that puts BOS in front, if there is one.
pub(crate) fn bos_processor(bos: Option<(&str, u32)>) -> Value {
    template_processor(bos, None)
}

/// A post-processor that puts tokens before and after a text.
pub(crate) fn template_processor(before: Option<(&str, u32)>, after: Option<(&str, u32)>) -> Value {
    if before.is_none() && after.is_none() {
        return Value::Null;
    }
    let part = |text: &str, type_id: u32| -> Vec<Value> {
        let special = |(token, _): (&str, u32)| json!({"SpecialToken": {"id": token, "type_id": type_id}});
        let text = json!({"Sequence": {"id": text, "type_id": type_id}});
        before.map(special).into_iter().chain([text]).chain(after.map(special)).collect()
    };
    let tokens = before.into_iter().chain(after);
    let tokens: Map<String, Value> = tokens
        .map(|(token, id)| (token.to_string(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    let pair = [part("A", 0), part("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": part("A", 0),
        "pair": pair,
        "special_tokens": tokens,
    })
}
