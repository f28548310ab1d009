//! Reading, saving, streaming; errors that help.

use std::path::Path;

use intern_tokenizer::train::{BpeConfig, train_bpe};
use intern_tokenizer::{Tokenizer, internlm2};
use proptest::prelude::*;
use rayon::prelude::*;

use crate::support::asset;

const MODELS: [&str; 16] = [
    "tokenizers/internlm/tokenizer_internlm2.model",
    "tokenizers/internlm/tokenizer_internlm.model",
    "tokenizers/mistral/tokenizer.model.v1",
    "tokenizers/mistral/mistral_instruct_tokenizer_240323.model.v3",
    "tokenizers/open_llama/tokenizer.model",
    "tokenizers/zh-sp/chinese_sp.model",
    "tokenizers/sentencepiece-test/test_model.model",
    "tokenizers/sentencepiece-test/test_ja_model.model",
    "models/stories260K/tok512.model",
    "models/babyllama105/tok105.model",
    "tokenizers/tiktoken/r50k_base.tiktoken",
    "tokenizers/tiktoken/cl100k_base.tiktoken",
    "tokenizers/gpt2-hf/gpt2.json",
    "tokenizers/olmo/allenai_gpt-neox-olmo-dolma-v1_5.json",
    "tokenizers/ggml-vocab/ggml-vocab-bert-bge.gguf",
    "tokenizers/ggml-vocab/ggml-vocab-phi-3.gguf",
];

/// A small byte-level tokenizer.
fn small() -> Tokenizer {
    let mut texts = include_str!("../golden/hard.txt").lines().map(str::to_string);
    train_bpe(&BpeConfig::new(700), &mut texts).unwrap()
}

#[test]
fn saved_tokenizers_read_the_same() {
    let mut tokenizers = vec![("trained", small().with_chat_template(internlm2::CHAT_TEMPLATE.to_string()))];
    tokenizers.extend(
        MODELS.iter().filter_map(|model| Some((*model, Tokenizer::from_path(&asset(model)?).unwrap()))),
    );
    tokenizers.into_par_iter().for_each(|(name, tokenizer)| {
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        let again = Tokenizer::from_path(dir.path()).unwrap();
        assert_eq!(again.special(), tokenizer.special(), "{name}");
        assert_eq!(again.adds_bos(), tokenizer.adds_bos(), "{name}");
        assert_eq!(again.vocab_size(), tokenizer.vocab_size(), "{name}");
        let source = |t: &Tokenizer| t.chat_template().map(|c| c.source().to_string());
        assert_eq!(source(&again), source(&tokenizer), "{name}");
        for line in include_str!("../golden/hard.txt").lines() {
            let ids = tokenizer.encode(line, true).unwrap();
            assert_eq!(again.encode(line, true).unwrap(), ids, "{name} {line:?}");
            assert_eq!(
                again.decode(&ids, true).unwrap(),
                tokenizer.decode(&ids, true).unwrap(),
                "{name} {line:?}"
            );
        }
    });
}

/// Writes what `tests/golden/check_transformers.py` reads.
#[test]
fn export_for_transformers() {
    let Some(out) = std::env::var_os("INTERN_EXPORT_DIR") else {
        println!("skipped: set INTERN_EXPORT_DIR, then run tests/golden/check_transformers.py on it");
        return;
    };
    for model in MODELS {
        let Some(path) = asset(model) else { continue };
        let dir = Path::new(&out).join(model.replace('/', "--"));
        Tokenizer::from_path(&path).unwrap().save(&dir).unwrap();
    }
    small()
        .with_chat_template(internlm2::CHAT_TEMPLATE.to_string())
        .save(&Path::new(&out).join("trained"))
        .unwrap();
}

#[test]
fn streams_concatenate_to_the_whole() {
    let models = MODELS.iter().filter_map(|m| Some(Tokenizer::from_path(&asset(m)?).unwrap()));
    let tokenizers: Vec<Tokenizer> = models.chain([small()]).collect();
    let strategy = (0..tokenizers.len(), proptest::collection::vec(any::<u32>(), 0..40), any::<bool>());
    proptest!(ProptestConfig::with_cases(400), |((which, random, skip) in strategy)| {
        let tokenizer = &tokenizers[which];
        // Low ids are where the bytes and special tokens are.
        let size = tokenizer.vocab_size() as u32;
        let ids: Vec<u32> = random.iter().map(|r| if r % 2 == 0 { r / 2 % 300 } else { r / 2 % size }).collect();
        let mut stream = tokenizer.stream(skip);
        let mut text = String::new();
        for &id in &ids {
            let piece = stream.push(id).unwrap().unwrap_or_default();
            text.push_str(&piece);
        }
        text.push_str(&stream.finish());
        prop_assert_eq!(text, tokenizer.decode(&ids, skip).unwrap());
    });
}

#[test]
fn streams_hold_back_half_characters() {
    let tokenizer = small();
    for line in ["我们 – 😀👨‍👩‍👧", "naïve Ελλ"] {
        let ids = tokenizer.encode_plain(line).unwrap();
        let mut stream = tokenizer.stream(true);
        let mut text = String::new();
        for id in ids {
            if let Some(piece) = stream.push(id).unwrap() {
                assert!(!piece.contains('\u{FFFD}'), "{piece:?}");
                text += &piece;
            }
        }
        assert_eq!(text + &stream.finish(), line);
    }
}

