//! The forward pass on flat buffers: embedding, layers, final norm, and the output head for
//! the rows that need it.
//!
//! Sees rows, not sequences: a row is one token with its position and its block table.
//! Every operation gives a row the same bits whatever the other rows are.
//!
//! Legend: `M` rows of a step, `C` width of the residual stream, `F` feed-forward width,
//! `H` query heads, `G` key/value heads, `D` head width, `V` vocabulary.

use half::f16;
use intern_kernels::matmul::matmul;
use intern_kernels::ops;
use intern_kernels::paged::{self, KvElement, Shape};
use rayon::prelude::*;

use crate::rope::Rope;
use crate::weights::{Layer, Weights};

/// One token to compute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub token: u32,
    /// Index in its sequence.
    pub position: usize,
    /// Positions in use, for RoPE scalings that depend on it.
    pub rope_len: usize,
    /// Index into the step's block tables.
    pub sequence: usize,
}

/// Rows that get the output head at once; bounds the memory of logits.
const HEAD_ROWS: usize = 64;
/// Elements below which row-wise work stays on one thread.
const SERIAL_ELEMENTS: usize = 1 << 15;

/// Panics the runner, for the test that a panic stays within its step.
#[cfg(test)]
pub(crate) const POISON: u32 = 299;

/// Keys and values of every layer.
enum KvCache {
    F32(Vec<Kv<f32>>),
    F16(Vec<Kv<f16>>),
}

struct Kv<T> {
    keys: Vec<T>,
    values: Vec<T>,
}

fn new_layers<T: KvElement>(layers: usize, elements: usize) -> Vec<Kv<T>> {
    (0..layers).map(|_| Kv { keys: T::zeros(elements), values: T::zeros(elements) }).collect()
}

/// The model with its cache and its working memory.
pub(crate) struct Runner {
    weights: Weights,
    rope: Rope,
    kv: KvCache,
    block_size: usize,
    buffers: Buffers,
}

/// Reused from step to step; sized by the largest one.
#[derive(Default)]
struct Buffers {
    x: Vec<f32>,        // (M, C)
    normed: Vec<f32>,   // (M, C)
    qkv: Vec<f32>,      // (M, (H + 2G) D)
    attended: Vec<f32>, // (M, H D)
    gate_up: Vec<f32>,  // (M, 2F)
    act: Vec<f32>,      // (M, F)
    cos: Vec<f32>,      // (M, D/2)
    sin: Vec<f32>,      // (M, D/2)
    logits: Vec<f32>,   // (HEAD_ROWS, V)
}

/// `buffer` with exactly `len` elements, contents unspecified.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}

impl Runner {
    pub fn new(weights: Weights, num_blocks: usize, block_size: usize, half_kv: bool) -> Self {
        let config = &weights.config;
        let elements = num_blocks * block_size * config.num_kv_heads * config.head_dim;
        let kv = match half_kv {
            true => KvCache::F16(new_layers(config.num_layers, elements)),
            false => KvCache::F32(new_layers(config.num_layers, elements)),
        };
        let rope = Rope::new(config, &weights.rope_factors);
        Self { weights, rope, kv, block_size, buffers: Buffers::default() }
    }

    /// Computes `rows` in order; a row sees the rows of its own sequence before it, in this step
    /// or earlier. Their keys and values stay in the cache.
    ///
    /// `consume(i, logits)` is called, possibly in parallel, with the V logits of `rows[outputs[i]]`;
    /// results come in the order of `outputs`.
    pub fn step<R: Send>(
        &mut self,
        rows: &[Row],
        tables: &[&[u32]],
        outputs: &[usize],
        consume: impl Fn(usize, &mut [f32]) -> R + Sync,
    ) -> Vec<R> {
        #[cfg(test)]
        assert!(rows.iter().all(|r| r.token != POISON), "a poisoned token");
        let c = self.weights.config.hidden_size;
        self.embed(rows);
        match &mut self.kv {
            KvCache::F32(kv) => forward(&self.weights, kv, self.block_size, &mut self.buffers, rows, tables),
            KvCache::F16(kv) => forward(&self.weights, kv, self.block_size, &mut self.buffers, rows, tables),
        }

        // Final norm and head, only where someone looks.
        let (b, eps) = (&mut self.buffers, self.weights.config.rms_norm_eps as f32);
        let normed = sized(&mut b.normed, outputs.len() * c);
        for (out, &row) in normed.chunks_exact_mut(c).zip(outputs) {
            ops::rms_norm(&b.x[row * c..(row + 1) * c], &self.weights.norm, eps, out);
        }
        let head = self.weights.head();
        let vocab = head.rows;
        let mut results = Vec::with_capacity(outputs.len());
        for (i, normed) in normed.chunks(HEAD_ROWS * c).enumerate() {
            let m = normed.len() / c;
            let logits = sized(&mut b.logits, m * vocab);
            matmul(normed, m, &[head.part(0)], logits, vocab);
            let one = |(j, logits): (usize, &mut [f32])| consume(i * HEAD_ROWS + j, logits);
            results.par_extend(logits.par_chunks_exact_mut(vocab).enumerate().map(one));
        }
        results
    }

    /// The normed final hidden state of row `row` of the last step, `(C)`.
    pub fn hidden(&self, row: usize) -> Vec<f32> {
        let (c, eps) = (self.weights.config.hidden_size, self.weights.config.rms_norm_eps as f32);
        let mut out = vec![0.0; c];
        ops::rms_norm(&self.buffers.x[row * c..(row + 1) * c], &self.weights.norm, eps, &mut out);
        out
    }

