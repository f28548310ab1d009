//! Guesses at the tokens to come from a smaller model (Leviathan et al., 2023).
//!
//! It reads the same rows as the large model and keeps keys and values in blocks of the same
//! numbers, so that shared prefixes and preemption hold for both. Its guesses are kept as far as
//! they are what sampling from the large model chooses anyway.

use intern_kernels::sampling::argmax;

use crate::runner::{Row, Runner};
use crate::watch::Watch;

/// The smaller model.
pub(crate) struct Drafter {
    pub runner: Runner,
    /// Most guesses per step.
    pub most: usize,
}

impl Drafter {
    /// Reads `rows`; then guesses, for each `(row, n)` of `wanted`, `n` tokens behind that row.
    pub fn guess(&mut self, rows: &[Row], tables: &[&[u32]], wanted: &[(usize, usize)]) -> Vec<Vec<u32>> {
        let outputs: Vec<usize> = wanted.iter().map(|w| w.0).collect();
        let best = |_: usize, logits: &mut [f32]| argmax(logits) as u32;
        let first = self.runner.step(rows, tables, &outputs, &Watch::off(), best);
        let mut guesses: Vec<Vec<u32>> = first.into_iter().map(|(_, id)| vec![id]).collect();
        // The last guess is read too: should it be right, its keys and values are needed.
        for n in 1..=wanted.iter().map(|w| w.1).max().unwrap_or(0) {
            let live: Vec<usize> = (0..wanted.len()).filter(|&i| wanted[i].1 >= n).collect();
            let next = |&i: &usize| {
                let newest = rows[wanted[i].0];
                let position = newest.position + n;
                let rope_len = newest.rope_len.max(position + 1);
                Row { token: guesses[i][n - 1], position, rope_len, ..newest }
            };
            let next: Vec<Row> = live.iter().map(next).collect();
            let outputs: Vec<usize> = (0..live.len()).filter(|&j| wanted[live[j]].1 > n).collect();
            let found = self.runner.step(&next, tables, &outputs, &Watch::off(), best);
            found.into_iter().for_each(|(i, id)| guesses[live[outputs[i]]].push(id));
        }
        guesses
    }
}
