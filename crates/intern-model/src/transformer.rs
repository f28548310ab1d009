//! The decoder: one implementation for all families, differentiable by candle's autograd.
//!
//! `tokens → embedding → layers (attention, feed-forward) → norm → head`, with operations of
//! [`crate::ops`]. Weights are `Var`s under their checkpoint names; LoRA (see [`crate::lora`])
//! freezes them and trains small matrices beside. Loading and saving is in [`crate::checkpoint`].
//!
//! Shapes: `N` tokens of the batch, `C` residual width, `F` feed-forward width, `H` query heads,
//! `G` key/value heads, `D` head width, `V` vocabulary, `R` LoRA rank.

use crate::batch::Batch;
use crate::calibrate::ColumnPower;
use crate::config::ModelConfig;
use crate::ops::{self, Geometry, Third};
use crate::part::Part;
use crate::rope::rope_tables;
use crate::weights::{QkvNames, layer_names, outer_names};
use candle_core::{DType, Device, Result, Tensor, Var};
use intern_kernels::train::attention::Shape;
use intern_kernels::train::memory::keep_freed_memory;
use std::collections::HashMap;
use std::sync::Arc;

/// A decoder with its weights.
pub struct Transformer {
    config: ModelConfig,
    vars: Vec<(String, Var)>,
    pub(crate) adapters: Vec<(String, Var)>,
    pub(crate) lora: Option<crate::lora::LoraConfig>,
    pub(crate) embedding: Tensor, // (V, C)
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor, // (C,)
    pub(crate) head: Tensor, // (V, C)
    pub(crate) part: Part,
}

/// A summed loss and the number of targets it sums over.
pub struct LossSum {
    /// Sum of the cross-entropy over the mask, in nats; a scalar to call `backward` on, once.
    pub sum: Tensor,
    /// Number of targets with `mask`.
    pub count: usize,
}

/// One decoder layer.
pub(crate) struct Layer {
    pub attention_norm: Tensor, // (C,)
    pub qkv: Qkv,
    pub qk_norm: Option<(Tensor, Tensor)>, // (D,) each
    pub o: Linear,                         // (C, H D)
    pub ffn_norm: Tensor,                  // (C,)
    pub gate: Linear,                      // (F, C)
    pub up: Linear,                        // (F, C)
    pub down: Linear,                      // (C, F)
    pub window: Option<usize>,
}

/// The projections into attention.
pub(crate) enum Qkv {
    Fused(Linear),
    Separate([Linear; 3]),
}

/// A projection, perhaps with a bias, perhaps with a LoRA adapter.
pub(crate) struct Linear {
    pub name: String,
    pub weight: Tensor, // (out, in)
    pub bias: Option<Tensor>,
    pub adapter: Option<Adapter>,
    /// Watches the inputs, while calibrating.
    pub power: Option<Box<ColumnPower>>,
}

/// `y += scale * (x A^T) B^T`.
pub(crate) struct Adapter {
    pub a: Tensor, // (R, in)
    pub b: Tensor, // (out, R)
    pub scale: f32,
}

impl Transformer {
    /// A decoder with starting weights that depend on `config` and `seed` only.
    pub fn init(config: &ModelConfig, seed: u64, device: &Device) -> anyhow::Result<Self> {
        Self::init_part(config, seed, 1.0, &Part::whole(config.num_layers), device)
    }

    /// Puts the tensors of [`crate::weights::tensor_shapes`], in that order, in their places.
    pub(crate) fn assemble(config: ModelConfig, vars: Vec<(String, Var)>) -> Self {
        let part = Part::whole(config.num_layers);
        Self::assemble_part(config, &part, vars)
    }

