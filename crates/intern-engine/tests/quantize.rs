//! What `quantize` makes of floats, of packed 4-bit weights, and of calibration text.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::DType;
use intern_engine::quantize::{self, QuantType, QuantizeConfig};
use intern_format::checkpoint::{Checkpoint, DType as Stored};
use intern_format::gguf::Gguf;
use intern_format::safetensors::{TensorSpec, write_safetensors};
use intern_model::{Architecture, ModelConfig, Transformer};
use serde_json::json;
use support::*;

/// Wide enough for super-blocks.
fn wide(arch: Architecture) -> ModelConfig {
    let mut config = config(arch);
    (config.hidden_size, config.head_dim, config.intermediate_size) = (256, 64, 512);
    config
}

/// Writes a random model of that shape, with weights as small as trained ones.
fn save_wide(arch: Architecture, dir: &Path, dtype: DType) -> Transformer {
    save_spread(&wide(arch), dir, dtype, 0.04)
}

/// Relative error of the logits of `model` at `path` on some prompt.
fn error(model: &Transformer, path: &Path) -> f32 {
    let tokens = prompt(60, 4);
    let (want, got) = (oracle(model, &tokens), load_exact(path).logits(&tokens).unwrap());
    let square = |x: f32| x * x;
    let error: f32 = got.iter().zip(&want).map(|(a, b)| square(a - b)).sum();
    (error / want.iter().copied().map(square).sum::<f32>()).sqrt()
}

#[test]
fn a_gguf_of_floats_gives_the_same_tensors_as_its_checkpoint() {
    for arch in [Architecture::InternLm2, Architecture::Llama, Architecture::Qwen3] {
        let dir = tempfile::tempdir().unwrap();
        save_wide(arch, dir.path(), DType::F16);
        let file = |name: &str| dir.path().join(name);
        let run = |model: &Path, quant: QuantType, out: &str| {
            quantize::run(&QuantizeConfig::new(model, quant), &file(out)).unwrap()
        };
        run(dir.path(), QuantType::F16, "f16.gguf");
        for quant in [QuantType::Q5_K_M, QuantType::Q4_0] {
            let direct = run(dir.path(), quant, "a.gguf");
            let through = run(&file("f16.gguf"), quant, "b.gguf");
            assert_eq!((direct.tensors, direct.parameters), (through.tensors, through.parameters));
            let (a, b) = (Gguf::open(&file("a.gguf")).unwrap(), Gguf::open(&file("b.gguf")).unwrap());
            for info in a.tensors() {
                let other = b.tensor(&info.name).unwrap();
                assert_eq!(a.data(info), b.data(other), "{arch:?} {quant} {}", info.name);
            }
            assert_eq!(a.metadata().len(), b.metadata().len());
            assert_eq!(a.get("general.file_type"), b.get("general.file_type"));
        }
        let again = QuantizeConfig::new(file("a.gguf"), QuantType::Q8_0);
        let refused = quantize::run(&again, &file("c.gguf")).unwrap_err().to_string();
        assert!(refused.contains("already") && refused.contains("hint: quantizing twice"), "{refused}");
        assert!(!file("c.gguf").exists());
    }
}

/// A model some of whose channels carry most of the signal, as large models have them.
fn uneven(arch: Architecture, dir: &Path) -> Transformer {
    // Starting weights: random ones as in the other tests multiply every error on the way up.
    let model = Transformer::init(&wide(arch), 7, &candle_core::Device::Cpu).unwrap();
    tokenizer().save(dir).unwrap();
    for (name, var) in model.named_vars() {
        if name.contains("norm") && !name.contains("q_norm") && !name.contains("k_norm") {
            let n = var.dims()[0];
            let values = (0..n).map(|i| if i % 29 == 3 { 6.0 } else { 0.4 }).collect::<Vec<f32>>();
            var.set(&candle_core::Tensor::from_vec(values, n, &candle_core::Device::Cpu).unwrap()).unwrap();
        }
    }
    model.save(dir, DType::F32).unwrap();
    model
}

