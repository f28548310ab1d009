//! Chooses the next token from a row of logits.
//!
//! Penalty, temperature, top-k, top-p, min-p, then one draw, in the order of `transformers`.
//! The draw is value `position` of the request's own random stream, so the same request with
//! the same seed gives the same tokens whatever runs beside it.

use intern_kernels::rng::Rng;
use intern_kernels::sampling::{argmax, log_sum_exp, top_k};
use intern_lm::Sampling;

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    pub id: u32,
    /// Natural logarithm of the model's probability, before penalty and temperature.
    /// Present with its likeliest alternatives if asked for.
    pub logprob: Option<(f32, Vec<(u32, f32)>)>,
}

/// Chooses token number `position` of a sequence; `seen` holds everything before it.
pub(crate) fn sample(logits: &mut [f32], sampling: &Sampling, seen: &[u32], position: usize) -> Choice {
    let before = sampling.logprobs.map(|n| {
        let total = log_sum_exp(logits);
        let raw = logits.to_vec();
        (total, top_k(&raw, n), raw)
    });
    penalize(logits, sampling.repetition_penalty, seen);
    let id = if sampling.temperature <= 0.0 {
        argmax(logits) as u32
    } else {
        let u = unit(sampling.seed, position);
        if sampling.top_k == 0 && sampling.top_p >= 1.0 && sampling.min_p <= 0.0 {
            draw_any(logits, f64::from(sampling.temperature), u)
        } else {
            draw(&candidates(logits, sampling), u)
        }
    };
    let logprob = before.map(|(total, top, raw)| {
        let relative = |logit: f32| (f64::from(logit) - total) as f32;
        (relative(raw[id as usize]), top.into_iter().map(|(id, logit)| (id, relative(logit))).collect())
    });
    Choice { id, logprob }
}

/// The draw of one position, in `[0, 1)`.
fn unit(seed: u64, position: usize) -> f64 {
    (Rng::new(seed, 0).at(position as u64) >> 11) as f64 / (1u64 << 53) as f64
}

/// Makes every token of `seen` less likely, once each.
fn penalize(logits: &mut [f32], penalty: f32, seen: &[u32]) {
    if penalty == 1.0 {
        return;
    }
    let mut unique = seen.to_vec();
    unique.sort_unstable();
    unique.dedup();
    for id in unique {
        let logit = &mut logits[id as usize];
        *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
    }
}

/// The tokens that may be drawn, likeliest first, with weights relative to the first.
fn candidates(logits: &[f32], sampling: &Sampling) -> Vec<(u32, f64)> {
    let v = logits.len();
    let temperature = f64::from(sampling.temperature);
    let k = if sampling.top_k == 0 { v } else { sampling.top_k.min(v) };
    // The filters rarely need more than the head of the distribution; widen until it is covered.
    let mut width = if sampling.top_p >= 1.0 && sampling.min_p <= 0.0 { k } else { k.min(256) };
    loop {
        let best = top_k(logits, width);
        let Some(&(_, first)) = best.first() else { return vec![(0, 1.0)] };
        let weight = |logit: f32| ((f64::from(logit) - f64::from(first)) / temperature).exp();
        let mut kept: Vec<(u32, f64)> = best.iter().map(|&(id, logit)| (id, weight(logit))).collect();
        let complete = width == k;
        if sampling.top_p < 1.0 {
            let total: f64 = match sampling.top_k {
                0 => logits.iter().map(|&x| weight(x)).filter(|w| !w.is_nan()).sum(),
                _ => match complete {
                    true => kept.iter().map(|c| c.1).sum(),
                    false => {
                        width = k; // the sum over the top k is needed
                        continue;
                    }
                },
            };
            let target = f64::from(sampling.top_p.max(0.0)) * total;
            let mut sum = 0.0;
            let last = kept.iter().position(|&(_, w)| {
                sum += w;
                sum >= target
            });
            match last {
                Some(last) => kept.truncate(last + 1),
                None if !complete => {
                    width = (4 * width).min(k);
                    continue;
                }
                None => {}
            }
        }
        if sampling.min_p > 0.0 {
            // Weights are relative to the likeliest, so min-p is a bound on the weight itself.
            let floor = f64::from(sampling.min_p.min(1.0));
            let before = kept.len();
            kept.retain(|&(_, w)| w >= floor);
            if sampling.top_p >= 1.0 && kept.len() == before && !complete {
                width = (4 * width).min(k);
                continue;
            }
        }
        return kept;
    }
}

/// One of all tokens, without sorting them.
fn draw_any(logits: &[f32], temperature: f64, u: f64) -> u32 {
    let first = f64::from(logits[argmax(logits)]);
    let weight = |&x: &f32| if x.is_nan() { 0.0 } else { ((f64::from(x) - first) / temperature).exp() };
    let total: f64 = logits.iter().map(weight).sum();
    let mut rest = u * total;
    for (id, x) in logits.iter().enumerate() {
        rest -= weight(x);
        if rest < 0.0 {
            return id as u32;
        }
    }
    argmax(logits) as u32 // rounding left a hair
}

