//! What one forward pass sees: packed rows of tokens, their targets, and where documents start.
//!
//! Several documents may share a row; attention never crosses a document's start and
//! positions count from it, so a packed document gets the same loss as one alone.

use anyhow::{Result, ensure};

/// `b` rows of `t` tokens with their training targets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// `(b, t)` row-major token ids.
    pub tokens: Vec<u32>,
    /// `(b, t)`: the token that follows each position.
    pub targets: Vec<u32>,
    /// `(b, t)`: true where the target counts towards the loss.
    pub mask: Vec<bool>,
    /// Rows.
    pub b: usize,
    /// Tokens per row.
    pub t: usize,
    /// For each row, the index of each document's first token, ascending from 0.
    pub doc_starts: Vec<Vec<usize>>,
}

impl Batch {
    /// One document per row and no targets: for logits only. Every row holds `t` tokens.
    #[must_use]
    pub fn from_rows(rows: &[&[u32]]) -> Self {
        let (b, t) = (rows.len(), rows.first().map_or(0, |r| r.len()));
        assert!(rows.iter().all(|r| r.len() == t), "rows of equal length");
        Self {
            tokens: rows.concat(),
            targets: vec![0; b * t],
            mask: vec![false; b * t],
            b,
            t,
            doc_starts: vec![vec![0]; b],
        }
    }

    /// One document per row, each token's target being the next; rows hold `t + 1` tokens.
    #[must_use]
    pub fn next_token(rows: &[&[u32]]) -> Self {
        let inputs: Vec<&[u32]> = rows.iter().map(|r| &r[..r.len() - 1]).collect();
        let mut batch = Self::from_rows(&inputs);
        batch.targets = rows.iter().flat_map(|r| &r[1..]).copied().collect();
        batch.mask.fill(true);
        batch
    }

    /// Checks sizes, token ids and document starts; `vocab_size` bounds every id.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        let n = self.b * self.t;
        ensure!(n > 0, "batch: {} rows of {} tokens, expected at least one token", self.b, self.t);
        ensure!(
            self.tokens.len() == n && self.targets.len() == n && self.mask.len() == n,
            "batch: {} tokens, {} targets, {} mask entries, expected {n} of each",
            self.tokens.len(),
            self.targets.len(),
            self.mask.len()
        );
        let masked_in = self.targets.iter().zip(&self.mask).filter(|(_, m)| **m).map(|(t, _)| t);
        for &id in self.tokens.iter().chain(masked_in) {
            ensure!(
                (id as usize) < vocab_size,
                "batch: token id {id}, expected below the vocabulary size {vocab_size}\n\
                 hint: was the data tokenized with this model's tokenizer?"
            );
        }
        ensure!(self.doc_starts.len() == self.b, "batch: document starts of {} rows", self.doc_starts.len());
        for starts in &self.doc_starts {
            let ascending = starts.windows(2).all(|w| w[0] < w[1]);
            ensure!(
                starts.first() == Some(&0) && ascending && starts.last().is_some_and(|&s| s < self.t),
                "batch: document starts {starts:?}, expected ascending from 0 and below {}",
                self.t
            );
        }
        Ok(())
    }

    /// For every token, the index in its row of its document's first token; `(b, t)`.
    #[must_use]
    pub fn starts(&self) -> Vec<u32> {
        (0..self.b).flat_map(|row| self.starts_of(row)).collect()
    }

    /// As [`Self::starts`], of one row; `(t,)`.
    #[must_use]
    pub fn starts_of(&self, row: usize) -> Vec<u32> {
        let starts = &self.doc_starts[row];
        let ends = starts.iter().skip(1).copied().chain([self.t]);
        let spread = |(&start, end): (&usize, usize)| std::iter::repeat_n(start as u32, end - start);
        starts.iter().zip(ends).flat_map(spread).collect()
    }

    /// Length of the longest document: one more than the largest position.
    #[must_use]
    pub fn longest_document(&self) -> usize {
        let of_row = |starts: &Vec<usize>| {
            let ends = starts.iter().skip(1).copied().chain([self.t]);
            starts.iter().zip(ends).map(|(s, e)| e - s).max().unwrap_or(0)
        };
        self.doc_starts.iter().map(of_row).max().unwrap_or(0)
    }

    /// Number of positions that count towards the loss.
    #[must_use]
    pub fn num_targets(&self) -> usize {
        self.mask.iter().filter(|m| **m).count()
    }
}
