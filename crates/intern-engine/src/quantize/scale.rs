//! Activation-aware scaling: columns that matter are made larger before they are rounded, and
//! what feeds them smaller by as much, so the model computes the same with smaller errors.
//!
//! The factors are powers of the inputs' size, the power searched per group of matrices with a
//! common input (AWQ, Lin et al., 2024). Factors are folded into the norm or the projection
//! before, so the file needs no operation that is not there already.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use intern_kernels::quant::{self, BlockType};
use intern_progress::Progress;
use rayon::prelude::*;

use super::importance::Importances;
use super::input::{Input, Tensor};

/// Rows of each matrix the powers are tried on.
const SAMPLE_ROWS: usize = 96;
/// Powers tried: `0, 1/10, …, 1`.
const STEPS: usize = 10;

/// Factors by tensor.
#[derive(Default)]
pub(super) struct Scaling {
    /// Columns are multiplied by these.
    pub columns: BTreeMap<String, Arc<Vec<f32>>>,
    /// Rows (a norm's elements) are divided by these.
    pub rows: BTreeMap<String, Arc<Vec<f32>>>,
}

/// A matrix to try powers on.
struct Sample {
    ty: BlockType,
    rows: Vec<Vec<f32>>,
}

/// Finds factors for every layer of `plans`.
pub(super) fn search(
    input: &Input,
    plans: &[(Tensor, BlockType)],
    num_layers: usize,
    importances: &Importances,
) -> Result<Scaling> {
    let by_name: BTreeMap<&str, &(Tensor, BlockType)> =
        plans.iter().map(|plan| (plan.0.name.as_str(), plan)).collect();
    let progress = Progress::new("scale", num_layers as u64, "layers");
    let mut scaling = Scaling::default();
    for i in 0..num_layers {
        let at = |part: &str| format!("blk.{i}.{part}.weight");
        // First those whose input is scaled by a projection, since that projection's own rows change.
        for (before, after) in [
            ("ffn_up", &["ffn_down"][..]),
            ("ffn_norm", &["ffn_gate", "ffn_up"]),
            ("attn_norm", &["attn_q", "attn_k", "attn_v"]),
        ] {
            let Some(importance) = importances.get(&at(after[0])) else { continue };
            let samples = after
                .iter()
                .map(|part| {
                    let (tensor, ty) =
                        by_name.get(at(part).as_str()).context("a layer lacks a projection")?;
                    sample(input, tensor, *ty, scaling.rows.get(&tensor.name))
                })
                .collect::<Result<Vec<_>>>()?;
            let Some(factors) = best_factors(&samples, importance) else { continue };
            let factors = Arc::new(factors);
            // A projection's bias is part of what it puts out.
            for part in [at(before), format!("blk.{i}.{before}.bias")] {
                if by_name.contains_key(part.as_str()) {
                    scaling.rows.insert(part, factors.clone());
                }
            }
            for part in after {
                scaling.columns.insert(at(part), factors.clone());
            }
        }
        progress.inc(1);
    }
    progress.finish();
    Ok(scaling)
}

fn sample(input: &Input, tensor: &Tensor, ty: BlockType, divide: Option<&Arc<Vec<f32>>>) -> Result<Sample> {
    let source = input.rows(tensor)?;
    let n = tensor.rows().min(SAMPLE_ROWS);
    let rows = (0..n)
        .map(|k| {
            let row = k * tensor.rows() / n;
            let mut values = source.row(tensor.source_row(row), tensor.cols());
            if let Some(divide) = divide {
                values.iter_mut().for_each(|v| *v /= divide[row]);
            }
            values
        })
        .collect();
    Ok(Sample { ty, rows })
}

/// The factors with the least error over `samples`; `None` if that is to leave things as they are.
fn best_factors(samples: &[Sample], importance: &[f32]) -> Option<Vec<f32>> {
    let tries: Vec<(f64, Vec<f32>)> = (0..=STEPS)
        .into_par_iter()
        .map(|step| {
            let factors = factors(importance, step as f32 / STEPS as f32);
            let weights: Vec<f32> = importance.iter().zip(&factors).map(|(i, f)| i / (f * f)).collect();
            let error = samples.iter().map(|sample| error(sample, &factors, &weights)).sum();
            (error, factors)
        })
        .collect();
    let best = (0..tries.len()).min_by(|&a, &b| tries[a].0.total_cmp(&tries[b].0))?;
    (best != 0).then(|| tries.into_iter().nth(best).map(|t| t.1)).flatten()
}

/// `importance^(power / 2)`, around 1. An importance is a square, AWQ's measure a magnitude.
fn factors(importance: &[f32], power: f32) -> Vec<f32> {
    let raw: Vec<f32> = importance.iter().map(|i| i.powf(0.5 * power).max(1e-4)).collect();
    let (low, high) = raw.iter().fold((f32::INFINITY, 0.0f32), |(l, h), &f| (l.min(f), h.max(f)));
    let centre = (low * high).sqrt();
    raw.iter().map(|f| f / centre).collect()
}

/// Squared error of the sample's output when its columns are scaled by `factors`.
fn error(sample: &Sample, factors: &[f32], weights: &[f32]) -> f64 {
    let n = factors.len();
    let mut bytes = vec![0; sample.ty.row_bytes(n)];
    let mut back = vec![0.0; n];
    let mut total = 0.0;
    for row in &sample.rows {
        let scaled: Vec<f32> = row.iter().zip(factors).map(|(v, f)| v * f).collect();
        quant::quantize_weighted(sample.ty, &scaled, weights, &mut bytes);
        quant::dequantize(sample.ty, &bytes, &mut back);
        let term = |((a, b), w): ((&f32, &f32), &f32)| f64::from(w * (a - b) * (a - b));
        total += scaled.iter().zip(&back).zip(weights).map(term).sum::<f64>();
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use intern_kernels::rng::Rng;

    #[test]
    fn scaling_lowers_the_error_where_few_columns_matter() {
        let mut rng = Rng::new(3, 0);
        let rows = (0..8).map(|_| (0..256).map(|_| rng.normal() as f32).collect()).collect();
        let sample = Sample { ty: BlockType::Q4_0, rows };
        let importance: Vec<f32> = (0..256).map(|i| if i % 32 == 5 { 400.0 } else { 1.0 }).collect();
        let none = error(&sample, &vec![1.0; 256], &importance);
        let factors = best_factors(std::slice::from_ref(&sample), &importance).unwrap();
        let weights: Vec<f32> = importance.iter().zip(&factors).map(|(i, f)| i / (f * f)).collect();
        let scaled = error(&sample, &factors, &weights);
        assert!(scaled < 0.9 * none, "{scaled} after, {none} before");
        assert_eq!(best_factors(std::slice::from_ref(&sample), &[1.0; 256]), None);
    }
}
