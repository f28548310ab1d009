//! Cross-entropy fused with the output head, over the rows that count only.
//!
//! `logits = x w^T` exists a chunk of rows at a time: each chunk is turned into its loss and, in
//! place, into the gradient of the logits, from which `dx` and `dw` follow at once. So the
//! `N x V` matrix never exists, masked rows cost nothing, and the backward pass only scales.

use super::gemm::{Into, View, ViewMut, matmul};
use super::math::{add_assign, exp, max, sum};
use crate::multiversion;
use rayon::prelude::*;

/// Logits in flight: chunks are as many rows as fit, at least 32 and at most 512.
const CHUNK: usize = 1 << 23;
/// Elements of the head's gradient computed at a time.
const BLOCK: usize = 1 << 18;

/// Gradients of the summed loss.
#[derive(Debug)]
pub struct Gradients {
    /// `(N, C)`; zero in rows that do not count.
    pub dx: Vec<f32>,
    /// `(V, C)`; absent where it is not wanted.
    pub dw: Option<Vec<f32>>,
}

/// What is wanted besides the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The loss only: validation.
    Loss,
    /// The gradient of the hidden states: a frozen head.
    Input,
    /// Both gradients.
    InputAndWeight,
}

/// Sum over rows with `mask` of `-log softmax(x w^T)[target]`, with gradients where wanted.
///
/// `x` is `(N, C)`, `w` `(V, C)`; `targets` and `mask` have `N` entries.
#[must_use]
pub fn linear_cross_entropy(
    x: &[f32],
    w: &[f32],
    c: usize,
    targets: &[u32],
    mask: &[bool],
    want: Want,
) -> (f64, Option<Gradients>) {
    let head = Head { w, c, z_loss: 0.0 };
    let mut buffers = Buffers::default();
    let mut dx = if want == Want::Loss { Vec::new() } else { vec![0.0; x.len()] };
    let mut dw = if want == Want::InputAndWeight { vec![0.0; w.len()] } else { Vec::new() };
    let mut add = |at: usize, d: &[f32]| add_assign(&mut dw[at..at + d.len()], d);
    let loss = match want {
        Want::Loss => head.loss(x, targets, mask, &mut buffers, None, None),
        Want::Input => head.loss(x, targets, mask, &mut buffers, Some(&mut dx), None),
        Want::InputAndWeight => head.loss(x, targets, mask, &mut buffers, Some(&mut dx), Some(&mut add)),
    };
    let gradients =
        (want != Want::Loss).then(|| Gradients { dx, dw: (want == Want::InputAndWeight).then_some(dw) });
    (loss, gradients)
}

/// Memory of [`Head::loss`], to be used again.
#[derive(Debug, Default)]
pub struct Buffers {
    logits: Vec<f32>,
    inputs: Vec<f32>,
    outputs: Vec<f32>,
    block: Vec<f32>,
}

/// Takes parts of the head's gradient: the first element's index, and the values to add.
pub type AddPart<'a> = &'a mut dyn FnMut(usize, &[f32]);

/// The output head with the loss on top.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// `(V, C)`.
    pub w: &'a [f32],
    /// Width of the residual stream.
    pub c: usize,
    /// Factor of the squared log-partition, which is added to every token's loss (PaLM's z-loss;
    /// Chowdhery et al., 2022) but not to the loss that is returned.
    pub z_loss: f32,
}

