//! One AdamW update in place (Loshchilov and Hutter, 2019), as `torch.optim.AdamW` computes it.

use crate::multiversion;
use rayon::prelude::*;

/// The numbers of one update; `step` counts from 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean.
    pub beta1: f64,
    /// Decay of the squared mean.
    pub beta2: f64,
    /// Added to the root of the squared mean.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Factor on the gradient: gradient clipping and the mean over targets in one.
    pub grad_scale: f64,
    /// Which update this is, from 1.
    pub step: u64,
}

/// Elements one task takes.
const BLOCK: usize = 16_384;

/// Updates parameters `p` and moments `m`, `v` from gradient `g`, all of one length.
pub fn step(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], update: &Update) {
    assert!(g.len() == p.len() && m.len() == p.len() && v.len() == p.len(), "slices of one length");
    let constants = constants(update);
    p.par_chunks_mut(BLOCK)
        .zip(g.par_chunks(BLOCK))
        .zip(m.par_chunks_mut(BLOCK))
        .zip(v.par_chunks_mut(BLOCK))
        .for_each(|(((p, g), m), v)| block(p, g, m, v, &constants));
}

/// As [`step`], from a gradient in fixed point; see [`super::fixed`].
pub fn step_fixed(p: &mut [f32], g: &[i64], unit: f32, m: &mut [f32], v: &mut [f32], update: &Update) {
    assert!(g.len() == p.len() && m.len() == p.len() && v.len() == p.len(), "slices of one length");
    let constants = constants(update);
    p.par_chunks_mut(BLOCK)
        .zip(g.par_chunks(BLOCK))
        .zip(m.par_chunks_mut(BLOCK))
        .zip(v.par_chunks_mut(BLOCK))
        .for_each_init(
            || vec![0.0f32; BLOCK],
            |floats, (((p, g), m), v)| {
                let floats = &mut floats[..g.len()];
                super::fixed::to_floats(g, unit, floats);
                block(p, floats, m, v, &constants);
            },
        );
}

/// What every element's update shares.
pub(super) fn constants(update: &Update) -> [f32; 9] {
    let u = *update;
    let correct1 = 1.0 - u.beta1.powi(u.step.min(i32::MAX as u64) as i32);
    let correct2 = 1.0 - u.beta2.powi(u.step.min(i32::MAX as u64) as i32);
    [
        u.grad_scale as f32,
        u.beta1 as f32,
        (1.0 - u.beta1) as f32,
        u.beta2 as f32,
        (1.0 - u.beta2) as f32,
        (1.0 - u.lr * u.weight_decay) as f32,
        (u.lr / correct1) as f32,
        (1.0 / correct2.sqrt()) as f32,
        u.eps as f32,
    ]
}

multiversion! {
    pub(super) fn block(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], constants: &[f32; 9]) {
        let [grad_scale, b1, not_b1, b2, not_b2, decay, lr, root, eps] = *constants;
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * grad_scale;
            *m = *m * b1 + g * not_b1;
            *v = *v * b2 + g * g * not_b2;
            *p = *p * decay - lr * *m / (v.sqrt() * root + eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, random};

    #[test]
    fn follows_the_formula_in_f64() {
        let n = 50;
        let mut p = random(n, 1);
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        let mut exact: Vec<[f64; 3]> = p.iter().map(|p| [f64::from(*p), 0.0, 0.0]).collect();
        let (lr, beta1, beta2, eps, weight_decay) = (1e-2, 0.9, 0.95, 1e-8, 0.1);
        for t in 1..=5 {
            let g = random(n, 10 + t);
            let update = Update { lr, beta1, beta2, eps, weight_decay, grad_scale: 0.5, step: t };
            step(&mut p, &g, &mut m, &mut v, &update);
            for (e, g) in exact.iter_mut().zip(&g) {
                let g = f64::from(*g) * 0.5;
                e[1] = e[1] * beta1 + g * (1.0 - beta1);
                e[2] = e[2] * beta2 + g * g * (1.0 - beta2);
                let (mh, vh) = (e[1] / (1.0 - beta1.powi(t as i32)), e[2] / (1.0 - beta2.powi(t as i32)));
                e[0] = e[0] * (1.0 - lr * weight_decay) - lr * mh / (vh.sqrt() + eps);
            }
        }
        assert_close(&p, &exact.iter().map(|e| e[0] as f32).collect::<Vec<_>>(), 1e-6);
    }
}
