//! From a Hugging Face checkpoint, or a GGUF file of floats, to a GGUF file that llama.cpp and
//! [`crate::Engine`] load.
//!
//! Streams: a few thousand rows are read, reordered, encoded on all cores and written, so
//! memory stays small whatever the model's size. `input` says what is there, `types` what it
//! becomes (llama.cpp's mixtures); `importance` and `scale` look at activations, if asked.
//! Packed 4-bit checkpoints become Q4_0 or Q4_1 with the same integers.

mod importance;
mod input;
mod scale;
mod types;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use intern_format::gguf::{GgufWriter, Value};
use intern_format::provenance::{self, Provenance};
use intern_kernels::quant::{self, BlockType};
use intern_progress::Progress;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::importance::Importances;
use self::input::{Input, ROPE_FACTORS, Rows, Tensor};
use self::scale::Scaling;
pub use self::types::QuantType;
use self::types::{Facts, choose};
use crate::gguf_model::ggml_type;

/// One run of `intern serve quantize`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QuantizeConfig {
    /// Checkpoint directory with a tokenizer, or a GGUF file of F32, F16 or BF16.
    pub model: PathBuf,
    /// What most matrices become.
    pub quant: QuantType,
    /// `general.name` of the file; the directory's name if absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Calibration text: errors go where its activations are small (an importance matrix).
    #[serde(default)]
    pub imatrix: Option<PathBuf>,
    /// Tokens of the calibration text that are used.
    #[serde(default = "default_tokens")]
    pub imatrix_tokens: usize,
    /// Also scale columns by their activations before rounding (AWQ); needs `imatrix`.
    #[serde(default)]
    pub scale: bool,
}

fn default_tokens() -> usize {
    16_384
}

impl QuantizeConfig {
    /// Quantizes `model` without calibration.
    #[must_use]
    pub fn new(model: impl Into<PathBuf>, quant: QuantType) -> Self {
        let (model, imatrix_tokens) = (model.into(), default_tokens());
        Self { model, quant, name: None, imatrix: None, imatrix_tokens, scale: false }
    }
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
    /// Bytes of the input's tensors.
    pub bytes_before: u64,
    /// Bytes of the file.
    pub bytes_after: u64,
    /// Tensors per type.
    pub tensors: BTreeMap<String, u64>,
    /// Deviations from the asked-for type.
    pub warnings: Vec<String>,
}

/// Writes `out_file`. Does nothing if it is there already, made from the same bytes in the same way.
///
/// # Errors
/// If the model or the calibration text cannot be read, or the file cannot be written.
pub fn run(config: &QuantizeConfig, out_file: &Path) -> Result<Summary> {
    let input = Input::open(&config.model)?;
    let mut inputs = BTreeMap::new();
    for path in std::iter::once(&config.model).chain(&config.imatrix) {
        inputs.insert(path.display().to_string(), provenance::hash_path(path)?);
    }
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
    let summary = write(config, &input, out_file)?;
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

fn write(run: &QuantizeConfig, input: &Input, out_file: &Path) -> Result<Summary> {
    ensure!(
        !run.scale || run.imatrix.is_some(),
        "scaling looks at activations, and there is no calibration text\nhint: add --imatrix TEXT"
    );
    let measured = match &run.imatrix {
        Some(text) if run.quant.is_coarse() => Some(importance::measure(input, text, run.imatrix_tokens)?),
        _ => None,
    };
    let facts = Facts { weighted: measured.is_some(), ..input.facts() };
    let (plans, warnings) = plan(input, run.quant, facts)?;
    let scaling = match &measured {
        Some((importances, _)) if run.scale => scale::search(input, &plans, facts.num_layers, importances)?,
        _ => Scaling::default(),
    };

    let mut writer = GgufWriter::create(out_file)?;
    for (key, value) in input.metadata(run.name.as_deref())? {
        writer.metadata(&key, value);
    }
    writer.metadata("general.file_type", Value::U32(run.quant.file_type()));
    writer.metadata("general.quantization_version", Value::U32(2));
    if let (Some(text), Some((importances, tokens))) = (&run.imatrix, &measured) {
        let name = text.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        writer.metadata("quantize.imatrix.dataset", Value::String(name));
        writer.metadata("quantize.imatrix.entries_count", Value::U32(importances.len() as u32));
        writer.metadata("intern.quantize.imatrix_tokens", Value::U32(*tokens as u32));
    }
    let factors = input.rope_factors();
    if let Some(factors) = &factors {
        writer.declare(ROPE_FACTORS, &[factors.len()], ggml_type(BlockType::F32))?;
    }
    for (tensor, ty) in &plans {
        writer.declare(&tensor.name, &tensor.shape, ggml_type(*ty))?;
    }
    if let Some(factors) = &factors {
        writer.write_tensor(ROPE_FACTORS, bytemuck::cast_slice(factors))?;
    }
    let parameters = plans.iter().map(|(t, _)| (t.rows() * t.cols()) as u64).sum();
    let progress = Progress::new("quantize", parameters, "weights");
    let mut tensors: BTreeMap<String, u64> = BTreeMap::new();
    for (tensor, ty) in &plans {
        progress.set_message(&tensor.name);
        let encoder = Encoder::new(tensor, *ty, measured.as_ref().map(|m| &m.0), &scaling);
        encoder.write(input, &mut writer, &progress)?;
        *tensors.entry(ty.name().to_owned()).or_default() += 1;
    }
    writer.finish()?;
    progress.finish();

    Ok(Summary {
        out: out_file.to_path_buf(),
        architecture: input.architecture(),
        parameters,
        bytes_before: input.nbytes()?,
        bytes_after: std::fs::metadata(out_file).with_context(|| out_file.display().to_string())?.len(),
        tensors,
        warnings,
    })
}

/// Tensors with their types in the file, in order.
type Plans = Vec<(Tensor, BlockType)>;

/// Every tensor with its type, and warnings about types that are not those of the mixture.
fn plan(input: &Input, quant: QuantType, facts: Facts) -> Result<(Plans, Vec<String>)> {
    let mut plans = Vec::new();
    let mut fallbacks: BTreeMap<(usize, &str, &str), usize> = BTreeMap::new();
    for tensor in input.tensors() {
        if !tensor.is_matrix() {
            plans.push((tensor, BlockType::F32));
            continue;
        }
        let (wanted, mut ty) = choose(quant, &tensor.name, tensor.cols(), facts);
        if ty != wanted {
            *fallbacks.entry((tensor.cols(), wanted.name(), ty.name())).or_default() += 1;
        }
        // Integers that are there already are kept.
        if quant == QuantType::Q4_0
            && let Rows::Packed(packed) = input.rows(&tensor)?
        {
            ty = packed.block_type().unwrap_or(ty);
        }
        plans.push((tensor, ty));
    }
    let warnings = fallbacks
        .into_iter()
        .map(|((cols, wanted, used), count)| {
            format!("{count} matrices with rows of {cols} weights are {used}: not whole blocks of {wanted}")
        })
        .collect();
    Ok((plans, warnings))
}

/// Weights encoded at once; bounds memory.
const CHUNK: usize = 1 << 22;

/// How one tensor is written.
struct Encoder<'a> {
    tensor: &'a Tensor,
    ty: BlockType,
    importance: Option<Vec<f32>>,
    columns: Option<&'a Vec<f32>>,
    rows: Option<&'a Vec<f32>>,
}

