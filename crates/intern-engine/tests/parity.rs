//! The engine's forward equals the training model's, for every family and storage.

mod support;

use candle_core::{DType, Device};
use intern_engine::quantize::{self, QuantType, QuantizeConfig};
use intern_engine::{Engine, EngineRequest};
use intern_model::lora::{self, LoraConfig};
use intern_model::{Architecture, RopeScaling, Transformer};
use support::*;

#[test]
fn every_family_has_the_training_models_logits() {
    for arch in Architecture::ALL {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let dir = tempfile::tempdir().unwrap();
            let model = save(&config(arch), dir.path(), dtype);
            let tokens = prompt(75, 1); // more than one chunk, more than the sliding window
            let got = load(dir.path()).logits(&tokens).unwrap();
            assert_close(&got, &oracle(&model, &tokens), 1e-4, &format!("{arch:?} {dtype:?}"));
        }
    }
}

#[test]
fn every_rope_scaling_works_past_the_trained_context() {
    let yarn = |truncate| RopeScaling::Yarn {
        factor: 4.0,
        attention_factor: None,
        beta_fast: 32.0,
        beta_slow: 1.0,
        mscale: None,
        mscale_all_dim: None,
        truncate,
        original_max_position_embeddings: 32,
    };
    for scaling in
        [RopeScaling::Linear { factor: 4.0 }, RopeScaling::Dynamic { factor: 2.0 }, yarn(true), yarn(false)]
    {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(Architecture::InternLm2);
        config.max_position_embeddings =
            if matches!(scaling, RopeScaling::Dynamic { .. }) { 32 } else { 128 };
        config.rope_scaling = scaling;
        let model = save(&config, dir.path(), DType::F32);
        let tokens = prompt(90, 2);
        let engine_config = intern_engine::EngineConfig { max_context: Some(128), ..engine_config() };
        let engine = Engine::load(dir.path(), None, &engine_config).unwrap();
        let got = engine.logits(&tokens).unwrap();
        assert_close(&got, &oracle(&model, &tokens), 1e-4, &format!("{:?}", config.rope_scaling));
    }
}

/// Quantizes `dir` and returns logits from the file.
fn through_gguf(dir: &std::path::Path, quant: QuantType, tokens: &[u32]) -> Vec<f32> {
    let out = dir.join(format!("{quant}.gguf"));
    quantize::run(&QuantizeConfig::new(dir, quant), &out).unwrap();
    load(&out).logits(tokens).unwrap()
}

#[test]
fn a_16_bit_file_loses_nothing() {
    for arch in Architecture::ALL {
        let dir = tempfile::tempdir().unwrap();
        let model = save(&config(arch), dir.path(), DType::F16);
        let tokens = prompt(40, 3);
        let got = through_gguf(dir.path(), QuantType::F16, &tokens);
        assert_close(&got, &oracle(&model, &tokens), 1e-4, &format!("{arch:?}"));
    }
}

#[test]
fn fewer_bits_lose_little() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(Architecture::InternLm2);
    (config.hidden_size, config.head_dim, config.intermediate_size) = (256, 64, 512);
    let model = Transformer::init(&config, 7, &Device::Cpu).unwrap();
    model.save(dir.path(), DType::F32).unwrap();
    tokenizer().save(dir.path()).unwrap();
    let tokens = prompt(40, 4);
    let want = oracle(&model, &tokens);
    let power: f32 = want.iter().map(|x| x * x).sum();
    for (quant, most) in [
        (QuantType::Q8_0, 0.02),
        (QuantType::Q6_K, 0.08),
        (QuantType::Q5_K_M, 0.15),
        (QuantType::Q4_K_M, 0.3),
        (QuantType::Q4_0, 0.4),
    ] {
        let got = through_gguf(dir.path(), quant, &tokens);
        let error: f32 = got.iter().zip(&want).map(|(a, b)| (a - b) * (a - b)).sum();
        let relative = (error / power).sqrt();
        assert!(relative < most, "{quant}: {relative}");
    }
}

