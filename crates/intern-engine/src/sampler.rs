//! Chooses the next token from a row of logits.
//!
//! Penalties, temperature, top-k, top-p, min-p, typical, then one draw, in the order of
//! `transformers`. Nothing sorts the whole vocabulary; what is off costs nothing. The draw is value `position` of the request's own random stream, so the same request with
//! the same seed gives the same tokens whatever runs beside it.

use intern_kernels::rng::Rng;
use intern_kernels::sampling::{argmax, log_sum_exp, max, top_k};
use intern_lm::Sampling;
use llguidance::toktrie::SimpleVob;

use crate::penalties::{self, Said};

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    pub id: u32,
    /// Natural logarithm of the model's probability, before penalty and temperature.
    /// Present with its likeliest alternatives if asked for.
    pub logprob: Option<(f32, Vec<(u32, f32)>)>,
}

/// Chooses the token after `said` among those of `mask`.
pub(crate) fn sample(
    logits: &mut [f32],
    sampling: &Sampling,
    said: Said,
    mask: Option<&SimpleVob>,
) -> Choice {
    let before = sampling.logprobs.map(|n| (log_sum_exp(logits), top_k(logits, n)));
    let raw = (before.is_some() && (mask.is_some() || penalties::are_on(sampling))).then(|| logits.to_vec());
    penalties::apply(logits, sampling, said);
    if let Some(mask) = mask {
        forbid(logits, mask);
    }
    let id = choose(logits, sampling, said.tokens.len());
    let logprob = before.map(|(total, top)| {
        let relative = |logit: f32| (f64::from(logit) - total) as f32;
        let own = raw.as_deref().unwrap_or(logits)[id as usize];
        (relative(own), top.into_iter().map(|(id, logit)| (id, relative(logit))).collect())
    });
    Choice { id, logprob }
}

/// Makes every token outside `mask` impossible.
fn forbid(logits: &mut [f32], mask: &SimpleVob) {
    let words = mask.as_slice().iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in logits.chunks_mut(32).zip(words) {
        match word {
            0 => logits.fill(f32::NEG_INFINITY),
            u32::MAX => {}
            _ => logits.iter_mut().enumerate().for_each(|(i, logit)| {
                if word >> i & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }),
        }
    }
}

/// Takes the likeliest, or draws at `position` of the request's stream.
fn choose(logits: &[f32], sampling: &Sampling, position: usize) -> u32 {
    if sampling.temperature <= 0.0 {
        return argmax(logits) as u32;
    }
    let u = unit(sampling.seed, position);
    let filtered = sampling.top_k > 0 || sampling.top_p < 1.0 || sampling.min_p > 0.0;
    let temperature = f64::from(sampling.temperature);
    match (filtered, sampling.typical_p < 1.0) {
        (false, false) => draw_any(logits, temperature, u),
        (true, false) => draw(&candidates(logits, sampling), u),
        (true, true) => draw(&typical(candidates(logits, sampling), sampling.typical_p), u),
        (false, true) => draw(&typical(all(logits, temperature), sampling.typical_p), u),
    }
}

/// The draw of one position, in `[0, 1)`.
fn unit(seed: u64, position: usize) -> f64 {
    (Rng::new(seed, 0).at(position as u64) >> 11) as f64 / (1u64 << 53) as f64
}

/// Every possible token with its weight relative to the likeliest, by id.
fn all(logits: &[f32], temperature: f64) -> Vec<(u32, f64)> {
    let first = f64::from(max(logits));
    let possible = logits.iter().enumerate().filter(|(_, x)| !x.is_nan() && **x > f32::NEG_INFINITY);
    possible.map(|(id, &x)| (id as u32, ((f64::from(x) - first) / temperature).exp())).collect()
}

