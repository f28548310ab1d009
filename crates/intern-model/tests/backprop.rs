//! The hand-written backward pass against candle's autograd over the same kernels: every family,
//! tied and untied, packed documents, sliding windows, adapters; and the same bits however many
//! layers are computed twice.

use std::sync::Mutex;

use candle_core::Device;
use intern_model::backprop::{Backprop, Precision, Settings, Sink, Workspace};
use intern_model::{Architecture, Batch, LoraConfig, ModelConfig, Transformer};

/// Adds up what it is given, in the order it comes.
struct Sum(Mutex<Vec<Vec<f32>>>);

impl Sink for Sum {
    fn add(&self, param: usize, at: usize, values: &[f32]) {
        let into = &mut self.0.lock().unwrap()[param][at..at + values.len()];
        into.iter_mut().zip(values).for_each(|(a, b)| *a += b);
    }
}

/// Loss and gradients of all rows of `batch`.
fn gradients(
    model: &Transformer,
    batch: &Batch,
    recompute: usize,
    precision: Precision,
) -> (f64, Vec<Vec<f32>>) {
    let sizes = model.trainable_vars().into_iter().map(|(_, v)| vec![0.0; v.elem_count()]);
    let sum = Sum(Mutex::new(sizes.collect()));
    let backprop = Backprop::new(model, Settings { precision, recompute, z_loss: 0.0 });
    let mut work = Workspace::default();
    let loss = (0..batch.b).map(|row| backprop.gradients(batch, row, &mut work, &sum).unwrap()).sum();
    let alone: f64 = (0..batch.b).map(|row| backprop.loss(batch, row, &mut work).unwrap()).sum();
    assert_eq!(alone, loss, "the loss does not depend on whether gradients are wanted");
    (loss, sum.0.into_inner().unwrap())
}

/// The norm of `a - b` as a share of that of `b`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let size = norm(&mut b.iter().copied());
    assert!(size > 0.0, "a gradient of zero");
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / size
}

/// Two rows of 40 tokens: one document, and three of which the second is not trained on.
fn batch() -> Batch {
    let row = |salt: u32| -> Vec<u32> { (0..41).map(|i| (i * i * 7 + i * 3 + salt * 11) % 50).collect() };
    let mut batch = Batch::next_token(&[&row(1), &row(2)]);
    batch.doc_starts[1] = vec![0, 9, 22];
    batch.mask[40 + 9..40 + 22].fill(false);
    batch
}

#[track_caller]
fn check(what: &str, model: &Transformer) {
    let batch = batch();
    let (loss, ours) = gradients(model, &batch, 0, Precision::F32);
    let autograd = model.loss(&batch).unwrap();
    let expect = f64::from(autograd.sum.to_scalar::<f32>().unwrap());
    assert!((loss - expect).abs() < 1e-5 * expect, "{what}: loss {loss}, not {expect}");
    let store = autograd.sum.backward().unwrap();
    for ((name, var), ours) in model.trainable_vars().iter().zip(&ours) {
        let theirs: Vec<f32> = store.get(var).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let error = distance(ours, &theirs);
        assert!(error <= 1e-5, "{what}: gradient of {name} is off by {error:e}");
    }
    for recompute in 1..=model.config().num_layers {
        assert!(
            gradients(model, &batch, recompute, Precision::F32) == (loss, ours.clone()),
            "{what}: {recompute} layers twice"
        );
    }
}

#[test]
fn every_family_has_the_gradients_of_autograd() {
    for arch in Architecture::ALL {
        for tie_word_embeddings in [false, true] {
            let bias = matches!(arch, Architecture::InternLm3 | Architecture::Llama);
            let base = ModelConfig::small(arch, 50, 32, 2, 4, 2);
            let attention_bias = base.attention_bias || bias;
            let config = ModelConfig {
                tie_word_embeddings,
                attention_bias,
                output_bias: bias,
                mlp_bias: bias,
                sliding_window: (arch == Architecture::Mistral).then_some(7),
                ..base
            };
            let model = Transformer::init(&config, 7, &Device::Cpu).unwrap();
            check(&format!("{arch:?}, tied: {tie_word_embeddings}"), &model);
        }
    }
}

#[test]
fn adapters_have_the_gradients_of_autograd() {
    for targets in [vec![], vec!["wqkv".to_string(), "w2".to_string()]] {
        let config = ModelConfig::small(Architecture::InternLm2, 50, 32, 2, 4, 2);
        let mut model = Transformer::init(&config, 7, &Device::Cpu).unwrap();
        let lora = LoraConfig { r: 3, seed: 5, target_modules: targets, ..LoraConfig::default() };
        model.add_lora(&lora).unwrap();
        for (name, var) in model.lora_vars() {
            if name.contains("lora_B") {
                var.set(&var.ones_like().unwrap().affine(0.01, 0.0).unwrap()).unwrap();
            }
        }
        check("adapters", &model);
    }
}

#[test]
fn bf16_is_near_f32_and_the_same_however_much_is_kept() {
    for arch in [Architecture::InternLm2, Architecture::Qwen3] {
        let config = ModelConfig::small(arch, 50, 32, 2, 4, 2);
        let model = Transformer::init(&config, 7, &Device::Cpu).unwrap();
        let batch = batch();
        let (exact, full) = gradients(&model, &batch, 0, Precision::F32);
        let (loss, half) = gradients(&model, &batch, 0, Precision::Bf16);
        assert!(loss != exact && (loss - exact).abs() < 2e-3 * exact, "{arch:?}: loss {loss}, not {exact}");
        for ((name, _), (half, full)) in model.trainable_vars().iter().zip(half.iter().zip(&full)) {
            let error = distance(half, full);
            assert!(error > 0.0 && error < 0.03, "{arch:?}: gradient of {name} is off by {error:e}");
        }
        for recompute in 1..=2 {
            assert!(
                gradients(&model, &batch, recompute, Precision::Bf16) == (loss, half.clone()),
                "{arch:?}: {recompute} layers twice"
            );
        }
    }
}
