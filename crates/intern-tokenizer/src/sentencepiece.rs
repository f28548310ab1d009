//! Reads SentencePiece `.model` files: the pieces and the few settings that decide
//! how text is encoded. The file is a protobuf message; only what is needed is read.
//!
//! Trusts nothing: any bytes give a model or an error that names the offset, and no
//! allocation exceeds what the file holds.

use anyhow::{Result, bail, ensure};

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceType {
    /// Ordinary text.
    Normal,
    /// Stands for what no other piece expresses.
    Unknown,
    /// Never in text: `<s>`, `</s>` and the like.
    Control,
    /// Matched as written, before anything else.
    UserDefined,
    /// One byte, `<0x00>` to `<0xFF>`.
    Byte,
    /// In the vocabulary but never produced.
    Unused,
}

/// One entry of the vocabulary; its index is its id.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Its text, with `▁` for a space.
    pub text: String,
    /// Log-probability (unigram) or negated merge rank (BPE).
    pub score: f32,
    /// What it is for.
    pub kind: PieceType,
}

/// How text becomes pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The most probable segmentation.
    Unigram,
    /// Pairwise merges, best score first.
    Bpe,
}

/// What a `.model` file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The vocabulary, by id.
    pub pieces: Vec<Piece>,
    /// How text becomes pieces.
    pub algorithm: Algorithm,
    /// Whether unknown characters become bytes.
    pub byte_fallback: bool,
    /// Compiled character replacements (NFKC and the like); empty for identity.
    pub charsmap: Vec<u8>,
    /// Whether a space is put in front of the text.
    pub add_dummy_prefix: bool,
    /// Whether spaces at the ends are dropped and runs of spaces become one.
    pub remove_extra_whitespaces: bool,
    /// Ids of the special pieces, where the model has them.
    pub unk_id: Option<u32>,
    /// Begins a text.
    pub bos_id: Option<u32>,
    /// Ends a text.
    pub eos_id: Option<u32>,
    /// Fills up batches.
    pub pad_id: Option<u32>,
}

impl Model {
    /// Parses a `.model` file.
    ///
    /// # Errors
    /// Names the byte offset at which the file stops making sense, or the setting that
    /// is not supported.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut pieces = Vec::new();
        let mut trainer = None;
        let mut normalizer = None;
        for field in Fields::new(bytes, 0) {
            let field = field?;
            match field.number {
                1 => pieces.push(parse_piece(field)?),
                2 => trainer = Some(Trainer::parse(field)?),
                3 => normalizer = Some(Normalizer::parse(field)?),
                _ => {} // self-test data, denormalizer, extensions
            }
        }
        ensure!(
            !pieces.is_empty(),
            "not a SentencePiece model: it has no pieces\nhint: expected the .model file that `spm_train` writes"
        );
        ensure!(
            pieces.iter().any(|p: &Piece| p.kind == PieceType::Unknown),
            "damaged SentencePiece model: no piece of {} is the unknown piece\nhint: fetch the file again",
            pieces.len()
        );
        // The settings follow the pieces, so a file cut short lacks them.
        let (Some(trainer), Some(normalizer)) = (trainer, normalizer) else {
            bail!("damaged SentencePiece model: {} pieces but no settings{CUT}", pieces.len());
        };
        let algorithm = match trainer.model_type {
            1 => Algorithm::Unigram,
            2 => Algorithm::Bpe,
            other => {
                bail!("SentencePiece model type {other} is not supported\nhint: unigram (1) and BPE (2) are")
            }
        };
        ensure!(
            !trainer.whitespace_as_suffix,
            "SentencePiece models with treat_whitespace_as_suffix are not supported\n\
             hint: train without --treat_whitespace_as_suffix"
        );
        ensure!(
            normalizer.escape_whitespaces,
            "SentencePiece models without escape_whitespaces are not supported\nhint: train with the default"
        );
        let id = |id: i64| u32::try_from(id).ok().filter(|&id| (id as usize) < pieces.len());
        Ok(Self {
            algorithm,
            byte_fallback: trainer.byte_fallback,
            charsmap: normalizer.charsmap,
            add_dummy_prefix: normalizer.add_dummy_prefix,
            remove_extra_whitespaces: normalizer.remove_extra_whitespaces,
            unk_id: id(trainer.unk_id),
            bos_id: id(trainer.bos_id),
            eos_id: id(trainer.eos_id),
            pad_id: id(trainer.pad_id),
            pieces,
        })
    }
}

