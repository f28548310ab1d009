//! Loss and gradients of one sequence, layer by layer and without autograd: how training runs.
//!
//! Every weight's gradient is handed to a [`Sink`] as soon as it is known, in parts, so none is
//! ever held whole; frozen weights cost none. A layer's activations are kept from its forward to
//! its backward pass, or only its input, from which the pass is then repeated
//! ([`Settings::recompute`], after Chen et al., 2016). Buffers live in a [`Workspace`] and are used
//! again for the next sequence. With [`Precision::Bf16`], what enters a matrix product is rounded
//! to bf16 and activations are kept at half the size; weights, the residual stream and all sums
//! stay f32. The unit of work is a sequence, so its bits do not depend on what
//! else is in the batch. Computes what [`Transformer::loss`] computes, which the tests hold it to.
//!
//! Shapes: `N` tokens of the sequence, the rest as in [`crate::transformer`].

use std::collections::HashMap;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Result, Storage, Tensor, TensorId, bail};
use intern_kernels::train::attention::{self, Context, Gradients, Layout, Shape};
use intern_kernels::train::cross_entropy::{AddPart, Buffers, Head};
use intern_kernels::train::gemm::{Into, View, ViewMut, matmul};
use intern_kernels::train::math::add_assign;
use intern_kernels::train::{embedding, half, rms_norm, swiglu};
use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::config::RopeScaling;
use crate::rope::rope_tables;
use crate::transformer::{Layer, Linear, Qkv, Transformer};

/// Elements of a weight's gradient computed at a time.
const BLOCK: usize = 1 << 18;

/// Takes gradients, from several sequences at once.
pub trait Sink: Sync {
    /// Adds `values` to the gradient of trained tensor `param` (its
    /// place in [`Transformer::trainable_vars`]) from element `at` on.
    fn add(&self, param: usize, at: usize, values: &[f32]);
}

/// Type of the operands of matrix products and of the activations kept for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As the weights are.
    #[default]
    F32,
    /// Half the memory for activations, 8 bits of precision; products are summed in f32.
    Bf16,
}

impl Precision {
    /// Rounds what will be an operand or kept.
    fn round(self, x: &mut [f32]) {
        if self == Self::Bf16 {
            half::round(x);
        }
    }

    /// `x` as an operand, in `buffer` where it has to be rounded.
    fn operand<'a>(self, x: &'a [f32], buffer: &'a mut Vec<f32>) -> &'a [f32] {
        match self {
            Self::F32 => x,
            Self::Bf16 => {
                let rounded = sized(buffer, x.len());
                half::round_into(x, rounded);
                rounded
            }
        }
    }
}

/// What changes the cost or the loss of a pass, besides the model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Settings {
    /// How exact products and kept activations are.
    pub precision: Precision,
    /// Layers, from the first, whose activations are computed twice instead of kept.
    pub recompute: usize,
    /// Factor of the squared log-partition in the loss that is differentiated.
    pub z_loss: f32,
}

/// The memory of one sequence's passes; grows to what it needs and stays.
#[derive(Default)]
pub struct Workspace {
    /// Each layer's input, and the last one's output; `(N, C)`.
    streams: Vec<Vec<f32>>,
    kept: Vec<Kept>,
    /// With bf16: what is kept of each layer, which the one element of `kept` takes turns to hold.
    packed: Vec<Packed>,
    temp: Temp,
    loss: Buffers,
    rope: Rope,
}

/// What a layer's backward pass needs of its forward pass besides its input.
#[derive(Default)]
struct Kept {
    qkv: Vec<f32>,    // (N, (H + 2 G) D), or three matrices one after the other
    heads: Vec<f32>,  // (N, H D)
    lse: Vec<f32>,    // (H, N)
    middle: Vec<f32>, // (N, C): after attention
    gate: Vec<f32>,   // (N, F)
    up: Vec<f32>,     // (N, F)
}

