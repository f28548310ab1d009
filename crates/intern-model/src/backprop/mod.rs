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
//! A rank of a parallel run may hold a part of the model ([`crate::part`]) and work on a part of
//! the sequence ([`split`]): [`Backprop::forward`] and [`Backprop::backward`] take a sequence
//! through one stage.
//!
//! Shapes: `N` tokens of the sequence that a layer works on, `M` rows of the residual stream that
//! this rank has (all `N` where it is alone), the rest as in [`crate::transformer`].

use std::collections::HashMap;

use candle_core::{Result, Tensor, TensorId};
use intern_kernels::train::attention::{self, Context, Gradients, Layout, Shape};
use intern_kernels::train::cross_entropy::{AddPart, Head};
use intern_kernels::train::gemm::{Into, View, ViewMut, matmul};
use intern_kernels::train::math::add_assign;
use intern_kernels::train::{embedding, half, rms_norm, swiglu};
use serde::{Deserialize, Serialize};

use crate::batch::Batch;
use crate::transformer::{Layer, Linear, Qkv, Transformer};

mod memory;
mod ring;
mod split;

pub use memory::{Flight, Workspace};
use memory::{Kept, LinearTemp, Packed, Rope, Temp, floats, sized};
use ring::Ring;
pub use split::{Rows, Split};

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

/// What one sequence's passes share.
struct Sequence<'a> {
    /// Rows of the layers' projections: the sequence's tokens, or this context rank's.
    n: usize,
    /// Of all tokens of the sequence.
    starts: Vec<u32>,
    shape: Shape,
    rope: &'a Rope,
    rows: Rows,
}

impl Sequence<'_> {
    fn context(&self, layer: &Layer) -> Context<'_> {
        let shape = Shape { window: layer.window, ..self.shape };
        let layout = match layer.qkv {
            Qkv::Fused(_) => Layout::fused(&shape),
            Qkv::Separate(_) => Layout::separate(&shape),
        };
        let all = (0, shape.t);
        let Rope { cos, sin, .. } = self.rope;
        Context { shape, layout, starts: &self.starts, queries: all, keys: all, cos, sin }
    }

    /// Elements of queries, and of keys, in separate matrices.
    fn widths(&self) -> (usize, usize) {
        (self.n * self.shape.heads * self.shape.head_dim, self.n * self.shape.kv_heads * self.shape.head_dim)
    }
}

/// A model, or the part of it that a rank holds, ready to be differentiated.
pub struct Backprop<'m> {
    model: &'m Transformer,
    settings: Settings,
    split: Split,
    /// Place of each trained tensor in [`Transformer::trainable_vars`].
    trained: HashMap<TensorId, usize>,
}

impl<'m> Backprop<'m> {
    /// Differentiates with respect to [`Transformer::trainable_vars`].
    #[must_use]
    pub fn new(model: &'m Transformer, settings: Settings) -> Self {
        Self::on(model, settings, Split::none())
    }

    /// As [`Self::new`], on a rank that works on a sequence together with others; they all make
    /// the same calls in the same order.
    #[must_use]
    pub fn on(model: &'m Transformer, settings: Settings, split: Split) -> Self {
        let trained =
            model.trainable_vars().into_iter().enumerate().map(|(i, (_, v))| (v.as_tensor().id(), i));
        Self { model, settings, split, trained: trained.collect() }
    }

    fn index(&self, tensor: &Tensor) -> Option<usize> {
        self.trained.get(&tensor.id()).copied()
    }

    /// Elements of the residual stream of a sequence of `len` tokens that this rank has.
    #[must_use]
    pub fn stream_len(&self, len: usize) -> usize {
        self.split.rows(len).own.len() * self.model.config().hidden_size
    }

    /// Summed cross-entropy of row `row` of `batch` in nats, over its mask; nothing is kept. Of the
    /// rows this rank has, where several share a sequence.
    ///
    /// # Errors
    /// If the weights are not f32, or another rank has ended.
    pub fn loss(&self, batch: &Batch, row: usize, work: &mut Workspace) -> Result<f64> {
        let mut flight = std::mem::take(&mut work.flight);
        let loss = self.forward(0, batch, row, &[], false, &mut flight, work);
        let loss = loss.and_then(|()| self.stage_loss(batch, row, &flight, work));
        work.flight = flight;
        loss
    }

