//! From a Hugging Face checkpoint to a GGUF file that llama.cpp and [`crate::Engine`] load.
//!
//! Streams: a few thousand rows are read, reordered, encoded on all cores and written, so
//! memory stays small whatever the model's size. Types follow llama.cpp's recipes (Q4_K is
//! its Q4_K_M): the output head and the embedding get Q6_K, so do some of the layers'
//! values and down projections; rows that are not whole blocks get the next larger type.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use intern_format::checkpoint::{Checkpoint, TensorView};
use intern_format::gguf::{Array, GgufWriter, Value};
use intern_format::provenance::{self, Provenance};
use intern_kernels::quant::{self, BlockType};
use intern_model::ModelConfig;
use intern_model::weights::{QkvNames, layer_names, outer_names};
use intern_progress::Progress;
use intern_tokenizer::Tokenizer;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::gguf_model::{self, EOS_IDS, ggml_type, is_interleaved};
use crate::weights::{HeadOffsets, checkpoint_eos_ids};

/// What most matrices become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(non_camel_case_types, reason = "ggml's own names")]
pub enum QuantType {
    /// 16-bit floats.
    F16,
    /// 8.5 bits per weight, practically lossless.
    Q8_0,
    /// 4.5 bits per weight, one scale per 32.
    Q4_0,
    /// 4.5 bits per weight in k-quant blocks, with Q6_K where it matters (llama.cpp's Q4_K_M).
    #[serde(alias = "q4_k_m", alias = "Q4_K")]
    Q4_K,
}

impl QuantType {
    /// Every type.
    pub const ALL: [Self; 4] = [Self::F16, Self::Q8_0, Self::Q4_0, Self::Q4_K];

    fn block_type(self) -> BlockType {
        match self {
            Self::F16 => BlockType::F16,
            Self::Q8_0 => BlockType::Q8_0,
            Self::Q4_0 => BlockType::Q4_0,
            Self::Q4_K => BlockType::Q4K,
        }
    }

    /// llama.cpp's number for the mixture, `general.file_type`.
    fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4_K => 15,
        }
    }
}

impl fmt::Display for QuantType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.block_type().name().to_lowercase())
    }
}

impl FromStr for QuantType {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let name = text.to_lowercase();
        let name = if name == "q4_k_m" { "q4_k" } else { &name };
        let found = Self::ALL.into_iter().find(|t| t.to_string() == name);
        let all: Vec<String> = Self::ALL.iter().map(ToString::to_string).collect();
        found.with_context(|| format!("unknown quantization type {text}\nhint: one of {}", all.join(", ")))
    }
}

/// One run of `intern serve quantize`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizeConfig {
    /// Checkpoint directory with a tokenizer.
    pub model: PathBuf,
    /// What most matrices become.
    pub quant: QuantType,
    /// `general.name` of the file; the directory's name if absent.
    #[serde(default)]
    pub name: Option<String>,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The file.
    pub out: PathBuf,
    /// `general.architecture`.
    pub architecture: String,
    /// Weights, a tied head counted once.
    pub parameters: u64,
    /// Bytes of the checkpoint's tensors.
    pub bytes_before: u64,
    /// Bytes of the file.
    pub bytes_after: u64,
    /// Tensors per type.
    pub tensors: BTreeMap<String, u64>,
    /// Deviations from the asked-for type.
    pub warnings: Vec<String>,
}

/// A tensor to write.
struct Plan {
    name: String,
    /// Name in the checkpoint.
    source: String,
    shape: Vec<usize>,
    ty: BlockType,
    /// Rows of the source in the order of the output; identity if absent.
    order: Option<Vec<usize>>,
}

