//! The forward pass on flat buffers: embedding, layers, final norm, and the output head for
//! the rows that need it.
//!
//! Sees rows, not sequences: a row is one token with its position and its block table.
//! Every operation gives a row the same bits whatever the other rows are.
//!
//! Legend: `M` rows of a step, `C` width of the residual stream, `F` feed-forward width,
//! `H` query heads, `G` key/value heads, `D` head width, `V` vocabulary.

use half::f16;
use intern_kernels::matmul::{Part, matmul};
use intern_kernels::ops;
use intern_kernels::packed::activations::Activations;
use intern_kernels::paged::{self, KvElement, Shape};
use intern_kernels::pool::Pool;

use crate::engine::KvType;
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
/// Elements one thread should have at least in row-wise work.
const TASK_ELEMENTS: usize = 1 << 14;

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
    pool: Pool,
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
    /// The rows a product reads, as integers.
    quantized: Activations,
}

/// `buffer` with exactly `len` elements, contents unspecified.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}

impl Runner {
    pub fn new(weights: Weights, pool: Pool, num_blocks: usize, block_size: usize, kv_type: KvType) -> Self {
        let config = &weights.config;
        let elements = num_blocks * block_size * config.num_kv_heads * config.head_dim;
        let kv = match kv_type {
            KvType::F16 => KvCache::F16(new_layers(config.num_layers, elements)),
            KvType::F32 => KvCache::F32(new_layers(config.num_layers, elements)),
        };
        let rope = Rope::new(config, &weights.rope_factors);
        Self { pool, weights, rope, kv, block_size, buffers: Buffers::default() }
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
        let pass = Pass { pool: &self.pool, w: &self.weights, block_size: self.block_size, rows, tables };
        match &mut self.kv {
            KvCache::F32(kv) => pass.forward(kv, &mut self.buffers),
            KvCache::F16(kv) => pass.forward(kv, &mut self.buffers),
        }

        // Final norm and head, only where someone looks.
        let (b, eps) = (&mut self.buffers, self.weights.config.rms_norm_eps as f32);
        let normed = sized(&mut b.normed, outputs.len() * c);
        for (out, &row) in normed.chunks_exact_mut(c).zip(outputs) {
            ops::rms_norm(&b.x[row * c..(row + 1) * c], &self.weights.norm, eps, out);
        }
        let head = self.weights.head();
        let vocab = head.weight.rows();
        let mut results = Vec::with_capacity(outputs.len());
        for (i, normed) in normed.chunks(HEAD_ROWS * c).enumerate() {
            let m = normed.len() / c;
            let logits = sized(&mut b.logits, m * vocab);
            matmul(&self.pool, normed, m, &[head], (logits, vocab), &mut b.quantized);
            let mut some: Vec<Option<R>> = (0..m).map(|_| None).collect();
            self.pool.zip_chunks((&mut some, 1), (logits, vocab), |j, result, logits| {
                result[0] = Some(consume(i * HEAD_ROWS + j, logits));
            });
            results.extend(some.into_iter().flatten());
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

/// What a forward pass reads besides the cache.
struct Pass<'a> {
    pool: &'a Pool,
    w: &'a Weights,
    block_size: usize,
    rows: &'a [Row],
    tables: &'a [&'a [u32]],
}

impl Pass<'_> {
    /// All layers, in place on `b.x`.
    fn forward<T: KvElement>(&self, kv: &mut [Kv<T>], b: &mut Buffers) {
        let (w, m) = (self.w, self.rows.len());
        let config = &w.config;
        let (c, f) = (config.hidden_size, config.intermediate_size);
        let eps = config.rms_norm_eps as f32;
        for (i, (layer, kv)) in w.layers.iter().zip(kv).enumerate() {
            // Attention.
            let normed = sized(&mut b.normed, m * c);
            self.norm_rows(&b.x, &layer.attention_norm, eps, normed);
            let qkv = sized(&mut b.qkv, m * w.qkv_len());
            let parts: Vec<Part> = layer.qkv.iter().map(|(matrix, column)| matrix.part(*column)).collect();
            matmul(self.pool, normed, m, &parts, (qkv, w.qkv_len()), &mut b.quantized);
            self.position_heads(layer, qkv, &b.cos, &b.sin);
            let attended = sized(&mut b.attended, m * config.num_heads * config.head_dim);
            self.attend(i, kv, qkv, attended);
            matmul(self.pool, attended, m, &[layer.o.part(0)], (normed, c), &mut b.quantized);
            add_bias(normed, &layer.o_bias);
            ops::add(&mut b.x, normed);

            // Feed-forward.
            self.norm_rows(&b.x, &layer.ffn_norm, eps, normed);
            let gate_up = sized(&mut b.gate_up, m * 2 * f);
            let parts = [layer.gate.part(0), layer.up.part(f)];
            matmul(self.pool, normed, m, &parts, (gate_up, 2 * f), &mut b.quantized);
            let act = sized(&mut b.act, m * f);
            let per_task = TASK_ELEMENTS.div_ceil(f);
            let (gate_ups, acts) = ((gate_up, 2 * f * per_task), (&mut *act, f * per_task));
            self.pool.zip_chunks(gate_ups, acts, |_, gate_up, act| {
                for (gate_up, act) in gate_up.chunks_exact_mut(2 * f).zip(act.chunks_exact_mut(f)) {
                    let (gate, up) = gate_up.split_at_mut(f);
                    add_bias(gate, &layer.gate_bias);
                    add_bias(up, &layer.up_bias);
                    ops::swiglu(gate, up, act);
                }
            });
            matmul(self.pool, act, m, &[layer.down.part(0)], (normed, c), &mut b.quantized);
            add_bias(normed, &layer.down_bias);
            ops::add(&mut b.x, normed);
        }
    }

