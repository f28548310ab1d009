//! A SentencePiece model from llama2.c's flat vocabulary file.
//!
//! The file is `max_token_length: u32`, then per token `score: f32, length: u32, bytes`, with
//! spaces where SentencePiece has `▁`. Ids 0, 1, 2 are unknown, begin and end, as llama2.c assumes.
//! Written by hand: the few protobuf fields a reader needs, field numbers from
//! `sentencepiece_model.proto`.

use anyhow::{Result, bail, ensure};

/// Kinds of pieces in the protobuf.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const BYTE: u64 = 6;

/// The bytes of a `tokenizer.model` with the `vocab` tokens of `data`.
pub(super) fn from_llama2c(data: &[u8], vocab: usize) -> Result<Vec<u8>> {
    let mut at = 4; // past the longest token's length
    let mut model = Vec::new();
    let mut has_bytes = false;
    for id in 0..vocab {
        let Some(header) = data.get(at..at + 8) else {
            bail!("it ends at byte {at}, in token {id} of {vocab}")
        };
        let score = f32::from_le_bytes(header[..4].try_into().expect("four bytes"));
        let len = u32::from_le_bytes(header[4..].try_into().expect("four bytes")) as usize;
        let text = data.get(at + 8..).and_then(|rest| rest.get(..len));
        let text = text.and_then(|text| std::str::from_utf8(text).ok());
        let Some(text) = text else {
            bail!("token {id} at byte {at} is not {len} bytes of UTF-8 text within the file")
        };
        at += 8 + len;
        let (piece, kind) = match id {
            0 => ("<unk>".to_owned(), UNKNOWN),
            1 => ("<s>".to_owned(), CONTROL),
            2 => ("</s>".to_owned(), CONTROL),
            _ if is_byte(text) => (text.to_owned(), BYTE),
            _ => (text.replace(' ', "\u{2581}"), NORMAL),
        };
        has_bytes |= kind == BYTE;
        let mut message = Vec::new();
        string(&mut message, 1, &piece);
        message.push(2 << 3 | 5); // score, fixed 32 bits
        message.extend_from_slice(&score.to_le_bytes());
        varint(&mut message, 3, kind);
        nested(&mut model, 1, &message);
    }
    ensure!(at == data.len(), "{} bytes follow its {vocab} tokens", data.len() - at);

    let mut trainer = Vec::new();
    varint(&mut trainer, 3, 2); // model_type: BPE
    varint(&mut trainer, 4, vocab as u64);
    varint(&mut trainer, 35, u64::from(has_bytes)); // byte_fallback
    for (field, id) in [(40, 0), (41, 1), (42, 2)] {
        varint(&mut trainer, field, id); // unk, bos, eos
    }
    varint(&mut trainer, 43, u64::MAX); // no pad
    nested(&mut model, 2, &trainer);

    let mut normalizer = Vec::new();
    string(&mut normalizer, 1, "identity");
    varint(&mut normalizer, 3, 1); // add_dummy_prefix
    varint(&mut normalizer, 4, 0); // remove_extra_whitespaces
    nested(&mut model, 3, &normalizer);
    Ok(model)
}

/// `<0xA7>`: a single byte.
fn is_byte(text: &str) -> bool {
    text.len() == 6
        && text
            .strip_prefix("<0x")
            .and_then(|t| t.strip_suffix('>'))
            .is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn raw_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint(out: &mut Vec<u8>, field: u64, value: u64) {
    raw_varint(out, field << 3);
    raw_varint(out, value);
}

fn nested(out: &mut Vec<u8>, field: u64, message: &[u8]) {
    raw_varint(out, field << 3 | 2);
    raw_varint(out, message.len() as u64);
    out.extend_from_slice(message);
}

fn string(out: &mut Vec<u8>, field: u64, text: &str) {
    nested(out, field, text.as_bytes());
}
