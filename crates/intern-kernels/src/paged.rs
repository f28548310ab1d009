//! Causal grouped-query attention over a key/value cache cut into blocks.
//!
//! A block holds `block_size` positions of every key/value head: keys as `(G, D, S)`, so that
//! scores of neighbouring positions are neighbouring lanes, values as `(G, S, D)`. A row finds
//! its positions through its sequence's block table. Its result depends on its own position
//! only, never on the other rows, so prompts may be cut anywhere and batched with anything.
//!
//! Legend: `H` query heads, `G` key/value heads, `D` head width, `S` block size.

mod cache;

use std::array::from_fn;
use std::cell::Cell;
use std::ops::Range;

use crate::multiversion;
use crate::ops::softmax;
use crate::pool::{Pool, Shareable};

pub use cache::{KvElement, LayerCache, NewRow, rounded, store};

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

/// Work (multiply-adds) below which a second thread costs more than it brings.
const SERIAL_MACS: usize = 100_000;

/// Attention of every row; `out` is `(rows, H * D)`.
///
/// Query head `h` of a row is `q[offsets[h]..][..D]`. Neighbouring rows of one sequence share
/// each block they read.
pub fn attention<T: KvElement>(
    pool: &Pool,
    shape: &Shape,
    cache: &LayerCache<T>,
    rows: &[Row],
    offsets: &[usize],
    out: &mut [f32],
) {
    let (d, groups, width) = (shape.head_dim, shape.num_kv_heads, shape.num_heads * shape.head_dim);
    let per_group = shape.num_heads / groups;
    assert_eq!(out.len(), rows.len() * width, "out is (rows, H * D)");
    // Tiles of rows of one sequence, at most as many queries as registers hold.
    let most = (tile_queries() / per_group).max(1);
    let mut tiles: Vec<&[Row]> = Vec::new();
    let mut rest = rows;
    while let Some(first) = rest.first() {
        let same = |r: &&Row| std::ptr::eq(r.table, first.table);
        let (tile, next) = rest.split_at(rest.iter().take(most).take_while(same).count());
        tiles.push(tile);
        rest = next;
    }
    let starts: Vec<usize> = tiles
        .iter()
        .scan(0, |at, tile| {
            *at += tile.len();
            Some(*at - tile.len())
        })
        .collect();
    let out = Shareable(out.as_mut_ptr());
    let one = |i: usize| {
        let (tile, group) = (i / groups, i % groups);
        let heads = &offsets[group * per_group..][..per_group];
        let mut scratch = SCRATCH.take();
        tile_attention(shape, cache, tiles[tile], heads, group, &mut scratch);
        for (r, attended) in scratch.attended.chunks_exact(per_group * d).enumerate() {
            let at = (starts[tile] + r) * width + group * per_group * d;
            // SAFETY: tiles do not share rows, groups do not share columns, all in `out`.
            unsafe { std::slice::from_raw_parts_mut(out.get().add(at), per_group * d) }
                .copy_from_slice(attended);
        }
        SCRATCH.set(scratch);
    };
    let visible = |r: &Row| r.position + 1 - shape.first_visible(r.position);
    let macs = 2 * width * rows.iter().map(visible).sum::<usize>();
    if macs < SERIAL_MACS {
        (0..tiles.len() * groups).for_each(one);
    } else {
        pool.run(tiles.len() * groups, one);
    }
}

/// Queries computed together: one accumulator register each, and enough to keep them busy.
fn tile_queries() -> usize {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        return 8;
    }
    4
}

