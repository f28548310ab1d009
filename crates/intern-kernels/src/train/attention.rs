//! Causal grouped-query attention with RoPE inside, over packed documents; forward and backward.
//!
//! Follows FlashAttention (Dao et al., 2022): scores live in a block at a time, the forward pass
//! keeps only each row's log-sum-exp, and the backward pass recomputes the rest. A token attends
//! to the tokens from its document's start (or its window's) up to itself; blocks of keys outside
//! that range are never touched. Queries, keys and values are read in place, fused or separate.
//!
//! One task is one row of the batch and one key/value head with its group of query heads.
//!
//! Queries and keys may be parts of the rows ([`Context::queries`], [`Context::keys`]): outputs of
//! the same queries over different keys are put together by [`merge`], as ring attention does (Liu
//! et al., 2023).

use super::embedding::Shared;
use super::gemm::{Into, View, ViewMut, matmul_here};
use super::math::{dot, exp, max, sum};
use super::rope::{rotate, rotate_back};
use crate::multiversion;
use rayon::prelude::*;

/// Queries taken together; keys before the block's diagonal cost no masking.
const QUERIES: usize = 32;
/// Keys taken together.
const KEYS: usize = 512;

/// Sizes of one attention call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows of the batch.
    pub b: usize,
    /// Tokens per row, of which queries and keys may be parts.
    pub t: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Attend to at most this many tokens, oneself included.
    pub window: Option<usize>,
}

/// Where one projection's heads lie in a row of its matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Elements from one token's row to the next.
    pub row: usize,
    /// Where the first head starts.
    pub start: usize,
    /// Elements from one key/value head's group to the next; within a group heads are adjacent.
    pub group: usize,
}

/// The places of queries, keys and values: three matrices or one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Query heads.
    pub q: Heads,
    /// Key heads.
    pub k: Heads,
    /// Value heads.
    pub v: Heads,
}

impl Layout {
    /// Three matrices: `(N, H D)`, `(N, G D)`, `(N, G D)`.
    #[must_use]
    pub fn separate(shape: &Shape) -> Self {
        let (d, per_group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let kv = Heads { row: shape.kv_heads * d, start: 0, group: d };
        Self { q: Heads { row: shape.heads * d, start: 0, group: per_group * d }, k: kv, v: kv }
    }

    /// One matrix `(N, (H + 2 G) D)`: for each key/value head its queries, its key, its value.
    #[must_use]
    pub fn fused(shape: &Shape) -> Self {
        let (d, per_group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let (row, group) = ((shape.heads + 2 * shape.kv_heads) * d, (per_group + 2) * d);
        let at = |slot: usize| Heads { row, start: slot * d, group };
        Self { q: at(0), k: at(per_group), v: at(per_group + 1) }
    }
}

/// What attention knows besides the projections.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Sizes.
    pub shape: Shape,
    /// Places of the heads.
    pub layout: Layout,
    /// For every token `(b, t)`, the index in its row where its document starts.
    pub starts: &'a [u32],
    /// The first of each row's tokens that are queries, and one past the last.
    pub queries: (usize, usize),
    /// The same of those that are keys.
    pub keys: (usize, usize),
    /// Cosine of position times frequency, `(positions, D/2)`.
    pub cos: &'a [f32],
    /// Sine of the same.
    pub sin: &'a [f32],
}

impl Context<'_> {
    /// First key that query `i` of row `row` sees.
    fn first_key(&self, row: usize, i: usize) -> usize {
        let start = self.starts[row * self.shape.t + i] as usize;
        self.shape.window.map_or(start, |w| start.max((i + 1).saturating_sub(w)))
    }

