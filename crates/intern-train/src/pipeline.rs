//! Which rank of a pipeline does what when: one forward, one backward, perhaps interleaved.
//!
//! Stage `i` belongs to rank `i % ranks`. A rank goes forward with as many sequences as there are
//! ranks behind it, then back and forth in turn, so it holds few at once (1F1B; Narayanan et al.,
//! 2019); with several stages each (interleaved; Narayanan et al., 2021), it takes as many sequences
//! as there are ranks through one stage, then through the next. Every rank knows its order from the
//! sizes alone. Sums of gradients do not depend on it, so neither does any bit of the weights.

use std::collections::HashMap;

use anyhow::Result;
use intern_comm::Comm;
use intern_model::Batch;
use intern_model::backprop::{Backprop, Flight, Sink, Workspace};

/// A pass of one sequence through one stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Forward, or backward.
    pub forward: bool,
    /// Which of the rank's stages.
    pub chunk: usize,
    /// Number of the sequence.
    pub sequence: usize,
}

/// Time of a forward pass, and of a backward pass.
const FORWARD: u64 = 1;
const BACKWARD: u64 = 2;

/// What rank `rank` does, in its order.
#[must_use]
pub fn schedule(rank: usize, ranks: usize, chunks: usize, sequences: usize) -> Vec<Pass> {
    let order = |forward: bool| -> Vec<Pass> {
        let pass = |turn: usize, from: usize| {
            let chunk = if forward { turn } else { chunks - 1 - turn };
            (from..from + ranks).map(move |sequence| Pass { forward, chunk, sequence })
        };
        let groups = (0..sequences).step_by(ranks);
        groups.flat_map(|from| (0..chunks).flat_map(move |turn| pass(turn, from))).collect()
    };
    // As if sequences came in groups of as many as there are ranks; those that do not exist drop out.
    let (forward, backward) = (order(true), order(false));
    let behind = ranks - rank - 1;
    let ahead = if chunks == 1 { behind } else { 2 * behind + (chunks - 1) * ranks };
    let (first, rest) = forward.split_at(ahead.min(forward.len()));
    let (in_turn, last) = backward.split_at(rest.len());
    let turns = rest.iter().zip(in_turn).flat_map(|(f, b)| [*f, *b]);
    let all = first.iter().copied().chain(turns).chain(last.iter().copied());
    all.filter(|p| p.sequence < sequences).collect()
}

/// The share of the ranks' time that a pipeline leaves idle, a backward pass taking twice as long as
/// a forward pass and messages nothing: `(ranks - 1) / (sequences * chunks + ranks - 1)` where the
/// ranks divide the sequences.
#[must_use]
pub fn idle(ranks: usize, chunks: usize, sequences: usize) -> f64 {
    let passes: Vec<_> = (0..ranks).map(|rank| schedule(rank, ranks, chunks, sequences)).collect();
    let stages = ranks * chunks;
    let (mut at, mut time) = (vec![0; ranks], vec![0u64; ranks]);
    let mut done = HashMap::new();
    while (0..ranks).any(|rank| at[rank] < passes[rank].len()) {
        for rank in 0..ranks {
            while let Some(p) = passes[rank].get(at[rank]) {
                let stage = p.chunk * ranks + rank;
                let after = match p.forward {
                    true => stage.checked_sub(1).map(|before| (true, before)),
                    false if stage + 1 == stages => Some((true, stage)),
                    false => Some((false, stage + 1)),
                };
                let start = match after {
                    None => Some(0),
                    Some((forward, stage)) => done.get(&(forward, stage, p.sequence)).copied(),
                };
                let Some(start) = start else { break };
                time[rank] = time[rank].max(start) + if p.forward { FORWARD } else { BACKWARD };
                done.insert((p.forward, stage, p.sequence), time[rank]);
                at[rank] += 1;
            }
        }
    }
    let end = time.into_iter().max().unwrap_or(0).max(1);
    1.0 - (sequences * chunks) as f64 * (FORWARD + BACKWARD) as f64 / end as f64
}

/// A rank's pipeline, with the memory of the sequences on their way.
pub struct Pipeline<'a> {
    comm: &'a Comm,
    chunks: usize,
    flights: HashMap<(usize, usize), Flight>,
    spare: Vec<Flight>,
    incoming: Vec<f32>,
}

impl<'a> Pipeline<'a> {
    /// The pipeline of the ranks of `comm`, each with `chunks` stages.
    #[must_use]
    pub fn new(comm: &'a Comm, chunks: usize) -> Self {
        Self { comm, chunks, flights: HashMap::new(), spare: Vec::new(), incoming: Vec::new() }
    }

