//! How a decoder is called in a GGUF file: tensor names and metadata keys, both ways.
//!
//! Follows llama.cpp's `llama`, `internlm2`, `qwen2` and `qwen3` architectures. Files of the
//! first two hold query and key rows reordered for rotary pairs `(2i, 2i + 1)`; we rotate
//! that way instead of reordering back. Keys under `intern.` are ours and others ignore them:
//! what llama.cpp has no key for, such as dynamic NTK scaling.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use intern_format::gguf::{Array, GgmlType, Gguf, TensorInfo, Value};
use intern_kernels::pool::Pool;
use intern_kernels::quant::BlockType;
use intern_model::{Architecture, ModelConfig, RopeScaling, rope_inv_freq};

use crate::parallel::Share;
use crate::weights::{Bytes, HeadOffsets, Layer, Matrix, Stored, Weights};

/// The kernels' type for a file's type, if we compute with it.
pub(crate) fn block_type(ty: GgmlType) -> Option<BlockType> {
    Some(match ty {
        GgmlType::F32 => BlockType::F32,
        GgmlType::F16 => BlockType::F16,
        GgmlType::BF16 => BlockType::BF16,
        GgmlType::Q8_0 => BlockType::Q8_0,
        GgmlType::Q4_0 => BlockType::Q4_0,
        GgmlType::Q4_1 => BlockType::Q4_1,
        GgmlType::Q5_0 => BlockType::Q5_0,
        GgmlType::Q5_1 => BlockType::Q5_1,
        GgmlType::Q4_K => BlockType::Q4K,
        GgmlType::Q5_K => BlockType::Q5K,
        GgmlType::Q6_K => BlockType::Q6K,
        GgmlType::Q2_K => BlockType::Q2K,
        GgmlType::Q3_K => BlockType::Q3K,
        GgmlType::IQ4_NL => BlockType::Iq4Nl,
        GgmlType::MXFP4 => BlockType::Mxfp4,
        _ => return None,
    })
}

/// The file's type for a kernels' type.
pub(crate) fn ggml_type(ty: BlockType) -> GgmlType {
    match ty {
        BlockType::F32 => GgmlType::F32,
        BlockType::F16 => GgmlType::F16,
        BlockType::BF16 => GgmlType::BF16,
        BlockType::Q8_0 => GgmlType::Q8_0,
        BlockType::Q4_0 => GgmlType::Q4_0,
        BlockType::Q4_1 => GgmlType::Q4_1,
        BlockType::Q5_0 => GgmlType::Q5_0,
        BlockType::Q5_1 => GgmlType::Q5_1,
        BlockType::Q4K => GgmlType::Q4_K,
        BlockType::Q5K => GgmlType::Q5_K,
        BlockType::Q6K => GgmlType::Q6_K,
        BlockType::Q2K => GgmlType::Q2_K,
        BlockType::Q3K => GgmlType::Q3_K,
        BlockType::Iq4Nl => GgmlType::IQ4_NL,
        BlockType::Mxfp4 => GgmlType::MXFP4,
    }
}

/// `general.architecture` for a model. llama.cpp's `internlm2` knows no biases, its `llama`
/// does and computes the same.
pub(crate) fn architecture(config: &ModelConfig) -> &'static str {
    match config.arch {
        Architecture::InternLm2 if !config.attention_bias && !config.output_bias => "internlm2",
        Architecture::Qwen2 => "qwen2",
        Architecture::Qwen3 => "qwen3",
        Architecture::InternLm2 | Architecture::InternLm3 | Architecture::Llama | Architecture::Mistral => {
            "llama"
        }
    }
}

/// Whether files of this architecture hold query and key rows for interleaved rotary pairs.
pub(crate) fn is_interleaved(architecture: &str) -> bool {
    matches!(architecture, "llama" | "internlm2")
}

/// Key of our list of tokens that end a generation.
pub(crate) const EOS_IDS: &str = "intern.eos_token_ids";

/// What a file tells besides its weights.
pub(crate) struct GgufFacts {
    /// Tokens that end a generation.
    pub eos_ids: Vec<u32>,
    /// `general.name`.
    pub name: Option<String>,
}