#[test]
fn calibration_reaches_the_weights_and_breaks_nothing() {
    for arch in [Architecture::InternLm2, Architecture::Qwen2] {
        let dir = tempfile::tempdir().unwrap();
        let model = uneven(arch, dir.path());
        let text = dir.path().join("text.txt");
        std::fs::write(&text, "the cat sat on the mat and 1 + 2 = 3. 一只猫坐在垫子上。".repeat(40)).unwrap();
        // Q4_0, since its embedding is Q6_K: no importance reaches the embedding's errors.
        let run = |imatrix: bool, scale: bool, out: &str| {
            let config = QuantizeConfig {
                imatrix: imatrix.then(|| text.clone()),
                imatrix_tokens: 1200,
                scale,
                ..QuantizeConfig::new(dir.path(), QuantType::Q4_0)
            };
            let out = dir.path().join(out);
            quantize::run(&config, &out).unwrap();
            error(&model, &out)
        };
        let (plain, weighted, scaled) =
            (run(false, false, "p.gguf"), run(true, false, "w.gguf"), run(true, true, "s.gguf"));
        println!("{arch:?}: {plain} plain, {weighted} with importances, {scaled} and scaling");
        // Random weights gain little; whether a real model does is what the perplexity table is for.
        assert!(weighted < 1.5 * plain && scaled < 1.5 * plain, "{arch:?}: {plain} {weighted} {scaled}");
        assert!(weighted != plain && scaled != weighted, "{arch:?}: calibration changed nothing");
        let config = QuantizeConfig { scale: true, ..QuantizeConfig::new(dir.path(), QuantType::Q4_0) };
        let refused = quantize::run(&config, &dir.path().join("x.gguf")).unwrap_err().to_string();
        assert!(refused.contains("hint: add --imatrix"), "{refused}");
    }
}

/// Four-bit integers of a matrix, and what they stand for.
struct Integers {
    rows: usize,
    cols: usize,
    q: Vec<u8>,
    zeros: Vec<u8>,   // (groups, rows)
    scales: Vec<f32>, // (groups, rows), exact in f16
}

const GROUP: usize = 64;

impl Integers {
    fn of(values: &[f32], rows: usize, symmetric: bool) -> Self {
        let cols = values.len() / rows;
        let groups = cols / GROUP;
        let mut out = Self {
            rows,
            cols,
            q: vec![0; rows * cols],
            zeros: vec![8; groups * rows],
            scales: vec![0.0; groups * rows],
        };
        for row in 0..rows {
            for g in 0..groups {
                let at = row * cols + g * GROUP;
                let group = &values[at..at + GROUP];
                let low = group.iter().fold(0.0f32, |m, x| m.min(*x));
                let high = group.iter().fold(0.0f32, |m, x| m.max(*x));
                let span = if symmetric { 2.0 * high.max(-low) } else { high - low };
                let scale = half::f16::from_f32(span / 15.0).to_f32();
                let zero = if symmetric { 8 } else { (-low / scale).round() as u8 };
                (out.zeros[g * rows + row], out.scales[g * rows + row]) = (zero, scale);
                for (q, x) in out.q[at..at + GROUP].iter_mut().zip(group) {
                    *q = (x / scale + f32::from(zero)).round().clamp(0.0, 15.0) as u8;
                }
            }
        }
        out
    }

    fn floats(&self) -> Vec<f32> {
        (0..self.rows * self.cols)
            .map(|i| {
                let at = i % self.cols / GROUP * self.rows + i / self.cols;
                (f32::from(self.q[i]) - f32::from(self.zeros[at])) * self.scales[at]
            })
            .collect()
    }

    /// Words of eight nibbles; `nibble(word_row, word_col, i)` is the `i`-th.
    fn words(rows: usize, cols: usize, nibble: impl Fn(usize, usize, usize) -> u8) -> Vec<u8> {
        let word = |r: usize, c: usize| (0..8).fold(0u32, |w, i| w | u32::from(nibble(r, c, i)) << (4 * i));
        (0..rows * cols).flat_map(|at| word(at / cols, at % cols).to_le_bytes()).collect()
    }

    /// The three tensors of `module` as AutoAWQ or AutoGPTQ store them.
    fn stored(&self, module: &str, awq: bool) -> Vec<(TensorSpec, Vec<u8>)> {
        const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
        let (rows, cols, groups) = (self.rows, self.cols, self.cols / GROUP);
        let (weight_shape, weight, zeros) = if awq {
            (
                vec![cols, rows / 8],
                Self::words(cols, rows / 8, |k, c, i| self.q[(8 * c + ORDER[i]) * cols + k]),
                Self::words(groups, rows / 8, |g, c, i| self.zeros[g * rows + 8 * c + ORDER[i]]),
            )
        } else {
            (
                vec![cols / 8, rows],
                Self::words(cols / 8, rows, |r, n, i| self.q[n * cols + 8 * r + i]),
                Self::words(groups, rows / 8, |g, c, i| self.zeros[g * rows + 8 * c + i] - 1),
            )
        };
        let scales = self.scales.iter().flat_map(|s| half::f16::from_f32(*s).to_le_bytes()).collect();
        [
            ("qweight", Stored::I32, weight_shape, weight),
            ("qzeros", Stored::I32, vec![groups, rows / 8], zeros),
            ("scales", Stored::F16, vec![groups, rows], scales),
        ]
        .map(|(part, dtype, shape, bytes)| {
            (TensorSpec { name: format!("{module}.{part}"), dtype, shape }, bytes)
        })
        .into()
    }
}

