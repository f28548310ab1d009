//! The kernels of `intern-kernels::train` as candle operations with gradients.
//!
//! candle's own fused norms, softmax and RoPE silently drop gradients, and its matmul computes
//! gradients of frozen weights; these operations do neither. All compute in f32 on the CPU;
//! weights may be bf16 or f16 and are widened inside the operation, so no copy outlives it.

mod attention;
mod cross_entropy;
mod embedding;
mod linear;
mod rms_norm;
mod swiglu;

pub(crate) use attention::{Geometry, attention, attention_fused};
pub(crate) use cross_entropy::linear_cross_entropy;
pub(crate) use embedding::embedding;
pub(crate) use linear::{Third, linear};
pub(crate) use rms_norm::rms_norm;
pub(crate) use swiglu::swiglu;

use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;
use std::borrow::Cow;

/// The elements of a contiguous tensor as f32, widened where they are not.
fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<Cow<'a, [f32]>> {
    let Some((from, to)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, found strides {:?} for {:?}", layout.stride(), layout.shape())
    };
    Ok(match storage {
        CpuStorage::F32(data) => Cow::Borrowed(&data[from..to]),
        CpuStorage::BF16(data) => Cow::Owned(data[from..to].par_iter().map(|x| x.to_f32()).collect()),
        CpuStorage::F16(data) => Cow::Owned(data[from..to].par_iter().map(|x| x.to_f32()).collect()),
        _ => bail!("expected f32, f16 or bf16"),
    })
}

/// As [`floats`], of a tensor in a backward pass.
fn stored<'a>(storage: &'a Storage, layout: &Layout) -> Result<Cow<'a, [f32]>> {
    match storage {
        Storage::Cpu(storage) => floats(storage, layout),
        _ => bail!("this operation runs on the CPU"),
    }
}

/// A gradient for `arg`: `data` in its shape and element type.
fn gradient(data: Vec<f32>, arg: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(data, arg.shape(), &Device::Cpu)?.to_dtype(arg.dtype())
}

/// All dimensions but the last multiplied, and the last.
fn rows_and_columns(shape: &Shape) -> Result<(usize, usize)> {
    match shape.dims() {
        [rows @ .., columns] => Ok((rows.iter().product(), *columns)),
        [] => bail!("expected a matrix, found a scalar"),
    }
}

/// `shape` with another last dimension.
fn with_columns(shape: &Shape, columns: usize) -> Shape {
    let mut dims = shape.dims().to_vec();
    *dims.last_mut().expect("a matrix") = columns;
    Shape::from(dims)
}
