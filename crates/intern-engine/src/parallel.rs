//! Tensor parallelism: every rank holds a share of each matrix and of the cache.
//!
//! Matrices are cut between outputs, never within a sum: whole heads of queries, keys and values,
//! plain rows of the others. So each number is computed by one rank as one rank alone would
//! compute it, and the tokens are the same for any number of ranks. (Megatron cuts every second
//! matrix between inputs instead: about half the traffic, but sums in another order.)
//!
//! Rank 0 schedules and samples. It announces the rows of each step; the others compute along.

use std::ops::Range;
use std::thread::JoinHandle;

use anyhow::{Result, ensure};
use intern_comm::{Comm, even_cuts};
use intern_model::ModelConfig;

use crate::runner::Row;

/// Which part of every matrix a rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub rank: usize,
    pub size: usize,
}

impl Share {
    /// Everything.
    pub const WHOLE: Self = Self { rank: 0, size: 1 };

    /// Our part of `n` outputs.
    pub fn range(self, n: usize) -> Range<usize> {
        let cuts = even_cuts(n, self.size, 1);
        cuts[self.rank]..cuts[self.rank + 1]
    }

    /// Our part of what belongs to outputs, such as biases; nothing of nothing.
    pub fn of(self, mut whole: Vec<f32>) -> Vec<f32> {
        let range = self.range(whole.len());
        whole.truncate(range.end);
        whole.split_off(range.start)
    }

    /// `whole` with the heads and the feed-forward width of our part.
    ///
    /// # Errors
    /// If heads cannot be shared evenly.
    pub fn config(self, whole: &ModelConfig) -> Result<ModelConfig> {
        ensure!(
            whole.num_kv_heads.is_multiple_of(self.size),
            "{} key/value heads cannot be shared by {} ranks\nhint: tensor_parallel must divide them",
            whole.num_kv_heads,
            self.size
        );
        Ok(ModelConfig {
            num_heads: whole.num_heads / self.size,
            num_kv_heads: whole.num_kv_heads / self.size,
            intermediate_size: self.range(whole.intermediate_size).len(),
            ..whole.clone()
        })
    }
}

/// The ranks that compute together, as one of them sees them.
pub(crate) struct Ranks {
    comm: Comm,
    /// Those that are threads of this process, on rank 0.
    threads: Vec<JoinHandle<()>>,
}

/// The rows of a step, as the other ranks hear of them.
pub(crate) struct Announced {
    pub rows: Vec<Row>,
    pub tables: Vec<Vec<u32>>,
    pub outputs: Vec<usize>,
}

impl Ranks {
    /// One rank of `comm`; `threads` are ended with it.
    pub fn new(comm: Comm, threads: Vec<JoinHandle<()>>) -> Self {
        Self { comm, threads }
    }

    /// Nobody else.
    pub fn alone() -> Self {
        Self::new(Comm::alone(), Vec::new())
    }

    pub fn share(&self) -> Share {
        Share { rank: self.comm.rank(), size: self.comm.size() }
    }

    pub fn is_alone(&self) -> bool {
        self.comm.size() == 1
    }

    pub fn leads(&self) -> bool {
        self.comm.rank() == 0
    }

    /// Waits until every rank has loaded its share, then gives all of them rank 0's `blocks`.
    ///
    /// # Errors
    /// If one could not, with its reason.
    pub fn agree(&self, blocks: usize) -> Result<usize> {
        self.comm.barrier()?;
        let mut number = [blocks as u64];
        self.comm.broadcast(0, &mut number)?;
        Ok(number[0] as usize)
    }

