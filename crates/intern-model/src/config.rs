//! The decoder's shape, and its translation from and to `config.json` of every supported family.
//!
//! One struct describes all six families; what differs between them (fused or separate
//! projections, biases, query/key norms) is a field here, so the model has no `match` on names.
//! Both RoPE spellings are read: `rope_theta` + `rope_scaling` (transformers 4) and
//! `rope_parameters` (transformers 5). The first is written, since every reader knows it.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

/// The families of decoders whose checkpoints this crate reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// InternLM2: `wqkv` fused per key/value head, its own tensor names.
    InternLm2,
    /// InternLM3: the Llama layout with its own `model_type` and bias keys.
    InternLm3,
    /// Llama 1, 2 and 3.
    Llama,
    /// Mistral: Llama with a sliding attention window.
    Mistral,
    /// Qwen2 and 2.5: biases on query, key and value.
    Qwen2,
    /// Qwen3: RMSNorm over each query and key head.
    Qwen3,
}

impl Architecture {
    /// All families, in the order of the enum.
    pub const ALL: [Self; 6] =
        [Self::InternLm2, Self::InternLm3, Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// `model_type` of `config.json`.
    #[must_use]
    pub fn model_type(self) -> &'static str {
        match self {
            Self::InternLm2 => "internlm2",
            Self::InternLm3 => "internlm3",
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// The class under `architectures` of `config.json`.
    #[must_use]
    pub fn class_name(self) -> &'static str {
        match self {
            Self::InternLm2 => "InternLM2ForCausalLM",
            Self::InternLm3 => "InternLM3ForCausalLM",
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    /// The family called `model_type`, if it is one of ours.
    #[must_use]
    pub fn from_model_type(model_type: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.model_type() == model_type)
    }
}

/// How rotary frequencies are stretched beyond the context the model was trained with.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Plain RoPE.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// How many times longer the context becomes.
        factor: f64,
    },
    /// NTK-aware: the base grows once the sequence exceeds `max_position_embeddings`.
    Dynamic {
        /// Strength of the growth.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length of pretraining.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al., 2023): a ramp over dimensions and a factor on attention.
    Yarn {
        /// How many times longer the context becomes.
        factor: f64,
        /// Scales cosine and sine; derived from `factor` (and `mscale`) when absent.
        attention_factor: Option<f64>,
        /// Rotations above which a dimension is kept.
        beta_fast: f64,
        /// Rotations below which a dimension is interpolated.
        beta_slow: f64,
        /// DeepSeek's numerator of the attention factor.
        mscale: Option<f64>,
        /// DeepSeek's denominator of the attention factor.
        mscale_all_dim: Option<f64>,
        /// Whether the ramp's bounds are rounded to whole dimensions.
        truncate: bool,
        /// Context length of pretraining.
        original_max_position_embeddings: usize,
    },
}

/// Shape and constants of a decoder; the parsed form of `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Family, which decides tensor names and the fusing of projections.
    pub arch: Architecture,
    /// Rows of the embedding and of the output head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward network.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head; `num_heads * head_dim` may differ from `hidden_size`.
    pub head_dim: usize,
    /// Context length the model declares, in tokens.
    pub max_position_embeddings: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Attend to at most this many tokens (oneself included), in the layers that slide.
    pub sliding_window: Option<usize>,
    /// With a window: layers before this one attend to everything (Qwen's `max_window_layers`).
    pub max_window_layers: usize,
    /// The output head shares the embedding's matrix.
    pub tie_word_embeddings: bool,
    /// Biases on query, key and value projections.
    pub attention_bias: bool,
    /// Bias on the attention's output projection.
    pub output_bias: bool,
    /// Biases in the feed-forward network.
    pub mlp_bias: bool,
    /// Token that opens a document.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation; several for Llama 3.
    pub eos_token_ids: Vec<u32>,
    /// Token that fills up rows.
    pub pad_token_id: Option<u32>,
}