    fn check(&self, q: &[f32], k: &[f32], v: &[f32]) {
        let s = &self.shape;
        let d = s.head_dim;
        assert!(self.queries.1 <= s.t && self.keys.1 <= s.t, "queries and keys are tokens of the rows");
        let (nq, nk) = (s.b * len(self.queries), s.b * len(self.keys));
        assert!(s.heads.is_multiple_of(s.kv_heads) && d.is_multiple_of(2), "whole groups and even heads");
        let per_group = s.heads / s.kv_heads;
        for (name, data, heads, width, n) in [
            ("q", q, self.layout.q, per_group * d, nq),
            ("k", k, self.layout.k, d, nk),
            ("v", v, self.layout.v, d, nk),
        ] {
            let last = heads.start + (s.kv_heads - 1) * heads.group + width;
            assert!(last <= heads.row && data.len() == n * heads.row, "{name} holds {n} rows of its heads");
        }
        assert_eq!(self.starts.len(), s.b * s.t, "one document start per token");
        assert_eq!(self.cos.len(), self.sin.len(), "tables of one size");
        for (i, &start) in self.starts.iter().enumerate() {
            let (i, start) = (i % s.t, start as usize);
            assert!(start <= i && (i - start + 1) * d / 2 <= self.cos.len(), "position of token {i}");
        }
    }

    /// Copies one head of the `tokens` of `row`, rotated to their positions and scaled, as `(T, D)`.
    #[allow(clippy::too_many_arguments)]
    fn gather(
        &self,
        data: &[f32],
        heads: Heads,
        row: usize,
        head: usize,
        tokens: (usize, usize),
        rotation: Option<f32>,
        out: &mut [f32],
    ) {
        let (t, d) = (len(tokens), self.shape.head_dim);
        for (i, out) in out.chunks_exact_mut(d).enumerate() {
            let x = &data[(row * t + i) * heads.row + head..][..d];
            match rotation {
                Some(scale) => {
                    let (cos, sin) = self.angles(row, tokens.0 + i);
                    rotate(x, cos, sin, scale, out);
                }
                None => out.copy_from_slice(x),
            }
        }
    }

    fn angles(&self, row: usize, i: usize) -> (&[f32], &[f32]) {
        let half = self.shape.head_dim / 2;
        let at = (i - self.starts[row * self.shape.t + i] as usize) * half;
        (&self.cos[at..at + half], &self.sin[at..at + half])
    }

    /// Offsets of query head `s` of group `g`, and of its key and value heads.
    fn offsets(&self, g: usize, s: usize) -> (usize, usize, usize) {
        let l = &self.layout;
        let d = self.shape.head_dim;
        (l.q.start + g * l.q.group + s * d, l.k.start + g * l.k.group, l.v.start + g * l.v.group)
    }

    /// Blocks of queries of `row` with the first key any of them sees.
    fn query_blocks(&self, row: usize) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        let (start, end) = self.queries;
        (start..end).step_by(QUERIES).map(move |from| {
            // Starts never decrease along a row, so the first query sees the furthest back.
            (from, end.min(from + QUERIES), self.first_key(row, from).max(self.keys.0))
        })
    }
}

fn len((from, to): (usize, usize)) -> usize {
    to - from
}

/// Puts together two outputs `(T, H D)` of the same queries over different keys, with the
/// log-sum-exps `(H, T)` of their scores: `out` and `lse` become those over all of them. A query
/// that saw no key has a log-sum-exp of minus infinity.
pub fn merge(out: &mut [f32], lse: &mut [f32], more: &[f32], more_lse: &[f32], heads: usize) {
    let (t, row) = (lse.len() / heads, out.len() / (lse.len() / heads).max(1));
    assert!(
        out.len() == more.len() && lse.len() == more_lse.len() && row.is_multiple_of(heads),
        "same queries"
    );
    let d = row / heads;
    for (i, (out, more)) in out.chunks_exact_mut(row).zip(more.chunks_exact(row)).enumerate() {
        for head in 0..heads {
            let (old, new) = (&mut lse[head * t + i], more_lse[head * t + i]);
            if new == f32::NEG_INFINITY {
                continue;
            }
            let top = old.max(new);
            let (keep, add) = ((*old - top).exp(), (new - top).exp());
            let total = keep + add;
            *old = top + total.ln();
            let of_head = head * d..(head + 1) * d;
            for (o, m) in out[of_head.clone()].iter_mut().zip(&more[of_head]) {
                *o = (*o * keep + m * add) / total;
            }
        }
    }
}

