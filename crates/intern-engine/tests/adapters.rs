//! Adapters beside their base: each request's answer is that of its adapter, whatever runs beside it.

mod support;

use std::path::{Path, PathBuf};

use candle_core::DType;
use intern_engine::quantize::{self, QuantType, QuantizeConfig};
use intern_engine::{Engine, EngineConfig, EngineRequest, Event, KvType};
use intern_format::adapter::{self, AdapterConfig};
use intern_format::checkpoint::DType as Stored;
use intern_format::safetensors::NamedTensor;
use intern_kernels::rng::Rng;
use intern_lm::Sampling;
use intern_model::weights::{QkvNames, layer_names, outer_names};
use intern_model::{Architecture, ModelConfig};
use support::*;

/// Every matrix an adapter may touch, with its shape.
fn modules(config: &ModelConfig) -> Vec<(String, usize, usize)> {
    let (c, f, d) = (config.hidden_size, config.intermediate_size, config.head_dim);
    let (q, kv) = (config.num_heads * d, config.num_kv_heads * d);
    let mut all = Vec::new();
    for i in 0..config.num_layers {
        let names = layer_names(config.arch, i);
        match names.qkv {
            QkvNames::Fused(name) => all.push((name, q + 2 * kv, c)),
            QkvNames::Separate([a, b, e]) => all.extend([(a, q, c), (b, kv, c), (e, kv, c)]),
        }
        all.extend([(names.o, c, q), (names.gate, f, c), (names.up, f, c), (names.down, c, f)]);
    }
    if !config.tie_word_embeddings {
        all.push((outer_names(config.arch).head.to_owned(), config.vocab_size, c));
    }
    all
}

/// Writes a random adapter of rank `r` over those modules that `wanted` picks.
fn save_adapter(dir: &Path, config: &ModelConfig, r: usize, seed: u64, wanted: impl Fn(&str) -> bool) {
    let mut rng = Rng::new(seed, 3);
    let mut values = Vec::new();
    for (module, rows, cols) in modules(config).into_iter().filter(|m| wanted(&m.0)) {
        for (which, shape) in [("lora_A", [r, cols]), ("lora_B", [rows, r])] {
            let random: Vec<f32> = (0..shape[0] * shape[1]).map(|_| 0.1 * rng.normal() as f32).collect();
            values.push((format!("base_model.model.{module}.{which}.weight"), shape, random));
        }
    }
    let tensor = |(name, shape, values): &(String, [usize; 2], Vec<f32>)| -> NamedTensor {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        (name.clone(), Stored::F32, shape.to_vec(), bytes.into())
    };
    let tensors: Vec<NamedTensor> = values.iter().map(tensor).collect();
    adapter::save(dir, &AdapterConfig::lora(r, 2.0 * r as f64, vec![], None), &tensors).unwrap();
}

/// A base in `base`, and two adapters of different ranks and modules in `a` and `b`.
fn save_all(dir: &Path, config: &ModelConfig, dtype: DType) -> [PathBuf; 3] {
    let [base, a, b] = ["base", "a", "b"].map(|name| dir.join(name));
    save_spread(config, &base, dtype, 0.09);
    save_adapter(&a, config, 4, 1, |_| true);
    let some =
        |m: &str| m.contains("wqkv") || m.contains("v_proj") || m.contains("w2") || m.contains("up_proj");
    save_adapter(&b, config, 3, 2, some);
    [base, a, b]
}

fn beside(base: &Path, adapters: [&Path; 2], change: impl FnOnce(&mut EngineConfig)) -> Engine {
    let adapters = ["a", "b"].map(str::to_owned).into_iter().zip(adapters.map(Path::to_path_buf)).collect();
    let mut config = EngineConfig { adapters, ..engine_config() };
    change(&mut config);
    Engine::load(base, None, &config).unwrap()
}

const NAMES: [Option<&str>; 3] = [None, Some("a"), Some("b")];

fn request(tokens: Vec<u32>, adapter: Option<&str>) -> EngineRequest {
    EngineRequest { adapter: adapter.map(str::to_owned), ..EngineRequest::new(tokens, greedy(20)) }
}

fn prompts() -> Vec<Vec<u32>> {
    (0..4).map(|i| prompt(5 + 17 * i as usize, i)).collect()
}

/// Greedy answers to all prompts from the base and both adapters, everything at once.
fn mixed(engine: &Engine) -> Vec<Vec<Vec<u32>>> {
    let submit = |name| {
        let receivers: Vec<_> = prompts().into_iter().map(|p| engine.submit(request(p, name))).collect();
        receivers
    };
    let all = NAMES.map(submit);
    all.into_iter().map(|some| some.into_iter().map(|r| collect(r).unwrap()).collect()).collect()
}

