//! Cosines and sines of positions, grown as sequences grow.
//!
//! With dynamic NTK scaling the frequencies depend on the length in use. As in
//! `transformers`, a prompt is rotated with its own length and every generated token with
//! the length it makes; that depends on the sequence alone, so neither chunking nor
//! recomputation changes a result.

use intern_model::{ModelConfig, RopeScaling, rope_inv_freq};

/// The tables of one model.
pub(crate) struct Rope {
    config: ModelConfig,
    factors: Vec<f32>,
    inv_freq: Vec<f32>,
    scaling: f32,
    /// `(len, D / 2)` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// `factors` divide the frequencies; empty for none.
    pub fn new(config: &ModelConfig, factors: &[f32]) -> Self {
        let mut rope = Self {
            config: config.clone(),
            factors: factors.to_vec(),
            inv_freq: Vec::new(),
            scaling: 1.0,
            cos: Vec::new(),
            sin: Vec::new(),
        };
        (rope.inv_freq, rope.scaling) = rope.frequencies(config.max_position_embeddings);
        rope
    }

    fn frequencies(&self, len: usize) -> (Vec<f32>, f32) {
        let (mut inv_freq, scaling) = rope_inv_freq(&self.config, len);
        inv_freq.iter_mut().zip(&self.factors).for_each(|(f, factor)| *f /= factor);
        (inv_freq, scaling)
    }

    /// Appends cosine and sine of `position` (`D / 2` each), `len` positions being in use.
    pub fn append(&mut self, position: usize, len: usize, cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        let dynamic = matches!(self.config.rope_scaling, RopeScaling::Dynamic { .. });
        if dynamic && len > self.config.max_position_embeddings {
            let (inv_freq, scaling) = self.frequencies(len);
            rotate(position, &inv_freq, scaling, cos, sin);
            return;
        }
        let half = self.inv_freq.len();
        while self.cos.len() < (position + 1) * half {
            rotate(self.cos.len() / half, &self.inv_freq, self.scaling, &mut self.cos, &mut self.sin);
        }
        cos.extend_from_slice(&self.cos[position * half..(position + 1) * half]);
        sin.extend_from_slice(&self.sin[position * half..(position + 1) * half]);
    }
}

/// The angle is rounded to f32 as in `intern_model::rope_tables`, its cosine taken in f64.
fn rotate(position: usize, inv_freq: &[f32], scaling: f32, cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
    for &freq in inv_freq {
        let angle = f64::from(position as f32 * freq);
        cos.push(angle.cos() as f32 * scaling);
        sin.push(angle.sin() as f32 * scaling);
    }
}

/// A checkpoint's rows of heads starting at `heads`, each reordered for rotary pairs `(2i, 2i + 1)` if asked.
pub(crate) fn head_order(heads: &[usize], d: usize, interleave: bool) -> Vec<usize> {
    let within = |i: usize| if interleave { i % 2 * (d / 2) + i / 2 } else { i };
    heads.iter().flat_map(|&start| (0..d).map(move |i| start + within(i))).collect()
}

#[cfg(test)]
mod tests {
    use intern_model::{Architecture, rope_tables};

    use super::*;

    #[test]
    fn rows_are_those_of_the_training_model() {
        let mut config = ModelConfig::small(Architecture::InternLm2, 10, 32, 1, 2, 1);
        config.max_position_embeddings = 8;
        for scaling in
            [RopeScaling::None, RopeScaling::Linear { factor: 4.0 }, RopeScaling::Dynamic { factor: 2.0 }]
        {
            config.rope_scaling = scaling;
            let (want_cos, want_sin) = rope_tables(&config, 20);
            let (mut cos, mut sin) = (Vec::new(), Vec::new());
            let mut rope = Rope::new(&config, &[]);
            (0..20).for_each(|p| rope.append(p, 20, &mut cos, &mut sin));
            assert!(cos == want_cos && sin == want_sin, "{:?}", config.rope_scaling);
        }
    }

    #[test]
    fn heads_are_reordered_for_rotary_pairs() {
        assert_eq!(head_order(&[8, 0], 4, true), [8, 10, 9, 11, 0, 2, 1, 3]);
        assert_eq!(head_order(&[4], 4, false), [4, 5, 6, 7]);
    }
}
