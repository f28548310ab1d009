//! The portable task: decode a row, then eight-lane sums LLVM may vectorize.

use super::{MatrixRef, Output};

/// Rows `first..last` of `part` for all `m` rows of `x`.
///
/// # Safety
/// As [`super::task`].
pub(super) unsafe fn task(
    x: &[f32],
    m: usize,
    (weight, column): (MatrixRef, usize),
    first: usize,
    last: usize,
    out: &Output,
) {
    let k = weight.cols;
    let mut w = vec![0.0; k];
    for n in first..last {
        weight.decode_row(n, &mut w);
        for row in 0..m {
            let value = dot(&w, &x[row * k..(row + 1) * k]);
            // SAFETY: promised by the caller.
            unsafe { out.set(row, column + n, value) };
        }
    }
}

fn dot(w: &[f32], x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (w_chunks, x_chunks) = (w.chunks_exact(8), x.chunks_exact(8));
    let tail: f32 = w_chunks.remainder().iter().zip(x_chunks.remainder()).map(|(w, x)| w * x).sum();
    for (w, x) in w_chunks.zip(x_chunks) {
        for l in 0..8 {
            lanes[l] += w[l] * x[l];
        }
    }
    lanes.iter().sum::<f32>() + tail
}