/// Working memory of one thread, kept from call to call.
#[derive(Default)]
struct Scratch {
    /// (queries, padded positions)
    scores: Vec<f32>,
    /// (queries, D)
    attended: Vec<f32>,
    /// A widened block.
    block: Vec<f32>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// The query heads of one key/value head for rows of one sequence: `scratch.attended` becomes
/// `(rows, H / G, D)`.
fn tile_attention<T: KvElement>(
    shape: &Shape,
    cache: &LayerCache<T>,
    rows: &[Row],
    heads: &[usize],
    group: usize,
    scratch: &mut Scratch,
) {
    let (d, s) = (shape.head_dim, shape.block_size);
    let Scratch { scores, attended, block } = scratch;
    let table = rows[0].table;
    let first = rows.iter().map(|r| shape.first_visible(r.position)).min().unwrap_or(0);
    let last = rows.iter().map(|r| r.position).max().unwrap_or(0);
    let (first_block, last_block) = (first / s, last / s);
    let padded = (last_block - first_block + 1) * s;
    let span = |b: usize| {
        let base = table[b] as usize * shape.block_len() + group * d * s;
        base..base + d * s
    };

    let queries = rows.len() * heads.len();
    let q = |i: usize| &rows[i / heads.len()].q[heads[i % heads.len()]..][..d];
    scores.resize(queries * padded, 0.0);
    for b in first_block..=last_block {
        let k = T::widen(&cache.keys[span(b)], block); // (D, S)
        let at = (b - first_block) * s;
        in_tiles(queries, |i, n| match n {
            1 => score_1([q(i)], k, shape.scale, &mut scores[i * padded + at..], padded),
            2 => score_2([q(i), q(i + 1)], k, shape.scale, &mut scores[i * padded + at..], padded),
            4 => score_4(from_fn(|j| q(i + j)), k, shape.scale, &mut scores[i * padded + at..], padded),
            _ => score_8(from_fn(|j| q(i + j)), k, shape.scale, &mut scores[i * padded + at..], padded),
        });
    }
    // Scores of vectors that were divided by a scale, and shares of such values.
    let rescale = |scales: &[f32], scores: &mut [f32]| {
        for b in (first_block..=last_block).filter(|_| T::SCALED) {
            let (scales, at) = (cache.scales_of(shape, scales, table[b], group), (b - first_block) * s);
            for scores in scores.chunks_exact_mut(padded) {
                scores[at..at + s].iter_mut().zip(scales).for_each(|(score, scale)| *score *= scale);
            }
        }
    };
    rescale(&cache.key_scales, scores);
    // What row `i / H * G` sees, counted from the first block's start.
    let visible = |i: usize| {
        let position = rows[i / heads.len()].position;
        shape.first_visible(position) - first_block * s..position + 1 - first_block * s
    };
    for (i, scores) in scores.chunks_exact_mut(padded).enumerate() {
        softmax(&mut scores[visible(i)]);
    }
    rescale(&cache.value_scales, scores);
    attended.clear();
    attended.resize(queries * d, 0.0);
    for b in first_block..=last_block {
        let v = T::widen(&cache.values[span(b)], block); // (S, D)
        let at = (b - first_block) * s;
        // The part of this block that query `i` sees.
        let part = |i: usize| {
            let seen = visible(i);
            seen.start.clamp(at, at + s) - at..seen.end.clamp(at, at + s) - at
        };
        in_tiles(queries, |i, n| {
            let same = part(i);
            let (p, out) = (&scores[i * padded + at..], &mut attended[i * d..(i + n) * d]);
            if (i..i + n).all(|i| part(i) == same) {
                match n {
                    1 => weigh_1(p, padded, same, v, out),
                    2 => weigh_2(p, padded, same, v, out),
                    4 => weigh_4(p, padded, same, v, out),
                    _ => weigh_8(p, padded, same, v, out),
                }
            } else {
                for j in 0..n {
                    weigh_1(&p[j * padded..], padded, part(i + j), v, &mut out[j * d..][..d]);
                }
            }
        });
    }
}

/// Calls `f(start, n)` for runs of 8, 4, 2 or 1 that cover `0..count`.
fn in_tiles(count: usize, mut f: impl FnMut(usize, usize)) {
    let mut start = 0;
    while start < count {
        let n = [8, 4, 2, 1].into_iter().find(|n| start + n <= count).expect("one always fits");
        f(start, n);
        start += n;
    }
}

/// Lanes that stay in registers while a loop runs over the other dimension.
const LANES: usize = 16;

/// The two products for a fixed number of queries. An element is the same chain of
/// multiply-adds for each of them.
macro_rules! tile_kernels {
    ($score:ident, $weigh:ident, $n:literal) => {
        multiversion! {
            /// `scores[q][j] = scale * Σ_i q[i] k[i, j]` for one block of keys `(D, S)`; the scores
            /// of a query are `stride` apart.
            fn $score(q: [&[f32]; $n], k: &[f32], scale: f32, scores: &mut [f32], stride: usize) {
                let d = q[0].len();
                let s = k.len() / d;
                let mut at = 0;
                while at + LANES <= s {
                    let mut lanes = [[0.0f32; LANES]; $n];
                    for i in 0..d {
                        let k: &[f32; LANES] = k[i * s + at..][..LANES].try_into().expect("as many lanes");
                        for n in 0..$n {
                            let q = q[n][i];
                            for l in 0..LANES {
                                lanes[n][l] = q.mul_add(k[l], lanes[n][l]);
                            }
                        }
                    }
                    for n in 0..$n {
                        for l in 0..LANES {
                            scores[n * stride + at + l] = scale * lanes[n][l];
                        }
                    }
                    at += LANES;
                }
                for j in at..s {
                    for n in 0..$n {
                        let dot = (0..d).fold(0.0f32, |sum, i| q[n][i].mul_add(k[i * s + j], sum));
                        scores[n * stride + j] = scale * dot;
                    }
                }
            }
        }
        multiversion! {
            /// `out[q, i] += Σ_j p[q][j] v[j, i]` over slots `part` of one block `(S, D)`.
            fn $weigh(p: &[f32], stride: usize, part: Range<usize>, v: &[f32], out: &mut [f32]) {
                let d = out.len() / $n;
                let mut at = 0;
                while at + LANES <= d {
                    let mut lanes = [[0.0f32; LANES]; $n];
                    for n in 0..$n {
                        lanes[n].copy_from_slice(&out[n * d + at..][..LANES]);
                    }
                    for j in part.clone() {
                        let v: &[f32; LANES] = v[j * d + at..][..LANES].try_into().expect("as many lanes");
                        for n in 0..$n {
                            let p = p[n * stride + j];
                            for l in 0..LANES {
                                lanes[n][l] = p.mul_add(v[l], lanes[n][l]);
                            }
                        }
                    }
                    for n in 0..$n {
                        out[n * d + at..][..LANES].copy_from_slice(&lanes[n]);
                    }
                    at += LANES;
                }
                for i in at..d {
                    for n in 0..$n {
                        let sum = out[n * d + i];
                        out[n * d + i] =
                            part.clone().fold(sum, |sum, j| p[n * stride + j].mul_add(v[j * d + i], sum));
                    }
                }
            }
        }
    };
}

tile_kernels!(score_1, weigh_1, 1);
tile_kernels!(score_2, weigh_2, 2);
tile_kernels!(score_4, weigh_4, 4);
tile_kernels!(score_8, weigh_8, 8);

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
    use half::f16;