    /// As [`Self::loss`], giving the gradient of every trained tensor to `sink`.
    ///
    /// # Errors
    /// As [`Self::loss`].
    pub fn gradients(&self, batch: &Batch, row: usize, work: &mut Workspace, sink: &dyn Sink) -> Result<f64> {
        let mut flight = std::mem::take(&mut work.flight);
        let loss = self.forward(0, batch, row, &[], true, &mut flight, work);
        let loss = loss.and_then(|()| self.backward(0, batch, row, &[], &mut flight, work, sink));
        work.flight = flight;
        loss
    }

    fn sequence<'r>(&self, batch: &Batch, row: usize, rope: &'r mut Rope) -> Sequence<'r> {
        let config = self.model.config();
        let (starts, rows) = (batch.starts_of(row), self.split.rows(batch.t));
        rope.reach(config, batch.t, &starts);
        let shape = Shape {
            b: 1,
            t: batch.t,
            heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            window: None,
        };
        Sequence { n: rows.n, starts, shape, rope, rows }
    }

    /// The layers of stage `stage`, and how many of them, from the first, are computed twice.
    fn layers(&self, stage: usize, keep: bool) -> (&[Layer], usize) {
        let stages = &self.model.part().stages;
        let before: usize = stages[..stage].iter().map(|s| s.layers.len()).sum();
        let layers = &self.model.layers[before..before + stages[stage].layers.len()];
        let share = (self.settings.recompute * layers.len()).div_ceil(self.model.config().num_layers.max(1));
        (layers, if keep { share.min(layers.len()) } else { layers.len() })
    }

    /// Takes row `row` of `batch` through stage `stage` of this rank: from `input`, the residual
    /// stream `(M, C)` that the stage before gave (the first looks its tokens up), to
    /// [`Flight::output`]. With `keep`, `flight` then holds what [`Self::backward`] needs.
    ///
    /// # Errors
    /// As [`Self::loss`].
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        stage: usize,
        batch: &Batch,
        row: usize,
        input: &[f32],
        keep: bool,
        flight: &mut Flight,
        work: &mut Workspace,
    ) -> Result<()> {
        let of_row = row * batch.t..(row + 1) * batch.t;
        if !batch.mask[of_row.clone()].contains(&true) {
            return Ok(());
        }
        let Workspace { temp, rope, .. } = work;
        let Flight { streams, kept, packed, output } = flight;
        let packs = self.settings.precision == Precision::Bf16 && keep;
        temp.linear.precision = self.settings.precision;
        let sequence = self.sequence(batch, row, rope);
        let c = self.model.config().hidden_size;
        let len = sequence.rows.own.len() * c;
        let (layers, recompute) = self.layers(stage, keep);

        // Without a backward pass two streams and one layer's activations do.
        streams.resize_with(layers.len() + 1, Vec::new);
        let slots = layers.len() - recompute;
        kept.resize_with(if packs { 1 } else { slots + 1 }, Kept::default);
        packed.resize_with(if packs { slots } else { 0 }, Packed::default);
        let place = |i: usize| if keep { i } else { i % 2 };
        if self.model.part().stages[stage].first {
            let tokens = sequence.rows.pick(&batch.tokens[of_row]);
            embedding::forward(&floats(&self.model.embedding)?, &tokens, c, sized(&mut streams[0], len));
        } else {
            sized(&mut streams[0], len).copy_from_slice(input);
        }
        for (i, layer) in layers.iter().enumerate() {
            let mut out = std::mem::take(&mut streams[place(i + 1)]);
            let x = &streams[place(i)][..len];
            let kept = &mut kept[slot(i, recompute, packs)];
            self.layer_forward(layer, &sequence, x, kept, temp, Some(sized(&mut out, len)))?;
            if packs && i >= recompute {
                packed[i - recompute].store(kept);
            }
            streams[place(i + 1)] = out;
        }
        *output = (place(layers.len()), len);
        Ok(())
    }

    /// The loss of what the last stage's [`Self::forward`] left in `flight`.
    ///
    /// # Errors
    /// As [`Self::loss`].
    pub fn stage_loss(
        &self,
        batch: &Batch,
        row: usize,
        flight: &Flight,
        work: &mut Workspace,
    ) -> Result<f64> {
        let of_row = row * batch.t..(row + 1) * batch.t;
        if !batch.mask[of_row].contains(&true) {
            return Ok(0.0);
        }
        self.head(batch, row, flight.output(), work, None)
    }

    /// The loss of the last layer's output `x`; with a sink its gradient too, in `temp.dx`.
    fn head(
        &self,
        batch: &Batch,
        row: usize,
        x: &[f32],
        work: &mut Workspace,
        sink: Option<&dyn Sink>,
    ) -> Result<f64> {
        let (model, config) = (self.model, self.model.config());
        let of_row = row * batch.t..(row + 1) * batch.t;
        let rows = self.split.rows(batch.t);
        let targets = rows.pick(&batch.targets[of_row.clone()]);
        let mask = rows.pick(&batch.mask[of_row]);
        let Workspace { temp, loss: buffers, .. } = work;
        let precision = self.settings.precision;
        let normed = sized(&mut temp.normed, x.len());
        rms_norm::forward(x, &floats(&model.norm)?, config.rms_norm_eps as f32, normed);
        precision.round(normed);
        let head = floats(&model.head)?;
        let head = precision.operand(&head, &mut temp.linear.weight);
        let head = Head { w: head, c: config.hidden_size, z_loss: self.settings.z_loss };
        let Some(sink) = sink else {
            return Ok(head.loss(normed, &targets, &mask, buffers, None, None));
        };
        let dnormed = sized(&mut temp.dnormed, x.len());
        let param = self.index(&model.head);
        let mut add = |at: usize, d: &[f32]| sink.add(param.unwrap_or(0), at, d);
        let dw: Option<AddPart> = if param.is_some() { Some(&mut add) } else { None };
        let loss = head.loss(normed, &targets, &mask, buffers, Some(dnormed), dw);
        let dx = sized(&mut temp.dx, x.len());
        self.norm_backward(&model.norm, x, dnormed, dx, &mut temp.dnorm, sink)?;
        Ok(loss)
    }

    /// The backward pass of what [`Self::forward`] kept in `flight`, from `dout` `(M, C)`, the
    /// gradient of the stage's output; the last stage starts from its loss and returns it. Leaves
    /// the gradient of the stage's input in [`Workspace::input_gradient`].
    ///
    /// # Errors
    /// As [`Self::loss`].
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        stage: usize,
        batch: &Batch,
        row: usize,
        dout: &[f32],
        flight: &mut Flight,
        work: &mut Workspace,
        sink: &dyn Sink,
    ) -> Result<f64> {
        let of_row = row * batch.t..(row + 1) * batch.t;
        let len = self.stream_len(batch.t);
        if !batch.mask[of_row.clone()].contains(&true) {
            sized(&mut work.temp.dx, len).fill(0.0);
            return Ok(0.0);
        }
        let is = &self.model.part().stages[stage];
        let mut loss = 0.0;
        if is.last {
            loss = self.head(batch, row, flight.output(), work, Some(sink))?;
        } else {
            sized(&mut work.temp.dx, len).copy_from_slice(dout);
        }
        let Workspace { temp, rope, .. } = work;
        let Flight { streams, kept, packed, .. } = flight;
        let packs = self.settings.precision == Precision::Bf16;
        temp.linear.precision = self.settings.precision;
        let sequence = self.sequence(batch, row, rope);
        let (layers, recompute) = self.layers(stage, true);
        let embedding = self.index(&self.model.embedding);
        for (i, layer) in layers.iter().enumerate().rev() {
            let x = &streams[i][..len];
            let kept = &mut kept[slot(i, recompute, packs)];
            if i < recompute {
                self.layer_forward(layer, &sequence, x, kept, temp, None)?;
            } else if packs {
                packed[i - recompute].load(kept);
            }
            let below = i > 0 || !is.first || embedding.is_some();
            self.layer_backward(layer, &sequence, x, kept, temp, below, sink)?;
        }
        if let Some(param) = embedding.filter(|_| is.first) {
            let c = self.model.config().hidden_size;
            let tokens = sequence.rows.pick(&batch.tokens[of_row]);
            for (&token, dx) in tokens.iter().zip(temp.dx.chunks_exact(c)) {
                sink.add(param, token as usize * c, dx);
            }
        }
        Ok(loss)
    }

    /// One layer; its activations go to `kept`, its output to `out` where that is wanted.
    fn layer_forward(
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
        let normed = sized(&mut temp.normed, x.len());
        let low = &mut temp.linear;
        let precision = self.settings.precision;

        // 1. Attention
        rms_norm::forward(x, &floats(&layer.attention_norm)?, eps, normed);
        precision.round(normed);
        let input = met(self.split.gather(&sequence.rows, normed, c, &mut temp.gathered))?;
        let qkv = sized(&mut kept.qkv, q_len + 2 * kv_len);
        let heads = sized(&mut kept.heads, q_len);
        let lse = sized(&mut kept.lse, n * config.num_heads);
        match &layer.qkv {
            Qkv::Fused(wqkv) => {
                wqkv.apply(input, n, Into::Overwrite, qkv, low)?;
                precision.round(qkv);
                self.attend(sequence, layer, [qkv; 3], heads, lse)?;
            }
            Qkv::Separate([wq, wk, wv]) => {
                let (q, k, v) = thirds(qkv, q_len, kv_len);
                for (w, y) in [(wq, &mut *q), (wk, &mut *k), (wv, &mut *v)] {
                    w.apply(input, n, Into::Overwrite, y, low)?;
                    precision.round(y);
                }
                let (q, k) = norm_heads(layer, q, k, eps, &mut temp.qk)?;
                self.attend(sequence, layer, [q, k, v], heads, lse)?;
            }
        }
        precision.round(heads);
        let middle = sized(&mut kept.middle, x.len());
        middle.copy_from_slice(x);
        self.apply_onto(&layer.o, heads, sequence, middle, &mut temp.full, low)?;

        // 2. Feed-forward
        rms_norm::forward(middle, &floats(&layer.ffn_norm)?, eps, normed);
        precision.round(normed);
        let input = met(self.split.gather(&sequence.rows, normed, c, &mut temp.gathered))?;
        let f = n * config.intermediate_size;
        for (w, y) in [(&layer.gate, &mut kept.gate), (&layer.up, &mut kept.up)] {
            let y = sized(y, f);
            w.apply(input, n, Into::Overwrite, y, low)?;
            precision.round(y);
        }
        let Some(out) = out else { return Ok(()) };
        let act = sized(&mut temp.act, f);
        swiglu::forward(&kept.gate[..f], &kept.up[..f], act);
        precision.round(act);
        out.copy_from_slice(middle);
        self.apply_onto(&layer.down, act, sequence, out, &mut temp.full, low)
    }

    /// Adds `linear` of `x` `(N, in)` to the residual stream; its columns may lie on several ranks.
    fn apply_onto(
        &self,
        linear: &Linear,
        x: &[f32],
        sequence: &Sequence,
        residual: &mut [f32],
        full: &mut Vec<f32>,
        low: &mut LinearTemp,
    ) -> Result<()> {
        if self.split.tensor.size() == 1 {
            return linear.apply(x, sequence.n, Into::Add, residual, low);
        }
        let c = self.model.config().hidden_size;
        let partial = sized(full, sequence.n * c);
        linear.apply(x, sequence.n, Into::Overwrite, partial, low)?;
        met(self.split.scatter_onto(&sequence.rows, partial, c, residual))
    }

    /// Attention of the sequence's queries to its keys and values.
    fn attend(
        &self,
        sequence: &Sequence,
        layer: &Layer,
        [q, k, v]: [&[f32]; 3],
        heads: &mut [f32],
        lse: &mut [f32],
    ) -> Result<()> {
        let context = sequence.context(layer);
        if self.split.context.size() > 1 {
            let ring = Ring { ranks: &self.split.context, whole: context };
            return met(ring.forward([q, k, v], heads, lse));
        }
        attention::forward(&context, q, k, v, heads, lse);
        Ok(())
    }

    /// Turns `temp.dx` from the gradient of the layer's output into that of its input `x`, which
    /// is left out unless `below` has a use for it.
    #[allow(clippy::too_many_arguments)]
    fn layer_backward(
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
        let (rows, split) = (&sequence.rows, &self.split);
        let f = n * config.intermediate_size;
        let (gate, up) = (&kept.gate[..f], &kept.up[..f]);
        let (middle, heads) = (&kept.middle[..x.len()], &kept.heads[..q_len]);
        let dx = sized(&mut temp.dx, x.len());
        let dpart = sized(&mut temp.dpart, x.len());
        let normed = sized(&mut temp.normed, x.len());
        let dnormed = sized(&mut temp.dnormed, n * c);
        let work = &mut temp.linear;
        let precision = self.settings.precision;

        // 1. Feed-forward
        let act = sized(&mut temp.act, f);
        swiglu::forward(gate, up, act);
        precision.round(act);
        let dact = sized(&mut temp.dact, f);
        let dy = met(split.gather(rows, dx, c, &mut temp.full))?;
        self.linear_backward(&layer.down, act, n, dy, Some((dact, Into::Overwrite)), work, sink)?;
        let (dgate, dup) = (sized(&mut temp.dgate, f), sized(&mut temp.dup, f));
        swiglu::backward(gate, up, dact, dgate, dup);
        rms_norm::forward(middle, &floats(&layer.ffn_norm)?, eps, normed);
        precision.round(normed);
        let input = met(split.gather(rows, normed, c, &mut temp.gathered))?;
        self.linear_backward(&layer.gate, input, n, dgate, Some((dnormed, Into::Overwrite)), work, sink)?;
        self.linear_backward(&layer.up, input, n, dup, Some((dnormed, Into::Add)), work, sink)?;
        let down = met(split.scatter(rows, dnormed, c))?;
        self.norm_backward(&layer.ffn_norm, middle, down, dpart, &mut temp.dnorm, sink)?;
        add_assign(dx, dpart);

        // 2. Attention
        let dheads = sized(&mut temp.dheads, q_len);
        let dy = met(split.gather(rows, dx, c, &mut temp.full))?;
        self.linear_backward(&layer.o, heads, n, dy, Some((dheads, Into::Overwrite)), work, sink)?;
        rms_norm::forward(x, &floats(&layer.attention_norm)?, eps, normed);
        precision.round(normed);
        let input = met(split.gather(rows, normed, c, &mut temp.gathered))?;
        let qkv = &kept.qkv[..q_len + 2 * kv_len];
        let lse = &kept.lse[..n * config.num_heads];
        let dqkv = sized(&mut temp.dqkv, q_len + 2 * kv_len);
        let below = below || self.index(&layer.attention_norm).is_some();
        match &layer.qkv {
            Qkv::Fused(wqkv) => {
                let gradients = Gradients::Fused(dqkv);
                self.attend_backward(sequence, layer, [qkv; 3], heads, lse, dheads, gradients)?;
                let dnormed = below.then_some((&mut *dnormed, Into::Overwrite));
                self.linear_backward(wqkv, input, n, dqkv, dnormed, work, sink)?;
            }
            Qkv::Separate(projections) => {
                let (raw_q, raw_k, v) = (&qkv[..q_len], &qkv[q_len..q_len + kv_len], &qkv[q_len + kv_len..]);
                let (q, k) = norm_heads(layer, raw_q, raw_k, eps, &mut temp.qk)?;
                let (dq, dk, dv) = thirds(dqkv, q_len, kv_len);
                let gradients = Gradients::Separate(dq, dk, dv);
                self.attend_backward(sequence, layer, [q, k, v], heads, lse, dheads, gradients)?;
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
                    self.linear_backward(w, input, n, d, dnormed, work, sink)?;
                }
            }
        }
        if below {
            let down = met(split.scatter(rows, dnormed, c))?;
            self.norm_backward(&layer.attention_norm, x, down, dpart, &mut temp.dnorm, sink)?;
            add_assign(dx, dpart);
        }
        Ok(())
    }

    /// The gradients of [`Self::attend`].
    #[allow(clippy::too_many_arguments)]
    fn attend_backward(
        &self,
        sequence: &Sequence,
        layer: &Layer,
        [q, k, v]: [&[f32]; 3],
        heads: &[f32],
        lse: &[f32],
        dheads: &[f32],
        gradients: Gradients,
    ) -> Result<()> {
        let context = sequence.context(layer);
        if self.split.context.size() > 1 {
            let ring = Ring { ranks: &self.split.context, whole: context };
            return met(ring.backward([q, k, v], heads, lse, dheads, gradients));
        }
        attention::backward(&context, q, k, v, heads, lse, dheads, gradients);
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

/// Where layer `i` of a stage, of which the first `recompute` are computed twice, keeps what the
/// backward pass needs.
fn slot(i: usize, recompute: usize, packs: bool) -> usize {
    if packs { 0 } else { (i + 1).saturating_sub(recompute) }
}

/// What a meeting of ranks gave, as candle's result.
fn met<T>(result: anyhow::Result<T>) -> Result<T> {
    result.map_err(|e| candle_core::Error::msg(format!("{e:#}")))
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
