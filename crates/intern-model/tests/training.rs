//! What training relies on: no gradient is lost, packing does not leak, threads and depth do not
//! matter, LoRA trains its own matrices only.

use candle_core::{DType, Device};
use intern_model::{Architecture, Batch, LoraConfig, ModelConfig, Transformer};

fn config(arch: Architecture) -> ModelConfig {
    ModelConfig { rms_norm_eps: 1e-6, ..ModelConfig::small(arch, 50, 32, 2, 4, 2) }
}

fn init(config: &ModelConfig) -> Transformer {
    Transformer::init(config, 7, &Device::Cpu).unwrap()
}

/// Ids that differ from row to row and place to place.
fn row(len: usize, salt: u32) -> Vec<u32> {
    (0..len as u32).map(|i| (i * i * 7 + i * 3 + salt * 11) % 50).collect()
}

fn batch(rows: usize, t: usize) -> Batch {
    let rows: Vec<Vec<u32>> = (0..rows).map(|r| row(t + 1, r as u32)).collect();
    Batch::next_token(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn in_pool<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

#[test]
fn every_parameter_of_every_family_gets_a_gradient() {
    for arch in Architecture::ALL {
        for tie_word_embeddings in [false, true] {
            let bias = matches!(arch, Architecture::InternLm3 | Architecture::Llama);
            let base = config(arch);
            let attention_bias = base.attention_bias || bias;
            let config = ModelConfig {
                tie_word_embeddings,
                attention_bias,
                output_bias: bias,
                mlp_bias: bias,
                ..base
            };
            let model = init(&config);
            let grads = model.loss(&batch(2, 20)).unwrap().sum.backward().unwrap();
            for (name, var) in model.named_vars() {
                let grad = grads.get(&var).unwrap_or_else(|| panic!("{arch:?}: no gradient for {name}"));
                let size = grad.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(size > 0.0 && size.is_finite(), "{arch:?}: gradient of {name} is {size}");
            }
        }
    }
}

#[test]
fn a_packed_document_has_the_loss_it_has_alone() {
    for arch in [Architecture::InternLm2, Architecture::Qwen3] {
        let model = init(&config(arch));
        let (a, b) = (row(18, 1), row(31, 2));
        let alone = |r: &[u32]| model.eval_loss(&Batch::next_token(&[r])).unwrap();
        let ((sum_a, count_a), (sum_b, count_b)) = (alone(&a), alone(&b));

        let tokens = [&a[..17], &b[..30]].concat();
        let mut packed = Batch::from_rows(&[&tokens]);
        packed.targets = [&a[1..], &b[1..]].concat();
        packed.mask.fill(true);
        packed.doc_starts = vec![vec![0, 17]];
        let (sum, count) = model.eval_loss(&packed).unwrap();
        assert_eq!(count, count_a + count_b);
        assert!((sum - sum_a - sum_b).abs() < 1e-4 * sum, "{sum}, expected {}", sum_a + sum_b);
    }
}

#[test]
fn bits_of_loss_and_gradients_do_not_depend_on_threads() {
    let run = || {
        let model = init(&config(Architecture::InternLm2));
        let loss = model.loss(&batch(5, 70)).unwrap();
        let grads = loss.sum.backward().unwrap();
        let mut bits = vec![loss.sum.to_scalar::<f32>().unwrap().to_bits()];
        for (_, var) in model.named_vars() {
            let grad: Vec<f32> = grads.get(&var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            bits.extend(grad.iter().map(|g| g.to_bits()));
        }
        bits
    };
    let one = in_pool(1, run);
    for threads in [2, 5] {
        assert!(one == in_pool(threads, run), "{threads} threads");
    }
}

#[test]
fn starting_weights_depend_on_the_seed_and_the_name_only() {
    let config = config(Architecture::Llama);
    let weights = |seed: u64| -> Vec<Vec<f32>> {
        let model = Transformer::init(&config, seed, &Device::Cpu).unwrap();
        model.named_vars().iter().map(|(_, v)| v.flatten_all().unwrap().to_vec1().unwrap()).collect()
    };
    assert_eq!(weights(1), in_pool(3, || weights(1)));
    assert_ne!(weights(1), weights(2));
    let embedding = &weights(1)[0];
    let mean = embedding.iter().sum::<f32>() / embedding.len() as f32;
    let deviation = (embedding.iter().map(|x| x * x).sum::<f32>() / embedding.len() as f32).sqrt();
    assert!(mean.abs() < 2e-3 && (deviation - 0.02).abs() < 2e-3, "{mean} {deviation}");
}

#[test]
fn thirty_two_layers_go_backward() {
    let config = ModelConfig { num_layers: 32, ..config(Architecture::InternLm2) };
    let model = init(&config);
    let grads = model.loss(&batch(1, 8)).unwrap().sum.backward().unwrap();
    assert!(model.named_vars().iter().all(|(_, var)| grads.get(var).is_some()));
}

#[test]
fn lora_trains_its_own_matrices_and_nothing_else() {
    let mut model = init(&config(Architecture::InternLm2));
    let before = model.eval_loss(&batch(2, 16)).unwrap();
    model.add_lora(&LoraConfig { r: 3, seed: 5, ..LoraConfig::default() }).unwrap();
    assert_eq!(model.eval_loss(&batch(2, 16)).unwrap(), before, "B starts at zero");
    let names: Vec<String> = model.lora_vars().into_iter().map(|(name, _)| name).take(2).collect();
    assert_eq!(
        names,
        [
            "base_model.model.model.layers.0.attention.wqkv.lora_A.weight",
            "base_model.model.model.layers.0.attention.wqkv.lora_B.weight"
        ]
    );
    assert_eq!(model.lora_vars().len(), 2 * 2 * 5); // A and B, two layers, wqkv wo w1 w3 w2
    for (name, var) in model.lora_vars() {
        if name.contains("lora_B") {
            let moved = var.ones_like().unwrap().affine(0.01, 0.0).unwrap();
            var.set(&moved).unwrap();
        }
    }
    let grads = model.loss(&batch(2, 16)).unwrap().sum.backward().unwrap();
    for (name, var) in model.lora_vars() {
        assert!(grads.get(&var).is_some(), "no gradient for {name}");
    }
    for (name, var) in model.named_vars() {
        assert!(grads.get(&var).is_none(), "frozen {name} has a gradient");
    }
    assert_eq!(model.trainable_vars().len(), model.lora_vars().len());
}

#[test]
fn adapters_survive_saving_and_equal_their_merge() {
    for (use_rslora, targets) in [(false, vec!["wqkv".to_owned(), "w2".to_owned()]), (true, Vec::new())] {
        let dir = tempfile::tempdir().unwrap();
        let (base, adapter, merged) =
            (dir.path().join("base"), dir.path().join("adapter"), dir.path().join("merged"));
        let mut model = init(&config(Architecture::InternLm2));
        model.save(&base, DType::F32).unwrap();
        model
            .add_lora(&LoraConfig { r: 2, alpha: 5.0, target_modules: targets, use_rslora, seed: 1 })
            .unwrap();
        for (i, (_, var)) in model.lora_vars().into_iter().enumerate() {
            let n = var.elem_count();
            let values: Vec<f32> = (0..n).map(|j| ((i * 31 + j * 17) % 23) as f32 / 50.0 - 0.2).collect();
            var.set(&candle_core::Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
        model.save_adapter(&adapter, Some("base")).unwrap();
        intern_model::lora::merge(&base, &adapter, &merged).unwrap();
        let load = |dir: &std::path::Path| Transformer::load(dir, DType::F32, &Device::Cpu).unwrap();
        let mut again = load(&base);
        again.load_adapter(&adapter).unwrap();
        let logits = |m: &Transformer| -> Vec<f32> {
            m.forward(&batch(1, 12)).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        assert_eq!(logits(&again), logits(&model), "loaded");
        for (a, b) in logits(&load(&merged)).iter().zip(&logits(&model)) {
            assert!((a - b).abs() < 1e-4, "merged {a}, attached {b}");
        }
    }
}

#[test]
fn mistakes_are_named() {
    let mut model = init(&config(Architecture::Llama));
    let error = model
        .add_lora(&LoraConfig { target_modules: vec!["wqkv".to_owned()], ..LoraConfig::default() })
        .unwrap_err()
        .to_string();
    assert!(error.contains("wqkv") && error.contains("q_proj") && error.contains("hint:"), "{error}");

    let mut wrong = batch(1, 4);
    wrong.tokens[2] = 50;
    let error = model.forward(&wrong).unwrap_err().to_string();
    assert!(error.contains("token id 50") && error.contains("hint:"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path(), DType::F32).unwrap();
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path)
        .unwrap()
        .replace("\"intermediate_size\": 96", "\"intermediate_size\": 64");
    std::fs::write(&path, text).unwrap();
    let error = Transformer::load(dir.path(), DType::F32, &Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("gate_proj") && error.contains("[96, 32]") && error.contains("hint:"), "{error}");
}
