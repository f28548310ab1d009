//! Keys and values in eight bits: near those in f32, and the same answers in any company.

mod support;

use candle_core::DType;
use intern_engine::{Engine, EngineConfig, EngineRequest, KvType};
use intern_lm::Sampling;
use intern_model::Architecture;
use support::*;

fn int8() -> EngineConfig {
    EngineConfig { kv_type: Some(KvType::Int8), ..engine_config() }
}

fn requests() -> Vec<(Vec<u32>, Sampling)> {
    (0..10).map(|i| (prompt(3 + 11 * i as usize, i), greedy(24))).collect()
}

fn together(engine: &Engine) -> Vec<Vec<u32>> {
    let submit = |(tokens, sampling)| engine.submit(EngineRequest::new(tokens, sampling));
    let receivers: Vec<_> = requests().into_iter().map(submit).collect();
    receivers.into_iter().map(|r| collect(r).unwrap()).collect()
}

#[test]
fn eight_bits_are_near_and_depend_on_nobody() {
    for arch in [Architecture::InternLm2, Architecture::Mistral, Architecture::Qwen2] {
        let dir = tempfile::tempdir().unwrap();
        save_spread(&config(arch), dir.path(), DType::F32, 0.08);
        let engine = Engine::load(dir.path(), None, &int8()).unwrap();
        let tokens = prompt(100, 5);
        let (got, want) = (engine.logits(&tokens).unwrap(), load(dir.path()).logits(&tokens).unwrap());
        let square: f32 = got.iter().zip(&want).map(|(a, b)| (a - b) * (a - b)).sum();
        let error = (square / want.iter().map(|x| x * x).sum::<f32>()).sqrt();
        println!("{arch:?}: logits off by {error:.4}");
        assert!(error < 0.05, "{arch:?}: {error}");

        let alone: Vec<_> = requests().iter().map(|(t, s)| generate(&engine, t, s.clone())).collect();
        for (what, config) in [
            ("batched", int8()),
            ("chunked", EngineConfig { max_batch_tokens: 8, ..int8() }),
            ("one thread", EngineConfig { threads: 1, ..int8() }),
            ("guessing", EngineConfig { prompt_lookup: 3, ..int8() }),
            ("without prefixes", EngineConfig { prefix_cache: false, ..int8() }),
        ] {
            let engine = Engine::load(dir.path(), None, &config).unwrap();
            for again in 0..2 {
                assert_eq!(together(&engine), alone, "{arch:?}: {what}, {again}");
            }
        }
    }
}

#[test]
fn eight_bits_hold_almost_four_times_as_much() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(Architecture::InternLm2);
    (config.hidden_size, config.head_dim) = (256, 64);
    config.max_position_embeddings = 1 << 16;
    save(&config, dir.path(), DType::F32);
    let blocks = |kv_type| {
        let config = EngineConfig { kv_type: Some(kv_type), kv_memory_mb: 16, ..engine_config() };
        Engine::load(dir.path(), None, &config).unwrap().stats().num_blocks as f64
    };
    let ratio = blocks(KvType::Int8) / blocks(KvType::F32);
    assert!((3.7..3.8).contains(&ratio), "{ratio}");
}
