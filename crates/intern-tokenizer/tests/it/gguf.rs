//! Tokenizers of GGUF files: read as llama.cpp reads them, written so that it reads ours.

use crate::support::asset;
use intern_format::gguf::{Gguf, GgufWriter};
use intern_tokenizer::train::{BpeConfig, train_bpe};
use intern_tokenizer::{PreTokenizer, Tokenizer, internlm2};

/// Each `.inp` text and the ids in `.out`, for every vocabulary that is there.
#[test]
fn ggml_vocab_pairs_agree() {
    let Some(folder) = asset("tokenizers/ggml-vocab") else { return };
    let mut checked = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "gguf") {
            continue;
        }
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        let read = |suffix: &str| std::fs::read_to_string(format!("{}.{suffix}", path.display())).unwrap();
        let (inputs, outputs) = (read("inp"), read("out"));
        let inputs: Vec<&str> = inputs.split_terminator("\n__ggml_vocab_test__\n").collect();
        assert_eq!(inputs.len(), outputs.lines().count(), "{}", path.display());
        for (text, line) in inputs.iter().zip(outputs.lines()) {
            let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let ids = tokenizer.encode(text, false).unwrap();
            if ids != expected {
                wrong.push(format!(
                    "{} {text:?}\n  got      {ids:?}\n  expected {expected:?}",
                    path.display()
                ));
            }
            checked += 1;
        }
    }
    assert!(wrong.is_empty(), "{} of {checked} differ:\n{}", wrong.len(), wrong.join("\n"));
    println!("{checked} pairs agree");
}

/// Writes a tokenizer's metadata into a GGUF file and reads it again.
fn round_trip(tokenizer: &Tokenizer) -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vocab.gguf");
    let mut writer = GgufWriter::create(&path).unwrap();
    for (key, value) in tokenizer.gguf_metadata().unwrap() {
        writer.metadata(&key, value);
    }
    writer.finish().unwrap();
    Tokenizer::from_path(&path).unwrap()
}

#[track_caller]
fn check(tokenizer: &Tokenizer, again: &Tokenizer) {
    assert_eq!(again.vocab_size(), tokenizer.vocab_size());
    assert_eq!(again.bos_id(), tokenizer.bos_id());
    assert_eq!(again.eos_id(), tokenizer.eos_id());
    assert_eq!(again.adds_bos(), tokenizer.adds_bos());
    assert_eq!(again.end_ids(), tokenizer.end_ids());
    assert_eq!(
        again.chat_template().map(|t| t.source().to_string()),
        tokenizer.chat_template().map(|t| t.source().to_string())
    );
    for line in include_str!("../golden/hard.txt").lines().filter(|line| !line.contains('\0')) {
        assert_eq!(again.encode(line, true).unwrap(), tokenizer.encode(line, true).unwrap(), "{line:?}");
        let ids = tokenizer.encode_plain(line).unwrap();
        assert_eq!(again.decode(&ids, false).unwrap(), tokenizer.decode(&ids, false).unwrap(), "{line:?}");
    }
}

#[test]
fn trained_tokenizers_survive_gguf() {
    for pre_tokenizer in [PreTokenizer::Gpt2, PreTokenizer::Llama3, PreTokenizer::Qwen2] {
        let config = BpeConfig { pre_tokenizer, ..BpeConfig::new(600) };
        let mut texts = include_str!("../golden/hard.txt").lines().map(str::to_string);
        let tokenizer =
            train_bpe(&config, &mut texts).unwrap().with_chat_template(internlm2::CHAT_TEMPLATE.to_string());
        check(&tokenizer, &round_trip(&tokenizer));
    }
}

#[test]
fn sentencepiece_models_survive_gguf() {
    for model in [
        "internlm/tokenizer_internlm2.model",
        "mistral/tokenizer.model.v1",
        "sentencepiece-test/test_ja_model.model",
    ] {
        let Some(path) = asset(&format!("tokenizers/{model}")) else { return };
        let tokenizer = Tokenizer::from_path(&path).unwrap();
        let tokenizer = tokenizer.with_chat_template("{{ messages[0].content }}".to_string());
        check(&tokenizer, &round_trip(&tokenizer));
    }
}
