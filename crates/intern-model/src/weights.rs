//! Which tensors a checkpoint holds, how each family calls them, and how `wqkv` is laid out.
//!
//! Shared with the inference engine; knows names and row orders, not numbers of any type.
//! InternLM2's `wqkv` stacks, for each key/value head, its query heads, its key and its value.

use crate::config::{Architecture, ModelConfig};

/// Names of the tensors outside the layers, without `.weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterNames {
    /// Token embedding, `(vocab, hidden)`.
    pub embedding: &'static str,
    /// Final RMSNorm, `(hidden,)`.
    pub norm: &'static str,
    /// Output head, `(vocab, hidden)`; absent from the checkpoint when tied.
    pub head: &'static str,
}

/// Module names of one layer, without `.weight` or `.bias`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerNames {
    /// RMSNorm before attention.
    pub attention_norm: String,
    /// Query, key and value projections.
    pub qkv: QkvNames,
    /// Output projection of attention, `(hidden, heads * head_dim)`.
    pub o: String,
    /// RMSNorm over each query head and each key head (Qwen3).
    pub qk_norm: Option<(String, String)>,
    /// RMSNorm before the feed-forward network.
    pub ffn_norm: String,
    /// Gate projection, `(intermediate, hidden)`.
    pub gate: String,
    /// Up projection, `(intermediate, hidden)`.
    pub up: String,
    /// Down projection, `(hidden, intermediate)`.
    pub down: String,
}

/// Module names of the query, key and value projections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QkvNames {
    /// One tensor, grouped per key/value head.
    Fused(String),
    /// Three tensors: query, key, value.
    Separate([String; 3]),
}

/// The tensors outside the layers of family `arch`.
#[must_use]
pub fn outer_names(arch: Architecture) -> OuterNames {
    match arch {
        Architecture::InternLm2 => {
            OuterNames { embedding: "model.tok_embeddings", norm: "model.norm", head: "output" }
        }
        _ => OuterNames { embedding: "model.embed_tokens", norm: "model.norm", head: "lm_head" },
    }
}

/// The modules of layer `layer` in family `arch`.
#[must_use]
pub fn layer_names(arch: Architecture, layer: usize) -> LayerNames {
    let at = |name: &str| format!("model.layers.{layer}.{name}");
    match arch {
        Architecture::InternLm2 => LayerNames {
            attention_norm: at("attention_norm"),
            qkv: QkvNames::Fused(at("attention.wqkv")),
            o: at("attention.wo"),
            qk_norm: None,
            ffn_norm: at("ffn_norm"),
            gate: at("feed_forward.w1"),
            up: at("feed_forward.w3"),
            down: at("feed_forward.w2"),
        },
        _ => LayerNames {
            attention_norm: at("input_layernorm"),
            qkv: QkvNames::Separate([at("self_attn.q_proj"), at("self_attn.k_proj"), at("self_attn.v_proj")]),
            o: at("self_attn.o_proj"),
            qk_norm: (arch == Architecture::Qwen3).then(|| (at("self_attn.q_norm"), at("self_attn.k_norm"))),
            ffn_norm: at("post_attention_layernorm"),
            gate: at("mlp.gate_proj"),
            up: at("mlp.up_proj"),
            down: at("mlp.down_proj"),
        },
    }
}

