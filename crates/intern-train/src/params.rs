//! The trained parameters in a fixed order, each with its place in the flat buffers that hold
//! gradients and optimizer moments.

use anyhow::{Context, Result, ensure};
use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Var};
use intern_comm::Comm;
use intern_kernels::train::fixed::FixedSum;
use intern_model::backprop::Sink;

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
    /// One past its last element in the flat buffers.
    #[must_use]
    pub fn end(&self) -> usize {
        self.offset + self.len
    }

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

    /// Gives every rank part `r` of the flat parameters as rank `r` has it; part `r` is
    /// `cuts[r]..cuts[r + 1]`.
    pub fn gather(&self, comm: &Comm, cuts: &[usize]) -> Result<()> {
        if comm.size() == 1 {
            return Ok(());
        }
        for param in &self.list {
            // The parts of this tensor; most lie on one rank.
            let own: Vec<usize> =
                cuts.iter().map(|c| c.clamp(&param.offset, &param.end()) - param.offset).collect();
            let mut result = Ok(());
            param.update(|p| result = comm.all_gather(p, &own))?;
            result?;
        }
        Ok(())
    }

    /// Elements of all together.
    #[must_use]
    pub fn num_elements(&self) -> usize {
        self.len
    }
}

/// The gradients of one update: order-free sums, flat like the parameters.
pub struct Gradients {
    /// One sum per element.
    pub sums: FixedSum,
    offsets: Vec<usize>,
}

impl Gradients {
    /// For parameters laid out as `params`.
    #[must_use]
    pub fn new(params: &Params) -> Self {
        Self {
            sums: FixedSum::new(params.num_elements()),
            offsets: params.list().iter().map(|p| p.offset).collect(),
        }
    }
}

impl Sink for Gradients {
    fn add(&self, param: usize, at: usize, values: &[f32]) {
        self.sums.add(self.offsets[param] + at, values);
    }
}
