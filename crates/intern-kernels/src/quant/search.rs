//! Scales that lower the weighted squared error of a small group of numbers.
//!
//! Each search fixes the rounded integers for a candidate scale, takes the scale that is
//! optimal (least squares) for those integers, and keeps the best of a handful of candidates.
//! Groups are 16 or 32 numbers; sums run in eight lanes so that the compiler can use vectors.

/// To the nearest integer, ties to even, for `|x| < 2^22`: the sum has no bits left for a fraction.
#[inline(always)]
pub(super) fn nearest(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5 * 2^23
    (x + MAGIC) - MAGIC
}

/// The nearest integer within `low..=high`; `low` for what is no number.
#[inline(always)]
pub(super) fn level(x: f32, low: f32, high: f32) -> f32 {
    nearest(x).max(low).min(high)
}

/// Sums of `terms(x, weight)` over a group.
#[inline(always)]
pub(super) fn sums<const K: usize>(
    x: &[f32],
    weights: &[f32],
    terms: impl Fn(f32, f32) -> [f32; K],
) -> [f32; K] {
    let mut lanes = [[0.0f32; 8]; K];
    for (x, w) in x.chunks_exact(8).zip(weights.chunks_exact(8)) {
        for l in 0..8 {
            let term = terms(x[l], w[l]);
            for k in 0..K {
                lanes[k][l] += term[k];
            }
        }
    }
    lanes.map(|lane| lane.iter().sum())
}

/// `1 / x`, or 0 where `x` is 0: an all-zero group keeps scale 0.
#[inline(always)]
pub(super) fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The candidates of [`affine_group`]: `max - min` is divided by `levels + first + step * i`, `i` in `0..=steps`.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub first: f32,
    pub step: f32,
    pub steps: usize,
}

/// Scale and minimum with `x ≈ scale * q + min`, `q` in `0..=levels`; `min <= 0` unless `signed`.
#[inline(always)]
pub(super) fn affine_group(x: &[f32], weights: &[f32], levels: f32, grid: Grid, signed: bool) -> (f32, f32) {
    let start = if signed { f32::INFINITY } else { 0.0 };
    let low = x.iter().fold(start, |m, &v| m.min(v));
    let high = x.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    if high <= low {
        return (0.0, low);
    }
    let quantize = |v: f32, inverse: f32, low: f32| level(inverse * (v - low), 0.0, levels);
    let [sum_w, sum_x, sum_x2] = sums(x, weights, |v, w| [w, w * v, w * v * v]);
    let mut best = ((high - low) / levels, low);
    let [mut best_error] = sums(x, weights, |v, w| {
        let d = best.0 * quantize(v, levels / (high - low), low) + best.1 - v;
        [w * d * d]
    });
    for i in 0..=grid.steps {
        // From the best minimum so far: each success also moves where the next candidates start.
        let low = best.1;
        if high <= low {
            break;
        }
        let inverse = (grid.first + grid.step * i as f32 + levels) / (high - low);
        let [sum_q, sum_q2, sum_qx] = sums(x, weights, |v, w| {
            let q = quantize(v, inverse, low);
            [w * q, w * q * q, w * q * v]
        });
        let det = sum_w * sum_q2 - sum_q * sum_q;
        if det <= 0.0 {
            continue;
        }
        let mut scale = (sum_w * sum_qx - sum_x * sum_q) / det;
        let mut min = (sum_q2 * sum_x - sum_q * sum_qx) / det;
        if min > 0.0 && !signed {
            min = 0.0;
            scale = sum_qx / sum_q2;
        }
        let error = scale * (scale * sum_q2 + 2.0 * (min * sum_q - sum_qx))
            + min * (min * sum_w - 2.0 * sum_x)
            + sum_x2;
        if error < best_error {
            best_error = error;
            best = (scale, min);
        }
    }
    best
}

/// Scale with `x ≈ scale * q`, `q` in `-levels..levels`.
#[inline(always)]
pub(super) fn symmetric_group(x: &[f32], weights: &[f32], levels: f32) -> f32 {
    let extreme = x.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
    if extreme.abs() < 1e-15 {
        return 0.0;
    }
    // Least squares for the integers of `inverse`: the scale, and how much of the power it explains.
    let fit = |inverse: f32| -> (f32, f32) {
        let [sum_qx, sum_q2] = sums(x, weights, |v, w| {
            let q = level(inverse * v, -levels, levels - 1.0);
            [w * v * q, w * q * q]
        });
        if sum_q2 > 0.0 { (sum_qx / sum_q2, sum_qx * sum_qx / sum_q2) } else { (0.0, 0.0) }
    };
    let (mut scale, mut best) = fit(-levels / extreme);
    for i in (-9..=9).filter(|&i| i != 0) {
        let (candidate, explained) = fit(-(levels + 0.1 * i as f32) / extreme);
        if explained > best {
            (scale, best) = (candidate, explained);
        }
    }
    scale
}

/// The unit `d` and integers `0..=63` with `d * l ≈ values` (none negative), by weighted squares.
#[inline(always)]
pub(super) fn six_bit_scales(values: &[f32; 8], weights: &[f32; 8]) -> (f32, [u8; 8]) {
    let largest = values.iter().fold(0.0f32, |m, &x| m.max(x));
    if largest <= 0.0 {
        return (0.0, [0; 8]);
    }
    let six_bits = |v: f32, inverse: f32| level(v * inverse, 0.0, 63.0);
    let fit = |inverse: f32| {
        let [sum_qx, sum_q2] = sums(values, weights, |v, w| {
            let q = six_bits(v, inverse);
            [w * q * v, w * q * q]
        });
        if sum_q2 > 0.0 { (sum_qx / sum_q2, sum_qx * sum_qx / sum_q2) } else { (0.0, 0.0) }
    };
    let (mut at, mut d, mut best) = (63.0 / largest, 0.0, -1.0);
    for i in -9..=9 {
        let inverse = (63.0 + 0.1 * i as f32) / largest;
        let (candidate, explained) = fit(inverse);
        if explained > best {
            (at, d, best) = (inverse, candidate, explained);
        }
    }
    (d, values.map(|v| six_bits(v, at) as u8))
}