    use super::*;
    use crate::rng::Rng;

    /// A sequence of `t` random tokens; see [`check_cache`].
    fn check<T: KvElement>(shape: Shape, t: usize, tolerance: f32) {
        let mut rng = Rng::new(t as u64, 4);
        let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.normal() as f32).collect() };
        let (d, g, h) = (shape.head_dim, shape.num_kv_heads, shape.num_heads);
        let (q, k, v) = (random(t * h * d), random(t * g * d), random(t * g * d));
        check_cache::<T>(shape, (&q, &k, &v), tolerance);
    }

    /// Queries `(T, H, D)`, keys and values `(T, G, D)` of a sequence in scattered blocks: every row
    /// at once, then each alone. The kernels are near the plain version over what the cache holds,
    /// and within `tolerance` of the plain version over what was put in.
    #[track_caller]
    fn check_cache<T: KvElement>(shape: Shape, (q, k, v): (&[f32], &[f32], &[f32]), tolerance: f32) {
        let (d, g, h) = (shape.head_dim, shape.num_kv_heads, shape.num_heads);
        let t = q.len() / (h * d);
        let blocks = t.div_ceil(shape.block_size);
        let table: Vec<u32> = (0..blocks as u32).rev().map(|b| 2 * b + 1).collect();
        let mut cache = LayerCache::<T>::new(&shape, 2 * blocks);
        let pool = Pool::new(2).unwrap();
        // A row of keys, then its values.
        let kv: Vec<Vec<f32>> =
            k.chunks_exact(g * d).zip(v.chunks_exact(g * d)).map(|(k, v)| [k, v].concat()).collect();
        let new: Vec<NewRow> =
            kv.iter().enumerate().map(|(position, kv)| NewRow { kv, table: &table, position }).collect();
        let at: Vec<usize> = (0..2 * g).map(|i| i * d).collect();
        store(&pool, &shape, &mut cache, &new, (&at[..g], &at[g..]));
        let offsets: Vec<usize> = (0..h).map(|i| i * d).collect();
        let row = |position: usize| Row { q: &q[position * h * d..][..h * d], table: &table, position };
        let rows: Vec<Row> = (0..t).map(row).collect();
        let mut out = vec![0.0; t * h * d];
        attention(&pool, &shape, &cache, &rows, &offsets, &mut out);
        let held = |x: &[f32]| -> Vec<f32> { x.chunks_exact(d).flat_map(rounded::<T>).collect() };
        let (held_k, held_v) = (held(k), held(v));
        let size = v.iter().fold(1.0f32, |max, x| max.max(x.abs()));
        for position in 0..t {
            let got = &out[position * h * d..][..h * d];
            let want = reference(&shape, rows[position].q, &held_k, &held_v, position);
            let exact = reference(&shape, rows[position].q, k, v, position);
            for ((a, b), c) in got.iter().zip(&want).zip(&exact) {
                assert!((a - b).abs() < 2e-5 * size, "{shape:?} t={t} position {position}: {a} {b}");
                assert!((a - c).abs() < tolerance, "{shape:?} t={t} position {position}: {a} {c}");
            }
            let mut alone = vec![0.0; h * d];
            attention(&pool, &shape, &cache, &rows[position..=position], &offsets, &mut alone);
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
                        check::<i8>(shape, t, 6e-2);
                    }
                }
            }
        }
    }

    #[test]
    fn eight_bits_hold_vectors_of_any_size() {
        let shape =
            Shape { num_heads: 2, num_kv_heads: 1, head_dim: 16, block_size: 16, window: None, scale: 0.25 };
        let mut rng = Rng::new(1, 1);
        let mut vectors = |sizes: &[f32], heads: usize| -> Vec<f32> {
            let one = |&size: &f32| (0..heads * 16).map(|_| size * rng.normal() as f32).collect::<Vec<_>>();
            sizes.iter().flat_map(one).collect()
        };
        // Nothing, almost nothing, and as much as a score stands.
        let sizes = [0.0, 1e-40, 1e-30, 1.0, 30.0, 0.0, 1e-3, 1.0];
        let (q, k, v) = (vectors(&[1.0; 8], 2), vectors(&sizes, 1), vectors(&sizes, 1));
        check_cache::<i8>(shape, (&q, &k, &v), 3.0);
        // One outlier per vector: the rest rounds to what the outlier leaves.
        let mut k = vectors(&[0.1; 8], 1);
        k.iter_mut().step_by(16).for_each(|x| *x = 12.7);
        check_cache::<i8>(shape, (&q, &k, &vectors(&[1.0; 8], 1)), 0.5);
        assert_eq!(rounded::<i8>(&[12.7, 0.04, -0.06, 0.0]), [12.7, 0.0, -0.1, 0.0]);
    }
}
