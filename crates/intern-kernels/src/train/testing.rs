//! What the kernels' tests share: reproducible inputs, comparisons, thread pools.

use crate::rng::Rng;

/// `n` normal values of stream `stream`.
pub fn random(n: usize, stream: u64) -> Vec<f32> {
    let mut rng = Rng::new(42, stream);
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// Equal within `tolerance`, relative to the larger of 1 and the expected magnitude.
#[track_caller]
pub fn assert_close(got: &[f32], expect: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expect.len());
    for (i, (g, e)) in got.iter().zip(expect).enumerate() {
        let error = (g - e).abs() / e.abs().max(1.0);
        assert!(error <= tolerance, "element {i}: {g}, expected {e} (error {error:e})");
    }
}

/// Runs `f` on a pool of `threads` threads.
pub fn in_pool<T: Send>(threads: usize, f: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// Central difference of `loss` along element `i` of `x`.
pub fn finite_difference(x: &[f32], i: usize, step: f32, loss: impl Fn(&[f32]) -> f64) -> f64 {
    let mut moved = x.to_vec();
    moved[i] = x[i] + step;
    let up = loss(&moved);
    moved[i] = x[i] - step;
    (up - loss(&moved)) / (2.0 * f64::from(step))
}

/// Sum of products in f64: the scalar whose gradient with respect to `y` is `weights`.
pub fn weighted_sum(y: &[f32], weights: &[f32]) -> f64 {
    y.iter().zip(weights).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
