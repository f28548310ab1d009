//! AdamW (Loshchilov and Hutter, 2019) in place, one pass over each parameter, with moments
//! that can be saved; the update itself is `intern_kernels::train::adamw`.

use std::ops::Range;

use anyhow::Result;
use intern_kernels::train::adamw;

use crate::config::OptimizerConfig;
use crate::params::Params;

/// AdamW's state for a range of the flat parameters: a rank's share of them, or all.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    range: Range<usize>,
    /// Running mean of the gradient, of the range.
    pub(crate) mean: Vec<f32>,
    /// Running mean of its square, of the range.
    pub(crate) square: Vec<f32>,
}

impl AdamW {
    /// Zero moments for the elements `range` of the flat parameters.
    #[must_use]
    pub fn new(config: &OptimizerConfig, range: Range<usize>) -> Self {
        let zeros = || vec![0.0; range.len()];
        Self { config: config.clone(), mean: zeros(), square: zeros(), range }
    }

    /// The elements of the flat parameters this updates.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Makes update `step` (from 1) at rate `lr` with gradients `sums * unit * grad_scale`; `sums`
    /// covers all parameters.
    pub fn step(
        &mut self,
        params: &Params,
        (sums, unit): (&[i64], f32),
        step: u64,
        lr: f64,
        grad_scale: f64,
    ) -> Result<()> {
        let [beta1, beta2] = self.config.betas;
        for param in params.list() {
            let (from, to) = (param.offset.max(self.range.start), param.end().min(self.range.end));
            if from >= to {
                continue;
            }
            let weight_decay = if param.decays() { self.config.weight_decay } else { 0.0 };
            let update =
                adamw::Update { lr, beta1, beta2, eps: self.config.eps, weight_decay, grad_scale, step };
            let own = from - self.range.start..to - self.range.start;
            let (mean, square) = (&mut self.mean[own.clone()], &mut self.square[own]);
            let within = from - param.offset..to - param.offset;
            param.update(|p| {
                adamw::step_fixed(&mut p[within], &sums[from..to], unit, mean, square, &update);
            })?;
        }
        Ok(())
    }
}

/// The factor that brings a gradient of norm `norm` down to `limit`, as torch's
/// `clip_grad_norm_`; a `limit` of 0 is none.
#[must_use]
pub fn clip(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};
    use intern_kernels::train::fixed::{self, FixedSum};
    use serde_json::Value;

    fn floats(value: &Value) -> Vec<f32> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    }

    #[test]
    fn updates_equal_those_of_torch() {
        let golden: Value = serde_json::from_str(include_str!("../tests/golden/adamw.json")).unwrap();
        let config: OptimizerConfig = serde_json::from_value(golden["settings"].clone()).unwrap();
        let tensors = ["names", "shapes", "start"].map(|key| golden[key].as_array().unwrap());
        let vars = (0..tensors[0].len()).map(|i| {
            let shape: Vec<usize> = serde_json::from_value(tensors[1][i].clone()).unwrap();
            let var = Var::from_vec(floats(&tensors[2][i]), shape, &Device::Cpu).unwrap();
            (tensors[0][i].as_str().unwrap().to_string(), var)
        });
        let params = Params::new(vars.collect()).unwrap();
        // As on two ranks, each with a share of the elements.
        let (all, cut) = (params.num_elements(), params.num_elements() / 3);
        let mut ranks = [AdamW::new(&config, 0..cut), AdamW::new(&config, cut..all)];
        let mut sums = FixedSum::new(all);
        for (i, step) in golden["steps"].as_array().unwrap().iter().enumerate() {
            let values: Vec<Vec<f32>> = step["gradients"].as_array().unwrap().iter().map(floats).collect();
            sums.begin(1);
            sums.add(0, &values.concat());
            let unit = sums.unit();
            let norm = fixed::squares(sums.sums()).sqrt() * f64::from(unit);
            assert!((norm - step["norm"].as_f64().unwrap()).abs() < 1e-6 * norm);
            for rank in &mut ranks {
                let scale = clip(norm, config.grad_clip);
                rank.step(&params, (sums.sums(), unit), i as u64 + 1, config.lr, scale).unwrap();
            }
            for (param, expect) in params.list().iter().zip(step["after"].as_array().unwrap()) {
                for (ours, theirs) in param.to_vec().unwrap().iter().zip(floats(expect)) {
                    assert!((ours - theirs).abs() < 1e-6, "{} step {i}: {ours}, not {theirs}", param.name);
                }
            }
        }
    }
}
