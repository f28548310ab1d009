//! Causal grouped-query attention over a key/value cache cut into blocks.
//!
//! A block holds `block_size` positions of every key/value head: keys as `(G, D, S)`, so that
//! scores of neighbouring positions are neighbouring lanes, values as `(G, S, D)`. A row finds
//! its positions through its sequence's block table. Its result depends on its own position
//! only, never on the other rows, so prompts may be cut anywhere and batched with anything.
//!
//! Legend: `H` query heads, `G` key/value heads, `D` head width, `S` block size.

use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;
use rayon::prelude::*;

use crate::multiversion;
use crate::ops::softmax;

/// Sizes shared by all rows.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// H, a multiple of G.
    pub num_heads: usize,
    /// G.
    pub num_kv_heads: usize,
    /// D.
    pub head_dim: usize,
    /// S.
    pub block_size: usize,
    /// Attend to at most this many positions, oneself included.
    pub window: Option<usize>,
    /// Multiplies scores; usually `1 / sqrt(D)`.
    pub scale: f32,
}

impl Shape {
    /// Elements of one block of keys (or values).
    #[must_use]
    pub fn block_len(&self) -> usize {
        self.num_kv_heads * self.head_dim * self.block_size
    }

    /// First position a query at `position` sees.
    #[must_use]
    pub fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |w| (position + 1).saturating_sub(w))
    }
}

/// One query token.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// Holds the H query heads somewhere, see `offsets` of [`attention`].
    pub q: &'a [f32],
    /// Blocks of the sequence; covers `position`.
    pub table: &'a [u32],
    /// Index in the sequence; keys and values up to here are in the cache.
    pub position: usize,
}

/// What a cache may hold.
pub trait KvElement: Copy + Send + Sync {
    /// `n` zeros in pages that are only mapped when first written.
    fn zeros(n: usize) -> Vec<Self>;
    /// Rounds to the stored type.
    fn from_f32(x: f32) -> Self;
    /// `values` as f32, through `scratch` where they are not already.
    fn widen<'a>(values: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32];
}

impl KvElement for f32 {
    fn zeros(n: usize) -> Vec<Self> {
        vec![0.0; n]
    }
    fn from_f32(x: f32) -> Self {
        x
    }
    fn widen<'a>(values: &'a [Self], _: &'a mut Vec<f32>) -> &'a [f32] {
        values
    }
}

impl KvElement for f16 {
    fn zeros(n: usize) -> Vec<Self> {
        vec![0u16; n].reinterpret_into()
    }
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
    fn widen<'a>(values: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.resize(values.len(), 0.0);
        values.convert_to_f32_slice(scratch);
        scratch
    }
}

/// Stores key and value of head `head` for one position.
///
/// `keys` and `values` are the whole layer's cache, `k` and `v` have D elements.
pub fn store<T: KvElement>(
    shape: &Shape,
    keys: &mut [T],
    values: &mut [T],
    table: &[u32],
    position: usize,
    head: usize,
    (k, v): (&[f32], &[f32]),
) {
    let (d, s) = (shape.head_dim, shape.block_size);
    let base = table[position / s] as usize * shape.block_len() + head * d * s;
    let slot = position % s;
    for (i, &x) in k.iter().enumerate() {
        keys[base + i * s + slot] = T::from_f32(x);
    }
    for (stored, &x) in values[base + slot * d..][..d].iter_mut().zip(v) {
        *stored = T::from_f32(x);
    }
}

/// Work (multiply-adds) below which a second thread costs more than it brings.
const SERIAL_MACS: usize = 100_000;

