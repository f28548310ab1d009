//! Which tokens of a sequence a rank works on, and how ranks that share a layer meet.
//!
//! Ranks of a *tensor* group hold slices of the same layers: some heads, some columns of the
//! feed-forward network. Between these they split the rows of the residual stream (sequence
//! parallelism; Korthikanti et al., 2022): rows are gathered before the sliced projections, and
//! partial sums scattered after them. Ranks of a *context* group have all weights of their layers
//! and different tokens of one sequence, and meet in attention only ([`super::ring`]).

use std::ops::Range;

use anyhow::Result;
use intern_comm::{Comm, Op, even_cuts};
use intern_kernels::train::math::add_assign;

use super::memory::sized;

/// The ranks that work on a sequence together.
pub struct Split {
    /// They hold slices of the same layers.
    pub tensor: Comm,
    /// They hold parts of the same sequence.
    pub context: Comm,
}

impl Split {
    /// This rank works alone.
    #[must_use]
    pub fn none() -> Self {
        Self { tensor: Comm::alone(), context: Comm::alone() }
    }

    /// Whether several ranks work on a sequence.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.tensor.size() * self.context.size() > 1
    }

    /// The rows of a sequence of `len` tokens.
    #[must_use]
    pub fn rows(&self, len: usize) -> Rows {
        let chunks = context_chunks(len, self.context.rank(), self.context.size());
        let n = chunks.iter().map(ExactSizeIterator::len).sum();
        let cuts = even_cuts(n, self.tensor.size(), 1);
        let rank = self.tensor.rank();
        Rows { chunks, n, own: cuts[rank]..cuts[rank + 1], cuts }
    }

    /// `x` `(M, C)` of every rank of the tensor group, as `(N, C)`.
    pub(super) fn gather<'a>(
        &self,
        rows: &Rows,
        x: &'a [f32],
        c: usize,
        buffer: &'a mut Vec<f32>,
    ) -> Result<&'a [f32]> {
        if self.tensor.size() == 1 {
            return Ok(x);
        }
        let full = sized(buffer, rows.n * c);
        full[rows.own.start * c..rows.own.end * c].copy_from_slice(x);
        self.tensor.all_gather(full, &rows.elements(c))?;
        Ok(full)
    }

    /// The sum of `partial` `(N, C)` over the tensor group, of the own rows, in their place.
    pub(super) fn scatter<'a>(&self, rows: &Rows, partial: &'a mut [f32], c: usize) -> Result<&'a [f32]> {
        if self.tensor.size() > 1 {
            self.tensor.reduce_scatter(partial, &rows.elements(c), Op::Sum)?;
        }
        Ok(&partial[rows.own.start * c..rows.own.end * c])
    }

    /// Adds the sum of `partial` over the tensor group to `residual` `(M, C)`.
    pub(super) fn scatter_onto(
        &self,
        rows: &Rows,
        partial: &mut [f32],
        c: usize,
        residual: &mut [f32],
    ) -> Result<()> {
        add_assign(residual, self.scatter(rows, partial, c)?);
        Ok(())
    }
}

/// Context rank `rank`'s tokens of `len`: the `rank`th part of `2 size` from the front and from the
/// back, so that all have as many pairs of query and key.
pub(super) fn context_chunks(len: usize, rank: usize, size: usize) -> Vec<Range<usize>> {
    let cuts = even_cuts(len, 2 * size, 1);
    let chunks = match size {
        1 => [(0, 2), (2, 2)],
        _ => [(rank, rank + 1), (2 * size - 1 - rank, 2 * size - rank)],
    };
    chunks.into_iter().map(|(from, to)| cuts[from]..cuts[to]).filter(|chunk| !chunk.is_empty()).collect()
}

/// A rank's rows of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The tokens its context rank has, in ascending order.
    pub chunks: Vec<Range<usize>>,
    /// How many these are: the rows of a layer's projections.
    pub n: usize,
    /// Those among them whose residual stream this rank has.
    pub own: Range<usize>,
    cuts: Vec<usize>,
}

impl Rows {
    /// `all` of the sequence's tokens, of those whose residual stream this rank has.
    pub(super) fn pick<T: Copy>(&self, all: &[T]) -> Vec<T> {
        let of_context = self.chunks.iter().flat_map(|chunk| &all[chunk.clone()]);
        of_context.skip(self.own.start).take(self.own.len()).copied().collect()
    }

    /// Where each tensor rank's rows of `c` elements start.
    fn elements(&self, c: usize) -> Vec<usize> {
        self.cuts.iter().map(|cut| cut * c).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_ranks_share_tokens_and_work_evenly() {
        for (len, size) in [(16, 1), (16, 2), (17, 2), (40, 4), (3, 2)] {
            let mut seen = vec![0; len];
            let mut pairs = Vec::new();
            for rank in 0..size {
                let chunks = context_chunks(len, rank, size);
                chunks.iter().flat_map(Clone::clone).for_each(|i| seen[i] += 1);
                pairs.push(chunks.into_iter().flatten().map(|i| i + 1).sum::<usize>());
            }
            assert!(seen.iter().all(|n| *n == 1));
            let (least, most) = (pairs.iter().min().unwrap(), pairs.iter().max().unwrap());
            assert!(most - least <= 2 * len, "{pairs:?}");
        }
    }

    #[test]
    fn every_row_has_one_owner() {
        let len = 11;
        let mut seen = vec![0; len];
        for rank in 0..3 {
            let mut ranks = intern_comm::threads::group(3);
            let split = Split { tensor: ranks.swap_remove(rank), context: Comm::alone() };
            let rows = split.rows(len);
            rows.pick(&(0..len).collect::<Vec<_>>()).iter().for_each(|i| seen[*i] += 1);
        }
        assert!(seen.iter().all(|n| *n == 1));
    }
}
