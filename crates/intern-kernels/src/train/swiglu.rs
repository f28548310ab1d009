//! SwiGLU's elementwise part and its gradient: `y = silu(gate) * up`.
//!
//! Shazeer, 2020. Nothing is saved: the sigmoid is cheaper to recompute than to store.

use super::math::sigmoid;
use crate::multiversion;
use rayon::prelude::*;

/// Elements one task takes.
const BLOCK: usize = 8192;

/// `y[i] = silu(gate[i]) * up[i]`.
pub fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == y.len(), "gate, up and output of one length");
    y.par_chunks_mut(BLOCK)
        .zip(gate.par_chunks(BLOCK))
        .zip(up.par_chunks(BLOCK))
        .for_each(|((y, gate), up)| forward_block(gate, up, y));
}

multiversion! {
    fn forward_block(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            *y = g * sigmoid(*g) * u;
        }
    }
}

/// Gradients of [`forward`] with respect to both inputs.
pub fn backward(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    let n = gate.len();
    assert!(up.len() == n && dy.len() == n && dgate.len() == n && dup.len() == n, "slices of one length");
    dgate
        .par_chunks_mut(BLOCK)
        .zip(dup.par_chunks_mut(BLOCK))
        .zip(gate.par_chunks(BLOCK))
        .zip(up.par_chunks(BLOCK))
        .zip(dy.par_chunks(BLOCK))
        .for_each(|((((dgate, dup), gate), up), dy)| backward_block(gate, up, dy, dgate, dup));
}

multiversion! {
    fn backward_block(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        for ((((dg, du), g), u), dy) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(dy) {
            let s = sigmoid(*g);
            *du = dy * g * s;
            *dg = dy * u * s * (1.0 + g * (1.0 - s)); // silu' = s (1 + g (1 - s))
        }
    }
}

/// The definition, in f64.
pub mod reference {
    /// As [`super::forward`].
    pub fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for i in 0..y.len() {
            let g = f64::from(gate[i]);
            y[i] = (g / (1.0 + (-g).exp()) * f64::from(up[i])) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, finite_difference, random, weighted_sum};

    #[test]
    fn agrees_with_the_reference_and_with_finite_differences() {
        let n = 101;
        let (gate, up, dy) = (random(n, 1), random(n, 2), random(n, 3));
        let (mut got, mut expect) = (vec![0.0; n], vec![0.0; n]);
        forward(&gate, &up, &mut got);
        reference::forward(&gate, &up, &mut expect);
        assert_close(&got, &expect, 1e-6);

        let (mut dgate, mut dup) = (vec![0.0; n], vec![0.0; n]);
        backward(&gate, &up, &dy, &mut dgate, &mut dup);
        let loss = |gate: &[f32], up: &[f32]| {
            let mut y = vec![0.0; n];
            reference::forward(gate, up, &mut y);
            weighted_sum(&y, &dy)
        };
        let fd = |x: &[f32], f: &dyn Fn(&[f32]) -> f64| -> Vec<f32> {
            (0..n).map(|i| finite_difference(x, i, 1e-2, f) as f32).collect()
        };
        assert_close(&dgate, &fd(&gate, &|g| loss(g, &up)), 1e-3);
        assert_close(&dup, &fd(&up, &|u| loss(&gate, u)), 1e-3);
    }
}
