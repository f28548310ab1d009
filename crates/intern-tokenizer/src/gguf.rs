//! Tokenizers inside GGUF files, read and written as llama.cpp does (`tokenizer.ggml.*`).
//!
//! Three kinds are read: `gpt2` (byte-level BPE, cut by the pattern that
//! `tokenizer.ggml.pre` names), `llama` and `t5` (SentencePiece), `bert` (WordPiece).

mod write;

use anyhow::{Context, Result, bail, ensure};
use intern_format::gguf::{Array, Gguf, Value as Field};
use serde_json::{Map, Value, json};

use crate::files::Settings;
use crate::pretokenizer::{GGUF_PRES, split_then_bytes};
use crate::sentencepiece::{Algorithm, Model, Piece, PieceType};
use crate::spm;
use crate::tokenizer::{Special, Tokenizer};
use crate::train::{added_token, template_processor};

impl Tokenizer {
    /// Reads the tokenizer of a GGUF file, chat template included.
    ///
    /// # Errors
    /// Names the metadata key that is missing, malformed or of an unsupported kind.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let source = Source::new(gguf)?;
        let tokenizer = match source.string("model").unwrap_or_default() {
            "gpt2" => source.byte_level()?,
            "llama" => source.sentencepiece(Algorithm::Bpe)?,
            "t5" => source.sentencepiece(Algorithm::Unigram)?,
            "bert" => source.wordpiece()?,
            other => {
                bail!("tokenizer.ggml.model = {other:?} is not supported\nhint: gpt2, llama, t5 and bert are")
            }
        };
        Ok(match gguf.get("tokenizer.chat_template").and_then(Field::as_str) {
            Some(template) => tokenizer.with_chat_template(template.to_string()),
            None => tokenizer,
        })
    }
}

/// The metadata, with the vocabulary read.
struct Source<'a> {
    gguf: &'a Gguf,
    pieces: Vec<Piece>,
}

impl<'a> Source<'a> {
    fn new(gguf: &'a Gguf) -> Result<Self> {
        let field = |name: &str| gguf.get(&format!("tokenizer.ggml.{name}"));
        let tokens = field("tokens").and_then(Field::as_strings).context(
            "no tokenizer.ggml.tokens\nhint: the GGUF file has no tokenizer; convert it with its vocabulary",
        )?;
        let scores = field("scores").and_then(Field::as_f32s);
        let types = field("token_type").and_then(Field::as_i32s);
        for (name, length) in [("scores", scores.map(<[f32]>::len)), ("token_type", types.map(<[i32]>::len))]
        {
            ensure!(
                length.is_none_or(|n| n == tokens.len()),
                "tokenizer.ggml.{name} has {} entries for {} tokens\nhint: the GGUF file is damaged",
                length.unwrap_or_default(),
                tokens.len()
            );
        }
        let pieces = tokens.iter().enumerate().map(|(id, text)| Piece {
            text: text.clone(),
            score: scores.map_or(0.0, |s| s[id]),
            kind: match types.map_or(1, |t| t[id]) {
                2 => PieceType::Unknown,
                3 => PieceType::Control,
                4 => PieceType::UserDefined,
                5 => PieceType::Unused,
                6 => PieceType::Byte,
                _ => PieceType::Normal,
            },
        });
        Ok(Self { gguf, pieces: pieces.collect() })
    }