/// Writes `out_file`. Does nothing if it is there already, made from the same bytes in the same way.
///
/// # Errors
/// If the checkpoint or its tokenizer cannot be read, or the file cannot be written.
pub fn run(config: &QuantizeConfig, out_file: &Path) -> Result<Summary> {
    let inputs =
        BTreeMap::from([(config.model.display().to_string(), provenance::hash_path(&config.model)?)]);
    let resolved = serde_json::to_value(config)?;
    if out_file.is_file()
        && let Ok(Some(old)) = provenance::read(out_file)
        && (&old.config, &old.inputs, old.version.as_str()) == (&resolved, &inputs, env!("CARGO_PKG_VERSION"))
        && let Some(summary) = old.counts.get("summary")
    {
        return Ok(serde_json::from_value(summary.clone())?);
    }
    if out_file.is_file() {
        provenance::clear(out_file)?;
    }
    let summary = write(config, out_file)?;
    let counts = BTreeMap::from([("summary".to_owned(), serde_json::to_value(&summary)?)]);
    let name = out_file.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let record = Provenance {
        command: "serve quantize".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config: resolved,
        inputs,
        outputs: BTreeMap::from([(name, provenance::hash_path(out_file)?)]),
        counts,
    };
    provenance::write(out_file, &record)?;
    Ok(summary)
}

fn write(run: &QuantizeConfig, out_file: &Path) -> Result<Summary> {
    let dir = run.model.display();
    let checkpoint = Checkpoint::open(&run.model)?;
    let config = ModelConfig::from_json(checkpoint.config()).with_context(|| dir.to_string())?;
    let tokenizer = Tokenizer::from_path(&run.model).with_context(|| dir.to_string())?;
    ensure!(
        tokenizer.vocab_size() <= config.vocab_size,
        "{dir}: the tokenizer has {} tokens, the model {}\nhint: do they belong together?",
        tokenizer.vocab_size(),
        config.vocab_size
    );
    let (plans, warnings) = plan(&config, run.quant);

    let mut writer = GgufWriter::create(out_file)?;
    let default_name = || {
        let path = run.model.canonicalize().unwrap_or_else(|_| run.model.clone());
        path.file_name().map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
    };
    let name = run.name.clone().unwrap_or_else(default_name);
    for (key, value) in gguf_model::metadata(&config, &name) {
        writer.metadata(&key, value);
    }
    writer.metadata("general.file_type", Value::U32(run.quant.file_type()));
    writer.metadata("general.quantization_version", Value::U32(2));
    for (key, value) in tokenizer.gguf_metadata()? {
        writer.metadata(&key, pad_vocabulary(&key, value, config.vocab_size));
    }
    let eos_ids = checkpoint_eos_ids(&checkpoint, &config);
    if !eos_ids.is_empty() {
        writer.metadata(EOS_IDS, Value::Array(Array::U32(eos_ids)));
    }

    let factors = gguf_model::rope_factors(&config);
    if let Some(factors) = &factors {
        writer.declare("rope_freqs.weight", &[factors.len()], ggml_type(BlockType::F32))?;
    }
    for plan in &plans {
        let view = checkpoint.tensor(&plan.source)?;
        let rows = plan.order.as_ref().map_or(plan.shape[0], |o| o.iter().max().map_or(0, |m| m + 1));
        ensure!(
            view.shape.len() == plan.shape.len()
                && view.shape[0] >= rows
                && view.shape[1..] == plan.shape[1..],
            "{dir}: tensor {} has shape {:?}, expected {:?}\n\
             hint: config.json and the weights do not belong together",
            plan.source,
            view.shape,
            plan.shape
        );
        writer.declare(&plan.name, &plan.shape, ggml_type(plan.ty))?;
    }
    if let Some(factors) = &factors {
        writer.write_tensor("rope_freqs.weight", bytemuck::cast_slice(factors))?;
    }
    let progress = Progress::new("quantize", config.num_parameters() as u64, "weights");
    let mut tensors: BTreeMap<String, u64> = BTreeMap::new();
    for plan in &plans {
        progress.set_message(&plan.name);
        encode(plan, &checkpoint.tensor(&plan.source)?, &mut writer, &progress)?;
        *tensors.entry(plan.ty.name().to_owned()).or_default() += 1;
    }
    writer.finish()?;
    progress.finish();

    let before =
        checkpoint.names().map(|n| Ok(checkpoint.tensor(n)?.data.len() as u64)).sum::<Result<u64>>()?;
    Ok(Summary {
        out: out_file.to_path_buf(),
        architecture: gguf_model::architecture(&config).to_owned(),
        parameters: config.num_parameters() as u64,
        bytes_before: before,
        bytes_after: std::fs::metadata(out_file).with_context(|| out_file.display().to_string())?.len(),
        tensors,
        warnings,
    })
}

