//! One request as the scheduler sees it: tokens, how many of them the model has seen, and
//! the blocks that hold their keys and values.

use crate::block_manager::{BlockHash, chain};

/// Identifies a sequence; grows with arrival, so it also orders them.
pub type SeqId = u64;

/// Tokens on their way through the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Arrival number.
    pub id: SeqId,
    /// Prompt, then what was generated.
    pub tokens: Vec<u32>,
    /// Length of the prompt.
    pub prompt_len: usize,
    /// Tokens whose keys and values are in the cache.
    pub computed: usize,
    /// Blocks of the cache, in order; block `i` holds positions `i * block_size ..`.
    pub table: Vec<u32>,
    /// Longest it may become: prompt plus `max_tokens`, within the context.
    pub max_len: usize,
    /// Guesses at the tokens to come, to be computed with the newest one.
    pub draft: Vec<u32>,
    /// Leading positions whose results nobody asks for, so that a cached prefix may stand in.
    pub reusable: usize,
    /// What keys and values depend on besides the tokens; sequences share blocks only if equal.
    pub salt: u64,
    /// Positions that came from the prefix cache at first.
    pub cached: usize,
    /// Read as a prompt up to here, even where it was generated before a preemption.
    pub(crate) prefill_to: usize,
    /// Names of the leading full blocks.
    pub(crate) hashes: Vec<BlockHash>,
    /// How many of them the block manager was told.
    pub(crate) published: usize,
}

impl Sequence {
    /// A sequence of which nothing is computed yet.
    #[must_use]
    pub fn new(id: SeqId, tokens: Vec<u32>, max_len: usize) -> Self {
        let prompt_len = tokens.len();
        Self {
            id,
            tokens,
            prompt_len,
            computed: 0,
            table: Vec::new(),
            max_len,
            draft: Vec::new(),
            reusable: usize::MAX,
            salt: 0,
            cached: 0,
            prefill_to: prompt_len,
            hashes: Vec::new(),
            published: 0,
        }
    }

    /// Tokens the model has yet to see.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether the prompt is read and only new tokens are pending.
    #[must_use]
    pub fn is_decoding(&self) -> bool {
        self.computed >= self.prefill_to
    }

    /// Tokens generated so far.
    #[must_use]
    pub fn num_generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Names the full blocks among the first `len` tokens that have no name yet.
    pub(crate) fn name_blocks(&mut self, block_size: usize, len: usize) {
        while (self.hashes.len() + 1) * block_size <= len.min(self.tokens.len()) {
            let start = self.hashes.len() * block_size;
            let mut root = [0; 32];
            root[..8].copy_from_slice(&self.salt.to_le_bytes());
            let before = self.hashes.last().unwrap_or(&root);
            self.hashes.push(chain(before, &self.tokens[start..start + block_size]));
        }
    }

    /// Full blocks that a cached prefix may stand in for: at least one token is always computed.
    pub(crate) fn reusable_blocks(&self, block_size: usize) -> usize {
        self.reusable.min(self.tokens.len() - 1) / block_size
    }

    /// Forgets what was computed.
    pub(crate) fn restart(&mut self) {
        assert!(self.table.is_empty(), "the blocks were given back");
        self.computed = 0;
        self.published = 0;
        self.draft.clear();
        self.prefill_to = self.tokens.len();
    }
}