/// The candidate at `u` of the cumulative weight.
fn draw(candidates: &[(u32, f64)], u: f64) -> u32 {
    let total: f64 = candidates.iter().map(|c| c.1).sum();
    let mut rest = u * total;
    for &(id, weight) in candidates {
        rest -= weight;
        if rest < 0.0 {
            return id;
        }
    }
    candidates.iter().rev().find(|c| c.1 > 0.0).unwrap_or(&candidates[0]).0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn warm() -> Sampling {
        Sampling { temperature: 1.0, ..Sampling::default() }
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        let mut logits = vec![0.5, 2.0, 2.0, -1.0];
        assert_eq!(sample(&mut logits, &Sampling::default(), &[], 0).id, 1);
    }

    #[test]
    fn draws_follow_the_distribution_and_only_seed_and_position() {
        let logits = [1.0f32, 0.0, -1.0, 2.0];
        let mut counts = [0f64; 4];
        let n = 20_000;
        for position in 0..n {
            counts[sample(&mut logits.to_vec(), &warm(), &[], position).id as usize] += 1.0 / n as f64;
        }
        let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        for (count, &logit) in counts.iter().zip(&logits) {
            assert!((count - f64::from(logit).exp() / total).abs() < 0.015, "{counts:?}");
        }
        let again =
            |seed, position| sample(&mut logits.to_vec(), &Sampling { seed, ..warm() }, &[], position).id;
        assert!((0..50).all(|p| again(3, p) == again(3, p)));
        assert!((0..50).any(|p| again(3, p) != again(4, p)));
    }

    #[test]
    fn filters_keep_what_they_promise() {
        // Probabilities 0.5, 0.25, 0.125, 0.125.
        let logits: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect();
        let ids = |sampling: Sampling| candidates(&logits, &sampling).iter().map(|c| c.0).collect::<Vec<_>>();
        assert_eq!(ids(warm()), [0, 1, 2, 3]);
        assert_eq!(ids(Sampling { top_k: 2, ..warm() }), [0, 1]);
        assert_eq!(ids(Sampling { top_p: 0.5, ..warm() }), [0]);
        assert_eq!(ids(Sampling { top_p: 0.51, ..warm() }), [0, 1]);
        assert_eq!(ids(Sampling { min_p: 0.3, ..warm() }), [0, 1]);
        assert_eq!(ids(Sampling { top_k: 3, top_p: 0.8, min_p: 0.1, ..warm() }), [0, 1]);
        assert_eq!(ids(Sampling { top_p: 0.0, ..warm() }), [0]);
    }

    #[test]
    fn the_penalty_counts_each_seen_token_once() {
        let mut logits = vec![2.0, -2.0, 1.9];
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(sample(&mut logits, &sampling, &[0, 0, 1], 3).id, 2);
        assert_eq!(logits, [1.0, -4.0, 1.9]);
    }

    #[test]
    fn logprobs_are_the_models_own() {
        let logits = [0.0f32, 1.0, 2.0];
        let sampling =
            Sampling { logprobs: Some(2), repetition_penalty: 3.0, temperature: 0.1, ..Sampling::default() };
        let choice = sample(&mut logits.to_vec(), &sampling, &[2], 0);
        let total = logits.iter().map(|x| x.exp()).sum::<f32>().ln();
        let (logprob, top) = choice.logprob.unwrap();
        assert!((logprob - (logits[choice.id as usize] - total)).abs() < 1e-6);
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), [2, 1]);
    }

    proptest! {
        #[test]
        fn wide_vocabularies_are_cut_like_narrow_ones(
            logits in prop::collection::vec(-8.0f32..8.0, 300..900),
            top_k in prop_oneof![Just(0usize), 1usize..700],
            top_p in prop_oneof![Just(1.0f32), 0.1f32..1.0],
            min_p in prop_oneof![Just(0.0f32), 0.0001f32..0.5],
        ) {
            let sampling = Sampling { top_k, top_p, min_p, ..warm() };
            let got: Vec<u32> = candidates(&logits, &sampling).iter().map(|c| c.0).collect();
            // The definition, over a full sort.
            let mut sorted: Vec<(u32, f64)> =
                logits.iter().enumerate().map(|(i, &x)| (i as u32, f64::from(x).exp())).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            sorted.truncate(if top_k == 0 { sorted.len() } else { top_k });
            let total: f64 = sorted.iter().map(|c| c.1).sum();
            let mut sum = 0.0;
            let mut want = Vec::new();
            for &(id, p) in &sorted {
                if top_p < 1.0 && sum >= f64::from(top_p) * total - 1e-9 {
                    break;
                }
                sum += p;
                if p >= f64::from(min_p) * sorted[0].1 {
                    want.push(id);
                }
            }
            prop_assert!(got.len().abs_diff(want.len()) <= 1, "{} {}", got.len(), want.len());
            let shorter = got.len().min(want.len());
            prop_assert_eq!(&got[..shorter], &want[..shorter]);
        }
    }
}
