//! Ids equal to those of `sentencepiece` and `tiktoken`, text equal after decoding.

use crate::support::{IdHash, archive, asset};
use intern_tokenizer::Tokenizer;
use rayon::prelude::*;
use serde_json::{Map, Value};

/// Encodes every line of a text; checks ids by hash and, where `lossless`, the way back.
fn check(model: &str, text: &str, golden: &Value) {
    let (file, every) = text.split_once("/every/").unwrap_or((text, "1"));
    let hard = || vec![("hard.txt".to_string(), include_bytes!("../golden/hard.txt").to_vec())];
    let files = if file == "hard.txt" { Some(hard()) } else { asset(file).map(|path| archive(&path)) };
    let (Some(model_path), Some(files)) = (asset(model), files) else { return };
    let tokenizer = Tokenizer::from_path(&model_path).unwrap();
    // The others drop spaces or lack characters by design.
    let lossless = ["internlm", "mistral", "tiktoken"].iter().any(|name| model.contains(name));
    let mut hash = IdHash::default();
    for (name, bytes) in files {
        let lines = bytes.split(|&b| b == b'\n').step_by(every.parse().unwrap());
        let lines: Vec<String> = lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        let encoded: Vec<Vec<u32>> =
            lines.par_iter().map(|line| tokenizer.encode_plain(line).unwrap()).collect();
        for (line, ids) in lines.iter().zip(&encoded) {
            hash.line(ids);
            if lossless && !line.contains('▁') {
                assert_eq!(tokenizer.decode(ids, false).unwrap(), *line, "{model} {name}");
            }
        }
    }
    assert_eq!(hash.lines, golden["lines"].as_u64().unwrap(), "{model} {text}: lines");
    assert_eq!(hash.hex(), golden["hash"].as_str().unwrap(), "{model} {text}: ids ({} tokens)", hash.tokens);
}

/// The ids of a fixed set of texts, by `tests/golden/make_ids.py`.
fn goldens() -> Map<String, Value> {
    serde_json::from_str(include_str!("../golden/ids.json")).unwrap()
}

#[test]
fn ids_are_those_of_the_reference() {
    let slow = std::env::var_os("RUN_SLOW_TESTS").is_some();
    for (model, texts) in goldens() {
        for (text, golden) in texts.as_object().unwrap() {
            if slow || text.contains("/every/") || text == "hard.txt" {
                check(&model, text, golden);
            } else {
                println!("skipped: {model} on {text} (set RUN_SLOW_TESTS)");
            }
        }
    }
}