impl Head<'_> {
    /// Sum over rows with `mask` of `-log softmax(x w^T)[target]`. Writes the gradient of `x` to
    /// `dx` `(N, C)`, zero in rows that do not count, and hands that of `w` to `dw` in parts.
    pub fn loss(
        &self,
        x: &[f32],
        targets: &[u32],
        mask: &[bool],
        buffers: &mut Buffers,
        mut dx: Option<&mut [f32]>,
        mut dw: Option<AddPart>,
    ) -> f64 {
        let Self { w, c, z_loss } = *self;
        let (n, vocab) = (targets.len(), w.len() / c);
        assert!(x.len() == n * c && mask.len() == n && w.len() == vocab * c, "shapes agree");
        let rows: Vec<usize> = (0..n).filter(|&i| mask[i]).collect();
        assert!(rows.iter().all(|&i| (targets[i] as usize) < vocab), "targets below {vocab}");
        if let Some(dx) = &mut dx {
            assert_eq!(dx.len(), n * c, "one gradient per input");
            dx.fill(0.0);
        }
        let chunk = (CHUNK / vocab).clamp(32, 512).min(rows.len().max(1));
        let Buffers { logits, inputs, outputs, block } = buffers;
        logits.resize(chunk * vocab, 0.0);
        inputs.resize(chunk * c, 0.0);
        let gradient = dx.is_some() || dw.is_some();
        let mut loss = 0.0f64;
        for rows in rows.chunks(chunk) {
            let m = rows.len();
            let (logits, inputs) = (&mut logits[..m * vocab], &mut inputs[..m * c]);
            for (input, &row) in inputs.chunks_exact_mut(c).zip(rows) {
                input.copy_from_slice(&x[row * c..(row + 1) * c]);
            }
            let inputs = View::new(inputs, m, c);
            matmul(ViewMut::new(logits, m, vocab), Into::Overwrite, 1.0, inputs, View::new(w, vocab, c).t());
            let losses: Vec<f32> = logits
                .par_chunks_mut(vocab)
                .zip(rows)
                .map(|(logits, &row)| loss_row(logits, targets[row] as usize, gradient, z_loss))
                .collect();
            loss += losses.iter().map(|l| f64::from(*l)).sum::<f64>();
            if let Some(dx) = &mut dx {
                outputs.resize(chunk * c, 0.0);
                let outputs = &mut outputs[..m * c];
                let dlogits = View::new(logits, m, vocab);
                matmul(ViewMut::new(outputs, m, c), Into::Overwrite, 1.0, dlogits, View::new(w, vocab, c));
                for (output, &row) in outputs.chunks_exact(c).zip(rows) {
                    dx[row * c..(row + 1) * c].copy_from_slice(output);
                }
            }
            if let Some(dw) = &mut dw {
                let step = (BLOCK / c).clamp(1, vocab);
                block.resize(step * c, 0.0);
                for from in (0..vocab).step_by(step) {
                    let rows = step.min(vocab - from);
                    let block = &mut block[..rows * c];
                    let dlogits = View::strided(&logits[from..], m, rows, vocab);
                    matmul(ViewMut::new(block, rows, c), Into::Overwrite, 1.0, dlogits.t(), inputs);
                    dw(from * c, block);
                }
            }
        }
        loss
    }
}

multiversion! {
    /// Loss of one row; its logits become `softmax - onehot(target)` when `gradient`, plus the
    /// gradient of `z_loss` times the squared log-partition.
    fn loss_row(logits: &mut [f32], target: usize, gradient: bool, z_loss: f32) -> f32 {
        let top = max(logits);
        let at_target = logits[target] - top;
        for l in logits.iter_mut() {
            *l = exp(*l - top);
        }
        let total = sum(logits);
        if gradient {
            let log_partition = top + total.ln();
            let factor = (1.0 + 2.0 * z_loss * log_partition) / total;
            for l in logits.iter_mut() {
                *l *= factor;
            }
            logits[target] -= 1.0;
        }
        total.ln() - at_target
    }
}

