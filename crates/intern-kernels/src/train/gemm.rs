//! Matrix products on strided views, by the `gemm` crate, with the checks its raw call lacks.
//!
//! Each element of the result is one chain of fused multiply-adds over the inner dimension,
//! cut by cache sizes only, so the bits do not depend on the number of threads.

use gemm::Parallelism;

/// A matrix inside a slice: element `(i, j)` is `data[i * row + j * col]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row: usize,
    col: usize,
}

impl<'a> View<'a> {
    /// A contiguous row-major matrix.
    #[must_use]
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows of `cols` elements, `row` elements apart.
    #[must_use]
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row: usize) -> Self {
        assert!(
            fits(data.len(), rows, cols, row),
            "matrix of {rows} x {cols} (row stride {row}) in its slice"
        );
        Self { data, rows, cols, row, col: 1 }
    }

    /// The transpose, without moving anything.
    #[must_use]
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row: self.col, col: self.row, ..self }
    }
}

/// A matrix that is written to.
pub struct ViewMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    row: usize,
}

impl<'a> ViewMut<'a> {
    /// A contiguous row-major matrix.
    #[must_use]
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Rows of `cols` elements, `row` elements apart.
    #[must_use]
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row: usize) -> Self {
        assert!(
            fits(data.len(), rows, cols, row),
            "matrix of {rows} x {cols} (row stride {row}) in its slice"
        );
        Self { data, rows, cols, row }
    }
}

fn fits(len: usize, rows: usize, cols: usize, row: usize) -> bool {
    rows == 0 || cols == 0 || (cols <= row && (rows - 1) * row + cols <= len)
}

/// What happens to the destination's old content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Into {
    /// `dst = scale * a b`
    Overwrite,
    /// `dst += scale * a b`
    Add,
}

/// `dst = scale * a b` or `dst += scale * a b`, on all threads of the current rayon pool.
pub fn matmul(dst: ViewMut, into: Into, scale: f32, a: View, b: View) {
    let threads = rayon::current_num_threads();
    let parallelism = if threads > 1 { Parallelism::Rayon(threads) } else { Parallelism::None };
    run(dst, into, scale, a, b, parallelism);
}

/// As [`matmul`], on the calling thread only: for use inside a parallel loop.
pub fn matmul_here(dst: ViewMut, into: Into, scale: f32, a: View, b: View) {
    run(dst, into, scale, a, b, Parallelism::None);
}

fn run(dst: ViewMut, into: Into, scale: f32, a: View, b: View, parallelism: Parallelism) {
    assert!(
        a.rows == dst.rows && b.cols == dst.cols && a.cols == b.rows,
        "product of {} x {} and {} x {} into {} x {}",
        a.rows,
        a.cols,
        b.rows,
        b.cols,
        dst.rows,
        dst.cols
    );
    // SAFETY: the three views were checked to lie inside their slices when made, their inner
    // dimensions agree by the assertion above, and `dst` is borrowed exclusively.
    unsafe {
        gemm::gemm(
            dst.rows,
            dst.cols,
            a.cols,
            dst.data.as_mut_ptr(),
            1,
            dst.row as isize,
            into == Into::Add,
            a.data.as_ptr(),
            a.col as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.col as isize,
            b.row as isize,
            1.0, // factor of the old content
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, in_pool, random};

    fn reference(
        m: usize,
        n: usize,
        k: usize,
        a: impl Fn(usize, usize) -> f32,
        b: impl Fn(usize, usize) -> f32,
    ) -> Vec<f32> {
        let cell = |i, j| (0..k).map(|l| f64::from(a(i, l)) * f64::from(b(l, j))).sum::<f64>() as f32;
        (0..m).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| cell(i, j)).collect()
    }

    #[test]
    fn agrees_with_the_triple_loop_in_every_orientation() {
        for (m, n, k) in [(1, 1, 1), (1, 7, 33), (5, 1, 9), (17, 19, 2), (64, 48, 100), (33, 130, 65)] {
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            let expect = reference(m, n, k, |i, l| a[i * k + l], |l, j| b[l * n + j]);
            let mut got = vec![0.0; m * n];
            matmul(
                ViewMut::new(&mut got, m, n),
                Into::Overwrite,
                1.0,
                View::new(&a, m, k),
                View::new(&b, k, n),
            );
            assert_close(&got, &expect, 1e-5);
            // a^T stored, b^T stored, added twice with a half.
            let at: Vec<f32> = (0..k * m).map(|i| a[(i % m) * k + i / m]).collect();
            let bt: Vec<f32> = (0..k * n).map(|i| b[(i % k) * n + i / k]).collect();
            let mut got = vec![0.0; m * n];
            for _ in 0..2 {
                let dst = ViewMut::new(&mut got, m, n);
                matmul_here(dst, Into::Add, 0.5, View::new(&at, k, m).t(), View::new(&bt, n, k).t());
            }
            assert_close(&got, &expect, 1e-5);
        }
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        for (m, n, k) in [(300, 256, 700), (64, 2000, 128), (1000, 33, 40)] {
            let (a, b) = (random(m * k, 3), random(k * n, 4));
            let run = || {
                let mut dst = vec![0.0; m * n];
                matmul(
                    ViewMut::new(&mut dst, m, n),
                    Into::Overwrite,
                    1.0,
                    View::new(&a, m, k),
                    View::new(&b, k, n),
                );
                dst
            };
            let one = in_pool(1, run);
            for threads in [2, 3, 5] {
                assert_eq!(one, in_pool(threads, run), "{threads} threads");
            }
        }
    }

    #[test]
    #[should_panic(expected = "in its slice")]
    fn a_view_beyond_its_slice_is_refused() {
        let data = [0.0; 5];
        let _ = View::new(&data, 2, 3);
    }
}