    fn field(&self, name: &str) -> Option<&'a Field> {
        self.gguf.get(&format!("tokenizer.ggml.{name}"))
    }

    fn string(&self, name: &str) -> Option<&'a str> {
        self.field(name)?.as_str()
    }

    fn flag(&self, name: &str, default: bool) -> bool {
        self.field(name).and_then(Field::as_bool).unwrap_or(default)
    }

    /// An id that lies within the vocabulary.
    fn id(&self, name: &str) -> Option<u32> {
        let id = self.field(&format!("{name}_token_id"))?.as_u64()?;
        u32::try_from(id).ok().filter(|&id| (id as usize) < self.pieces.len())
    }

    /// A role's token with its id.
    fn token(&self, name: &str) -> Option<(&str, u32)> {
        let id = self.id(name)?;
        Some((self.pieces[id as usize].text.as_str(), id))
    }

    fn special(&self) -> Special {
        let text = |name: &str| self.token(name).map(|(text, _)| text.to_string());
        Special {
            bos: text("bos"),
            eos: text("eos"),
            pad: text("padding").or_else(|| text("eos")),
            unk: text("unknown"),
        }
    }

    /// Control pieces as special tokens, user-defined ones as ordinary added tokens.
    fn added_tokens(&self) -> Vec<Value> {
        let kinds = self.pieces.iter().enumerate();
        let added = kinds.filter_map(|(id, piece)| match piece.kind {
            PieceType::Control => Some(added_token(id as u32, &piece.text, true)),
            PieceType::UserDefined => Some(added_token(id as u32, &piece.text, false)),
            _ => None,
        });
        added.collect()
    }

    fn vocab(&self) -> Result<Map<String, Value>> {
        let vocab: Map<String, Value> =
            self.pieces.iter().enumerate().map(|(id, p)| (p.text.clone(), id.into())).collect();
        ensure!(
            vocab.len() == self.pieces.len(),
            "tokenizer.ggml.tokens has a token twice\nhint: the GGUF file is damaged"
        );
        Ok(vocab)
    }

    fn byte_level(&self) -> Result<Tokenizer> {
        let name = self.string("pre").unwrap_or("default");
        let Some(pre) = GGUF_PRES.iter().find(|pre| pre.names.contains(&name)) else {
            let known: Vec<&str> = GGUF_PRES.iter().flat_map(|pre| pre.names).copied().collect();
            bail!("tokenizer.ggml.pre = {name:?} is not known\nhint: known are {}", known.join(", "));
        };
        let merges = self.field("merges").and_then(Field::as_strings).context(
            "no tokenizer.ggml.merges\nhint: a gpt2 tokenizer needs them; convert the model again",
        )?;
        let merges: Option<Vec<(&str, &str)>> = merges.iter().map(|merge| merge.split_once(' ')).collect();
        let merges = merges
            .context("tokenizer.ggml.merges: expected two tokens and a space\nhint: the file is damaged")?;
        let adds_bos = self.flag("add_bos_token", pre.adds_bos);
        let adds_eos = self.flag("add_eos_token", false);
        let pipeline = json!({
            "version": "1.0",
            "added_tokens": self.added_tokens(),
            "normalizer": null,
            "pre_tokenizer": split_then_bytes(pre.patterns),
            "post_processor": template_processor(
                self.token("bos").filter(|_| adds_bos),
                self.token("eos").filter(|_| adds_eos),
            ),
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": pre.ignore_merges, "vocab": self.vocab()?, "merges": merges,
            },
        });
        let library = serde_json::from_value(pipeline).context("building the tokenizer of the GGUF file")?;
        Tokenizer::new(library, Some(self.special()), Map::new())
    }

    fn sentencepiece(self, algorithm: Algorithm) -> Result<Tokenizer> {
        let charsmap = match self.field("precompiled_charsmap").and_then(Field::as_array) {
            Some(Array::U8(bytes)) => bytes.clone(),
            Some(Array::I8(bytes)) => bytes.iter().map(|&b| b as u8).collect(),
            _ => Vec::new(),
        };
        let adds_bos = self.flag("add_bos_token", algorithm == Algorithm::Bpe);
        let adds_eos = self.flag("add_eos_token", algorithm == Algorithm::Unigram);
        let model = Model {
            algorithm,
            byte_fallback: self.pieces.iter().filter(|p| p.kind == PieceType::Byte).count() >= 256,
            charsmap: if algorithm == Algorithm::Unigram { charsmap } else { Vec::new() },
            add_dummy_prefix: self.flag("add_space_prefix", true),
            remove_extra_whitespaces: algorithm == Algorithm::Unigram
                && self.flag("remove_extra_whitespaces", false),
            unk_id: self.id("unknown"),
            bos_id: self.id("bos"),
            eos_id: self.id("eos"),
            pad_id: self.id("padding"),
            pieces: self.pieces,
        };
        ensure!(
            model.pieces.iter().all(|p| !p.score.is_nan()),
            "tokenizer.ggml.scores holds no numbers\nhint: the GGUF file is damaged"
        );
        let settings = Settings::default();
        spm::tokenizer_with(model, None, &settings, adds_bos, adds_eos)
    }

    /// BERT's WordPiece; GGUF marks beginnings of words by `▁` where BERT marks the rest by `##`.
    fn wordpiece(self) -> Result<Tokenizer> {
        let is_text = |p: &Piece| p.kind == PieceType::Normal;
        let respell = |piece: &Piece| match piece.text.strip_prefix('▁') {
            Some(word) if is_text(piece) => word.to_string(),
            None if is_text(piece) => format!("##{}", piece.text),
            _ => piece.text.clone(),
        };
        let pieces = self.pieces.iter().map(|p| Piece { text: respell(p), ..p.clone() }).collect();
        let source = Self { gguf: self.gguf, pieces };
        let unknown = source.token("unknown").map_or("[UNK]", |(text, _)| text);
        let separator = source.token("seperator").or_else(|| source.token("separator")); // llama.cpp's spelling
        let pipeline = json!({
            "version": "1.0",
            "added_tokens": source.added_tokens(),
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": template_processor(source.token("cls").or_else(|| source.token("bos")), separator),
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {"type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": source.vocab()?},
        });
        let library = serde_json::from_value(pipeline).context("building the tokenizer of the GGUF file")?;
        let role = |token: Option<(&str, u32)>| token.map(|(text, _)| text.to_string());
        let special = Special { bos: role(source.token("cls")), eos: role(separator), ..source.special() };
        Tokenizer::new(library, Some(special), Map::new())
    }
}
