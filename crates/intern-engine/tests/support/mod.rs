//! Tiny random models for the engine's tests.

#![allow(dead_code, reason = "every test binary uses its own part")]

use std::path::Path;

use candle_core::{DType, Device};
use intern_engine::{Engine, EngineConfig, EngineRequest, Event, KvType};
use intern_kernels::rng::Rng;
use intern_lm::Sampling;
use intern_model::{Architecture, Batch, ModelConfig, RopeScaling, Transformer};
use intern_tokenizer::Tokenizer;
use intern_tokenizer::train::{BpeConfig, train_bpe};

pub const VOCAB: usize = 320;

/// A byte-level tokenizer of fewer than [`VOCAB`] tokens with InternLM2's chat template.
pub fn tokenizer() -> Tokenizer {
    let texts = ["the cat sat on the mat and the dog sat on the cat", "一只猫坐在垫子上", "1 + 2 = 3"];
    let mut texts = texts.iter().cycle().take(30).map(|t| (*t).to_owned());
    let tokenizer = train_bpe(&BpeConfig::new(VOCAB - 20), &mut texts).unwrap();
    tokenizer.with_chat_template(intern_tokenizer::internlm2::CHAT_TEMPLATE.to_owned())
}

/// One small shape per family, together covering what shapes can differ in.
pub fn config(arch: Architecture) -> ModelConfig {
    let mut config = ModelConfig::small(arch, VOCAB, 64, 3, 4, 2);
    config.max_position_embeddings = 256;
    config.eos_token_ids = vec![2];
    match arch {
        Architecture::InternLm2 => {}
        Architecture::InternLm3 => {
            (config.attention_bias, config.mlp_bias, config.output_bias) = (true, true, true);
            config.head_dim = 24;
        }
        Architecture::Llama => {
            config.tie_word_embeddings = true;
            config.rope_scaling = RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: 32,
            };
        }
        Architecture::Mistral => config.sliding_window = Some(7),
        Architecture::Qwen2 => config.attention_bias = true,
        Architecture::Qwen3 => config.head_dim = 32,
    }
    config
}

/// Writes a random model of `config` with its tokenizer. Biases and norms are made random too.
pub fn save(config: &ModelConfig, dir: &Path, dtype: DType) -> Transformer {
    // Larger than at initialization, so that logits differ and greedy choices are clear.
    save_spread(config, dir, dtype, 0.12)
}

/// [`save`] with matrices of this standard deviation. Large ones make a wide model chaotic:
/// small errors grow from layer to layer.
pub fn save_spread(config: &ModelConfig, dir: &Path, dtype: DType, matrices: f64) -> Transformer {
    let model = Transformer::init(config, 7, &Device::Cpu).unwrap();
    for (i, (name, var)) in model.named_vars().into_iter().enumerate() {
        let mut rng = Rng::new(11, i as u64);
        let (centre, spread) = if name.contains("norm") { (1.0, 0.2) } else { (0.0, matrices) };
        let n: usize = var.dims().iter().product();
        let values: Vec<f32> = (0..n).map(|_| (centre + spread * rng.normal()) as f32).collect();
        let tensor = candle_core::Tensor::from_vec(values, var.dims(), &Device::Cpu).unwrap();
        let rounded = tensor.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap();
        var.set(&rounded).unwrap();
    }
    model.save(dir, dtype).unwrap();
    tokenizer().save(dir).unwrap();
    model
}

pub fn engine_config() -> EngineConfig {
    EngineConfig {
        threads: 2,
        block_size: 16,
        max_num_seqs: 8,
        max_batch_tokens: 64,
        kv_type: Some(KvType::F32),
        ..EngineConfig::default()
    }
}

/// With quantized weights multiplied in f32.
pub fn load_exact(path: &Path) -> Engine {
    Engine::load(path, None, &EngineConfig { f32_products: true, ..engine_config() }).unwrap()
}

pub fn load(path: &Path) -> Engine {
    Engine::load(path, None, &engine_config()).unwrap()
}

/// Some prompt of `len` ordinary tokens.
pub fn prompt(len: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed, 9);
    (0..len).map(|_| rng.range(10, VOCAB as u64 - 30) as u32).collect()
}

/// Logits of the training model, `(T, V)`.
pub fn oracle(model: &Transformer, tokens: &[u32]) -> Vec<f32> {
    model.forward(&Batch::from_rows(&[tokens])).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
pub fn assert_close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let size = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    assert!(worst <= tolerance * size.max(1.0), "{what}: off by {worst} of {size}");
}

pub fn greedy(max_tokens: usize) -> Sampling {
    Sampling { max_tokens, ignore_eos: true, ..Sampling::default() }
}

/// The tokens generated, or the error.
pub fn collect(events: std::sync::mpsc::Receiver<Event>) -> Result<Vec<u32>, String> {
    let mut tokens = Vec::new();
    for event in events {
        match event {
            Event::Token { id, .. } => tokens.push(id),
            Event::Done { .. } => return Ok(tokens),
            Event::Error(message) => return Err(message),
            Event::Expired => return Err("expired".to_owned()),
            Event::Ping | Event::Prefill { .. } => {}
        }
    }
    Err("the channel closed without an end".to_owned())
}

pub fn generate(engine: &Engine, tokens: &[u32], sampling: Sampling) -> Vec<u32> {
    collect(engine.submit(EngineRequest::new(tokens.to_vec(), sampling))).unwrap()
}
