//! The trained parameters in a fixed order, each with its place in the flat buffers that hold
//! gradients and optimizer moments.
//!
//! On a rank that holds slices of its layers, these come first in the buffers, then what is not
//! cut: the two are summed over different ranks.

use std::collections::HashMap;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Var};
use intern_comm::Comm;
use intern_kernels::train::fixed::{CHUNK, FixedSum};
use intern_model::ModelConfig;
use intern_model::backprop::Sink;
use intern_model::part::{Part, Piece};

use crate::config::OptimizerConfig;
use crate::optimizer::is_muons;

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
    /// The tensor it is of, and which part.
    pub piece: Piece,
    /// Number of its first [`Chunk`] among those of the whole model.
    first_chunk: usize,
    /// Several ranks may each update some of it.
    may_cut: bool,
}

/// Consecutive elements of one parameter, whose squares are summed by one rank in one order: so the
/// norm of the whole gradient does not depend on who has which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its elements in the flat buffers.
    pub elements: Range<usize>,
    /// Its number among those of the whole model.
    pub number: usize,
}

impl Param {
    /// One past its last element in the flat buffers.
    #[must_use]
    pub fn end(&self) -> usize {
        self.offset + self.len
    }

    /// Whether it multiplies activations: weight decay applies.
    #[must_use]
    pub fn is_matrix(&self) -> bool {
        is_matrix(&self.name, self.piece.shape.len())
    }

    /// Runs `f` on the elements that are here, in place: all, unless [`Self::storage`] left fewer.
    pub fn update(&self, f: impl FnOnce(&mut [f32])) -> Result<()> {
        self.storage(|all| f(all))
    }

    /// Lends what holds the elements. Whoever leaves fewer brings them back before the tensor is used.
    pub fn storage(&self, f: impl FnOnce(&mut Vec<f32>)) -> Result<()> {
        let op = Update(std::cell::Cell::new(Some(f)));
        self.var.inplace_op1(&op).with_context(|| format!("writing {}", self.name))
    }

    /// Copies the elements out.
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        Ok(self.var.flatten_all()?.to_vec1()?)
    }
}

/// Whether the tensor `name` of so many dimensions is a matrix, but no table of embeddings, nor what is
/// tied to one.
#[must_use]
pub fn is_matrix(name: &str, dims: usize) -> bool {
    dims >= 2 && !name.contains("embed")
}

/// Cuts the elements `range` into `parts` of nearly equal length: between two of `tensors`, or a
/// multiple of [`CHUNK`] after the start of one that may be cut.
pub(crate) fn cuts(
    tensors: impl Iterator<Item = (Range<usize>, bool)> + Clone,
    range: &Range<usize>,
    parts: usize,
) -> Vec<usize> {
    let snapped = |at: usize| match tensors.clone().find(|(t, _)| t.contains(&at)) {
        Some((t, true)) => t.start + (at - t.start) / CHUNK * CHUNK,
        Some((t, false)) => t.start,
        None => at,
    };
    let mut cuts: Vec<usize> =
        (0..parts).map(|i| range.start.max(snapped(range.start + range.len() * i / parts))).collect();
    cuts.push(range.end);
    cuts
}

/// Lends what holds a tensor's elements to a closure.
struct Update<F>(std::cell::Cell<Option<F>>);

impl<F: FnOnce(&mut Vec<f32>)> InplaceOp1 for Update<F> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (CpuStorage::F32(all), Some((0, _))) = (storage, layout.contiguous_offsets()) else {
            candle_core::bail!("parameters are contiguous and f32, each by itself");
        };
        if let Some(f) = self.0.take() {
            f(all);
        }
        Ok(())
    }
}

/// All trained tensors.
#[derive(Clone, Debug)]
pub struct Params {
    list: Vec<Param>,
    len: usize,
    /// Elements of the parameters that are cut; these come first.
    cut: usize,
    /// Chunks of the whole model.
    chunks: usize,
}

impl Params {
    /// Lays out `vars` one after the other; every one must be f32.
    pub fn new(vars: Vec<(String, Var)>, optimizer: &OptimizerConfig) -> Result<Self> {
        let mut chunks = 0;
        let placed = vars.into_iter().map(|(name, var)| {
            let first = chunks;
            chunks += var.elem_count().div_ceil(CHUNK);
            (Piece { shape: var.dims().to_vec(), name, cut: None }, var, first)
        });
        let placed: Vec<_> = placed.collect();
        Self::lay_out(placed, chunks, optimizer)
    }

    /// Lays out `vars`, the weights of the part of the model `whole` that this rank holds.
    pub fn of_part(
        vars: Vec<(String, Var)>,
        part: &Part,
        whole: &ModelConfig,
        optimizer: &OptimizerConfig,
    ) -> Result<Self> {
        // Every rank numbers the chunks of all, the slices of a cut tensor one after the other.
        let everything = Part { tensor: part.tensor, ..Part::whole(whole.num_layers) };
        let mut numbers = HashMap::new();
        let mut chunks = 0;
        for piece in everything.pieces(whole) {
            let of_slice = piece.held_shape().iter().product::<usize>().div_ceil(CHUNK);
            let slices = if piece.cut.is_some() { part.tensor } else { 1 };
            numbers.insert(piece.name, (chunks, of_slice));
            chunks += slices * of_slice;
        }
        let pieces = part.pieces(whole);
        ensure!(
            pieces.len() == vars.len() && pieces.iter().zip(&vars).all(|(p, (name, _))| p.name == *name),
            "the weights are not those of the part"
        );
        let placed = pieces.into_iter().zip(vars).map(|(piece, (_, var))| {
            let (first, of_slice) = numbers[&piece.name];
            let slice = if piece.cut.is_some() { part.tensor_rank } else { 0 };
            (piece, var, first + slice * of_slice)
        });
        Self::lay_out(placed.collect(), chunks, optimizer)
    }

