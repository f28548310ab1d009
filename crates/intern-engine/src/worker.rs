//! The engine's thread: `schedule → run → postprocess`, over and over.
//!
//! Takes submissions between steps, hands out events after each. A panic in a step fails the
//! requests of that step and nothing else; a listener that is gone cancels its request.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex};

use intern_kernels::sampling::{argmax, log_sum_exp, top_k};
use intern_lm::{FinishReason, Sampling, TokenLogprob, Usage};
use intern_tokenizer::Tokenizer;

use crate::check::Limits;
use crate::engine::{EngineRequest, Event, Listener, Stats, TokenScore};
use crate::penalties::Said;
use crate::prepare::Prepared;
use crate::runner::{Row, Runner};
use crate::sampler::{Choice, sample};
use crate::scheduler::{Chunk, Scheduler};
use crate::sequence::{SeqId, Sequence};
use crate::text::TextStream;

/// A request on its way to the thread.
pub(crate) struct Submission {
    pub request: EngineRequest,
    pub prepared: Prepared,
    pub listener: Listener,
}

/// What the thread knows of a request besides its sequence.
struct Active {
    request: EngineRequest,
    prepared: Prepared,
    listener: Listener,
    text: TextStream,
    scores: Vec<TokenScore>,
    logits: Vec<f32>,
    /// Sum of the final hidden states of the first `pooled` prompt tokens, in order.
    hidden: Vec<f64>,
    pooled: usize,
}

/// The engine's thread.
pub(crate) struct Worker {
    pub runner: Runner,
    pub scheduler: Scheduler,
    pub tokenizer: Tokenizer,
    pub eos_ids: Vec<u32>,
    pub limits: Limits,
    pub published: Arc<Mutex<Stats>>,
    pub state: State,
}

/// What changes from step to step besides the scheduler.
#[derive(Default)]
pub(crate) struct State {
    requests: HashMap<SeqId, Active>,
    next_id: SeqId,
    stats: Stats,
}

/// Why a row's logits are wanted, and what became of them.
enum Wanted {
    /// Sample the token after the sequence's newest.
    Next,
    /// Score the prompt token that follows.
    Score(u32),
    /// Hand out the logits, and score the token that follows if there is one to score.
    Logits(Option<u32>),
}

enum Outcome {
    Chosen(Choice),
    Scored(TokenScore),
    Logits(Vec<f32>, Option<TokenScore>),
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
    fn accept(&mut self, Submission { request, prepared, listener }: Submission) {
        let id = self.state.next_id;
        self.state.next_id += 1;
        let n = request.tokens.len();
        let max_len = n.saturating_add(request.sampling.max_tokens).min(self.limits.max_context);
        self.scheduler.add(Sequence::new(id, request.tokens.clone(), max_len));
        let text = TextStream::new(&self.tokenizer, request.sampling.keep_special, &request.sampling.stop);
        let active = Active {
            request,
            prepared,
            listener,
            text,
            scores: Vec::new(),
            logits: Vec::new(),
            hidden: Vec::new(),
            pooled: 0,
        };
        self.state.requests.insert(id, active);
    }

    /// Makes the counts visible to other threads.
    fn publish(&mut self) {
        let blocks = self.scheduler.blocks();
        (self.state.stats.free_blocks, self.state.stats.num_blocks) =
            (blocks.num_free(), blocks.num_blocks());
        (self.state.stats.running, self.state.stats.waiting) =
            (self.scheduler.num_running(), self.scheduler.num_waiting());
        self.state.stats.preemptions = self.scheduler.num_preemptions();
        *self.published.lock().expect("no code panics while holding this lock") = self.state.stats;
    }

    /// schedule → run → postprocess.
    fn step(&mut self) {
        let chunks = self.scheduler.schedule();
        self.state.stats.steps += 1;
        #[cfg(debug_assertions)]
        self.scheduler.check_integrity();
        let outcomes = catch_unwind(AssertUnwindSafe(|| self.compute(&chunks)));
        match outcomes {
            Ok(outcomes) => {
                let mut outcomes = outcomes.into_iter().peekable();
                for chunk in &chunks {
                    let mine =
                        std::iter::from_fn(|| outcomes.next_if(|(id, _)| *id == chunk.id).map(|o| o.1));
                    let mine: Vec<Outcome> = mine.collect();
                    self.postprocess(chunk, mine);
                }
                self.publish();
            }
            Err(panic) => {
                let message = panic_message(&panic);
                tracing::error!("a step of the engine panicked: {message}");
                for chunk in &chunks {
                    self.scheduler.remove(chunk.id);
                    if let Some(active) = self.state.requests.remove(&chunk.id) {
                        (active.listener)(Event::Error(format!("internal error in the engine: {message}")));
                    }
                }
                self.publish();
            }
        }
    }