/// What a matrix is for, as far as its type depends on it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Embedding or output head.
    Outer,
    /// A matrix small errors in which spread: values and down projections of some layers.
    Sensitive,
    Plain,
}

/// The type for rows of `cols` elements, and whether it is the one first wanted.
fn choose(quant: QuantType, role: Role, cols: usize) -> (BlockType, BlockType) {
    let wanted = match (quant, role) {
        (QuantType::Q4_0 | QuantType::Q4_K, Role::Outer) | (QuantType::Q4_K, Role::Sensitive) => {
            BlockType::Q6K
        }
        _ => quant.block_type(),
    };
    let mut ty = wanted;
    if !cols.is_multiple_of(ty.block_size()) {
        ty = match ty {
            BlockType::Q4K => BlockType::Q5_0,
            BlockType::Q6K => BlockType::Q8_0,
            other => other,
        };
    }
    if !cols.is_multiple_of(ty.block_size()) {
        ty = BlockType::F16;
    }
    (ty, wanted)
}

/// Every tensor of the file in order, and warnings about types.
fn plan(config: &ModelConfig, quant: QuantType) -> (Vec<Plan>, Vec<String>) {
    let (hidden, inner, d, n) =
        (config.hidden_size, config.intermediate_size, config.head_dim, config.num_layers);
    let mut plans = Vec::new();
    let mut fallbacks: BTreeMap<(usize, &str, &str), usize> = BTreeMap::new();
    let mut matrix = |plans: &mut Vec<Plan>, name: String, source: &str, shape: [usize; 2], role, order| {
        let (ty, wanted) = choose(quant, role, shape[1]);
        if ty != wanted {
            *fallbacks.entry((shape[1], wanted.name(), ty.name())).or_default() += 1;
        }
        plans.push(Plan {
            name: name + ".weight",
            source: format!("{source}.weight"),
            shape: shape.into(),
            ty,
            order,
        });
    };
    let vector = |plans: &mut Vec<Plan>, name: String, source: String, len: usize, order| {
        plans.push(Plan { name, source, shape: vec![len], ty: BlockType::F32, order });
    };

    let outer = outer_names(config.arch);
    let head_shape = [config.vocab_size, hidden];
    matrix(&mut plans, "token_embd".into(), outer.embedding, head_shape, Role::Outer, None);
    let interleaved = is_interleaved(gguf_model::architecture(config));
    for i in 0..n {
        let names = layer_names(config.arch, i);
        let at = |part: &str| format!("blk.{i}.{part}");
        // llama.cpp's rule for "more bits": the first and last eighth, and every third between.
        let more = i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
        let sensitive = if more { Role::Sensitive } else { Role::Plain };
        vector(&mut plans, at("attn_norm.weight"), format!("{}.weight", names.attention_norm), hidden, None);
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
            let role = if slot == 2 { sensitive } else { Role::Plain };
            matrix(&mut plans, at(part), source, [rows, hidden], role, Some(order.clone()));
            if config.attention_bias {
                vector(&mut plans, at(part) + ".bias", format!("{source}.bias"), rows, Some(order));
            }
        }
        if let Some((q, k)) = &names.qk_norm {
            vector(&mut plans, at("attn_q_norm.weight"), format!("{q}.weight"), d, None);
            vector(&mut plans, at("attn_k_norm.weight"), format!("{k}.weight"), d, None);
        }
        let attended = config.num_heads * d;
        matrix(&mut plans, at("attn_output"), &names.o, [hidden, attended], Role::Plain, None);
        if config.output_bias {
            vector(&mut plans, at("attn_output.bias"), format!("{}.bias", names.o), hidden, None);
        }
        vector(&mut plans, at("ffn_norm.weight"), format!("{}.weight", names.ffn_norm), hidden, None);
        for (part, source, shape, role) in [
            ("ffn_gate", &names.gate, [inner, hidden], Role::Plain),
            ("ffn_up", &names.up, [inner, hidden], Role::Plain),
            ("ffn_down", &names.down, [hidden, inner], sensitive),
        ] {
            matrix(&mut plans, at(part), source, shape, role, None);
            if config.mlp_bias {
                vector(&mut plans, at(part) + ".bias", format!("{source}.bias"), shape[0], None);
            }
        }
    }
    vector(&mut plans, "output_norm.weight".into(), format!("{}.weight", outer.norm), hidden, None);
    if !config.tie_word_embeddings {
        matrix(&mut plans, "output".into(), outer.head, head_shape, Role::Outer, None);
    }
    let warnings = fallbacks
        .into_iter()
        .map(|((cols, wanted, used), count)| {
            format!("{count} matrices with rows of {cols} weights are {used}: not whole blocks of {wanted}")
        })
        .collect();
    (plans, warnings)
}

