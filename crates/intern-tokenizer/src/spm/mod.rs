//! Encodes exactly as SentencePiece does.
//!
//! The `tokenizers` crate comes close: its BPE cannot give two merges the same rank
//! (SentencePiece takes the leftmost of equal scores), and its charsmap normalizer works
//! by grapheme clusters instead of by the longest match. So encoding is done here, and
//! [`pipeline`] says the same as a `tokenizers` pipeline for export and decoding. GGUF
//! files of llama type come the same way.

mod bpe;
mod charsmap;
mod normalize;
mod pipeline;
mod unigram;

use ahash::{AHashMap, AHashSet};
use anyhow::{Context, Result};
use regex::bytes::Regex;
use serde_json::Value;

use crate::files::Settings;
use crate::internlm2;
use crate::sentencepiece::{Algorithm, Model, Piece, PieceType};
use crate::tokenizer::{Special, Tokenizer};
use normalize::Normalizer;

pub(crate) use pipeline::pipeline;

/// Builds a tokenizer from a SentencePiece model.
pub(crate) fn tokenizer(model: Model, file: Option<Vec<u8>>, settings: &Settings) -> Result<Tokenizer> {
    let adds_bos = settings.flag("add_bos_token").unwrap_or(true);
    let adds_eos = settings.flag("add_eos_token").unwrap_or(false);
    tokenizer_with(model, file, settings, adds_bos, adds_eos)
}

/// As [`tokenizer`], saying whether BOS and EOS go round a text.
pub(crate) fn tokenizer_with(
    mut model: Model,
    file: Option<Vec<u8>>,
    settings: &Settings,
    adds_bos: bool,
    adds_eos: bool,
) -> Result<Tokenizer> {
    name_chat_tokens(&mut model);
    add_tokens(&mut model, settings);
    let library: tokenizers::Tokenizer = serde_json::from_value(pipeline(&model, adds_bos, adds_eos)?)
        .context("expressing the SentencePiece model as a tokenizer.json")?;
    let special =
        settings.special(|token| library.token_to_id(token).is_some()).unwrap_or_else(|| roles(&model));
    Tokenizer::new(library, Some(special), settings.config.clone())?.with_sentencepiece(model, file)
}

/// Gives a `tokenizer.json` the exact encoder of the model it was made from, if the two
/// say the same: equal pieces, preparation and user-defined symbols.
pub(crate) fn attach(
    tokenizer: Tokenizer,
    mut model: Model,
    file: Vec<u8>,
    settings: &Settings,
) -> Result<Tokenizer> {
    name_chat_tokens(&mut model);
    add_tokens(&mut model, settings);
    let library = tokenizer.library();
    let same_pieces = library.get_vocab_size(false) == model.pieces.len()
        && model.pieces.iter().enumerate().all(|(id, p)| library.token_to_id(&p.text) == Some(id as u32));
    let normalizer = serde_json::to_value(library.get_normalizer())?;
    let same_preparation =
        normalizer == pipeline::normalizer(&model) && library.get_pre_tokenizer().is_none();
    let is_symbol = |id: u32| model.pieces.get(id as usize).is_some_and(|p| p.kind == PieceType::UserDefined);
    let added = library.get_added_tokens_decoder();
    let same_symbols = added.iter().all(|(&id, token)| token.special != is_symbol(id));
    if same_pieces && same_preparation && same_symbols {
        return tokenizer.with_sentencepiece(model, Some(file));
    }
    Ok(tokenizer)
}

/// InternLM2's released model reserves six pieces that its chat format gave names.
fn name_chat_tokens(model: &mut Model) {
    let is_internlm2 = model.pieces.len() == 92_544
        && internlm2::ALIASES
            .iter()
            .zip(&model.pieces[92_538..])
            .all(|((reserved, _), p)| p.text == *reserved);
    if is_internlm2 {
        for ((_, name), piece) in internlm2::ALIASES.iter().zip(&mut model.pieces[92_538..]) {
            *piece = Piece { text: name.to_string(), score: 0.0, kind: PieceType::Control };
        }
    }
}

/// Applies `added_tokens_decoder` of `tokenizer_config.json`: new names for reserved
/// pieces, and tokens beyond the model's own.
fn add_tokens(model: &mut Model, settings: &Settings) {
    let Some(added) = settings.config.get("added_tokens_decoder").and_then(Value::as_object) else { return };
    let parse = |(id, token): (&String, &Value)| {
        let kind = if token["special"] == true { PieceType::Control } else { PieceType::UserDefined };
        Some((
            id.parse::<usize>().ok()?,
            Piece { text: token["content"].as_str()?.to_string(), score: 0.0, kind },
        ))
    };
    let mut added: Vec<(usize, Piece)> = added.iter().filter_map(parse).collect();
    added.sort_by_key(|(id, _)| *id);
    let mut taken: AHashSet<String> = model.pieces.iter().map(|p| p.text.clone()).collect();
    for (id, piece) in added {
        let fits = id <= model.pieces.len(); // a gap is nothing a piece can fill
        if !fits || piece.text.is_empty() || !taken.insert(piece.text.clone()) {
            continue;
        }
        if id == model.pieces.len() {
            model.pieces.push(piece);
        } else {
            model.pieces[id] = piece;
        }
    }
}

/// The roles of special pieces as the model states them.
fn roles(model: &Model) -> Special {
    let text = |id: Option<u32>| id.map(|id| model.pieces[id as usize].text.clone());
    Special {
        bos: text(model.bos_id),
        eos: text(model.eos_id),
        pad: text(model.pad_id).or_else(|| text(model.eos_id)),
        unk: text(model.unk_id),
    }
}

