//! Weights, gradients and moments that are all shared out (ZeRO-3; Rajbhandari et al., 2020; FSDP): a
//! rank has its part of every layer, gets a layer whole from the others for the time it works on it, and
//! gives the sums of its gradients to those that own them.
//!
//! The ranks go through the layers together: some sequences at once through a layer, then through the next,
//! then back. What a rank adds up are integers, so the result has the bits of any other way.

use std::ops::Range;
use std::sync::Mutex;

use anyhow::Result;
use intern_comm::{Comm, Op};
use intern_kernels::train::fixed::FixedSum;
use intern_model::Batch;
use intern_model::backprop::{Backprop, Flight, Sink};

use crate::lanes::Lanes;
use crate::params::{Param, Params};

/// The layers of a model whose weights are shared out.
pub struct Sharded<'a> {
    ranks: &'a Comm,
    stages: Vec<Stage>,
    /// Of one stage at a time.
    sums: FixedSum,
    offsets: Vec<usize>,
    /// Sequences at once.
    group: usize,
    /// By sequence and stage.
    flights: Vec<Mutex<Vec<Flight>>>,
}

/// A layer, the first with the embedding, the last with the head.
struct Stage {
    /// Numbers of its parameters.
    params: Range<usize>,
    /// Its elements in the flat parameters.
    range: Range<usize>,
    /// Where each rank's part of them begins and ends.
    cuts: Vec<usize>,
    /// Sums of gradients of this rank's part.
    own: Vec<i64>,
    /// What bounds the sums; see [`FixedSum::bounds`].
    bounds: Vec<i64>,
}

/// Adds the gradients of a stage to its sums.
struct StageSink<'a> {
    sums: &'a FixedSum,
    offsets: &'a [usize],
    start: usize,
}

impl Sink for StageSink<'_> {
    fn add(&self, param: usize, at: usize, values: &[f32]) {
        self.sums.add(self.offsets[param] - self.start + at, values);
    }
}

/// The stage of the parameter `name` of a model of so many layers.
pub(crate) fn stage_of(name: &str, layers: usize) -> usize {
    let number = name.split("layers.").nth(1).and_then(|rest| rest.split('.').next()?.parse().ok());
    number.unwrap_or(if name.contains("embed") { 0 } else { layers - 1 })
}

impl<'a> Sharded<'a> {
    /// For `params` of a model of `layers` layers, in order; `group` sequences at once.
    #[must_use]
    pub fn new(ranks: &'a Comm, params: &Params, layers: usize, group: usize) -> Self {
        let list = params.list();
        let stage = |s: usize| {
            let first = list.partition_point(|p| stage_of(&p.name, layers) < s);
            let end = list.partition_point(|p| stage_of(&p.name, layers) <= s);
            let range = list[first].offset..list[end - 1].end();
            let cuts = params.cuts(&range, ranks.size());
            let own = vec![0; cuts[ranks.rank() + 1] - cuts[ranks.rank()]];
            Stage { params: first..end, range, cuts, own, bounds: Vec::new() }
        };
        let stages: Vec<Stage> = (0..layers).map(stage).collect();
        let largest = stages.iter().map(|s| s.range.len()).max().unwrap_or(0);
        Self {
            ranks,
            stages,
            sums: FixedSum::new(largest),
            offsets: list.iter().map(|p| p.offset).collect(),
            group,
            flights: (0..group).map(|_| Mutex::default()).collect(),
        }
    }

    /// Where the ranks' parts of each stage begin and end.
    pub fn cuts(&self) -> impl Iterator<Item = &[usize]> {
        self.stages.iter().map(|s| &s.cuts[..])
    }

    /// The sums of gradients of `elements`, which are this rank's.
    #[must_use]
    pub fn sums_of(&self, elements: Range<usize>) -> &[i64] {
        let stage = &self.stages[self.stages.partition_point(|s| s.range.end <= elements.start)];
        let from = stage.cuts[self.ranks.rank()];
        &stage.own[elements.start - from..elements.end - from]
    }

    /// What one step of the sums is worth.
    #[must_use]
    pub fn unit(&self) -> f32 {
        self.sums.unit()
    }

    /// Gives up what other ranks own of all weights.
    ///
    /// # Errors
    /// If the weights cannot be written.
    pub fn release_all(&self, params: &Params) -> Result<()> {
        (0..self.stages.len()).try_for_each(|s| self.release(s, params))
    }

    /// Losses of the rows, and the bounds of the sums, which [`Self::sums_of`] then gives; of `tokens`
    /// tokens on all ranks, which all call this.
    ///
    /// # Errors
    /// If a rank has ended.
    pub fn gradients(
        &mut self,
        model: &Backprop,
        rows: &[(&Batch, usize)],
        tokens: usize,
        lanes: &mut Lanes,
        params: &Params,
    ) -> Result<(Vec<f64>, Vec<i64>)> {
        for stage in &mut self.stages {
            stage.own.fill(0);
            stage.bounds.clear();
        }
        self.sums.begin(tokens);
        let last = self.stages.len() - 1;
        let mut losses = Vec::new();
        for round in 0..self.rounds(rows.len())? {
            let rows = rows.chunks(self.group).nth(round).unwrap_or_default();
            self.forward(model, rows, true, lanes, params)?;
            let gradients: Vec<Mutex<Vec<f32>>> = rows.iter().map(|_| Mutex::default()).collect();
            for s in (0..=last).rev() {
                if s < last {
                    self.gather(s, params)?;
                }
                self.sums.begin(tokens);
                let sink =
                    StageSink { sums: &self.sums, offsets: &self.offsets, start: self.stages[s].range.start };
                let of_stage = lanes.run(rows.len(), |i, work| {
                    let (batch, row) = rows[i];
                    let mut flights = self.flights[i].lock().expect("passes do not panic");
                    let mut gradient = gradients[i].lock().expect("passes do not panic");
                    let loss = model.backward(s, batch, row, &gradient, &mut flights[s], work, &sink)?;
                    gradient.clear();
                    gradient.extend_from_slice(work.input_gradient(model.stream_len(batch.t)));
                    Ok(loss)
                })?;
                if s == last {
                    losses.extend(of_stage);
                }
                self.release(s, params)?;
                self.give(s)?;
            }
        }
        Ok((losses, self.stages.iter().flat_map(|s| s.bounds.iter().copied()).collect()))
    }

