//! Conversions: InternLM2 and Llama both ways, llama2.c files with their documented losses.

use candle_core::{DType, Device};
use intern_model::{Architecture, Batch, Transformer, convert};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn asset(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("INTERN_ASSETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/assets"), PathBuf::from);
    let path = root.join("models").join(name);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

fn load(dir: &Path) -> Transformer {
    Transformer::load(dir, DType::F32, &Device::Cpu).unwrap()
}

fn logits(model: &Transformer, row: &[u32]) -> Vec<f32> {
    model.forward(&Batch::from_rows(&[row])).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

const ROW: [u32; 9] = [3, 90, 17, 44, 5, 6, 81, 20, 9];

#[test]
fn internlm2_becomes_llama_and_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let (source, llama, back) = (golden("internlm2"), dir.path().join("llama"), dir.path().join("back"));
    convert::internlm2_to_llama(&source, &llama).unwrap();
    let model = load(&llama);
    assert_eq!(model.config().arch, Architecture::Llama);
    let (got, expect) = (logits(&model, &ROW), logits(&load(&source), &ROW));
    for (g, e) in got.iter().zip(&expect) {
        assert!((g - e).abs() < 1e-5);
    }
    convert::llama_to_internlm2(&llama, &back).unwrap();
    assert_eq!(load(&back).config(), load(&source).config());
    let weights = |dir: &Path| {
        let checkpoint = intern_format::checkpoint::Checkpoint::open(dir).unwrap();
        let names: Vec<String> = checkpoint.names().map(str::to_owned).collect();
        names.into_iter().map(|n| (checkpoint.tensor(&n).unwrap().data.to_vec(), n)).collect::<Vec<_>>()
    };
    assert_eq!(weights(&back), weights(&source));
}

#[test]
fn what_internlm2_cannot_hold_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let check = |name: &str, expect: &str| {
        let error = convert::llama_to_internlm2(&golden(name), &dir.path().join("out")).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(expect) && text.contains("hint:"), "{text}");
    };
    check("qwen3", "model_type is qwen3");
    check("mistral", "sliding attention window");
    check("llama3", "biases");
    let error = convert::internlm2_to_llama(&golden("llama2"), &dir.path().join("out")).unwrap_err();
    assert!(format!("{error:#}").contains("Llama's layout already"));
}

/// Converts, runs, and compares with what `check_llama2c.py` (numpy) gives for the same tokens.
fn check_llama2c(bin: &str, tokenizer: &str, ids: &[u32], nats: f64, greedy_from: usize) {
    let (Some(bin), Some(tokenizer)) = (asset(bin), asset(tokenizer)) else { return };
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    convert::llama2c_to_hf(&bin, Some(&tokenizer), &out).unwrap();
    assert!(out.join("tokenizer.model").is_file() && out.join("tokenizer_config.json").is_file());
    let model = load(&out);
    let (sum, count) = model.eval_loss(&Batch::next_token(&[ids])).unwrap();
    let loss = sum / count as f64;
    assert!((loss - nats).abs() < 1e-4, "{loss} nats per token, expected {nats}");

    let mut row = ids[..greedy_from].to_vec();
    for _ in 0..24 {
        let all = logits(&model, &row);
        let vocab = model.config().vocab_size;
        let last = &all[all.len() - vocab..];
        row.push((0..vocab).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap() as u32);
    }
    assert_eq!(row, ids[..greedy_from + 24], "the model tells its story");
}

/// "Once upon a time, there was a little girl named Lily. … she saw a big, red ball."
const STORY_512: [u32; 45] = [
    1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401, 396, 267, 337,
    410, 408, 419, 292, 411, 322, 265, 282, 295, 433, 426, 385, 328, 432, 358, 394, 261, 370, 432, 352, 266,
    268, 388, 426,
];
/// The same, a token per character.
const STORY_105: [u32; 128] = [
    1, 3, 34, 9, 22, 4, 3, 18, 20, 7, 9, 3, 5, 3, 6, 10, 16, 4, 25, 3, 6, 8, 4, 13, 4, 3, 17, 5, 12, 3, 5, 3,
    14, 10, 6, 6, 14, 4, 3, 21, 10, 13, 14, 3, 9, 5, 16, 4, 11, 3, 31, 10, 14, 15, 19, 3, 30, 8, 4, 3, 14, 7,
    28, 4, 11, 3, 6, 7, 3, 20, 14, 5, 15, 3, 7, 18, 6, 12, 10, 11, 4, 3, 10, 9, 3, 6, 8, 4, 3, 20, 5, 13, 26,
    19, 3, 34, 9, 4, 3, 11, 5, 15, 25, 3, 12, 8, 4, 3, 12, 5, 17, 3, 5, 3, 23, 10, 21, 25, 3, 13, 4, 11, 3,
    23, 5, 14, 14, 19,
];

#[test]
fn stories260k_reproduces_its_loss_from_both_file_versions() {
    for bin in ["stories260K/checkpoint_legacy.bin", "stories260K/checkpoint_v1.bin"] {
        for tokenizer in ["stories260K/tok512.model", "stories260K/tok512.bin"] {
            check_llama2c(bin, tokenizer, &STORY_512, 0.324_099_66, 5);
        }
    }
}

#[test]
fn babyllama105_reproduces_its_loss() {
    check_llama2c("babyllama105/model5000.bin", "babyllama105/tok105.model", &STORY_105, 0.122_288_05, 18);
}

#[test]
fn damaged_llama2c_files_are_explained() {
    let Some(path) = asset("stories260K/checkpoint_v1.bin") else { return };
    let data = std::fs::read(path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let check = |data: &[u8], expect: &str| {
        let bin = dir.path().join("model.bin");
        std::fs::write(&bin, data).unwrap();
        let error = convert::llama2c_to_hf(&bin, None, &dir.path().join("out")).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(expect) && text.contains("model.bin"), "{text}");
    };
    check(&data[..20], "expected a header");
    check(&data[..data.len() - 4], "truncated");
    let mut version = data.clone();
    version[4] = 2;
    check(&version, "format version 2");
    let mut heads = data.clone();
    heads[20..24].copy_from_slice(&7i32.to_le_bytes());
    check(&heads, "7 heads");
    assert!(!dir.path().join("out").exists());
}
