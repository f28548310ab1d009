//! Checkpoints of Karpathy's llama2.c (`.bin`, legacy and version 1, f32) to Hugging Face's Llama.
//!
//! Its RoPE turns neighbouring elements, Hugging Face's the two halves of a head; so rows of the
//! query and key projections are reordered: even rows of each head first, then odd ones.

use super::{copy_tokenizer, sentencepiece};
use crate::checkpoint::config_json;
use crate::config::{Architecture, ModelConfig};
use anyhow::{Context, Result, bail, ensure};
use candle_core::DType;
use intern_format::atomic::{write_atomic, write_json};
use intern_format::checkpoint::{self, NamedTensor};
use serde_json::json;
use std::borrow::Cow;
use std::path::Path;

/// "ak42" as a little-endian integer: opens a versioned file.
const MAGIC: u32 = 0x616b_3432;
/// Size of a versioned header.
const HEADER: usize = 256;

/// Converts a llama2.c checkpoint; `tokenizer` is its SentencePiece `.model`, its `.bin`
/// vocabulary, or a directory with tokenizer files.
pub fn llama2c_to_hf(bin: &Path, tokenizer: Option<&Path>, out: &Path) -> Result<()> {
    let data = std::fs::read(bin).with_context(|| bin.display().to_string())?;
    let file = File::parse(&data).with_context(|| format!("{}: not a llama2.c checkpoint", bin.display()))?;
    let config = file.config();
    config.validate().with_context(|| bin.display().to_string())?;
    let tensors = file.tensors(&config);
    checkpoint::save(
        out,
        &config_json(&config, DType::F32)?,
        &config.generation_json(),
        &tensors,
        checkpoint::DEFAULT_SHARD_BYTES,
    )?;
    match tokenizer {
        Some(path) => save_tokenizer(path, config.vocab_size, out),
        None => Ok(()),
    }
}

/// Sizes of the model and the bytes of its weights.
struct File<'a> {
    dim: usize,
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
    seq: usize,
    is_tied: bool,
    is_legacy: bool,
    weights: &'a [u8],
}

impl<'a> File<'a> {
    fn parse(data: &'a [u8]) -> Result<Self> {
        ensure!(data.len() >= 28, "{} bytes, expected a header of 28", data.len());
        let int = |i: usize| i32::from_le_bytes(data[4 * i..4 * i + 4].try_into().expect("four bytes"));
        let is_legacy = int(0) as u32 != MAGIC;
        let first = if is_legacy { 0 } else { 2 };
        if !is_legacy {
            ensure!(data.len() >= HEADER, "{} bytes, expected a header of {HEADER}", data.len());
            if int(1) != 1 {
                bail!("format version {}\nhint: version 1 (f32) and legacy files are supported", int(1));
            }
        }
        let size = |i: usize, what: &str, limit: i32| -> Result<usize> {
            let n = int(first + i);
            ensure!(
                (1..=limit).contains(&n),
                "byte {}: {what} is {n}, expected 1 to {limit}",
                4 * (first + i)
            );
            Ok(n as usize)
        };
        // A negative vocabulary size marks a separate head in legacy files.
        let vocab = int(first + 5);
        ensure!(
            vocab != 0 && vocab.unsigned_abs() < 1 << 24,
            "byte {}: vocabulary of {vocab}",
            4 * (first + 5)
        );
        let file = Self {
            dim: size(0, "dim", 1 << 16)?,
            hidden: size(1, "hidden_dim", 1 << 20)?,
            layers: size(2, "n_layers", 1 << 10)?,
            heads: size(3, "n_heads", 1 << 10)?,
            kv_heads: size(4, "n_kv_heads", 1 << 10)?,
            vocab: vocab.unsigned_abs() as usize,
            seq: size(6, "max_seq_len", 1 << 24)?,
            is_tied: if is_legacy { vocab > 0 } else { data[36] != 0 },
            is_legacy,
            weights: &data[if is_legacy { 28 } else { HEADER }..],
        };
        ensure!(
            file.dim.is_multiple_of(file.heads) && file.heads.is_multiple_of(file.kv_heads),
            "dim {} with {} heads and {} key/value heads",
            file.dim,
            file.heads,
            file.kv_heads
        );
        let expected = 4 * file.blocks().iter().map(|(_, n)| n).sum::<usize>();
        ensure!(
            file.weights.len() == expected,
            "{} bytes of weights, expected {expected} for dim {}, {} layers, vocabulary {}\n\
             hint: the file is truncated or of another format",
            file.weights.len(),
            file.dim,
            file.layers,
            file.vocab
        );
        Ok(file)
    }