    /// Runs the chunks; outcomes in their order.
    fn compute(&mut self, chunks: &[Chunk]) -> Vec<(SeqId, Outcome)> {
        let (mut rows, mut tables, mut outputs, mut wanted) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (i, chunk) in chunks.iter().enumerate() {
            let sequence = self.scheduler.sequence(chunk.id).expect("scheduled sequences run");
            let active = &self.state.requests[&chunk.id];
            tables.push(sequence.table.as_slice());
            for position in chunk.start..chunk.start + chunk.len {
                let rope_len = sequence.prompt_len.max(position + 1);
                if let Some(want) = self.want(active, sequence, position) {
                    outputs.push(rows.len());
                    wanted.push((chunk.id, want, sequence));
                }
                rows.push(Row { token: sequence.tokens[position], position, rope_len, sequence: i });
            }
        }
        let requests = &self.state.requests;
        let facts = |id| {
            let active: &Active = &requests[id];
            (&active.request.sampling, active.request.score_top, &active.prepared)
        };
        let facts: Vec<(&Sampling, usize, &Prepared)> = wanted.iter().map(|(id, _, _)| facts(id)).collect();
        let consume = |i: usize, logits: &mut [f32]| {
            let (_, want, sequence) = &wanted[i];
            let (sampling, top, prepared) = facts[i];
            match want {
                Wanted::Next => {
                    let (tokens, prompt_len) = (&sequence.tokens[..], sequence.prompt_len);
                    let said = Said { tokens, prompt_len, breakers: &prepared.breakers };
                    Outcome::Chosen(sample(logits, sampling, said))
                }
                Wanted::Score(id) => Outcome::Scored(score(logits, *id, top)),
                Wanted::Logits(id) => Outcome::Logits(logits.to_vec(), id.map(|id| score(logits, id, top))),
            }
        };
        let outcomes = self.runner.step(&rows, &tables, &outputs, consume);
        let outcomes = wanted.iter().map(|(id, _, _)| *id).zip(outcomes).collect();
        self.pool(chunks);
        outcomes
    }

    /// Adds the final hidden states of this step to the requests that want their mean.
    fn pool(&mut self, chunks: &[Chunk]) {
        let mut row = 0;
        for chunk in chunks {
            let active = self.state.requests.get_mut(&chunk.id).expect("scheduled requests are active");
            for position in chunk.start..chunk.start + chunk.len {
                // After preemption positions come again.
                if active.request.embed && position == active.pooled {
                    let hidden = self.runner.hidden(row);
                    active.hidden.resize(hidden.len(), 0.0);
                    active.hidden.iter_mut().zip(&hidden).for_each(|(sum, &x)| *sum += f64::from(x));
                    active.pooled += 1;
                }
                row += 1;
            }
        }
    }