#[test]
fn byte_level_loses_nothing() {
    let tokenizer = small();
    proptest!(|(text: String)| {
        let ids = tokenizer.encode_plain(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    });
}

#[test]
fn special_tokens_are_recognised_or_not() {
    let tokenizer = small();
    let text = "<s>a<|im_end|>";
    let ids = tokenizer.encode(text, false).unwrap();
    assert_eq!(ids.len(), 3);
    assert!(tokenizer.is_special(ids[0]) && tokenizer.is_special(ids[2]) && !tokenizer.is_special(ids[1]));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "a");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    let plain = tokenizer.encode_plain(text).unwrap();
    assert!(plain.iter().all(|&id| !tokenizer.is_special(id)));
    assert_eq!(tokenizer.decode(&plain, true).unwrap(), text);

    let Some(path) = asset("tokenizers/internlm/tokenizer_internlm2.model") else { return };
    let real = Tokenizer::from_path(&path).unwrap();
    let ids = [92_538, 92_539, 92_540, 92_541, 92_542, 92_543];
    let names =
        ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"];
    for (id, name) in ids.into_iter().zip(names) {
        assert_eq!(real.token_to_id(name), Some(id));
        assert_eq!(real.encode(name, false).unwrap(), [id]);
        assert!(real.is_special(id));
    }
    assert_eq!((real.bos_id(), real.eos_id(), real.unk_id()), (Some(1), Some(2), Some(0)));
    assert_eq!(real.encode("a", true).unwrap()[0], 1);
    assert_eq!(real.end_ids(), [2, 92_542]);
    assert_eq!(real.decode(&[354], false).unwrap(), "\0");
}

#[test]
fn settings_beside_a_model_name_and_add_tokens() {
    let Some(path) = asset("models/stories260K/tok512.model") else { return };
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(path, dir.path().join("tokenizer.model")).unwrap();
    let token = |content: &str| serde_json::json!({"content": content, "special": true});
    let config = serde_json::json!({
        "bos_token": "<s>", "eos_token": {"content": "<|im_end|>"}, "add_bos_token": false,
        "added_tokens_decoder": {"0": token("<unk>"), "512": token("<|im_start|>"), "513": token("<|im_end|>")},
        "chat_template": [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}],
    });
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    let check = |tokenizer: Tokenizer| {
        assert_eq!(tokenizer.vocab_size(), 514);
        assert_eq!(tokenizer.eos_id(), Some(513));
        assert!(!tokenizer.adds_bos());
        assert_eq!(tokenizer.encode("<|im_start|><|im_end|>", true).unwrap(), [512, 513]);
        assert_eq!(tokenizer.chat_template().unwrap().source(), "a");
        tokenizer
    };
    let tokenizer = check(Tokenizer::from_path(dir.path()).unwrap());
    tokenizer.save(dir.path()).unwrap();
    check(Tokenizer::from_path(dir.path()).unwrap());
    std::fs::remove_file(dir.path().join("tokenizer.model")).unwrap();
    check(Tokenizer::from_path(dir.path()).unwrap());
}

#[track_caller]
fn check_error(file: Option<(&str, &[u8])>, expected: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let path = match file {
        Some((name, bytes)) => {
            std::fs::write(dir.path().join(name), bytes).unwrap();
            dir.path().join(name)
        }
        None => dir.path().join("absent"),
    };
    let error = format!("{:#}", Tokenizer::from_path(&path).unwrap_err());
    for part in expected.iter().chain(&["hint: ", path.file_name().unwrap().to_str().unwrap()]) {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
}

#[test]
fn errors_name_the_file_and_give_a_hint() {
    check_error(None, &["no such file"]);
    check_error(Some(("tokenizer.json", b"{\"version\": 3}")), &["not a tokenizer.json"]);
    check_error(Some(("tokenizer.json", b"[]")), &["not a tokenizer.json"]);
    check_error(Some(("tokenizer.model", b"\xff\xff\xff")), &["byte"]);
    check_error(Some(("tokenizer.model", b"")), &["no pieces"]);
    check_error(Some(("notes.txt", b"hello")), &["neither a tokenizer.json"]);
    check_error(Some(("x.tiktoken", b"IQ== 0\noops")), &["line 2"]);
    check_error(Some(("x.tiktoken", b"IQ== 0\n")), &["unknown encoding", "o200k"]);
    check_error(Some(("x.gguf", b"GGUF")), &[]);

    let empty = tempfile::tempdir().unwrap();
    let error = format!("{:#}", Tokenizer::from_path(empty.path()).unwrap_err());
    assert!(error.contains("no tokenizer here\nhint: "), "{error}");

    let Some(path) = asset("tokenizers/mistral/tokenizer.model.v1") else { return };
    let mut bytes = std::fs::read(path).unwrap();
    bytes.truncate(1000);
    check_error(Some(("cut.model", &bytes)), &[]);
}
