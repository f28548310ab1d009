//! The tokenizer every other crate holds: text ⇄ ids, special tokens, vocabulary.
//!
//! A thin, cheap-to-clone shell round a `tokenizers` pipeline plus what that crate
//! lacks: each token's bytes, the roles of special tokens, the chat template.

use std::sync::{Arc, OnceLock};

use anyhow::{Result, anyhow};
use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::chat::ChatTemplate;
use crate::decode::{Decoding, StreamDecoder};
use crate::{sentencepiece, spm};

/// Start and end of a token's text, in bytes.
type Span = (usize, usize);

/// The tokens that play a role, by their text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Special {
    /// Opens a text.
    pub bos: Option<String>,
    /// Ends a text.
    pub eos: Option<String>,
    /// Fills up batches.
    pub pad: Option<String>,
    /// Stands for what the vocabulary cannot express.
    pub unk: Option<String>,
}

impl Special {
    /// Guesses the roles from the names the field uses.
    pub(crate) fn guess(has: impl Fn(&str) -> bool) -> Self {
        let first = |names: &[&str]| names.iter().find(|n| has(n)).map(ToString::to_string);
        let eos = first(&[
            "</s>",
            "<|end_of_text|>",
            "<|endoftext|>",
            "<eos>",
            "<|im_end|>",
            "<|end▁of▁sentence|>",
            "[SEP]",
        ]);
        Self {
            bos: first(&[
                "<s>",
                "<|begin_of_text|>",
                "<bos>",
                "<|begin▁of▁sentence|>",
                "<|startoftext|>",
                "[CLS]",
            ]),
            pad: first(&["<pad>", "[PAD]", "<|pad|>"]).or_else(|| eos.clone()),
            unk: first(&["<unk>", "[UNK]"]),
            eos,
        }
    }
}

/// A tokenizer of any supported format.
///
/// Cheap to clone and safe to share between threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
    template: Option<ChatTemplate>,
}

struct Inner {
    library: tokenizers::Tokenizer,
    plain: OnceLock<Box<tokenizers::Tokenizer>>, // the same, blind to special tokens
    decoding: Decoding,
    bytes: Vec<Option<Box<[u8]>>>, // by id; None where the vocabulary has a hole
    is_special: Vec<bool>,         // by id
    special: Special,
    before: Vec<u32>, // what `add_special` puts in front of a text
    after: Vec<u32>,  // and behind it
    /// SentencePiece models are encoded by us; see [`spm`].
    exact: Option<spm::Encoder>,
    /// The `.model` file, so that saving keeps it.
    model_file: Option<Vec<u8>>,
    /// `tokenizer_config.json` as read, so saving keeps what we do not interpret.
    config: Map<String, Value>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("decoding", &self.inner.decoding)
            .field("special", &self.inner.special)
            .field("chat_template", &self.template.is_some())
            .finish()
    }
}

impl Tokenizer {
    /// Wraps a finished pipeline. Roles absent from `special` are guessed from names.
    pub(crate) fn new(
        mut library: tokenizers::Tokenizer,
        special: Option<Special>,
        config: Map<String, Value>,
    ) -> Result<Self> {
        // Truncation and padding are the caller's business.
        library.with_truncation(None).map_err(library_error)?;
        library.with_padding(None);
        let decoder = serde_json::to_value(library.get_decoder())?;
        let decoding = Decoding::from_json(&decoder);
        let vocab = library.get_vocab(true);
        let size = vocab.values().max().map_or(0, |&id| id as usize + 1);
        // Ids index our tables: a file that claims id 4e9 must not cost gigabytes.
        anyhow::ensure!(
            size <= 8 * vocab.len() + 65_536,
            "the vocabulary has {} tokens but ids up to {}\nhint: the tokenizer file is damaged",
            vocab.len(),
            size - 1
        );
        let added = library.get_added_tokens_decoder();
        let mut bytes = vec![None; size];
        let mut is_special = vec![false; size];
        for &id in vocab.values() {
            if let Some(token) = library.id_to_token(id) {
                // Added tokens are plain text, never spelled bytes.
                let decoding = if added.contains_key(&id) && decoding == Decoding::ByteLevel {
                    Decoding::Other
                } else {
                    decoding
                };
                bytes[id as usize] = Some(decoding.bytes(&token).into_boxed_slice());
                is_special[id as usize] = added.get(&id).is_some_and(|t| t.special);
            }
        }
        let special = special.unwrap_or_else(|| Special::guess(|name| library.token_to_id(name).is_some()));
        let encode = |special| library.encode_fast("a", special).map_err(library_error);
        let (bare, dressed) = (encode(false)?.get_ids().to_vec(), encode(true)?.get_ids().to_vec());
        let at = dressed.windows(bare.len().max(1)).position(|ids| ids == bare).unwrap_or(0);
        let (before, after) =
            (dressed[..at].to_vec(), dressed[dressed.len().min(at + bare.len())..].to_vec());
        let inner = Inner {
            library,
            plain: OnceLock::new(),
            decoding,
            bytes,
            is_special,
            special,
            before,
            after,
            exact: None,
            model_file: None,
            config,
        };
        Ok(Self { inner: Arc::new(inner), template: None })
    }