/// [`Kept`] in fewer bytes.
#[derive(Default)]
struct Packed {
    halves: [Vec<u16>; 4], // of qkv, heads, gate and up
    lse: Vec<f32>,
    middle: Vec<f32>,
}

impl Packed {
    fn store(&mut self, kept: &Kept) {
        for (packed, x) in self.halves.iter_mut().zip([&kept.qkv, &kept.heads, &kept.gate, &kept.up]) {
            packed.resize(x.len(), 0);
            half::pack(x, packed);
        }
        self.lse.clone_from(&kept.lse);
        self.middle.clone_from(&kept.middle);
    }

    fn load(&self, kept: &mut Kept) {
        let Kept { qkv, heads, lse, middle, gate, up } = kept;
        for (packed, x) in self.halves.iter().zip([qkv, heads, gate, up]) {
            half::unpack(packed, sized(x, packed.len()));
        }
        lse.clone_from(&self.lse);
        middle.clone_from(&self.middle);
    }
}

/// Memory of one operation.
#[derive(Default)]
struct Temp {
    normed: Vec<f32>,  // (N, C)
    qk: Vec<f32>,      // (N, (H + G) D): normalized queries and keys
    act: Vec<f32>,     // (N, F)
    dact: Vec<f32>,    // (N, F)
    dgate: Vec<f32>,   // (N, F)
    dup: Vec<f32>,     // (N, F)
    dheads: Vec<f32>,  // (N, H D)
    dqkv: Vec<f32>,    // as qkv
    dqk: Vec<f32>,     // as qk
    dnormed: Vec<f32>, // (N, C)
    dx: Vec<f32>,      // (N, C): of the residual stream
    dpart: Vec<f32>,   // (N, C)
    dnorm: Vec<f32>,   // (C,)
    linear: LinearTemp,
}

/// Memory of one projection.
#[derive(Default)]
struct LinearTemp {
    block: Vec<f32>,
    low: Vec<f32>,  // (N, R)
    dlow: Vec<f32>, // (N, R)
    /// Operands rounded to bf16.
    weight: Vec<f32>,
    dy: Vec<f32>,
    precision: Precision,
}

/// Rotary tables of positions `0..len`.
#[derive(Default)]
struct Rope {
    len: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// The first `n` elements of a buffer, which grows where it is shorter.
fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

/// A tensor's elements, borrowed together with its lock.
struct Floats<G>(G, Range<usize>);

impl<G: Deref<Target = Storage>> Deref for Floats<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.0 {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.1.clone()],
            _ => unreachable!("checked by `floats`"),
        }
    }
}

fn floats(tensor: &Tensor) -> Result<impl Deref<Target = [f32]> + '_> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(_)), Some((from, to))) => Ok(Floats(storage, from..to)),
        _ => bail!("training needs contiguous f32 weights on the CPU, found {:?}", tensor.dtype()),
    }
}

/// What one sequence's passes share.
struct Sequence<'a> {
    n: usize,
    starts: Vec<u32>,
    shape: Shape,
    rope: &'a Rope,
}

impl Sequence<'_> {
    fn context(&self, layer: &Layer) -> Context<'_> {
        let shape = Shape { window: layer.window, ..self.shape };
        let layout = match layer.qkv {
            Qkv::Fused(_) => Layout::fused(&shape),
            Qkv::Separate(_) => Layout::separate(&shape),
        };
        Context { shape, layout, starts: &self.starts, cos: &self.rope.cos, sin: &self.rope.sin }
    }

    /// Elements of queries, and of keys, in separate matrices.
    fn widths(&self) -> (usize, usize) {
        (self.n * self.shape.heads * self.shape.head_dim, self.n * self.shape.kv_heads * self.shape.head_dim)
    }
}

/// A model ready to be differentiated.
pub struct Backprop<'m> {
    model: &'m Transformer,
    settings: Settings,
    /// Place of each trained tensor in [`Transformer::trainable_vars`].
    trained: HashMap<TensorId, usize>,
}

