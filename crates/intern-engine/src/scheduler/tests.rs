//! The scheduler under any load, with a cache that remembers what was written into it.

use proptest::prelude::*;

use super::*;

/// What the cache holds at each position of each block: all tokens up to there.
struct Model {
    scheduler: Scheduler,
    cache: Vec<Vec<u32>>,
    budget: usize,
    /// The answer every sequence will give, so that some guesses can be right.
    answer: Vec<u32>,
}

fn sequence(id: SeqId, prompt: usize, max_tokens: usize) -> Sequence {
    Sequence::new(id, vec![id as u32; prompt], prompt + max_tokens)
}

fn chunk(id: SeqId, start: usize, len: usize) -> Chunk {
    Chunk { id, start, len, draft: 0 }
}

impl Model {
    fn new(num_blocks: usize, block_size: usize, max_num_seqs: usize, budget: usize, prefix: bool) -> Self {
        let blocks = BlockManager::new(num_blocks, block_size);
        Self {
            scheduler: Scheduler::new(blocks, max_num_seqs, budget, prefix),
            cache: vec![Vec::new(); num_blocks * block_size],
            budget: budget.max(max_num_seqs),
            answer: (0..100).map(|i| i * 7 % 3).collect(),
        }
    }

    /// Runs one step as the engine would; returns the chunks and the ids that ended.
    fn step(&mut self) -> (Vec<Chunk>, Vec<SeqId>) {
        let s = &mut self.scheduler;
        let chunks = s.schedule();
        s.check_integrity();
        assert!(chunks.iter().map(Chunk::num_rows).sum::<usize>() <= self.budget);
        assert!(!chunks.is_empty() || s.is_idle(), "work that waits makes progress");
        let size = s.blocks().block_size();
        for chunk in &chunks {
            let seq = s.sequence(chunk.id).expect("scheduled sequences run");
            assert_eq!(chunk.start, seq.computed);
            let tokens = [&seq.tokens[..], &seq.draft[..chunk.draft]].concat();
            let end = chunk.start + chunk.num_rows();
            assert!(chunk.draft == 0 || end == tokens.len(), "guesses follow the newest token");
            for position in 0..end {
                let slot = seq.table[position / size] as usize * size + position % size;
                if position < chunk.start {
                    assert_eq!(
                        self.cache[slot],
                        tokens[..=position],
                        "the cache holds the sequence's own past"
                    );
                } else {
                    self.cache[slot] = tokens[..=position].to_vec();
                }
            }
        }
        let mut ended = Vec::new();
        for chunk in &chunks {
            let draft = s.sequence(chunk.id).unwrap().draft.clone();
            if !s.computed(chunk) {
                continue;
            }
            let seq = s.sequence(chunk.id).unwrap();
            let room = seq.max_len - seq.tokens.len();
            let next = |i: usize| self.answer[(seq.num_generated() + i) % self.answer.len()];
            let right = (0..chunk.draft).take_while(|&i| draft[i] == next(i)).count();
            let new: Vec<u32> = (0..=right).map(next).take(room).collect();
            if new.is_empty() || !s.append(chunk.id, &new, new.len() - 1) {
                ended.push(chunk.id);
                s.remove(chunk.id);
            } else {
                // Every other guess is wrong somewhere.
                let seq = s.sequence(chunk.id).unwrap();
                let guess = (0..3).map(|i| {
                    self.answer[(seq.num_generated() + i) % 100]
                        + u32::from(i == 1 && seq.id.is_multiple_of(2))
                });
                let guess = guess.collect();
                s.set_draft(chunk.id, guess);
            }
        }
        s.check_integrity();
        (chunks, ended)
    }
}

proptest! {
    #[test]
    fn every_sequence_ends_whatever_the_load(
        num_blocks in 4usize..20,
        block_size in 1usize..5,
        max_num_seqs in 1usize..6,
        budget in 1usize..20,
        prefix in any::<bool>(),
        arrivals in prop::collection::vec((1usize..30, 0usize..20, 0usize..4, any::<bool>(), 0u32..2, 0usize..40), 1..20),
    ) {
        let capacity = num_blocks * block_size;
        let mut m = Model::new(num_blocks, block_size, max_num_seqs, budget, prefix);
        let (mut expected, mut ended) = (Vec::new(), Vec::new());
        for (id, (prompt, more, steps, cancel, kind, reusable)) in arrivals.into_iter().enumerate() {
            let prompt = prompt.min(capacity);
            let tokens = (0..prompt as u32).map(|i| i * kind % 5).collect();
            let mut sequence = Sequence::new(id as SeqId, tokens, prompt + more.min(capacity - prompt));
            sequence.reusable = reusable;
            m.scheduler.add(sequence);
            for _ in 0..steps {
                ended.extend(m.step().1);
            }
            if cancel && m.scheduler.remove(id as SeqId).is_some() {
                continue;
            }
            expected.push(id as SeqId);
        }
        for _ in 0..100_000 {
            if m.scheduler.is_idle() {
                break;
            }
            ended.extend(m.step().1);
        }
        prop_assert!(m.scheduler.is_idle());
        prop_assert_eq!(m.scheduler.blocks().num_free(), num_blocks);
        ended.sort_unstable();
        prop_assert_eq!(ended, expected);
    }
}