/// Reads a share of the model of a GGUF file. Matrices the integer kernels know are packed and their pages
/// given back one by one; the others and the embedding stay mapped.
pub(crate) fn load(gguf: &Arc<Gguf>, pool: Option<&Pool>, share: Share) -> Result<(Weights, GgufFacts)> {
    let reader = Reader { gguf, path: gguf.path(), pool, share };
    let architecture = reader.string("general.architecture")?;
    let whole = read_config(&reader, &architecture)?;
    whole.validate().with_context(|| reader.path.display().to_string())?;
    let config = share.config(&whole)?;
    let (c, f, d) = (whole.hidden_size, whole.intermediate_size, whole.head_dim);
    let (q, kv) = (whole.num_heads * d, whole.num_kv_heads * d);

    // The largest matrix first, while nothing else takes memory.
    let head = match config.tie_word_embeddings {
        true => match reader.matrix("token_embd", config.vocab_size, c)? {
            Matrix::Packed(packed) => Some(Matrix::Packed(packed)),
            Matrix::Stored(_) => None,
        },
        false => Some(reader.matrix("output", config.vocab_size, c)?),
    };
    let mut layers = Vec::with_capacity(config.num_layers);
    for i in 0..config.num_layers {
        let name = |part: &str| format!("blk.{i}.{part}");
        let (mut qkv, mut qkv_bias, mut column) = (Vec::new(), Vec::new(), 0);
        for (part, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
            qkv.push((reader.matrix(&name(part), rows, c)?, column));
            qkv_bias.extend(share.of(reader.bias(&name(part), rows)?));
            column += share.range(rows).len();
        }
        ensure!(
            qkv_bias.is_empty() || qkv_bias.len() == column,
            "{}: layer {i} has biases for some of query, key and value only",
            reader.path.display()
        );
        let qk_norm = match reader.gguf.tensor(&name("attn_q_norm.weight")) {
            Some(_) => Some((
                reader.vector(&name("attn_q_norm.weight"), d)?,
                reader.vector(&name("attn_k_norm.weight"), d)?,
            )),
            None => None,
        };
        layers.push(Layer {
            attention_norm: reader.vector(&name("attn_norm.weight"), c)?,
            qkv,
            qkv_bias,
            qk_norm,
            o: reader.matrix(&name("attn_output"), c, q)?,
            o_bias: reader.bias(&name("attn_output"), c)?,
            ffn_norm: reader.vector(&name("ffn_norm.weight"), c)?,
            gate: reader.matrix(&name("ffn_gate"), f, c)?,
            gate_bias: share.of(reader.bias(&name("ffn_gate"), f)?),
            up: reader.matrix(&name("ffn_up"), f, c)?,
            up_bias: share.of(reader.bias(&name("ffn_up"), f)?),
            down: reader.matrix(&name("ffn_down"), c, f)?,
            down_bias: reader.bias(&name("ffn_down"), c)?,
        });
    }
    let rope_factors = match gguf.tensor("rope_freqs.weight") {
        Some(_) => reader.vector("rope_freqs.weight", d / 2)?,
        None => Vec::new(),
    };
    let weights = Weights {
        embedding: reader.stored("token_embd", config.vocab_size, c)?,
        norm: reader.vector("output_norm.weight", c)?,
        head,
        heads: HeadOffsets::separate(&config),
        interleaved: is_interleaved(&architecture),
        rope_factors,
        layers,
        config,
        whole,
        share,
    };
    let facts = GgufFacts {
        eos_ids: weights.config.eos_token_ids.clone(),
        name: gguf.get("general.name").and_then(Value::as_str).map(str::to_owned),
    };
    Ok((weights, facts))
}

fn read_config(reader: &Reader, architecture: &str) -> Result<ModelConfig> {
    let arch = match architecture {
        "llama" => Architecture::Llama,
        "internlm2" => Architecture::InternLm2,
        "qwen2" => Architecture::Qwen2,
        "qwen3" => Architecture::Qwen3,
        other => bail!(
            "{}: architecture {other} is not supported\nhint: llama, internlm2, qwen2 and qwen3 are",
            reader.path.display()
        ),
    };
    for key in ["expert_count", "attention.value_length_mla"] {
        let count = reader.gguf.get(&format!("{architecture}.{key}")).and_then(Value::as_u64).unwrap_or(0);
        ensure!(count == 0, "{}: {architecture}.{key} = {count} is not supported", reader.path.display());
    }
    let key = |name: &str| format!("{architecture}.{name}");
    let (gguf, hidden_size, num_heads) =
        (reader.gguf, reader.size(&key("embedding_length"))?, reader.size(&key("attention.head_count"))?);
    let optional = |name: &str| gguf.get(&key(name)).and_then(Value::as_u64).map(|n| n as usize);
    let number = |name: &str| gguf.get(&key(name)).and_then(Value::as_f64);
    let head_dim = optional("attention.key_length").unwrap_or(hidden_size / num_heads.max(1));
    for name in ["attention.value_length", "rope.dimension_count"] {
        let n = optional(name).unwrap_or(head_dim);
        ensure!(
            n == head_dim,
            "{}: {} is {n}, expected the head width {head_dim}",
            reader.path.display(),
            key(name)
        );
    }
    let context = reader.size(&key("context_length"))?;
    let embedding = reader.tensor("token_embd.weight")?;
    let has = |name: &str| gguf.tensor(name).is_some();
    Ok(ModelConfig {
        arch,
        vocab_size: embedding.shape[0],
        hidden_size,
        intermediate_size: reader.size(&key("feed_forward_length"))?,
        num_layers: reader.size(&key("block_count"))?,
        num_heads,
        num_kv_heads: optional("attention.head_count_kv").unwrap_or(num_heads),
        head_dim,
        max_position_embeddings: context,
        rms_norm_eps: number("attention.layer_norm_rms_epsilon").unwrap_or(1e-5),
        rope_theta: number("rope.freq_base").unwrap_or(10_000.0),
        rope_scaling: read_scaling(gguf, &key, context),
        sliding_window: optional("attention.sliding_window").filter(|&n| n > 0),
        max_window_layers: 0,
        tie_word_embeddings: !has("output.weight"),
        attention_bias: has("blk.0.attn_q.bias"),
        output_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_gate.bias"),
        bos_token_id: reader.token("tokenizer.ggml.bos_token_id"),
        eos_token_ids: reader.eos_ids(),
        pad_token_id: reader.token("tokenizer.ggml.padding_token_id"),
    })
}

