//! The forward pass on flat buffers: embedding, layers, final norm, and the output head for
//! the rows that need it.
//!
//! Sees rows, not sequences: a row is one token with its position and its block table.
//! Every operation gives a row the same bits whatever the other rows are; so rows that nobody
//! waits for any more may leave in the middle of a step.
//!
//! Legend: `M` rows of a step, `C` width of the residual stream, `F` feed-forward width,
//! `H` query heads, `G` key/value heads, `D` head width, `V` vocabulary. Where several ranks
//! compute together, `H`, `G` and `F` are this rank's.

use std::ops::Range;

use anyhow::Result;
use half::f16;
use intern_kernels::matmul::{Part, matmul};
use intern_kernels::ops;
use intern_kernels::packed::activations::Activations;
use intern_kernels::paged::{self, KvElement, LayerCache, Shape};
use intern_kernels::pool::Pool;
use intern_model::ModelConfig;

use crate::adapter::{LayerLora, Lora, LowRank};
use crate::engine::KvType;
use crate::parallel::{Ranks, Whole};
use crate::rope::Rope;
use crate::watch::Watch;
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
    /// Index of the adapter beside the base, if any.
    pub adapter: Option<usize>,
}

/// Rows that get the output head at once; bounds the memory of logits.
const HEAD_ROWS: usize = 64;
/// Elements one thread should have at least in row-wise work.
const TASK_ELEMENTS: usize = 1 << 14;
/// Multiply-adds between two looks at who still waits: some tens of milliseconds.
const TURN_MACS: usize = 4 << 30;
/// Rows that are computed between two looks all the same, or the weights would be read too often.
const TURN_ROWS: usize = 32;

/// Panics the runner, for the test that a panic stays within its step.
#[cfg(test)]
pub(crate) const POISON: u32 = 299;

/// Keys and values of every layer.
enum KvCache {
    F32(Vec<LayerCache<f32>>),
    F16(Vec<LayerCache<f16>>),
    Int8(Vec<LayerCache<i8>>),
}

impl KvCache {
    fn new(config: &ModelConfig, num_blocks: usize, block_size: usize, kv_type: KvType) -> Self {
        fn layers<T: KvElement>(n: usize, shape: &Shape, num_blocks: usize) -> Vec<LayerCache<T>> {
            (0..n).map(|_| LayerCache::new(shape, num_blocks)).collect()
        }
        let (n, shape) = (config.num_layers, shape(config, block_size, 0));
        match kv_type {
            KvType::F32 => Self::F32(layers(n, &shape, num_blocks)),
            KvType::F16 => Self::F16(layers(n, &shape, num_blocks)),
            KvType::Int8 => Self::Int8(layers(n, &shape, num_blocks)),
        }
    }
}

/// What attention of layer `layer` looks like.
fn shape(config: &ModelConfig, block_size: usize, layer: usize) -> Shape {
    Shape {
        num_heads: config.num_heads,
        num_kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        block_size,
        window: config.window(layer),
        scale: 1.0 / (config.head_dim as f32).sqrt(),
    }
}

/// The model with its cache and its working memory.
pub(crate) struct Runner {
    ranks: Ranks,
    pool: Pool,
    weights: Weights,
    adapters: Vec<Lora>,
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
    /// Which of the step's rows `x` still holds, ascending.
    kept: Vec<usize>,
    scratch: Scratch,
    whole: Whole,
}

/// Working memory of one product.
#[derive(Default)]
struct Scratch {
    /// The rows it reads, as integers.
    quantized: Activations,
    low: Vec<f32>,  // (M, ranks of a module's adapters)
    side: Vec<f32>, // (M, N)
}

/// `buffer` with exactly `len` elements, contents unspecified.
fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len, 0.0);
    buffer
}

impl Runner {
    pub fn new(
        ranks: Ranks,
        weights: Weights,
        adapters: Vec<Lora>,
        pool: Pool,
        num_blocks: usize,
        block_size: usize,
        kv_type: KvType,
    ) -> Self {
        let kv = KvCache::new(&weights.config, num_blocks, block_size, kv_type);
        let rope = Rope::new(&weights.config, &weights.rope_factors);
        Self { ranks, pool, weights, adapters, rope, kv, block_size, buffers: Buffers::default() }
    }