/// `out` `(N, H D)` and `lse` `(B, H, T)` of the queries: attention output and log-sum-exp of each
/// query's scores.
pub fn forward(ctx: &Context, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32], lse: &mut [f32]) {
    let Shape { b, heads, kv_heads, head_dim: d, .. } = ctx.shape;
    ctx.check(q, k, v);
    let (t, q0) = (len(ctx.queries), ctx.queries.0);
    assert!(out.len() == b * t * heads * d && lse.len() == b * heads * t, "outputs of the shape");
    let (out, lse) = (Shared(out.as_mut_ptr()), Shared(lse.as_mut_ptr()));
    (0..b * kv_heads).into_par_iter().for_each_init(
        || Scratch::new(t, len(ctx.keys), d),
        |scratch, task| {
            let (row, g) = (task / kv_heads, task % kv_heads);
            let Scratch { q: qs, k: ks, v: vs, scores, acc, .. } = scratch;
            let (_, k_at, v_at) = ctx.offsets(g, 0);
            ctx.gather(k, ctx.layout.k, row, k_at, ctx.keys, Some(1.0), ks);
            ctx.gather(v, ctx.layout.v, row, v_at, ctx.keys, None, vs);
            for s in 0..heads / kv_heads {
                let head = g * (heads / kv_heads) + s;
                let scale = Some(1.0 / (d as f32).sqrt());
                ctx.gather(q, ctx.layout.q, row, ctx.offsets(g, s).0, ctx.queries, scale, qs);
                // SAFETY: this task alone writes the log-sum-exps of this row and head.
                let lse = unsafe { lse.slice((row * heads + head) * t, t) };
                for (from, to, first) in ctx.query_blocks(row) {
                    let acc = &mut acc[..(to - from) * d];
                    forward_block(
                        ctx,
                        row,
                        from,
                        to,
                        first,
                        qs,
                        ks,
                        vs,
                        scores,
                        acc,
                        &mut lse[from - q0..to - q0],
                    );
                    for (i, acc) in (from - q0..to - q0).zip(acc.chunks_exact(d)) {
                        // SAFETY: this task alone writes this head of this row's tokens.
                        let out = unsafe { out.slice(((row * t + i) * heads + head) * d, d) };
                        out.copy_from_slice(acc);
                    }
                }
            }
        },
    );
}

/// One block of queries against all keys it sees; `acc` becomes the output, `lse` its normalizer.
#[allow(clippy::too_many_arguments)]
fn forward_block(
    ctx: &Context,
    row: usize,
    from: usize,
    to: usize,
    first: usize,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    scores: &mut [f32],
    acc: &mut [f32],
    lse: &mut [f32],
) {
    let d = ctx.shape.head_dim;
    let m = to - from;
    let (q0, first_row, end) = (ctx.queries.0, ctx.keys.0, to.min(ctx.keys.1));
    let mut top = [f32::NEG_INFINITY; QUERIES];
    let mut total = [0.0f32; QUERIES];
    acc.fill(0.0);
    for k0 in (first..end).step_by(KEYS) {
        let k1 = end.min(k0 + KEYS);
        let n = k1 - k0;
        let rows = (k0 - first_row) * d..(k1 - first_row) * d;
        let scores = &mut scores[..m * n];
        let q = View::new(&q[(from - q0) * d..(to - q0) * d], m, d);
        let keys = View::new(&k[rows.clone()], n, d);
        matmul_here(ViewMut::new(scores, m, n), Into::Overwrite, 1.0, q, keys.t());
        for (r, p) in scores.chunks_exact_mut(n).enumerate() {
            let (low, high) = seen(ctx, row, from + r, k0, k1);
            let shrink = softmax_step(p, low, high, &mut top[r], &mut total[r]);
            if shrink != 1.0 {
                acc[r * d..(r + 1) * d].iter_mut().for_each(|a| *a *= shrink);
            }
        }
        let (p, v) = (View::new(scores, m, n), View::new(&v[rows], n, d));
        matmul_here(ViewMut::new(acc, m, d), Into::Add, 1.0, p, v);
    }
    for r in 0..m {
        // A query that sees none of these keys keeps an output of zero.
        let inverse = if total[r] > 0.0 { 1.0 / total[r] } else { 0.0 };
        acc[r * d..(r + 1) * d].iter_mut().for_each(|a| *a *= inverse);
        lse[r] = top[r] + total[r].ln();
    }
}