fn read_scaling(gguf: &Gguf, key: &dyn Fn(&str) -> String, context: usize) -> RopeScaling {
    if let Some(factor) = gguf.get("intern.rope.dynamic_factor").and_then(Value::as_f64) {
        return RopeScaling::Dynamic { factor };
    }
    let number = |name: &str| gguf.get(&key(name)).and_then(Value::as_f64);
    let factor = number("rope.scaling.factor").unwrap_or(1.0);
    match gguf.get(&key("rope.scaling.type")).and_then(Value::as_str) {
        Some("linear") => RopeScaling::Linear { factor },
        Some("yarn") => RopeScaling::Yarn {
            factor,
            attention_factor: gguf.get("intern.rope.attention_factor").and_then(Value::as_f64),
            beta_fast: number("rope.scaling.yarn_beta_fast").unwrap_or(32.0),
            beta_slow: number("rope.scaling.yarn_beta_slow").unwrap_or(1.0),
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
            original_max_position_embeddings: number("rope.scaling.original_context_length")
                .map_or(context, |n| n as usize),
        },
        _ => RopeScaling::None,
    }
}

/// Typed access to a file, with errors that name it.
struct Reader<'a> {
    gguf: &'a Arc<Gguf>,
    path: &'a Path,
    pool: Option<&'a Pool>,
    share: Share,
}

impl Reader<'_> {
    fn string(&self, key: &str) -> Result<String> {
        let value = self.gguf.require(key)?;
        let text = value.as_str();
        Ok(text
            .with_context(|| format!("{}: {key} is {value}, expected text", self.path.display()))?
            .to_owned())
    }

    fn size(&self, key: &str) -> Result<usize> {
        let value = self.gguf.require(key)?;
        let n = value.as_u64().filter(|&n| n > 0 && n < 1 << 31);
        let n = n.with_context(|| {
            format!("{}: {key} is {value}, expected a size above zero", self.path.display())
        })?;
        Ok(n as usize)
    }

    fn token(&self, key: &str) -> Option<u32> {
        self.gguf.get(key).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok())
    }

    /// Our own list, else end of text and end of turn.
    fn eos_ids(&self) -> Vec<u32> {
        if let Some(Array::U32(ids)) = self.gguf.get(EOS_IDS).and_then(Value::as_array) {
            return ids.clone();
        }
        let keys = ["eos_token_id", "eot_token_id", "eom_token_id"];
        let mut ids: Vec<u32> =
            keys.iter().filter_map(|key| self.token(&format!("tokenizer.ggml.{key}"))).collect();
        ids.dedup();
        ids
    }

    fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        let path = self.path.display();
        let info = self.gguf.tensor(name).with_context(|| {
            format!("{path}: missing tensor {name}\nhint: the file may be a part of a split model; join the parts first")
        })?;
        ensure!(!info.shape.is_empty(), "{path}: tensor {name} is a scalar");
        Ok(info)
    }

    fn matrix(&self, module: &str, rows: usize, cols: usize) -> Result<Matrix> {
        let matrix = Matrix::new(self.pool, self.stored(module, rows, cols)?.part(self.share));
        if matches!(matrix, Matrix::Packed(_)) {
            self.gguf.release_tensor(self.tensor(&format!("{module}.weight"))?);
        }
        Ok(matrix)
    }

    fn stored(&self, module: &str, rows: usize, cols: usize) -> Result<Stored> {
        let info = self.tensor(&format!("{module}.weight"))?;
        self.check(info, &[rows, cols])?;
        let ty = block_type(info.ggml_type).with_context(|| {
            format!(
                "{}: tensor {} is {}, which is not supported\n\
                 hint: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K to Q6_K, IQ4_NL, MXFP4, F16, BF16 and F32 are",
                self.path.display(),
                info.name,
                info.ggml_type.name()
            )
        })?;
        Ok(Stored { ty, rows, cols, data: Bytes::part_of(self.gguf, |g| g.data(info)) })
    }

    fn bias(&self, module: &str, len: usize) -> Result<Vec<f32>> {
        let name = format!("{module}.bias");
        if self.gguf.tensor(&name).is_some() { self.vector(&name, len) } else { Ok(Vec::new()) }
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let info = self.tensor(name)?;
        self.check(info, &[len])?;
        let ty = block_type(info.ggml_type).with_context(|| {
            format!("{}: tensor {name} is {}", self.path.display(), info.ggml_type.name())
        })?;
        let mut out = vec![0.0; len];
        intern_kernels::quant::dequantize(ty, self.gguf.data(info), &mut out);
        Ok(out)
    }

    fn check(&self, info: &TensorInfo, expected: &[usize]) -> Result<()> {
        let path = self.path.display();
        ensure!(
            info.shape == expected,
            "{path}: tensor {} has shape {:?}, expected {expected:?}",
            info.name,
            info.shape
        );
        Ok(())
    }
}