impl<'m> Backprop<'m> {
    /// Differentiates with respect to [`Transformer::trainable_vars`].
    #[must_use]
    pub fn new(model: &'m Transformer, settings: Settings) -> Self {
        let trained =
            model.trainable_vars().into_iter().enumerate().map(|(i, (_, v))| (v.as_tensor().id(), i));
        Self { model, settings, trained: trained.collect() }
    }

    fn index(&self, tensor: &Tensor) -> Option<usize> {
        self.trained.get(&tensor.id()).copied()
    }

    /// Summed cross-entropy of row `row` of `batch` in nats, over its mask; nothing is kept.
    ///
    /// # Errors
    /// If the weights are not f32.
    pub fn loss(&self, batch: &Batch, row: usize, work: &mut Workspace) -> Result<f64> {
        self.pass(batch, row, work, None)
    }

    /// As [`Self::loss`], giving the gradient of every trained tensor to `sink`.
    ///
    /// # Errors
    /// If the weights are not f32.
    pub fn gradients(&self, batch: &Batch, row: usize, work: &mut Workspace, sink: &dyn Sink) -> Result<f64> {
        self.pass(batch, row, work, Some(sink))
    }

    fn pass(&self, batch: &Batch, row: usize, work: &mut Workspace, sink: Option<&dyn Sink>) -> Result<f64> {
        let (model, config) = (self.model, self.model.config());
        let (n, c) = (batch.t, config.hidden_size);
        let of_row = row * n..(row + 1) * n;
        let (tokens, targets) = (&batch.tokens[of_row.clone()], &batch.targets[of_row.clone()]);
        let mask = &batch.mask[of_row.clone()];
        if !mask.contains(&true) {
            return Ok(0.0);
        }
        let Workspace { streams, kept, packed, temp, loss: buffers, rope } = work;
        let precision = self.settings.precision;
        let packs = precision == Precision::Bf16 && sink.is_some();
        temp.linear.precision = precision;
        let starts = batch.starts_of(row);
        rope.reach(config, n, &starts);
        let shape = Shape {
            b: 1,
            t: n,
            heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            window: None,
        };
        let sequence = Sequence { n, starts, shape, rope };

        // 1. Forward. Without a backward pass two streams and one layer's activations do.
        let layers = &model.layers;
        let recompute = if sink.is_some() { self.settings.recompute.min(layers.len()) } else { layers.len() };
        streams.resize_with(layers.len() + 1, Vec::new);
        let slots = layers.len() - recompute;
        kept.resize_with(if packs { 1 } else { slots + 1 }, Kept::default);
        packed.resize_with(if packs { slots } else { 0 }, Packed::default);
        let slot = |i: usize| if packs { 0 } else { (i + 1).saturating_sub(recompute) };
        let place = |i: usize| if sink.is_some() { i } else { i % 2 };
        embedding::forward(&floats(&model.embedding)?, tokens, c, sized(&mut streams[0], n * c));
        for (i, layer) in layers.iter().enumerate() {
            let mut out = std::mem::take(&mut streams[place(i + 1)]);
            let x = &streams[place(i)][..n * c];
            self.forward(layer, &sequence, x, &mut kept[slot(i)], temp, Some(sized(&mut out, n * c)))?;
            if packs && i >= recompute {
                packed[i - recompute].store(&kept[0]);
            }
            streams[place(i + 1)] = out;
        }
        let last = &streams[place(layers.len())][..n * c];
        let normed = sized(&mut temp.normed, n * c);
        let eps = config.rms_norm_eps as f32;
        rms_norm::forward(last, &floats(&model.norm)?, eps, normed);
        precision.round(normed);
        let head = floats(&model.head)?;
        let head = precision.operand(&head, &mut temp.linear.weight);
        let head = Head { w: head, c, z_loss: self.settings.z_loss };
        let Some(sink) = sink else {
            return Ok(head.loss(normed, targets, mask, buffers, None, None));
        };

        // 2. Loss, and backward to the last layer's output.
        let dnormed = sized(&mut temp.dnormed, n * c);
        let head_param = self.index(&model.head);
        let mut add = |at: usize, d: &[f32]| sink.add(head_param.unwrap_or(0), at, d);
        let dw: Option<AddPart> = if head_param.is_some() { Some(&mut add) } else { None };
        let loss = head.loss(normed, targets, mask, buffers, Some(dnormed), dw);
        let dx = sized(&mut temp.dx, n * c);
        self.norm_backward(&model.norm, last, dnormed, dx, &mut temp.dnorm, sink)?;

        // 3. Layers from the last to the first, then the embedding.
        let embedding = self.index(&model.embedding);
        for (i, layer) in layers.iter().enumerate().rev() {
            let x = &streams[i][..n * c];
            let kept = &mut kept[slot(i)];
            if i < recompute {
                self.forward(layer, &sequence, x, kept, temp, None)?;
            } else if packs {
                packed[i - recompute].load(kept);
            }
            self.backward(layer, &sequence, x, kept, temp, i > 0 || embedding.is_some(), sink)?;
        }
        if let Some(param) = embedding {
            for (&token, dx) in tokens.iter().zip(temp.dx.chunks_exact(c)) {
                sink.add(param, token as usize * c, dx);
            }
        }
        Ok(loss)
    }