    /// As [`Self::assemble`] of the tensors of a part; what it does not hold has no rows.
    pub(crate) fn assemble_part(config: ModelConfig, part: &Part, vars: Vec<(String, Var)>) -> Self {
        let by_name: HashMap<&str, &Var> = vars.iter().map(|(name, var)| (name.as_str(), var)).collect();
        let outer = outer_names(config.arch);
        let get = |name: &str| by_name.get(name).map(|var| var.as_tensor().clone());
        let nothing =
            || Tensor::zeros((0, config.hidden_size), DType::F32, &Device::Cpu).expect("no elements");
        let weight = |module: &str| get(&format!("{module}.weight")).unwrap_or_else(nothing);
        let numbers = part.stages.iter().flat_map(|s| s.layers.clone());
        let layers = numbers.map(|i| Layer::new(&config, i, &get)).collect();
        let embedding = weight(outer.embedding);
        let head = if config.tie_word_embeddings { embedding.clone() } else { weight(outer.head) };
        let norm = weight(outer.norm);
        drop(by_name);
        let part = part.clone();
        Self { config, vars, adapters: Vec::new(), lora: None, embedding, layers, norm, head, part }
    }

    /// Which part of the model this is.
    #[must_use]
    pub fn part(&self) -> &Part {
        &self.part
    }

    /// Shape and constants; of a part, with the heads and the feed-forward width it holds.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The model's own weights under their checkpoint names, in a fixed order; a tied head once.
    ///
    /// With LoRA these are frozen, and [`Self::lora_vars`] are what trains.
    #[must_use]
    pub fn named_vars(&self) -> Vec<(String, Var)> {
        self.vars.clone()
    }

    /// What an optimizer should update: the LoRA matrices where there are any, else all weights.
    #[must_use]
    pub fn trainable_vars(&self) -> Vec<(String, Var)> {
        if self.lora.is_some() { self.adapters.clone() } else { self.vars.clone() }
    }

    /// Logits `(B, T, V)` of every position.
    pub fn forward(&self, batch: &Batch) -> Result<Tensor> {
        let hidden = self.hidden(batch)?;
        let logits = ops::linear(&hidden, &self.head, 1.0, Third::None)?;
        logits.reshape((batch.b, batch.t, self.config.vocab_size))
    }

    /// Summed cross-entropy over the batch's mask, without materializing the logits.
    ///
    /// Gradients of the head are taken along the way; for validation use [`Self::eval_loss`].
    pub fn loss(&self, batch: &Batch) -> Result<LossSum> {
        // Whoever asks for this loss repeats it: the step's buffers should stay mapped.
        keep_freed_memory();
        let hidden = self.hidden(batch)?;
        let sum = ops::linear_cross_entropy(&hidden, &self.head, batch)?;
        Ok(LossSum { sum, count: batch.num_targets() })
    }

    /// As [`Self::loss`] for numbers only: the sum in nats and the count, no gradients.
    pub fn eval_loss(&self, batch: &Batch) -> Result<(f64, usize)> {
        let hidden = self.hidden(batch)?.detach();
        let sum = ops::linear_cross_entropy(&hidden, &self.head.detach(), batch)?;
        Ok((f64::from(sum.to_scalar::<f32>()?), batch.num_targets()))
    }

    /// The normalized residual stream after the last layer, `(N, C)`.
    pub fn hidden(&self, batch: &Batch) -> Result<Tensor> {
        if let Err(e) = batch.validate(self.config.vocab_size) {
            candle_core::bail!("{e}")
        }
        let (cos, sin) = rope_tables(&self.config, batch.longest_document());
        let geometry = Arc::new(Geometry { starts: batch.starts(), cos, sin });
        let mut x = ops::embedding(&self.embedding, &batch.tokens)?; // (N, C)
        for layer in &self.layers {
            x = layer.forward(&x, &self.config, batch, &geometry)?;
        }
        ops::rms_norm(&x, &self.norm, self.config.rms_norm_eps)
    }

    /// Stops gradients into the model's own weights.
    pub(crate) fn freeze(&mut self) {
        for tensor in [&mut self.embedding, &mut self.norm, &mut self.head] {
            *tensor = tensor.detach();
        }
        for layer in &mut self.layers {
            for norm in [&mut layer.attention_norm, &mut layer.ffn_norm] {
                *norm = norm.detach();
            }
            if let Some((q, k)) = &mut layer.qk_norm {
                (*q, *k) = (q.detach(), k.detach());
            }
            for linear in layer.linears_mut() {
                linear.weight = linear.weight.detach();
                linear.bias = linear.bias.as_ref().map(Tensor::detach);
            }
        }
    }
}

