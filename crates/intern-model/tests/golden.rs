//! The model against transformers and PEFT: logits, greedy continuations, gradients, adapters.
//!
//! Checkpoints and golden tensors are in `tests/golden/`, made by `make_golden.py` there.

use candle_core::{DType, Device};
use intern_format::checkpoint::SafetensorsFile;
use intern_model::{Batch, Transformer};
use std::path::{Path, PathBuf};

const FAMILIES: [&str; 7] = ["internlm2", "internlm3", "llama2", "llama3", "mistral", "qwen2", "qwen3"];
const ROPE: [&str; 5] = ["rope-linear", "rope-dynamic", "rope-llama3", "rope-yarn", "rope-yarn-mscale"];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn load(dir: &Path) -> Transformer {
    Transformer::load(dir, DType::F32, &Device::Cpu).unwrap()
}

/// A `rope-*` case: its own configuration over the weights of `llama2`.
fn with_llama2_weights(name: &str) -> (tempfile::TempDir, Transformer) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(golden(name).join("config.json"), dir.path().join("config.json")).unwrap();
    std::fs::copy(golden("llama2/model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let model = load(dir.path());
    (dir, model)
}

struct Golden {
    file: SafetensorsFile,
}

impl Golden {
    fn open(name: &str) -> Self {
        Self { file: SafetensorsFile::open(&golden(name).join("golden.safetensors")).unwrap() }
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.file.tensor(name).unwrap().to_f32()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.floats(name).into_iter().map(|x| x as u32).collect()
    }

    /// The prompt's rows.
    fn rows(&self) -> Vec<Vec<u32>> {
        let t = self.file.tensor("tokens").unwrap().shape[1];
        self.ids("tokens").chunks(t).map(<[u32]>::to_vec).collect()
    }
}

fn logits(model: &Transformer, rows: &[Vec<u32>]) -> Vec<f32> {
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    model.forward(&Batch::from_rows(&rows)).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn check_logits(name: &str, got: &[f32], expect: &[f32]) {
    assert_eq!(got.len(), expect.len());
    let worst = got.iter().zip(expect).map(|(g, e)| (g - e).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{name}: logits differ by {worst:e}");
}

fn check_forward(name: &str, model: &Transformer) {
    let golden = Golden::open(name);
    let rows = golden.rows();
    check_logits(name, &logits(model, &rows), &golden.floats("logits"));

    let mut row = rows[0].clone();
    let vocab = model.config().vocab_size;
    for _ in 0..64 {
        let all = logits(model, std::slice::from_ref(&row));
        let last = &all[all.len() - vocab..];
        row.push((0..vocab).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap() as u32);
    }
    assert_eq!(row[rows[0].len()..], golden.ids("greedy"), "{name}: greedy continuation");
}

#[test]
fn every_family_gives_the_logits_and_continuation_of_transformers() {
    for name in FAMILIES {
        check_forward(name, &load(&golden(name)));
    }
}

#[test]
fn every_rope_scaling_agrees_past_its_original_context() {
    for name in ROPE {
        let (_dir, model) = with_llama2_weights(name);
        check_forward(name, &model);
    }
}

#[test]
fn gradients_of_every_parameter_agree_with_pytorch() {
    for name in FAMILIES {
        let file = Golden::open(name);
        let model = load(&golden(name));
        let rows = file.rows();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let mut batch = Batch::from_rows(&rows);
        let labels = file.floats("labels");
        batch.mask = labels.iter().map(|l| *l >= 0.0).collect();
        batch.targets = labels.iter().map(|l| l.max(0.0) as u32).collect();

        let loss = model.loss(&batch).unwrap();
        let mean = loss.sum.to_scalar::<f32>().unwrap() / loss.count as f32;
        let expect = file.floats("loss")[0];
        assert!(
            (mean - expect).abs() < 1e-5 * expect.abs().max(1.0),
            "{name}: loss {mean}, expected {expect}"
        );
        let (sum, count) = model.eval_loss(&batch).unwrap();
        assert!((sum as f32 / count as f32 - expect).abs() < 1e-5 * expect.abs().max(1.0));

        let grads = loss.sum.backward().unwrap();
        for (parameter, var) in model.named_vars() {
            let grad = grads.get(&var).unwrap_or_else(|| panic!("{name}: no gradient for {parameter}"));
            let got: Vec<f32> = grad.flatten_all().unwrap().to_vec1().unwrap();
            let expect = file.floats(&format!("grad.{parameter}"));
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
            let count = loss.count as f32;
            let error = norm(&mut got.iter().zip(&expect).map(|(g, e)| g / count - e));
            // A key bias moves no softmax: its gradient is zero up to rounding.
            let scale = norm(&mut expect.iter().copied()).max(1e-4);
            assert!(error < 1e-3 * scale, "{name}: gradient of {parameter} off by {:e}", error / scale);
        }
    }
}

#[test]
fn adapters_made_by_peft_give_its_logits_attached_and_merged() {
    for name in ["adapter-lora", "adapter-rslora"] {
        let expect = Golden::open(name);
        let mut model = load(&golden("llama2"));
        model.load_adapter(&golden(name)).unwrap();
        check_logits(name, &logits(&model, &expect.rows()), &expect.floats("logits"));

        // Merged into f32 weights, since the golden base is stored in bf16.
        let dir = tempfile::tempdir().unwrap();
        let (base, out) = (dir.path().join("base"), dir.path().join("out"));
        load(&golden("llama2")).save(&base, DType::F32).unwrap();
        intern_model::lora::merge(&base, &golden(name), &out).unwrap();
        check_logits(name, &logits(&load(&out), &expect.rows()), &expect.floats("logits"));
    }
}

#[test]
fn saved_checkpoints_load_back_with_the_same_logits() {
    for name in FAMILIES {
        let dir = tempfile::tempdir().unwrap();
        let model = load(&golden(name));
        let rows = Golden::open(name).rows();
        for dtype in [DType::F32, DType::BF16] {
            let out = dir.path().join(format!("{dtype:?}"));
            model.save(&out, dtype).unwrap();
            let back = load(&out);
            assert_eq!(back.config(), model.config(), "{name}");
            // The golden weights are exact in bf16.
            assert_eq!(logits(&back, &rows), logits(&model, &rows), "{name} {dtype:?}");
        }
    }
}

#[test]
fn weights_held_in_bf16_give_the_same_logits() {
    for name in ["internlm2", "qwen3"] {
        let model = Transformer::load(&golden(name), DType::BF16, &Device::Cpu).unwrap();
        check_logits(name, &logits(&model, &Golden::open(name).rows()), &Golden::open(name).floats("logits"));
    }
}
