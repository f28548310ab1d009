//! What the engine's thread knows of a request besides its sequence, and what the request hears.

use std::time::Instant;

use anyhow::Result;
use intern_lm::{FinishReason, TokenLogprob, Usage};
use intern_tokenizer::Tokenizer;
use llguidance::toktrie::SimpleVob;

use crate::engine::{EngineRequest, Event, Listener, TokenScore};
use crate::prepare::Prepared;
use crate::sampler::Choice;
use crate::sequence::Sequence;
use crate::speculate::Guesser;
use crate::text::TextStream;

/// A request that waits or runs.
pub(crate) struct Active {
    pub request: EngineRequest,
    pub prepared: Prepared,
    pub guesser: Guesser,
    /// When it last heard something.
    pub heard: Instant,
    listener: Listener,
    text: TextStream,
    /// Tokens the grammar put behind the prompt before anything was computed.
    opening: Vec<u32>,
    scores: Vec<TokenScore>,
    logits: Vec<f32>,
    /// Sum of the final hidden states of the first `pooled` prompt tokens, in order.
    hidden: Vec<f64>,
    pooled: usize,
}

/// Why a row's logits are wanted.
pub(crate) enum Wanted {
    /// Choose the token behind it.
    Next,
    /// Score the prompt token that follows.
    Score(u32),
    /// Hand out the logits, and score the token that follows if there is one to score.
    Logits(Option<u32>),
}

/// What became of them.
pub(crate) enum Outcome {
    Chosen(Choice),
    Scored(TokenScore),
    Logits(Vec<f32>, Option<TokenScore>),
}

/// How a request ends.
pub(crate) enum End {
    Finished(FinishReason),
    Failed(String),
    /// Nobody listens any more.
    Gone,
    Expired,
}

/// What a step added to an answer.
#[derive(Default)]
pub(crate) struct Added {
    pub tokens: Vec<u32>,
    /// Guesses that were right.
    pub right: usize,
    pub end: Option<End>,
}

impl Active {
    /// `opening` are the tokens that the grammar forces behind the prompt; `guesses` holds where
    /// the request names no number of its own.
    pub fn new(
        request: EngineRequest,
        prepared: Prepared,
        listener: Listener,
        tokenizer: &Tokenizer,
        opening: Vec<u32>,
        guesses: usize,
    ) -> Self {
        let mut text = TextStream::new(tokenizer, request.sampling.keep_special, &request.sampling.stop);
        if prepared.constraint.is_some() {
            text.keep_leading_space(tokenizer);
        }
        let guesser = Guesser::new(request.guesses.unwrap_or(guesses));
        Self {
            request,
            prepared,
            guesser,
            heard: Instant::now(),
            listener,
            text,
            opening,
            scores: Vec::new(),
            logits: Vec::new(),
            hidden: Vec::new(),
            pooled: 0,
        }
    }

    /// False when nobody listens any more.
    #[must_use]
    pub fn tell(&mut self, event: Event) -> bool {
        self.heard = Instant::now();
        (self.listener)(event)
    }

    /// Whether somebody still listens, and has not given up by `now`.
    #[must_use]
    pub fn is_wanted(&self, now: Instant) -> bool {
        !self.is_late(now) && (self.listener)(Event::Ping)
    }

