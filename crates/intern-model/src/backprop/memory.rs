//! The buffers of a pass, used again for the next one.
//!
//! `N` tokens a layer works on, `M` rows of the residual stream this rank has; the rest as in
//! [`crate::transformer`].

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Result, Storage, Tensor, bail};
use intern_kernels::train::cross_entropy::Buffers;
use intern_kernels::train::half;

use super::Precision;
use crate::config::{ModelConfig, RopeScaling};
use crate::rope::rope_tables;

/// The memory of a pass at work; grows to what it needs and stays.
#[derive(Default)]
pub struct Workspace {
    pub(super) flight: Flight,
    pub(super) temp: Temp,
    pub(super) loss: Buffers,
    pub(super) rope: Rope,
}

/// What the backward pass of a sequence needs of its forward pass; grows and stays, too. There are
/// several where forward passes of other sequences come in between.
#[derive(Default)]
pub struct Flight {
    /// Each layer's input, and the last one's output; `(M, C)`.
    pub(super) streams: Vec<Vec<f32>>,
    pub(super) kept: Vec<Kept>,
    /// With bf16: what is kept of each layer, which the one element of `kept` takes turns to hold.
    pub(super) packed: Vec<Packed>,
    /// Which of `streams` is the output, and its elements.
    pub(super) output: (usize, usize),
}

impl Flight {
    /// The residual stream after the stage's last layer, `(M, C)`.
    #[must_use]
    pub fn output(&self) -> &[f32] {
        let (place, len) = self.output;
        &self.streams[place][..len]
    }
}

impl Workspace {
    /// The gradient of the stage's input, `(M, C)`, that the backward pass left.
    #[must_use]
    pub fn input_gradient(&self, len: usize) -> &[f32] {
        &self.temp.dx[..len]
    }
}

/// What a layer's backward pass needs of its forward pass besides its input.
#[derive(Default)]
pub(super) struct Kept {
    pub(super) qkv: Vec<f32>,    // (N, (H + 2 G) D), or three matrices one after the other
    pub(super) heads: Vec<f32>,  // (N, H D)
    pub(super) lse: Vec<f32>,    // (H, N)
    pub(super) middle: Vec<f32>, // (N, C): after attention
    pub(super) gate: Vec<f32>,   // (N, F)
    pub(super) up: Vec<f32>,     // (N, F)
}

/// [`Kept`] in fewer bytes.
#[derive(Default)]
pub(super) struct Packed {
    pub(super) halves: [Vec<u16>; 4], // of qkv, heads, gate and up
    pub(super) lse: Vec<f32>,
    pub(super) middle: Vec<f32>,
}

impl Packed {
    pub(super) fn store(&mut self, kept: &Kept) {
        for (packed, x) in self.halves.iter_mut().zip([&kept.qkv, &kept.heads, &kept.gate, &kept.up]) {
            packed.resize(x.len(), 0);
            half::pack(x, packed);
        }
        self.lse.clone_from(&kept.lse);
        self.middle.clone_from(&kept.middle);
    }

    pub(super) fn load(&self, kept: &mut Kept) {
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
pub(super) struct Temp {
    pub(super) normed: Vec<f32>,  // (N, C)
    pub(super) qk: Vec<f32>,      // (N, (H + G) D): normalized queries and keys
    pub(super) act: Vec<f32>,     // (N, F)
    pub(super) dact: Vec<f32>,    // (N, F)
    pub(super) dgate: Vec<f32>,   // (N, F)
    pub(super) dup: Vec<f32>,     // (N, F)
    pub(super) dheads: Vec<f32>,  // (N, H D)
    pub(super) dqkv: Vec<f32>,    // as qkv
    pub(super) dqk: Vec<f32>,     // as qk
    pub(super) dnormed: Vec<f32>, // (N, C)
    pub(super) dx: Vec<f32>,      // (N, C): of the residual stream
    pub(super) dpart: Vec<f32>,   // (N, C)
    pub(super) dnorm: Vec<f32>,   // (C,)
    pub(super) linear: LinearTemp,
    pub(super) gathered: Vec<f32>, // (N, C): of all ranks that share the layer
    pub(super) full: Vec<f32>,     // (N, C): a partial sum, or the stream's gradient, of all rows
}

/// Memory of one projection.
#[derive(Default)]
pub(super) struct LinearTemp {
    pub(super) block: Vec<f32>,
    pub(super) low: Vec<f32>,  // (N, R)
    pub(super) dlow: Vec<f32>, // (N, R)
    /// Operands rounded to bf16.
    pub(super) weight: Vec<f32>,
    pub(super) dy: Vec<f32>,
    pub(super) precision: Precision,
}

/// Rotary tables of positions `0..len`.
#[derive(Default)]
pub(super) struct Rope {
    pub(super) len: usize,
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
}

/// The first `n` elements of a buffer, which grows where it is shorter.
pub(super) fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
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

pub(super) fn floats(tensor: &Tensor) -> Result<impl Deref<Target = [f32]> + '_> {
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(_)), Some((from, to))) => Ok(Floats(storage, from..to)),
        _ => bail!("training needs contiguous f32 weights on the CPU, found {:?}", tensor.dtype()),
    }
}

impl Rope {
    /// Makes the tables those of a sequence of `n` tokens whose documents start at `starts`.
    pub(super) fn reach(&mut self, config: &ModelConfig, n: usize, starts: &[u32]) {
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