    /// Losses of the rows, as [`Self::gradients`] gives them.
    ///
    /// # Errors
    /// As [`Self::gradients`].
    pub fn losses(
        &mut self,
        model: &Backprop,
        rows: &[(&Batch, usize)],
        lanes: &mut Lanes,
        params: &Params,
    ) -> Result<Vec<f64>> {
        let last = self.stages.len() - 1;
        let mut losses = Vec::new();
        for round in 0..self.rounds(rows.len())? {
            let rows = rows.chunks(self.group).nth(round).unwrap_or_default();
            self.forward(model, rows, false, lanes, params)?;
            losses.extend(lanes.run(rows.len(), |i, work| {
                let flights = self.flights[i].lock().expect("passes do not panic");
                Ok(model.stage_loss(rows[i].0, rows[i].1, &flights[last % 2], work)?)
            })?);
            self.release(last, params)?;
        }
        Ok(losses)
    }

    /// How often the ranks go through the layers: as often as the one with most rows has to.
    fn rounds(&self, rows: usize) -> Result<usize> {
        let mut rounds = [rows.div_ceil(self.group) as i64];
        self.ranks.all_reduce(&mut rounds, Op::Max)?;
        Ok(rounds[0] as usize)
    }

    /// Takes rows through all stages; the last one stays whole. Without `keep`, two flights take turns.
    fn forward(
        &self,
        model: &Backprop,
        rows: &[(&Batch, usize)],
        keep: bool,
        lanes: &mut Lanes,
        params: &Params,
    ) -> Result<()> {
        let stages = self.stages.len();
        for s in 0..stages {
            self.gather(s, params)?;
            lanes.run(rows.len(), |i, work| {
                let (batch, row) = rows[i];
                let mut flights = self.flights[i].lock().expect("passes do not panic");
                let most = flights.len().max(if keep { stages } else { 2 });
                flights.resize_with(most, Flight::default);
                let (here, before) = if keep { (s, s.wrapping_sub(1)) } else { (s % 2, (s + 1) % 2) };
                let mut flight = std::mem::take(&mut flights[here]);
                let input = if s == 0 { &[][..] } else { flights[before].output() };
                let done = model.forward(s, batch, row, input, keep, &mut flight, work);
                flights[here] = flight;
                Ok(done?)
            })?;
            if s + 1 < stages {
                self.release(s, params)?;
            }
        }
        Ok(())
    }

    /// The parts of a parameter that the ranks own, within it.
    fn parts(stage: &Stage, param: &Param) -> Vec<usize> {
        stage.cuts.iter().map(|c| c.clamp(&param.offset, &param.end()) - param.offset).collect()
    }

    /// Makes a stage's weights whole.
    fn gather(&self, s: usize, params: &Params) -> Result<()> {
        let stage = &self.stages[s];
        for param in &params.list()[stage.params.clone()] {
            let parts = Self::parts(stage, param);
            let mut result = Ok(());
            param.storage(|values| {
                let own = parts[self.ranks.rank()]..parts[self.ranks.rank() + 1];
                let mut whole = vec![0.0; param.len];
                whole[own].copy_from_slice(values);
                result = self.ranks.all_gather(&mut whole, &parts);
                *values = whole;
            })?;
            result?;
        }
        Ok(())
    }

    /// Keeps this rank's part of a stage's weights only.
    fn release(&self, s: usize, params: &Params) -> Result<()> {
        let stage = &self.stages[s];
        for param in &params.list()[stage.params.clone()] {
            let parts = Self::parts(stage, param);
            let own = parts[self.ranks.rank()]..parts[self.ranks.rank() + 1];
            param.storage(|values| *values = values[own].to_vec())?;
        }
        Ok(())
    }

    /// Adds the sums of a stage on all ranks to those of their owners.
    fn give(&mut self, s: usize) -> Result<()> {
        let stage = &mut self.stages[s];
        let bounds = self.sums.bounds();
        stage.bounds.resize(bounds.len(), 0);
        stage.bounds.iter_mut().zip(bounds).for_each(|(all, now)| *all = all.saturating_add(now));
        let within: Vec<usize> = stage.cuts.iter().map(|c| c - stage.range.start).collect();
        let sums = &mut self.sums.sums()[..stage.range.len()];
        self.ranks.reduce_scatter(sums, &within, Op::Sum)?;
        let own = &sums[within[self.ranks.rank()]..within[self.ranks.rank() + 1]];
        stage.own.iter_mut().zip(own).for_each(|(all, now)| *all = all.wrapping_add(*now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_have_stages() {
        let of = |name| stage_of(name, 4);
        assert_eq!(of("model.tok_embeddings.weight"), 0);
        assert_eq!(of("model.layers.2.attention.wqkv.weight"), 2);
        assert_eq!([of("model.norm.weight"), of("output.weight"), of("lm_head.weight")], [3; 3]);
    }
}
