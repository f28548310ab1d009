//! What is quantized: a checkpoint directory or a GGUF file of floats, as tensors under their
//! names in the new file.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use intern_format::checkpoint::{Checkpoint, TensorView};
use intern_format::gguf::{Array, Gguf, Value};
use intern_kernels::quant::{self, BlockType};
use intern_model::ModelConfig;
use intern_model::weights::{QkvNames, layer_names, outer_names};
use intern_tokenizer::Tokenizer;

use super::types::Facts;
use crate::gguf_model::{self, EOS_IDS, block_type, is_interleaved};
use crate::packed4::Packed4;
use crate::rope::head_order;
use crate::weights::{HeadOffsets, checkpoint_eos_ids};

/// The tensor of Llama 3's rotary scaling.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// A tensor to write.
pub(super) struct Tensor {
    pub name: String,
    /// Its name in the input; the module's name for packed weights.
    pub source: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// Rows of the source in the order of the output; identity if absent.
    pub order: Option<Vec<usize>>,
}

impl Tensor {
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    pub fn is_matrix(&self) -> bool {
        self.shape.len() > 1
    }

    pub fn cols(&self) -> usize {
        self.shape[1..].iter().product()
    }

    pub fn source_row(&self, row: usize) -> usize {
        self.order.as_ref().map_or(row, |order| order[row])
    }
}

/// The numbers of a tensor, row by row.
pub(super) enum Rows<'a> {
    Floats(TensorView<'a>),
    Blocks { ty: BlockType, data: &'a [u8] },
    Packed(Packed4),
}

impl Rows<'_> {
    /// Row `row` of `cols` elements.
    pub fn row(&self, row: usize, cols: usize) -> Vec<f32> {
        match self {
            Self::Floats(view) => {
                let bytes = cols * view.dtype.size();
                let data = &view.data[row * bytes..(row + 1) * bytes];
                TensorView { dtype: view.dtype, shape: vec![cols], data }.to_f32()
            }
            Self::Blocks { ty, data } => {
                let bytes = ty.row_bytes(cols);
                let mut out = vec![0.0; cols];
                quant::dequantize(*ty, &data[row * bytes..(row + 1) * bytes], &mut out);
                out
            }
            Self::Packed(packed) => packed.row(row),
        }
    }
}

pub(super) enum Input {
    Checkpoint { checkpoint: Checkpoint, config: Box<ModelConfig>, tokenizer: Box<Tokenizer> },
    Gguf(Gguf),
}