impl ModelConfig {
    /// A small decoder of family `arch` with the usual constants, for training from scratch.
    ///
    /// `num_heads` must divide `hidden_size`; the feed-forward width is 8/3 of it, rounded up to 16.
    #[must_use]
    pub fn small(
        arch: Architecture,
        vocab_size: usize,
        hidden_size: usize,
        num_layers: usize,
        num_heads: usize,
        num_kv_heads: usize,
    ) -> Self {
        Self {
            arch,
            vocab_size,
            hidden_size,
            intermediate_size: (hidden_size * 8 / 3).div_ceil(16) * 16,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim: hidden_size / num_heads,
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            sliding_window: None,
            max_window_layers: 0,
            tie_word_embeddings: false,
            attention_bias: arch == Architecture::Qwen2,
            output_bias: false,
            mlp_bias: false,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
        }
    }

    /// Reads the object of a `config.json`.
    ///
    /// Absent keys take the defaults `transformers` gives them for that family.
    /// Errors name the key, the value found and what was expected.
    pub fn from_json(value: &Value) -> Result<Self> {
        let keys = Keys(value.as_object().context("config.json: expected an object")?);
        let model_type = keys.0.get("model_type").and_then(Value::as_str).unwrap_or("(absent)");
        let arch = Architecture::from_model_type(model_type).with_context(|| {
            let known: Vec<_> = Architecture::ALL.iter().map(|a| a.model_type()).collect();
            format!(
                "config.json: model_type {model_type} is not supported\nhint: one of {}",
                known.join(", ")
            )
        })?;
        let hidden_act = keys.0.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
        ensure!(
            matches!(hidden_act, "silu" | "swish"),
            "config.json: hidden_act {hidden_act}, expected silu"
        );
        let is_qwen = matches!(arch, Architecture::Qwen2 | Architecture::Qwen3);

        let hidden_size = keys.required("hidden_size")?;
        let num_layers = keys.required("num_hidden_layers")?;
        let num_heads = keys.required("num_attention_heads")?;
        ensure!(num_heads > 0, "config.json: num_attention_heads is 0");
        let head_dim = match (keys.usize("head_dim")?, arch) {
            (Some(d), _) => d,
            (None, Architecture::Qwen3 | Architecture::InternLm3) => 128,
            (None, _) => hidden_size / num_heads,
        };
        let max_position_embeddings = keys.usize("max_position_embeddings")?.unwrap_or(2048);
        let rope = Rope::from_keys(&keys, max_position_embeddings)?;
        let (sliding_window, max_window_layers) = window(&keys, arch, num_layers)?;
        // InternLM2 calls both attention biases `bias`; InternLM3 has `qkv_bias` and `bias`.
        let (attention_bias, output_bias, mlp_bias) = match arch {
            Architecture::InternLm2 => {
                let bias = keys.bool("bias")?.unwrap_or(true);
                (bias, bias, false)
            }
            Architecture::InternLm3 => {
                let bias = keys.bool("bias")?.or(keys.bool("mlp_bias")?).unwrap_or(false);
                (keys.bool("qkv_bias")?.or(keys.bool("attention_bias")?).unwrap_or(false), bias, bias)
            }
            Architecture::Llama => {
                let bias = keys.bool("attention_bias")?.unwrap_or(false);
                (bias, bias, keys.bool("mlp_bias")?.unwrap_or(false))
            }
            Architecture::Qwen3 => {
                let bias = keys.bool("attention_bias")?.unwrap_or(false);
                (bias, bias, false)
            }
            Architecture::Qwen2 => (true, false, false),
            Architecture::Mistral => (false, false, false),
        };
        let config = Self {
            arch,
            vocab_size: keys.required("vocab_size")?,
            hidden_size,
            intermediate_size: keys.required("intermediate_size")?,
            num_layers,
            num_heads,
            num_kv_heads: keys.usize("num_key_value_heads")?.unwrap_or(num_heads),
            head_dim,
            max_position_embeddings,
            rms_norm_eps: keys.f64("rms_norm_eps")?.unwrap_or(1e-6),
            rope_theta: rope.theta,
            rope_scaling: rope.scaling,
            sliding_window,
            max_window_layers,
            tie_word_embeddings: keys.bool("tie_word_embeddings")?.unwrap_or(false),
            attention_bias,
            output_bias,
            mlp_bias,
            bos_token_id: keys.token("bos_token_id")?.first().copied(),
            eos_token_ids: keys.token("eos_token_id")?,
            pad_token_id: keys.token("pad_token_id")?.first().copied(),
        };
        config.validate()?;
        debug_assert!(is_qwen || config.max_window_layers == 0);
        Ok(config)
    }

