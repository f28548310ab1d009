//! Muon (Jordan et al., 2024): the momentum of a matrix, brought near the closest matrix with orthogonal
//! rows or columns, as `torch.optim.Muon` does with `adjust_lr_fn="match_rms_adamw"`.

use super::gemm::{Into, View, ViewMut, matmul_here};

/// Coefficients of the quintic iteration; they raise small singular values fast.
const COEFFICIENTS: [f32; 3] = [3.4445, -4.775, 2.0315];

/// The numbers of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate, as for AdamW: the update has the root mean square that AdamW's usually has.
    pub lr: f64,
    /// Decay of the gradient's running mean.
    pub momentum: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Factor on the gradient.
    pub grad_scale: f64,
    /// Newton–Schulz iterations.
    pub steps: u32,
}

/// Updates the matrix `p` `(rows, cols)` and its momentum `m` from the gradient `g`, which is lost. On
/// the calling thread: matrices are updated side by side.
pub fn step(p: &mut [f32], g: &mut [f32], m: &mut [f32], (rows, cols): (usize, usize), update: &Update) {
    assert!(p.len() == rows * cols && g.len() == p.len() && m.len() == p.len(), "a matrix");
    let Update { lr, momentum, weight_decay, grad_scale, steps } = *update;
    let (keep, take, scale) = (momentum as f32, (1.0 - momentum) as f32, grad_scale as f32);
    for (g, m) in g.iter_mut().zip(m.iter_mut()) {
        *g *= scale;
        *m = *m * keep + *g * take;
        *g = *g * take + *m * keep; // Nesterov
    }
    orthogonalize(g, rows, cols, steps);
    let rate = (lr * 0.2 * (rows.max(cols) as f64).sqrt()) as f32;
    let decay = (1.0 - lr * weight_decay) as f32;
    p.iter_mut().zip(g).for_each(|(p, g)| *p = *p * decay - rate * *g);
}

/// Brings the singular values of `x` `(rows, cols)` near 1.
pub fn orthogonalize(x: &mut [f32], rows: usize, cols: usize, steps: u32) {
    // In f64: the sum's order is fixed, but in f32 it would lose what many small ones add.
    let norm = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    let scale = (1.0 / norm.max(1e-7)) as f32;
    x.iter_mut().for_each(|x| *x *= scale);
    let n = rows.min(cols);
    let [a, b, c] = COEFFICIENTS;
    let (mut gram, mut square, mut next) = (vec![0.0; n * n], vec![0.0; n * n], vec![0.0; x.len()]);
    for _ in 0..steps {
        // Of the smaller side: X Xᵀ, or Xᵀ X.
        let view = View::new(x, rows, cols);
        let (left, right) = if rows <= cols { (view, view.t()) } else { (view.t(), view) };
        matmul_here(ViewMut::new(&mut gram, n, n), Into::Overwrite, 1.0, left, right);
        let of_gram = View::new(&gram, n, n);
        matmul_here(ViewMut::new(&mut square, n, n), Into::Overwrite, c, of_gram, of_gram);
        square.iter_mut().zip(&gram).for_each(|(s, g)| *s += b * g);
        let polynomial = View::new(&square, n, n);
        next.iter_mut().zip(x.iter()).for_each(|(next, x)| *next = a * x);
        let (left, right) = if rows <= cols { (polynomial, view) } else { (view, polynomial) };
        matmul_here(ViewMut::new(&mut next, rows, cols), Into::Add, 1.0, left, right);
        x.copy_from_slice(&next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::random;

    #[test]
    fn singular_values_come_near_one() {
        for (rows, cols) in [(8, 8), (5, 40), (40, 5)] {
            let mut x = random(rows * cols, 3);
            orthogonalize(&mut x, rows, cols, 5);
            // Rows (or columns) of nearly length 1, whose products stay small.
            let n = rows.min(cols);
            let at = |i: usize, k: usize| if rows <= cols { x[i * cols + k] } else { x[k * cols + i] };
            let product = |i, j| (0..rows.max(cols)).map(|k| at(i, k) * at(j, k)).sum::<f32>();
            let trace: f32 = (0..n).map(|i| product(i, i)).sum::<f32>() / n as f32;
            assert!((0.6..1.3).contains(&trace), "{rows} x {cols}: {trace}");
        }
    }
}