/// Source rows of heads starting at `heads`, each reordered for rotary pairs `(2i, 2i + 1)` if asked.
fn head_order(heads: &[usize], d: usize, interleave: bool) -> Vec<usize> {
    let within = |i: usize| if interleave { i % 2 * (d / 2) + i / 2 } else { i };
    heads.iter().flat_map(|&start| (0..d).map(move |i| start + within(i))).collect()
}

/// Weights encoded at once; bounds memory.
const CHUNK: usize = 1 << 22;

/// Reads, reorders, encodes and writes one tensor.
fn encode(plan: &Plan, view: &TensorView, writer: &mut GgufWriter, progress: &Progress) -> Result<()> {
    let rows = plan.shape[0];
    let cols: usize = plan.shape[1..].iter().product();
    let source_bytes = cols * view.dtype.size();
    let row_bytes = plan.ty.row_bytes(cols);
    let chunk_rows = (CHUNK / cols.max(1)).max(1);
    let mut first = 0;
    while first < rows {
        let last = rows.min(first + chunk_rows);
        let mut out = vec![0u8; (last - first) * row_bytes];
        out.par_chunks_mut(row_bytes.max(1)).enumerate().try_for_each(|(i, out)| {
            let row = plan.order.as_ref().map_or(first + i, |order| order[first + i]);
            let data = &view.data[row * source_bytes..(row + 1) * source_bytes];
            let values = TensorView { dtype: view.dtype, shape: vec![cols], data }.to_f32();
            if let Some(bad) = values.iter().position(|x| !x.is_finite()) {
                bail!(
                    "tensor {}: element {bad} of row {row} is {}, expected a finite number\n\
                     hint: the checkpoint is damaged, or its training diverged",
                    plan.source,
                    values[bad]
                );
            }
            quant::quantize(plan.ty, &values, out);
            Ok(())
        })?;
        writer.append(&out)?;
        progress.inc(((last - first) * cols) as u64);
        first = last;
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_llama_cpps_choice() {
        use BlockType as B;
        for (quant, role, cols, want) in [
            (QuantType::Q4_K, Role::Plain, 512, B::Q4K),
            (QuantType::Q4_K, Role::Sensitive, 512, B::Q6K),
            (QuantType::Q4_K, Role::Plain, 96, B::Q5_0),
            (QuantType::Q4_K, Role::Outer, 96, B::Q8_0),
            (QuantType::Q4_K, Role::Plain, 172, B::F16),
            (QuantType::Q4_0, Role::Sensitive, 96, B::Q4_0),
            (QuantType::Q4_0, Role::Outer, 512, B::Q6K),
            (QuantType::Q8_0, Role::Outer, 512, B::Q8_0),
            (QuantType::F16, Role::Outer, 3, B::F16),
        ] {
            assert_eq!(choose(quant, role, cols).0, want, "{quant} {cols}");
        }
    }

    #[test]
    fn names_are_read_in_any_case() {
        for ty in QuantType::ALL {
            assert_eq!(ty.to_string().to_uppercase().parse::<QuantType>().unwrap(), ty);
            let json = serde_json::to_value(ty).unwrap();
            assert_eq!(json, ty.to_string());
            assert_eq!(serde_json::from_value::<QuantType>(json).unwrap(), ty);
        }
        assert_eq!("Q4_K_M".parse::<QuantType>().unwrap(), QuantType::Q4_K);
        assert!("q3".parse::<QuantType>().unwrap_err().to_string().contains("hint: one of f16"));
    }

    #[test]
    fn heads_are_reordered_for_rotary_pairs() {
        assert_eq!(head_order(&[8, 0], 4, true), [8, 10, 9, 11, 0, 2, 1, 3]);
        assert_eq!(head_order(&[4], 4, false), [4, 5, 6, 7]);
    }
}