    /// Fills `x` with embeddings and the tables with rotations.
    fn embed(&mut self, rows: &[Row]) {
        let (b, c) = (&mut self.buffers, self.weights.config.hidden_size);
        let (x, embedding) = (sized(&mut b.x, rows.len() * c), self.weights.embedding.view());
        b.cos.clear();
        b.sin.clear();
        for (row, x) in rows.iter().zip(x.chunks_exact_mut(c)) {
            embedding.decode_row(row.token as usize, x);
            self.rope.append(row.position, row.rope_len, &mut b.cos, &mut b.sin);
        }
    }
}

/// All layers, in place on `b.x`.
fn forward<T: KvElement>(
    w: &Weights,
    kv: &mut [Kv<T>],
    block_size: usize,
    b: &mut Buffers,
    rows: &[Row],
    tables: &[&[u32]],
) {
    let config = &w.config;
    let (m, c, f) = (rows.len(), config.hidden_size, config.intermediate_size);
    let eps = config.rms_norm_eps as f32;
    let attended_len = config.num_heads * config.head_dim;
    for (i, (layer, kv)) in w.layers.iter().zip(kv).enumerate() {
        let shape = Shape {
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            block_size,
            window: config.window(i),
            scale: 1.0 / (config.head_dim as f32).sqrt(),
        };

        // Attention.
        let normed = sized(&mut b.normed, m * c);
        norm_rows(&b.x, &layer.attention_norm, eps, normed);
        let qkv = sized(&mut b.qkv, m * w.qkv_len());
        let parts: Vec<_> = layer.qkv.iter().map(|(matrix, column)| matrix.part(*column)).collect();
        matmul(normed, m, &parts, qkv, w.qkv_len());
        position_heads(w, layer, qkv, &b.cos, &b.sin);
        for (row, qkv) in rows.iter().zip(qkv.chunks_exact(w.qkv_len())) {
            for (head, (&k, &v)) in w.heads.k.iter().zip(&w.heads.v).enumerate() {
                let pair = (&qkv[k..k + config.head_dim], &qkv[v..v + config.head_dim]);
                let table = tables[row.sequence];
                paged::store(&shape, &mut kv.keys, &mut kv.values, table, row.position, head, pair);
            }
        }
        let queries: Vec<_> = rows
            .iter()
            .zip(qkv.chunks_exact(w.qkv_len()))
            .map(|(row, q)| paged::Row { q, table: tables[row.sequence], position: row.position })
            .collect();
        let attended = sized(&mut b.attended, m * attended_len);
        paged::attention(&shape, &kv.keys, &kv.values, &queries, &w.heads.q, attended);
        matmul(attended, m, &[layer.o.part(0)], normed, c);
        add_bias(normed, &layer.o_bias);
        ops::add(&mut b.x, normed);

        // Feed-forward.
        norm_rows(&b.x, &layer.ffn_norm, eps, normed);
        let gate_up = sized(&mut b.gate_up, m * 2 * f);
        matmul(normed, m, &[layer.gate.part(0), layer.up.part(f)], gate_up, 2 * f);
        let act = sized(&mut b.act, m * f);
        let one = |(gate_up, act): (&mut [f32], &mut [f32])| {
            let (gate, up) = gate_up.split_at_mut(f);
            add_bias(gate, &layer.gate_bias);
            add_bias(up, &layer.up_bias);
            ops::swiglu(gate, up, act);
        };
        if m * f < SERIAL_ELEMENTS {
            gate_up.chunks_exact_mut(2 * f).zip(act.chunks_exact_mut(f)).for_each(one);
        } else {
            gate_up.par_chunks_exact_mut(2 * f).zip(act.par_chunks_exact_mut(f)).for_each(one);
        }
        matmul(act, m, &[layer.down.part(0)], normed, c);
        add_bias(normed, &layer.down_bias);
        ops::add(&mut b.x, normed);
    }
}

/// RMSNorm of every row of `x`.
fn norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let c = weight.len();
    let one = |(x, out): (&[f32], &mut [f32])| ops::rms_norm(x, weight, eps, out);
    if x.len() < SERIAL_ELEMENTS {
        x.chunks_exact(c).zip(out.chunks_exact_mut(c)).for_each(one);
    } else {
        x.par_chunks_exact(c).zip(out.par_chunks_exact_mut(c)).for_each(one);
    }
}

/// Adds `bias` to every row of its length; an empty one changes nothing.
fn add_bias(x: &mut [f32], bias: &[f32]) {
    if !bias.is_empty() {
        x.chunks_exact_mut(bias.len()).for_each(|row| ops::add(row, bias));
    }
}

/// Bias, per-head norm and rotation of every query and key.
fn position_heads(w: &Weights, layer: &Layer, qkv: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (d, half) = (w.config.head_dim, w.config.head_dim / 2);
    let eps = w.config.rms_norm_eps as f32;
    let one = |(row, qkv): (usize, &mut [f32])| {
        add_bias(qkv, &layer.qkv_bias);
        let (cos, sin) = (&cos[row * half..(row + 1) * half], &sin[row * half..(row + 1) * half]);
        let norms = layer.qk_norm.as_ref();
        for (offsets, norm) in [(&w.heads.q, norms.map(|n| &n.0)), (&w.heads.k, norms.map(|n| &n.1))] {
            for &at in offsets {
                let head = &mut qkv[at..at + d];
                if let Some(norm) = norm {
                    ops::rms_norm_inplace(head, norm, eps);
                }
                match w.interleaved {
                    true => ops::rope_interleaved(head, cos, sin),
                    false => ops::rope(head, cos, sin),
                }
            }
        }
    };
    let len = w.qkv_len();
    if qkv.len() < SERIAL_ELEMENTS {
        qkv.chunks_exact_mut(len).enumerate().for_each(one);
    } else {
        qkv.par_chunks_exact_mut(len).enumerate().for_each(one);
    }
}
