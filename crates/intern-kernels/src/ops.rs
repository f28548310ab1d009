//! What happens to a row of activations between matrix products: RMSNorm, RoPE, SwiGLU, sums.
//!
//! Every function works on one row and depends on nothing else, so results do not change
//! with the batch. Sums that shrink a row to a number run in f64.

use crate::multiversion;
use crate::train::math::exp;

/// `out = x / rms(x) * weight` with `rms = sqrt(mean(x²) + eps)`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = inverse_rms(x, eps);
    for ((o, x), w) in out.iter_mut().zip(x).zip(weight) {
        *o = x * scale * w;
    }
}

/// [`rms_norm`] in place.
pub fn rms_norm_inplace(x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = inverse_rms(x, eps);
    for (x, w) in x.iter_mut().zip(weight) {
        *x = *x * scale * w;
    }
}

fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    let mean = sum_of_squares(x) / x.len() as f32;
    1.0 / (mean + eps).sqrt()
}

multiversion! {
    fn sum_of_squares(x: &[f32]) -> f32 {
        let mut lanes = [0.0f32; 16];
        let chunks = x.chunks_exact(16);
        let rest: f32 = chunks.remainder().iter().map(|x| x * x).sum();
        for chunk in chunks {
            for l in 0..16 {
                lanes[l] += chunk[l] * chunk[l];
            }
        }
        (lanes.iter().map(|&x| f64::from(x)).sum::<f64>() + f64::from(rest)) as f32
    }
}

/// Rotates a head by its position; `cos` and `sin` hold `head.len() / 2` values.
///
/// Pairs are `(i, i + half)`, as in `transformers`' checkpoints.
pub fn rope(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}

/// [`rope`] with pairs `(2i, 2i + 1)`, as in llama.cpp's files of the Llama family.
pub fn rope_interleaved(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, c), s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
        (pair[0], pair[1]) = (pair[0] * c - pair[1] * s, pair[1] * c + pair[0] * s);
    }
}

multiversion! {
    /// `out = silu(gate) * up`.
    pub fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((o, g), u) in out.iter_mut().zip(gate).zip(up) {
            *o = g / (1.0 + exp(-g)) * u;
        }
    }
}

multiversion! {
    /// `x += y`.
    pub fn add(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

multiversion! {
    /// Turns scores into probabilities in place; empty input stays empty.
    pub fn softmax(x: &mut [f32]) {
        let max = x.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
        for v in x.iter_mut() {
            *v = exp(*v - max);
        }
        let mut lanes = [0.0f32; 16];
        let chunks = x.chunks_exact(16);
        let rest: f32 = chunks.remainder().iter().sum();
        for chunk in chunks {
            for l in 0..16 {
                lanes[l] += chunk[l];
            }
        }
        let inverse = 1.0 / (lanes.iter().sum::<f32>() + rest);
        for v in x.iter_mut() {
            *v *= inverse;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = Rng::new(seed, 2);
        (0..n).map(|_| 3.0 * rng.normal() as f32).collect()
    }

    #[track_caller]
    fn check(got: &[f32], want: impl Iterator<Item = f64>) {
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(*g) - w).abs() < 2e-6 * w.abs().max(1.0), "at {i}: {g} {w}");
        }
    }

    #[test]
    fn rms_norm_is_the_formula() {
        for n in [1, 15, 64, 100] {
            let (x, w) = (random(n, 1), random(n, 2));
            let mut out = vec![0.0; n];
            rms_norm(&x, &w, 1e-5, &mut out);
            let mean: f64 = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>() / n as f64;
            let rms = (mean + 1e-5).sqrt();
            check(&out, x.iter().zip(&w).map(|(&x, &w)| f64::from(x) / rms * f64::from(w)));
            let mut inplace = x.clone();
            rms_norm_inplace(&mut inplace, &w, 1e-5);
            assert_eq!(inplace, out);
        }
    }

    #[test]
    fn swiglu_and_softmax_are_the_formulas() {
        for n in [1, 17, 96] {
            let (g, u) = (random(n, 3), random(n, 4));
            let mut out = vec![0.0; n];
            swiglu(&g, &u, &mut out);
            let silu = |x: f64| x / (1.0 + (-x).exp());
            check(&out, g.iter().zip(&u).map(|(&g, &u)| silu(f64::from(g)) * f64::from(u)));
            let mut p = g.clone();
            softmax(&mut p);
            let total: f64 = g.iter().map(|&x| f64::from(x).exp()).sum();
            check(&p, g.iter().map(|&x| f64::from(x).exp() / total));
        }
    }

    #[test]
    fn rope_layouts_are_permutations_of_each_other() {
        let (x, angles) = (random(16, 5), random(8, 6));
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let mut halves = x.clone();
        rope(&mut halves, &cos, &sin);
        let mut pairs: Vec<f32> = (0..16).map(|i| x[i / 2 + 8 * (i % 2)]).collect();
        rope_interleaved(&mut pairs, &cos, &sin);
        for i in 0..16 {
            assert_eq!(pairs[i], halves[i / 2 + 8 * (i % 2)]);
        }
        let length = |v: &[f32]| v.iter().map(|x| x * x).sum::<f32>();
        assert!((length(&x) - length(&halves)).abs() < 1e-3);
    }

    #[test]
    fn add_adds() {
        let (mut x, y) = (vec![1.0; 20], random(20, 8));
        add(&mut x, &y);
        assert!(x.iter().zip(&y).all(|(x, y)| *x == 1.0 + y));
    }
}
