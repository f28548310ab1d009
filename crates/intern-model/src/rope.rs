//! Rotary position frequencies, with the scaling rules of `transformers` 5.
//!
//! Shared with the inference engine, so both turn a position into the same angle.
//! Exponentials are taken in f64 and rounded once: at most an ulp from PyTorch's f32.

use crate::config::{ModelConfig, RopeScaling};
use std::f64::consts::{PI, TAU};

/// Inverse frequencies (`head_dim / 2` of them) and the factor on cosine and sine.
///
/// `seq_len` is the number of positions in use; only `Dynamic` scaling looks at it.
#[must_use]
pub fn rope_inv_freq(config: &ModelConfig, seq_len: usize) -> (Vec<f32>, f32) {
    let dim = config.head_dim;
    let plain = |base: f64| -> Vec<f32> {
        (0..dim / 2).map(|i| (1.0 / f64::from(base.powf(exponent(i, dim)) as f32)) as f32).collect()
    };
    match &config.rope_scaling {
        RopeScaling::None => (plain(config.rope_theta), 1.0),
        RopeScaling::Linear { factor } => {
            let factor = *factor as f32;
            (plain(config.rope_theta).into_iter().map(|f| f / factor).collect(), 1.0)
        }
        RopeScaling::Dynamic { factor } => {
            let trained = config.max_position_embeddings as f64;
            let len = (seq_len as f64).max(trained);
            let growth = factor * len / trained - (factor - 1.0);
            let base = config.rope_theta * growth.powf(dim as f64 / (dim as f64 - 2.0));
            (plain(base), 1.0)
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let original = *original_max_position_embeddings as f64;
            let stretch = |freq: f32| -> f32 {
                let freq = f64::from(freq);
                let wavelength = TAU / freq;
                if wavelength < original / high_freq_factor {
                    freq as f32
                } else if wavelength > original / low_freq_factor {
                    (freq / factor) as f32
                } else {
                    let smooth =
                        (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    ((1.0 - smooth) * freq / factor + smooth * freq) as f32
                }
            };
            (plain(config.rope_theta).into_iter().map(stretch).collect(), 1.0)
        }
        RopeScaling::Yarn {
            factor,
            attention_factor,
            beta_fast,
            beta_slow,
            mscale,
            mscale_all_dim,
            truncate,
            original_max_position_embeddings,
        } => {
            let original = *original_max_position_embeddings as f64;
            // The dimension that turns `rotations` times over the original context.
            let dimension = |rotations: f64| {
                dim as f64 * (original / (rotations * 2.0 * PI)).ln() / (2.0 * config.rope_theta.ln())
            };
            let (mut low, mut high) = (dimension(*beta_fast), dimension(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
            if low == high {
                high += 0.001; // keeps the ramp finite
            }
            let freqs = (0..dim / 2)
                .map(|i| {
                    let freq = config.rope_theta.powf(-exponent(i, dim));
                    let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    (freq / factor * interpolated + freq * (1.0 - interpolated)) as f32
                })
                .collect();
            let magnitude = |mscale: f64| if *factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
            let scaling = attention_factor.unwrap_or_else(|| match (mscale, mscale_all_dim) {
                (Some(m), Some(all)) if *m != 0.0 && *all != 0.0 => magnitude(*m) / magnitude(*all),
                _ => magnitude(1.0),
            });
            (freqs, scaling as f32)
        }
    }
}

/// Cosine and sine of positions `0..len`, each `(len, head_dim / 2)` row-major, attention factor applied.
#[must_use]
pub fn rope_tables(config: &ModelConfig, len: usize) -> (Vec<f32>, Vec<f32>) {
    let (inv_freq, scaling) = rope_inv_freq(config, len);
    let mut cos = Vec::with_capacity(len * inv_freq.len());
    let mut sin = Vec::with_capacity(len * inv_freq.len());
    for position in 0..len {
        for &freq in &inv_freq {
            let angle = f64::from(position as f32 * freq);
            cos.push(angle.cos() as f32 * scaling);
            sin.push(angle.sin() as f32 * scaling);
        }
    }
    (cos, sin)
}

/// Exponent of pair `i`, rounded to f32 as PyTorch does.
fn exponent(i: usize, dim: usize) -> f64 {
    f64::from((2 * i) as f32 / dim as f32)
}