#[test]
fn decoding_goes_first_and_short_prompts_pass_long_ones() {
    let mut m = Model::new(100, 4, 8, 10, true);
    m.scheduler.add(sequence(0, 3, 10));
    m.scheduler.add(sequence(1, 50, 10));
    assert_eq!(m.step().0, [chunk(0, 0, 3), chunk(1, 0, 7)]);
    m.scheduler.set_draft(0, vec![]);
    assert_eq!(m.step().0, [chunk(0, 3, 1), chunk(1, 7, 9)]);
    m.scheduler.set_draft(0, vec![]);
    m.scheduler.add(sequence(2, 4, 1));
    assert_eq!(m.step().0, [chunk(0, 4, 1), chunk(1, 16, 5), chunk(2, 0, 4)]);
}

#[test]
fn a_short_prompt_is_answered_within_two_steps_of_a_long_one() {
    for (long, budget, short) in [(4096, 512, 32), (4096, 512, 200), (4096, 64, 30), (32_000, 256, 100)] {
        let mut m = Model::new(5000, 16, 16, budget, true);
        m.scheduler.add(sequence(0, long, 4));
        m.scheduler.add(sequence(1, long, 4));
        m.step();
        m.scheduler.add(sequence(2, short, 4));
        let before = m.scheduler.running()[0].computed;
        for _ in 0..2 {
            m.step();
        }
        assert!(m.scheduler.sequence(2).unwrap().num_generated() > 0, "{long} {budget} {short}");
        assert!(m.scheduler.running()[0].computed - before >= budget / 2, "the long one goes on");
    }
}

#[test]
fn a_bound_on_prompts_leaves_answers_alone() {
    let mut m = Model::new(100, 4, 8, 64, true);
    m.scheduler.add(sequence(0, 3, 10));
    m.step();
    m.scheduler.set_draft(0, vec![]);
    m.scheduler.add(sequence(1, 50, 10));
    m.scheduler.limit_prompts(5);
    assert_eq!(m.step().0, [chunk(0, 3, 1), chunk(1, 0, 5)]);
    m.scheduler.set_draft(0, vec![]);
    m.scheduler.limit_prompts(0);
    assert_eq!(m.step().0, [chunk(0, 4, 1), chunk(1, 5, 1)]);
}

#[test]
fn the_youngest_gives_way_and_is_recomputed() {
    for (more, preempts) in [(1, false), (5, true)] {
        let mut m = Model::new(4, 2, 8, 16, true);
        m.scheduler.add(sequence(0, 3, 5));
        m.scheduler.add(sequence(1, 3, more));
        let mut ended = Vec::new();
        while !m.scheduler.is_idle() {
            ended.extend(m.step().1);
        }
        assert_eq!(ended.len(), 2);
        assert!(!preempts || m.scheduler.num_preemptions() > 0, "eight positions cannot hold both");
    }
}

#[test]
fn admission_is_first_come_first_served() {
    let mut m = Model::new(4, 2, 8, 16, true);
    m.scheduler.add(sequence(0, 5, 1));
    m.scheduler.add(sequence(1, 6, 1));
    m.scheduler.add(sequence(2, 1, 1)); // would fit, but came later
    assert_eq!(m.step().0.iter().map(|c| c.id).collect::<Vec<_>>(), [0]);
}

#[test]
fn a_prompt_that_comes_again_is_not_read_again() {
    let mut m = Model::new(100, 4, 8, 64, true);
    let same = |id| Sequence::new(id, vec![9; 21], 25);
    m.scheduler.add(same(0));
    m.scheduler.add(same(1)); // at the same time: waits until the first has read it
    assert_eq!(m.step().0, [chunk(0, 0, 21)]);
    let (chunks, _) = m.step();
    assert_eq!(chunks[1], chunk(1, 20, 1));
    while !m.scheduler.is_idle() {
        m.step();
    }
    m.scheduler.add(same(2)); // later: the blocks outlive their sequence
    assert_eq!(m.step().0, [chunk(2, 20, 1)]);
    assert_eq!(m.scheduler.sequence(2).unwrap().cached, 20);
    assert_eq!(m.scheduler.prefix_tokens(), (63, 40));
    // Another model state, or results wanted inside, or the cache off: nothing is taken over.
    for (salt, reusable, want) in [(1, usize::MAX, 0), (0, 0, 0), (0, 9, 8)] {
        m.scheduler.add(Sequence { salt, reusable, ..same(3) });
        let (chunks, _) = m.step();
        assert_eq!(chunks.last().unwrap().start, want);
        m.scheduler.remove(3);
    }
    let mut off = Model::new(100, 4, 8, 64, false);
    off.scheduler.add(same(0));
    off.scheduler.add(same(1));
    assert_eq!(off.step().0, [chunk(0, 0, 21), chunk(1, 0, 21)]);
}

#[test]
fn an_answer_becomes_part_of_the_next_prompts_prefix() {
    let mut m = Model::new(100, 4, 8, 64, true);
    m.scheduler.add(Sequence::new(0, vec![9; 6], 16));
    while !m.scheduler.is_idle() {
        m.step();
    }
    let conversation = [&[9; 6][..], &m.answer[..10], &[5, 6]].concat();
    m.scheduler.add(Sequence::new(1, conversation, 20));
    // 15 of the 16 tokens were computed: three full blocks.
    assert_eq!(m.step().0, [chunk(1, 12, 6)]);
}
