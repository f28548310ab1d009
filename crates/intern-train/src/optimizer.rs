//! How gradients become updates, in place and one pass over each parameter: AdamW (Loshchilov and
//! Hutter, 2019), its moments in f32 or 8 bits, and Muon (Jordan et al., 2024) for the matrices inside
//! the model. The arithmetic is `intern_kernels::train::{adamw, moments8, muon}`.

use std::ops::Range;

use anyhow::Result;
use intern_kernels::train::moments8::Moments8;
use intern_kernels::train::{adamw, fixed, muon};
use rayon::prelude::*;

use crate::config::{Group, Kind, MomentType, OptimizerConfig};
use crate::params::{Param, Params, is_matrix};

/// Tensors of fewer elements keep their moments in f32: it costs nothing.
const MIN_8BIT: usize = 4096;

/// The state of the updates of a range of the flat parameters: a rank's share of them, or all.
#[derive(Clone, Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    range: Range<usize>,
    own: Vec<Own>,
}

/// What is updated of one parameter.
#[derive(Clone, Debug)]
struct Own {
    /// Its number in [`Params::list`].
    param: usize,
    /// Its elements, within it.
    within: Range<usize>,
    /// Factor on the learning rate.
    rate: f64,
    weight_decay: f64,
    moments: Moments,
    /// Running average of the weights; empty if none is kept.
    average: Vec<f32>,
}

#[derive(Clone, Debug)]
enum Moments {
    Full {
        mean: Vec<f32>,
        square: Vec<f32>,
    },
    Eight(Moments8),
    /// Muon's.
    Mean {
        mean: Vec<f32>,
        shape: (usize, usize),
    },
}

/// Whether Muon updates this tensor: a matrix inside the model.
#[must_use]
pub fn is_muons(config: &OptimizerConfig, name: &str, dims: usize) -> bool {
    config.kind == Kind::Muon && is_matrix(name, dims) && !is_head(name)
}

/// What a tensor has beside its weights, in the order of the alphabet.
#[must_use]
pub fn slots(config: &OptimizerConfig, name: &str, dims: usize) -> Vec<&'static str> {
    let average = config.ema.map(|_| "average");
    let square = (!is_muons(config, name, dims)).then_some("square");
    average.into_iter().chain(["mean"]).chain(square).collect()
}

/// Bytes that [`slots`] take per element.
#[must_use]
pub fn bytes_per_element(config: &OptimizerConfig, name: &str, dims: usize, len: usize) -> f64 {
    let moments = match moment_type(config, name, dims, len) {
        _ if is_muons(config, name, dims) => 4.0,
        MomentType::F32 => 8.0,
        MomentType::Bits8 => Moments8::bytes(len) as f64 / len as f64,
    };
    moments + if config.ema.is_some() { 4.0 } else { 0.0 }
}

/// Embeddings and the head see rare tokens, norms are small: their moments stay whole.
fn moment_type(config: &OptimizerConfig, name: &str, dims: usize, len: usize) -> MomentType {
    match is_matrix(name, dims) && !is_head(name) && len >= MIN_8BIT {
        true => config.moments,
        false => MomentType::F32,
    }
}

fn is_head(name: &str) -> bool {
    name == "lm_head.weight" || name == "output.weight"
}

/// How wide the model is, compared with the one its settings were found for (µP, Yang et al.,
/// "Tensor Programs V", 2022, table 3): 1 for the model itself.
fn width_factor(width: f64, param: &Param) -> f64 {
    if param.is_matrix() { 1.0 / width } else { 1.0 }
}

impl Group {
    /// Whether the group holds the tensor `name`: `*` in the pattern stands for anything.
    #[must_use]
    pub fn holds(&self, name: &str) -> bool {
        let mut parts = self.r#match.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = name.strip_prefix(first) else { return false };
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return rest.is_empty();
        }
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }
}

