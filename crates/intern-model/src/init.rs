//! Starting weights: a function of the seed and the tensor's name, nothing else.
//!
//! Normal with deviation 0.02; projections that write to the residual stream are divided by
//! `sqrt(2 layers)` as in GPT-2, so that the stream's variance does not grow with depth. In a model
//! `width` times wider than the one its settings were found with, matrices are divided by the root of
//! that, and the head by all of it (µP; Yang et al., "Tensor Programs V", 2022, table 3).

use crate::config::ModelConfig;
use crate::weights::{LayerNames, layer_names};
use intern_kernels::rng::Rng;
use rayon::prelude::*;

/// Standard deviation of the embedding and of projections.
const DEVIATION: f64 = 0.02;

/// Generator of the tensor called `name`.
pub(crate) fn stream(seed: u64, name: &str) -> Rng {
    // FNV-1a: any fixed hash of the name will do.
    let hash =
        name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    Rng::new(seed, hash)
}

/// Starting values of the tensor `name` of [`crate::weights::tensor_shapes`].
pub(crate) fn tensor(config: &ModelConfig, seed: u64, width: f64, name: &str, shape: &[usize]) -> Vec<f32> {
    let n = shape.iter().product();
    if name.ends_with(".bias") {
        return vec![0.0; n];
    }
    if shape.len() == 1 {
        return vec![1.0; n]; // norms
    }
    // Names of one layer end like those of all.
    let LayerNames { o, down, .. } = layer_names(config.arch, 0);
    let ends = [o, down].map(|module| format!("{}.weight", module.trim_start_matches("model.layers.0")));
    let depth = (2.0 * config.num_layers as f64).sqrt();
    let residual = ends.iter().any(|end| name.ends_with(end.as_str()));
    let narrow = match name {
        "lm_head.weight" | "output.weight" => width,
        name if name.contains("embed") => 1.0,
        _ => width.sqrt(),
    };
    let depth = if residual { depth } else { 1.0 };
    normal(n, DEVIATION / depth / narrow, &stream(seed, name))
}

/// `n` normal values; value `i` uses the generator's draws `2 (i / 2)` and the next (Box–Muller).
fn normal(n: usize, deviation: f64, rng: &Rng) -> Vec<f32> {
    let mut out = vec![0.0; n];
    out.par_chunks_mut(1024).enumerate().for_each(|(chunk, out)| {
        for (i, pair) in out.chunks_mut(2).enumerate() {
            let at = (chunk * 1024 + 2 * i) as u64;
            let unit = |i| (rng.at(i) >> 11) as f64 / (1u64 << 53) as f64;
            let radius = deviation * (-2.0 * (1.0 - unit(at)).ln()).sqrt();
            let (sin, cos) = (std::f64::consts::TAU * unit(at + 1)).sin_cos();
            for (x, y) in pair.iter_mut().zip([cos, sin]) {
                *x = (radius * y) as f32;
            }
        }
    });
    out
}

/// `n` values uniform in `-bound..bound`.
pub(crate) fn uniform(n: usize, bound: f64, rng: &Rng) -> Vec<f32> {
    (0..n as u64)
        .into_par_iter()
        .map(|i| (((rng.at(i) >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0) * bound) as f32)
        .collect()
}