fn parse_piece(message: Field<'_>) -> Result<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceType::Normal };
    for field in message.fields()? {
        let field = field?;
        match field.number {
            1 => piece.text = field.text()?.to_string(),
            2 => piece.score = field.float()?,
            3 => {
                piece.kind = match field.int()? {
                    1 => PieceType::Normal,
                    2 => PieceType::Unknown,
                    3 => PieceType::Control,
                    4 => PieceType::UserDefined,
                    5 => PieceType::Unused,
                    6 => PieceType::Byte,
                    other => {
                        bail!("byte {}: expected a piece type 1 to 6, found {other}{DAMAGED}", field.offset)
                    }
                }
            }
            _ => {}
        }
    }
    let length = piece.text.len();
    ensure!(length <= 8192, "byte {}: a piece of {length} bytes{DAMAGED}", message.offset);
    ensure!(length > 0, "byte {}: a piece without text{DAMAGED}", message.offset);
    ensure!(!piece.score.is_nan(), "byte {}: piece {:?} has no score{DAMAGED}", message.offset, piece.text);
    Ok(piece)
}

/// The settings of training that matter for encoding.
struct Trainer {
    model_type: i64,
    whitespace_as_suffix: bool,
    byte_fallback: bool,
    unk_id: i64,
    bos_id: i64,
    eos_id: i64,
    pad_id: i64,
}

impl Default for Trainer {
    fn default() -> Self {
        Self {
            model_type: 1,
            whitespace_as_suffix: false,
            byte_fallback: false,
            unk_id: 0,
            bos_id: 1,
            eos_id: 2,
            pad_id: -1,
        }
    }
}

impl Trainer {
    fn parse(message: Field<'_>) -> Result<Self> {
        let mut spec = Self::default();
        for field in message.fields()? {
            let field = field?;
            match field.number {
                3 => spec.model_type = field.int()?,
                24 => spec.whitespace_as_suffix = field.int()? != 0,
                35 => spec.byte_fallback = field.int()? != 0,
                40 => spec.unk_id = field.int()?,
                41 => spec.bos_id = field.int()?,
                42 => spec.eos_id = field.int()?,
                43 => spec.pad_id = field.int()?,
                _ => {}
            }
        }
        Ok(spec)
    }
}

/// How text is prepared.
struct Normalizer {
    charsmap: Vec<u8>,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

impl Default for Normalizer {
    fn default() -> Self {
        Self {
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        }
    }
}

impl Normalizer {
    fn parse(message: Field<'_>) -> Result<Self> {
        let mut spec = Self::default();
        for field in message.fields()? {
            let field = field?;
            match field.number {
                2 => spec.charsmap = field.bytes()?.to_vec(),
                3 => spec.add_dummy_prefix = field.int()? != 0,
                4 => spec.remove_extra_whitespaces = field.int()? != 0,
                5 => spec.escape_whitespaces = field.int()? != 0,
                _ => {}
            }
        }
        Ok(spec)
    }
}

const CUT: &str = "\nhint: the file seems cut short; fetch it again";
const DAMAGED: &str = "\nhint: not a SentencePiece model, or a damaged one; fetch the file again";

/// One field of a protobuf message.
#[derive(Clone, Copy)]
struct Field<'a> {
    number: u64,
    offset: usize, // of the value, in the file
    value: Wire<'a>,
}

#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64,
    Bytes(&'a [u8]),
    Fixed32([u8; 4]),
}

impl<'a> Field<'a> {
    fn int(&self) -> Result<i64> {
        match self.value {
            Wire::Varint(v) => Ok(v as i64),
            _ => bail!("byte {}: expected an integer{DAMAGED}", self.offset),
        }
    }

