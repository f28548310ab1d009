//! The trained parameters in a fixed order, each with its place in the flat buffers that hold
//! gradients and optimizer moments.

use anyhow::{Context, Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Storage, Var};
use rayon::prelude::*;

/// Elements one task takes; fixed, so that sums are folded alike for any thread count.
const CHUNK: usize = 1 << 16;

/// One trained tensor.
#[derive(Clone, Debug)]
pub struct Param {
    /// Its name in checkpoints.
    pub name: String,
    /// Shared with the model; written in place.
    pub var: Var,
    /// Its first element in the flat buffers.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

impl Param {
    /// Whether weight decay applies: matrices, but neither embeddings nor what is tied to them.
    #[must_use]
    pub fn decays(&self) -> bool {
        self.var.rank() >= 2 && !self.name.contains("embed")
    }

    /// Runs `f` on the elements, in place.
    pub fn update(&self, f: impl FnOnce(&mut [f32])) -> Result<()> {
        let op = Update(std::cell::Cell::new(Some(f)));
        self.var.inplace_op1(&op).with_context(|| format!("writing {}", self.name))
    }

    /// Copies the elements out.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        Ok(self.var.flatten_all()?.to_vec1()?)
    }
}

/// Lends a tensor's elements to a closure.
struct Update<F>(std::cell::Cell<Option<F>>);

impl<F: FnOnce(&mut [f32])> InplaceOp1 for Update<F> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(all), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            candle_core::bail!("parameters are contiguous and f32");
        };
        if let Some(f) = self.0.take() {
            f(&mut all[start..end]);
        }
        Ok(())
    }
}

/// All trained tensors.
#[derive(Clone, Debug)]
pub struct Params {
    list: Vec<Param>,
    len: usize,
}

impl Params {
    /// Lays out `vars` one after the other; every one must be f32.
    pub fn new(vars: Vec<(String, Var)>) -> Result<Self> {
        let mut len = 0;
        let mut list = Vec::with_capacity(vars.len());
        for (name, var) in vars {
            ensure!(var.dtype() == DType::F32, "{name} is {:?}; training needs f32", var.dtype());
            let count = var.elem_count();
            list.push(Param { name, var, offset: len, len: count });
            len += count;
        }
        ensure!(len > 0, "there is nothing to train");
        Ok(Self { list, len })
    }

    /// In their fixed order.
    #[must_use]
    pub fn list(&self) -> &[Param] {
        &self.list
    }

    /// Elements of all together.
    #[must_use]
    pub fn num_elements(&self) -> usize {
        self.len
    }
}

/// The gradient of one update, summed over its forward passes, flat.
#[derive(Clone, Debug)]
pub struct Gradients {
    flat: Vec<f32>,
    empty: bool,
}

impl Gradients {
    /// No gradient yet, for parameters laid out as `params`.
    #[must_use]
    pub fn new(params: &Params) -> Self {
        Self { flat: vec![0.0; params.num_elements()], empty: true }
    }

    /// Forgets the last update's gradient.
    pub fn clear(&mut self) {
        self.empty = true;
    }

    /// Adds one backward pass; a parameter without a gradient is an error, never a silent zero.
    pub fn add(&mut self, params: &Params, store: &mut GradStore) -> Result<()> {
        for param in params.list() {
            let grad = store.remove(&param.var).with_context(|| {
                format!("{} received no gradient; its path to the loss is cut", param.name)
            })?;
            let grad = grad.contiguous()?;
            let (storage, layout) = grad.storage_and_layout();
            let (Storage::Cpu(CpuStorage::F32(all)), Some((start, end))) =
                (&*storage, layout.contiguous_offsets())
            else {
                anyhow::bail!("the gradient of {} is not f32 on the CPU", param.name);
            };
            ensure!(end - start == param.len, "the gradient of {} has {} elements", param.name, end - start);
            let into = &mut self.flat[param.offset..param.offset + param.len];
            if self.empty {
                into.copy_from_slice(&all[start..end]);
            } else {
                into.par_chunks_mut(CHUNK).zip(all[start..end].par_chunks(CHUNK)).for_each(|(into, from)| {
                    for (a, b) in into.iter_mut().zip(from) {
                        *a += b;
                    }
                });
            }
        }
        self.empty = false;
        Ok(())
    }

    /// The gradient of one parameter.
    #[must_use]
    pub fn of(&self, param: &Param) -> &[f32] {
        &self.flat[param.offset..param.offset + param.len]
    }

    /// Euclidean norm over all parameters, summed in f64 in a fixed order.
    #[must_use]
    pub fn norm(&self) -> f64 {
        let squares = |chunk: &[f32]| {
            // Eight lanes, so the compiler may vectorize without reordering.
            let mut lanes = [0.0f64; 8];
            let mut groups = chunk.chunks_exact(8);
            for group in &mut groups {
                for (lane, x) in lanes.iter_mut().zip(group) {
                    *lane += f64::from(*x) * f64::from(*x);
                }
            }
            let tail: f64 = groups.remainder().iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            lanes.iter().sum::<f64>() + tail
        };
        let sums: Vec<f64> = self.flat.par_chunks(CHUNK).map(squares).collect();
        sums.iter().sum::<f64>().sqrt()
    }
}