    /// All columns of `m` rows of which `local`, `(m, our part of width)`, are ours: `local` itself
    /// if there is nobody else, else `(m, width)` in `whole`.
    ///
    /// Panics if a rank has ended, as all operations of a step do.
    pub fn gather<'a>(
        &self,
        (m, width): (usize, usize),
        local: &'a mut [f32],
        whole: &'a mut Whole,
    ) -> &'a mut [f32] {
        if self.is_alone() {
            return local;
        }
        let cuts = even_cuts(width, self.comm.size(), 1);
        let parts: Vec<usize> = cuts.iter().map(|cut| cut * m).collect();
        whole.parts.resize(m * width, 0.0);
        whole.parts[parts[self.comm.rank()]..parts[self.comm.rank() + 1]].copy_from_slice(local);
        went_well(self.comm.all_gather(&mut whole.parts, &parts));
        whole.rows.resize(m * width, 0.0);
        for (columns, part) in cuts.windows(2).zip(parts.windows(2)) {
            let (part, wide) = (&whole.parts[part[0]..part[1]], columns[1] - columns[0]);
            for (row, part) in whole.rows.chunks_exact_mut(width).zip(part.chunks_exact(wide.max(1))) {
                row[columns[0]..columns[1]].copy_from_slice(part);
            }
        }
        &mut whole.rows
    }

    /// Tells the others what rank 0 computes next.
    pub fn announce(&self, rows: &[Row], tables: &[&[u32]], outputs: &[usize]) {
        if self.is_alone() || !self.leads() {
            return;
        }
        let blocks: usize = tables.iter().map(|t| t.len()).sum();
        let mut sizes = [rows.len(), tables.len(), blocks, outputs.len()].map(|n| n as u64);
        went_well(self.comm.broadcast(0, &mut sizes));
        let row = |r: &Row| [u64::from(r.token), r.position as u64, r.rope_len as u64, r.sequence as u64];
        let mut body: Vec<u64> = rows.iter().flat_map(row).collect();
        body.extend(tables.iter().map(|t| t.len() as u64));
        body.extend(tables.iter().flat_map(|t| t.iter().map(|&b| u64::from(b))));
        body.extend(outputs.iter().map(|&o| o as u64));
        went_well(self.comm.broadcast(0, &mut body));
    }

    /// What rank 0 announces next; `None` when it has ended.
    ///
    /// # Errors
    /// If it died.
    pub fn hear(&self) -> Result<Option<Announced>> {
        let mut sizes = [0u64; 4];
        self.comm.broadcast(0, &mut sizes)?;
        let [rows, tables, blocks, outputs] = sizes.map(|n| n as usize);
        if rows == 0 {
            return Ok(None);
        }
        let mut body = vec![0u64; 4 * rows + tables + blocks + outputs];
        self.comm.broadcast(0, &mut body)?;
        let (row_words, body) = body.split_at(4 * rows);
        let (lengths, body) = body.split_at(tables);
        let (mut blocks, outputs) = body.split_at(blocks);
        let row = |r: &[u64]| Row {
            token: r[0] as u32,
            position: r[1] as usize,
            rope_len: r[2] as usize,
            sequence: r[3] as usize,
            adapter: None,
        };
        let table = |&n: &u64| {
            let (table, rest) = blocks.split_at(n as usize);
            blocks = rest;
            table.iter().map(|&b| b as u32).collect()
        };
        Ok(Some(Announced {
            rows: row_words.chunks_exact(4).map(row).collect(),
            tables: lengths.iter().map(table).collect(),
            outputs: outputs.iter().map(|&o| o as usize).collect(),
        }))
    }

    /// Ends the job for a reason that the other ranks will report.
    pub fn abandon(&self, reason: &str) {
        self.comm.abandon(reason);
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        if self.leads() && !self.is_alone() {
            // Should one have died, the rest know already.
            let _ = self.comm.broadcast(0, &mut [0u64; 4]);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Working memory of [`Ranks::gather`].
#[derive(Default)]
pub(crate) struct Whole {
    /// One rank's columns after the other's.
    parts: Vec<f32>,
    rows: Vec<f32>,
}

/// A step cannot go on without a rank; its requests hear why.
fn went_well(result: Result<()>) {
    result.unwrap_or_else(|error| panic!("{error:#}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_everything_once() {
        for size in 1..5 {
            for n in [0, 1, 7, 64] {
                let ranges = (0..size).map(|rank| Share { rank, size }.range(n));
                assert_eq!(ranges.flatten().collect::<Vec<_>>(), (0..n).collect::<Vec<_>>());
            }
        }
        assert_eq!(Share { rank: 1, size: 2 }.of(vec![1.0, 2.0, 3.0, 4.0]), [3.0, 4.0]);
        assert!(Share { rank: 1, size: 2 }.of(Vec::new()).is_empty());
    }

    #[test]
    fn columns_come_together_and_steps_are_heard() {
        let (m, width) = (3, 7);
        let row =
            |i: usize| Row { token: i as u32, position: 9 - i, rope_len: 10, sequence: 0, adapter: None };
        let number = |r: usize, c: usize| (10 * r + c) as f32;
        let gathered = move |ranks: &Ranks| {
            let columns = ranks.share().range(width);
            let mut local: Vec<f32> =
                (0..m).flat_map(|r| columns.clone().map(move |c| number(r, c))).collect();
            ranks.gather((m, width), &mut local, &mut Whole::default()).to_vec()
        };
        let mut ranks = intern_comm::threads::group(2).into_iter().map(|comm| Ranks::new(comm, Vec::new()));
        let (leader, other) = (ranks.next().unwrap(), ranks.next().unwrap());
        let follower = std::thread::spawn(move || {
            assert_eq!(other.agree(0).unwrap(), 5);
            let step = other.hear().unwrap().unwrap();
            let all = gathered(&other);
            (step, all, other.hear().unwrap().is_none())
        });
        assert_eq!(leader.agree(5).unwrap(), 5);
        leader.announce(&[row(0), row(1)], &[&[4, 2], &[], &[1]], &[1]);
        let want: Vec<f32> = (0..m).flat_map(|r| (0..width).map(move |c| number(r, c))).collect();
        assert_eq!(gathered(&leader), want);
        drop(leader);
        let (step, all, is_over) = follower.join().unwrap();
        assert_eq!(all, want);
        assert_eq!(step.tables, [vec![4, 2], vec![], vec![1]]);
        assert_eq!((step.outputs, step.rows.len(), step.rows[1].position), (vec![1], 2, 8));
        assert!(is_over);
    }
}
