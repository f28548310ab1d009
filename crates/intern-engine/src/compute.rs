//! The middle of a step: guesses, what the grammars allow, and the forward pass over all rows.
//! Whoever leaves meanwhile leaves the pass, and the others' results are what they would be.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use intern_kernels::sampling::{argmax, log_sum_exp, top_k};
use llguidance::toktrie::SimpleVob;

use crate::active::{End, Outcome, Wanted};
use crate::engine::TokenScore;
use crate::penalties::Said;
use crate::runner::Row;
use crate::sampler::sample;
use crate::scheduler::Chunk;
use crate::sequence::SeqId;
use crate::watch::Watch;
use crate::worker::Worker;

/// What a step brought.
#[derive(Default)]
pub(crate) struct Computed {
    /// In the order of the chunks.
    pub outcomes: Vec<(SeqId, Outcome)>,
    /// Sequences whose chunks were left behind, because nobody waits for them.
    pub gone: BTreeSet<SeqId>,
}

impl Worker {
    /// Lets the smaller model read the pending tokens, and fill in the guesses that have a place.
    pub fn draft(&mut self, chunks: &mut [Chunk]) {
        let Some(drafter) = &mut self.drafter else { return };
        let (mut rows, mut tables, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        for (i, chunk) in chunks.iter().enumerate() {
            let sequence = self.scheduler.sequence(chunk.id).expect("scheduled sequences run");
            tables.push(sequence.table.as_slice());
            for position in chunk.start..chunk.start + chunk.len {
                let rope_len = sequence.prompt_len.max(position + 1);
                let token = sequence.tokens[position];
                rows.push(Row { token, position, rope_len, sequence: i, adapter: None });
            }
            if chunk.draft > 0 {
                wanted.push((rows.len() - 1, chunk.draft));
            }
        }
        let guesses = drafter.guess(&rows, &tables, &wanted);
        for (chunk, mut guess) in chunks.iter_mut().filter(|c| c.draft > 0).zip(guesses) {
            let vocab_size = self.limits.vocab_size;
            let known = guess.iter().take_while(|&&id| (id as usize) < vocab_size).count();
            guess.truncate(known);
            let active = self.state.requests.get_mut(&chunk.id).expect("scheduled requests are active");
            active.keep_valid(&mut guess);
            chunk.draft = guess.len();
            self.scheduler.set_draft(chunk.id, guess);
        }
    }

    /// What the grammars allow behind the newest tokens and the guesses; chunks whose grammar
    /// broke leave the step.
    pub fn masks(&mut self, chunks: &mut Vec<Chunk>) -> BTreeMap<SeqId, Vec<SimpleVob>> {
        let mut masks = BTreeMap::new();
        chunks.retain(|chunk| {
            let sequence = self.scheduler.sequence(chunk.id).expect("scheduled sequences run");
            let active = self.state.requests.get_mut(&chunk.id).expect("scheduled requests are active");
            let newest = chunk.start + chunk.len == sequence.tokens.len();
            if !newest || active.want(sequence, chunk.start + chunk.len - 1, self.limits.vocab_size).is_none()
            {
                return true;
            }
            match active.masks(&sequence.draft[..chunk.draft]) {
                Ok(allowed) => {
                    masks.insert(chunk.id, allowed);
                    true
                }
                Err(error) => {
                    let sequence = self.scheduler.remove(chunk.id).expect("it runs");
                    let active = self.state.requests.remove(&chunk.id).expect("found above");
                    active.end(End::Failed(format!("{error:#}")), &sequence);
                    false
                }
            }
        });
        masks
    }

    /// Runs the chunks.
    pub fn compute(&mut self, chunks: &[Chunk], masks: &BTreeMap<SeqId, Vec<SimpleVob>>) -> Computed {
        if chunks.is_empty() {
            return Computed::default(); // every grammar of the step broke
        }
        let (mut rows, mut tables, mut texts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut outputs, mut wanted) = (Vec::new(), Vec::new());
        for (i, chunk) in chunks.iter().enumerate() {
            let sequence = self.scheduler.sequence(chunk.id).expect("scheduled sequences run");
            let active = &self.state.requests[&chunk.id];
            let (known, adapter) = (sequence.tokens.len(), active.prepared.adapter);
            let text: Cow<[u32]> = match chunk.draft {
                0 => Cow::Borrowed(&sequence.tokens),
                n => Cow::Owned([&sequence.tokens[..], &sequence.draft[..n]].concat()),
            };
            tables.push(sequence.table.as_slice());
            for position in chunk.start..chunk.start + chunk.num_rows() {
                let rope_len = sequence.prompt_len.max(position + 1);
                let want = match position < known {
                    true => active.want(sequence, position, self.limits.vocab_size),
                    false => Some(Wanted::Next),
                };
                if let Some(want) = want {
                    outputs.push(rows.len());
                    let mask = masks.get(&chunk.id).and_then(|m| m.get((position + 1).saturating_sub(known)));
                    wanted.push((i, want, position + 1, mask));
                }
                rows.push(Row { token: text[position], position, rope_len, sequence: i, adapter });
            }
            texts.push((text, sequence.prompt_len));
        }
        let facts = |chunk: &Chunk| {
            let active = &self.state.requests[&chunk.id];
            (&active.request.sampling, active.request.score_top, &*active.prepared.breakers)
        };
        let facts: Vec<_> = chunks.iter().map(facts).collect();
        let consume = |output: usize, logits: &mut [f32]| {
            let (i, want, len, mask) = &wanted[output];
            let ((sampling, top, breakers), (text, prompt_len)) = (facts[*i], &texts[*i]);
            match want {
                Wanted::Next => {
                    let said = Said { tokens: &text[..*len], prompt_len: *prompt_len, breakers };
                    Outcome::Chosen(sample(logits, sampling, said, *mask))
                }
                Wanted::Score(id) => Outcome::Scored(score(logits, *id, top)),
                Wanted::Logits(id) => Outcome::Logits(logits.to_vec(), id.map(|id| score(logits, id, top))),
            }
        };
        let is_wanted = |i: usize| self.state.requests[&chunks[i].id].is_wanted(Instant::now());
        let watch = Watch::new(chunks.len(), &is_wanted);
        let outcomes = self.runner.step(&rows, &tables, &outputs, &watch, consume);
        let gone: BTreeSet<SeqId> =
            chunks.iter().enumerate().filter(|(i, _)| watch.is_gone(*i)).map(|(_, c)| c.id).collect();
        for (row, Row { position, sequence, .. }) in rows.iter().enumerate() {
            let id = chunks[*sequence].id;
            let active = self.state.requests.get_mut(&id).expect("scheduled requests are active");
            if !gone.contains(&id) {
                active.pool(*position, || self.runner.hidden(row));
            }
        }
        let outcomes = outcomes.into_iter().map(|(output, found)| (chunks[wanted[output].0].id, found));
        Computed { outcomes: outcomes.filter(|(id, _)| !gone.contains(id)).collect(), gone }
    }
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