/// Rewrites the float checkpoint at `dir` as a packed one at `packed`, and itself as what that stands for.
fn pack(dir: &Path, packed: &Path, awq: bool, symmetric: bool) {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let (mut floats, mut packed_tensors) = (Vec::new(), Vec::new());
    for name in checkpoint.names() {
        let view = checkpoint.tensor(name).unwrap();
        let spec = TensorSpec { name: name.to_owned(), dtype: Stored::F32, shape: view.shape.clone() };
        let outer = ["embed", "lm_head", "output", "norm"].iter().any(|part| name.contains(part));
        match name.strip_suffix(".weight").filter(|_| !outer && view.shape.len() == 2) {
            Some(module) => {
                let integers = Integers::of(&view.to_f32(), view.shape[0], symmetric);
                floats.push((spec, bytemuck::cast_slice(&integers.floats()).to_vec()));
                packed_tensors.extend(integers.stored(module, awq));
            }
            None => {
                floats.push((spec.clone(), view.data.to_vec()));
                packed_tensors.push((spec, view.data.to_vec()));
            }
        }
    }
    let mut config = checkpoint.config().clone();
    drop(checkpoint);
    std::fs::create_dir(packed).unwrap();
    for (at, tensors) in [(dir, &floats), (packed, &packed_tensors)] {
        let specs: Vec<TensorSpec> = tensors.iter().map(|t| t.0.clone()).collect();
        write_safetensors(&at.join("model.safetensors"), &specs, &BTreeMap::new(), |i, out| {
            out.write_all(&tensors[i].1)
        })
        .unwrap();
    }
    config["quantization_config"] = match awq {
        true => {
            json!({"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": true, "version": "gemm"})
        }
        false => {
            json!({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": false, "sym": symmetric})
        }
    };
    std::fs::write(packed.join("config.json"), config.to_string()).unwrap();
    tokenizer().save(packed).unwrap();
}

#[test]
fn packed_checkpoints_run_and_keep_their_integers() {
    for (arch, awq, symmetric) in [
        (Architecture::InternLm2, true, false),
        (Architecture::Llama, true, true),
        (Architecture::Qwen2, false, true),
        (Architecture::InternLm2, false, false),
    ] {
        let what = format!("{arch:?}, awq {awq}, symmetric {symmetric}");
        let dir = tempfile::tempdir().unwrap();
        let (floats, packed) = (dir.path().join("floats"), dir.path().join("packed"));
        save_wide(arch, &floats, DType::F32);
        pack(&floats, &packed, awq, symmetric);
        let tokens = prompt(40, 8);
        let want = load(&floats).logits(&tokens).unwrap();
        // A zero point's product with its scale is rounded to f16; nothing else is.
        let tolerance = if symmetric { 1e-5 } else { 1e-2 };
        assert_close(&load_exact(&packed).logits(&tokens).unwrap(), &want, tolerance, &what);

        let out = dir.path().join("q4.gguf");
        let summary = quantize::run(&QuantizeConfig::new(&packed, QuantType::Q4_0), &out).unwrap();
        let ty = if symmetric { "Q4_0" } else { "Q4_1" };
        assert_eq!(summary.tensors[ty], 7 * 3, "{what}: {:?}", summary.tensors);
        let model = Transformer::load(&floats, DType::F32, &candle_core::Device::Cpu).unwrap();
        let off = error(&model, &out);
        println!("{what}: {off}");
        assert!(off < 0.05, "{what}: {off}"); // embedding and head are Q6_K
        let out = dir.path().join("q8.gguf");
        quantize::run(&QuantizeConfig::new(&packed, QuantType::Q8_0), &out).unwrap();
        assert!(error(&model, &out) < 0.05, "{what}: {}", error(&model, &out));
    }
}
