//! Token embedding: rows picked by id, and the gradient that adds rows back.

use super::math::add_assign;
use rayon::prelude::*;

/// Columns one task of the backward pass takes.
const COLUMNS: usize = 64;

/// `y[n] = table[ids[n]]`, rows of `c` elements.
pub fn forward(table: &[f32], ids: &[u32], c: usize, y: &mut [f32]) {
    assert_eq!(y.len(), ids.len() * c, "one row per id");
    y.par_chunks_mut(32 * c).zip(ids.par_chunks(32)).for_each(|(y, ids)| {
        for (y, &id) in y.chunks_exact_mut(c).zip(ids) {
            y.copy_from_slice(&table[id as usize * c..][..c]);
        }
    });
}

/// `dtable[ids[n]] += dy[n]`, in the order of `n` whatever the number of threads.
pub fn backward(ids: &[u32], c: usize, dy: &[f32], dtable: &mut [f32]) {
    assert_eq!(dy.len(), ids.len() * c, "one row per id");
    assert!(dtable.len().is_multiple_of(c), "rows of {c}");
    let rows = dtable.len() / c;
    assert!(ids.iter().all(|&id| (id as usize) < rows), "ids below {rows}");
    let table = Shared(dtable.as_mut_ptr());
    (0..c.div_ceil(COLUMNS)).into_par_iter().for_each(|task| {
        let (from, to) = (task * COLUMNS, c.min((task + 1) * COLUMNS));
        for (dy, &id) in dy.chunks_exact(c).zip(ids) {
            // SAFETY: the id is below `rows`, and this task alone touches columns `from..to`.
            let row = unsafe { table.slice(id as usize * c + from, to - from) };
            add_assign(row, &dy[from..to]);
        }
    });
}

/// A pointer that tasks share while writing disjoint parts.
#[derive(Clone, Copy)]
pub(super) struct Shared(pub(super) *mut f32);

// SAFETY: every user hands each task its own elements.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// `len` elements from `at`.
    ///
    /// # Safety
    /// They lie inside the allocation, and no other live reference covers them.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice(&self, at: usize, len: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, in_pool, random};

    #[test]
    fn picks_rows_and_adds_their_gradients_back() {
        let (rows, c) = (5, 70);
        let ids = [3, 0, 3, 4, 3, 1];
        let (table, dy) = (random(rows * c, 1), random(ids.len() * c, 2));
        let mut y = vec![0.0; ids.len() * c];
        forward(&table, &ids, c, &mut y);
        assert_eq!(&y[2 * c..3 * c], &table[3 * c..4 * c]);
        let run = || {
            let mut d = vec![0.0; rows * c];
            backward(&ids, c, &dy, &mut d);
            d
        };
        let got = in_pool(1, run);
        assert_eq!(got, in_pool(4, run));
        let mut expect = vec![0.0; rows * c];
        for (n, &id) in ids.iter().enumerate() {
            for j in 0..c {
                expect[id as usize * c + j] += dy[n * c + j];
            }
        }
        assert_close(&got, &expect, 1e-6);
    }
}