/// The part of keys `k0..k1` that query `i` sees, relative to `k0`.
fn seen(ctx: &Context, row: usize, i: usize, k0: usize, k1: usize) -> (usize, usize) {
    let low = ctx.first_key(row, i).clamp(k0, k1) - k0;
    let high = (i + 1).clamp(k0, k1) - k0;
    (low.min(high), high)
}

multiversion! {
    /// Turns scores into unnormalized probabilities relative to the running maximum, zero outside
    /// `low..high`; returns the factor by which earlier sums shrink.
    fn softmax_step(p: &mut [f32], low: usize, high: usize, top: &mut f32, total: &mut f32) -> f32 {
        p[..low].fill(0.0);
        p[high..].fill(0.0);
        let p = &mut p[low..high];
        if p.is_empty() {
            return 1.0;
        }
        let old = *top;
        let new = max(p).max(old);
        for x in p.iter_mut() {
            *x = exp(*x - new);
        }
        let shrink = if old == f32::NEG_INFINITY { 0.0 } else { exp(old - new) };
        *top = new;
        *total = *total * shrink + sum(p);
        shrink
    }
}

/// Where the gradients of queries, keys and values go: like the inputs, three matrices or one.
pub enum Gradients<'a> {
    /// `dq` `(N, H D)`, `dk` and `dv` `(N, G D)`.
    Separate(&'a mut [f32], &'a mut [f32], &'a mut [f32]),
    /// `dqkv` `(N, (H + 2 G) D)`.
    Fused(&'a mut [f32]),
}

/// Gradients of [`forward`]; every element of `grads` is written. Where `keys` are a part, `out` and
/// `lse` are those over all keys, and the gradients what these keys contribute.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    ctx: &Context,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    lse: &[f32],
    dout: &[f32],
    grads: Gradients,
) {
    let Shape { b, heads, kv_heads, head_dim: d, .. } = ctx.shape;
    ctx.check(q, k, v);
    let (t, q0, t_keys, k0) = (len(ctx.queries), ctx.queries.0, len(ctx.keys), ctx.keys.0);
    let n = b * t * heads * d;
    assert!(out.len() == n && dout.len() == n && lse.len() == b * heads * t, "outputs of the shape");
    let [dq, dk, dv] = match grads {
        Gradients::Separate(dq, dk, dv) => {
            assert!(
                dq.len() == q.len() && dk.len() == k.len() && dv.len() == v.len(),
                "gradients like inputs"
            );
            [dq, dk, dv].map(|s| Shared(s.as_mut_ptr()))
        }
        Gradients::Fused(dqkv) => {
            assert!(dqkv.len() == q.len() && ctx.layout.q.row == ctx.layout.k.row, "gradients like inputs");
            [Shared(dqkv.as_mut_ptr()); 3]
        }
    };
    let scale = 1.0 / (d as f32).sqrt();
    (0..b * kv_heads).into_par_iter().for_each_init(
        || Scratch::new(t, t_keys, d),
        |x, task| {
            let (row, g) = (task / kv_heads, task % kv_heads);
            let (_, k_at, v_at) = ctx.offsets(g, 0);
            ctx.gather(k, ctx.layout.k, row, k_at, ctx.keys, Some(1.0), &mut x.k);
            ctx.gather(v, ctx.layout.v, row, v_at, ctx.keys, None, &mut x.v);
            x.dk.fill(0.0);
            x.dv.fill(0.0);
            let o = Heads { row: heads * d, start: 0, group: 0 };
            for s in 0..heads / kv_heads {
                let head = g * (heads / kv_heads) + s;
                let q_at = ctx.offsets(g, s).0;
                ctx.gather(q, ctx.layout.q, row, q_at, ctx.queries, Some(scale), &mut x.q);
                ctx.gather(dout, o, row, head * d, ctx.queries, None, &mut x.dout);
                let lse = &lse[(row * heads + head) * t..][..t];
                for (from, to, first) in ctx.query_blocks(row) {
                    for i in from - q0..to - q0 {
                        let o = &out[((row * t + i) * heads + head) * d..][..d];
                        x.delta[i - (from - q0)] = delta(o, &x.dout[i * d..(i + 1) * d]);
                    }
                    backward_block(ctx, row, from, to, first, lse, x);
                    for (i, dq_rotated) in (from - q0..to - q0).zip(x.acc.chunks_exact(d)) {
                        let (cos, sin) = ctx.angles(row, q0 + i);
                        // SAFETY: this task alone writes this query head of this row's tokens.
                        let dq = unsafe { dq.slice((row * t + i) * ctx.layout.q.row + q_at, d) };
                        rotate_back(dq_rotated, cos, sin, scale, dq);
                    }
                }
            }
            for i in 0..t_keys {
                let (cos, sin) = ctx.angles(row, k0 + i);
                // SAFETY: this task alone writes this key and this value head of this row's tokens.
                let (dk, dv) = unsafe {
                    (
                        dk.slice((row * t_keys + i) * ctx.layout.k.row + k_at, d),
                        dv.slice((row * t_keys + i) * ctx.layout.v.row + v_at, d),
                    )
                };
                rotate_back(&x.dk[i * d..(i + 1) * d], cos, sin, 1.0, dk);
                dv.copy_from_slice(&x.dv[i * d..(i + 1) * d]);
            }
        },
    );
}