    /// Checks what the model assumes: divisibility, an even head width, sizes above zero.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_layers),
            ("num_attention_heads", self.num_heads),
            ("num_key_value_heads", self.num_kv_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (key, size) in sizes {
            ensure!(size > 0, "config.json: {key} is 0, expected at least 1");
            ensure!(size < 1 << 31, "config.json: {key} is {size}, expected below 2^31");
        }
        ensure!(
            self.num_heads.is_multiple_of(self.num_kv_heads),
            "config.json: num_attention_heads {} is not a multiple of num_key_value_heads {}",
            self.num_heads,
            self.num_kv_heads
        );
        ensure!(
            self.head_dim.is_multiple_of(2),
            "config.json: head_dim {} is odd; RoPE needs pairs",
            self.head_dim
        );
        if self.arch == Architecture::InternLm2 {
            ensure!(
                self.num_heads * self.head_dim == self.hidden_size,
                "config.json: internlm2 needs hidden_size = num_attention_heads * head_dim, found {} and {} * {}",
                self.hidden_size,
                self.num_heads,
                self.head_dim
            );
        }
        ensure!(
            self.sliding_window != Some(0),
            "config.json: sliding_window is 0, expected null or at least 1"
        );
        Ok(())
    }

    /// The attention window of layer `layer`: `None` means all earlier tokens.
    #[must_use]
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| layer >= self.max_window_layers)
    }

    /// Whether queries and keys are normalized per head (Qwen3).
    #[must_use]
    pub fn has_qk_norm(&self) -> bool {
        self.arch == Architecture::Qwen3
    }

    /// Whether query, key and value are one fused tensor in the checkpoint (InternLM2).
    #[must_use]
    pub fn has_fused_qkv(&self) -> bool {
        self.arch == Architecture::InternLm2
    }

    /// Number of parameters, a tied head counted once.
    #[must_use]
    pub fn num_parameters(&self) -> usize {
        crate::weights::tensor_shapes(self).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// The object of a `config.json` that this family's reader in `transformers` understands.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut o = Map::new();
        let mut put = |key: &str, value: Value| o.insert(key.to_owned(), value);
        put("architectures", json!([self.arch.class_name()]));
        put("model_type", json!(self.arch.model_type()));
        put("vocab_size", json!(self.vocab_size));
        put("hidden_size", json!(self.hidden_size));
        put("intermediate_size", json!(self.intermediate_size));
        put("num_hidden_layers", json!(self.num_layers));
        put("num_attention_heads", json!(self.num_heads));
        put("num_key_value_heads", json!(self.num_kv_heads));
        if self.arch != Architecture::InternLm2 && self.arch != Architecture::Qwen2 {
            put("head_dim", json!(self.head_dim));
        }
        put("hidden_act", json!("silu"));
        put("max_position_embeddings", json!(self.max_position_embeddings));
        put("initializer_range", json!(0.02));
        put("rms_norm_eps", json!(self.rms_norm_eps));
        put("rope_theta", json!(self.rope_theta));
        put("rope_scaling", self.rope_scaling_json());
        match self.arch {
            Architecture::InternLm2 => {
                put("bias", json!(self.attention_bias));
            }
            Architecture::InternLm3 => {
                put("qkv_bias", json!(self.attention_bias));
                put("bias", json!(self.mlp_bias));
            }
            Architecture::Llama => {
                put("attention_bias", json!(self.attention_bias));
                put("mlp_bias", json!(self.mlp_bias));
            }
            Architecture::Mistral => {
                put("sliding_window", json!(self.sliding_window));
            }
            Architecture::Qwen2 | Architecture::Qwen3 => {
                if self.arch == Architecture::Qwen3 {
                    put("attention_bias", json!(self.attention_bias));
                }
                put("use_sliding_window", json!(self.sliding_window.is_some()));
                put("sliding_window", json!(self.sliding_window));
                put("max_window_layers", json!(self.max_window_layers));
            }
        }
        put("attention_dropout", json!(0.0));
        put("tie_word_embeddings", json!(self.tie_word_embeddings));
        put("use_cache", json!(true));
        put("bos_token_id", json!(self.bos_token_id));
        put("eos_token_id", token_json(&self.eos_token_ids));
        put("pad_token_id", json!(self.pad_token_id));
        Value::Object(o)
    }

    /// The object of a `generation_config.json`: the special tokens and nothing else.
    #[must_use]
    pub fn generation_json(&self) -> Value {
        json!({
            "bos_token_id": self.bos_token_id,
            "eos_token_id": token_json(&self.eos_token_ids),
            "pad_token_id": self.pad_token_id,
        })
    }

    fn rope_scaling_json(&self) -> Value {
        // InternLM2's own reader wants exactly `type` and `factor`.
        let kind = if self.arch == Architecture::InternLm2 { "type" } else { "rope_type" };
        match &self.rope_scaling {
            RopeScaling::None => Value::Null,
            RopeScaling::Linear { factor } => json!({ kind: "linear", "factor": factor }),
            RopeScaling::Dynamic { factor } => json!({ kind: "dynamic", "factor": factor }),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => json!({
                kind: "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": original_max_position_embeddings,
            }),
            RopeScaling::Yarn {
                factor,
                attention_factor,
                beta_fast,
                beta_slow,
                mscale,
                mscale_all_dim,
                truncate,
                original_max_position_embeddings,
            } => {
                let mut o = json!({
                    kind: "yarn",
                    "factor": factor,
                    "beta_fast": beta_fast,
                    "beta_slow": beta_slow,
                    "original_max_position_embeddings": original_max_position_embeddings,
                });
                for (key, value) in [
                    ("attention_factor", attention_factor),
                    ("mscale", mscale),
                    ("mscale_all_dim", mscale_all_dim),
                ] {
                    if let Some(value) = value {
                        o[key] = json!(value);
                    }
                }
                if !truncate {
                    o["truncate"] = json!(false);
                }
                o
            }
        }
    }
}