impl Input {
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_file() {
            let gguf = Gguf::open(path)?;
            if let Some(info) = gguf.tensors().iter().find(|t| !is_float(block_type(t.ggml_type))) {
                bail!(
                    "{}: tensor {} is {} already\nhint: quantizing twice adds both errors; start from the \
                     checkpoint or a file of F32, F16 or BF16",
                    path.display(),
                    info.name,
                    info.ggml_type.name()
                );
            }
            return Ok(Self::Gguf(gguf));
        }
        let dir = path.display();
        let checkpoint = Checkpoint::open(path)?;
        let config = ModelConfig::from_json(checkpoint.config()).with_context(|| dir.to_string())?;
        let tokenizer = Tokenizer::from_path(path).with_context(|| dir.to_string())?;
        ensure!(
            tokenizer.vocab_size() <= config.vocab_size,
            "{dir}: the tokenizer has {} tokens, the model {}\nhint: do they belong together?",
            tokenizer.vocab_size(),
            config.vocab_size
        );
        Ok(Self::Checkpoint { checkpoint, config: Box::new(config), tokenizer: Box::new(tokenizer) })
    }

    pub fn facts(&self) -> Facts {
        match self {
            Self::Checkpoint { config, .. } => Facts {
                num_layers: config.num_layers,
                tied: config.tie_word_embeddings,
                grouped: config.num_kv_heads < config.num_heads,
                weighted: false,
            },
            Self::Gguf(gguf) => {
                let number = |key: &str| {
                    let key = format!("{}.{key}", self.architecture());
                    gguf.get(&key).and_then(Value::as_u64).unwrap_or(0) as usize
                };
                Facts {
                    num_layers: number("block_count"),
                    tied: gguf.tensor("output.weight").is_none(),
                    grouped: number("attention.head_count_kv") < number("attention.head_count"),
                    weighted: false,
                }
            }
        }
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> String {
        match self {
            Self::Checkpoint { config, .. } => gguf_model::architecture(config).to_owned(),
            Self::Gguf(gguf) => {
                gguf.get("general.architecture").and_then(Value::as_str).unwrap_or_default().to_owned()
            }
        }
    }

    /// Metadata but for the quantization's own; `name` is `general.name`.
    pub fn metadata(&self, name: Option<&str>) -> Result<Vec<(String, Value)>> {
        let (checkpoint, config, tokenizer) = match self {
            Self::Checkpoint { checkpoint, config, tokenizer } => (checkpoint, config, tokenizer),
            Self::Gguf(gguf) => {
                let own = ["general.file_type", "general.quantization_version", "general.alignment"];
                let kept = gguf.metadata().iter().filter(|(key, _)| !own.contains(&key.as_str()));
                return Ok(kept
                    .map(|(key, value)| match name {
                        Some(name) if key == "general.name" => (key.clone(), Value::String(name.to_owned())),
                        _ => (key.clone(), value.clone()),
                    })
                    .collect());
            }
        };
        let default_name = || {
            let dir = checkpoint.dir();
            let path = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
            path.file_name().map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
        };
        let mut out = gguf_model::metadata(config, &name.map_or_else(default_name, str::to_owned));
        for (key, value) in tokenizer.gguf_metadata()? {
            let value = pad_vocabulary(&key, value, config.vocab_size);
            out.push((key, value));
        }
        let eos_ids = checkpoint_eos_ids(checkpoint, config);
        if !eos_ids.is_empty() {
            out.push((EOS_IDS.to_owned(), Value::Array(Array::U32(eos_ids))));
        }
        Ok(out)
    }

    /// Divisors of the rotary frequencies, if any, for [`ROPE_FACTORS`].
    pub fn rope_factors(&self) -> Option<Vec<f32>> {
        match self {
            Self::Checkpoint { config, .. } => gguf_model::rope_factors(config),
            Self::Gguf(gguf) => {
                let info = gguf.tensor(ROPE_FACTORS)?;
                let mut factors = vec![0.0; info.shape.iter().product()];
                quant::dequantize(block_type(info.ggml_type)?, gguf.data(info), &mut factors);
                Some(factors)
            }
        }
    }

    /// Every tensor of the new file but the frequencies' divisors, in order.
    pub fn tensors(&self) -> Vec<Tensor> {
        match self {
            Self::Checkpoint { config, .. } => of_checkpoint(config),
            Self::Gguf(gguf) => gguf
                .tensors()
                .iter()
                .filter(|info| info.name != ROPE_FACTORS)
                .map(|info| Tensor {
                    name: info.name.clone(),
                    source: info.name.clone(),
                    shape: info.shape.clone(),
                    order: None,
                })
                .collect(),
        }
    }

    /// The numbers of `tensor`, checked against its shape.
    pub fn rows(&self, tensor: &Tensor) -> Result<Rows<'_>> {
        let (checkpoint, config) = match self {
            Self::Checkpoint { checkpoint, config, .. } => (checkpoint, config),
            Self::Gguf(gguf) => {
                let info = gguf.tensor(&tensor.source).context("a tensor of this very file")?;
                let ty = block_type(info.ggml_type).context("checked when the file was opened")?;
                return Ok(Rows::Blocks { ty, data: gguf.data(info) });
            }
        };
        if let Some(module) = tensor.source.strip_suffix(".weight")
            && Packed4::is_there(checkpoint, module)
        {
            let rows = match &tensor.order {
                Some(_) if config.has_fused_qkv() => {
                    (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
                }
                _ => tensor.rows(),
            };
            return Ok(Rows::Packed(Packed4::read(checkpoint, module, rows, tensor.cols())?));
        }
        let view = checkpoint.tensor(&tensor.source)?;
        let rows = tensor.order.as_ref().map_or(tensor.rows(), |o| o.iter().max().map_or(0, |m| m + 1));
        ensure!(
            view.shape.len() == tensor.shape.len()
                && view.shape[0] >= rows
                && view.shape[1..] == tensor.shape[1..],
            "{}: tensor {} has shape {:?}, expected {:?}\n\
             hint: config.json and the weights do not belong together",
            checkpoint.dir().display(),
            tensor.source,
            view.shape,
            tensor.shape
        );
        Ok(Rows::Floats(view))
    }

    /// Takes what was read so far out of memory.
    pub fn release(&self) {
        match self {
            Self::Checkpoint { checkpoint, .. } => checkpoint.release(),
            Self::Gguf(gguf) => gguf.release(),
        }
    }

    /// Bytes of all tensors.
    pub fn nbytes(&self) -> Result<u64> {
        match self {
            Self::Checkpoint { checkpoint, .. } => {
                checkpoint.names().map(|n| Ok(checkpoint.tensor(n)?.data.len() as u64)).sum()
            }
            Self::Gguf(gguf) => Ok(gguf.tensors().iter().map(|t| t.nbytes as u64).sum()),
        }
    }
}