fn logits(engine: &Engine, tokens: &[u32], adapter: Option<&str>) -> Vec<f32> {
    let sampling = Sampling { max_tokens: 0, ..Sampling::default() };
    let request = EngineRequest {
        prompt_logits: true,
        adapter: adapter.map(str::to_owned),
        ..EngineRequest::new(tokens.to_vec(), sampling)
    };
    match engine.submit(request).into_iter().last() {
        Some(Event::Done { logits, .. }) => logits,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_row_gets_its_own_adapter() {
    for arch in [Architecture::InternLm2, Architecture::Llama, Architecture::Qwen3] {
        let dir = tempfile::tempdir().unwrap();
        let [base, a, b] = save_all(dir.path(), &config(arch), DType::F32);
        // Merged into the base, one after the other.
        let merged = NAMES.map(|name| {
            let adapter = name.map(|name| dir.path().join(name));
            let engine = Engine::load(&base, adapter.as_deref(), &engine_config()).unwrap();
            prompts().iter().map(|p| generate(&engine, p, greedy(20))).collect::<Vec<_>>()
        });
        assert!(merged[0] != merged[1] && merged[1] != merged[2], "adapters change answers");
        let engine = beside(&base, [&a, &b], |_| {});
        assert_eq!(engine.adapters(), ["a", "b"]);
        for (name, merged) in NAMES.iter().zip(&merged) {
            for (prompt, want) in prompts().into_iter().zip(merged) {
                assert_eq!(
                    &collect(engine.submit(request(prompt, *name))).unwrap(),
                    want,
                    "{arch:?} {name:?}"
                );
            }
        }
        for (what, change) in [
            ("together", (|_| {}) as fn(&mut EngineConfig)),
            ("chunked", |c| c.max_batch_tokens = 9),
            ("one thread", |c| c.threads = 1),
            ("guessing", |c| c.prompt_lookup = 3),
            ("two at a time", |c| c.max_num_seqs = 2),
        ] {
            let engine = beside(&base, [&a, &b], change);
            // The second time prefixes are cached.
            for _ in 0..2 {
                assert_eq!(mixed(&engine), merged, "{arch:?} {what}");
            }
            let stats = engine.stats();
            assert_eq!(stats.free_blocks, stats.num_blocks);
        }
    }
}

#[test]
fn a_prefix_belongs_to_its_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let [base, a, b] = save_all(dir.path(), &config(Architecture::InternLm2), DType::F32);
    let engine = beside(&base, [&a, &b], |_| {});
    let mut hits = 0;
    for round in 0..2 {
        for name in NAMES {
            collect(engine.submit(request(prompt(50, 7), name))).unwrap();
            let now = engine.stats().prefix_hit_tokens;
            assert_eq!(now - hits, if round == 0 { 0 } else { 48 }, "{name:?} {round}");
            hits = now;
        }
    }
}

#[test]
fn adapters_stand_beside_files_of_any_type() {
    for arch in [Architecture::InternLm2, Architecture::Llama, Architecture::Qwen3] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(arch);
        (config.hidden_size, config.head_dim, config.intermediate_size) = (256, 64, 512);
        let [base, a, b] = ["base", "a", "b"].map(|name| dir.path().join(name));
        save_spread(&config, &base, DType::F16, 0.04);
        save_adapter(&a, &config, 4, 1, |_| true);
        save_adapter(&b, &config, 8, 2, |m| m.contains("layers.1"));
        let tokens = prompt(40, 3);
        for quant in [QuantType::F16, QuantType::Q8_0, QuantType::Q4_K_M] {
            let file = dir.path().join("model.gguf");
            quantize::run(&QuantizeConfig::new(&base, quant), &file).unwrap();
            let engine = beside(&file, [&a, &b], |_| {});
            for (name, path) in [("a", &a), ("b", &b)] {
                let merged = Engine::load(&base, Some(path), &engine_config()).unwrap();
                let (want, got) = (merged.logits(&tokens).unwrap(), logits(&engine, &tokens, Some(name)));
                let plain = logits(&engine, &tokens, None);
                let distance = |x: &[f32], y: &[f32]| {
                    let square: f32 = x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum();
                    (square / want.iter().map(|x| x * x).sum::<f32>()).sqrt()
                };
                let (error, effect) = (distance(&got, &want), distance(&plain, &want));
                println!("{arch:?} {quant} {name}: off by {error:.5}; without it {effect:.3}");
                let bound = match quant {
                    QuantType::F16 => 1e-4,
                    QuantType::Q8_0 => 0.1,
                    _ => 0.6,
                };
                assert!(error < bound && effect > 2.0 * error, "{arch:?} {quant} {name}: {error} {effect}");
            }
            let alone: Vec<Vec<Vec<u32>>> = NAMES
                .map(|name| {
                    prompts().into_iter().map(|p| collect(engine.submit(request(p, name))).unwrap()).collect()
                })
                .into();
            assert_eq!(mixed(&beside(&file, [&a, &b], |c| c.kv_type = Some(KvType::F32))), alone);
        }
    }
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [base, a, _] = save_all(dir.path(), &config(Architecture::InternLm2), DType::F32);
    let load = |path: &Path| {
        let adapters = [("other".to_owned(), path.to_path_buf())].into();
        let error = Engine::load(&base, None, &EngineConfig { adapters, ..engine_config() }).err();
        format!("{:#}", error.expect("it does not fit"))
    };
    let of_llama = dir.path().join("llama");
    save_adapter(&of_llama, &config(Architecture::Llama), 4, 1, |_| true);
    let error = load(&of_llama);
    assert!(error.contains("loading the adapter other") && error.contains("fits no projection"), "{error}");
    let mut wide = config(Architecture::InternLm2);
    wide.hidden_size = 128;
    let of_wide = dir.path().join("wide");
    save_adapter(&of_wide, &wide, 4, 1, |_| true);
    let error = load(&of_wide);
    assert!(error.contains("has shape [4, 128], expected [4, 64]"), "{error}");
    let engine = beside(&base, [&a, &a], |_| {});
    let error = engine.check(&request(vec![1], Some("c"))).unwrap_err().to_string();
    assert!(error.starts_with("there is no adapter c"), "{error}");
}
