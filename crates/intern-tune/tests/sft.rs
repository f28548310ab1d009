//! Small fine-tuning runs: isolation of packed samples, full and LoRA, refusals, resuming.

use std::path::Path;

use candle_core::{DType, Device};
use intern_format::conversation::{self, Conversation, Message};
use intern_format::provenance::hash_path;
use intern_kernels::rng::Rng;
use intern_model::{Architecture, Batch, ModelConfig, Transformer};
use intern_tokenizer::train::{BpeConfig, train_bpe};
use intern_tokenizer::{ChatTokens, Tokenizer, internlm2};
use intern_tune::{TuneConfig, prepare, run};
use serde_json::{Value, json};

fn conversations(n: usize) -> Vec<Conversation> {
    let mut rng = Rng::new(3, 0);
    let mut one = || {
        let (a, b) = (rng.below(9), rng.below(9));
        let question = format!("What is {a} plus {b}?");
        let messages = vec![
            Message::new("system", "You add."),
            Message::new("user", question),
            Message::new("assistant", format!("It is {}.", a + b)),
        ];
        Conversation { messages, ..Conversation::default() }
    };
    (0..n).map(|_| one()).collect()
}

/// A base model with its tokenizer in `base`, and conversations in `train.jsonl`.
fn set_up(dir: &Path) -> Tokenizer {
    let all = conversations(40);
    conversation::write_jsonl(&dir.join("train.jsonl"), &all[..32]).unwrap();
    conversation::write_jsonl(&dir.join("valid.jsonl"), &all[32..]).unwrap();
    let mut texts = all.iter().flat_map(|c| c.messages.iter().map(|m| m.content.clone()));
    let tokenizer = train_bpe(&BpeConfig::new(300), &mut texts).unwrap();
    let tokenizer = tokenizer.with_chat_template(internlm2::CHAT_TEMPLATE.to_string());
    let mut shape = ModelConfig::small(Architecture::InternLm2, tokenizer.vocab_size(), 32, 2, 4, 2);
    shape.eos_token_ids = tokenizer.eos_id().into_iter().collect();
    let model = Transformer::init(&shape, 1, &Device::Cpu).unwrap();
    model.save(&dir.join("base"), DType::F32).unwrap();
    tokenizer.save(&dir.join("base")).unwrap();
    tokenizer
}

fn config(dir: &Path, patch: Value) -> TuneConfig {
    let mut config = json!({
        "model": dir.join("base"), "steps": 20, "batch_size": 4, "seed": 2, "save_every": 6,
        "data": {"train": dir.join("train.jsonl"), "valid": dir.join("valid.jsonl"), "seq_len": 96},
        "optimizer": {"lr": 0.01},
    });
    config.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
    serde_json::from_value(config).unwrap()
}

#[test]
fn a_sample_has_the_same_loss_packed_or_alone() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = set_up(dir.path());
    let model = Transformer::load(&dir.path().join("base"), DType::F32, &Device::Cpu).unwrap();
    let encode = |c: &Conversation| tokenizer.encode_conversation(c).unwrap();
    let samples: Vec<ChatTokens> = conversations(6).iter().map(encode).collect();
    let rows = |packing| intern_tune::rows::Rows::new(samples.clone(), 128, packing, 0);

    let alone: Vec<f64> = rows(false).in_order(1).iter().map(|b| model.eval_loss(b).unwrap().0).collect();
    let packed = rows(true);
    assert!(packed.len() < samples.len(), "some rows hold several samples");
    // The loss of each document of each packed row, by masking all others.
    let mut each = Vec::new();
    for batch in packed.in_order(packed.len()) {
        for (row, starts) in batch.doc_starts.iter().enumerate() {
            for (i, &start) in starts.iter().enumerate() {
                let end = starts.get(i + 1).copied().unwrap_or(batch.t);
                let (from, to) = (row * batch.t + start, row * batch.t + end);
                let inside = |j: usize| batch.mask[j] && (from..to).contains(&j);
                let mask: Vec<bool> = (0..batch.mask.len()).map(inside).collect();
                if mask.contains(&true) {
                    each.push(model.eval_loss(&Batch { mask, ..batch.clone() }).unwrap().0);
                }
            }
        }
    }
    let sorted = |mut losses: Vec<f64>| {
        losses.sort_by(f64::total_cmp);
        losses
    };
    let (alone, each) = (sorted(alone), sorted(each));
    assert_eq!(alone.len(), each.len());
    for (a, b) in alone.iter().zip(&each) {
        assert!((a - b).abs() < 1e-5 * a, "{a} alone, {b} packed");
    }
}