    /// Blocks of the file in order, with their number of elements. A name with `*` holds all layers.
    fn blocks(&self) -> Vec<(&'static str, usize)> {
        let Self { dim, hidden, layers, vocab, .. } = *self;
        let kv = dim / self.heads * self.kv_heads;
        let embedding = ("model.embed_tokens", vocab * dim);
        let attention_norm = ("model.layers.*.input_layernorm", layers * dim);
        let ffn_norm = ("model.layers.*.post_attention_layernorm", layers * dim);
        let norm = ("model.norm", dim);
        let attention = [
            ("model.layers.*.self_attn.q_proj", layers * dim * dim),
            ("model.layers.*.self_attn.k_proj", layers * kv * dim),
            ("model.layers.*.self_attn.v_proj", layers * kv * dim),
            ("model.layers.*.self_attn.o_proj", layers * dim * dim),
        ];
        let ffn = [
            ("model.layers.*.mlp.gate_proj", layers * hidden * dim),
            ("model.layers.*.mlp.down_proj", layers * dim * hidden),
            ("model.layers.*.mlp.up_proj", layers * hidden * dim),
        ];
        let mut out = Vec::new();
        if self.is_legacy {
            out.extend([embedding, attention_norm]);
            out.extend(attention);
            out.push(ffn_norm);
            out.extend(ffn);
            // Rotary tables, which the configuration implies.
            out.extend([norm, ("", self.seq * dim / self.heads)]);
        } else {
            out.extend([attention_norm, ffn_norm, norm, embedding]);
            out.extend(attention);
            out.extend(ffn);
        }
        if !self.is_tied {
            out.push(("lm_head", vocab * dim));
        }
        out
    }

    fn config(&self) -> ModelConfig {
        ModelConfig {
            intermediate_size: self.hidden,
            max_position_embeddings: self.seq,
            tie_word_embeddings: self.is_tied,
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
            ..ModelConfig::small(
                Architecture::Llama,
                self.vocab,
                self.dim,
                self.layers,
                self.heads,
                self.kv_heads,
            )
        }
    }

    /// The tensors under Hugging Face's names, in its order.
    fn tensors(&self, config: &ModelConfig) -> Vec<NamedTensor<'a>> {
        let mut at = 0;
        let blocks: Vec<(&str, &[u8])> = self
            .blocks()
            .into_iter()
            .map(|(name, n)| {
                at += 4 * n;
                (name, &self.weights[at - 4 * n..at])
            })
            .collect();
        let find = |name: &str| blocks.iter().find(|(n, _)| *n == name).expect("every tensor has a block").1;
        let tensor = |(name, shape): (String, Vec<usize>)| {
            let module = name.strip_suffix(".weight").expect("weights only: no biases");
            let data = match module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
                Some((layer, rest)) => {
                    let layer: usize = layer.parse().expect("our own names");
                    let all = find(&format!("model.layers.*.{rest}"));
                    let size = all.len() / self.layers;
                    &all[layer * size..(layer + 1) * size]
                }
                None => find(module),
            };
            let rotated = module.ends_with("q_proj") || module.ends_with("k_proj");
            let data = if rotated {
                Cow::Owned(halves_from_pairs(data, self.dim / self.heads, 4 * self.dim))
            } else {
                Cow::Borrowed(data)
            };
            (name, checkpoint::DType::F32, shape, data)
        };
        crate::weights::tensor_shapes(config).into_iter().map(tensor).collect()
    }
}

/// Reorders the rows (of `row` bytes) of each head: `0, 2, 4, …, 1, 3, 5, …`.
fn halves_from_pairs(data: &[u8], head_dim: usize, row: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    for head in data.chunks_exact(head_dim * row) {
        for i in (0..head_dim).step_by(2).chain((1..head_dim).step_by(2)) {
            out.extend_from_slice(&head[i * row..(i + 1) * row]);
        }
    }
    out
}

/// Brings the tokenizer along as `tokenizer.model`, with the settings llama2.c implies.
fn save_tokenizer(path: &Path, vocab: usize, out: &Path) -> Result<()> {
    if path.is_dir() {
        return copy_tokenizer(path, out);
    }
    let data = std::fs::read(path).with_context(|| path.display().to_string())?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("json") => write_atomic(&out.join("tokenizer.json"), &data)?,
        Some("bin") => {
            let model = sentencepiece::from_llama2c(&data, vocab)
                .with_context(|| format!("{}: not a llama2.c tokenizer", path.display()))?;
            write_atomic(&out.join("tokenizer.model"), &model)?;
        }
        _ => write_atomic(&out.join("tokenizer.model"), &data)?,
    }
    write_json(
        &out.join("tokenizer_config.json"),
        &json!({
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": true,
            "add_eos_token": false,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "clean_up_tokenization_spaces": false,
            "legacy": true,
        }),
    )?;
    Ok(())
}