/// `null`, one id, or a list, as `transformers` writes `eos_token_id`.
fn token_json(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    }
}

/// The window of the layers that slide, and the first of them.
fn window(keys: &Keys, arch: Architecture, num_layers: usize) -> Result<(Option<usize>, usize)> {
    match arch {
        Architecture::Mistral => {
            // transformers' default is 4096 only when the key is absent; null means none.
            let window = if keys.0.contains_key("sliding_window") {
                keys.usize("sliding_window")?
            } else {
                Some(4096)
            };
            Ok((window, 0))
        }
        Architecture::Qwen2 | Architecture::Qwen3 if keys.bool("use_sliding_window")?.unwrap_or(false) => {
            let window = if keys.0.contains_key("sliding_window") {
                keys.usize("sliding_window")?
            } else {
                Some(4096)
            };
            let Some(types) = keys.0.get("layer_types").and_then(Value::as_array) else {
                return Ok((window, keys.usize("max_window_layers")?.unwrap_or(28)));
            };
            let slides: Vec<bool> = types.iter().map(|t| t.as_str() == Some("sliding_attention")).collect();
            ensure!(
                slides.len() == num_layers,
                "config.json: layer_types has {} entries, expected {num_layers}",
                slides.len()
            );
            let first = slides.iter().position(|&s| s).unwrap_or(num_layers);
            ensure!(
                slides[first..].iter().all(|&s| s),
                "config.json: layer_types alternates; expected full_attention layers, then sliding_attention"
            );
            Ok((window.filter(|_| first < num_layers), first.min(num_layers)))
        }
        _ => Ok((None, 0)),
    }
}