/// One block of queries: adds to `dk` and `dv`, leaves the block's `dq` (rotated) in `acc`.
fn backward_block(
    ctx: &Context,
    row: usize,
    from: usize,
    to: usize,
    first: usize,
    lse: &[f32],
    x: &mut Scratch,
) {
    let d = ctx.shape.head_dim;
    let m = to - from;
    let Scratch { q, k, v, dk, dv, dout, scores, dscores, acc, delta } = x;
    let (q0, first_row, end) = (ctx.queries.0, ctx.keys.0, to.min(ctx.keys.1));
    let acc = &mut acc[..m * d];
    acc.fill(0.0);
    let of_queries = (from - q0) * d..(to - q0) * d;
    for k0 in (first..end).step_by(KEYS) {
        let k1 = end.min(k0 + KEYS);
        let n = k1 - k0;
        let rows = (k0 - first_row) * d..(k1 - first_row) * d;
        let (keys, values) = (View::new(&k[rows.clone()], n, d), View::new(&v[rows.clone()], n, d));
        let (queries, dout) =
            (View::new(&q[of_queries.clone()], m, d), View::new(&dout[of_queries.clone()], m, d));
        let (p, ds) = (&mut scores[..m * n], &mut dscores[..m * n]);
        matmul_here(ViewMut::new(p, m, n), Into::Overwrite, 1.0, queries, keys.t());
        matmul_here(ViewMut::new(ds, m, n), Into::Overwrite, 1.0, dout, values.t());
        for (r, (p, ds)) in p.chunks_exact_mut(n).zip(ds.chunks_exact_mut(n)).enumerate() {
            let (low, high) = seen(ctx, row, from + r, k0, k1);
            score_gradients(p, ds, low, high, lse[from - q0 + r], delta[r]);
        }
        let (p, ds) = (View::new(p, m, n), View::new(ds, m, n));
        matmul_here(ViewMut::new(&mut dv[rows.clone()], n, d), Into::Add, 1.0, p.t(), dout);
        matmul_here(ViewMut::new(&mut dk[rows], n, d), Into::Add, 1.0, ds.t(), queries);
        matmul_here(ViewMut::new(acc, m, d), Into::Add, 1.0, ds, keys);
    }
}