/// The candidates whose surprise is closest to the distribution's entropy, up to `mass`.
fn typical(candidates: Vec<(u32, f64)>, mass: f32) -> Vec<(u32, f64)> {
    let total: f64 = candidates.iter().map(|c| c.1).sum();
    let surprises: Vec<f64> = candidates.iter().map(|c| total.ln() - c.1.ln()).collect();
    let parts = candidates.iter().zip(&surprises).filter(|(c, _)| c.1 > 0.0);
    let entropy: f64 = parts.map(|(c, surprise)| c.1 / total * surprise).sum();
    let away = surprises.iter().map(|surprise| (surprise - entropy).abs());
    let mut nearest: Vec<(f64, (u32, f64))> = away.zip(candidates).collect();
    let order = |a: &(f64, (u32, f64)), b: &(f64, (u32, f64))| a.0.total_cmp(&b.0).then(a.1.0.cmp(&b.1.0));
    // Few are needed as a rule; widen until the mass is covered.
    let mut width = 256.min(nearest.len());
    loop {
        if width < nearest.len() {
            nearest.select_nth_unstable_by(width, order);
        }
        nearest[..width].sort_unstable_by(order);
        let mut sum = 0.0;
        let last = nearest[..width].iter().position(|(_, c)| {
            sum += c.1;
            sum >= f64::from(mass) * total
        });
        if last.is_some() || width == nearest.len() {
            let kept = last.map_or(width, |last| last + 1);
            return nearest.into_iter().take(kept).map(|(_, candidate)| candidate).collect();
        }
        width = (4 * width).min(nearest.len());
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
        let Some(first) = best.first().map(|b| f64::from(b.1)) else { return vec![(0, 1.0)] };
        let weight = |logit: f32| ((f64::from(logit) - first) / temperature).exp();
        let mut kept: Vec<(u32, f64)> = best.iter().map(|&(id, logit)| (id, weight(logit))).collect();
        let complete = width == k;
        if sampling.top_p < 1.0 {
            let total: f64 = match sampling.top_k {
                0 => runs(logits, first, temperature).iter().sum(),
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

/// Logits per partial sum.
const RUN: usize = 1024;

/// Sums of the weights `e^((x - first) / temperature)` over consecutive runs.
fn runs(logits: &[f32], first: f64, temperature: f64) -> Vec<f64> {
    let mut scaled = [0.0f32; RUN];
    let one = |run: &[f32]| {
        let scaled = &mut scaled[..run.len()];
        scaled.iter_mut().zip(run).for_each(|(s, &x)| *s = ((f64::from(x) - first) / temperature) as f32);
        log_sum_exp(scaled).exp()
    };
    logits.chunks(RUN).map(one).collect()
}

/// One of all tokens, without sorting them.
fn draw_any(logits: &[f32], temperature: f64, u: f64) -> u32 {
    let first = f64::from(max(logits));
    let runs = runs(logits, first, temperature);
    let mut rest = u * runs.iter().sum::<f64>();
    let last = runs.iter().rposition(|&sum| sum > 0.0).unwrap_or(0);
    let run = runs.iter().take(last).position(|&sum| {
        let inside = rest < sum;
        rest -= if inside { 0.0 } else { sum };
        inside
    });
    let start = run.unwrap_or(last) * RUN;
    let mut found = argmax(logits) as u32;
    for (i, &x) in logits[start..].iter().take(RUN).enumerate() {
        let weight = ((f64::from(x) - first) / temperature).exp();
        if weight > 0.0 {
            found = (start + i) as u32; // the last one, where rounding leaves a hair
            rest -= weight;
            if rest < 0.0 {
                break;
            }
        }
    }
    found
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

    fn said(tokens: &[u32]) -> Said<'_> {
        Said { tokens, prompt_len: 0, breakers: &[] }
    }

    fn warm() -> Sampling {
        Sampling { temperature: 1.0, ..Sampling::default() }
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        let mut logits = vec![0.5, 2.0, 2.0, -1.0];
        assert_eq!(sample(&mut logits, &Sampling::default(), said(&[]), None).id, 1);
    }

    #[test]
    fn draws_follow_the_distribution_and_only_seed_and_position() {
        let logits = [1.0f32, 0.0, -1.0, 2.0];
        let mut counts = [0f64; 4];
        let n = 20_000;
        for position in 0..n {
            counts[choose(&logits, &warm(), position) as usize] += 1.0 / n as f64;
        }
        let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        for (count, &logit) in counts.iter().zip(&logits) {
            assert!((count - f64::from(logit).exp() / total).abs() < 0.015, "{counts:?}");
        }
        let again = |seed, position| choose(&logits, &Sampling { seed, ..warm() }, position);
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
    fn a_mask_leaves_no_way_out() {
        let logits: Vec<f32> = (0..70).map(|i| i as f32).collect();
        let mut mask = SimpleVob::alloc(64); // shorter than the model's vocabulary
        mask.allow_token(3);
        mask.allow_token(40);
        let likeliest = sample(&mut logits.clone(), &Sampling::default(), said(&[]), Some(&mask));
        assert_eq!(likeliest.id, 40);
        let hot = Sampling { temperature: 1000.0, ..Sampling::default() };
        for position in 0..200 {
            let tokens = vec![1; position];
            let drawn = sample(&mut logits.clone(), &hot, said(&tokens), Some(&mask)).id;
            assert!(matches!(drawn, 3 | 40));
        }
    }

    /// Printed, not judged; run with `RUN_SLOW_TESTS=1 … --no-capture`.
    #[test]
    fn time_per_token() {
        if std::env::var_os("RUN_SLOW_TESTS").is_none() {
            return;
        }
        let mut rng = intern_kernels::rng::Rng::new(1, 1);
        let logits: Vec<f32> = (0..92_544).map(|_| 3.0 * rng.normal() as f32).collect();
        let tokens: Vec<u32> = (0..4096).map(|_| rng.range(0, 92_544) as u32).collect();
        let greedy = Sampling::default();
        let dry = Some(intern_lm::Dry::default());
        let penalties = Sampling { repetition_penalty: 1.1, frequency_penalty: 0.1, dry, ..greedy.clone() };
        for (name, sampling) in [
            ("greedy", greedy.clone()),
            ("greedy, all penalties on 4096 tokens", penalties),
            ("greedy, 20 log-probabilities", Sampling { logprobs: Some(20), ..greedy }),
            ("temperature", warm()),
            ("top_k 40, top_p 0.9", Sampling { top_k: 40, top_p: 0.9, ..warm() }),
            ("top_p 0.9", Sampling { top_p: 0.9, ..warm() }),
            ("min_p 0.05", Sampling { min_p: 0.05, ..warm() }),
            ("typical_p 0.9", Sampling { typical_p: 0.9, ..warm() }),
        ] {
            let times: Vec<f64> = (0..40)
                .map(|_| {
                    let mut logits = logits.clone();
                    let start = std::time::Instant::now();
                    std::hint::black_box(sample(&mut logits, &sampling, said(&tokens), None));
                    start.elapsed().as_secs_f64() * 1e6
                })
                .collect();
            println!("{name}: {:.0} µs", times.into_iter().fold(f64::INFINITY, f64::min));
        }
    }

    #[test]
    fn typical_takes_what_surprises_as_expected() {
        // Entropy 1.75 bits; surprises 1, 2, 3, 3 bits: the second is closest, then the first.
        let logits: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln()).collect();
        let ids = |mass: f32| typical(all(&logits, 1.0), mass).iter().map(|c| c.0).collect::<Vec<_>>();
        assert_eq!(ids(0.2), [1]);
        assert_eq!(ids(0.5), [1, 0]);
        assert_eq!(ids(0.8), [1, 0, 2]);
        assert_eq!(ids(1.0), [1, 0, 2, 3]);
    }

    #[test]
    fn a_wide_vocabulary_is_drawn_from_by_weight() {
        // Two tokens far apart hold three and one quarters; the rest is impossible.
        let mut logits = vec![f32::NEG_INFINITY; 5000];
        (logits[77], logits[4321]) = (3f32.ln() * 0.5, 0.0);
        let half = Sampling { temperature: 0.5, ..warm() };
        let n = 4000;
        let hits = (0..n).filter(|&p| choose(&logits, &half, p) == 77).count();
        assert!((0..n).all(|p| matches!(choose(&logits, &half, p), 77 | 4321)));
        assert!((hits as f64 / n as f64 - 0.75).abs() < 0.03, "{hits}");
    }

    #[test]
    fn logprobs_are_the_models_own() {
        let logits = [0.0f32, 1.0, 2.0];
        let sampling =
            Sampling { logprobs: Some(2), repetition_penalty: 3.0, temperature: 0.1, ..Sampling::default() };
        let choice = sample(&mut logits.to_vec(), &sampling, said(&[2]), None);
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