    /// One layer; its activations go to `kept`, its output to `out` where that is wanted.
    fn forward(
        &self,
        layer: &Layer,
        sequence: &Sequence,
        x: &[f32],
        kept: &mut Kept,
        temp: &mut Temp,
        out: Option<&mut [f32]>,
    ) -> Result<()> {
        let config = self.model.config();
        let (n, c, eps) = (sequence.n, config.hidden_size, config.rms_norm_eps as f32);
        let (q_len, kv_len) = sequence.widths();
        let normed = sized(&mut temp.normed, n * c);
        let low = &mut temp.linear;
        let precision = self.settings.precision;

        // 1. Attention
        rms_norm::forward(x, &floats(&layer.attention_norm)?, eps, normed);
        precision.round(normed);
        let qkv = sized(&mut kept.qkv, q_len + 2 * kv_len);
        let heads = sized(&mut kept.heads, q_len);
        let lse = sized(&mut kept.lse, n * config.num_heads);
        match &layer.qkv {
            Qkv::Fused(wqkv) => {
                wqkv.apply(normed, n, Into::Overwrite, qkv, low)?;
                precision.round(qkv);
                attention::forward(&sequence.context(layer), qkv, qkv, qkv, heads, lse);
            }
            Qkv::Separate([wq, wk, wv]) => {
                let (q, k, v) = thirds(qkv, q_len, kv_len);
                for (w, y) in [(wq, &mut *q), (wk, &mut *k), (wv, &mut *v)] {
                    w.apply(normed, n, Into::Overwrite, y, low)?;
                    precision.round(y);
                }
                let (q, k) = norm_heads(layer, q, k, eps, &mut temp.qk)?;
                attention::forward(&sequence.context(layer), q, k, v, heads, lse);
            }
        }
        precision.round(heads);
        let middle = sized(&mut kept.middle, n * c);
        middle.copy_from_slice(x);
        layer.o.apply(heads, n, Into::Add, middle, low)?;

        // 2. Feed-forward
        rms_norm::forward(middle, &floats(&layer.ffn_norm)?, eps, normed);
        precision.round(normed);
        let f = n * config.intermediate_size;
        for (w, y) in [(&layer.gate, &mut kept.gate), (&layer.up, &mut kept.up)] {
            let y = sized(y, f);
            w.apply(normed, n, Into::Overwrite, y, low)?;
            precision.round(y);
        }
        let Some(out) = out else { return Ok(()) };
        let act = sized(&mut temp.act, f);
        swiglu::forward(&kept.gate[..f], &kept.up[..f], act);
        precision.round(act);
        out.copy_from_slice(middle);
        layer.down.apply(act, n, Into::Add, out, low)
    }