multiversion! {
    /// `p = e^(score - lse)` and `ds = p (ds - delta)` inside `low..high`, zero outside.
    fn score_gradients(p: &mut [f32], ds: &mut [f32], low: usize, high: usize, lse: f32, delta: f32) {
        p[..low].fill(0.0);
        p[high..].fill(0.0);
        ds[..low].fill(0.0);
        ds[high..].fill(0.0);
        for (p, ds) in p[low..high].iter_mut().zip(&mut ds[low..high]) {
            *p = exp(*p - lse);
            *ds = *p * (*ds - delta);
        }
    }
}

multiversion! {
    fn delta(out: &[f32], dout: &[f32]) -> f32 {
        dot(out, dout)
    }
}

/// Buffers of one task, reused by the tasks of a thread.
struct Scratch {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    dout: Vec<f32>,
    scores: Vec<f32>,
    dscores: Vec<f32>,
    acc: Vec<f32>,
    delta: Vec<f32>,
}

impl Scratch {
    /// For `t` queries and `t_keys` keys.
    fn new(t: usize, t_keys: usize, d: usize) -> Self {
        let head = |t: usize| vec![0.0; t * d];
        let block = || vec![0.0; QUERIES * KEYS.min(t_keys)];
        Self {
            q: head(t),
            k: head(t_keys),
            v: head(t_keys),
            dk: head(t_keys),
            dv: head(t_keys),
            dout: head(t),
            scores: block(),
            dscores: block(),
            acc: vec![0.0; QUERIES * d],
            delta: vec![0.0; QUERIES],
        }
    }
}

/// The definition, query by query, in f64.
pub mod reference {
    use super::{Context, Shape};