    /// Takes all rows through the stages and back; `sink` gets the gradients of this rank's weights.
    /// The rows' losses where this rank has the last stage, else zeros.
    ///
    /// # Errors
    /// If a pass fails or a rank has ended.
    pub fn gradients(
        &mut self,
        model: &Backprop,
        rows: &[(&Batch, usize)],
        work: &mut Workspace,
        sink: &dyn Sink,
    ) -> Result<Vec<f64>> {
        let (rank, ranks) = (self.comm.rank(), self.comm.size());
        let last = ranks * self.chunks - 1;
        let mut losses = vec![0.0; rows.len()];
        for Pass { forward, chunk, sequence } in schedule(rank, ranks, self.chunks, rows.len()) {
            let (batch, row) = rows[sequence];
            let stage = chunk * ranks + rank;
            let len = model.stream_len(batch.t);
            let is_end = if forward { stage == 0 } else { stage == last };
            self.receive(stage, forward, if is_end { 0 } else { len })?;
            if forward {
                let mut flight = self.spare.pop().unwrap_or_default();
                model.forward(chunk, batch, row, &self.incoming, true, &mut flight, work)?;
                if stage < last {
                    self.comm.send((rank + 1) % ranks, forward_tag(stage + 1), flight.output())?;
                }
                self.flights.insert((chunk, sequence), flight);
            } else {
                let mut flight = self.flights.remove(&(chunk, sequence)).expect("forward comes first");
                losses[sequence] +=
                    model.backward(chunk, batch, row, &self.incoming, &mut flight, work, sink)?;
                if stage > 0 {
                    let gradient = work.input_gradient(len);
                    self.comm.send((rank + ranks - 1) % ranks, backward_tag(stage - 1), gradient)?;
                }
                self.spare.push(flight);
            }
        }
        Ok(losses)
    }

    /// Takes all rows through the stages; losses as in [`Self::gradients`].
    ///
    /// # Errors
    /// As [`Self::gradients`].
    pub fn losses(
        &mut self,
        model: &Backprop,
        rows: &[(&Batch, usize)],
        work: &mut Workspace,
    ) -> Result<Vec<f64>> {
        let (rank, ranks) = (self.comm.rank(), self.comm.size());
        let last = ranks * self.chunks - 1;
        let mut flight = self.spare.pop().unwrap_or_default();
        let mut losses = vec![0.0; rows.len()];
        for (&(batch, row), loss) in rows.iter().zip(&mut losses) {
            for chunk in 0..self.chunks {
                let stage = chunk * ranks + rank;
                self.receive(stage, true, if stage == 0 { 0 } else { model.stream_len(batch.t) })?;
                model.forward(chunk, batch, row, &self.incoming, false, &mut flight, work)?;
                if stage == last {
                    *loss = model.stage_loss(batch, row, &flight, work)?;
                } else {
                    self.comm.send((rank + 1) % ranks, forward_tag(stage + 1), flight.output())?;
                }
            }
        }
        self.spare.push(flight);
        Ok(losses)
    }

    /// Fills `incoming` with what stage `stage` waits for.
    fn receive(&mut self, stage: usize, forward: bool, len: usize) -> Result<()> {
        self.incoming.resize(len, 0.0);
        if len == 0 {
            return Ok(());
        }
        let (rank, ranks) = (self.comm.rank(), self.comm.size());
        let (from, tag) = match forward {
            true => ((rank + ranks - 1) % ranks, forward_tag(stage)),
            false => ((rank + 1) % ranks, backward_tag(stage)),
        };
        self.comm.recv(from, tag, &mut self.incoming)
    }
}

/// Tag of the residual stream into a stage.
fn forward_tag(stage: usize) -> u16 {
    1 + 2 * stage as u16
}

/// Tag of the gradient of a stage's output.
fn backward_tag(stage: usize) -> u16 {
    2 + 2 * stage as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pass_is_made_once_and_after_what_it_needs() {
        for (ranks, chunks, sequences) in [
            (1, 1, 3),
            (2, 1, 1),
            (2, 1, 8),
            (4, 1, 8),
            (4, 1, 3),
            (2, 2, 8),
            (4, 2, 8),
            (3, 3, 5),
            (4, 4, 16),
        ] {
            let passes: Vec<_> = (0..ranks).map(|rank| schedule(rank, ranks, chunks, sequences)).collect();
            assert!(passes.iter().all(|p| p.len() == 2 * chunks * sequences));
            // Runs the ranks' lists against each other: whoever can go on does.
            let stages = ranks * chunks;
            let (mut forward, mut backward) = (vec![0; stages], vec![0; stages]);
            let mut at = vec![0; ranks];
            loop {
                let before = at.clone();
                for rank in 0..ranks {
                    while let Some(p) = passes[rank].get(at[rank]) {
                        let s = p.chunk * ranks + rank;
                        let ready = match p.forward {
                            true => s == 0 || forward[s - 1] > p.sequence,
                            false if s + 1 == stages => forward[s] > p.sequence,
                            false => backward[s + 1] > p.sequence,
                        };
                        if !ready {
                            break;
                        }
                        let done = if p.forward { &mut forward[s] } else { &mut backward[s] };
                        assert_eq!(*done, p.sequence, "sequences pass a stage in their order");
                        *done += 1;
                        at[rank] += 1;
                    }
                }
                if at == before {
                    break;
                }
            }
            assert!(backward.iter().all(|&n| n == sequences), "{ranks} ranks, {chunks} chunks: all done");
        }
    }

    #[test]
    fn idle_time_is_that_of_one_forward_one_backward() {
        for (ranks, chunks, sequences) in
            [(1, 1, 4), (2, 1, 8), (4, 1, 8), (8, 1, 64), (4, 2, 16), (4, 4, 16)]
        {
            let expect = (ranks - 1) as f64 / (sequences * chunks + ranks - 1) as f64;
            assert!((idle(ranks, chunks, sequences) - expect).abs() < 1e-9);
        }
        // A rank holds no more sequences than there are stages after it.
        for rank in 0..4 {
            let passes = schedule(rank, 4, 1, 16);
            let (mut held, mut most) = (0i32, 0);
            for p in passes {
                held += if p.forward { 1 } else { -1 };
                most = most.max(held);
            }
            assert_eq!(most as usize, 4 - rank);
        }
    }
}
