//! A SentencePiece model as a `tokenizer.json`, for `transformers` and for decoding.

use ahash::AHashMap;
use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use crate::sentencepiece::{Algorithm, Model, PieceType};
use crate::train::{added_token, template_processor};

/// The whole pipeline.
pub(crate) fn pipeline(model: &Model, adds_bos: bool, adds_eos: bool) -> Result<Value> {
    let added: Vec<Value> = model
        .pieces
        .iter()
        .enumerate()
        .filter_map(|(id, piece)| match piece.kind {
            PieceType::Control | PieceType::Unknown => Some(added_token(id as u32, &piece.text, true)),
            PieceType::UserDefined => Some(added_token(id as u32, &piece.text, false)),
            _ => None,
        })
        .collect();
    let token = |id: Option<u32>| id.map(|id| (model.pieces[id as usize].text.as_str(), id));
    let (bos, eos) = (token(model.bos_id.filter(|_| adds_bos)), token(model.eos_id.filter(|_| adds_eos)));
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer(model),
        "pre_tokenizer": null,
        "post_processor": template_processor(bos, eos),
        "decoder": {"type": "Sequence", "decoders": decoders(model)},
        "model": match model.algorithm {
            Algorithm::Bpe => bpe(model)?,
            Algorithm::Unigram => unigram(model)?,
        },
    }))
}

/// How text is prepared.
pub(super) fn normalizer(model: &Model) -> Value {
    let replace =
        |pattern: Value, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let mut steps = Vec::new();
    if !model.charsmap.is_empty() {
        steps.push(json!({"type": "Precompiled", "precompiled_charsmap": base64(&model.charsmap)}));
    }
    if model.remove_extra_whitespaces {
        steps.push(replace(json!({"Regex": r"\A +|[ ▁]+\z"}), ""));
        steps.push(replace(json!({"Regex": " {2,}"}), " "));
    }
    if model.add_dummy_prefix {
        steps.push(json!({"type": "Prepend", "prepend": "▁"}));
    }
    steps.push(replace(json!({"String": " "}), "▁"));
    json!({"type": "Sequence", "normalizers": steps})
}

fn decoders(model: &Model) -> Vec<Value> {
    let mut steps = vec![json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "})];
    if model.byte_fallback {
        steps.push(json!({"type": "ByteFallback"}));
    }
    steps.push(json!({"type": "Fuse"}));
    if model.add_dummy_prefix {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    steps
}

fn unknown(model: &Model) -> Option<usize> {
    model.pieces.iter().position(|p| p.kind == PieceType::Unknown)
}

fn unigram(model: &Model) -> Result<Value> {
    ensure!(
        model.pieces.iter().all(|p| p.kind != PieceType::Unused),
        "unigram SentencePiece models with unused pieces are not supported\nhint: train without restricting the vocabulary"
    );
    let vocab: Vec<(&str, f32)> = model.pieces.iter().map(|p| (p.text.as_str(), p.score)).collect();
    Ok(
        json!({"type": "Unigram", "unk_id": unknown(model), "vocab": vocab, "byte_fallback": model.byte_fallback}),
    )
}

fn bpe(model: &Model) -> Result<Value> {
    let vocab: Map<String, Value> =
        model.pieces.iter().enumerate().map(|(id, p)| (p.text.clone(), id.into())).collect();
    ensure!(
        vocab.len() == model.pieces.len(),
        "the SentencePiece model has a piece twice\nhint: a damaged file; fetch it again"
    );
    Ok(json!({
        "type": "BPE", "dropout": null, "unk_token": unknown(model).map(|id| &model.pieces[id].text),
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
        "byte_fallback": model.byte_fallback, "ignore_merges": false,
        "vocab": vocab, "merges": merges(model),
    }))
}

/// Every way to make a piece of two others, best score first.
///
/// Of equal scores SentencePiece takes the leftmost, which ranks cannot say. Such pieces
/// are mostly runs of spaces: merging equal halves first, then the longest, builds the
/// same runs.
fn merges(model: &Model) -> Vec<(&str, &str)> {
    let mergeable = |p: PieceType| matches!(p, PieceType::Normal | PieceType::Unused);
    let ids: AHashMap<&str, usize> = model
        .pieces
        .iter()
        .enumerate()
        .filter(|(_, p)| mergeable(p.kind))
        .map(|(id, p)| (p.text.as_str(), id))
        .collect();
    let mut merges = Vec::new();
    for (id, piece) in model.pieces.iter().enumerate().filter(|(_, p)| mergeable(p.kind)) {
        for (cut, _) in piece.text.char_indices().skip(1) {
            let (left, right) = piece.text.split_at(cut);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                let len = piece.text.len() as i64;
                let order = (left != right, if left == right { len } else { -len }, id, l, r);
                merges.push((piece.score, order, (left, right)));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    merges.into_iter().map(|(.., halves)| halves).collect()
}

/// Standard base64 with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().chain([0, 0].iter()).take(3).fold(0u32, |bits, &b| bits << 8 | u32::from(b));
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i) & 63) as usize] as char;
            out.push(if i <= chunk.len() { digit } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_standard_one() {
        assert_eq!(base64(b"Man"), "TWFu");
        assert_eq!(base64(b"Ma"), "TWE=");
        assert_eq!(base64(b"M"), "TQ==");
    }
}
