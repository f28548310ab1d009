//! RMSNorm and its gradient: `y = x / sqrt(mean(x^2) + eps) * w`, row by row.
//!
//! Zhang and Sennrich, 2019. The backward pass recomputes the row's scale instead of saving it.

use super::math::{add_assign, dot};
use crate::multiversion;
use rayon::prelude::*;

/// Rows one task takes; also the unit in which weight gradients are summed.
const ROWS: usize = 32;

/// Normalizes each row of `x` (`rows x w.len()`) into `y`.
pub fn forward(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
    let c = w.len();
    assert!(x.len() == y.len() && x.len().is_multiple_of(c), "rows of {c}");
    y.par_chunks_mut(ROWS * c).zip(x.par_chunks(ROWS * c)).for_each(|(y, x)| forward_rows(x, w, eps, y));
}

multiversion! {
    fn forward_rows(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
        let c = w.len();
        for (x, y) in x.chunks_exact(c).zip(y.chunks_exact_mut(c)) {
            let r = scale(x, eps);
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * r * w;
            }
        }
    }
}

/// Gradients of [`forward`]: writes `dx`, and adds to `dw` where it is wanted.
pub fn backward(x: &[f32], w: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dw: Option<&mut [f32]>) {
    let c = w.len();
    assert!(x.len() == dy.len() && x.len() == dx.len() && x.len().is_multiple_of(c), "rows of {c}");
    let size = ROWS * c;
    let tasks = dx.par_chunks_mut(size).zip(x.par_chunks(size)).zip(dy.par_chunks(size));
    let Some(dw) = dw else {
        tasks.for_each(|((dx, x), dy)| backward_rows(x, w, eps, dy, dx, &mut []));
        return;
    };
    let partial: Vec<Vec<f32>> = tasks
        .map(|((dx, x), dy)| {
            let mut dw = vec![0.0; c];
            backward_rows(x, w, eps, dy, dx, &mut dw);
            dw
        })
        .collect();
    for part in &partial {
        add_assign(dw, part);
    }
}

multiversion! {
    /// `dw` is empty where it is not wanted.
    fn backward_rows(x: &[f32], w: &[f32], eps: f32, dy: &[f32], dx: &mut [f32], dw: &mut [f32]) {
        let c = w.len();
        for ((x, dy), dx) in x.chunks_exact(c).zip(dy.chunks_exact(c)).zip(dx.chunks_exact_mut(c)) {
            let r = scale(x, eps);
            // dx = r (g - xhat mean(g xhat)) with g = dy w and xhat = x r
            for ((dx, dy), w) in dx.iter_mut().zip(dy).zip(w) {
                *dx = dy * w;
            }
            let k = dot(dx, x) * r * r / c as f32;
            for (dx, x) in dx.iter_mut().zip(x) {
                *dx = r * (*dx - k * x);
            }
            for ((dw, dy), x) in dw.iter_mut().zip(dy).zip(x) {
                *dw += dy * x * r;
            }
        }
    }
}

#[inline(always)]
fn scale(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

/// The definition, in f64.
pub mod reference {
    /// As [`super::forward`].
    pub fn forward(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) {
        let c = w.len();
        for (x, y) in x.chunks(c).zip(y.chunks_mut(c)) {
            let mean = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / c as f64;
            for i in 0..c {
                y[i] = (f64::from(x[i]) / (mean + f64::from(eps)).sqrt() * f64::from(w[i])) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, finite_difference, in_pool, random, weighted_sum};

    const EPS: f32 = 1e-5;

    #[test]
    fn agrees_with_the_reference() {
        for (rows, c) in [(1, 1), (3, 7), (70, 64), (33, 100)] {
            let (x, w) = (random(rows * c, 1), random(c, 2));
            let (mut got, mut expect) = (vec![0.0; rows * c], vec![0.0; rows * c]);
            forward(&x, &w, EPS, &mut got);
            reference::forward(&x, &w, EPS, &mut expect);
            assert_close(&got, &expect, 2e-6);
        }
    }

    #[test]
    fn gradients_agree_with_finite_differences() {
        let (rows, c) = (3, 20);
        let (x, w, dy) = (random(rows * c, 1), random(c, 2), random(rows * c, 3));
        let (mut dx, mut dw) = (vec![0.0; rows * c], vec![0.0; c]);
        backward(&x, &w, EPS, &dy, &mut dx, Some(&mut dw));
        let loss = |x: &[f32], w: &[f32]| {
            let mut y = vec![0.0; rows * c];
            reference::forward(x, w, EPS, &mut y);
            weighted_sum(&y, &dy)
        };
        let fd_x: Vec<f32> =
            (0..rows * c).map(|i| finite_difference(&x, i, 1e-2, |x| loss(x, &w)) as f32).collect();
        let fd_w: Vec<f32> = (0..c).map(|i| finite_difference(&w, i, 1e-2, |w| loss(&x, w)) as f32).collect();
        assert_close(&dx, &fd_x, 1e-3);
        assert_close(&dw, &fd_w, 1e-3);
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let (rows, c) = (500, 48);
        let (x, w, dy) = (random(rows * c, 1), random(c, 2), random(rows * c, 3));
        let run = || {
            let (mut dx, mut dw) = (vec![0.0; rows * c], vec![0.0; c]);
            backward(&x, &w, EPS, &dy, &mut dx, Some(&mut dw));
            (dx, dw)
        };
        assert_eq!(in_pool(1, run), in_pool(3, run));
    }
}
