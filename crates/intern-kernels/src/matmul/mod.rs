//! `y = x · Wᵀ` for every weight format: integers for [`Packed`] weights, f32 for the others.
//!
//! The latter stay in their stored form and are decoded on the way: into registers for a few
//! rows of `x`, into a small panel in L2 for many. One output element is always the same
//! chain of multiply-adds over `k` in eight lanes, folded in one order, whatever the tile it
//! falls into. So a row's result has the same bits alone or in a batch, on one thread or many;
//! `packed` keeps the same promise.
//!
//! Legend: `M` rows of `x`, `K` columns, `N` rows of `W`.

#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop, reason = "tiles index several arrays by row, lane and unit")]
mod avx2;
mod plain;

use crate::packed::activations::Activations;
use crate::packed::{self, Packed};
use crate::pool::Pool;
use crate::quant::{self, BlockType};

/// A stored matrix: `rows` rows of `cols` elements, whole blocks per row.
#[derive(Clone, Copy, Debug)]
pub struct MatrixRef<'a> {
    ty: BlockType,
    rows: usize,
    cols: usize,
    data: &'a [u8],
}

impl<'a> MatrixRef<'a> {
    /// Wraps the bytes of a matrix. Panics when there are not `rows` whole rows of `cols`.
    #[must_use]
    pub fn new(ty: BlockType, rows: usize, cols: usize, data: &'a [u8]) -> Self {
        assert_eq!(data.len(), rows * ty.row_bytes(cols), "bytes of {rows} rows of {cols} {}", ty.name());
        Self { ty, rows, cols, data }
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

    /// The bytes of row `row`.
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [u8] {
        let bytes = self.ty.row_bytes(self.cols);
        &self.data[row * bytes..(row + 1) * bytes]
    }

    /// Decodes row `row` into `out` (K): how an embedding is looked up.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        quant::dequantize(self.ty, self.row(row), out);
    }
}

/// Weights of a product.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    /// As stored; decoded on the way, multiplied in f32.
    Stored(MatrixRef<'a>),
    /// Repacked for the integer kernels.
    Packed(&'a Packed),
}

impl Weight<'_> {
    /// Output features, N.
    #[must_use]
    pub fn rows(&self) -> usize {
        match self {
            Self::Stored(w) => w.rows,
            Self::Packed(w) => w.rows(),
        }
    }

    /// Input features, K.
    #[must_use]
    pub fn cols(&self) -> usize {
        match self {
            Self::Stored(w) => w.cols,
            Self::Packed(w) => w.cols(),
        }
    }

    /// Rows that stay together.
    fn unit(&self) -> usize {
        match self {
            Self::Stored(_) => PANEL_ROWS,
            Self::Packed(_) => packed::GROUP,
        }
    }
}

/// A matrix and the output column its first row writes to.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// The weights.
    pub weight: Weight<'a>,
    /// Offset in an output row.
    pub column: usize,
}

/// Work (multiply-adds) below which a second thread costs more than it brings.
const SERIAL_MACS: usize = 200_000;
/// Work one task should have at least.
const TASK_MACS: usize = 200_000;
/// Rows of a task that reads each weight once: shorter runs of memory leave the prefetchers behind.
const STREAM_ROWS: usize = 256;
/// Rows of a task's panel; K of them fit L2.
pub(crate) const PANEL_ROWS: usize = 16;

