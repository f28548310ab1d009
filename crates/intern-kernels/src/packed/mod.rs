//! `y = x · Wᵀ` for block-quantized weights, in integers.
//!
//! Weights are repacked once: sixteen rows side by side, four columns at a time, at exactly
//! the bits of their GGUF type. Activations become signed bytes with one scale per 32 columns.
//! A block of 32 columns is an exact integer sum; block sums are scaled and added in f32 in the
//! order of the columns. That chain is the same for every instruction set, batch size, tile
//! and thread count, so a row of `x` gives the same bits alone or in a batch.
//!
//! Quantized numbers stay unsigned, `w = scale · q − min` with `q` at most 8 bits:
//! `Σ w a = scale · Σ q a − min · Σ a`, and `Σ a` is known before.
//!
//! Legend: `M` rows of `x`, `K` columns, `N` rows of `W`; a group is sixteen rows of `W`.

pub mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod format;
mod kernel;
mod layout;
mod plain;

use crate::matmul::{MatrixRef, Output};
use crate::pool::Pool;
use crate::quant::BlockType;
use activations::Activations;
use format::{Q4_0, Q4K, Q5K, Q6K, Q8_0};
use kernel::Job;
use layout::Layout;

/// Rows of `W` side by side.
pub const GROUP: usize = 16;
/// Rows of `x` up to which weights are read straight from their packed form.
pub(crate) const EXACT_ROWS: usize = 24;

/// A cache line of packed weights.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A matrix repacked for the integer kernels.
///
/// Holds `rows.div_ceil(16)` groups; rows past the last are zero.
pub struct Packed {
    ty: BlockType,
    rows: usize,
    cols: usize,
    layout: Layout,
    lines: Vec<Line>,
}

impl Packed {
    /// Whether matrices of this type and width can be packed.
    #[must_use]
    pub fn supports(ty: BlockType, cols: usize) -> bool {
        Layout::of(ty, cols).is_some() && cols.is_multiple_of(ty.block_size())
    }

    /// Repacks a matrix; `None` for a type without a kernel.
    #[must_use]
    pub fn new(pool: &Pool, matrix: MatrixRef) -> Option<Self> {
        let (ty, rows, cols) = (matrix.ty(), matrix.rows(), matrix.cols());
        if !Self::supports(ty, cols) {
            return None;
        }
        let layout = Layout::of(ty, cols)?;
        let count = rows.div_ceil(GROUP) * layout.lines;
        let mut lines: Vec<Line> = Vec::with_capacity(count);
        pool.chunks(&mut lines.spare_capacity_mut()[..count], layout.lines, |group, lines| {
            lines.iter_mut().for_each(|line| {
                line.write(Line([0; 64]));
            });
            // SAFETY: every line of the chunk was written above, and a line is 64 bytes.
            let bytes =
                unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<u8>(), lines.len() * 64) };
            layout.pack_group(&matrix, group * GROUP, bytes);
        });
        // SAFETY: the chunks cover all of them, each initialized.
        unsafe { lines.set_len(count) };
        Some(Self { ty, rows, cols, layout, lines })
    }

    /// The element format.
    #[must_use]
    pub fn ty(&self) -> BlockType {
        self.ty
    }

    /// Output features, N.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features, K.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes held.
    #[must_use]
    pub fn nbytes(&self) -> usize {
        self.lines.len() * 64
    }

    fn group(&self, group: usize) -> *const u8 {
        self.lines[group * self.layout.lines..][..self.layout.lines].as_ptr().cast()
    }

    /// Groups `first..last` times all of `x`, written from `column` on.
    ///
    /// # Safety
    /// `x` has K columns; columns `column + 16 first .. column + 16 last` (up to N) of `out`'s
    /// rows are the caller's alone.
    pub(crate) unsafe fn task(
        &self,
        x: &Activations,
        (first, last): (usize, usize),
        column: usize,
        out: &Output,
    ) {
        let isa = x.isa();
        let job = Job { weight: self, x, first, last, column, out };
        // SAFETY: promised by the caller.
        unsafe {
            match self.ty {
                BlockType::Q4_0 => run::<Q4_0>(&job, isa),
                BlockType::Q8_0 => run::<Q8_0>(&job, isa),
                BlockType::Q4K => run::<Q4K>(&job, isa),
                BlockType::Q5K => run::<Q5K>(&job, isa),
                BlockType::Q6K => run::<Q6K>(&job, isa),
                _ => unreachable!("no layout, so never packed"),
            }
        }
    }
}

/// Which version of the kernels runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// Portable code.
    Plain,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 with the integer dot product (VNNI).
    Avx512,
}

impl InstructionSet {
    /// The fastest this processor runs.
    #[must_use]
    pub fn best() -> Self {
        Self::available().last().copied().unwrap_or(Self::Plain)
    }

    /// All this processor runs, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut sets = vec![Self::Plain];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                sets.push(Self::Avx2);
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
                {
                    sets.push(Self::Avx512);
                }
            }
        }
        sets
    }
}

/// # Safety
/// As [`Packed::task`]; the weights are of format `F`, the processor has `isa`.
unsafe fn run<F: format::Format>(job: &Job, isa: InstructionSet) {
    // SAFETY: promised by the caller.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => avx512::run::<F>(job),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => avx2::run::<F>(job),
            _ => plain::run::<F>(job),
        }
    }
}

#[cfg(test)]
mod tests;