    fn float(&self) -> Result<f32> {
        match self.value {
            Wire::Fixed32(v) => Ok(f32::from_le_bytes(v)),
            _ => bail!("byte {}: expected a 32-bit float{DAMAGED}", self.offset),
        }
    }

    fn bytes(&self) -> Result<&'a [u8]> {
        match self.value {
            Wire::Bytes(v) => Ok(v),
            _ => bail!("byte {}: expected bytes{DAMAGED}", self.offset),
        }
    }

    fn text(&self) -> Result<&'a str> {
        let bytes = self.bytes()?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(e) => bail!("byte {}: a piece that is no UTF-8{DAMAGED}", self.offset + e.valid_up_to()),
        }
    }

    fn fields(&self) -> Result<Fields<'a>> {
        Ok(Fields::new(self.bytes()?, self.offset))
    }
}

/// The fields of a message one after the other; ends after the first error.
struct Fields<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8], offset: usize) -> Self {
        Self { bytes, offset }
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let Some((taken, rest)) = usize::try_from(count).ok().and_then(|n| self.bytes.split_at_checked(n))
        else {
            bail!("byte {}: expected {count} bytes, {} left{DAMAGED}", self.offset, self.bytes.len());
        };
        self.bytes = rest;
        self.offset += taken.len();
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64> {
        let start = self.offset;
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        bail!("byte {start}: an integer longer than ten bytes{DAMAGED}")
    }

    fn field(&mut self) -> Result<Field<'a>> {
        let start = self.offset;
        let tag = self.varint()?;
        let mut offset = self.offset;
        let value = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Wire::Fixed64
            }
            2 => {
                let length = self.varint()?;
                offset = self.offset;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Fixed32(self.take(4)?.try_into().expect("four bytes were taken")),
            other => bail!("byte {start}: expected a protobuf field, found wire type {other}{DAMAGED}"),
        };
        Ok(Field { number: tag >> 3, offset, value })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.bytes = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message with one field of bytes.
    fn message(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, bytes.len() as u8];
        out.extend_from_slice(bytes);
        out
    }

    fn tiny() -> Vec<u8> {
        let unknown = [message(1, b"<unk>"), vec![3 << 3, 2]].concat();
        let normal =
            [message(1, "▁a".as_bytes()), vec![2 << 3 | 5], (-1.5f32).to_le_bytes().to_vec()].concat();
        let trainer = vec![3 << 3, 2]; // BPE
        let normalizer = vec![3 << 3, 0]; // no dummy prefix
        [message(1, &unknown), message(1, &normal), message(2, &trainer), message(3, &normalizer)].concat()
    }

    #[test]
    fn pieces_and_settings_are_read() {
        let model = Model::parse(&tiny()).unwrap();
        assert_eq!(model.algorithm, Algorithm::Bpe);
        assert!(!model.add_dummy_prefix && model.remove_extra_whitespaces && !model.byte_fallback);
        assert_eq!(model.pieces[0].kind, PieceType::Unknown);
        assert_eq!(model.pieces[1], Piece { text: "▁a".into(), score: -1.5, kind: PieceType::Normal });
        assert_eq!((model.unk_id, model.bos_id, model.eos_id), (Some(0), Some(1), None)); // beyond the pieces
    }

    #[test]
    fn errors_name_the_offset() {
        let mut cut = tiny();
        cut.truncate(20);
        let error = Model::parse(&cut).unwrap_err().to_string();
        assert!(error.contains("byte 13: expected 11 bytes, 7 left"), "{error}");
        assert!(error.contains("hint:"), "{error}");
        let error = Model::parse(b"").unwrap_err().to_string();
        assert!(error.contains("no pieces"), "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_model_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Model::parse(&bytes);
        }

        #[test]
        fn damage_never_panics(at in 0usize..100, value: u8) {
            let mut bytes = tiny();
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = Model::parse(&bytes);
        }
    }
}
