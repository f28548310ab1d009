//! Packed rows as training batches.
//!
//! A row is one or more whole conversations; each keeps its own positions and sees only
//! itself, so its loss is the same packed or alone.

use anyhow::Result;
use intern_model::Batch;
use intern_tokenizer::ChatTokens;
use intern_train::BatchSource;
use intern_train::shuffle::Permutation;

use crate::packing::best_fit;

/// The samples in rows, drawn in a new order each epoch.
#[derive(Debug)]
pub struct Rows {
    samples: Vec<ChatTokens>,
    rows: Vec<Vec<usize>>,
    seed: u64,
}

impl Rows {
    /// Packs `samples` into rows of at most `seq_len` tokens, or gives each its own row.
    #[must_use]
    pub fn new(samples: Vec<ChatTokens>, seq_len: usize, packing: bool, seed: u64) -> Self {
        let lengths: Vec<usize> = samples.iter().map(positions).collect();
        let rows =
            if packing { best_fit(&lengths, seq_len) } else { (0..samples.len()).map(|i| vec![i]).collect() };
        Self { samples, rows, seed }
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Every row once, in order, in batches of `n`.
    #[must_use]
    pub fn in_order(&self, n: usize) -> Vec<Batch> {
        let all: Vec<usize> = (0..self.rows.len()).collect();
        all.chunks(n).map(|rows| self.assemble(rows)).collect()
    }

    /// The given rows as one batch, as wide as the longest of them.
    fn assemble(&self, rows: &[usize]) -> Batch {
        let width = |&row: &usize| self.rows[row].iter().map(|&i| positions(&self.samples[i])).sum::<usize>();
        let t = rows.iter().map(width).max().unwrap_or(0);
        let mut batch = Batch { b: rows.len(), t, ..Batch::default() };
        for (r, &row) in rows.iter().enumerate() {
            let mut starts = Vec::with_capacity(self.rows[row].len() + 1);
            for &i in &self.rows[row] {
                let ChatTokens { ids, mask } = &self.samples[i];
                starts.push(batch.tokens.len() - r * t);
                batch.tokens.extend(&ids[..ids.len() - 1]);
                batch.targets.extend(&ids[1..]);
                batch.mask.extend(&mask[1..]);
            }
            // What is left is a document of its own that nothing is learned from.
            let end = (r + 1) * t;
            if batch.tokens.len() < end {
                starts.push(batch.tokens.len() - r * t);
                batch.tokens.resize(end, 0);
                batch.targets.resize(end, 0);
                batch.mask.resize(end, false);
            }
            batch.doc_starts.push(starts);
        }
        batch
    }
}

impl BatchSource for Rows {
    fn batch(&self, first: u64, n: usize) -> Result<Batch> {
        let per_epoch = self.rows.len() as u64;
        let row = |i: u64| Permutation::new(per_epoch, self.seed, i / per_epoch).at(i % per_epoch) as usize;
        let rows: Vec<usize> = (first..first + n as u64).map(row).collect();
        Ok(self.assemble(&rows))
    }
}

/// Positions a sample takes: its last token predicts nothing.
fn positions(sample: &ChatTokens) -> usize {
    sample.ids.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(ids: &[u32], trained_from: usize) -> ChatTokens {
        ChatTokens { ids: ids.to_vec(), mask: (0..ids.len()).map(|i| i >= trained_from).collect() }
    }

    #[test]
    fn rows_hold_inputs_targets_and_starts() {
        let samples = vec![sample(&[1, 2, 3], 1), sample(&[4, 5, 6, 7], 2), sample(&[8, 9], 0)];
        let rows = Rows::new(samples, 5, true, 0);
        let batch = &rows.in_order(2)[0];
        batch.validate(10).unwrap();
        assert_eq!((batch.b, batch.t), (2, 5));
        assert_eq!(batch.tokens, [4, 5, 6, 1, 2, 8, 0, 0, 0, 0]);
        assert_eq!(batch.targets, [5, 6, 7, 2, 3, 9, 0, 0, 0, 0]);
        assert_eq!(batch.mask, [false, true, true, true, true, true, false, false, false, false]);
        assert_eq!(batch.doc_starts, [vec![0, 3], vec![0, 1]]);
    }

    #[test]
    fn an_epoch_draws_every_row_once() {
        let samples = (0..7).map(|i| sample(&[i, 10], 1)).collect();
        let rows = Rows::new(samples, 1, false, 3);
        let draw = |first| {
            let mut tokens = rows.batch(first, 7).unwrap().tokens;
            let order = tokens.clone();
            tokens.sort_unstable();
            assert_eq!(tokens, (0..7).collect::<Vec<_>>());
            order
        };
        assert_ne!(draw(0), draw(7));
    }
}
