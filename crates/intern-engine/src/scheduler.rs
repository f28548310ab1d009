//! Decides which tokens the model sees in the next step.
//!
//! `schedule → run → postprocess`: [`Scheduler::schedule`] hands out chunks under a token
//! budget, the runner computes them, the engine appends the sampled tokens. Every decoding
//! sequence comes first, with its guesses; half of what is left goes to the oldest prompt, the
//! other half to the shortest ones, so that a short prompt is read at once while a long one
//! goes on. A prompt that begins like an earlier one takes over its blocks. When blocks run
//! out, the youngest running sequence gives up its own and is recomputed later. Touches no
//! tensors.

use std::collections::{HashSet, VecDeque};

use crate::block_manager::{BlockHash, BlockManager};
use crate::sequence::{SeqId, Sequence};

/// Consecutive tokens of one sequence: pending ones, then guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Whose.
    pub id: SeqId,
    /// Position of the first token.
    pub start: usize,
    /// Number of pending tokens, at least 1.
    pub len: usize,
    /// Number of guesses behind them.
    pub draft: usize,
}

impl Chunk {
    /// Rows of the step.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.len + self.draft
    }
}

/// Sequences that wait and sequences that run, and the blocks they hold.
#[derive(Debug)]
pub struct Scheduler {
    blocks: BlockManager,
    max_num_seqs: usize,
    max_batch_tokens: usize,
    /// Prompt tokens of a step at most.
    max_prompt_tokens: usize,
    prefix_cache: bool,
    /// Arrival order; preempted sequences return to the front.
    waiting: VecDeque<Sequence>,
    /// Arrival order.
    running: Vec<Sequence>,
    num_preemptions: u64,
    num_looked_up: u64,
    num_hits: u64,
}

impl Scheduler {
    /// At most `max_num_seqs` running sequences and `max_batch_tokens` tokens per step.
    ///
    /// The budget is raised to one token per sequence, so that none starves.
    #[must_use]
    pub fn new(
        blocks: BlockManager,
        max_num_seqs: usize,
        max_batch_tokens: usize,
        prefix_cache: bool,
    ) -> Self {
        let max_num_seqs = max_num_seqs.max(1);
        Self {
            blocks,
            max_num_seqs,
            max_batch_tokens: max_batch_tokens.max(max_num_seqs),
            max_prompt_tokens: usize::MAX,
            prefix_cache,
            waiting: VecDeque::new(),
            running: Vec::new(),
            num_preemptions: 0,
            num_looked_up: 0,
            num_hits: 0,
        }
    }