/// Every tensor of the checkpoint with its shape, in the order they are created and saved.
#[must_use]
pub fn tensor_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let mut out: Vec<(String, Vec<usize>)> = Vec::new();
    let outer = outer_names(config.arch);
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q, kv) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
    out.push((format!("{}.weight", outer.embedding), vec![config.vocab_size, hidden]));
    for layer in 0..config.num_layers {
        let names = layer_names(config.arch, layer);
        out.push((format!("{}.weight", names.attention_norm), vec![hidden]));
        match &names.qkv {
            QkvNames::Fused(wqkv) => linear(&mut out, wqkv, q + 2 * kv, hidden, config.attention_bias),
            QkvNames::Separate(qkv) => {
                for (name, rows) in qkv.iter().zip([q, kv, kv]) {
                    linear(&mut out, name, rows, hidden, config.attention_bias);
                }
            }
        }
        if let Some((q_norm, k_norm)) = &names.qk_norm {
            out.push((format!("{q_norm}.weight"), vec![config.head_dim]));
            out.push((format!("{k_norm}.weight"), vec![config.head_dim]));
        }
        linear(&mut out, &names.o, hidden, q, config.output_bias);
        out.push((format!("{}.weight", names.ffn_norm), vec![hidden]));
        linear(&mut out, &names.gate, inner, hidden, config.mlp_bias);
        linear(&mut out, &names.up, inner, hidden, config.mlp_bias);
        linear(&mut out, &names.down, hidden, inner, config.mlp_bias);
    }
    out.push((format!("{}.weight", outer.norm), vec![hidden]));
    if !config.tie_word_embeddings {
        out.push((format!("{}.weight", outer.head), vec![config.vocab_size, hidden]));
    }
    out
}

fn linear(out: &mut Vec<(String, Vec<usize>)>, name: &str, rows: usize, columns: usize, bias: bool) {
    out.push((format!("{name}.weight"), vec![rows, columns]));
    if bias {
        out.push((format!("{name}.bias"), vec![rows]));
    }
}

/// Rows of a fused `wqkv` in the order query, key, value: `order[r]` is the fused row of row `r`.
fn wqkv_rows(config: &ModelConfig) -> [Vec<usize>; 3] {
    let (d, kv) = (config.head_dim, config.num_kv_heads);
    let per_group = config.num_heads / kv; // query heads per key/value head
    let group = (per_group + 2) * d; // rows of one group
    let rows = |group_idx: usize, slot: usize| (0..d).map(move |i| group_idx * group + slot * d + i);
    let q = (0..kv).flat_map(|g| (0..per_group).flat_map(move |s| rows(g, s))).collect();
    let k = (0..kv).flat_map(|g| rows(g, per_group)).collect();
    let v = (0..kv).flat_map(|g| rows(g, per_group + 1)).collect();
    [q, k, v]
}

/// Splits a fused `wqkv` of `(heads + 2 kv_heads) * head_dim` rows into query, key and value rows.
///
/// `columns` is the row length: `hidden_size` for the weight, 1 for the bias, the rank for LoRA's B.
/// Works on any element type (f32, raw u16, …). Panics when `fused` has another size.
#[must_use]
pub fn split_wqkv<T: Copy>(config: &ModelConfig, fused: &[T], columns: usize) -> [Vec<T>; 3] {
    let rows = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim;
    assert_eq!(fused.len(), rows * columns, "wqkv holds (heads + 2 kv_heads) * head_dim rows");
    wqkv_rows(config)
        .map(|order| order.iter().flat_map(|r| &fused[r * columns..(r + 1) * columns]).copied().collect())
}

/// The inverse of [`split_wqkv`]: query, key and value rows into one fused tensor.
#[must_use]
pub fn fuse_wqkv<T: Copy>(config: &ModelConfig, q: &[T], k: &[T], v: &[T], columns: usize) -> Vec<T> {
    let (heads, kv, d) = (config.num_heads, config.num_kv_heads, config.head_dim);
    assert_eq!(q.len(), heads * d * columns, "query rows");
    assert_eq!(k.len(), kv * d * columns, "key rows");
    assert_eq!(v.len(), kv * d * columns, "value rows");
    let (block, per_group) = (d * columns, heads / kv);
    let mut fused = Vec::with_capacity(q.len() + k.len() + v.len());
    for g in 0..kv {
        fused.extend_from_slice(&q[g * per_group * block..(g + 1) * per_group * block]);
        fused.extend_from_slice(&k[g * block..(g + 1) * block]);
        fused.extend_from_slice(&v[g * block..(g + 1) * block]);
    }
    fused
}