    /// As [`super::forward`], without the log-sum-exp.
    pub fn forward(ctx: &Context, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
        let Shape { b, t, heads, kv_heads, head_dim: d, .. } = ctx.shape;
        let half = d / 2;
        let rotated = |data: &[f32], at: usize, row: usize, i: usize| -> Vec<f64> {
            let position = i - ctx.starts[row * t + i] as usize;
            let x = &data[at..at + d];
            (0..d)
                .map(|j| {
                    let angle = position * half + j % half;
                    let (c, s) = (f64::from(ctx.cos[angle]), f64::from(ctx.sin[angle]));
                    let partner = f64::from(if j < half { -x[j + half] } else { x[j - half] });
                    f64::from(x[j]) * c + partner * s
                })
                .collect()
        };
        for row in 0..b {
            for head in 0..heads {
                let (q_at, k_at, v_at) = ctx.offsets(head / (heads / kv_heads), head % (heads / kv_heads));
                for i in 0..t {
                    let query = rotated(q, (row * t + i) * ctx.layout.q.row + q_at, row, i);
                    let keys = ctx.first_key(row, i)..i + 1;
                    let scores: Vec<f64> = keys
                        .clone()
                        .map(|j| {
                            let key = rotated(k, (row * t + j) * ctx.layout.k.row + k_at, row, j);
                            query.iter().zip(&key).map(|(a, b)| a * b).sum::<f64>() / (d as f64).sqrt()
                        })
                        .collect();
                    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                    for x in 0..d {
                        let value = |j: usize| f64::from(v[(row * t + j) * ctx.layout.v.row + v_at + x]);
                        let y: f64 =
                            keys.clone().zip(&scores).map(|(j, s)| (s - top).exp() / total * value(j)).sum();
                        out[((row * t + i) * heads + head) * d + x] = y as f32;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, finite_difference, in_pool, random, weighted_sum};

    struct Case {
        shape: Shape,
        starts: Vec<u32>,
        cos: Vec<f32>,
        sin: Vec<f32>,
    }

    impl Case {
        fn new(shape: Shape, documents: &[&[u32]]) -> Self {
            let mut starts = Vec::new();
            for row in documents {
                for i in 0..shape.t as u32 {
                    starts.push(*row.iter().rfind(|s| **s <= i).unwrap());
                }
            }
            let angles = random(shape.t * shape.head_dim / 2, 9);
            let (cos, sin) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
            Self { shape, starts, cos, sin }
        }

        fn context(&self, layout: Layout) -> Context<'_> {
            let all = (0, self.shape.t);
            let Self { shape, starts, cos, sin } = self;
            Context { shape: *shape, layout, starts, queries: all, keys: all, cos, sin }
        }

        fn fused(&self) -> Vec<f32> {
            let s = &self.shape;
            random(s.b * s.t * (s.heads + 2 * s.kv_heads) * s.head_dim, 1)
        }
    }

    /// The fused matrix as three.
    fn split(shape: &Shape, qkv: &[f32]) -> [Vec<f32>; 3] {
        let (d, per_group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let mut out = [Vec::new(), Vec::new(), Vec::new()];
        for head in qkv.chunks(d).enumerate() {
            let slot = head.0 % (per_group + 2);
            let which = if slot < per_group { 0 } else { slot - per_group + 1 };
            out[which].extend_from_slice(head.1);
        }
        out
    }

    fn cases() -> Vec<Case> {
        let shape =
            |b, t, heads, kv_heads, head_dim, window| Shape { b, t, heads, kv_heads, head_dim, window };
        vec![
            Case::new(shape(1, 1, 1, 1, 2, None), &[&[0]]),
            Case::new(shape(2, 70, 4, 2, 8, None), &[&[0, 5, 40], &[0]]),
            Case::new(shape(1, 50, 6, 1, 16, Some(7)), &[&[0, 31]]),
            Case::new(shape(1, 1100, 1, 1, 4, None), &[&[0, 3]]), // more than one block of keys
            Case::new(shape(1, 1100, 2, 2, 4, Some(600)), &[&[0]]),
        ]
    }

    #[test]
    fn forward_agrees_with_the_reference_in_both_layouts() {
        for case in cases() {
            let s = case.shape;
            let qkv = case.fused();
            let [q, k, v] = split(&s, &qkv);
            let n = s.b * s.t * s.heads * s.head_dim;
            let (mut expect, mut got, mut lse) = (vec![0.0; n], vec![0.0; n], vec![0.0; s.b * s.heads * s.t]);
            let ctx = case.context(Layout::separate(&s));
            reference::forward(&ctx, &q, &k, &v, &mut expect);
            forward(&ctx, &q, &k, &v, &mut got, &mut lse);
            assert_close(&got, &expect, 1e-5);
            let fused = case.context(Layout::fused(&s));
            forward(&fused, &qkv, &qkv, &qkv, &mut got, &mut lse);
            assert_close(&got, &expect, 1e-5);
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences_and_between_layouts() {
        for case in cases() {
            let s = case.shape;
            let qkv = case.fused();
            let n = s.b * s.t * s.heads * s.head_dim;
            let dout = random(n, 2);
            let fused = case.context(Layout::fused(&s));
            let (mut out, mut lse) = (vec![0.0; n], vec![0.0; s.b * s.heads * s.t]);
            forward(&fused, &qkv, &qkv, &qkv, &mut out, &mut lse);
            let run = || {
                let mut dqkv = vec![f32::NAN; qkv.len()];
                backward(&fused, &qkv, &qkv, &qkv, &out, &lse, &dout, Gradients::Fused(&mut dqkv));
                dqkv
            };
            let dqkv = in_pool(1, run);
            assert_eq!(dqkv, in_pool(3, run), "bits do not depend on threads");

            let [q, k, v] = split(&s, &qkv);
            let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| vec![f32::NAN; x.len()]);
            let ctx = case.context(Layout::separate(&s));
            backward(&ctx, &q, &k, &v, &out, &lse, &dout, Gradients::Separate(&mut dq, &mut dk, &mut dv));
            assert_eq!(split(&s, &dqkv), [dq, dk, dv]);

            if s.t > 100 {
                continue;
            }
            let loss = |qkv: &[f32]| {
                let mut out = vec![0.0; n];
                reference::forward(&fused, qkv, qkv, qkv, &mut out);
                weighted_sum(&out, &dout)
            };
            let step = (qkv.len() / 60).max(1);
            for i in (0..qkv.len()).step_by(step) {
                let fd = finite_difference(&qkv, i, 1e-2, loss) as f32;
                assert_close(&[dqkv[i]], &[fd], 2e-3);
            }
        }
    }

    /// Queries and keys in parts, put together, as ranks of a ring do.
    #[test]
    fn parts_of_queries_and_keys_make_up_the_whole() {
        let shape = Shape { b: 1, t: 90, heads: 4, kv_heads: 2, head_dim: 8, window: None };
        for shape in [shape, Shape { window: Some(20), ..shape }] {
            let case = Case::new(shape, &[&[0, 37, 41]]);
            let [q, k, v] = split(&shape, &case.fused());
            let (row, kv_row) = (4 * 8, 2 * 8);
            let whole = case.context(Layout::separate(&shape));
            let (mut expect, mut expect_lse) = (vec![0.0; q.len()], vec![0.0; 4 * 90]);
            forward(&whole, &q, &k, &v, &mut expect, &mut expect_lse);
            let dout = random(q.len(), 3);
            let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|x| vec![f32::NAN; x.len()]);
            let gradients = Gradients::Separate(&mut dq, &mut dk, &mut dv);
            backward(&whole, &q, &k, &v, &expect, &expect_lse, &dout, gradients);

            let parts = [(0, 25), (25, 64), (64, 90)];
            let [mut sum_q, mut sum_k, mut sum_v] = [&q, &k, &v].map(|x| vec![0.0; x.len()]);
            for queries in parts {
                let of = queries.0 * row..queries.1 * row;
                let n = len(queries);
                let (mut out, mut lse) = (vec![0.0; n * row], vec![f32::NEG_INFINITY; 4 * n]);
                for keys in parts {
                    let ctx = Context { queries, keys, ..whole };
                    let (k, v) = (&k[keys.0 * kv_row..keys.1 * kv_row], &v[keys.0 * kv_row..keys.1 * kv_row]);
                    let (mut more, mut more_lse) = (vec![f32::NAN; n * row], vec![f32::NAN; 4 * n]);
                    forward(&ctx, &q[of.clone()], k, v, &mut more, &mut more_lse);
                    merge(&mut out, &mut lse, &more, &more_lse, 4);
                }
                assert_close(&out, &expect[of.clone()], 1e-5);
                for keys in parts {
                    let ctx = Context { queries, keys, ..whole };
                    let of_keys = keys.0 * kv_row..keys.1 * kv_row;
                    let (k, v) = (&k[of_keys.clone()], &v[of_keys.clone()]);
                    let [mut dq, mut dk, mut dv] = [of.len(), k.len(), v.len()].map(|n| vec![f32::NAN; n]);
                    let gradients = Gradients::Separate(&mut dq, &mut dk, &mut dv);
                    backward(&ctx, &q[of.clone()], k, v, &out, &lse, &dout[of.clone()], gradients);
                    crate::train::math::add_assign(&mut sum_q[of.clone()], &dq);
                    crate::train::math::add_assign(&mut sum_k[of_keys.clone()], &dk);
                    crate::train::math::add_assign(&mut sum_v[of_keys], &dv);
                }
            }
            for (sum, expect) in [(sum_q, dq), (sum_k, dk), (sum_v, dv)] {
                assert_close(&sum, &expect, 1e-5);
            }
        }
    }

    #[test]
    fn a_packed_document_gets_what_it_gets_alone() {
        let shape = Shape { b: 1, t: 48, heads: 2, kv_heads: 1, head_dim: 8, window: None };
        let packed = Case::new(shape, &[&[0, 17]]);
        let qkv = packed.fused();
        let row = 4 * 8;
        let run = |case: &Case, qkv: &[f32]| {
            let s = case.shape;
            let (mut out, mut lse) = (vec![0.0; s.t * 16], vec![0.0; s.t * 2]);
            forward(&case.context(Layout::fused(&s)), qkv, qkv, qkv, &mut out, &mut lse);
            out
        };
        let both = run(&packed, &qkv);
        let mut alone = Case::new(Shape { t: 31, ..shape }, &[&[0]]);
        (alone.cos, alone.sin) = (packed.cos.clone(), packed.sin.clone());
        assert_close(&both[17 * 16..], &run(&alone, &qkv[17 * row..]), 1e-6);
    }
}