impl Optimizer {
    /// Zero moments for the elements `range` of `params`; averages begin at the weights. `width` is that
    /// of the model beside the one the learning rate was found for.
    ///
    /// # Errors
    /// If the weights cannot be read.
    pub fn new(config: &OptimizerConfig, width: f64, params: &Params, range: Range<usize>) -> Result<Self> {
        let mut own = Vec::new();
        for (number, param) in params.list().iter().enumerate() {
            let (from, to) = (param.offset.max(range.start), param.end().min(range.end));
            if from >= to {
                continue;
            }
            let (len, dims) = (to - from, param.piece.shape.len());
            let group = config.group.iter().find(|g| g.holds(&param.name));
            let decay = if param.is_matrix() { config.weight_decay } else { 0.0 };
            let within = from - param.offset..to - param.offset;
            let zeros = || vec![0.0; len];
            let moments = match moment_type(config, &param.name, dims, param.len) {
                _ if is_muons(config, &param.name, dims) => {
                    let rows = param.piece.held_shape()[0];
                    Moments::Mean { mean: zeros(), shape: (rows, param.len / rows) }
                }
                MomentType::F32 => Moments::Full { mean: zeros(), square: zeros() },
                MomentType::Bits8 => Moments::Eight(Moments8::new(len)),
            };
            let average = match config.ema {
                Some(_) => param.to_vec()?[within.clone()].to_vec(),
                None => Vec::new(),
            };
            own.push(Own {
                param: number,
                within,
                rate: group.and_then(|g| g.lr).unwrap_or(1.0) * width_factor(width, param),
                weight_decay: group.and_then(|g| g.weight_decay).unwrap_or(decay),
                moments,
                average,
            });
        }
        Ok(Self { config: config.clone(), range, own })
    }

    /// The elements of the flat parameters this updates.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Makes update `step` (from 1) at rate `lr` with gradients `sums * unit * grad_scale`, where `sums`
    /// gives those of elements of the flat parameters.
    ///
    /// # Errors
    /// If the weights cannot be written.
    pub fn step<'s>(
        &mut self,
        params: &Params,
        (sums, unit): (impl Fn(Range<usize>) -> &'s [i64] + Sync, f32),
        step: u64,
        lr: f64,
        grad_scale: f64,
    ) -> Result<()> {
        let config = &self.config;
        let [beta1, beta2] = config.betas;
        let update = |own: &mut Own| -> Result<()> {
            let param = &params.list()[own.param];
            let g = sums(param.offset + own.within.start..param.offset + own.within.end);
            let (lr, weight_decay) = (lr * own.rate, own.weight_decay);
            let adamw = adamw::Update { lr, beta1, beta2, eps: config.eps, weight_decay, grad_scale, step };
            let within = own.within.clone();
            param.update(|p| {
                // Where weights are shared out, only these are here.
                let p = if p.len() == within.len() { p } else { &mut p[within] };
                match &mut own.moments {
                    Moments::Full { mean, square } => adamw::step_fixed(p, g, unit, mean, square, &adamw),
                    Moments::Eight(moments) => moments.step_fixed(p, g, unit, &adamw),
                    Moments::Mean { mean, shape } => {
                        let update = muon::Update {
                            lr,
                            momentum: config.momentum,
                            weight_decay,
                            grad_scale,
                            steps: config.ns_steps,
                        };
                        let mut floats = vec![0.0; g.len()];
                        fixed::to_floats(g, unit, &mut floats);
                        muon::step(p, &mut floats, mean, *shape, &update);
                    }
                }
                if let Some(decay) = config.ema {
                    // Early averages follow fast, or they would be of the starting weights.
                    let decay = decay.min((1.0 + step as f64) / (10.0 + step as f64));
                    let (keep, take) = (decay as f32, (1.0 - decay) as f32);
                    own.average.iter_mut().zip(p).for_each(|(a, p)| *a = *a * keep + *p * take);
                }
            })
        };
        // AdamW goes through one tensor on all threads, Muon through one on each.
        let (matrices, others): (Vec<&mut Own>, Vec<&mut Own>) =
            self.own.iter_mut().partition(|own| matches!(own.moments, Moments::Mean { .. }));
        others.into_iter().try_for_each(update)?;
        matrices.into_par_iter().try_for_each(update)
    }