    /// Turns `temp.dx` from the gradient of the layer's output into that of its input `x`, which
    /// is left out unless `below` has a use for it.
    #[allow(clippy::too_many_arguments)]
    fn backward(
        &self,
        layer: &Layer,
        sequence: &Sequence,
        x: &[f32],
        kept: &Kept,
        temp: &mut Temp,
        below: bool,
        sink: &dyn Sink,
    ) -> Result<()> {
        let config = self.model.config();
        let (n, c, eps) = (sequence.n, config.hidden_size, config.rms_norm_eps as f32);
        let (q_len, kv_len) = sequence.widths();
        let f = n * config.intermediate_size;
        let (gate, up) = (&kept.gate[..f], &kept.up[..f]);
        let (middle, heads) = (&kept.middle[..n * c], &kept.heads[..q_len]);
        let dx = sized(&mut temp.dx, n * c);
        let dpart = sized(&mut temp.dpart, n * c);
        let normed = sized(&mut temp.normed, n * c);
        let dnormed = sized(&mut temp.dnormed, n * c);
        let work = &mut temp.linear;
        let precision = self.settings.precision;

        // 1. Feed-forward
        let act = sized(&mut temp.act, f);
        swiglu::forward(gate, up, act);
        precision.round(act);
        let dact = sized(&mut temp.dact, f);
        self.linear_backward(&layer.down, act, n, dx, Some((dact, Into::Overwrite)), work, sink)?;
        let (dgate, dup) = (sized(&mut temp.dgate, f), sized(&mut temp.dup, f));
        swiglu::backward(gate, up, dact, dgate, dup);
        rms_norm::forward(middle, &floats(&layer.ffn_norm)?, eps, normed);
        precision.round(normed);
        self.linear_backward(&layer.gate, normed, n, dgate, Some((dnormed, Into::Overwrite)), work, sink)?;
        self.linear_backward(&layer.up, normed, n, dup, Some((dnormed, Into::Add)), work, sink)?;
        self.norm_backward(&layer.ffn_norm, middle, dnormed, dpart, &mut temp.dnorm, sink)?;
        add_assign(dx, dpart);

        // 2. Attention
        let dheads = sized(&mut temp.dheads, q_len);
        self.linear_backward(&layer.o, heads, n, dx, Some((dheads, Into::Overwrite)), work, sink)?;
        rms_norm::forward(x, &floats(&layer.attention_norm)?, eps, normed);
        precision.round(normed);
        let qkv = &kept.qkv[..q_len + 2 * kv_len];
        let lse = &kept.lse[..n * config.num_heads];
        let dqkv = sized(&mut temp.dqkv, q_len + 2 * kv_len);
        let context = sequence.context(layer);
        let below = below || self.index(&layer.attention_norm).is_some();
        match &layer.qkv {
            Qkv::Fused(wqkv) => {
                let gradients = Gradients::Fused(dqkv);
                attention::backward(&context, qkv, qkv, qkv, heads, lse, dheads, gradients);
                let dnormed = below.then_some((&mut *dnormed, Into::Overwrite));
                self.linear_backward(wqkv, normed, n, dqkv, dnormed, work, sink)?;
            }
            Qkv::Separate(projections) => {
                let (raw_q, raw_k, v) = (&qkv[..q_len], &qkv[q_len..q_len + kv_len], &qkv[q_len + kv_len..]);
                let (q, k) = norm_heads(layer, raw_q, raw_k, eps, &mut temp.qk)?;
                let (dq, dk, dv) = thirds(dqkv, q_len, kv_len);
                let gradients = Gradients::Separate(dq, dk, dv);
                attention::backward(&context, q, k, v, heads, lse, dheads, gradients);
                if let Some((q_norm, k_norm)) = &layer.qk_norm {
                    for (norm, raw, d) in [(q_norm, raw_q, &mut *dq), (k_norm, raw_k, &mut *dk)] {
                        let draw = sized(&mut temp.dqk, d.len());
                        self.norm_backward(norm, raw, d, draw, &mut temp.dnorm, sink)?;
                        d.copy_from_slice(draw);
                    }
                }
                for (i, (w, d)) in projections.iter().zip([dq, dk, dv]).enumerate() {
                    let into = if i == 0 { Into::Overwrite } else { Into::Add };
                    let dnormed = below.then_some((&mut *dnormed, into));
                    self.linear_backward(w, normed, n, d, dnormed, work, sink)?;
                }
            }
        }
        if below {
            self.norm_backward(&layer.attention_norm, x, dnormed, dpart, &mut temp.dnorm, sink)?;
            add_assign(dx, dpart);
        }
        Ok(())
    }

