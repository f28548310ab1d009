//! LoRA: small trainable matrices beside frozen projections, stored as PEFT adapters.
//!
//! Hu et al., 2021; rsLoRA's scale from Kalajdzievski, 2023. `y = W x + s B A x` with
//! `s = alpha / r` or `alpha / sqrt(r)`; `A` starts uniform as in PEFT, `B` at zero.

use crate::checkpoint::{bytes, check_shape, stored_dtype, to_tensor};
use crate::config::ModelConfig;
use crate::init::{stream, uniform};
use crate::transformer::{Adapter, Transformer};
use crate::weights::tensor_shapes;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var};
use intern_format::adapter::{self, AdapterConfig};
use intern_format::checkpoint::{self, Checkpoint, TensorSpec, TensorView};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What adapters to add.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank of the update.
    pub r: usize,
    /// Strength: the update is multiplied by `alpha / r`.
    pub alpha: f64,
    /// Last parts of the names of the projections to adapt, e.g. `wqkv` or `q_proj`;
    /// empty means all projections.
    pub target_modules: Vec<String>,
    /// Multiply by `alpha / sqrt(r)` instead.
    pub use_rslora: bool,
    /// Seed of the starting `A` matrices.
    pub seed: u64,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { r: 8, alpha: 16.0, target_modules: Vec::new(), use_rslora: false, seed: 0 }
    }
}

impl LoraConfig {
    /// The factor on `B A`.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.alpha / if self.use_rslora { (self.r as f64).sqrt() } else { self.r as f64 }
    }

    fn targets(&self, module: &str) -> bool {
        self.target_modules.is_empty() || self.target_modules.iter().any(|t| is_target(module, t))
    }
}

