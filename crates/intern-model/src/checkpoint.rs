//! Between a [`Transformer`] and a Hugging Face checkpoint directory.

use crate::config::ModelConfig;
use crate::transformer::Transformer;
use crate::weights::tensor_shapes;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor, Var};
use intern_format::checkpoint::{self, Checkpoint, TensorSpec, TensorView};
use serde_json::{Value, json};
use std::path::Path;

impl Transformer {
    /// Loads a checkpoint directory of any supported family, with weights in `dtype`.
    ///
    /// Weights are mapped and converted one tensor at a time. Errors name the directory, the
    /// tensor, and what shape was expected.
    pub fn load(dir: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let checkpoint = Checkpoint::open(dir)?;
        let config =
            ModelConfig::from_json(checkpoint.config()).with_context(|| dir.display().to_string())?;
        let vars = tensor_shapes(&config)
            .into_iter()
            .map(|(name, shape)| {
                let view = checkpoint.tensor(&name)?;
                check_shape(dir, &name, &view, &shape)?;
                let tensor = to_tensor(&view, device)
                    .and_then(|t| t.to_dtype(dtype))
                    .with_context(|| format!("{}: tensor {name}", dir.display()))?;
                Ok((name, Var::from_tensor(&tensor)?))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self::assemble(config, vars))
    }

    /// Writes `config.json`, `generation_config.json` and the model's own weights in `dtype`.
    ///
    /// LoRA matrices are not part of it; see [`Transformer::save_adapter`] and [`crate::lora::merge`].
    pub fn save(&self, dir: &Path, dtype: DType) -> Result<()> {
        let vars: Vec<(String, Tensor)> =
            self.named_vars().into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect();
        save(dir, self.config(), &vars, dtype)
    }
}

/// Writes a checkpoint of `config` with the given tensors, converted to `dtype` one at a time.
pub(crate) fn save(
    dir: &Path,
    config: &ModelConfig,
    tensors: &[(String, Tensor)],
    dtype: DType,
) -> Result<()> {
    let (stored, _) = stored_dtype(dtype)?;
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, t)| TensorSpec { name: name.clone(), dtype: stored, shape: t.dims().to_vec() })
        .collect();
    checkpoint::save_with(
        dir,
        &config_json(config, dtype)?,
        &config.generation_json(),
        &specs,
        checkpoint::DEFAULT_SHARD_BYTES,
        |i, out| out.write_all(&bytes(&tensors[i].1, dtype).map_err(std::io::Error::other)?),
    )?;
    Ok(())
}

/// `config.json` with the type of the weights.
pub(crate) fn config_json(config: &ModelConfig, dtype: DType) -> Result<Value> {
    let mut value = config.to_json();
    value["torch_dtype"] = json!(stored_dtype(dtype)?.1);
    Ok(value)
}

/// The stored type and PyTorch's name of it.
pub(crate) fn stored_dtype(dtype: DType) -> Result<(checkpoint::DType, &'static str)> {
    Ok(match dtype {
        DType::F32 => (checkpoint::DType::F32, "float32"),
        DType::F16 => (checkpoint::DType::F16, "float16"),
        DType::BF16 => (checkpoint::DType::BF16, "bfloat16"),
        other => bail!("weights of type {other:?} cannot be saved\nhint: one of f32, f16, bf16"),
    })
}

/// Little-endian bytes of a tensor converted to `dtype`.
pub(crate) fn bytes(tensor: &Tensor, dtype: DType) -> candle_core::Result<Vec<u8>> {
    let tensor = tensor.to_dtype(dtype)?.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    let (from, to) = layout.contiguous_offsets().expect("made contiguous above");
    match &*storage {
        Storage::Cpu(CpuStorage::F32(data)) => Ok(bytemuck::cast_slice(&data[from..to]).to_vec()),
        Storage::Cpu(CpuStorage::F16(data)) => Ok(bytemuck::cast_slice(&data[from..to]).to_vec()),
        Storage::Cpu(CpuStorage::BF16(data)) => Ok(bytemuck::cast_slice(&data[from..to]).to_vec()),
        _ => candle_core::bail!("expected a float tensor on the CPU"),
    }
}

/// A stored tensor as a candle tensor of the same type, f64 and integers becoming f32.
pub(crate) fn to_tensor(view: &TensorView, device: &Device) -> candle_core::Result<Tensor> {
    let dtype = match view.dtype {
        checkpoint::DType::F16 => DType::F16,
        checkpoint::DType::BF16 => DType::BF16,
        _ => return Tensor::from_vec(view.to_f32(), view.shape.as_slice(), device),
    };
    Tensor::from_raw_buffer(view.data, dtype, &view.shape, device)
}

pub(crate) fn check_shape(dir: &Path, name: &str, view: &TensorView, expected: &[usize]) -> Result<()> {
    ensure!(
        view.shape == expected,
        "{}: tensor {name} has shape {:?}, expected {expected:?} from config.json\n\
         hint: config.json and the weights belong to different models",
        dir.display(),
        view.shape
    );
    Ok(())
}
