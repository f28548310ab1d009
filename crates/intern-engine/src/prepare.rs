//! What a request needs besides its parameters, made on the caller's thread.

use std::sync::Arc;

use anyhow::{Result, ensure};
use intern_lm::Sampling;
use intern_tokenizer::Tokenizer;

/// Made once per request.
#[derive(Clone, Default)]
pub(crate) struct Prepared {
    /// Per token id: whether DRY begins anew behind it; empty without DRY.
    pub breakers: Arc<[bool]>,
}

/// Makes [`Prepared`].
pub(crate) struct Preparer {
    tokenizer: Tokenizer,
}

impl Preparer {
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self { tokenizer: tokenizer.clone() }
    }

    /// Fails for a grammar that is not supported.
    pub fn prepare(&self, sampling: &Sampling) -> Result<Prepared> {
        ensure!(sampling.grammar.is_none(), "grammars are not supported yet");
        let breakers = match &sampling.dry {
            Some(dry) => self.breakers(&dry.sequence_breakers),
            None => Arc::default(),
        };
        Ok(Prepared { breakers })
    }

    fn breakers(&self, texts: &[String]) -> Arc<[bool]> {
        let contains = |bytes: &[u8], text: &String| {
            !text.is_empty() && bytes.windows(text.len()).any(|window| window == text.as_bytes())
        };
        let breaks = |id| {
            let bytes = self.tokenizer.token_bytes(id).unwrap_or_default();
            texts.iter().any(|text| contains(&bytes, text))
        };
        (0..self.tokenizer.vocab_size() as u32).map(breaks).collect()
    }
}
