//! Scales that lower the weighted squared error of a small group of numbers.
//!
//! Both searches fix the rounded integers for a candidate scale, then take the scale that is
//! optimal (least squares) for those integers, and keep the best of a handful of candidates.

/// Scale and minimum (as a non-negative offset) with `x ≈ scale * q - min`, `q` in `0..=levels`.
///
/// Candidates divide `max - min` by `levels + first + step * i` for `i` in `0..=steps`.
pub(super) fn affine_group(
    x: &[f32],
    weights: &[f32],
    levels: i32,
    first: f32,
    step: f32,
    steps: usize,
) -> (f32, f32) {
    let low = x.iter().fold(0.0f32, |m, &v| m.min(v)); // a minimum above zero cannot be stored
    let high = x.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    if high <= low {
        return (0.0, -low);
    }
    let top = levels as f32;
    let quantize = |v: f32, inverse: f32, low: f32| (inverse * (v - low)).round_ties_even().clamp(0.0, top);
    let error = |inverse: f32, low_q: f32, scale: f32, min: f32| -> f32 {
        let term = |(&v, &w): (&f32, &f32)| {
            let d = scale * quantize(v, inverse, low_q) + min - v;
            w * d * d
        };
        x.iter().zip(weights).map(term).sum()
    };

    let mut best = ((high - low) / top, low);
    let mut best_error = error(top / (high - low), low, best.0, best.1);
    let sum_w: f32 = weights.iter().sum();
    let sum_x: f32 = weights.iter().zip(x).map(|(w, v)| w * v).sum();
    for i in 0..=steps {
        // From the best minimum so far: each success also moves where the next candidates start.
        let low = best.1;
        if high <= low {
            break;
        }
        let inverse = (first + step * i as f32 + top) / (high - low);
        let (mut sum_q, mut sum_q2, mut sum_qx) = (0.0f32, 0.0f32, 0.0f32);
        for (&v, &w) in x.iter().zip(weights) {
            let q = quantize(v, inverse, low);
            sum_q += w * q;
            sum_q2 += w * q * q;
            sum_qx += w * q * v;
        }
        let det = sum_w * sum_q2 - sum_q * sum_q;
        if det <= 0.0 {
            continue;
        }
        let mut scale = (sum_w * sum_qx - sum_x * sum_q) / det;
        let mut min = (sum_q2 * sum_x - sum_q * sum_qx) / det;
        if min > 0.0 {
            min = 0.0;
            scale = sum_qx / sum_q2;
        }
        let candidate_error = error(inverse, low, scale, min);
        if candidate_error < best_error {
            best_error = candidate_error;
            best = (scale, min);
        }
    }
    (best.0, -best.1)
}

/// Scale with `x ≈ scale * q`, `q` in `-levels..levels`, each element weighted by its square.
pub(super) fn symmetric_group(x: &[f32], levels: i32) -> f32 {
    let extreme = x.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    if extreme.abs() < 1e-15 {
        return 0.0;
    }
    let n = levels as f32;
    // Least squares for the integers of `inverse`: the scale, and how much of the power it explains.
    let fit = |inverse: f32| -> (f32, f32) {
        let (mut sum_qx, mut sum_q2) = (0.0f32, 0.0f32);
        for &v in x {
            let q = (inverse * v).round_ties_even().clamp(-n, n - 1.0);
            let w = v * v;
            sum_qx += w * v * q;
            sum_q2 += w * q * q;
        }
        if sum_q2 > 0.0 { (sum_qx / sum_q2, sum_qx * sum_qx / sum_q2) } else { (0.0, 0.0) }
    };
    let (mut scale, mut best) = fit(-n / extreme);
    for i in (-9..=9).filter(|&i| i != 0) {
        let (candidate, explained) = fit(-(n + 0.1 * i as f32) / extreme);
        if explained > best {
            (scale, best) = (candidate, explained);
        }
    }
    scale
}
