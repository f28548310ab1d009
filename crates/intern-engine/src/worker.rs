//! The engine's thread: `schedule → run → postprocess`, over and over.
//!
//! Takes submissions between steps, hands out events after each. A panic in a step fails the
//! requests of that step and nothing else; a listener that is gone cancels its request, a
//! deadline that has passed ends it, both in the middle of a step too.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use intern_tokenizer::Tokenizer;

use crate::active::{Active, End, Outcome, Vocabulary};
use crate::check::Limits;
use crate::compute::Computed;
use crate::draft::Drafter;
use crate::engine::{EngineRequest, Event, Listener, Stats};
use crate::prepare::Prepared;
use crate::runner::Runner;
use crate::scheduler::{Chunk, Scheduler};
use crate::sequence::{SeqId, Sequence};

/// How long a request may hear nothing, so that one whose client is gone is noticed.
const SILENCE: Duration = Duration::from_millis(20);
/// Rows of a step up to which guesses are worth their computation.
const GUESS_ROWS: usize = 8;
/// Prompt tokens that every step reads, however slow the model is.
const MIN_PROMPT_TOKENS: usize = 8;

/// A request on its way to the thread.
pub(crate) struct Submission {
    pub request: EngineRequest,
    pub prepared: Prepared,
    pub listener: Listener,
}

/// The engine's thread.
pub(crate) struct Worker {
    pub runner: Runner,
    /// Makes guesses, if there is a smaller model.
    pub drafter: Option<Drafter>,
    pub scheduler: Scheduler,
    pub tokenizer: Tokenizer,
    pub eos_ids: Vec<u32>,
    pub limits: Limits,
    /// Guesses per step where a request names none.
    pub prompt_lookup: usize,
    /// How long a step may keep answers waiting; zero for no bound.
    pub max_step: Duration,
    /// With RoPE that depends on the prompt's length: the length up to which it does not.
    pub dynamic_rope: Option<usize>,
    pub published: Arc<Mutex<Stats>>,
    pub state: State,
}

/// What changes from step to step besides the scheduler.
#[derive(Default)]
pub(crate) struct State {
    pub requests: BTreeMap<SeqId, Active>,
    next_id: SeqId,
    stats: Stats,
    /// Seconds per row of recent steps.
    row_time: f64,
}