fn is_float(ty: Option<BlockType>) -> bool {
    matches!(ty, Some(BlockType::F32 | BlockType::F16 | BlockType::BF16))
}

fn of_checkpoint(config: &ModelConfig) -> Vec<Tensor> {
    let (hidden, inner, d) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let mut out = Vec::new();
    let mut tensor = |name: String, source: String, shape: Vec<usize>, order: Option<Vec<usize>>| {
        out.push(Tensor { name, source, shape, order });
    };
    let weight = |name: &str| format!("{name}.weight");
    let bias = |name: &str| format!("{name}.bias");

    let outer = outer_names(config.arch);
    let head_shape = vec![config.vocab_size, hidden];
    tensor(weight("token_embd"), weight(outer.embedding), head_shape.clone(), None);
    let interleaved = is_interleaved(gguf_model::architecture(config));
    for i in 0..config.num_layers {
        let names = layer_names(config.arch, i);
        let at = |part: &str| format!("blk.{i}.{part}");
        tensor(at("attn_norm.weight"), weight(&names.attention_norm), vec![hidden], None);
        let offsets = match &names.qkv {
            QkvNames::Fused(_) => HeadOffsets::grouped(config),
            // Each tensor has its own rows.
            QkvNames::Separate(_) => {
                let from_zero = |heads: usize| (0..heads).map(|h| h * d).collect();
                let (q, kv): (_, Vec<usize>) = (from_zero(config.num_heads), from_zero(config.num_kv_heads));
                HeadOffsets { q, k: kv.clone(), v: kv }
            }
        };
        for (slot, (part, heads)) in
            [("attn_q", &offsets.q), ("attn_k", &offsets.k), ("attn_v", &offsets.v)].into_iter().enumerate()
        {
            let source = match &names.qkv {
                QkvNames::Fused(name) => name,
                QkvNames::Separate(names) => &names[slot],
            };
            let order = head_order(heads, d, interleaved && slot < 2);
            let rows = order.len();
            tensor(weight(&at(part)), weight(source), vec![rows, hidden], Some(order.clone()));
            if config.attention_bias {
                tensor(bias(&at(part)), bias(source), vec![rows], Some(order));
            }
        }
        if let Some((q, k)) = &names.qk_norm {
            tensor(at("attn_q_norm.weight"), weight(q), vec![d], None);
            tensor(at("attn_k_norm.weight"), weight(k), vec![d], None);
        }
        let attended = config.num_heads * d;
        tensor(at("attn_output.weight"), weight(&names.o), vec![hidden, attended], None);
        if config.output_bias {
            tensor(at("attn_output.bias"), bias(&names.o), vec![hidden], None);
        }
        tensor(at("ffn_norm.weight"), weight(&names.ffn_norm), vec![hidden], None);
        for (part, source, shape) in [
            ("ffn_gate", &names.gate, [inner, hidden]),
            ("ffn_up", &names.up, [inner, hidden]),
            ("ffn_down", &names.down, [hidden, inner]),
        ] {
            tensor(weight(&at(part)), weight(source), shape.into(), None);
            if config.mlp_bias {
                tensor(bias(&at(part)), bias(source), vec![shape[0]], None);
            }
        }
    }
    tensor("output_norm.weight".into(), weight(outer.norm), vec![hidden], None);
    if !config.tie_word_embeddings {
        tensor("output.weight".into(), weight(outer.head), head_shape, None);
    }
    out
}

/// Fills the vocabulary up to the model's rows; llama.cpp wants one token per row.
fn pad_vocabulary(key: &str, value: Value, vocab_size: usize) -> Value {
    /// "Unused" in llama.cpp's token types.
    const UNUSED: i32 = 5;
    match (key, value) {
        ("tokenizer.ggml.tokens", Value::Array(Array::String(mut tokens))) => {
            (tokens.len()..vocab_size).for_each(|i| tokens.push(format!("[PAD{i}]")));
            Value::Array(Array::String(tokens))
        }
        ("tokenizer.ggml.scores", Value::Array(Array::F32(mut scores))) => {
            scores.resize(scores.len().max(vocab_size), -1000.0);
            Value::Array(Array::F32(scores))
        }
        ("tokenizer.ggml.token_type", Value::Array(Array::I32(mut types))) => {
            types.resize(types.len().max(vocab_size), UNUSED);
            Value::Array(Array::I32(types))
        }
        (_, value) => value,
    }
}
