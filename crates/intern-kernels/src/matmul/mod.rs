//! `y = x · Wᵀ` for every weight format, with f32 activations and sums.
//!
//! Weights stay in their stored form and are decoded on the way: into registers for a few
//! rows of `x`, into a small panel in L2 for many. One output element is always the same
//! chain of multiply-adds over `k` in eight lanes, folded in one order, whatever the tile it
//! falls into. So a row's result has the same bits alone or in a batch, on one thread or many.
//!
//! Legend: `M` rows of `x`, `K` columns, `N` rows of `W`.

#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop, reason = "tiles index several arrays by row, lane and unit")]
mod avx2;
mod plain;

use rayon::prelude::*;

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

/// A matrix and the output column its first row writes to.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The weights.
    pub weight: MatrixRef<'a>,
    /// Offset in an output row.
    pub column: usize,
}

/// Work (multiply-adds) below which a second thread costs more than it brings.
const SERIAL_MACS: usize = 200_000;
/// Work one task should have at least.
const TASK_MACS: usize = 100_000;
/// Rows of a task's panel; K of them fit L2.
pub(crate) const PANEL_ROWS: usize = 16;

/// `out[:, part.column..][..N] = x · part.weightᵀ` for every part.
///
/// `x` is `(m, K)`; `out` is `(m, stride)`. Parts share `x` and one parallel region, and must
/// not overlap in `out`; columns no part covers keep their values. Panics when sizes do not fit.
pub fn matmul(x: &[f32], m: usize, parts: &[Part], out: &mut [f32], stride: usize) {
    let Some(k) = parts.first().map(|p| p.weight.cols) else { return };
    assert_eq!(x.len(), m * k, "x is ({m}, {k})");
    assert_eq!(out.len(), m * stride, "out is ({m}, {stride})");
    let mut columns: Vec<_> = parts.iter().map(|p| (p.column, p.column + p.weight.rows)).collect();
    columns.sort_unstable();
    assert!(columns.windows(2).all(|w| w[0].1 <= w[1].0), "parts overlap in the output");
    assert!(columns.iter().all(|c| c.1 <= stride), "a part exceeds the output row");
    if m == 0 {
        return;
    }

    // Cut the rows of all parts into tasks; where they are cut changes no result.
    let rows: usize = parts.iter().map(|p| p.weight.rows).sum();
    let per_row = m * k;
    let task_rows = match rows * per_row {
        macs if macs < SERIAL_MACS || rayon::current_num_threads() == 1 => rows,
        _ => (TASK_MACS / per_row.max(1)).next_multiple_of(PANEL_ROWS).max(PANEL_ROWS),
    };
    let mut tasks = Vec::with_capacity(rows / task_rows.max(1) + parts.len());
    for part in parts {
        assert_eq!(part.weight.cols, k, "parts share x");
        let mut first = 0;
        while first < part.weight.rows {
            let last = part.weight.rows.min(first + task_rows);
            tasks.push((*part, first, last));
            first = last;
        }
    }
    let out = Output { ptr: out.as_mut_ptr(), stride };
    // SAFETY: tasks cover disjoint columns inside `out`, which we hold exclusively; checked above.
    let run = |&(part, first, last): &(Part, usize, usize)| unsafe { task(x, m, &part, first, last, &out) };
    if tasks.len() == 1 || task_rows == rows {
        tasks.iter().for_each(run);
    } else {
        tasks.par_iter().for_each(run);
    }
}

/// Where tasks write: disjoint columns of one `(m, stride)` buffer.
pub(crate) struct Output {
    ptr: *mut f32,
    stride: usize,
}

// SAFETY: every task writes only columns no other task touches.
unsafe impl Sync for Output {}

impl Output {
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
/// Columns `part.column + first .. part.column + last` of `out` belong to the caller.
unsafe fn task(x: &[f32], m: usize, part: &Part, first: usize, last: usize, out: &Output) {
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