    /// Whether its deadline has passed.
    #[must_use]
    pub fn is_late(&self, now: Instant) -> bool {
        self.request.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// What the logits at `position` are needed for, if at all.
    pub fn want(&self, sequence: &Sequence, position: usize, vocab_size: usize) -> Option<Wanted> {
        // After preemption the prompt is computed again; what was handed out stays handed out.
        let next = position + 1;
        let is_new = |from: usize| next >= from + self.scores.len();
        let following =
            if next < sequence.prompt_len { Some(sequence.tokens[next]) } else { self.request.score_next };
        let to_score = following.filter(|_| self.request.score_from.is_some_and(is_new));
        if self.request.prompt_logits && position * vocab_size >= self.logits.len() {
            return Some(Wanted::Logits(to_score));
        }
        if let Some(id) = to_score {
            return Some(Wanted::Score(id));
        }
        let is_newest = next == sequence.tokens.len() && next < sequence.max_len;
        (is_newest && !self.is_complete()).then_some(Wanted::Next)
    }

    /// Which tokens may come after each beginning of `draft`; empty without a grammar.
    pub fn masks(&mut self, draft: &[u32]) -> Result<Vec<SimpleVob>> {
        self.prepared.constraint.as_mut().map_or(Ok(Vec::new()), |c| c.masks(draft))
    }

    fn is_complete(&self) -> bool {
        self.prepared.constraint.as_ref().is_some_and(|c| c.is_complete())
    }

    /// Adds the final hidden state of prompt token `position` to the mean, if it is wanted.
    pub fn pool(&mut self, position: usize, hidden: impl FnOnce() -> Vec<f32>) {
        // After preemption positions come again.
        if self.request.embed && position == self.pooled {
            let hidden = hidden();
            self.hidden.resize(hidden.len(), 0.0);
            self.hidden.iter_mut().zip(&hidden).for_each(|(sum, &x)| *sum += f64::from(x));
            self.pooled += 1;
        }
    }

    /// Keeps scores and logits; returns the choices.
    pub fn keep(&mut self, outcomes: Vec<Outcome>) -> Vec<Choice> {
        let mut choices = Vec::new();
        for outcome in outcomes {
            match outcome {
                Outcome::Chosen(choice) => choices.push(choice),
                Outcome::Scored(score) => self.scores.push(score),
                Outcome::Logits(logits, score) => {
                    self.logits.extend(logits);
                    self.scores.extend(score);
                }
            }
        }
        choices
    }

    /// Takes the choices made behind the newest token and behind each guess of `draft` as far as
    /// the guesses were right, and what the grammar forces next, within the sequence's bound.
    /// Before that, at the first call, the forced tokens that were read with the prompt.
    pub fn take(
        &mut self,
        choices: Vec<Choice>,
        draft: &[u32],
        sequence: &Sequence,
        vocabulary: &Vocabulary,
    ) -> Added {
        let mut added = Added::default();
        let room = sequence.max_len - sequence.tokens.len();
        let (opening, num_opened) = (std::mem::take(&mut self.opening), sequence.num_generated());
        let is_cut = choices.is_empty() && opening.len() > num_opened;
        for &id in opening.iter().take(num_opened) {
            if let Some(end) = self.emit_forced(id, vocabulary) {
                added.end = Some(end);
                return added;
            }
        }
        if choices.is_empty() {
            let complete = self.is_complete() && !is_cut;
            added.end = Some(End::Finished(if complete { FinishReason::Stop } else { FinishReason::Length }));
            return added;
        }
        for (i, choice) in choices.into_iter().enumerate() {
            let is_right = draft.get(i) == Some(&choice.id);
            added.end = self.follow(choice, vocabulary, &mut added.tokens);
            if added.end.is_some() {
                return added;
            }
            if added.tokens.len() >= room {
                added.end = Some(End::Finished(FinishReason::Length));
                return added;
            }
            if !is_right {
                break;
            }
            added.right += 1;
        }
        added.end = self.force(room, vocabulary, &mut added.tokens);
        added
    }

    /// Takes one chosen token, in step with the grammar.
    fn follow(&mut self, choice: Choice, vocabulary: &Vocabulary, tokens: &mut Vec<u32>) -> Option<End> {
        let id = choice.id;
        if let Some(constraint) = &mut self.prepared.constraint
            && !constraint.is_end(id)
            && let Err(error) = constraint.accept(&[id])
        {
            return Some(End::Failed(format!("{error:#}")));
        }
        tokens.push(id);
        let logprob = choice.logprob.map(|l| named(vocabulary.tokenizer, id, l));
        self.emit(id, logprob, vocabulary)
            .or_else(|| self.is_complete().then_some(End::Finished(FinishReason::Stop)))
    }

    /// Appends what the grammar leaves no choice about.
    fn force(&mut self, room: usize, vocabulary: &Vocabulary, tokens: &mut Vec<u32>) -> Option<End> {
        let constraint = self.prepared.constraint.as_mut()?;
        let forced = match constraint.forced() {
            Ok(forced) => forced,
            Err(error) => return Some(End::Failed(format!("{error:#}"))),
        };
        for id in forced {
            if tokens.len() >= room {
                return Some(End::Finished(FinishReason::Length));
            }
            tokens.push(id);
            if let Some(end) = self.emit_forced(id, vocabulary) {
                return Some(end);
            }
        }
        if self.is_complete() {
            return Some(End::Finished(FinishReason::Stop));
        }
        (tokens.len() >= room).then_some(End::Finished(FinishReason::Length))
    }

    /// Reports a token that there was no choice about: its probability is one.
    fn emit_forced(&mut self, id: u32, vocabulary: &Vocabulary) -> Option<End> {
        let certain = self.request.sampling.logprobs.map(|_| (0.0, vec![(id, 0.0)]));
        let logprob = certain.map(|l| named(vocabulary.tokenizer, id, l));
        self.emit(id, logprob, vocabulary)
    }

    /// Reports a token; `Some` if the answer ends with it.
    fn emit(&mut self, id: u32, logprob: Option<TokenLogprob>, vocabulary: &Vocabulary) -> Option<End> {
        let sampling = &self.request.sampling;
        let ends = vocabulary.eos_ids.contains(&id) || sampling.stop_ids.contains(&id);
        let is_end = match &self.prepared.constraint {
            Some(constraint) => constraint.is_end(id),
            None => ends && !sampling.ignore_eos,
        };
        let text = if is_end { String::new() } else { self.text.push(id) };
        if !self.tell(Event::Token { id, text, logprob }) {
            return Some(End::Gone);
        }
        (is_end || self.text.stopped()).then_some(End::Finished(FinishReason::Stop))
    }

    /// At most `most` guesses for the next step, from the tokens so far.
    pub fn guess(&mut self, tokens: &[u32], most: usize) -> Vec<u32> {
        let mut draft = self.guesser.guess(tokens, most);
        self.keep_valid(&mut draft);
        draft
    }

    /// Cuts guesses where the grammar does not allow them.
    pub fn keep_valid(&mut self, draft: &mut Vec<u32>) {
        if let Some(constraint) = self.prepared.constraint.as_mut().filter(|_| !draft.is_empty()) {
            draft.truncate(constraint.valid(draft));
        }
    }

    /// Says the last word.
    pub fn end(mut self, end: End, sequence: &Sequence) {
        let event = match end {
            End::Gone => return,
            End::Failed(message) => Event::Error(message),
            End::Expired => Event::Expired,
            End::Finished(finish) => {
                let text = self.text.finish();
                Event::Done {
                    text,
                    finish: if self.text.stopped() { FinishReason::Stop } else { finish },
                    usage: Usage {
                        prompt_tokens: self.request.tokens.len(),
                        completion_tokens: sequence.tokens.len() - self.request.tokens.len(),
                    },
                    embedding: unit_length(&self.hidden),
                    cached_tokens: sequence.cached.min(self.request.tokens.len()),
                    scores: self.scores,
                    logits: self.logits,
                }
            }
        };
        (self.listener)(event);
    }
}

/// What tokens mean.
pub(crate) struct Vocabulary<'a> {
    pub tokenizer: &'a Tokenizer,
    /// The model's own ends of text.
    pub eos_ids: &'a [u32],
}

/// `sum` scaled to length 1.
fn unit_length(sum: &[f64]) -> Vec<f32> {
    let norm = sum.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    sum.iter().map(|x| (x / norm) as f32).collect()
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