impl Worker {
    /// Works until the engine is dropped.
    pub fn run(mut self, receiver: &Receiver<Submission>) {
        loop {
            if self.scheduler.is_idle() {
                let Ok(submission) = receiver.recv() else { return };
                self.accept(submission);
            }
            loop {
                match receiver.try_recv() {
                    Ok(submission) => self.accept(submission),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            self.step();
        }
    }

    /// Queues a request that was checked.
    fn accept(&mut self, Submission { request, mut prepared, listener }: Submission) {
        let id = self.state.next_id;
        self.state.next_id += 1;
        let n = request.tokens.len();
        let max_len = n.saturating_add(request.sampling.max_tokens).min(self.limits.max_context);
        let opening = match prepared.constraint.as_mut().map(|c| c.forced()) {
            None => Vec::new(),
            Some(Ok(forced)) => forced,
            Some(Err(error)) => {
                listener(Event::Error(format!("{error:#}")));
                return;
            }
        };
        let opened = opening.len().min(max_len - n);
        let mut sequence = Sequence::new(id, [&request.tokens[..], &opening[..opened]].concat(), max_len);
        sequence.prompt_len = n;
        sequence.reusable = match request.score_from {
            _ if request.prompt_logits || request.embed => 0,
            Some(from) => from - 1,
            None => usize::MAX,
        };
        let rope = self.dynamic_rope.filter(|&len| n > len).map_or(0, |_| n as u64);
        let adapter = prepared.adapter.map_or(0, |adapter| adapter as u64 + 1);
        sequence.salt = adapter << 40 | rope;
        self.scheduler.add(sequence);
        let guesses = self.drafter.as_ref().map_or(self.prompt_lookup, |drafter| drafter.most);
        let active = Active::new(request, prepared, listener, &self.tokenizer, opening, guesses);
        self.state.requests.insert(id, active);
    }

    /// Makes the counts visible to other threads.
    fn publish(&mut self) {
        let (scheduler, stats) = (&self.scheduler, &mut self.state.stats);
        let blocks = scheduler.blocks();
        (stats.free_blocks, stats.num_blocks) = (blocks.num_free(), blocks.num_blocks());
        (stats.running, stats.waiting) = (scheduler.running().len(), scheduler.num_waiting());
        stats.preemptions = scheduler.num_preemptions();
        (stats.prefix_lookup_tokens, stats.prefix_hit_tokens) = scheduler.prefix_tokens();
        *self.published.lock().expect("no code panics while holding this lock") = *stats;
    }

    /// schedule → run → postprocess.
    fn step(&mut self) {
        self.expire();
        self.pace();
        let mut chunks = self.scheduler.schedule();
        self.visit_waiting(&chunks);
        // Rows of one adapter are computed together.
        chunks.sort_by_key(|c| self.state.requests.get(&c.id).and_then(|active| active.prepared.adapter));
        self.state.stats.steps += 1;
        self.publish();
        #[cfg(debug_assertions)]
        self.scheduler.check_integrity();
        let start = Instant::now();
        let computed = catch_unwind(AssertUnwindSafe(|| {
            self.draft(&mut chunks);
            let masks = self.masks(&mut chunks);
            self.compute(&chunks, &masks)
        }));
        match computed {
            Ok(Computed { outcomes, gone }) => {
                if gone.is_empty() {
                    self.measure(&chunks, start.elapsed());
                }
                for &id in &gone {
                    let is_late = self.state.requests.get(&id).is_some_and(|r| r.is_late(Instant::now()));
                    self.end(id, if is_late { End::Expired } else { End::Gone });
                }
                let mut outcomes = outcomes.into_iter().peekable();
                for chunk in chunks.iter().filter(|c| !gone.contains(&c.id)) {
                    let mine =
                        std::iter::from_fn(|| outcomes.next_if(|(id, _)| *id == chunk.id).map(|o| o.1));
                    let mine: Vec<Outcome> = mine.collect();
                    self.postprocess(chunk, mine);
                }
            }
            Err(panic) => {
                let message = panic_message(&panic);
                tracing::error!("a step of the engine panicked: {message}");
                for chunk in &chunks {
                    self.end(chunk.id, End::Failed(format!("internal error in the engine: {message}")));
                }
            }
        }
        self.publish();
    }

    /// Ends what is past its deadline.
    fn expire(&mut self) {
        let now = Instant::now();
        let late = self.state.requests.iter().filter(|(_, active)| active.is_late(now));
        let late: Vec<SeqId> = late.map(|(&id, _)| id).collect();
        late.into_iter().for_each(|id| self.end(id, End::Expired));
    }

    /// Ends what is not in this step and has no listener any more.
    fn visit_waiting(&mut self, chunks: &[Chunk]) {
        let mut gone = Vec::new();
        for (&id, active) in &mut self.state.requests {
            let is_silent = active.heard.elapsed() > SILENCE && chunks.iter().all(|c| c.id != id);
            if is_silent && !active.tell(Event::Ping) {
                gone.push(id);
            }
        }
        gone.into_iter().for_each(|id| self.end(id, End::Gone));
    }

    /// Bounds the prompts of a step where answers wait for it.
    fn pace(&mut self) {
        let writing = self.scheduler.running().iter().any(Sequence::is_decoding);
        let bounded = writing && !self.max_step.is_zero() && self.state.row_time > 0.0;
        let most = match bounded {
            true => ((self.max_step.as_secs_f64() / self.state.row_time) as usize).max(MIN_PROMPT_TOKENS),
            false => usize::MAX,
        };
        self.scheduler.limit_prompts(most);
    }

    /// Learns how long rows take, from steps in which prompts are read.
    fn measure(&mut self, chunks: &[Chunk], time: Duration) {
        let rows: usize = chunks.iter().map(Chunk::num_rows).sum();
        if rows >= MIN_PROMPT_TOKENS {
            let now = time.as_secs_f64() / rows as f64;
            let before = self.state.row_time;
            self.state.row_time = if before == 0.0 { now } else { 0.75 * before + 0.25 * now };
        }
    }

    /// Hands out what a chunk brought and ends its request if it is complete.
    fn postprocess(&mut self, chunk: &Chunk, outcomes: Vec<Outcome>) {
        let Some(sequence) = self.scheduler.sequence(chunk.id) else { return };
        let draft = sequence.draft[..chunk.draft].to_vec();
        let up_to_date = self.scheduler.computed(chunk);
        let Some(active) = self.state.requests.get_mut(&chunk.id) else { return };
        let choices = active.keep(outcomes);
        let stats = &mut self.state.stats;
        let total = active.request.tokens.len();
        if chunk.start < total {
            let done = (chunk.start + chunk.len).min(total);
            stats.prompt_tokens += (done - chunk.start) as u64;
            if !active.tell(Event::Prefill { done, total }) {
                self.end(chunk.id, End::Gone);
                return;
            }
        }
        if !up_to_date {
            return;
        }
        let vocabulary = Vocabulary { tokenizer: &self.tokenizer, eos_ids: &self.eos_ids };
        let sequence = self.scheduler.sequence(chunk.id).expect("it was just computed");
        let added = active.take(choices, &draft, sequence, &vocabulary);
        stats.generated_tokens += added.tokens.len() as u64;
        stats.draft_tokens += draft.len() as u64;
        stats.accepted_tokens += added.right as u64;
        active.guesser.learn(draft.len(), added.right);
        if !added.tokens.is_empty() {
            self.scheduler.append(chunk.id, &added.tokens, added.right.min(added.tokens.len() - 1));
        }
        if let Some(end) = added.end {
            self.end(chunk.id, end);
            return;
        }
        if self.scheduler.running().len() < GUESS_ROWS {
            let sequence = self.scheduler.sequence(chunk.id).expect("it runs on");
            let most = (GUESS_ROWS / self.scheduler.running().len()).saturating_sub(1);
            let draft = match &self.drafter {
                Some(_) => vec![0; active.guesser.allowance().min(most)], // made in the next step
                None => active.guess(&sequence.tokens, most),
            };
            self.scheduler.set_draft(chunk.id, draft);
        }
    }

    /// Takes a request out and says its last word.
    fn end(&mut self, id: SeqId, end: End) {
        let sequence = self.scheduler.remove(id);
        let active = self.state.requests.remove(&id);
        self.publish(); // who hears of the end sees the blocks free
        if let (Some(sequence), Some(active)) = (sequence, active) {
            active.end(end, &sequence);
        }
    }
}

fn panic_message(panic: &Box<dyn std::any::Any + Send>) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use intern_kernels::pool::Pool;
    use intern_kernels::quant::BlockType;
    use intern_kernels::rng::Rng;
    use intern_lm::Sampling;
    use intern_model::{Architecture, ModelConfig};
    use intern_tokenizer::train::{BpeConfig, train_bpe};

    use super::*;
    use crate::block_manager::BlockManager;
    use crate::engine::KvType;
    use crate::parallel::{Ranks, Share};
    use crate::runner::POISON;
    use crate::weights::{HeadOffsets, Layer, Matrix, Stored, Weights, f32_bytes};

    /// A worker with one random layer.
    fn worker() -> Worker {
        let config = ModelConfig::small(Architecture::Llama, 320, 32, 1, 2, 1);
        let mut rng = Rng::new(1, 1);
        let mut matrix = |rows: usize, cols: usize| {
            let values: Vec<f32> = (0..rows * cols).map(|_| 0.2 * rng.normal() as f32).collect();
            Stored { ty: BlockType::F32, rows, cols, data: f32_bytes(&values) }
        };
        let (c, f, d) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let weights = Weights {
            embedding: matrix(320, c),
            layers: vec![Layer {
                attention_norm: vec![1.0; c],
                qkv: vec![(Matrix::Stored(matrix(4 * d, c)), 0)],
                qkv_bias: vec![],
                qk_norm: None,
                o: Matrix::Stored(matrix(c, 2 * d)),
                o_bias: vec![],
                ffn_norm: vec![1.0; c],
                gate: Matrix::Stored(matrix(f, c)),
                gate_bias: vec![],
                up: Matrix::Stored(matrix(f, c)),
                up_bias: vec![],
                down: Matrix::Stored(matrix(c, f)),
                down_bias: vec![],
            }],
            norm: vec![1.0; c],
            head: None,
            heads: HeadOffsets::separate(&config),
            interleaved: false,
            rope_factors: vec![],
            whole: config.clone(),
            share: Share::WHOLE,
            config,
        };
        let mut texts = std::iter::repeat_n("one two three".to_owned(), 3);
        Worker {
            drafter: None,
            runner: Runner::new(Ranks::alone(), weights, vec![], Pool::new(2).unwrap(), 16, 16, KvType::F32),
            scheduler: Scheduler::new(BlockManager::new(16, 16), 4, 32, true),
            tokenizer: train_bpe(&BpeConfig::new(300), &mut texts).unwrap(),
            eos_ids: vec![],
            limits: Limits { max_context: 256, vocab_size: 320 },
            prompt_lookup: 0,
            max_step: Duration::ZERO,
            dynamic_rope: None,
            published: Arc::default(),
            state: State::default(),
        }
    }

    #[test]
    fn a_panic_fails_the_requests_of_its_step_only() {
        let mut worker = worker();
        let sampling = Sampling { max_tokens: 3, ignore_eos: true, ..Sampling::default() };
        let submit = |worker: &mut Worker, tokens: Vec<u32>| {
            let (sender, receiver) = channel();
            let listener: Listener = Box::new(move |event| sender.send(event).is_ok());
            let request = EngineRequest::new(tokens, sampling.clone());
            worker.accept(Submission { request, prepared: Prepared::default(), listener });
            receiver
        };
        let bad = submit(&mut worker, vec![1, POISON]);
        let beside = submit(&mut worker, vec![1, 2]);
        worker.step();
        let later = submit(&mut worker, vec![1, 2]);
        while !worker.scheduler.is_idle() {
            worker.step();
        }
        for failed in [bad, beside] {
            let events: Vec<Event> = failed.try_iter().collect();
            assert!(matches!(&events[..], [Event::Error(m)] if m.contains("a poisoned token")), "{events:?}");
        }
        assert!(matches!(later.try_iter().last(), Some(Event::Done { .. })));
        assert_eq!(worker.scheduler.blocks().num_free(), 16);
        assert!(worker.state.requests.is_empty());
    }
}