/// Metadata of a model (the tokenizer's comes from `Tokenizer::gguf_metadata`).
pub(crate) fn metadata(config: &ModelConfig, name: &str) -> Vec<(String, Value)> {
    let architecture = architecture(config);
    let mut out = vec![
        ("general.architecture".to_owned(), Value::String(architecture.to_owned())),
        ("general.type".to_owned(), Value::String("model".to_owned())),
        ("general.name".to_owned(), Value::String(name.to_owned())),
    ];
    let mut put = |key: &str, value: Value| out.push((format!("{architecture}.{key}"), value));
    let size = |n: usize| Value::U32(n as u32);
    put("context_length", size(config.max_position_embeddings));
    put("embedding_length", size(config.hidden_size));
    put("block_count", size(config.num_layers));
    put("feed_forward_length", size(config.intermediate_size));
    put("vocab_size", size(config.vocab_size));
    put("attention.head_count", size(config.num_heads));
    put("attention.head_count_kv", size(config.num_kv_heads));
    put("attention.key_length", size(config.head_dim));
    put("attention.value_length", size(config.head_dim));
    put("attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps as f32));
    put("rope.dimension_count", size(config.head_dim));
    put("rope.freq_base", Value::F32(config.rope_theta as f32));
    if let Some(window) = config.window(config.num_layers - 1) {
        put("attention.sliding_window", size(window));
    }
    match &config.rope_scaling {
        RopeScaling::Linear { factor } => {
            put("rope.scaling.type", Value::String("linear".into()));
            put("rope.scaling.factor", Value::F32(*factor as f32));
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_position_embeddings, .. } => {
            put("rope.scaling.type", Value::String("yarn".into()));
            put("rope.scaling.factor", Value::F32(*factor as f32));
            put("rope.scaling.original_context_length", size(*original_max_position_embeddings));
            put("rope.scaling.yarn_beta_fast", Value::F32(*beta_fast as f32));
            put("rope.scaling.yarn_beta_slow", Value::F32(*beta_slow as f32));
        }
        // llama.cpp has no dynamic NTK; Llama 3's scaling travels as the tensor `rope_freqs`.
        RopeScaling::None | RopeScaling::Dynamic { .. } | RopeScaling::Llama3 { .. } => {}
    }
    match &config.rope_scaling {
        RopeScaling::Dynamic { factor } => {
            out.push(("intern.rope.dynamic_factor".to_owned(), Value::F32(*factor as f32)));
        }
        RopeScaling::Yarn { .. } => {
            let (_, attention_factor) = rope_inv_freq(config, config.max_position_embeddings);
            out.push(("intern.rope.attention_factor".to_owned(), Value::F32(attention_factor)));
        }
        _ => {}
    }
    out
}

/// Llama 3's scaling as divisors of the plain frequencies (`D / 2`), as llama.cpp wants it.
pub(crate) fn rope_factors(config: &ModelConfig) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { .. } = config.rope_scaling else { return None };
    let plain = ModelConfig { rope_scaling: RopeScaling::None, ..config.clone() };
    let (plain, scaled) = (rope_inv_freq(&plain, 0).0, rope_inv_freq(config, 0).0);
    Some(plain.iter().zip(&scaled).map(|(p, s)| p / s).collect())
}
