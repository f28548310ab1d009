//! OpenAI's tiktoken ranks (`*.tiktoken`, also Llama 3's `tokenizer.model`): one
//! `base64 rank` a line, where the rank is the token's id.
//!
//! The file holds tokens only; pattern and special tokens are known by the encoding's
//! name, or by how many ranks it has.

use ahash::AHashMap;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::files::Settings;
use crate::pretokenizer::{GPT2, LLAMA3, O200K, QWEN2, byte_level, byte_to_char, split_then_bytes};
use crate::tokenizer::Tokenizer;
use crate::train::{added_token, bos_processor};

/// What an encoding has beside its ranks.
struct Encoding {
    name: &'static str,
    ranks: usize,
    pattern: &'static str,
    special: &'static [(&'static str, u32)],
    bos: Option<(&'static str, u32)>,
}

const ENCODINGS: [Encoding; 6] = [
    Encoding { name: "r50k", ranks: 50_256, pattern: GPT2, special: &[("<|endoftext|>", 50_256)], bos: None },
    Encoding { name: "p50k", ranks: 50_280, pattern: GPT2, special: &[("<|endoftext|>", 50_256)], bos: None },
    Encoding {
        name: "cl100k",
        ranks: 100_256,
        pattern: LLAMA3,
        special: &[
            ("<|endoftext|>", 100_257),
            ("<|fim_prefix|>", 100_258),
            ("<|fim_middle|>", 100_259),
            ("<|fim_suffix|>", 100_260),
            ("<|endofprompt|>", 100_276),
        ],
        bos: None,
    },
    Encoding {
        name: "o200k",
        ranks: 199_998,
        pattern: O200K,
        special: &[("<|endoftext|>", 199_999), ("<|endofprompt|>", 200_018)],
        bos: None,
    },
    Encoding {
        name: "qwen",
        ranks: 151_643,
        pattern: QWEN2,
        special: &[("<|endoftext|>", 151_643), ("<|im_start|>", 151_644), ("<|im_end|>", 151_645)],
        bos: None,
    },
    Encoding {
        name: "llama3",
        ranks: 128_000,
        pattern: LLAMA3,
        special: &[
            ("<|begin_of_text|>", 128_000),
            ("<|end_of_text|>", 128_001),
            ("<|start_header_id|>", 128_006),
            ("<|end_header_id|>", 128_007),
            ("<|eom_id|>", 128_008),
            ("<|eot_id|>", 128_009),
            ("<|python_tag|>", 128_010),
        ],
        bos: Some(("<|begin_of_text|>", 128_000)),
    },
];

/// Whether a file begins as ranks do.
pub(crate) fn looks_like_ranks(bytes: &[u8]) -> bool {
    let line = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    line.len() < 100 && parse_line(line).is_some()
}

/// Reads a rank file; `name` is its file name.
pub(crate) fn read(name: &str, bytes: &[u8], settings: &Settings) -> Result<Tokenizer> {
    let ranks = parse(bytes)?;
    let by_name = ENCODINGS.iter().find(|e| name.contains(e.name));
    let Some(encoding) = by_name.or_else(|| ENCODINGS.iter().find(|e| e.ranks == ranks.len())) else {
        let known: Vec<&str> = ENCODINGS.iter().map(|e| e.name).collect();
        bail!(
            "{} tiktoken ranks of an unknown encoding\nhint: name the file after its encoding ({})",
            ranks.len(),
            known.join(", ")
        );
    };
    let library = serde_json::from_value(pipeline(encoding, &ranks))
        .context("expressing the ranks as a tokenizer.json")?;
    let library: tokenizers::Tokenizer = library;
    let special = settings.special(|token| library.token_to_id(token).is_some());
    Tokenizer::new(library, special, settings.config.clone())
}

fn parse(bytes: &[u8]) -> Result<Vec<(Vec<u8>, u32)>> {
    let mut ranks = Vec::new();
    let mut seen = AHashMap::new();
    for (i, line) in bytes.split(|&b| b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
        let Some((token, rank)) = parse_line(line) else {
            bail!(
                "line {}: expected `base64 rank`\nhint: not tiktoken ranks, or a damaged file; fetch it again",
                i + 1
            );
        };
        ensure!(
            seen.insert(token.clone(), rank).is_none() && !token.is_empty(),
            "line {}: an empty token, or one given twice\nhint: a damaged file; fetch it again",
            i + 1
        );
        ranks.push((token, rank));
    }
    ensure!(!ranks.is_empty(), "no tiktoken ranks\nhint: the file is empty; fetch it again");
    Ok(ranks)
}

fn parse_line(line: &[u8]) -> Option<(Vec<u8>, u32)> {
    let (token, rank) = std::str::from_utf8(line).ok()?.trim_end().split_once(' ')?;
    Some((decode_base64(token)?, rank.parse().ok()?))
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    let mut bits = 0u32;
    let mut count = 0;
    for c in digits.bytes() {
        let digit = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

fn pipeline(encoding: &Encoding, ranks: &[(Vec<u8>, u32)]) -> Value {
    let spell = |bytes: &[u8]| bytes.iter().map(|&b| byte_to_char(b)).collect::<String>();
    let by_token: AHashMap<&[u8], u32> =
        ranks.iter().map(|(token, rank)| (token.as_slice(), *rank)).collect();
    let mut merges = Vec::new();
    for (token, rank) in ranks {
        for cut in 1..token.len() {
            let (left, right) = token.split_at(cut);
            if let (Some(&l), Some(&r)) = (by_token.get(left), by_token.get(right)) {
                merges.push((*rank, l, r, [spell(left), spell(right)]));
            }
        }
    }
    merges.sort();
    let merges: Vec<[String; 2]> = merges.into_iter().map(|(.., pair)| pair).collect();
    let mut vocab: Map<String, Value> =
        ranks.iter().map(|(token, rank)| (spell(token), (*rank).into())).collect();
    vocab.extend(encoding.special.iter().map(|&(token, id)| (token.to_string(), id.into())));
    let added: Vec<Value> =
        encoding.special.iter().map(|&(token, id)| added_token(id, token, true)).collect();
    let pre_tokenizer =
        if encoding.pattern == GPT2 { byte_level(true) } else { split_then_bytes(&[encoding.pattern]) };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": bos_processor(encoding.bos),
        "decoder": byte_level(false),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": vocab, "merges": merges,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_base64_and_a_number() {
        assert_eq!(parse_line(b"IQ== 0"), Some((b"!".to_vec(), 0)));
        assert_eq!(parse_line(b"TWFu 12\r"), Some((b"Man".to_vec(), 12)));
        assert_eq!(parse_line(b"T?== 1"), None);
        let error = parse(b"IQ== 0\nnonsense\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("hint:"), "{error}");
    }
}