/// Whether `module` is `target` or ends in `.target`, as PEFT matches lists of names.
fn is_target(module: &str, target: &str) -> bool {
    module.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

impl Transformer {
    /// Freezes the model's weights and adds trainable adapters beside the targeted projections.
    ///
    /// Fails when the rank is zero, when a target names no projection, or when there are adapters already.
    pub fn add_lora(&mut self, config: &LoraConfig) -> Result<()> {
        let device = self.named_vars()[0].1.device().clone();
        self.attach(config, |module, out, input| {
            let bound = 1.0 / (input as f64).sqrt(); // kaiming uniform with a = sqrt(5)
            let a = uniform(config.r * input, bound, &stream(config.seed, &format!("{module}.lora_A")));
            let a = Var::from_vec(a, (config.r, input), &device)?;
            Ok((a, Var::zeros((out, config.r), DType::F32, &device)?))
        })
    }

    /// The adapters' matrices under PEFT's names, `A` before `B`, in checkpoint order.
    #[must_use]
    pub fn lora_vars(&self) -> Vec<(String, Var)> {
        self.adapters.clone()
    }

    /// Writes the adapters as a PEFT directory; `base` is recorded as the model they belong to.
    pub fn save_adapter(&self, dir: &Path, base: Option<&str>) -> Result<()> {
        let lora = self.lora.as_ref().context("this model has no LoRA adapters to save")?;
        let mut targets = lora.target_modules.clone();
        if targets.is_empty() {
            // PEFT wants the names; the last parts of all adapted modules.
            for (name, _) in &self.adapters {
                let module = module_of(name).and_then(|m| m.rsplit('.').next()).expect("our own names");
                if !targets.iter().any(|t| t == module) {
                    targets.push(module.to_owned());
                }
            }
        }
        let mut config = AdapterConfig::lora(lora.r, lora.alpha, targets, base.map(str::to_owned));
        config.use_rslora = lora.use_rslora;
        let tensors = self
            .adapters
            .iter()
            .map(|(name, var)| {
                let data = bytes(&var.as_detached_tensor(), DType::F32)?;
                Ok((name.clone(), checkpoint::DType::F32, var.dims().to_vec(), data.into()))
            })
            .collect::<Result<Vec<_>>>()?;
        adapter::save(dir, &config, &tensors)?;
        Ok(())
    }

    /// Loads a PEFT directory: freezes the model and attaches the adapters found, trainable.
    pub fn load_adapter(&mut self, dir: &Path) -> Result<()> {
        let adapter = adapter::open(dir)?;
        let config = checked_config(dir, &adapter.config)?;
        let device = self.named_vars()[0].1.device().clone();
        let modules: Vec<String> = adapter.file.names().filter_map(module_of).map(str::to_owned).collect();
        let config = LoraConfig { target_modules: modules, ..config };
        self.attach(&config, |module, out, input| {
            let load = |which: &str, shape: [usize; 2]| -> Result<Var> {
                let name = peft_name(module, which);
                let view = adapter.file.tensor(&name)?;
                ensure!(
                    view.shape == shape,
                    "{}: tensor {name} has shape {:?}, expected {shape:?}\n\
                     hint: does the adapter belong to this base model?",
                    dir.display(),
                    view.shape
                );
                Ok(Var::from_tensor(&to_tensor(&view, &device)?.to_dtype(DType::F32)?)?)
            };
            Ok((load("lora_A", [config.r, input])?, load("lora_B", [out, config.r])?))
        })?;
        if let Some(lora) = &mut self.lora {
            lora.target_modules = adapter.config.target_modules;
        }
        Ok(())
    }

    /// `make(module, out, in)` gives the `(A, B)` of each targeted projection.
    fn attach(
        &mut self,
        config: &LoraConfig,
        mut make: impl FnMut(&str, usize, usize) -> Result<(Var, Var)>,
    ) -> Result<()> {
        ensure!(self.lora.is_none(), "the model has LoRA adapters already\nhint: merge them first");
        ensure!(config.r > 0, "lora: r is 0, expected at least 1");
        let known: Vec<String> =
            self.layers.iter_mut().flat_map(|l| l.linears_mut()).map(|l| l.name.clone()).collect();
        for target in &config.target_modules {
            if !known.iter().any(|module| is_target(module, target)) {
                let mut last: Vec<&str> = known.iter().filter_map(|m| m.rsplit('.').next()).collect();
                last.sort_unstable();
                last.dedup();
                bail!("lora: no projection is called {target}\nhint: this model has {}", last.join(", "));
            }
        }
        self.freeze();
        let mut adapters = Vec::new();
        for linear in self.layers.iter_mut().flat_map(|l| l.linears_mut()) {
            if !config.targets(&linear.name) {
                continue;
            }
            let (out, input) = linear.weight.dims2()?;
            let (a, b) = make(&linear.name, out, input)?;
            linear.adapter = Some(Adapter {
                a: a.as_tensor().clone(),
                b: b.as_tensor().clone(),
                scale: config.scale() as f32,
            });
            adapters.push((peft_name(&linear.name, "lora_A"), a));
            adapters.push((peft_name(&linear.name, "lora_B"), b));
        }
        self.adapters = adapters;
        self.lora = Some(config.clone());
        Ok(())
    }
}

/// Adds an adapter's updates to its base model: `W + s B A`, written to `out` in the base's type.
///
/// The sum is taken in f32 and rounded once. Tokenizer files of `base` are carried over.
pub fn merge(base: &Path, adapter: &Path, out: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(base)?;
    let config = ModelConfig::from_json(checkpoint.config()).with_context(|| base.display().to_string())?;
    let lora = adapter::open(adapter)?;
    let scale = checked_config(adapter, &lora.config)?.scale();
    let shapes = tensor_shapes(&config);
    for module in lora.file.names().filter_map(module_of) {
        let weight = format!("{module}.weight");
        ensure!(
            shapes.iter().any(|(name, _)| *name == weight),
            "{}: adapter for {module}, which {} does not have\nhint: does the adapter belong to this base model?",
            adapter.display(),
            base.display()
        );
    }
    let dtype = to_tensor(&checkpoint.tensor(&shapes[0].0)?, &Device::Cpu)?.dtype();
    let specs: Vec<TensorSpec> = shapes
        .iter()
        .map(|(name, shape)| {
            Ok(TensorSpec { name: name.clone(), dtype: stored_dtype(dtype)?.0, shape: shape.clone() })
        })
        .collect::<Result<_>>()?;
    let merged = |name: &str, shape: &[usize]| -> Result<Vec<u8>> {
        let view = checkpoint.tensor(name)?;
        check_shape(base, name, &view, shape)?;
        let weight = to_tensor(&view, &Device::Cpu)?;
        let names = name.strip_suffix(".weight").map(|m| (peft_name(m, "lora_A"), peft_name(m, "lora_B")));
        let Some((a, b)) = names.filter(|(a, _)| lora.file.contains(a)) else {
            return Ok(bytes(&weight, dtype)?);
        };
        let load = |view: TensorView| to_tensor(&view, &Device::Cpu)?.to_dtype(DType::F32);
        let (a, b): (Tensor, Tensor) = (load(lora.file.tensor(&a)?)?, load(lora.file.tensor(&b)?)?);
        let update = (b.matmul(&a)? * scale).with_context(|| format!("{}: {name}", adapter.display()))?;
        Ok(bytes(&(weight.to_dtype(DType::F32)? + update)?, dtype)?)
    };
    checkpoint::save_with(
        out,
        checkpoint.config(),
        checkpoint.generation_config(),
        &specs,
        checkpoint::DEFAULT_SHARD_BYTES,
        |i, file| file.write_all(&merged(&shapes[i].0, &shapes[i].1).map_err(std::io::Error::other)?),
    )?;
    crate::convert::copy_tokenizer(base, out)
}

/// The part of PEFT's configuration we can honour; the rest is refused by name.
fn checked_config(dir: &Path, config: &AdapterConfig) -> Result<LoraConfig> {
    let refuse = |what: &str| -> Result<()> {
        bail!("{}: {what} is not supported\nhint: plain LoRA and rsLoRA are", dir.display())
    };
    if config.use_dora {
        refuse("use_dora")?;
    }
    if config.fan_in_fan_out {
        refuse("fan_in_fan_out")?;
    }
    if config.bias != "none" {
        refuse("a trained bias")?;
    }
    if config.modules_to_save.as_ref().is_some_and(|m| !m.is_empty()) {
        refuse("modules_to_save")?;
    }
    for key in ["rank_pattern", "alpha_pattern"] {
        if config.extra.get(key).and_then(serde_json::Value::as_object).is_some_and(|o| !o.is_empty()) {
            refuse(key)?;
        }
    }
    Ok(LoraConfig {
        r: config.r,
        alpha: config.lora_alpha,
        target_modules: config.target_modules.clone(),
        use_rslora: config.use_rslora,
        seed: 0,
    })
}

/// `base_model.model.<module>.<lora_A|lora_B>.weight`.
fn peft_name(module: &str, which: &str) -> String {
    format!("base_model.model.{module}.{which}.weight")
}

/// The module an adapter tensor belongs to.
fn module_of(name: &str) -> Option<&str> {
    let rest = name.strip_prefix("base_model.model.")?;
    rest.strip_suffix(".lora_A.weight").or(rest.strip_suffix(".lora_B.weight"))
}