impl<'a> Encoder<'a> {
    fn new(
        tensor: &'a Tensor,
        ty: BlockType,
        importances: Option<&Importances>,
        scaling: &'a Scaling,
    ) -> Self {
        let columns = scaling.columns.get(&tensor.name).map(|f| &**f);
        let mut importance = importances.and_then(|all| all.get(&tensor.name)).cloned();
        if let (Some(importance), Some(factors)) = (&mut importance, columns) {
            importance.iter_mut().zip(factors).for_each(|(i, f)| *i /= f * f);
        }
        Self { tensor, ty, importance, columns, rows: scaling.rows.get(&tensor.name).map(|f| &**f) }
    }

    /// Reads, reorders, encodes and writes.
    fn write(&self, input: &Input, writer: &mut GgufWriter, progress: &Progress) -> Result<()> {
        let source = &input.rows(self.tensor)?;
        let (rows, cols) = (self.tensor.rows(), self.tensor.cols());
        let row_bytes = self.ty.row_bytes(cols);
        let chunk_rows = (CHUNK / cols.max(1)).max(1);
        let mut first = 0;
        while first < rows {
            let last = rows.min(first + chunk_rows);
            let mut out = vec![0u8; (last - first) * row_bytes];
            out.par_chunks_mut(row_bytes.max(1))
                .enumerate()
                .try_for_each(|(i, out)| self.encode_row(source, first + i, out))?;
            writer.append(&out)?;
            input.release();
            progress.inc(((last - first) * cols) as u64);
            first = last;
        }
        Ok(())
    }

    fn encode_row(&self, source: &Rows, row: usize, out: &mut [u8]) -> Result<()> {
        let from = self.tensor.source_row(row);
        if let Rows::Packed(packed) = source
            && packed.block_type() == Some(self.ty)
            && self.columns.is_none()
            && self.rows.is_none()
        {
            packed.encode_row(self.ty, from, out);
            return Ok(());
        }
        let mut values = source.row(from, self.tensor.cols());
        if let Some(bad) = values.iter().position(|x| !x.is_finite()) {
            bail!(
                "tensor {}: element {bad} of row {from} is {}, expected a finite number\n\
                 hint: the model is damaged, or its training diverged",
                self.tensor.source,
                values[bad]
            );
        }
        if let Some(factors) = self.columns {
            values.iter_mut().zip(factors).for_each(|(v, f)| *v *= f);
        }
        if let Some(factors) = self.rows {
            values.iter_mut().for_each(|v| *v /= factors[row]);
        }
        match &self.importance {
            Some(importance) => quant::quantize_weighted(self.ty, &values, importance, out),
            None => quant::quantize(self.ty, &values, out),
        }
        Ok(())
    }
}