    /// Computes `rows` in order; a row sees the rows of its own sequence before it, in this step
    /// or earlier. Their keys and values stay in the cache. Sequences that `watch` finds nobody
    /// waiting for are dropped, as if they had not been in the step, but for what they left in
    /// their own blocks.
    ///
    /// `consume(i, logits)` is called, possibly in parallel, with the V logits of `rows[outputs[i]]`;
    /// results come with their `i`, ascending. With several ranks, rank 0 gets them, and every
    /// step goes to its end.
    pub fn step<R: Send>(
        &mut self,
        rows: &[Row],
        tables: &[&[u32]],
        outputs: &[usize],
        watch: &Watch,
        consume: impl Fn(usize, &mut [f32]) -> R + Sync,
    ) -> Vec<(usize, R)> {
        #[cfg(test)]
        assert!(rows.iter().all(|r| r.token != POISON), "a poisoned token");
        let (off, c) = (Watch::off(), self.weights.config.hidden_size);
        let watch = if self.ranks.is_alone() { watch } else { &off };
        self.ranks.announce(rows, tables, outputs);
        self.embed(rows);
        let mut pass = Pass {
            ranks: &self.ranks,
            pool: &self.pool,
            w: &self.weights,
            adapters: &self.adapters,
            block_size: self.block_size,
            rows: rows.to_vec(),
            tables,
            watch,
        };
        match &mut self.kv {
            KvCache::F32(kv) => pass.forward(kv, &mut self.buffers),
            KvCache::F16(kv) => pass.forward(kv, &mut self.buffers),
            KvCache::Int8(kv) => pass.forward(kv, &mut self.buffers),
        }

        // Final norm and head, only where someone looks.
        let (b, eps) = (&mut self.buffers, self.weights.config.rms_norm_eps as f32);
        let head = self.weights.head();
        let (local, vocab) = (head.weight.rows(), self.weights.config.vocab_size);
        let mut results = Vec::with_capacity(outputs.len());
        for first in (0..outputs.len()).step_by(HEAD_ROWS) {
            watch.look();
            let some = first..outputs.len().min(first + HEAD_ROWS);
            let kept = |&i: &usize| !watch.is_gone(rows[outputs[i]].sequence);
            let some: Vec<usize> = some.filter(kept).collect();
            let m = some.len();
            let normed = sized(&mut b.normed, m * c);
            for (out, i) in normed.chunks_exact_mut(c).zip(&some) {
                let row = b.kept.binary_search(&outputs[*i]).expect("its sequence is not gone");
                ops::rms_norm(&b.x[row * c..(row + 1) * c], &self.weights.norm, eps, out);
            }
            let logits = sized(&mut b.logits, m * local);
            matmul(&self.pool, normed, m, &[head], (&mut *logits, local), &mut b.scratch.quantized);
            let logits = self.ranks.gather((m, vocab), logits, &mut b.whole);
            if !self.ranks.leads() {
                continue;
            }
            let adapter = |j: usize| rows[outputs[some[j]]].adapter.map(|a| &self.adapters[a].head[..]);
            add_adapters(&self.pool, normed, m, adapter, (&mut *logits, vocab), &mut b.scratch);
            let mut found: Vec<Option<(usize, R)>> = (0..m).map(|_| None).collect();
            self.pool.zip_chunks((&mut found, 1), (logits, vocab), |j, found, logits| {
                found[0] = Some((some[j], consume(some[j], logits)));
            });
            results.extend(found.into_iter().flatten());
        }
        results
    }

    /// Computes what rank 0 announces, until it ends.
    ///
    /// # Errors
    /// If a rank died.
    pub fn follow(&mut self) -> Result<()> {
        while let Some(step) = self.ranks.hear()? {
            let tables: Vec<&[u32]> = step.tables.iter().map(Vec::as_slice).collect();
            self.step(&step.rows, &tables, &step.outputs, &Watch::off(), |_, _| ());
        }
        Ok(())
    }

    /// The normed final hidden state of row `row` of the last step, `(C)`; its sequence is not gone.
    pub fn hidden(&self, row: usize) -> Vec<f32> {
        let (c, eps) = (self.weights.config.hidden_size, self.weights.config.rms_norm_eps as f32);
        let row = self.buffers.kept.binary_search(&row).expect("its sequence is not gone");
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
        b.kept.clear();
        b.kept.extend(0..rows.len());
        for (row, x) in rows.iter().zip(x.chunks_exact_mut(c)) {
            embedding.decode_row(row.token as usize, x);
            self.rope.append(row.position, row.rope_len, &mut b.cos, &mut b.sin);
        }
    }
}

/// What a forward pass reads besides the cache.
struct Pass<'a> {
    ranks: &'a Ranks,
    pool: &'a Pool,
    w: &'a Weights,
    adapters: &'a [Lora],
    block_size: usize,
    /// Those still computed.
    rows: Vec<Row>,
    tables: &'a [&'a [u32]],
    watch: &'a Watch<'a>,
}

