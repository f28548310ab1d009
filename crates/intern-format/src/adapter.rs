//! PEFT adapters: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Tensor names are PEFT's, e.g.
//! `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` (r × in) and
//! `….lora_B.weight` (out × r). Fields we do not interpret are kept as they are.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::atomic::{AtomicDir, read_json, write_json};
use crate::safetensors::{NamedTensor, SafetensorsFile, save_safetensors};
use crate::{Error, Result};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// `adapter_config.json` of a LoRA adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// Always `LORA` here.
    pub peft_type: String,
    /// `CAUSAL_LM` for decoders.
    #[serde(default)]
    pub task_type: Option<String>,
    /// Directory or name of the model the adapter belongs to.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// Rank.
    pub r: usize,
    /// Scale: the update is multiplied by `lora_alpha / r`, or `/ sqrt(r)` with rsLoRA.
    pub lora_alpha: f64,
    /// Dropout used in training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Last parts of the adapted modules' names. A single string in the file is PEFT's regex
    /// (or `all-linear`) and becomes the only element.
    #[serde(default, deserialize_with = "string_or_list")]
    pub target_modules: Vec<String>,
    /// Scale by `sqrt(r)` instead of `r`.
    #[serde(default)]
    pub use_rslora: bool,
    /// Weight-decomposed LoRA.
    #[serde(default)]
    pub use_dora: bool,
    /// `none`, `all` or `lora_only`.
    #[serde(default = "none")]
    pub bias: String,
    /// Whether the adapted layers store (in × out) weights.
    #[serde(default)]
    pub fan_in_fan_out: bool,
    /// Loaded frozen, as PEFT writes it.
    #[serde(default)]
    pub inference_mode: bool,
    /// Modules saved whole beside the adapter.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// Everything else in the file, e.g. `rank_pattern`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl AdapterConfig {
    /// A plain LoRA configuration for a decoder.
    #[must_use]
    pub fn lora(r: usize, lora_alpha: f64, target_modules: Vec<String>, base_model: Option<String>) -> Self {
        Self {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: base_model,
            r,
            lora_alpha,
            lora_dropout: 0.0,
            target_modules,
            use_rslora: false,
            use_dora: false,
            bias: none(),
            fan_in_fan_out: false,
            inference_mode: true,
            modules_to_save: None,
            extra: Map::new(),
        }
    }

    /// What the product B·A is multiplied by.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let r = self.r.max(1) as f64;
        self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }
    }
}

fn none() -> String {
    "none".into()
}

fn string_or_list<'de, D: Deserializer<'de>>(d: D) -> std::result::Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Modules {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::<Modules>::deserialize(d)? {
        None => Vec::new(),
        Some(Modules::One(one)) => vec![one],
        Some(Modules::Many(many)) => many,
    })
}

/// An open adapter.
#[derive(Debug)]
pub struct Adapter {
    /// The configuration.
    pub config: AdapterConfig,
    /// The low-rank matrices.
    pub file: SafetensorsFile,
}

/// Opens an adapter directory.
pub fn open(dir: &Path) -> Result<Adapter> {
    let config_path = dir.join(CONFIG);
    if !config_path.is_file() {
        if let Err(e) = fs::metadata(dir) {
            return Err(Error::io(dir, e));
        }
        return Err(Error::missing(dir, CONFIG)
            .with_hint("an adapter is a directory with adapter_config.json and adapter_model.safetensors"));
    }
    // The kind first: other adapter kinds have other fields.
    let raw: Value = read_json(&config_path)?;
    match raw.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        Some(other) => {
            return Err(Error::unsupported(&config_path, format!("peft_type `{other}`"))
                .with_hint("only LORA adapters are read"));
        }
        None => return Err(Error::missing(&config_path, "field `peft_type`")),
    }
    let config: AdapterConfig = read_json(&config_path)?;
    if config.r == 0 {
        return Err(Error::corrupt(config_path, "field `r`", "a rank of at least 1", "0"));
    }
    let weights = dir.join(WEIGHTS);
    if !weights.is_file() && dir.join("adapter_model.bin").is_file() {
        return Err(Error::unsupported(dir.join("adapter_model.bin"), "a pickled adapter")
            .with_hint("load it once in peft and save it with safe_serialization=True"));
    }
    Ok(Adapter { config, file: SafetensorsFile::open(&weights)? })
}

/// Saves an adapter; a directory that does not exist yet appears whole.
pub fn save(dir: &Path, config: &AdapterConfig, tensors: &[NamedTensor<'_>]) -> Result<()> {
    if dir.exists() {
        return save_into(dir, config, tensors);
    }
    let new = AtomicDir::create(dir)?;
    save_into(new.path(), config, tensors)?;
    new.commit()
}

fn save_into(dir: &Path, config: &AdapterConfig, tensors: &[NamedTensor<'_>]) -> Result<()> {
    let metadata = [("format".to_string(), "pt".to_string())].into();
    save_safetensors(&dir.join(WEIGHTS), tensors, &metadata)?;
    write_json(&dir.join(CONFIG), config)
}
