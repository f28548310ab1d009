//! Writes the logits of every position to a file, for comparison with other
//! implementations: tensor `logits`, f32, (T, V), and `tokens`, i64, (T).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use intern_engine::{Engine, EngineConfig};
use intern_format::safetensors::{DType, save_safetensors};
use serde::{Deserialize, Serialize};

/// What to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogitsConfig {
    /// Checkpoint directory or GGUF file.
    pub model: PathBuf,
    /// PEFT adapter merged into the weights.
    #[serde(default)]
    pub adapter: Option<PathBuf>,
    /// The sequence, used as it is (no BOS is added).
    pub tokens: Vec<u32>,
    /// Threads and cache.
    #[serde(default)]
    pub engine: EngineConfig,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The file.
    pub out: PathBuf,
    /// Positions and vocabulary: the tensor's shape.
    pub shape: [usize; 2],
    /// The likeliest next token at each position.
    pub greedy: Vec<u32>,
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [t, v] = self.shape;
        write!(f, "{}: logits, f32, [{t}, {v}]; likeliest next tokens {:?}", self.out.display(), self.greedy)
    }
}

/// Runs the tokens through the model and writes `out` (a `.safetensors` file).
///
/// # Errors
/// If the model cannot be loaded, a token is not in its vocabulary, or `out` cannot be written.
pub fn run(config: &LogitsConfig, out: &Path) -> Result<Summary> {
    if config.tokens.is_empty() {
        bail!("no tokens given\nhint: --tokens 1,2,3");
    }
    let engine = Engine::load(&config.model, config.adapter.as_deref(), &config.engine)
        .with_context(|| format!("loading {}", config.model.display()))?;
    let logits = engine.logits(&config.tokens)?;
    let t = config.tokens.len();
    let v = logits.len() / t;
    let greedy = logits.chunks_exact(v).map(likeliest).collect();
    let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
    let tokens: Vec<u8> = config.tokens.iter().flat_map(|&x| i64::from(x).to_le_bytes()).collect();
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    save_safetensors(
        out,
        &[
            ("logits".into(), DType::F32, vec![t, v], bytes.into()),
            ("tokens".into(), DType::I64, vec![t], tokens.into()),
        ],
        &metadata,
    )?;
    Ok(Summary { out: out.to_path_buf(), shape: [t, v], greedy })
}

/// The index of the largest logit, the first of equals.
fn likeliest(row: &[f32]) -> u32 {
    let best = row
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (i, &x)| if x > best.1 { (i, x) } else { best });
    best.0 as u32
}
