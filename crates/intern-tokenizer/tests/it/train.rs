//! Training: the merges of the reference, for any number of threads.

use std::time::Instant;

use intern_tokenizer::PreTokenizer;
use intern_tokenizer::Tokenizer;
use intern_tokenizer::train::{BpeConfig, train_bpe};
use serde_json::{Map, Value};

use crate::support::{archive, asset};

/// A tokenizer as its file.
fn saved(tokenizer: &Tokenizer) -> String {
    let dir = tempfile::tempdir().unwrap();
    tokenizer.save(dir.path()).unwrap();
    std::fs::read_to_string(dir.path().join("tokenizer.json")).unwrap()
}

fn train(texts: &[String], pre_tokenizer: PreTokenizer, vocab_size: usize) -> Tokenizer {
    let special_tokens = vec!["<s>".to_string(), "</s>".to_string()];
    let config = BpeConfig { special_tokens, pre_tokenizer, ..BpeConfig::new(vocab_size) };
    train_bpe(&config, &mut texts.iter().cloned()).unwrap()
}

/// `tests/golden/make_train.py` made the hashes by Python `tokenizers`.
#[test]
fn merges_are_those_of_the_reference() {
    let Some(path) = asset("data/corpora/tinyshakespeare/input.txt") else { return };
    let texts = [std::fs::read_to_string(path).unwrap(), include_str!("../golden/hard.txt").to_string()];
    let goldens: Map<String, Value> = serde_json::from_str(include_str!("../golden/train.json")).unwrap();
    for (name, golden) in goldens {
        let pre_tokenizer = serde_json::from_value(name.clone().into()).unwrap();
        let tokenizer: Value = serde_json::from_str(&saved(&train(&texts, pre_tokenizer, 5000))).unwrap();
        let merges = tokenizer["model"]["merges"].as_array().unwrap();
        let lines: String = merges
            .iter()
            .map(|pair| format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
            .collect();
        assert_eq!(blake3::hash(lines.as_bytes()).to_hex()[..32], *golden.as_str().unwrap(), "{name}");
    }
}

#[test]
fn any_number_of_threads_learns_the_same() {
    let text = include_str!("../golden/hard.txt");
    let texts: Vec<String> = text.lines().map(str::to_string).collect();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| saved(&train(&texts, PreTokenizer::Qwen2, 800)))
    };
    let one = run(1);
    assert_eq!(run(2), one);
    assert_eq!(run(5), one);
}

#[test]
fn refusals_say_what_to_change() {
    let error = train_bpe(&BpeConfig::new(100), &mut std::iter::empty()).unwrap_err().to_string();
    assert!(error.contains("vocab_size = 100 is too small") && error.contains("at least 265"), "{error}");
    let error = train_bpe(&BpeConfig::new(1000), &mut std::iter::empty()).unwrap_err().to_string();
    assert!(error.contains("the corpus is empty\nhint:"), "{error}");
    let twice = BpeConfig { special_tokens: vec!["<s>".into(), "<s>".into()], ..BpeConfig::new(1000) };
    let error = train_bpe(&twice, &mut ["some text".to_string()].into_iter()).unwrap_err().to_string();
    assert!(error.contains("duplicate"), "{error}");
}

#[test]
fn special_tokens_are_never_learned() {
    let texts = vec!["hello hello hello".to_string(); 10];
    let config = BpeConfig { special_tokens: vec!["hello".to_string()], ..BpeConfig::new(300) };
    let tokenizer = train_bpe(&config, &mut texts.into_iter()).unwrap();
    assert_eq!(tokenizer.token_to_id("hello"), Some(0));
    assert!(tokenizer.encode_plain("hello").unwrap().iter().all(|&id| id != 0));
}

/// Seconds for 32,000 tokens of the Gutenberg novels; `make_train.py --time` is the other side.
#[test]
fn time_32k_on_gutenberg() {
    if std::env::var_os("RUN_SLOW_TESTS").is_none() {
        println!("skipped: slow (set RUN_SLOW_TESTS)");
        return;
    }
    let Some(path) = asset("data/corpora/gutenberg.tar.xz") else { return };
    let texts: Vec<String> =
        archive(&path).into_iter().map(|(_, bytes)| String::from_utf8_lossy(&bytes).into_owned()).collect();
    for pre_tokenizer in [PreTokenizer::Qwen2, PreTokenizer::Gpt2] {
        let start = Instant::now();
        let tokenizer = train(&texts, pre_tokenizer, 32_000);
        println!(
            "{pre_tokenizer:?}: {} tokens in {:.2} s",
            tokenizer.vocab_size(),
            start.elapsed().as_secs_f64()
        );
        assert_eq!(tokenizer.vocab_size(), 32_000);
    }
}