    fn lay_out(vars: Vec<(Piece, Var, usize)>, chunks: usize, optimizer: &OptimizerConfig) -> Result<Self> {
        let count = |cut: bool| -> usize {
            vars.iter().filter(|(p, ..)| p.cut.is_some() == cut).map(|(_, v, _)| v.elem_count()).sum()
        };
        let cut = count(true);
        let (mut at, len) = ([0, cut], cut + count(false));
        let mut list = Vec::with_capacity(vars.len());
        for (piece, var, first_chunk) in vars {
            let name = piece.name.clone();
            ensure!(var.dtype() == DType::F32, "{name} is {:?}; training needs f32", var.dtype());
            let (len, at) = (var.elem_count(), &mut at[usize::from(piece.cut.is_none())]);
            let may_cut = !is_muons(optimizer, &name, piece.shape.len());
            list.push(Param { name, var, offset: *at, len, piece, first_chunk, may_cut });
            *at += len;
        }
        ensure!(len > 0, "there is nothing to train");
        Ok(Self { list, len, cut, chunks })
    }

    /// The elements of the parameters that are cut between tensor ranks, and of the others.
    #[must_use]
    pub fn kinds(&self) -> [Range<usize>; 2] {
        [0..self.cut, self.cut..self.len]
    }

    /// Chunks of the whole model.
    #[must_use]
    pub fn num_chunks(&self) -> usize {
        self.chunks
    }

    /// This rank's chunks within `range`, which [`Self::cuts`] gave.
    pub fn chunks(&self, range: Range<usize>) -> impl Iterator<Item = Chunk> + '_ {
        let all = self.list.iter().flat_map(|p| {
            (0..p.len).step_by(CHUNK).enumerate().map(|(i, from)| Chunk {
                elements: p.offset + from..p.offset + p.len.min(from + CHUNK),
                number: p.first_chunk + i,
            })
        });
        all.filter(move |c| range.start <= c.elements.start && c.elements.end <= range.end)
    }

    /// Cuts the elements `range` into `parts` of nearly equal length, between chunks.
    #[must_use]
    pub fn cuts(&self, range: &Range<usize>, parts: usize) -> Vec<usize> {
        cuts(self.list.iter().map(|p| (p.offset..p.end(), p.may_cut)), range, parts)
    }

    /// In their fixed order.
    #[must_use]
    pub fn list(&self) -> &[Param] {
        &self.list
    }

    /// Gives every rank part `r` of a range of the flat parameters as rank `r` has it; part `r` is
    /// `cuts[r]..cuts[r + 1]`.
    pub fn gather(&self, comm: &Comm, cuts: &[usize]) -> Result<()> {
        if comm.size() == 1 {
            return Ok(());
        }
        for param in self.list.iter().filter(|p| p.offset < cuts[comm.size()] && cuts[0] < p.end()) {
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

    /// For none.
    #[must_use]
    pub fn none() -> Self {
        Self { sums: FixedSum::new(0), offsets: Vec::new() }
    }
}

impl Sink for Gradients {
    fn add(&self, param: usize, at: usize, values: &[f32]) {
        self.sums.add(self.offsets[param] + at, values);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use intern_model::{Architecture, Transformer};

    use super::*;
    use crate::config::Kind;

    #[test]
    fn every_chunk_of_the_model_has_one_owner() {
        let config = ModelConfig::small(Architecture::Llama, 700, 128, 3, 4, 2);
        let muon = OptimizerConfig { kind: Kind::Muon, ..OptimizerConfig::default() };
        let grids = [(1, 1, 1), (1, 1, 3), (3, 1, 2), (1, 2, 2), (3, 2, 1)];
        let optimizers = [OptimizerConfig::default(), muon];
        for ((pipeline, tensor, replicas), optimizer) in
            grids.into_iter().flat_map(|grid| optimizers.clone().map(|o| (grid, o)))
        {
            let mut owners = Vec::new();
            for (p, t) in (0..pipeline).flat_map(|p| (0..tensor).map(move |t| (p, t))) {
                let part = Part::of_pipeline(3, p, pipeline, 1, t, tensor);
                let model = Transformer::init_part(&config, 0, 1.0, &part, &Device::Cpu).unwrap();
                let params = Params::of_part(model.named_vars(), &part, &config, &optimizer).unwrap();
                owners.resize(params.num_chunks(), 0);
                let mut len = 0;
                for (kind, shared) in params.kinds().into_iter().zip([1, tensor]) {
                    let cuts = params.cuts(&kind, replicas);
                    assert_eq!((cuts[0], cuts[replicas]), (kind.start, kind.end));
                    for cut in cuts.windows(2) {
                        for chunk in params.chunks(cut[0]..cut[1]) {
                            len += chunk.elements.len();
                            // What is not cut is the same on all tensor ranks.
                            owners[chunk.number] += if shared == 1 || t == 0 { 1 } else { 0 };
                        }
                    }
                }
                assert_eq!(len, params.num_elements());
            }
            assert!(owners.iter().all(|n| *n == 1), "{owners:?}");
        }
    }
}