    /// Gradients of `y = x w^T + b + s (x a^T) b^T` from `dy`.
    #[allow(clippy::too_many_arguments)]
    fn linear_backward(
        &self,
        linear: &Linear,
        x: &[f32],
        n: usize,
        dy: &[f32],
        dx: Option<(&mut [f32], Into)>,
        work: &mut LinearTemp,
        sink: &dyn Sink,
    ) -> Result<()> {
        let (out, input) = linear.weight.dims2()?;
        let LinearTemp { block, low, dlow, weight, dy: rounded, precision } = work;
        if let Some(param) = linear.bias.as_ref().and_then(|b| self.index(b)) {
            let sum = sized(block, out);
            sum.fill(0.0);
            dy.chunks_exact(out).for_each(|row| add_assign(sum, row));
            sink.add(param, 0, sum);
        }
        let dy = precision.operand(dy, rounded);
        if let Some(param) = self.index(&linear.weight) {
            weight_gradient(param, (dy, out), (x, input), n, 1.0, block, sink);
        }
        let dy_view = View::new(dy, n, out);
        let mut into = None;
        if let Some((dx, how)) = dx {
            let w = floats(&linear.weight)?;
            let w = precision.operand(&w, weight);
            matmul(ViewMut::new(dx, n, input), how, 1.0, dy_view, View::new(w, out, input));
            into = Some(dx);
        }
        let Some(adapter) = &linear.adapter else { return Ok(()) };
        let (a, b) = (floats(&adapter.a)?, floats(&adapter.b)?);
        let r = adapter.a.dim(0)?;
        let (a, b) = (View::new(&a, r, input), View::new(&b, out, r));
        let (low, dlow) = (sized(low, n * r), sized(dlow, n * r));
        matmul(ViewMut::new(low, n, r), Into::Overwrite, 1.0, View::new(x, n, input), a.t());
        matmul(ViewMut::new(dlow, n, r), Into::Overwrite, adapter.scale, dy_view, b);
        if let Some(param) = self.index(&adapter.b) {
            weight_gradient(param, (dy, out), (low, r), n, adapter.scale, block, sink);
        }
        if let Some(param) = self.index(&adapter.a) {
            weight_gradient(param, (dlow, r), (x, input), n, 1.0, block, sink);
        }
        if let Some(dx) = into {
            matmul(ViewMut::new(dx, n, input), Into::Add, 1.0, View::new(dlow, n, r), a);
        }
        Ok(())
    }

    /// Gradients of RMSNorm: `dx` from `dy`, and the weight's where it is trained.
    #[allow(clippy::too_many_arguments)]
    fn norm_backward(
        &self,
        weight: &Tensor,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        dw: &mut Vec<f32>,
        sink: &dyn Sink,
    ) -> Result<()> {
        let eps = self.model.config().rms_norm_eps as f32;
        let w = floats(weight)?;
        let Some(param) = self.index(weight) else {
            rms_norm::backward(x, &w, eps, dy, dx, None);
            return Ok(());
        };
        let dw = sized(dw, w.len());
        dw.fill(0.0);
        rms_norm::backward(x, &w, eps, dy, dx, Some(dw));
        sink.add(param, 0, dw);
        Ok(())
    }
}

