//! Reductions over one row of logits: arg-max, top-k and log-sum-exp.

use crate::multiversion;
use crate::train::math::exp;

/// Index of the largest logit; the first of equals. NaN never wins; 0 for an empty row.
#[must_use]
pub fn argmax(logits: &[f32]) -> usize {
    let best = max(logits);
    logits.iter().position(|&x| x == best).unwrap_or(0)
}

multiversion! {
    /// The largest value; `-inf` for an empty row. NaN is ignored.
    pub fn max(x: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; 16];
        let chunks = x.chunks_exact(16);
        let rest = chunks.remainder().iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
        for chunk in chunks {
            for l in 0..16 {
                lanes[l] = if chunk[l] > lanes[l] { chunk[l] } else { lanes[l] };
            }
        }
        lanes.iter().fold(rest, |m, &v| if v > m { v } else { m })
    }
}

multiversion! {
    /// Sum of `e^(x - max)`, in f64 over a fixed order.
    fn sum_exp(x: &[f32], max: f32) -> f64 {
        let mut total = 0.0f64;
        // Short runs in f32, so that vocabularies of any size keep seven digits.
        for run in x.chunks(512) {
            let mut lanes = [0.0f32; 16];
            let chunks = run.chunks_exact(16);
            for &v in chunks.remainder() {
                total += f64::from(exp(v - max));
            }
            for chunk in chunks {
                for l in 0..16 {
                    lanes[l] += exp(chunk[l] - max);
                }
            }
            for lane in lanes {
                total += f64::from(lane);
            }
        }
        total
    }
}

/// `ln Σ e^x`; what turns a logit into a log-probability.
#[must_use]
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = max(logits);
    if max == f32::NEG_INFINITY {
        return f64::NEG_INFINITY;
    }
    f64::from(max) + sum_exp(logits, max).ln()
}

/// The `k` largest logits with their indices, largest first; equals in index order.
#[must_use]
pub fn top_k(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let k = k.min(logits.len());
    if k == 0 {
        return Vec::new();
    }
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(2 * k.max(64));
    let mut threshold = f32::NEG_INFINITY;
    let mut full = false;
    for (i, &x) in logits.iter().enumerate() {
        if full && x <= threshold || x.is_nan() {
            continue; // an equal value further right loses to the ones kept
        }
        best.push((i as u32, x));
        if best.len() == best.capacity() {
            best.select_nth_unstable_by(k - 1, order);
            best.truncate(k);
            threshold = best[k - 1].1;
            full = true;
        }
    }
    best.sort_unstable_by(order);
    best.truncate(k);
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn reductions_agree_with_sorting(
            row in prop::collection::vec(prop_oneof![-20.0f32..20.0, Just(1.5f32), Just(f32::NEG_INFINITY)], 1..700),
            k in 0usize..80,
        ) {
            let mut sorted: Vec<(u32, f32)> = row.iter().enumerate().map(|(i, &x)| (i as u32, x)).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            prop_assert_eq!(argmax(&row), sorted[0].0 as usize);
            sorted.truncate(k);
            prop_assert_eq!(top_k(&row, k), sorted);
            let exact = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            let got = log_sum_exp(&row);
            prop_assert!(got == exact || (got - exact).abs() < 1e-6, "{} {}", got, exact);
        }
    }

    #[test]
    fn nan_and_empty_rows_do_not_panic() {
        assert_eq!(argmax(&[f32::NAN, 1.0, f32::NAN]), 1);
        assert_eq!(argmax(&[]), 0);
        assert_eq!(top_k(&[f32::NAN, 2.0], 2), vec![(1, 2.0)]);
        assert_eq!(log_sum_exp(&[]), f64::NEG_INFINITY);
    }
}