impl Pass<'_> {
    /// All layers, in place on `b.x`.
    fn forward<T: KvElement>(&mut self, kv: &mut [LayerCache<T>], b: &mut Buffers) {
        let w = self.w;
        let config = &w.config;
        let (c, f) = (config.hidden_size, config.intermediate_size);
        let (attended_len, act_len) = (w.whole.num_heads * config.head_dim, w.whole.intermediate_size);
        let eps = config.rms_norm_eps as f32;
        for (i, (layer, kv)) in w.layers.iter().zip(kv).enumerate() {
            self.drop_gone(b);
            let m = self.rows.len();

            // Attention.
            let normed = sized(&mut b.normed, m * c);
            self.norm_rows(&b.x, &layer.attention_norm, eps, normed);
            let qkv = sized(&mut b.qkv, m * w.qkv_len());
            let parts: Vec<Part> = layer.qkv.iter().map(|(matrix, column)| matrix.part(*column)).collect();
            self.multiply(normed, &parts, (i, |l| &l.qkv), (&mut *qkv, w.qkv_len()), &mut b.scratch);
            self.position_heads(layer, qkv, &b.cos, &b.sin);
            let attended = sized(&mut b.attended, m * config.num_heads * config.head_dim);
            self.attend(i, kv, qkv, attended);
            let attended = self.ranks.gather((m, attended_len), attended, &mut b.whole);
            let o = [layer.o.part(0)];
            let out = sized(&mut b.normed, m * o[0].weight.rows());
            self.multiply(attended, &o, (i, |l| &l.o), (&mut *out, o[0].weight.rows()), &mut b.scratch);
            let out = self.ranks.gather((m, c), out, &mut b.whole);
            add_bias(out, &layer.o_bias);
            ops::add(&mut b.x, out);

            // Feed-forward.
            let normed = sized(&mut b.normed, m * c);
            self.norm_rows(&b.x, &layer.ffn_norm, eps, normed);
            let gate_up = sized(&mut b.gate_up, m * 2 * f);
            let parts = [layer.gate.part(0), layer.up.part(f)];
            self.multiply(normed, &parts, (i, |l| &l.gate_up), (&mut *gate_up, 2 * f), &mut b.scratch);
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
            let act = self.ranks.gather((m, act_len), act, &mut b.whole);
            let down = [layer.down.part(0)];
            let out = sized(&mut b.normed, m * down[0].weight.rows());
            self.multiply(act, &down, (i, |l| &l.down), (&mut *out, down[0].weight.rows()), &mut b.scratch);
            let out = self.ranks.gather((m, c), out, &mut b.whole);
            add_bias(out, &layer.down_bias);
            ops::add(&mut b.x, out);
        }
    }

    /// Takes the rows of sequences that are gone out of the step.
    fn drop_gone(&mut self, b: &mut Buffers) {
        if !self.rows.iter().any(|row| self.watch.is_gone(row.sequence)) {
            return;
        }
        let (c, half) = (self.w.config.hidden_size, self.w.config.head_dim / 2);
        let stays: Vec<usize> =
            (0..self.rows.len()).filter(|&i| !self.watch.is_gone(self.rows[i].sequence)).collect();
        for (to, &from) in stays.iter().enumerate() {
            self.rows[to] = self.rows[from];
            b.kept[to] = b.kept[from];
            b.x.copy_within(from * c..(from + 1) * c, to * c);
            b.cos.copy_within(from * half..(from + 1) * half, to * half);
            b.sin.copy_within(from * half..(from + 1) * half, to * half);
        }
        let m = stays.len();
        self.rows.truncate(m);
        b.kept.truncate(m);
        b.x.truncate(m * c);
        b.cos.truncate(m * half);
        b.sin.truncate(m * half);
    }

    /// Calls `work` for runs of rows that take no more than some tens of milliseconds, but not for
    /// those that nobody waits for.
    fn in_turns(&self, macs_per_row: usize, mut work: impl FnMut(Range<usize>)) {
        let m = self.rows.len();
        let count = (m * macs_per_row).div_ceil(TURN_MACS).clamp(1, m.div_ceil(TURN_ROWS).max(1));
        let size = m.div_ceil(count).max(1);
        for start in (0..m).step_by(size) {
            self.watch.look();
            let run = start..m.min(start + size);
            if self.rows[run.clone()].iter().any(|row| !self.watch.is_gone(row.sequence)) {
                work(run);
            }
        }
    }

    /// [`matmul`] of all rows, with what their adapters add to these matrices of a layer.
    fn multiply(
        &self,
        x: &[f32],
        parts: &[Part],
        (layer, module): (usize, impl Fn(&LayerLora) -> &[LowRank]),
        (out, stride): (&mut [f32], usize),
        scratch: &mut Scratch,
    ) {
        let k = parts[0].weight.cols();
        let macs_per_row: usize = parts.iter().map(|p| k * p.weight.rows()).sum();
        self.in_turns(macs_per_row, |run| {
            let (x, out) = (&x[run.start * k..run.end * k], &mut out[run.start * stride..run.end * stride]);
            matmul(self.pool, x, run.len(), parts, (&mut *out, stride), &mut scratch.quantized);
            let adapter = |i: usize| {
                let adapter = self.rows[run.start + i].adapter;
                adapter.map(|a| module(&self.adapters[a].layers[layer]))
            };
            add_adapters(self.pool, x, run.len(), adapter, (out, stride), scratch);
        });
    }

    /// Stores keys and values of layer `i`, then attends.
    fn attend<T: KvElement>(&self, i: usize, kv: &mut LayerCache<T>, qkv: &[f32], attended: &mut [f32]) {
        let (config, heads) = (&self.w.config, &self.w.heads);
        let shape = shape(config, self.block_size, i);
        let each = || self.rows.iter().zip(qkv.chunks_exact(self.w.qkv_len()));
        let new: Vec<paged::NewRow> = each()
            .map(|(row, kv)| paged::NewRow { kv, table: self.tables[row.sequence], position: row.position })
            .collect();
        paged::store(self.pool, &shape, kv, &new, (&heads.k, &heads.v));
        let queries: Vec<paged::Row> = each()
            .map(|(row, q)| paged::Row { q, table: self.tables[row.sequence], position: row.position })
            .collect();
        let width = config.num_heads * config.head_dim;
        let visible = |r: &Row| r.position + 1 - shape.first_visible(r.position);
        let most_visible = self.rows.iter().map(visible).max().unwrap_or(0);
        self.in_turns(2 * width * most_visible, |run| {
            let attended = &mut attended[run.start * width..run.end * width];
            paged::attention(self.pool, &shape, kv, &queries[run], &heads.q, attended);
        });
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

/// Adds to each of `m` rows of `out`, `(M, stride)`, what its adapter makes of `x`, `(M, K)`.
///
/// Neighbours with the same adapter are computed together.
fn add_adapters<'a>(
    pool: &Pool,
    x: &[f32],
    m: usize,
    adapter: impl Fn(usize) -> Option<&'a [LowRank]>,
    (out, stride): (&mut [f32], usize),
    scratch: &mut Scratch,
) {
    let k = x.len() / m.max(1);
    let mut start = 0;
    while start < m {
        let module = adapter(start);
        let is_same = |&i: &usize| adapter(i).map(<[_]>::as_ptr) == module.map(<[_]>::as_ptr);
        let n = (start..m).take_while(is_same).count();
        let x = &x[start * k..(start + n) * k];
        let out = &mut out[start * stride..(start + n) * stride];
        start += n;
        let Some(module) = module.filter(|module| !module.is_empty()) else { continue };
        let ranks: usize = module.iter().map(LowRank::rank).sum();
        let mut column = 0;
        let place = |pair: &'a LowRank| {
            column += pair.rank();
            pair.a(column - pair.rank())
        };
        let parts: Vec<Part> = module.iter().map(place).collect();
        let Scratch { quantized, low, side } = scratch;
        matmul(pool, x, n, &parts, (sized(low, n * ranks), ranks), quantized);
        let mut column = 0;
        for pair in module {
            let (r, rows) = (pair.rank(), pair.rows());
            let one: Vec<f32> =
                low.chunks_exact(ranks).flat_map(|low| &low[column..column + r]).copied().collect();
            column += r;
            matmul(pool, &one, n, &[pair.b()], (sized(side, n * rows), rows), quantized);
            for (out, side) in out.chunks_exact_mut(stride).zip(side.chunks_exact(rows)) {
                ops::add(&mut out[pair.column..pair.column + rows], side);
            }
        }
    }
}

/// Adds `bias` to every row of its length; an empty one changes nothing.
fn add_bias(x: &mut [f32], bias: &[f32]) {
    if !bias.is_empty() {
        x.chunks_exact_mut(bias.len()).for_each(|row| ops::add(row, bias));
    }
}