/// Attention of every row; `out` is `(rows, H * D)`.
///
/// Query head `h` of a row is `q[offsets[h]..][..D]`.
pub fn attention<T: KvElement>(
    shape: &Shape,
    keys: &[T],
    values: &[T],
    rows: &[Row],
    offsets: &[usize],
    out: &mut [f32],
) {
    let (d, groups) = (shape.head_dim, shape.num_kv_heads);
    let per_group = shape.num_heads / groups;
    assert_eq!(out.len(), rows.len() * shape.num_heads * d, "out is (rows, H * D)");
    let one = |(i, out): (usize, &mut [f32])| {
        let (row, group) = (&rows[i / groups], i % groups);
        group_attention(shape, keys, values, row, &offsets[group * per_group..][..per_group], group, out);
    };
    let visible = |r: &Row| r.position + 1 - shape.first_visible(r.position);
    let macs = 2 * shape.num_heads * d * rows.iter().map(visible).sum::<usize>();
    if macs < SERIAL_MACS || rayon::current_num_threads() == 1 {
        out.chunks_exact_mut(per_group * d).enumerate().for_each(one);
    } else {
        out.par_chunks_exact_mut(per_group * d).enumerate().for_each(one);
    }
}

/// The query heads of one key/value head; `out` is `(H / G, D)`.
fn group_attention<T: KvElement>(
    shape: &Shape,
    keys: &[T],
    values: &[T],
    row: &Row,
    offsets: &[usize],
    group: usize,
    out: &mut [f32],
) {
    let (d, s) = (shape.head_dim, shape.block_size);
    let first = shape.first_visible(row.position);
    let (first_block, last_block) = (first / s, row.position / s);
    let skip = first - first_block * s;
    let visible = row.position + 1 - first;
    let padded = (last_block - first_block + 1) * s;
    let block_of = |b: usize| {
        let base = row.table[b] as usize * shape.block_len() + group * d * s;
        base..base + d * s
    };

    let mut scratch = Vec::new();
    let mut scores = vec![0.0f32; offsets.len() * padded]; // (H / G, blocks * S)
    for b in first_block..=last_block {
        let k = T::widen(&keys[block_of(b)], &mut scratch); // (D, S)
        for (h, &offset) in offsets.iter().enumerate() {
            let at = h * padded + (b - first_block) * s;
            score_block(&row.q[offset..offset + d], k, shape.scale, &mut scores[at..at + s]);
        }
    }
    for scores in scores.chunks_exact_mut(padded) {
        softmax(&mut scores[skip..skip + visible]);
    }
    out.fill(0.0);
    for b in first_block..=last_block {
        let v = T::widen(&values[block_of(b)], &mut scratch); // (S, D)
        // Slots of this block that are visible.
        let from = if b == first_block { skip } else { 0 };
        let to = if b == last_block { row.position % s + 1 } else { s };
        for (h, out) in out.chunks_exact_mut(d).enumerate() {
            let at = h * padded + (b - first_block) * s;
            weigh_block(&scores[at + from..at + to], &v[from * d..to * d], out);
        }
    }
}

/// Lanes that stay in registers while a loop runs over the other dimension.
const LANES: usize = 16;

multiversion! {
    /// `scores[j] = scale * Σ_i q[i] k[i, j]` for one block of keys `(D, S)`.
    fn score_block(q: &[f32], k: &[f32], scale: f32, scores: &mut [f32]) {
        let s = scores.len();
        let mut at = 0;
        while at + LANES <= s {
            let mut lanes = [0.0f32; LANES];
            for (q, k) in q.iter().zip(k.chunks_exact(s)) {
                let k = &k[at..at + LANES];
                for l in 0..LANES {
                    lanes[l] = q.mul_add(k[l], lanes[l]);
                }
            }
            for l in 0..LANES {
                scores[at + l] = scale * lanes[l];
            }
            at += LANES;
        }
        for j in at..s {
            let dot = q.iter().zip(k.chunks_exact(s)).fold(0.0f32, |sum, (q, k)| q.mul_add(k[j], sum));
            scores[j] = scale * dot;
        }
    }
}

multiversion! {
    /// `out[i] += Σ_j p[j] v[j, i]` for the visible values of one block `(S, D)`.
    fn weigh_block(p: &[f32], v: &[f32], out: &mut [f32]) {
        let d = out.len();
        let mut at = 0;
        while at + LANES <= d {
            let mut lanes = [0.0f32; LANES];
            lanes.copy_from_slice(&out[at..at + LANES]);
            for (p, v) in p.iter().zip(v.chunks_exact(d)) {
                let v = &v[at..at + LANES];
                for l in 0..LANES {
                    lanes[l] = p.mul_add(v[l], lanes[l]);
                }
            }
            out[at..at + LANES].copy_from_slice(&lanes);
            at += LANES;
        }
        for i in at..d {
            out[i] = p.iter().zip(v.chunks_exact(d)).fold(out[i], |sum, (p, v)| p.mul_add(v[i], sum));
        }
    }
}

