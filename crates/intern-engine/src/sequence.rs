//! One request as the scheduler sees it: tokens, how many of them the model has seen, and
//! the blocks that hold their keys and values.

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
}

impl Sequence {
    /// A sequence of which nothing is computed yet.
    #[must_use]
    pub fn new(id: SeqId, tokens: Vec<u32>, max_len: usize) -> Self {
        let prompt_len = tokens.len();
        Self { id, tokens, prompt_len, computed: 0, table: Vec::new(), max_len }
    }

    /// Tokens the model has yet to see.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether only the newest token is pending.
    #[must_use]
    pub fn is_decoding(&self) -> bool {
        self.pending() == 1 && self.computed > 0
    }

    /// Tokens generated so far.
    #[must_use]
    pub fn num_generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }
}