    /// Queues a sequence. Its `max_len` must fit the cache, or it could never end.
    pub fn add(&mut self, sequence: Sequence) {
        let capacity = self.blocks.num_blocks() * self.blocks.block_size();
        assert!(sequence.max_len <= capacity, "a sequence must fit the cache alone");
        assert!(
            !sequence.tokens.is_empty() && sequence.tokens.len() <= sequence.max_len,
            "within its own bound"
        );
        self.waiting.push_back(sequence);
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Sequences that run, in arrival order.
    #[must_use]
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// Sequences that wait.
    #[must_use]
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Times a sequence gave up its blocks.
    #[must_use]
    pub fn num_preemptions(&self) -> u64 {
        self.num_preemptions
    }

    /// Prompt tokens looked up in the prefix cache, and those found.
    #[must_use]
    pub fn prefix_tokens(&self) -> (u64, u64) {
        (self.num_looked_up, self.num_hits)
    }

    /// The block manager, for its counts.
    #[must_use]
    pub fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// A running sequence.
    #[must_use]
    pub fn sequence(&self, id: SeqId) -> Option<&Sequence> {
        self.position(id).map(|i| &self.running[i])
    }

    fn position(&self, id: SeqId) -> Option<usize> {
        self.running.binary_search_by_key(&id, |s| s.id).ok()
    }

    /// The next step: at least one chunk unless idle, and blocks for every position in it.
    pub fn schedule(&mut self) -> Vec<Chunk> {
        let mut step = Step { chunks: Vec::new(), budget: self.max_batch_tokens };
        let preemptions = self.num_preemptions;
        let decoding: Vec<SeqId> = self.running.iter().filter(|s| s.is_decoding()).map(|s| s.id).collect();
        for (i, &id) in decoding.iter().enumerate() {
            // One token each is certain; who has more pending leaves that much to the others.
            let others = decoding.len() - i - 1;
            self.take(id, step.budget - others, &mut step);
        }
        self.add_drafts(&mut step);
        if preemptions == self.num_preemptions {
            self.admit();
        }
        let grants = self.share_out(step.budget.min(self.max_prompt_tokens));
        for (id, len) in grants {
            self.take(id, len, &mut step);
        }
        step.chunks
    }

    /// Adds up to `most` pending tokens of a sequence to the step, if they get blocks.
    fn take(&mut self, id: SeqId, most: usize, step: &mut Step) {
        let Some(i) = self.position(id) else { return }; // gave up its blocks in this step
        let start = self.running[i].computed;
        let len = self.running[i].pending().min(most).min(step.budget);
        if len > 0 && self.make_room(i, start + len, step) {
            step.chunks.push(Chunk { id, start, len, draft: 0 });
            step.budget -= len;
        }
    }

    /// Adds guesses behind newest tokens as far as budget and free blocks go.
    fn add_drafts(&mut self, step: &mut Step) {
        for chunk in &mut step.chunks {
            let i = self
                .running
                .binary_search_by_key(&chunk.id, |s| s.id)
                .expect("chunks are of running sequences");
            let sequence = &mut self.running[i];
            let len = sequence.tokens.len();
            if chunk.start + chunk.len < len {
                continue;
            }
            // The last token of all is sampled, never read.
            let most = sequence.draft.len().min(step.budget).min(sequence.max_len.saturating_sub(len + 1));
            if self.blocks.grow(&mut sequence.table, len + most) {
                chunk.draft = most;
                step.budget -= most;
            }
        }
    }

    /// Lets waiting sequences run, first come first served, as far as their prompts find blocks.
    fn admit(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let block_size = self.blocks.block_size();
        let mut being_read: HashSet<BlockHash> = HashSet::new();
        for s in self.running.iter().filter(|s| !s.is_decoding()) {
            being_read.extend(&s.hashes[s.published..]);
        }
        let mut i = 0;
        while i < self.waiting.len() && self.running.len() < self.max_num_seqs {
            let unclaimed = self.unclaimed();
            let sequence = &mut self.waiting[i];
            let (mut found, mut idle) = (0, 0);
            if self.prefix_cache {
                sequence.name_blocks(block_size, sequence.tokens.len());
                let names = &sequence.hashes[..sequence.reusable_blocks(block_size)];
                (found, idle) = self.blocks.lookup(names);
                if names.get(found).is_some_and(|next| being_read.contains(next)) {
                    i += 1; // someone reads the same right now: take it over in a moment
                    continue;
                }
            }
            // The whole prompt and its first answer must fit, or admission would only preempt.
            let whole = sequence.max_len.min(sequence.tokens.len() + 1);
            if self.blocks.blocks_for(whole) - found + idle > unclaimed {
                break;
            }
            let mut sequence = self.waiting.remove(i).expect("below the length");
            sequence.table = self.blocks.share(&sequence.hashes[..found]);
            (sequence.computed, sequence.published) = (found * block_size, found);
            if self.prefix_cache && sequence.num_generated() == 0 {
                sequence.cached = sequence.computed;
                self.num_looked_up += sequence.tokens.len() as u64;
                self.num_hits += sequence.computed as u64;
            }
            being_read.extend(&sequence.hashes[found..]);
            let at = self.running.partition_point(|s| s.id < sequence.id);
            self.running.insert(at, sequence);
        }
    }

    /// Who reads how much of their prompts: half for the oldest, the rest for the shortest first,
    /// what remains for the oldest again.
    fn share_out(&self, budget: usize) -> Vec<(SeqId, usize)> {
        let mut prompts: Vec<(usize, SeqId)> =
            self.running.iter().filter(|s| !s.is_decoding()).map(|s| (s.pending(), s.id)).collect();
        let Some(&(pending, oldest)) = prompts.first() else { return Vec::new() };
        let mut grants = vec![(oldest, pending.min(budget.div_ceil(2)))];
        let mut rest = budget - grants[0].1;
        prompts.remove(0);
        prompts.sort_unstable();
        for (pending, id) in prompts {
            let len = pending.min(rest);
            rest -= len;
            grants.push((id, len));
        }
        grants[0].1 += rest;
        grants.sort_unstable();
        grants
    }

    /// Free blocks that no admitted prompt still needs.
    fn unclaimed(&self) -> usize {
        let claimed = |s: &Sequence| self.blocks.blocks_for(s.tokens.len()).saturating_sub(s.table.len());
        self.blocks.num_free().saturating_sub(self.running.iter().map(claimed).sum())
    }

    /// Blocks for `len` positions of running sequence `i`, taken from younger ones if need be.
    ///
    /// Chunks of sequences that lose their blocks leave the step. Only a younger sequence can
    /// fail: the oldest may take everything, and everything suffices for one.
    fn make_room(&mut self, i: usize, len: usize, step: &mut Step) -> bool {
        loop {
            if self.blocks.grow(&mut self.running[i].table, len) {
                return true;
            }
            if self.running.len() == i + 1 {
                return false;
            }
            let mut victim = self.running.pop().expect("sequence i is another one");
            self.blocks.release(&mut victim.table);
            victim.restart();
            if let Some(at) = step.chunks.iter().position(|c| c.id == victim.id) {
                step.budget += step.chunks.remove(at).num_rows();
            }
            self.num_preemptions += 1;
            self.waiting.push_front(victim);
        }
    }

    /// Records that the model has seen a chunk; true when its last pending token is the
    /// sequence's newest, so that a next token may be sampled. False for a sequence that left.
    pub fn computed(&mut self, chunk: &Chunk) -> bool {
        let Some(i) = self.position(chunk.id) else { return false };
        let sequence = &mut self.running[i];
        assert_eq!(sequence.computed, chunk.start, "chunks come in order");
        sequence.computed += chunk.len;
        sequence.draft.clear();
        self.publish(i);
        self.running[i].pending() == 0
    }

    /// Appends tokens, the first `computed` of which the model has seen as guesses; false when
    /// the sequence has reached its `max_len`.
    pub fn append(&mut self, id: SeqId, tokens: &[u32], computed: usize) -> bool {
        let i = self.position(id).expect("only running sequences are sampled");
        let sequence = &mut self.running[i];
        assert_eq!(sequence.pending(), 0, "tokens follow what was computed");
        assert!(computed < tokens.len(), "the newest token is never computed yet");
        sequence.tokens.extend_from_slice(tokens);
        sequence.computed += computed;
        let room = sequence.tokens.len() < sequence.max_len;
        self.publish(i);
        room
    }

    /// Bounds the prompt tokens of the next steps; at least one is read all the same.
    pub fn limit_prompts(&mut self, most: usize) {
        self.max_prompt_tokens = most.max(1);
    }

    /// Guesses for the next step; unless it is used then, it is dropped.
    pub fn set_draft(&mut self, id: SeqId, draft: Vec<u32>) {
        if let Some(i) = self.position(id) {
            self.running[i].draft = draft;
        }
    }

    /// Makes newly filled blocks known.
    fn publish(&mut self, i: usize) {
        if !self.prefix_cache {
            return;
        }
        let (sequence, block_size) = (&mut self.running[i], self.blocks.block_size());
        let full = sequence.computed / block_size;
        sequence.name_blocks(block_size, sequence.computed);
        for block in sequence.published..full {
            self.blocks.publish(sequence.table[block], sequence.hashes[block]);
        }
        sequence.published = full;
    }

    /// Takes a sequence out, wherever it is, and its blocks back.
    pub fn remove(&mut self, id: SeqId) -> Option<Sequence> {
        let mut sequence = match self.position(id) {
            Some(i) => self.running.remove(i),
            None => {
                let i = self.waiting.iter().position(|s| s.id == id)?;
                self.waiting.remove(i).expect("just found")
            }
        };
        self.blocks.release(&mut sequence.table);
        Some(sequence)
    }

    /// Panics unless blocks and sequences agree; for tests and debug builds.
    pub fn check_integrity(&self) {
        let all = || self.running.iter().chain(&self.waiting);
        self.blocks.check_integrity(all().map(|s| s.table.as_slice()));
        assert!(
            self.waiting.iter().all(|s| s.table.is_empty() && s.computed == 0 && s.published == 0),
            "who waits holds nothing"
        );
        assert!(self.running.is_sorted_by_key(|s| s.id), "running sequences are in arrival order");
        for s in &self.running {
            assert!(s.computed <= s.tokens.len() && s.tokens.len() <= s.max_len);
            assert!(s.table.len() >= self.blocks.blocks_for(s.computed), "computed positions have blocks");
            assert!(s.published <= s.computed / self.blocks.block_size(), "only full blocks are known");
            assert!(s.published <= s.hashes.len(), "known blocks have names");
        }
    }
}

/// A step in the making.
struct Step {
    chunks: Vec<Chunk>,
    /// Rows left.
    budget: usize,
}

#[cfg(test)]
mod tests;