/// The definition, in f64, from materialized logits.
pub mod reference {
    /// The summed loss, as [`super::linear_cross_entropy`] gives it.
    #[must_use]
    pub fn loss(x: &[f32], w: &[f32], c: usize, targets: &[u32], mask: &[bool]) -> f64 {
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let mut total = 0.0;
        for (i, x) in x.chunks(c).enumerate().filter(|(i, _)| mask[*i]) {
            let logits: Vec<f64> = w.chunks(c).map(|w| dot(x, w)).collect();
            let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let lse = top + logits.iter().map(|l| (l - top).exp()).sum::<f64>().ln();
            total += lse - logits[targets[i] as usize];
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::{assert_close, finite_difference, in_pool, random};

    #[test]
    fn loss_and_gradients_agree_with_the_reference() {
        let (n, c, vocab) = (40, 12, 37);
        let (x, w) = (random(n * c, 1), random(vocab * c, 2));
        let targets: Vec<u32> = (0..n as u32).map(|i| i * 7 % vocab as u32).collect();
        let mask: Vec<bool> = (0..n).map(|i| i % 3 != 0).collect();
        let expect = reference::loss(&x, &w, c, &targets, &mask);
        let run = || linear_cross_entropy(&x, &w, c, &targets, &mask, Want::InputAndWeight);
        let (loss, gradients) = run();
        assert!((loss - expect).abs() < 1e-4, "{loss} {expect}");
        assert_eq!(loss, linear_cross_entropy(&x, &w, c, &targets, &mask, Want::Loss).0);
        let Gradients { dx, dw } = gradients.unwrap();
        let dw = dw.unwrap();
        assert!(dx[..c].iter().all(|d| *d == 0.0), "row 0 does not count");
        let fd_x: Vec<f32> = (0..n * c)
            .map(|i| finite_difference(&x, i, 1e-2, |x| reference::loss(x, &w, c, &targets, &mask)) as f32)
            .collect();
        let fd_w: Vec<f32> = (0..vocab * c)
            .map(|i| finite_difference(&w, i, 1e-2, |w| reference::loss(&x, w, c, &targets, &mask)) as f32)
            .collect();
        assert_close(&dx, &fd_x, 1e-3);
        assert_close(&dw, &fd_w, 1e-3);
        let (loss3, gradients3) = in_pool(3, run);
        assert_eq!(
            (loss, &dx, &dw),
            (loss3, &gradients3.as_ref().unwrap().dx, gradients3.as_ref().unwrap().dw.as_ref().unwrap())
        );
    }

    #[test]
    fn z_loss_pulls_the_partition_to_one() {
        let (n, c, vocab) = (5, 6, 11);
        let (x, w) = (random(n * c, 1), random(vocab * c, 2));
        let (targets, mask) = ([1, 4, 0, 10, 3], [true, true, false, true, true]);
        let z_loss = 0.05;
        let full = |x: &[f32]| {
            let squares = x.chunks(c).zip(mask).filter(|(_, m)| *m).map(|(x, _)| {
                let logit = |w: &[f32]| x.iter().zip(w).map(|(a, b)| f64::from(a * b)).sum::<f64>();
                w.chunks(c).map(|w| logit(w).exp()).sum::<f64>().ln().powi(2)
            });
            reference::loss(x, &w, c, &targets, &mask) + f64::from(z_loss) * squares.sum::<f64>()
        };
        let mut dx = vec![0.0; n * c];
        let head = Head { w: &w, c, z_loss };
        let loss = head.loss(&x, &targets, &mask, &mut Buffers::default(), Some(&mut dx), None);
        assert!((loss - reference::loss(&x, &w, c, &targets, &mask)).abs() < 1e-4);
        let expect: Vec<f32> = (0..n * c).map(|i| finite_difference(&x, i, 1e-2, full) as f32).collect();
        assert_close(&dx, &expect, 1e-3);
    }

    #[test]
    fn no_row_that_counts_means_no_loss() {
        let (loss, gradients) =
            linear_cross_entropy(&[1.0; 4], &[1.0; 6], 2, &[0, 1], &[false; 2], Want::InputAndWeight);
        let gradients = gradients.unwrap();
        assert_eq!(loss, 0.0);
        assert!(gradients.dx.iter().chain(&gradients.dw.unwrap()).all(|d| *d == 0.0));
    }
}