struct Rope {
    theta: f64,
    scaling: RopeScaling,
}

impl Rope {
    fn from_keys(keys: &Keys, max_position_embeddings: usize) -> Result<Self> {
        let of = |key: &str| keys.0.get(key).and_then(Value::as_object).map(Keys);
        let parameters = of("rope_scaling").or(of("rope_parameters"));
        let mut theta = keys.f64("rope_theta")?;
        let Some(p) = parameters else {
            return Ok(Self { theta: theta.unwrap_or(10_000.0), scaling: RopeScaling::None });
        };
        theta = p.f64("rope_theta")?.or(theta);
        let kind = p.0.get("rope_type").or(p.0.get("type")).and_then(Value::as_str).unwrap_or("default");
        if p.f64("partial_rotary_factor")?.or(keys.f64("partial_rotary_factor")?).is_some_and(|f| f != 1.0) {
            bail!("config.json: partial_rotary_factor other than 1 is not supported");
        }
        let factor =
            || p.f64("factor")?.with_context(|| format!("config.json: rope {kind} without `factor`"));
        let original = match keys.usize("original_max_position_embeddings")? {
            Some(n) => n,
            None => p.usize("original_max_position_embeddings")?.unwrap_or(max_position_embeddings),
        };
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: factor()? },
            "dynamic" => RopeScaling::Dynamic { factor: factor()? },
            "llama3" => RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: p
                    .f64("low_freq_factor")?
                    .context("config.json: llama3 without low_freq_factor")?,
                high_freq_factor: p
                    .f64("high_freq_factor")?
                    .context("config.json: llama3 without high_freq_factor")?,
                original_max_position_embeddings: original,
            },
            "yarn" => RopeScaling::Yarn {
                factor: match p.f64("factor")? {
                    Some(factor) => factor,
                    None => max_position_embeddings as f64 / original as f64,
                },
                attention_factor: p.f64("attention_factor")?,
                beta_fast: p.f64("beta_fast")?.unwrap_or(32.0),
                beta_slow: p.f64("beta_slow")?.unwrap_or(1.0),
                mscale: p.f64("mscale")?,
                mscale_all_dim: p.f64("mscale_all_dim")?,
                truncate: p.bool("truncate")?.unwrap_or(true),
                original_max_position_embeddings: original,
            },
            other => bail!(
                "config.json: rope type {other} is not supported\nhint: one of default, linear, dynamic, llama3, yarn"
            ),
        };
        Ok(Self { theta: theta.unwrap_or(10_000.0), scaling })
    }
}

/// Typed look-ups that treat `null` as absent and name the key when the type is wrong.
struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    fn get<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(v) => {
                read(v).map(Some).with_context(|| format!("config.json: {key} is {v}, expected {expected}"))
            }
        }
    }

    fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.get(key, "a whole number", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a number", Value::as_f64)
    }

    fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", Value::as_bool)
    }

    fn required(&self, key: &str) -> Result<usize> {
        self.usize(key)?.with_context(|| format!("config.json: {key} is missing"))
    }

    /// A token id or a list of them.
    fn token(&self, key: &str) -> Result<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = self.get(key, "a token id or a list of them", |v| match v {
            Value::Array(a) => a.iter().map(id).collect(),
            // Some published configs write -1 for "none".
            Value::Number(n) if n.as_i64().is_some_and(|n| n < 0) => Some(Vec::new()),
            v => id(v).map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }
}
