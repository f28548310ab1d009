//! What a request needs besides its parameters, made on the caller's thread.

use std::sync::Arc;

use anyhow::{Context, Result};
use intern_tokenizer::Tokenizer;

use crate::engine::EngineRequest;
use crate::grammar::{Constraint, Grammars};

/// Made once per request.
#[derive(Default)]
pub(crate) struct Prepared {
    /// The form the answer must have.
    pub constraint: Option<Constraint>,
    /// Per token id: whether DRY begins anew behind it; empty without DRY.
    pub breakers: Arc<[bool]>,
    /// Index of the adapter beside the base, if any.
    pub adapter: Option<usize>,
}

/// Makes [`Prepared`].
pub(crate) struct Preparer {
    tokenizer: Tokenizer,
    grammars: Grammars,
    /// Names, in the order of their indices.
    pub adapters: Vec<String>,
}

impl Preparer {
    /// `eos_ids` are the model's own ends of text.
    pub fn new(tokenizer: &Tokenizer, eos_ids: &[u32], adapters: Vec<String>) -> Self {
        let mut ends = eos_ids.to_vec();
        ends.extend(tokenizer.end_ids().iter().filter(|id| !eos_ids.contains(id)));
        Self { tokenizer: tokenizer.clone(), grammars: Grammars::new(tokenizer, &ends), adapters }
    }

    /// Fails for an adapter that is not there and a grammar that is not supported.
    pub fn prepare(&self, request: &EngineRequest) -> Result<Prepared> {
        let sampling = &request.sampling;
        let adapter = request.adapter.as_ref().map(|name| {
            let found = self.adapters.iter().position(|a| a == name);
            found.with_context(|| format!("there is no adapter {name}\nhint: those of `adapters` are served"))
        });
        let constraint = |grammar| self.grammars.constraint(grammar, &sampling.stop_ids);
        let constraint = sampling.grammar.as_ref().map(constraint).transpose()?;
        let breakers = match &sampling.dry {
            Some(dry) => self.breakers(&dry.sequence_breakers),
            None => Arc::default(),
        };
        Ok(Prepared { constraint, breakers, adapter: adapter.transpose()? })
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