/// `out[:, part.column..][..N] = x · part.weightᵀ` for every part.
///
/// `x` is `(m, K)`; `out` is `(m, stride)`. Parts share `x` and one parallel region, and must
/// not overlap in `out`; columns no part covers keep their values. `scratch` keeps `x` as
/// packed weights want it. Panics when sizes do not fit.
pub fn matmul(
    pool: &Pool,
    x: &[f32],
    m: usize,
    parts: &[Part],
    (out, stride): (&mut [f32], usize),
    scratch: &mut Activations,
) {
    let Some(k) = parts.first().map(|p| p.weight.cols()) else { return };
    assert_eq!(x.len(), m * k, "x is ({m}, {k})");
    assert_eq!(out.len(), m * stride, "out is ({m}, {stride})");
    for (i, part) in parts.iter().enumerate() {
        assert_eq!(part.weight.cols(), k, "parts share x");
        let end = part.column + part.weight.rows();
        assert!(end <= stride, "a part exceeds the output row");
        let apart = |other: &Part| end <= other.column || other.column + other.weight.rows() <= part.column;
        assert!(parts[..i].iter().all(apart), "parts overlap in the output");
    }
    if m == 0 {
        return;
    }
    if parts.iter().any(|p| matches!(p.weight, Weight::Packed(_))) {
        scratch.quantize(pool, x, m, k);
    }

    // Cut the rows of all parts into tasks; where they are cut changes no result.
    let rows: usize = parts.iter().map(|p| p.weight.rows()).sum();
    let task_rows = match rows * m * k {
        macs if macs < SERIAL_MACS || pool.threads() == 1 => usize::MAX / 2,
        // Long runs of memory or whole panels, unless there is so little to do that it would not be shared.
        _ => {
            let least = TASK_MACS / (m * k).max(1);
            let good = if m > packed::EXACT_ROWS { 4 * PANEL_ROWS } else { STREAM_ROWS };
            let fair = (rows / (2 * pool.threads())).max(1);
            least.max(good.min(fair)).next_multiple_of(PANEL_ROWS)
        }
    };
    let count = |part: &Part| part.weight.rows().div_ceil(task_rows);
    let out = Output::new(out, stride);
    let scratch = &*scratch;
    pool.run(parts.iter().map(count).sum(), |mut i| {
        let mut parts = parts.iter();
        let part = loop {
            let part = parts.next().expect("tasks are counted over the parts");
            match i.checked_sub(count(part)) {
                Some(rest) => i = rest,
                None => break part,
            }
        };
        let first = i * task_rows;
        let last = part.weight.rows().min(first + task_rows);
        // SAFETY: tasks cover disjoint columns inside `out`, which we hold exclusively; checked above.
        unsafe {
            match part.weight {
                Weight::Stored(w) => task(x, m, (w, part.column), first, last, &out),
                Weight::Packed(w) => {
                    let unit = part.weight.unit();
                    w.task(scratch, (first / unit, last.div_ceil(unit)), part.column, &out);
                }
            }
        }
    });
}

/// Where tasks write: disjoint columns of one `(m, stride)` buffer.
pub(crate) struct Output {
    ptr: *mut f32,
    stride: usize,
}

// SAFETY: every task writes only columns no other task touches.
unsafe impl Sync for Output {}

impl Output {
    /// Rows of `stride` elements.
    pub(crate) fn new(out: &mut [f32], stride: usize) -> Self {
        Self { ptr: out.as_mut_ptr(), stride }
    }

    /// Element `(row, column)`.
    ///
    /// # Safety
    /// As [`Output::set`].
    #[inline(always)]
    pub(crate) unsafe fn at(&self, row: usize, column: usize) -> *mut f32 {
        // SAFETY: promised by the caller.
        unsafe { self.ptr.add(row * self.stride + column) }
    }

    /// Writes element `(row, column)`.
    ///
    /// # Safety
    /// The element lies in the buffer and belongs to the calling task.
    #[inline(always)]
    pub(crate) unsafe fn set(&self, row: usize, column: usize, value: f32) {
        // SAFETY: promised by the caller.
        unsafe { *self.ptr.add(row * self.stride + column) = value }
    }
}

/// Rows `first..last` of one part.
///
/// # Safety
/// `part` is a matrix and the column its first row writes to; columns `first .. last` from there
/// belong to the caller.
unsafe fn task(x: &[f32], m: usize, part: (MatrixRef, usize), first: usize, last: usize, out: &Output) {
    #[cfg(target_arch = "x86_64")]
    if avx2::available() {
        // SAFETY: the processor has the instructions; the columns are ours.
        return unsafe { avx2::task(x, m, part, first, last, out) };
    }
    // SAFETY: the columns are ours.
    unsafe { plain::task(x, m, part, first, last, out) }
}

/// The plain version: decodes a row and sums in f64.
#[must_use]
pub fn reference(x: &[f32], m: usize, weight: MatrixRef) -> Vec<f32> {
    let mut out = vec![0.0; m * weight.rows];
    for (n, column) in (0..weight.rows).enumerate() {
        for row in 0..m {
            let x = &x[row * weight.cols..(row + 1) * weight.cols];
            out[row * weight.rows + column] = quant::dot(weight.ty, weight.row(n), x) as f32;
        }
    }
    out
}

#[cfg(test)]
mod tests;
