//! Attention of ranks that share a sequence: keys and values go around a ring (Liu et al., 2023).
//!
//! Every rank keeps its queries. In each of as many rounds as there are ranks it attends to the keys
//! and values it holds, while these are already on their way to the next rank. In the backward pass
//! their gradients travel with them, and are home after a whole turn. A rank has a part from the
//! front of the sequence and one from its back, so that causal attention is the same work for all.
//!
//! Shapes: `n` the rank's tokens, `H` query heads, `G` key/value heads, `D` head width; matrices of
//! queries, keys and values apart.

use std::ops::Range;

use anyhow::Result;
use intern_comm::Comm;
use intern_kernels::train::attention::{self, Context, Gradients, Heads, Layout, merge};
use intern_kernels::train::math::add_assign;

use super::split::context_chunks;

const KEYS: u16 = 60_000;
const KEY_GRADIENTS: u16 = 60_001;

/// One rank's part of attention.
pub(super) struct Ring<'a> {
    pub ranks: &'a Comm,
    /// Of the whole sequence, with the places of queries, keys and values in the rank's matrices.
    pub whole: Context<'a>,
}

/// Keys and values of one rank, `(n, G D)` each, with their chunks of the sequence.
struct Block {
    chunks: Vec<Range<usize>>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Ring<'_> {
    fn chunks(&self, rank: usize) -> Vec<Range<usize>> {
        context_chunks(self.whole.shape.t, rank, self.ranks.size())
    }

    /// Elements of a token's queries, and of its keys.
    fn widths(&self) -> (usize, usize) {
        let s = &self.whole.shape;
        (s.heads * s.head_dim, s.kv_heads * s.head_dim)
    }