/// Everything encoding needs, prepared once.
pub(crate) struct Encoder {
    model: Model,
    ids: AHashMap<Box<str>, u32>, // pieces that text can become: normal, user-defined, unused
    bytes: Option<Box<[u32; 256]>>, // byte fallback
    unk: u32,
    longest: usize, // bytes of the longest piece
    unk_score: f32, // of an unknown character (unigram)
    max_score: f32,
    normalizer: Normalizer,
    /// Names of special tokens, to be recognised in text.
    special: Option<Regex>,
    special_ids: AHashMap<Box<[u8]>, u32>,
}

/// Ids with the byte range of the text each covers.
pub(crate) type Encoded = Vec<(u32, (usize, usize))>;

impl Encoder {
    /// Prepares a model; `special` are the tokens (text, id) recognised in text.
    pub(crate) fn new(model: Model, special: Vec<(String, u32)>) -> Result<Self> {
        let mut ids: AHashMap<Box<str>, u32> = AHashMap::new();
        let mut bytes = [None; 256];
        for (id, piece) in model.pieces.iter().enumerate() {
            match piece.kind {
                // The byte piece stands for it: `sentencepiece` treats this one as unused.
                PieceType::Normal if model.byte_fallback && piece.text == "\0" => {}
                PieceType::Normal | PieceType::UserDefined | PieceType::Unused => {
                    ids.insert(piece.text.as_str().into(), id as u32);
                }
                PieceType::Byte => {
                    if let Some(byte) = crate::decode::byte_piece(&piece.text) {
                        bytes[byte as usize] = Some(id as u32);
                    }
                }
                PieceType::Control | PieceType::Unknown => {}
            }
        }
        let scores = || model.pieces.iter().filter(|p| p.kind == PieceType::Normal).map(|p| p.score);
        let bytes: Option<Vec<u32>> = model.byte_fallback.then(|| bytes.into_iter().collect()).flatten();
        let user_defined = model.pieces.iter().filter(|p| p.kind == PieceType::UserDefined);
        let normalizer = Normalizer::new(&model, user_defined.map(|p| p.text.as_str()))?;
        let special: Vec<(String, u32)> = special.into_iter().filter(|(text, _)| !text.is_empty()).collect();
        Ok(Self {
            bytes: bytes.map(|b| Box::new(b.try_into().expect("256 of them"))),
            unk: model
                .unk_id
                .or_else(|| position(&model, PieceType::Unknown))
                .context("the model has no unknown piece")?,
            longest: ids.keys().map(|text| text.len()).max().unwrap_or(0),
            unk_score: scores().fold(f32::MAX, f32::min) - unigram::UNKNOWN_PENALTY,
            max_score: scores().fold(f32::MIN, f32::max),
            ids,
            normalizer,
            special: longest_first(special.iter().map(|(text, _)| text.as_str()))?,
            special_ids: special.into_iter().map(|(text, id)| (text.into_bytes().into(), id)).collect(),
            model,
        })
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Encodes text; with `special`, names of special tokens in it become those tokens
    /// and what lies between them is encoded on its own.
    pub(crate) fn encode(&self, text: &str, special: bool) -> Encoded {
        let mut out = Vec::with_capacity(text.len() / 3);
        let mut done = 0;
        if let Some(names) = self.special.as_ref().filter(|_| special) {
            for found in names.find_iter(text.as_bytes()) {
                self.encode_segment(&text[done..found.start()], done, &mut out);
                out.push((self.special_ids[found.as_bytes()], (found.start(), found.end())));
                done = found.end();
            }
        }
        self.encode_segment(&text[done..], done, &mut out);
        out
    }

    /// Encodes a text without special tokens that begins at byte `base`.
    fn encode_segment(&self, text: &str, base: usize, out: &mut Encoded) {
        let normalized = self.normalizer.normalize(text);
        let source = |at: usize| base + normalized.source[at] as usize;
        let text = normalized.text.as_str();
        let mut emit = Emitter { encoder: self, out, after_unknown: false };
        match self.model.algorithm {
            Algorithm::Bpe => bpe::segment(self, text, |id, start, end| {
                emit.piece(id, &text[start..end], (source(start), source(end)));
            }),
            Algorithm::Unigram => unigram::segment(self, text, |id, start, end| {
                emit.piece(id, &text[start..end], (source(start), source(end)));
            }),
        }
    }
}

fn position(model: &Model, kind: PieceType) -> Option<u32> {
    model.pieces.iter().position(|p| p.kind == kind).map(|id| id as u32)
}

/// A pattern that finds any of these strings, preferring the longest.
fn longest_first<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Option<Regex>> {
    let mut texts: Vec<&str> = texts.collect();
    if texts.is_empty() {
        return Ok(None);
    }
    texts.sort_by_key(|t| std::cmp::Reverse(t.len()));
    let alternatives: Vec<String> = texts.iter().map(|t| regex::escape(t)).collect();
    let pattern = regex::bytes::RegexBuilder::new(&alternatives.join("|")).size_limit(256 << 20).build();
    Ok(Some(pattern.context("too many special tokens")?))
}

/// Writes pieces out: unknown ones as bytes, or a run of them as one unknown token.
struct Emitter<'a> {
    encoder: &'a Encoder,
    out: &'a mut Encoded,
    after_unknown: bool,
}

impl Emitter<'_> {
    fn piece(&mut self, id: u32, text: &str, source: (usize, usize)) {
        let unknown = id == self.encoder.unk;
        match &self.encoder.bytes {
            Some(bytes) if unknown => self.out.extend(text.bytes().map(|b| (bytes[b as usize], source))),
            _ if unknown && self.after_unknown => {
                if let Some((_, (_, end))) = self.out.last_mut() {
                    *end = source.1;
                }
            }
            _ => self.out.push((id, source)),
        }
        self.after_unknown = unknown;
    }
}