    /// Hands out what a chunk brought and ends its request if it is complete.
    fn postprocess(&mut self, chunk: &Chunk, outcomes: Vec<Outcome>) {
        let up_to_date = self.scheduler.computed(chunk);
        let Some(active) = self.state.requests.get_mut(&chunk.id) else { return };
        let mut chosen = None;
        for outcome in outcomes {
            match outcome {
                Outcome::Chosen(choice) => chosen = Some(choice),
                Outcome::Scored(score) => active.scores.push(score),
                Outcome::Logits(logits, score) => {
                    active.logits.extend(logits);
                    active.scores.extend(score);
                }
            }
        }
        let total = active.request.tokens.len();
        let mut listening = true;
        if chunk.start < total {
            self.state.stats.prompt_tokens += chunk.len as u64;
            let done = (chunk.start + chunk.len).min(total);
            listening = (active.listener)(Event::Prefill { done, total });
        }
        let mut finish = None;
        if up_to_date && listening {
            match chosen {
                None => finish = Some(FinishReason::Length), // nothing was to be generated
                Some(choice) => {
                    let id = choice.id;
                    let is_end = !active.request.sampling.ignore_eos
                        && (self.eos_ids.contains(&id) || active.request.sampling.stop_ids.contains(&id));
                    let logprob = choice.logprob.map(|l| named(&self.tokenizer, id, l));
                    let text = if is_end { String::new() } else { active.text.push(id) };
                    listening = (active.listener)(Event::Token { id, text, logprob });
                    self.state.stats.generated_tokens += 1;
                    let room = self.scheduler.append(chunk.id, id);
                    finish = if is_end || active.text.stopped() {
                        Some(FinishReason::Stop)
                    } else {
                        (!room).then_some(FinishReason::Length)
                    };
                }
            }
        }
        if !listening {
            self.scheduler.remove(chunk.id);
            self.state.requests.remove(&chunk.id);
        } else if let Some(finish) = finish {
            let sequence = self.scheduler.remove(chunk.id).expect("it was computed");
            let mut active = self.state.requests.remove(&chunk.id).expect("found above");
            let usage = Usage { prompt_tokens: total, completion_tokens: sequence.num_generated() };
            let text = active.text.finish();
            let finish = if active.text.stopped() { FinishReason::Stop } else { finish };
            let (scores, logits) = (active.scores, active.logits);
            self.publish(); // who hears of the end sees the blocks free
            let embedding = unit_length(&active.hidden);
            let cached_tokens = 0;
            (active.listener)(Event::Done { text, finish, usage, scores, logits, embedding, cached_tokens });
        }
    }

    /// What the logits at `position` are needed for, if at all.
    fn want(&self, active: &Active, sequence: &Sequence, position: usize) -> Option<Wanted> {
        let Active { request, scores, logits, .. } = active;
        // After preemption the prompt is computed again; what was handed out stays handed out.
        let next = position + 1;
        let is_new = |from: usize| next >= from + scores.len();
        let following =
            if next < sequence.prompt_len { Some(sequence.tokens[next]) } else { request.score_next };
        let to_score = following.filter(|_| request.score_from.is_some_and(is_new));
        if request.prompt_logits && position * self.limits.vocab_size >= logits.len() {
            return Some(Wanted::Logits(to_score));
        }
        if let Some(id) = to_score {
            return Some(Wanted::Score(id));
        }
        let is_newest = next == sequence.tokens.len() && next < sequence.max_len;
        is_newest.then_some(Wanted::Next)
    }
}

/// `sum` scaled to length 1.
fn unit_length(sum: &[f64]) -> Vec<f32> {
    let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    sum.iter().map(|x| (x / norm) as f32).collect()
}

/// Log-probability and rank of `id`.
fn score(logits: &[f32], id: u32, top: usize) -> TokenScore {
    let total = log_sum_exp(logits);
    let relative = |logit: f32| (f64::from(logit) - total) as f32;
    TokenScore {
        id,
        logprob: relative(logits[id as usize]),
        is_greedy: argmax(logits) == id as usize,
        top: top_k(logits, top).into_iter().map(|(id, logit)| (id, relative(logit))).collect(),
    }
}

/// Adds the tokens' texts to log-probabilities.
fn named(tokenizer: &Tokenizer, id: u32, (logprob, top): (f32, Vec<(u32, f32)>)) -> TokenLogprob {
    let text = |id: u32| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    TokenLogprob {
        id,
        token: text(id),
        logprob,
        top: top.into_iter().map(|(id, logprob)| (id, text(id), logprob)).collect(),
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
    use intern_model::{Architecture, ModelConfig};
    use intern_tokenizer::train::{BpeConfig, train_bpe};

    use super::*;
    use crate::block_manager::BlockManager;
    use crate::engine::KvType;
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
            config,
        };
        let mut texts = std::iter::repeat_n("one two three".to_owned(), 3);
        Worker {
            runner: Runner::new(weights, Pool::new(2).unwrap(), 16, 16, KvType::F32),
            scheduler: Scheduler::new(BlockManager::new(16, 16), 4, 32),
            tokenizer: train_bpe(&BpeConfig::new(300), &mut texts).unwrap(),
            eos_ids: vec![],
            limits: Limits { max_context: 256, vocab_size: 320 },
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