/// The plain version over unpaged keys and values `(T, G, D)` of one sequence, in f64.
///
/// `q` is `(H, D)` at position `position`.
#[must_use]
pub fn reference(shape: &Shape, q: &[f32], keys: &[f32], values: &[f32], position: usize) -> Vec<f32> {
    let (d, g) = (shape.head_dim, shape.num_kv_heads);
    let per_group = shape.num_heads / g;
    let at = |cache: &[f32], t: usize, h: usize| -> Vec<f64> {
        cache[(t * g + h / per_group) * d..][..d].iter().map(|&x| f64::from(x)).collect()
    };
    let mut out = Vec::with_capacity(q.len());
    for (h, q) in q.chunks_exact(d).enumerate() {
        let visible = shape.first_visible(position)..position + 1;
        let score = |t| q.iter().zip(at(keys, t, h)).map(|(&q, k)| f64::from(q) * k).sum::<f64>();
        let scores: Vec<f64> = visible.clone().map(|t| f64::from(shape.scale) * score(t)).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        let mut sum = vec![0.0; d];
        for (t, w) in visible.zip(&weights) {
            sum.iter_mut().zip(at(values, t, h)).for_each(|(s, v)| *s += w / total * v);
        }
        out.extend(sum.iter().map(|&x| x as f32));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// A sequence of `t` tokens in scattered blocks: every row at once, then each alone.
    fn check<T: KvElement>(shape: Shape, t: usize, tolerance: f32) {
        let mut rng = Rng::new(t as u64, 4);
        let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.normal() as f32).collect() };
        let (d, g, h) = (shape.head_dim, shape.num_kv_heads, shape.num_heads);
        let (q, k, v) = (random(t * h * d), random(t * g * d), random(t * g * d));
        let blocks = t.div_ceil(shape.block_size);
        let table: Vec<u32> = (0..blocks as u32).rev().map(|b| 2 * b + 1).collect();
        let size = 2 * blocks * shape.block_len();
        let (mut keys, mut values) = (T::zeros(size), T::zeros(size));
        for position in 0..t {
            for head in 0..g {
                let at = (position * g + head) * d..(position * g + head + 1) * d;
                store(&shape, &mut keys, &mut values, &table, position, head, (&k[at.clone()], &v[at]));
            }
        }
        let offsets: Vec<usize> = (0..h).map(|i| i * d).collect();
        let row = |position: usize| Row { q: &q[position * h * d..][..h * d], table: &table, position };
        let rows: Vec<Row> = (0..t).map(row).collect();
        let mut out = vec![0.0; t * h * d];
        attention(&shape, &keys, &values, &rows, &offsets, &mut out);
        for position in 0..t {
            let got = &out[position * h * d..][..h * d];
            let want = reference(&shape, rows[position].q, &k, &v, position);
            for (a, b) in got.iter().zip(&want) {
                assert!((a - b).abs() < tolerance, "{shape:?} t={t} position {position}: {a} {b}");
            }
            let mut alone = vec![0.0; h * d];
            attention(&shape, &keys, &values, &rows[position..=position], &offsets, &mut alone);
            assert!(alone == got, "position {position} differs alone");
        }
    }

    #[test]
    fn pages_agree_with_the_reference() {
        for (num_heads, num_kv_heads, head_dim) in [(4, 2, 16), (3, 1, 8), (2, 2, 36)] {
            for block_size in [1, 16, 32] {
                for window in [None, Some(1), Some(7), Some(40)] {
                    let scale = 1.0 / (head_dim as f32).sqrt();
                    let shape = Shape { num_heads, num_kv_heads, head_dim, block_size, window, scale };
                    for t in [1, 16, 50] {
                        check::<f32>(shape, t, 1e-5);
                        check::<f16>(shape, t, 5e-3);
                    }
                }
            }
        }
    }
}