    /// The context of queries `q` and keys `k` in matrices of their own.
    fn pair(&self, q: &Range<usize>, k: &Range<usize>) -> Context<'_> {
        let layout = Layout::separate(&self.whole.shape);
        Context { layout, queries: (q.start, q.end), keys: (k.start, k.end), ..self.whole }
    }

    /// Each pair of own queries and a block's keys that has a key before a query: the chunks, and
    /// where their rows start.
    fn pairs(&self, keys: &[Range<usize>]) -> Vec<(Range<usize>, usize, Range<usize>, usize)> {
        let with_rows = |chunks: &[Range<usize>]| -> Vec<(Range<usize>, usize)> {
            let mut at = 0;
            let mut place = |chunk: &Range<usize>| {
                at += chunk.len();
                (chunk.clone(), at - chunk.len())
            };
            chunks.iter().map(&mut place).collect()
        };
        let keys = with_rows(keys);
        let own = with_rows(&self.chunks(self.ranks.rank()));
        let all = own
            .into_iter()
            .flat_map(|(q, at)| keys.iter().map(move |(k, k_at)| (q.clone(), at, k.clone(), *k_at)));
        all.filter(|(q, _, k, _)| k.start < q.end).collect()
    }

    /// Attends to all keys of the sequence: `out` `(n, H D)` and `lse` `(H, n)`.
    pub fn forward(&self, [q, k, v]: [&[f32]; 3], out: &mut [f32], lse: &mut [f32]) -> Result<()> {
        let (heads, (width, kv_width)) = (self.whole.shape.heads, self.widths());
        let n = lse.len() / heads;
        let queries = self.compact(q, self.whole.layout.q, n, width);
        let mut block = self.own_block(k, v, n);
        out.fill(0.0);
        lse.fill(f32::NEG_INFINITY);
        for round in 0..self.ranks.size() {
            let next = self.pass_on(&block, round)?;
            for (of_q, at, of_k, k_at) in self.pairs(&block.chunks) {
                let (m, rows) = (of_q.len(), at * width..(at + of_q.len()) * width);
                let keys = k_at * kv_width..(k_at + of_k.len()) * kv_width;
                let (mut more, mut more_lse) = (vec![0.0; m * width], vec![0.0; heads * m]);
                let (k, v) = (&block.k[keys.clone()], &block.v[keys]);
                attention::forward(
                    &self.pair(&of_q, &of_k),
                    &queries[rows.clone()],
                    k,
                    v,
                    &mut more,
                    &mut more_lse,
                );
                let mut sum = columns(lse, n, at, m);
                merge(&mut out[rows], &mut sum, &more, &more_lse, heads);
                put_columns(lse, n, at, &sum, m);
            }
            if let Some(next) = next {
                block = self.arrive(next)?;
            }
        }
        Ok(())
    }

    /// Gradients of [`Self::forward`], every element of which is written.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        [q, k, v]: [&[f32]; 3],
        out: &[f32],
        lse: &[f32],
        dout: &[f32],
        gradients: Gradients,
    ) -> Result<()> {
        let (heads, (width, kv_width)) = (self.whole.shape.heads, self.widths());
        let n = lse.len() / heads;
        let queries = self.compact(q, self.whole.layout.q, n, width);
        let mut block = self.own_block(k, v, n);
        let mut dq = vec![0.0; n * width];
        let (mut dk, mut dv) = (vec![0.0; block.k.len()], vec![0.0; block.v.len()]);
        let (size, rank) = (self.ranks.size(), self.ranks.rank());
        for round in 0..size {
            let next = self.pass_on(&block, round)?;
            for (of_q, at, of_k, k_at) in self.pairs(&block.chunks) {
                let (m, rows) = (of_q.len(), at * width..(at + of_q.len()) * width);
                let keys = k_at * kv_width..(k_at + of_k.len()) * kv_width;
                let [mut pq, mut pk, mut pv] = [rows.len(), keys.len(), keys.len()].map(|n| vec![0.0; n]);
                let parts = Gradients::Separate(&mut pq, &mut pk, &mut pv);
                let (k, v) = (&block.k[keys.clone()], &block.v[keys.clone()]);
                let (out, dout, lse) = (&out[rows.clone()], &dout[rows.clone()], columns(lse, n, at, m));
                attention::backward(
                    &self.pair(&of_q, &of_k),
                    &queries[rows.clone()],
                    k,
                    v,
                    out,
                    &lse,
                    dout,
                    parts,
                );
                add_assign(&mut dq[rows], &pq);
                add_assign(&mut dk[keys.clone()], &pk);
                add_assign(&mut dv[keys], &pv);
            }
            // The gradients go on after the keys they are of, and in the last round come home.
            if size > 1 {
                let (to, from) = ((rank + 1) % size, (rank + size - 1) % size);
                self.ranks.send(to, KEY_GRADIENTS, &dk)?;
                self.ranks.send(to, KEY_GRADIENTS, &dv)?;
                let rows: usize = self.chunks((from + size - round) % size).iter().map(|c| c.len()).sum();
                for d in [&mut dk, &mut dv] {
                    d.resize(rows * kv_width, 0.0);
                    self.ranks.recv(from, KEY_GRADIENTS, d)?;
                }
            }
            if let Some(next) = next {
                block = self.arrive(next)?;
            }
        }
        let Layout { q, k, v } = self.whole.layout;
        match gradients {
            Gradients::Separate(to_q, to_k, to_v) => {
                to_q.copy_from_slice(&dq);
                to_k.copy_from_slice(&dk);
                to_v.copy_from_slice(&dv);
            }
            Gradients::Fused(dqkv) => {
                for (heads, from, width) in [(q, &dq, width), (k, &dk, kv_width), (v, &dv, kv_width)] {
                    self.spread(from, heads, width, dqkv);
                }
            }
        }
        Ok(())
    }

    fn own_block(&self, k: &[f32], v: &[f32], n: usize) -> Block {
        let ((_, width), layout) = (self.widths(), &self.whole.layout);
        let chunks = self.chunks(self.ranks.rank());
        Block { chunks, k: self.compact(k, layout.k, n, width), v: self.compact(v, layout.v, n, width) }
    }

    /// Sends the block to the next rank, and tells whose block comes in its place; nothing in the
    /// last round.
    fn pass_on(&self, block: &Block, round: usize) -> Result<Option<usize>> {
        let (rank, size) = (self.ranks.rank(), self.ranks.size());
        if round + 1 == size {
            return Ok(None);
        }
        self.ranks.send((rank + 1) % size, KEYS, &block.k)?;
        self.ranks.send((rank + 1) % size, KEYS, &block.v)?;
        Ok(Some((rank + size - round - 1) % size))
    }

    /// Receives the block of rank `of` from the rank before.
    fn arrive(&self, of: usize) -> Result<Block> {
        let (rank, size) = (self.ranks.rank(), self.ranks.size());
        let chunks = self.chunks(of);
        let len = chunks.iter().map(|c| c.len()).sum::<usize>() * self.widths().1;
        let (mut k, mut v) = (vec![0.0; len], vec![0.0; len]);
        for into in [&mut k, &mut v] {
            self.ranks.recv((rank + size - 1) % size, KEYS, into)?;
        }
        Ok(Block { chunks, k, v })
    }

    /// One projection's heads of `n` tokens, `width` elements each, in a matrix of their own.
    fn compact(&self, data: &[f32], heads: Heads, n: usize, width: usize) -> Vec<f32> {
        let group = width / self.whole.shape.kv_heads;
        let mut out = Vec::with_capacity(n * width);
        for row in data.chunks_exact(heads.row) {
            for g in 0..self.whole.shape.kv_heads {
                out.extend_from_slice(&row[heads.start + g * heads.group..][..group]);
            }
        }
        out
    }

    /// The inverse of [`Self::compact`].
    fn spread(&self, compact: &[f32], heads: Heads, width: usize, data: &mut [f32]) {
        let group = width / self.whole.shape.kv_heads;
        for (row, from) in data.chunks_exact_mut(heads.row).zip(compact.chunks_exact(width)) {
            for (g, from) in from.chunks_exact(group).enumerate() {
                row[heads.start + g * heads.group..][..group].copy_from_slice(from);
            }
        }
    }
}

/// Columns `at..at + m` of a matrix of rows of `n`.
fn columns(x: &[f32], n: usize, at: usize, m: usize) -> Vec<f32> {
    x.chunks_exact(n).flat_map(|row| &row[at..at + m]).copied().collect()
}

fn put_columns(x: &mut [f32], n: usize, at: usize, from: &[f32], m: usize) {
    for (row, from) in x.chunks_exact_mut(n).zip(from.chunks_exact(m)) {
        row[at..at + m].copy_from_slice(from);
    }
}