    /// Copies what this has of slot `slot` of parameter number `param` to its place in `whole`.
    pub fn read(&self, param: usize, slot: &str, whole: &mut [f32]) {
        for own in self.own.iter().filter(|own| own.param == param) {
            let whole = &mut whole[own.within.clone()];
            match (&own.moments, slot) {
                (_, "average") => whole.copy_from_slice(&own.average),
                (Moments::Full { mean, .. } | Moments::Mean { mean, .. }, "mean") => {
                    whole.copy_from_slice(mean)
                }
                (Moments::Full { square, .. }, "square") => whole.copy_from_slice(square),
                (Moments::Eight(moments), _) => {
                    let [mean, square] = moments.decode();
                    whole.copy_from_slice(if slot == "mean" { &mean } else { &square });
                }
                (Moments::Mean { .. }, _) | (_, _) => {}
            }
        }
    }

    /// Takes what [`Self::read`] gave back: `values(name of the slot, number of the parameter)` are those
    /// of the whole parameter.
    ///
    /// # Errors
    /// As `values`.
    pub fn write(&mut self, mut values: impl FnMut(&str, usize) -> Result<Vec<f32>>) -> Result<()> {
        for own in &mut self.own {
            let (param, within) = (own.param, own.within.clone());
            let mut take = |slot: &str| Ok::<_, anyhow::Error>(values(slot, param)?[within.clone()].to_vec());
            match &mut own.moments {
                Moments::Full { mean, square } => (*mean, *square) = (take("mean")?, take("square")?),
                Moments::Eight(moments) => moments.encode(&take("mean")?, &take("square")?),
                Moments::Mean { mean, .. } => *mean = take("mean")?,
            }
            if self.config.ema.is_some() {
                own.average = take("average")?;
            }
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
    use intern_kernels::train::fixed::FixedSum;
    use serde_json::Value;

    fn floats(value: &Value) -> Vec<f32> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    }

    /// Follows a golden file on two ranks, each with a share of the elements.
    fn follow(golden: &str, tolerance: f32) {
        let golden: Value = serde_json::from_str(golden).unwrap();
        let config: OptimizerConfig = serde_json::from_value(golden["settings"].clone()).unwrap();
        let tensors = ["names", "shapes", "start"].map(|key| golden[key].as_array().unwrap());
        let vars = (0..tensors[0].len()).map(|i| {
            let shape: Vec<usize> = serde_json::from_value(tensors[1][i].clone()).unwrap();
            let var = Var::from_vec(floats(&tensors[2][i]), shape, &Device::Cpu).unwrap();
            (tensors[0][i].as_str().unwrap().to_string(), var)
        });
        let params = Params::new(vars.collect(), &config).unwrap();
        let (all, cut) = (params.num_elements(), params.cuts(&(0..params.num_elements()), 3)[1]);
        let new = |range| Optimizer::new(&config, 1.0, &params, range).unwrap();
        let mut ranks = [new(0..cut), new(cut..all)];
        let mut sums = FixedSum::new(all);
        for (i, step) in golden["steps"].as_array().unwrap().iter().enumerate() {
            let values: Vec<Vec<f32>> = step["gradients"].as_array().unwrap().iter().map(floats).collect();
            sums.begin(1);
            sums.add(0, &values.concat());
            let unit = sums.unit();
            let norm = fixed::squares(sums.sums()).sqrt() * f64::from(unit);
            assert!((norm - step["norm"].as_f64().unwrap()).abs() < 1e-6 * norm);
            let of: &[i64] = sums.sums();
            for rank in &mut ranks {
                let scale = clip(norm, config.grad_clip);
                rank.step(&params, (|r| &of[r], unit), i as u64 + 1, config.lr, scale).unwrap();
            }
            for (param, expect) in params.list().iter().zip(step["after"].as_array().unwrap()) {
                for (ours, theirs) in param.to_vec().unwrap().iter().zip(floats(expect)) {
                    assert!(
                        (ours - theirs).abs() < tolerance,
                        "{} step {i}: {ours}, not {theirs}",
                        param.name
                    );
                }
            }
            let Some(averages) = step.get("averages") else { continue };
            for (number, expect) in averages.as_array().unwrap().iter().enumerate() {
                let mut ours = vec![0.0; params.list()[number].len];
                ranks.iter().for_each(|rank| rank.read(number, "average", &mut ours));
                for (ours, theirs) in ours.iter().zip(floats(expect)) {
                    assert!((ours - theirs).abs() < tolerance, "average, step {i}: {ours}, not {theirs}");
                }
            }
        }
    }

    #[test]
    fn updates_equal_those_of_torch() {
        follow(include_str!("../tests/golden/adamw.json"), 1e-6);
    }

    #[test]
    fn muon_groups_and_averages_equal_those_of_torch() {
        follow(include_str!("../tests/golden/muon.json"), 2e-6);
    }

    #[test]
    fn patterns_choose_tensors() {
        let holds = |pattern: &str, name: &str| {
            Group { r#match: pattern.into(), lr: None, weight_decay: None }.holds(name)
        };
        assert!(holds("model.norm.weight", "model.norm.weight") && !holds("model.norm", "model.norm.weight"));
        assert!(holds("*.weight", "a.weight") && !holds("*.weight", "a.bias"));
        assert!(holds("model.layers.*.mlp.*", "model.layers.3.mlp.up_proj.weight"));
        assert!(!holds("model.layers.*.mlp.*", "model.layers.3.self_attn.q_proj.weight") && holds("*", "x"));
    }

    #[test]
    fn what_is_read_can_be_written_back() {
        let matrix =
            Var::from_vec((0..8192).map(|i| i as f32 / 9e3).collect(), (64, 128), &Device::Cpu).unwrap();
        let norm = Var::from_vec(vec![1.0f32; 64], 64, &Device::Cpu).unwrap();
        for kind in [Kind::AdamW, Kind::Muon] {
            let moments = MomentType::Bits8;
            let config = OptimizerConfig { kind, moments, ema: Some(0.9), ..OptimizerConfig::default() };
            let vars = vec![("w".to_string(), matrix.clone()), ("norm".to_string(), norm.clone())];
            let params = Params::new(vars, &config).unwrap();
            let range = 0..params.num_elements();
            let mut optimizer = Optimizer::new(&config, 1.0, &params, range.clone()).unwrap();
            let sums: Vec<i64> = (0..range.len() as i64).map(|i| i * i % 991 - 500).collect();
            optimizer.step(&params, (|r| &sums[r], 1e-3), 1, 1e-3, 1.0).unwrap();
            let read = |optimizer: &Optimizer, slot: &str, i: usize| {
                let mut whole = vec![0.0; params.list()[i].len];
                optimizer.read(i, slot, &mut whole);
                whole
            };
            let mut again = Optimizer::new(&config, 1.0, &params, range).unwrap();
            again.write(|slot, i| Ok(read(&optimizer, slot, i))).unwrap();
            for (i, param) in params.list().iter().enumerate() {
                for slot in slots(&config, &param.name, param.piece.shape.len()) {
                    assert!(read(&optimizer, slot, i).iter().any(|x| *x != 0.0), "{slot} of {}", param.name);
                    assert_eq!(read(&optimizer, slot, i), read(&again, slot, i));
                }
            }
        }
    }
}