impl Layer {
    /// Layer `i` of a model whose tensors `get` finds by name.
    pub(crate) fn new(config: &ModelConfig, i: usize, get: &dyn Fn(&str) -> Option<Tensor>) -> Self {
        let weight = |module: &str| {
            get(&format!("{module}.weight")).unwrap_or_else(|| panic!("{module} was not loaded"))
        };
        let linear = |module: &str| Linear {
            name: module.to_owned(),
            weight: weight(module),
            bias: get(&format!("{module}.bias")),
            adapter: None,
            power: None,
        };
        let names = layer_names(config.arch, i);
        Self {
            attention_norm: weight(&names.attention_norm),
            qkv: match &names.qkv {
                QkvNames::Fused(wqkv) => Qkv::Fused(linear(wqkv)),
                QkvNames::Separate(qkv) => Qkv::Separate([0, 1, 2].map(|j| linear(&qkv[j]))),
            },
            qk_norm: names.qk_norm.as_ref().map(|(q, k)| (weight(q), weight(k))),
            o: linear(&names.o),
            ffn_norm: weight(&names.ffn_norm),
            gate: linear(&names.gate),
            up: linear(&names.up),
            down: linear(&names.down),
            window: config.window(i),
        }
    }

    /// `x` `(N, C)` with attention and feed-forward added.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        config: &ModelConfig,
        batch: &Batch,
        geometry: &Arc<Geometry>,
    ) -> Result<Tensor> {
        let shape = Shape {
            b: batch.b,
            t: batch.t,
            heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            window: self.window,
        };
        let eps = config.rms_norm_eps;

        // 1. Attention
        let h = ops::rms_norm(x, &self.attention_norm, eps)?;
        let y = match &self.qkv {
            Qkv::Fused(wqkv) => ops::attention_fused(&wqkv.forward(&h)?, shape, geometry)?,
            Qkv::Separate([q, k, v]) => {
                let (mut q, mut k, v) = (q.forward(&h)?, k.forward(&h)?, v.forward(&h)?);
                if let Some((q_norm, k_norm)) = &self.qk_norm {
                    q = norm_heads(&q, q_norm, eps)?;
                    k = norm_heads(&k, k_norm, eps)?;
                }
                ops::attention(&q, &k, &v, shape, geometry)?
            }
        }; // (N, H D)
        let x = self.o.forward_onto(&y, x)?;

        // 2. Feed-forward
        let h = ops::rms_norm(&x, &self.ffn_norm, eps)?;
        let y = ops::swiglu(&self.gate.forward(&h)?, &self.up.forward(&h)?)?; // (N, F)
        self.down.forward_onto(&y, &x)
    }

    /// All projections, in checkpoint order.
    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut out: Vec<&mut Linear> = match &mut self.qkv {
            Qkv::Fused(wqkv) => vec![wqkv],
            Qkv::Separate(qkv) => qkv.iter_mut().collect(),
        };
        out.extend([&mut self.o, &mut self.gate, &mut self.up, &mut self.down]);
        out
    }
}

/// RMSNorm over each head of `(N, heads * D)`.
fn norm_heads(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let d = weight.elem_count();
    ops::rms_norm(&x.reshape((n * width / d, d))?, weight, eps)?.reshape((n, width))
}

impl Linear {
    /// `(N, in)` to `(N, out)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.observe(x)?;
        let third = self.bias.as_ref().map_or(Third::None, Third::Bias);
        let y = ops::linear(x, &self.weight, 1.0, third)?;
        self.adapt(x, y)
    }

    /// As [`Self::forward`], added to the residual stream `(N, out)`.
    fn forward_onto(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.observe(x)?;
        let y = match &self.bias {
            None => ops::linear(x, &self.weight, 1.0, Third::Residual(residual))?,
            Some(bias) => (ops::linear(x, &self.weight, 1.0, Third::Bias(bias))? + residual)?,
        };
        self.adapt(x, y)
    }

    fn observe(&self, x: &Tensor) -> Result<()> {
        self.power.as_ref().map_or(Ok(()), |power| power.add(x))
    }

    fn adapt(&self, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let Some(Adapter { a, b, scale }) = &self.adapter else { return Ok(y) };
        let low = ops::linear(x, a, 1.0, Third::None)?; // (N, R)
        ops::linear(&low, b, *scale, Third::Residual(&y))
    }
}
