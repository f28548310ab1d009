//! The `tokenizer.ggml.*` metadata of a tokenizer, as llama.cpp reads it.

use ahash::AHashMap;
use anyhow::{Result, bail};
use intern_format::gguf::Value as Field;
use serde_json::Value;

use crate::decode::{Decoding, byte_piece};
use crate::pretokenizer::{GGUF_PRES, patterns_of};
use crate::sentencepiece::{Algorithm, Model, PieceType};
use crate::tokenizer::Tokenizer;

impl Tokenizer {
    /// The metadata that lets llama.cpp encode and decode as this tokenizer does, chat
    /// template included.
    ///
    /// # Errors
    /// Fails for tokenizers that llama.cpp has no equal of, and says why.
    pub fn gguf_metadata(&self) -> Result<Vec<(String, Field)>> {
        let mut fields: Vec<(String, Field)> = Vec::new();
        match (self.sentencepiece(), self.decoding()) {
            (Some(model), _) => self.sentencepiece_fields(model, &mut fields),
            (None, Decoding::ByteLevel) => self.byte_level_fields(&mut fields)?,
            (None, Decoding::SentencePiece(_)) => self.merged_fields(&mut fields)?,
            (None, Decoding::Other) => bail!(
                "GGUF cannot express this tokenizer\nhint: byte-level BPE and SentencePiece tokenizers can be written"
            ),
        }
        let ids = [
            ("bos", self.bos_id()),
            ("eos", self.eos_id()),
            ("unknown", self.unk_id()),
            ("padding", self.pad_id()),
        ];
        for (name, id) in ids {
            fields.extend(id.map(|id| (key(&format!("{name}_token_id")), Field::U32(id))));
        }
        let turn_end = self.end_ids().into_iter().find(|&id| Some(id) != self.eos_id());
        fields.extend(turn_end.map(|id| (key("eot_token_id"), Field::U32(id))));
        fields.push((key("add_bos_token"), Field::Bool(self.adds_bos())));
        fields.push((key("add_eos_token"), Field::Bool(false)));
        if let Some(template) = self.chat_template() {
            fields
                .push(("tokenizer.chat_template".to_string(), Field::String(template.source().to_string())));
        }
        Ok(fields)
    }

    fn byte_level_fields(&self, fields: &mut Vec<(String, Field)>) -> Result<()> {
        let pre_tokenizer = serde_json::to_value(self.library().get_pre_tokenizer())?;
        let model = serde_json::to_value(self.library().get_model())?;
        let ignore_merges = model["ignore_merges"] == true;
        let patterns = patterns_of(&pre_tokenizer).unwrap_or_default();
        let fits = |pre: &&crate::pretokenizer::GgufPre| pre.patterns.iter().eq(patterns.iter());
        // Of several with these patterns, the one that also treats merges alike.
        let pre = GGUF_PRES.iter().filter(fits).max_by_key(|pre| pre.ignore_merges == ignore_merges);
        let Some(pre) = pre else {
            bail!(
                "llama.cpp has no pre-tokenizer with the patterns {patterns:?}\n\
                 hint: tokenizers cut like GPT-2, Llama 3, Qwen2, o200k, Tekken, StarCoder or DeepSeek can be written"
            );
        };
        let merges = merges(&model).map(|(left, right)| format!("{left} {right}")).collect::<Vec<_>>();
        fields.push((key("model"), "gpt2".into()));
        fields.push((key("pre"), pre.names[0].into()));
        self.vocabulary(fields, |_, _| 1);
        fields.push((key("merges"), merges.into()));
        Ok(())
    }

    fn sentencepiece_fields(&self, model: &Model, fields: &mut Vec<(String, Field)>) {
        let name = if model.algorithm == Algorithm::Bpe { "llama" } else { "t5" };
        fields.push((key("model"), name.into()));
        fields.push((key("pre"), "default".into()));
        self.vocabulary(fields, |id, _| match model.pieces.get(id as usize).map(|p| p.kind) {
            Some(PieceType::Unknown) => 2,
            Some(PieceType::Control) => 3,
            Some(PieceType::UserDefined) => 4,
            Some(PieceType::Unused) => 5,
            Some(PieceType::Byte) => 6,
            _ => 1,
        });
        let score = |id: usize| model.pieces.get(id).map_or(0.0, |p| p.score);
        fields.push((key("scores"), (0..self.vocab_size()).map(score).collect::<Vec<f32>>().into()));
        fields.push((key("add_space_prefix"), Field::Bool(model.add_dummy_prefix)));
        fields.push((key("remove_extra_whitespaces"), Field::Bool(model.remove_extra_whitespaces)));
        if !model.charsmap.is_empty() {
            fields.push((key("precompiled_charsmap"), model.charsmap.clone().into()));
        }
    }

    /// A SentencePiece-like `tokenizer.json` without its model: scores from merge ranks.
    fn merged_fields(&self, fields: &mut Vec<(String, Field)>) -> Result<()> {
        let model = serde_json::to_value(self.library().get_model())?;
        if model["type"] != "BPE" {
            bail!(
                "GGUF needs the SentencePiece model of this tokenizer\nhint: keep tokenizer.model beside tokenizer.json"
            );
        }
        let mut scores: AHashMap<String, f32> = AHashMap::new();
        for (rank, (left, right)) in merges(&model).enumerate() {
            scores.entry(left + &right).or_insert(-(rank as f32));
        }
        fields.push((key("model"), "llama".into()));
        fields.push((key("pre"), "default".into()));
        self.vocabulary(fields, |_, text| if byte_piece(text).is_some() { 6 } else { 1 });
        let score = |id: u32| self.id_to_token(id).and_then(|t| scores.get(&t).copied()).unwrap_or(-1e9);
        fields.push((key("scores"), (0..self.vocab_size() as u32).map(score).collect::<Vec<f32>>().into()));
        let normalizer = serde_json::to_string(&self.library().get_normalizer())?;
        let pre_tokenizer = serde_json::to_value(self.library().get_pre_tokenizer())?;
        let metaspace = pre_tokenizer["type"] == "Metaspace" && pre_tokenizer["prepend_scheme"] != "never";
        fields.push((key("add_space_prefix"), Field::Bool(normalizer.contains("\"Prepend\"") || metaspace)));
        Ok(())
    }

    /// `tokens` and `token_type`; `kind` says what the pieces that are no added tokens are.
    fn vocabulary(&self, fields: &mut Vec<(String, Field)>, kind: impl Fn(u32, &str) -> i32) {
        let added = self.library().get_added_tokens_decoder();
        let mut tokens: Vec<String> = Vec::with_capacity(self.vocab_size());
        let mut types: Vec<i32> = Vec::with_capacity(self.vocab_size());
        for id in 0..self.vocab_size() as u32 {
            let (text, kind) = match self.id_to_token(id) {
                None => (format!("[PAD{id}]"), 5),
                // llama.cpp takes strings to end at NUL.
                Some(text) if text.contains('\0') => (format!("[NUL{id}]"), 5),
                Some(text) => match (kind(id, &text), added.get(&id)) {
                    (1, Some(token)) if token.special => (text, 3),
                    (1, Some(_)) => (text, 4),
                    (kind, _) => (text, kind),
                },
            };
            tokens.push(text);
            types.push(kind);
        }
        fields.push((key("tokens"), tokens.into()));
        fields.push((key("token_type"), types.into()));
    }
}

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

/// The merges of a BPE model as it is serialized, best first.
fn merges(model: &Value) -> impl Iterator<Item = (String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    model["merges"].as_array().into_iter().flatten().map(move |pair| (text(&pair[0]), text(&pair[1])))
}