    /// Stores keys and values of layer `i`, then attends.
    fn attend<T: KvElement>(&self, i: usize, kv: &mut Kv<T>, qkv: &[f32], attended: &mut [f32]) {
        let (config, heads) = (&self.w.config, &self.w.heads);
        let shape = Shape {
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            block_size: self.block_size,
            window: config.window(i),
            scale: 1.0 / (config.head_dim as f32).sqrt(),
        };
        let each = || self.rows.iter().zip(qkv.chunks_exact(self.w.qkv_len()));
        let new: Vec<paged::NewRow> = each()
            .map(|(row, kv)| paged::NewRow { kv, table: self.tables[row.sequence], position: row.position })
            .collect();
        paged::store(self.pool, &shape, (&mut kv.keys, &mut kv.values), &new, (&heads.k, &heads.v));
        let queries: Vec<paged::Row> = each()
            .map(|(row, q)| paged::Row { q, table: self.tables[row.sequence], position: row.position })
            .collect();
        paged::attention(self.pool, &shape, (&kv.keys, &kv.values), &queries, &heads.q, attended);
    }

    /// RMSNorm of every row of `x`.
    fn norm_rows(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let c = weight.len();
        let size = c * TASK_ELEMENTS.div_ceil(c);
        self.pool.chunks(out, size, |i, out| {
            for (x, out) in x[i * size..].chunks_exact(c).zip(out.chunks_exact_mut(c)) {
                ops::rms_norm(x, weight, eps, out);
            }
        });
    }

    /// Bias, per-head norm and rotation of every query and key.
    fn position_heads(&self, layer: &Layer, qkv: &mut [f32], cos: &[f32], sin: &[f32]) {
        let w = self.w;
        let (d, half, len) = (w.config.head_dim, w.config.head_dim / 2, w.qkv_len());
        let eps = w.config.rms_norm_eps as f32;
        let per_task = TASK_ELEMENTS.div_ceil(len);
        self.pool.chunks(qkv, per_task * len, |task, rows| {
            for (i, qkv) in rows.chunks_exact_mut(len).enumerate() {
                let row = task * per_task + i;
                add_bias(qkv, &layer.qkv_bias);
                let (cos, sin) = (&cos[row * half..(row + 1) * half], &sin[row * half..(row + 1) * half]);
                let norms = layer.qk_norm.as_ref();
                for (offsets, norm) in [(&w.heads.q, norms.map(|n| &n.0)), (&w.heads.k, norms.map(|n| &n.1))]
                {
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
            }
        });
    }
}

/// Adds `bias` to every row of its length; an empty one changes nothing.
fn add_bias(x: &mut [f32], bias: &[f32]) {
    if !bias.is_empty() {
        x.chunks_exact_mut(bias.len()).for_each(|row| ops::add(row, bias));
    }
}