#[test]
fn integers_stay_close_and_a_batch_changes_no_bit() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(Architecture::InternLm2);
    (config.hidden_size, config.head_dim, config.intermediate_size) = (256, 64, 512);
    Transformer::init(&config, 7, &Device::Cpu).unwrap().save(dir.path(), DType::F32).unwrap();
    tokenizer().save(dir.path()).unwrap();
    let tokens = prompt(40, 4);
    for quant in [QuantType::Q8_0, QuantType::Q4_0, QuantType::Q4_K_M, QuantType::Q5_K_M, QuantType::Q6_K] {
        let out = dir.path().join(format!("{quant}.gguf"));
        quantize::run(&QuantizeConfig::new(dir.path(), quant), &out).unwrap();
        let engine = load(&out);
        let (got, want) = (engine.logits(&tokens).unwrap(), load_exact(&out).logits(&tokens).unwrap());
        let power: f32 = want.iter().map(|x| x * x).sum();
        let error: f32 = got.iter().zip(&want).map(|(a, b)| (a - b) * (a - b)).sum();
        assert!((error / power).sqrt() < 0.02, "{quant}: {}", (error / power).sqrt());
        // Alone, and beside others whose prompts are read in the same steps.
        let alone: Vec<Vec<u32>> =
            (0..6).map(|i| generate(&engine, &prompt(5 + 9 * i, i as u64), greedy(12))).collect();
        let receivers: Vec<_> = (0..6)
            .map(|i| engine.submit(EngineRequest::new(prompt(5 + 9 * i, i as u64), greedy(12))))
            .collect();
        for (alone, receiver) in alone.iter().zip(receivers) {
            assert_eq!(*alone, collect(receiver).unwrap(), "{quant}");
        }
    }
}

#[test]
fn a_quantized_file_is_made_once_and_describes_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(Architecture::InternLm2);
    config.intermediate_size = 100; // not whole blocks of anything
    save(&config, dir.path(), DType::F32);
    let out = dir.path().with_extension("gguf");
    let run =
        QuantizeConfig { name: Some("tiny".into()), ..QuantizeConfig::new(dir.path(), QuantType::Q4_K_M) };
    let summary = quantize::run(&run, &out).unwrap();
    assert_eq!(summary.architecture, "internlm2");
    assert_eq!(summary.bytes_after, std::fs::metadata(&out).unwrap().len());
    assert!(summary.warnings.iter().any(|w| w.contains("Q5_0") && w.contains("rows of 64")), "{summary:?}");
    assert!(summary.warnings.iter().any(|w| w.contains("F16") && w.contains("rows of 100")), "{summary:?}");
    let written = std::fs::metadata(&out).unwrap().modified().unwrap();
    assert_eq!(quantize::run(&run, &out).unwrap(), summary);
    assert_eq!(std::fs::metadata(&out).unwrap().modified().unwrap(), written, "nothing was written again");
    let engine = load(&out);
    assert_eq!(engine.model_name(), "tiny");
    assert_eq!(engine.eos_ids(), [2]);
    std::fs::remove_file(&out).unwrap();
    std::fs::remove_file(intern_format::provenance::location(&out)).ok();
}

#[test]
fn an_adapter_is_merged_on_load() {
    let dir = tempfile::tempdir().unwrap();
    let (base, adapter, merged) =
        (dir.path().join("base"), dir.path().join("adapter"), dir.path().join("merged"));
    let mut model = save(&config(Architecture::InternLm2), &base, DType::F32);
    let targets = vec!["wqkv".to_owned(), "w2".to_owned()];
    model
        .add_lora(&LoraConfig { r: 4, alpha: 8.0, target_modules: targets, use_rslora: true, seed: 3 })
        .unwrap();
    for (_, var) in model.lora_vars() {
        let noise = candle_core::Tensor::randn(0f32, 0.1, var.dims(), &candle_core::Device::Cpu).unwrap();
        var.set(&noise).unwrap();
    }
    model.save_adapter(&adapter, None).unwrap();
    lora::merge(&base, &adapter, &merged).unwrap();
    let tokens = prompt(20, 5);
    let got = Engine::load(&base, Some(&adapter), &engine_config()).unwrap().logits(&tokens).unwrap();
    assert_close(&got, &load(&merged).logits(&tokens).unwrap(), 1e-5, "merged on load and on disk");
    assert_close(&got, &oracle(&model, &tokens), 1e-4, "the training model with its adapter");

    // An adapter of another model is refused, and says why.
    let other = dir.path().join("other");
    let mut llama = save(&config(Architecture::Llama), &other, DType::F32);
    llama.add_lora(&LoraConfig::default()).unwrap();
    llama.save_adapter(&other.join("adapter"), None).unwrap();
    let error =
        Engine::load(&base, Some(&other.join("adapter")), &engine_config()).err().unwrap().to_string();
    assert!(error.contains("hint: does the adapter belong to this base model?"), "{error}");
}