/// `scale dy^T x`, `(out, in)`, a block of rows at a time.
fn weight_gradient(
    param: usize,
    (dy, out): (&[f32], usize),
    (x, input): (&[f32], usize),
    n: usize,
    scale: f32,
    block: &mut Vec<f32>,
    sink: &dyn Sink,
) {
    let step = (BLOCK / input).clamp(1, out);
    for from in (0..out).step_by(step) {
        let rows = step.min(out - from);
        let block = sized(block, rows * input);
        let dy = View::strided(&dy[from..], n, rows, out).t();
        matmul(ViewMut::new(block, rows, input), Into::Overwrite, scale, dy, View::new(x, n, input));
        sink.add(param, from * input, block);
    }
}

/// Queries, keys and values, one matrix after the other.
fn thirds(qkv: &mut [f32], q_len: usize, kv_len: usize) -> (&mut [f32], &mut [f32], &mut [f32]) {
    let (q, kv) = qkv.split_at_mut(q_len);
    let (k, v) = kv.split_at_mut(kv_len);
    (q, k, v)
}

/// Queries and keys as attention sees them: normalized per head where the family does so.
fn norm_heads<'a>(
    layer: &Layer,
    q: &'a [f32],
    k: &'a [f32],
    eps: f32,
    normed: &'a mut Vec<f32>,
) -> Result<(&'a [f32], &'a [f32])> {
    let Some((q_norm, k_norm)) = &layer.qk_norm else { return Ok((q, k)) };
    let (q_out, k_out) = sized(normed, q.len() + k.len()).split_at_mut(q.len());
    rms_norm::forward(q, &floats(q_norm)?, eps, q_out);
    rms_norm::forward(k, &floats(k_norm)?, eps, k_out);
    Ok((q_out, k_out))
}

impl Rope {
    /// Makes the tables those of a sequence of `n` tokens whose documents start at `starts`.
    fn reach(&mut self, config: &crate::config::ModelConfig, n: usize, starts: &[u32]) {
        // Only dynamic scaling depends on how many positions are in use.
        let len = match config.rope_scaling {
            RopeScaling::Dynamic { .. } => {
                starts.iter().enumerate().map(|(i, s)| i - *s as usize + 1).max().unwrap_or(n)
            }
            _ => n,
        };
        if self.len != len {
            let (cos, sin) = rope_tables(config, len);
            *self = Self { len, cos, sin };
        }
    }
}

impl Linear {
    /// `y = x w^T + b + s (x a^T) b^T`, or added to `y`.
    fn apply(&self, x: &[f32], n: usize, into: Into, y: &mut [f32], work: &mut LinearTemp) -> Result<()> {
        let (out, input) = self.weight.dims2()?;
        let x = View::new(x, n, input);
        let w = floats(&self.weight)?;
        let w = work.precision.operand(&w, &mut work.weight);
        matmul(ViewMut::new(y, n, out), into, 1.0, x, View::new(w, out, input).t());
        if let Some(bias) = &self.bias {
            let bias = floats(bias)?;
            y.chunks_exact_mut(out).for_each(|row| add_assign(row, &bias));
        }
        if let Some(adapter) = &self.adapter {
            let (a, b) = (floats(&adapter.a)?, floats(&adapter.b)?);
            let r = adapter.a.dim(0)?;
            let low = sized(&mut work.low, n * r);
            matmul(ViewMut::new(low, n, r), Into::Overwrite, 1.0, x, View::new(&a, r, input).t());
            let low = View::new(low, n, r);
            matmul(ViewMut::new(y, n, out), Into::Add, adapter.scale, low, View::new(&b, out, r).t());
        }
        Ok(())
    }
}
