//! Decides which tokens the model sees in the next step.
//!
//! `schedule → run → postprocess`: [`Scheduler::schedule`] hands out chunks under a token
//! budget, the runner computes them, the engine appends the sampled tokens. Every decoding
//! sequence comes first, one token each, then prompts in arrival order, cut to what is left;
//! so a long prompt never stalls the others. When blocks run out, the youngest running
//! sequence gives up its blocks and is recomputed later. Touches no tensors.

use std::collections::VecDeque;

use crate::block_manager::BlockManager;
use crate::sequence::{SeqId, Sequence};

/// Consecutive pending tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Whose.
    pub id: SeqId,
    /// Position of the first token.
    pub start: usize,
    /// Number of tokens, at least 1.
    pub len: usize,
}

/// Sequences that wait and sequences that run, and the blocks they hold.
#[derive(Debug)]
pub struct Scheduler {
    blocks: BlockManager,
    max_num_seqs: usize,
    max_batch_tokens: usize,
    /// Arrival order; preempted sequences return to the front.
    waiting: VecDeque<Sequence>,
    /// Arrival order.
    running: Vec<Sequence>,
    num_preemptions: u64,
}

impl Scheduler {
    /// At most `max_num_seqs` running sequences and `max_batch_tokens` tokens per step.
    ///
    /// The budget is raised to one token per sequence, so that none starves.
    #[must_use]
    pub fn new(blocks: BlockManager, max_num_seqs: usize, max_batch_tokens: usize) -> Self {
        let max_num_seqs = max_num_seqs.max(1);
        let max_batch_tokens = max_batch_tokens.max(max_num_seqs);
        Self {
            blocks,
            max_num_seqs,
            max_batch_tokens,
            waiting: VecDeque::new(),
            running: Vec::new(),
            num_preemptions: 0,
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

    /// Sequences that run.
    #[must_use]
    pub fn num_running(&self) -> usize {
        self.running.len()
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

    /// The block manager, for its counts.
    #[must_use]
    pub fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// A running sequence.
    #[must_use]
    pub fn sequence(&self, id: SeqId) -> Option<&Sequence> {
        self.running.iter().find(|s| s.id == id)
    }

    /// The next step: at least one chunk unless idle, and blocks for every position in it.
    pub fn schedule(&mut self) -> Vec<Chunk> {
        let mut budget = self.max_batch_tokens;
        let mut chunks = Vec::new();
        let preemptions = self.num_preemptions;
        for decoding in [true, false] {
            let mut i = 0;
            while i < self.running.len() && budget > 0 {
                let sequence = &self.running[i];
                let len = sequence.pending().min(budget);
                let (id, start) = (sequence.id, sequence.computed);
                if sequence.is_decoding() == decoding
                    && self.make_room(i, start + len, &mut chunks, &mut budget)
                {
                    chunks.push(Chunk { id, start, len });
                    budget -= len;
                }
                i += 1;
            }
        }
        while budget > 0 && preemptions == self.num_preemptions && self.running.len() < self.max_num_seqs {
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            // The whole prompt and its first answer must fit, or admission would only preempt.
            let whole = sequence.max_len.min(sequence.tokens.len() + 1);
            let len = sequence.pending().min(budget);
            if self.blocks.blocks_for(whole) > self.unclaimed() || !self.blocks.grow(&mut sequence.table, len)
            {
                self.waiting.push_front(sequence);
                break;
            }
            chunks.push(Chunk { id: sequence.id, start: 0, len });
            budget -= len;
            let at = self.running.partition_point(|s| s.id < sequence.id);
            self.running.insert(at, sequence);
        }
        chunks
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
    fn make_room(&mut self, i: usize, len: usize, chunks: &mut Vec<Chunk>, budget: &mut usize) -> bool {
        loop {
            let mut table = std::mem::take(&mut self.running[i].table);
            let grown = self.blocks.grow(&mut table, len);
            self.running[i].table = table;
            if grown {
                return true;
            }
            if self.running.len() == i + 1 {
                return false;
            }
            let mut victim = self.running.pop().expect("sequence i is another one");
            self.blocks.release(&mut victim.table);
            victim.computed = 0;
            if let Some(at) = chunks.iter().position(|c| c.id == victim.id) {
                *budget += chunks.remove(at).len;
            }
            self.num_preemptions += 1;
            self.waiting.push_front(victim);
        }
    }

    /// Records that the model has seen a chunk; true when its last token is the sequence's
    /// newest, so that a next token may be sampled. False for a sequence that left meanwhile.
    pub fn computed(&mut self, chunk: &Chunk) -> bool {
        let Some(sequence) = self.running.iter_mut().find(|s| s.id == chunk.id) else { return false };
        assert_eq!(sequence.computed, chunk.start, "chunks come in order");
        sequence.computed += chunk.len;
        sequence.pending() == 0
    }

    /// Appends a sampled token; false when the sequence has reached its `max_len`.
    pub fn append(&mut self, id: SeqId, token: u32) -> bool {
        let sequence =
            self.running.iter_mut().find(|s| s.id == id).expect("only running sequences are sampled");
        assert_eq!(sequence.pending(), 0, "a token follows what was computed");
        sequence.tokens.push(token);
        sequence.tokens.len() < sequence.max_len
    }

    /// Takes a sequence out, wherever it is, and its blocks back.
    pub fn remove(&mut self, id: SeqId) -> Option<Sequence> {
        let mut sequence = match self.running.iter().position(|s| s.id == id) {
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
            self.waiting.iter().all(|s| s.table.is_empty() && s.computed == 0),
            "who waits holds nothing"
        );
        assert!(self.running.is_sorted_by_key(|s| s.id), "running sequences are in arrival order");
        for s in &self.running {
            assert!(s.computed <= s.tokens.len() && s.tokens.len() <= s.max_len);
            assert!(s.table.len() >= self.blocks.blocks_for(s.computed), "computed positions have blocks");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sequence(id: SeqId, prompt: usize, max_tokens: usize) -> Sequence {
        Sequence::new(id, vec![7; prompt], prompt + max_tokens)
    }

    /// Runs one step as the engine would; returns the chunks and the ids that ended.
    fn step(s: &mut Scheduler, budget: usize) -> (Vec<Chunk>, Vec<SeqId>) {
        let chunks = s.schedule();
        s.check_integrity();
        assert!(chunks.iter().map(|c| c.len).sum::<usize>() <= budget);
        assert!(!chunks.is_empty() || s.is_idle(), "work that waits makes progress");
        let mut ended = Vec::new();
        for chunk in &chunks {
            let seq = s.sequence(chunk.id).expect("scheduled sequences run");
            assert_eq!(chunk.start, seq.computed);
            assert!(seq.table.len() >= s.blocks().blocks_for(chunk.start + chunk.len));
            let fits = seq.tokens.len() < seq.max_len;
            if s.computed(chunk) && (!fits || !s.append(chunk.id, 1)) {
                ended.push(chunk.id);
                s.remove(chunk.id);
            }
        }
        s.check_integrity();
        (chunks, ended)
    }

    proptest! {
        #[test]
        fn every_sequence_ends_whatever_the_load(
            num_blocks in 4usize..20,
            block_size in 1usize..5,
            max_num_seqs in 1usize..6,
            budget in 1usize..20,
            arrivals in prop::collection::vec((1usize..30, 0usize..20, 0usize..4, any::<bool>()), 1..20),
        ) {
            let capacity = num_blocks * block_size;
            let mut s = Scheduler::new(BlockManager::new(num_blocks, block_size), max_num_seqs, budget);
            let budget = budget.max(max_num_seqs);
            let (mut expected, mut ended) = (Vec::new(), Vec::new());
            for (id, (prompt, more, steps, cancel)) in arrivals.into_iter().enumerate() {
                let prompt = prompt.min(capacity);
                s.add(sequence(id as SeqId, prompt, more.min(capacity - prompt)));
                for _ in 0..steps {
                    ended.extend(step(&mut s, budget).1);
                }
                if cancel && s.remove(id as SeqId).is_some() {
                    continue;
                }
                expected.push(id as SeqId);
            }
            for _ in 0..100_000 {
                if s.is_idle() {
                    break;
                }
                ended.extend(step(&mut s, budget).1);
            }
            prop_assert!(s.is_idle());
            prop_assert_eq!(s.blocks().num_free(), num_blocks);
            ended.sort_unstable();
            prop_assert_eq!(ended, expected);
        }
    }

    #[test]
    fn decoding_goes_first_and_a_long_prompt_gets_the_rest() {
        let mut s = Scheduler::new(BlockManager::new(100, 4), 8, 10);
        s.add(sequence(0, 3, 10));
        s.add(sequence(1, 50, 10));
        let (chunks, _) = step(&mut s, 10);
        assert_eq!(chunks, [Chunk { id: 0, start: 0, len: 3 }, Chunk { id: 1, start: 0, len: 7 }]);
        let (chunks, _) = step(&mut s, 10);
        assert_eq!(chunks, [Chunk { id: 0, start: 3, len: 1 }, Chunk { id: 1, start: 7, len: 9 }]);
        // A newcomer waits for budget, not for the long prompt's end.
        s.add(sequence(2, 2, 1));
        let (chunks, _) = step(&mut s, 10);
        assert_eq!(chunks[0].id, 0);
        assert_eq!(chunks[1], Chunk { id: 1, start: 16, len: 9 });
    }

    #[test]
    fn the_youngest_gives_way_and_is_recomputed() {
        let mut s = Scheduler::new(BlockManager::new(4, 2), 8, 16);
        s.add(sequence(0, 3, 5));
        s.add(sequence(1, 3, 1));
        let mut ended = Vec::new();
        for _ in 0..40 {
            if s.is_idle() {
                break;
            }
            ended.extend(step(&mut s, 16).1);
        }
        assert_eq!(ended.len(), 2);
        assert!(s.is_idle());
        let mut s = Scheduler::new(BlockManager::new(4, 2), 8, 16);
        s.add(sequence(0, 3, 5));
        s.add(sequence(1, 3, 5));
        while !s.is_idle() {
            step(&mut s, 16);
        }
        assert!(s.num_preemptions() > 0, "eight positions cannot hold both");
    }

    #[test]
    fn admission_is_first_come_first_served() {
        let mut s = Scheduler::new(BlockManager::new(4, 2), 8, 16);
        s.add(sequence(0, 5, 1));
        s.add(sequence(1, 6, 1));
        s.add(sequence(2, 1, 1)); // would fit, but came later
        let (chunks, _) = step(&mut s, 16);
        assert_eq!(chunks.iter().map(|c| c.id).collect::<Vec<_>>(), [0]);
    }
}
