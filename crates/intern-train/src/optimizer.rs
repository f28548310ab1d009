//! AdamW (Loshchilov and Hutter, 2019) in place, one pass over each parameter, with moments
//! that can be saved; the update itself is `intern_kernels::train::adamw`.

use anyhow::Result;
use intern_kernels::train::adamw;

use crate::config::OptimizerConfig;
use crate::params::{Gradients, Params};

/// AdamW's state for a set of parameters.
#[derive(Clone, Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    /// Running mean of the gradient, flat.
    pub(crate) mean: Vec<f32>,
    /// Running mean of its square, flat.
    pub(crate) square: Vec<f32>,
}

impl AdamW {
    /// Zero moments for parameters laid out as `params`.
    #[must_use]
    pub fn new(config: &OptimizerConfig, params: &Params) -> Self {
        let zeros = || vec![0.0; params.num_elements()];
        Self { config: config.clone(), mean: zeros(), square: zeros() }
    }

    /// Makes update `step` (from 1) at rate `lr`; gradients are multiplied by `grad_scale` first.
    pub fn step(
        &mut self,
        params: &Params,
        gradients: &Gradients,
        step: u64,
        lr: f64,
        grad_scale: f64,
    ) -> Result<()> {
        let [beta1, beta2] = self.config.betas;
        for param in params.list() {
            let weight_decay = if param.decays() { self.config.weight_decay } else { 0.0 };
            let update =
                adamw::Update { lr, beta1, beta2, eps: self.config.eps, weight_decay, grad_scale, step };
            let range = param.offset..param.offset + param.len;
            let (mean, square) = (&mut self.mean[range.clone()], &mut self.square[range]);
            let gradient = gradients.of(param);
            param.update(|p| adamw::step(p, gradient, mean, square, &update))?;
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
    use candle_core::{Device, Tensor, Var};
    use serde_json::Value;

    fn floats(value: &Value) -> Vec<f32> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    }

    /// Gradients with the given values: those of the sum of `parameter * value`.
    fn gradients(params: &Params, values: &[Vec<f32>]) -> Gradients {
        let mut sum = Tensor::new(0f32, &Device::Cpu).unwrap();
        for (param, values) in params.list().iter().zip(values) {
            let values = Tensor::from_slice(values, param.var.dims(), &Device::Cpu).unwrap();
            sum = (sum + (param.var.as_tensor() * values).unwrap().sum_all().unwrap()).unwrap();
        }
        let mut gradients = Gradients::new(params);
        gradients.add(params, &mut sum.backward().unwrap()).unwrap();
        gradients
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
        let mut optimizer = AdamW::new(&config, &params);
        for (i, step) in golden["steps"].as_array().unwrap().iter().enumerate() {
            let values: Vec<Vec<f32>> = step["gradients"].as_array().unwrap().iter().map(floats).collect();
            let gradients = gradients(&params, &values);
            let norm = gradients.norm();
            assert!((norm - step["norm"].as_f64().unwrap()).abs() < 1e-6 * norm);
            optimizer
                .step(&params, &gradients, i as u64 + 1, config.lr, clip(norm, config.grad_clip))
                .unwrap();
            for (param, expect) in params.list().iter().zip(step["after"].as_array().unwrap()) {
                for (ours, theirs) in param.to_vec().unwrap().iter().zip(floats(expect)) {
                    assert!((ours - theirs).abs() < 1e-6, "{} step {i}: {ours}, not {theirs}", param.name);
                }
            }
        }
    }

    #[test]
    fn a_parameter_off_the_path_to_the_loss_is_an_error() {
        let var = || Var::zeros(2, candle_core::DType::F32, &Device::Cpu).unwrap();
        let (used, unused) = (var(), var());
        let params = Params::new(vec![("used".into(), used.clone()), ("unused".into(), unused)]).unwrap();
        let mut store = used.sum_all().unwrap().backward().unwrap();
        let error = Gradients::new(&params).add(&params, &mut store).unwrap_err().to_string();
        assert!(error.contains("unused received no gradient"), "{error}");
    }
}