#[test]
fn full_tuning_learns_the_answers() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = set_up(dir.path());
    let out = dir.path().join("out");
    let summary = run(&config(dir.path(), json!({})), &out).unwrap();
    let (first, last) = (summary.first_valid_loss.unwrap(), summary.valid_loss.unwrap());
    assert!(last < 0.6 * first, "{summary:?}");
    assert_eq!((summary.data.conversations, summary.data.endless), (32, 0));
    assert_eq!(summary.adapter, None);
    let generation: Value =
        intern_format::atomic::read_json(&out.join("checkpoint/generation_config.json")).unwrap();
    let ends = generation["eos_token_id"].as_array().unwrap();
    for token in ["<|im_end|>", "</s>"] {
        assert!(ends.contains(&json!(tokenizer.token_to_id(token).unwrap())), "{ends:?} holds {token}");
    }
    assert!(Tokenizer::from_path(&out.join("checkpoint")).unwrap().chat_template().is_some());
    let again = run(&config(dir.path(), json!({})), &out).unwrap();
    assert_eq!((again.tokens, again.data), (summary.tokens, summary.data));
}

#[test]
fn lora_trains_little_and_merges_to_the_same_model() {
    let dir = tempfile::tempdir().unwrap();
    set_up(dir.path());
    let out = dir.path().join("out");
    let patch = json!({"lora": {"r": 4, "alpha": 8.0}, "merge": true, "steps": 60});
    let summary = run(&config(dir.path(), patch), &out).unwrap();
    assert!(summary.trained_parameters * 2 < summary.parameters, "{summary:?}");
    assert!(summary.valid_loss.unwrap() < summary.first_valid_loss.unwrap() - 0.3, "{summary:?}");

    let merged = Transformer::load(&out.join("checkpoint"), DType::F32, &Device::Cpu).unwrap();
    let mut adapted = Transformer::load(&dir.path().join("base"), DType::F32, &Device::Cpu).unwrap();
    adapted.load_adapter(&out.join("adapter")).unwrap();
    let batch = Batch::next_token(&[&[5, 6, 7, 8, 9, 10]]);
    let loss = |model: &Transformer| model.eval_loss(&batch).unwrap().0;
    assert!((loss(&merged) - loss(&adapted)).abs() < 1e-3, "{} and {}", loss(&merged), loss(&adapted));

    let by_hand = dir.path().join("by-hand");
    intern_tune::merge(&dir.path().join("base"), &out.join("adapter"), &by_hand).unwrap();
    let hash = |dir: &Path| hash_path(&dir.join("model.safetensors")).unwrap();
    assert_eq!(hash(&by_hand), hash(&out.join("checkpoint")));
}

#[test]
fn an_interrupted_lora_run_ends_the_same() {
    let dir = tempfile::tempdir().unwrap();
    set_up(dir.path());
    let config = config(dir.path(), json!({"lora": {"r": 2}, "steps": 13}));
    let (straight, again) = (dir.path().join("straight"), dir.path().join("again"));
    run(&config, &straight).unwrap();
    run(&config, &again).unwrap();
    // As if killed after step 12 was saved: what came later is gone.
    for path in ["adapter", "trainer/step-13"] {
        std::fs::remove_dir_all(again.join(path)).unwrap();
    }
    std::fs::remove_file(again.join("provenance.json")).unwrap();
    run(&config, &again).unwrap();
    let hash = |out: &Path| hash_path(&out.join("adapter")).unwrap();
    assert_eq!(hash(&straight), hash(&again));
}

#[test]
fn data_that_would_teach_endless_answers_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    set_up(dir.path());
    let template = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}\
                    {% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}";
    let path = dir.path().join("endless.jinja");
    std::fs::write(&path, template).unwrap();
    let data = json!({"train": dir.path().join("train.jsonl"), "seq_len": 96, "chat_template": path});
    let error = format!("{:#}", prepare(&config(dir.path(), json!({"data": data}))).err().unwrap());
    assert!(error.contains("would learn never to stop") && error.contains("⟦It is "), "{error}");
}

#[test]
fn what_does_not_fit_is_counted_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    set_up(dir.path());
    let prepare_with = |seq_len: usize, too_long: &str| {
        let data = json!({"train": dir.path().join("train.jsonl"), "seq_len": seq_len, "too_long": too_long});
        let config = config(dir.path(), json!({"data": data}));
        prepare(&config).map(|p| p.counts().clone()).map_err(|e| format!("{e:#}"))
    };
    assert!(prepare_with(8, "drop").unwrap_err().contains("32 too long"));
    let error = prepare_with(8, "error").unwrap_err();
    assert!(error.contains("train.jsonl: conversation 1") && error.contains("data.seq_len = 8"), "{error}");
    assert_eq!(prepare_with(96, "truncate").unwrap().truncated, 0);
}

#[test]
fn the_preview_marks_what_is_trained() {
    let dir = tempfile::tempdir().unwrap();
    set_up(dir.path());
    let config = config(dir.path(), json!({}));
    let prepared = prepare(&config).unwrap();
    let text = prepared.describe(false).unwrap();
    assert!(text.contains("⟦It is ") && text.contains("<|im_end|>"), "{text}");
    assert!(text.contains("32 conversations"), "{text}");
    assert!(prepared.describe(true).unwrap().contains("\x1b[32mIt is "), "green");
}