    /// Encodes by the SentencePiece model that the pipeline was made from.
    ///
    /// A model without a file is one from GGUF. There, as in llama.cpp, user-defined
    /// pieces part the text as special tokens do, so that what follows one gets the
    /// dummy prefix anew.
    pub(crate) fn with_sentencepiece(
        self,
        model: sentencepiece::Model,
        file: Option<Vec<u8>>,
    ) -> Result<Self> {
        let mut inner = Arc::into_inner(self.inner).expect("called before sharing");
        let added = inner.library.get_added_tokens_decoder();
        let parts_text = |special: bool| special || file.is_none();
        let special =
            added.into_iter().filter(|(_, t)| parts_text(t.special)).map(|(id, t)| (t.content, id)).collect();
        inner.exact = Some(spm::Encoder::new(model, special)?);
        inner.model_file = file;
        Ok(Self { inner: Arc::new(inner), template: self.template })
    }

    /// Encodes text; special tokens written in it are recognised.
    ///
    /// `add_special` adds what the tokenizer puts round a text (usually BOS in front).
    ///
    /// # Errors
    /// Fails when the vocabulary cannot express the text and has no unknown token.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let inner = &*self.inner;
        let Some(exact) = &inner.exact else {
            let encoding = inner.library.encode_fast(text, add_special).map_err(library_error)?;
            return Ok(encoding.get_ids().to_vec());
        };
        let encoded = exact.encode(text, true);
        let (before, after) = if add_special { (&*inner.before, &*inner.after) } else { (&[][..], &[][..]) };
        Ok(before.iter().copied().chain(encoded.iter().map(|e| e.0)).chain(after.iter().copied()).collect())
    }

    /// Encodes many texts on all cores; results in order.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_batch(&self, texts: &[&str], add_special: bool) -> Result<Vec<Vec<u32>>> {
        texts.par_iter().map(|text| self.encode(text, add_special)).collect()
    }

    /// Encodes text in which the names of special tokens are ordinary characters,
    /// so that user input cannot forge a turn of a conversation. Adds nothing.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        if let Some(exact) = &self.inner.exact {
            return Ok(exact.encode(text, false).into_iter().map(|e| e.0).collect());
        }
        let plain = self.inner.plain.get_or_init(|| {
            let mut library = self.inner.library.clone();
            library.set_encode_special_tokens(true);
            Box::new(library)
        });
        Ok(plain.encode_fast(text, false).map_err(library_error)?.get_ids().to_vec())
    }

    /// Encodes text and says which bytes of it each token covers (start, end).
    pub(crate) fn encode_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Vec<Span>)> {
        if let Some(exact) = &self.inner.exact {
            return Ok(exact.encode(text, true).into_iter().unzip());
        }
        let encoding = self.inner.library.encode(text, false).map_err(library_error)?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    /// Decodes ids. With `skip_special`, special tokens leave no trace. Bytes that are
    /// no UTF-8 become U+FFFD; ids outside the vocabulary decode to nothing.
    ///
    /// # Errors
    /// Fails when the tokenizer's own decoder does.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if self.inner.decoding == Decoding::Other {
            return self.decode_by_library(ids, skip_special);
        }
        let mut stream = self.stream(skip_special);
        let mut text = String::new();
        for &id in ids {
            text.extend(stream.push(id)?);
        }
        text.push_str(&stream.finish());
        Ok(text)
    }

    /// A decoder that takes ids one by one and never emits half a character.
    #[must_use]
    pub fn stream(&self, skip_special: bool) -> StreamDecoder {
        StreamDecoder::new(self.clone(), skip_special)
    }

    /// One more than the highest id (at least as many rows as an embedding needs).
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.inner.bytes.len()
    }

    /// The id of a token's text (as the vocabulary spells it).
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.library.token_to_id(token)
    }

    /// A token's text as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`).
    #[must_use]
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.library.id_to_token(id)
    }

    /// The bytes a token stands for in running text.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        self.token_bytes_ref(id).map(<[u8]>::to_vec)
    }

    pub(crate) fn token_bytes_ref(&self, id: u32) -> Option<&[u8]> {
        self.inner.bytes.get(id as usize)?.as_deref()
    }

    /// Opens a text.
    #[must_use]
    pub fn bos_id(&self) -> Option<u32> {
        self.role_id(self.inner.special.bos.as_ref())
    }

    /// Ends a text.
    #[must_use]
    pub fn eos_id(&self) -> Option<u32> {
        self.role_id(self.inner.special.eos.as_ref())
    }

    /// Fills up batches.
    #[must_use]
    pub fn pad_id(&self) -> Option<u32> {
        self.role_id(self.inner.special.pad.as_ref())
    }

    /// Stands for the inexpressible.
    #[must_use]
    pub fn unk_id(&self) -> Option<u32> {
        self.role_id(self.inner.special.unk.as_ref())
    }

    /// The tokens that end what an assistant writes: EOS and the end-of-turn tokens
    /// of the chat formats, as far as the vocabulary has them.
    #[must_use]
    pub fn end_ids(&self) -> Vec<u32> {
        const TURN_ENDS: [&str; 7] = [
            "<|im_end|>",
            "<|eot_id|>",
            "<|eom_id|>",
            "<end_of_turn>",
            "<|end|>",
            "<|endoftext|>",
            "<|end▁of▁sentence|>",
        ];
        let turn_ends =
            TURN_ENDS.iter().filter_map(|t| self.token_to_id(t)).filter(|&id| self.is_special(id));
        let mut ids: Vec<u32> = self.eos_id().into_iter().chain(turn_ends).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    fn role_id(&self, token: Option<&String>) -> Option<u32> {
        token.and_then(|t| self.token_to_id(t))
    }

    /// The tokens that play a role.
    #[must_use]
    pub fn special(&self) -> &Special {
        &self.inner.special
    }

    /// Whether `encode(_, true)` puts BOS in front.
    #[must_use]
    pub fn adds_bos(&self) -> bool {
        self.bos_id().is_some_and(|bos| self.inner.before.first() == Some(&bos))
    }

    /// Whether an id is a special token (left out by `decode(_, true)`).
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.is_special.get(id as usize).copied().unwrap_or(false)
    }

    /// The chat template, where the tokenizer came with one.
    #[must_use]
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The same tokenizer with another chat template. A template that does not parse
    /// is reported when it is first rendered (or by [`ChatTemplate::new`]).
    #[must_use]
    pub fn with_chat_template(mut self, source: String) -> Self {
        let special = &self.inner.special;
        let tokens = [
            ("bos_token", &special.bos),
            ("eos_token", &special.eos),
            ("pad_token", &special.pad),
            ("unk_token", &special.unk),
        ];
        let tokens = tokens.into_iter().filter_map(|(name, token)| Some((name, token.as_deref()?)));
        self.template = Some(ChatTemplate::lazily(source).with_tokens(tokens));
        self
    }

    pub(crate) fn decoding(&self) -> Decoding {
        self.inner.decoding
    }

    /// The SentencePiece model it was made from, if it was.
    pub(crate) fn sentencepiece(&self) -> Option<&sentencepiece::Model> {
        self.inner.exact.as_ref().map(spm::Encoder::model)
    }

    pub(crate) fn model_file(&self) -> Option<&[u8]> {
        self.inner.model_file.as_deref()
    }

    pub(crate) fn library(&self) -> &tokenizers::Tokenizer {
        &self.inner.library
    }

    pub(crate) fn config(&self) -> &Map<String, Value> {
        &self.inner.config
    }

    pub(crate) fn decode_by_library(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.library.decode(ids, skip_special).map_err(library_error)
    }
}

/// An error of the `tokenizers` crate as ours.
pub(crate) fn library_error(error: tokenizers::Error) -> anyhow::Error {
    anyhow!("{error}")
}
