//! Encoders of the k-quants: super-blocks of 256 with small integers for the groups' scales.
//!
//! First each group alone (`search`), then together: the groups' integers are tried one up and
//! one down against the stored unit, and the unit is fitted to the integers, as long as the
//! super-block's error falls.

use half::f16;

use super::search::{Grid, affine_group, inverse, level, six_bit_scales, sums, symmetric_group};
use super::{QK_K, pack_scale_min};

/// Times the units are fitted again.
const ROUNDS: usize = 2;

/// Squared error, and the integers that have it.
type Fit<Q> = (f32, Q);

fn rounded(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

fn put_f16(b: &mut [u8], at: usize, x: f32) {
    b[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
}

/// How much each element's error counts: by the importance of its column, and more for large ones.
#[inline(always)]
fn element_weights(v: &[f32], importance: Option<&[f32]>) -> [f32; QK_K] {
    let mut weights = [0.0; QK_K];
    match importance {
        Some(importance) => {
            let power: f32 = v.iter().map(|x| x * x).sum::<f32>() / QK_K as f32;
            for ((w, x), i) in weights.iter_mut().zip(v).zip(importance) {
                *w = i * (2.0 * power + x * x).sqrt();
            }
        }
        None => {
            for (w, x) in weights.chunks_exact_mut(32).zip(v.chunks_exact(32)) {
                let power = (x.iter().map(|x| x * x).sum::<f32>() / 32.0).sqrt();
                w.iter_mut().zip(x).for_each(|(w, x)| *w = power + x.abs());
            }
        }
    }
    weights
}

/// A super-block of Q4_K or Q5_K: element = `d * scale * q - dmin * min`.
struct Affine {
    d: f32,
    dmin: f32,
    scales: [u8; 8],
    mins: [u8; 8],
}

impl Affine {
    /// Step and offset of a group with these integers.
    #[inline(always)]
    fn step(&self, scale: u8, min: u8) -> (f32, f32) {
        (self.d * f32::from(scale), self.dmin * f32::from(min))
    }

    /// Lowers the error by moving each group's integers by one; the error left.
    #[inline(always)]
    fn settle(&mut self, v: &[f32], weights: &[f32], levels: f32) -> f32 {
        let mut total = 0.0;
        for j in 0..8 {
            let (x, w) = (&v[32 * j..][..32], &weights[32 * j..][..32]);
            let mut best: Fit<(u8, u8)> = (f32::INFINITY, (0, 0));
            for ds in -1..=1i16 {
                for dm in -1..=1i16 {
                    let scale = (i16::from(self.scales[j]) + ds).clamp(0, 63) as u8;
                    let min = (i16::from(self.mins[j]) + dm).clamp(0, 63) as u8;
                    let (step, offset) = self.step(scale, min);
                    let inverse = inverse(step);
                    let [error] = sums(x, w, |x, w| {
                        let q = level((x + offset) * inverse, 0.0, levels);
                        let d = step * q - offset - x;
                        [w * d * d]
                    });
                    if error < best.0 {
                        best = (error, (scale, min));
                    }
                }
            }
            total += best.0;
            (self.scales[j], self.mins[j]) = best.1;
        }
        total
    }

    /// The units that fit the integers best; unchanged where there is no such pair.
    #[inline(always)]
    fn refit(&self, v: &[f32], weights: &[f32], levels: f32) -> (f32, f32) {
        let (mut aa, mut ab, mut bb, mut ax, mut bx) = (0.0f32, 0.0f32, 0.0f32, 0.0f32, 0.0f32);
        for j in 0..8 {
            let (scale, min) = (f32::from(self.scales[j]), f32::from(self.mins[j]));
            let (step, offset) = self.step(self.scales[j], self.mins[j]);
            let inverse = inverse(step);
            let (x, w) = (&v[32 * j..][..32], &weights[32 * j..][..32]);
            let [w0, wq, wqq, wqx, wx] = sums(x, w, |x, w| {
                let q = level((x + offset) * inverse, 0.0, levels);
                [w, w * q, w * q * q, w * q * x, w * x]
            });
            aa += scale * scale * wqq;
            ab += scale * min * wq;
            bb += min * min * w0;
            ax += scale * wqx;
            bx += min * wx;
        }
        // Normal equations of d * a - dmin * b ≈ x.
        let det = aa * bb - ab * ab;
        let (d, dmin) = if det > 1e-6 * aa * bb {
            ((ax * bb - ab * bx) / det, (ab * ax - aa * bx) / det)
        } else if aa > 0.0 {
            ((ax + self.dmin * ab) / aa, self.dmin)
        } else {
            (self.d, self.dmin)
        };
        if d > 0.0 && dmin >= 0.0 { (d, dmin) } else { (self.d, self.dmin) }
    }

    /// Finds a good one for `v`.
    #[inline(always)]
    fn search(v: &[f32], weights: &[f32], levels: f32, grid: Grid) -> Self {
        let (mut scales, mut mins, mut sizes) = ([0.0f32; 8], [0.0f32; 8], [0.0f32; 8]);
        for j in 0..8 {
            let (x, w) = (&v[32 * j..][..32], &weights[32 * j..][..32]);
            let (scale, min) = affine_group(x, w, levels, grid, false);
            (scales[j], mins[j]) = (scale, -min);
            sizes[j] = w.iter().sum();
        }
        let (d, scales) = six_bit_scales(&scales, &sizes);
        let (dmin, mins) = six_bit_scales(&mins, &sizes);
        let mut now = Self { d: rounded(d), dmin: rounded(dmin), scales, mins };
        let mut error = now.settle(v, weights, levels);
        for _ in 0..ROUNDS {
            let (d, dmin) = now.refit(v, weights, levels);
            let mut next = Self { d: rounded(d), dmin: rounded(dmin), ..now };
            let next_error = next.settle(v, weights, levels);
            if next_error >= error {
                break;
            }
            (now, error) = (next, next_error);
        }
        now
    }

    /// The integers of the elements.
    #[inline(always)]
    fn levels(&self, v: &[f32], levels: f32) -> [u8; QK_K] {
        let mut q = [0u8; QK_K];
        for j in 0..8 {
            let (step, offset) = self.step(self.scales[j], self.mins[j]);
            let inverse = inverse(step);
            for (q, x) in q[32 * j..][..32].iter_mut().zip(&v[32 * j..][..32]) {
                *q = level((x + offset) * inverse, 0.0, levels) as u8;
            }
        }
        q
    }

    fn put_head(&self, b: &mut [u8]) {
        put_f16(b, 0, self.d);
        put_f16(b, 2, self.dmin);
        pack_scale_min(&self.scales, &self.mins, &mut b[4..16]);
    }
}

/// The searches' candidates, finer with importances, as ggml has them.
fn grid(importance: Option<&[f32]>, levels: f32) -> Grid {
    match (importance, levels) {
        (Some(_), _) => Grid { first: -0.9, step: 0.05, steps: 36 },
        (None, 15.0) => Grid { first: -1.0, step: 0.1, steps: 20 },
        (None, _) => Grid { first: -0.5, step: 0.1, steps: 15 },
    }
}

#[inline(always)]
pub(super) fn q4_k(v: &[f32], importance: Option<&[f32]>, b: &mut [u8]) {
    let weights = element_weights(v, importance);
    let fit = Affine::search(v, &weights, 15.0, grid(importance, 15.0));
    fit.put_head(b);
    let q = fit.levels(v, 15.0);
    for (pair, out) in q.chunks_exact(64).zip(b[16..].chunks_exact_mut(32)) {
        for (l, out) in out.iter_mut().enumerate() {
            *out = pair[l] | (pair[l + 32] << 4);
        }
    }
}

#[inline(always)]
pub(super) fn q5_k(v: &[f32], importance: Option<&[f32]>, b: &mut [u8]) {
    let weights = element_weights(v, importance);
    let fit = Affine::search(v, &weights, 31.0, grid(importance, 31.0));
    fit.put_head(b);
    let q = fit.levels(v, 31.0);
    let (fifths, nibbles) = b[16..].split_at_mut(32);
    fifths.fill(0);
    for (pair, (q, out)) in q.chunks_exact(64).zip(nibbles.chunks_exact_mut(32)).enumerate() {
        for (l, out) in out.iter_mut().enumerate() {
            let (low, high) = (q[l], q[l + 32]);
            *out = (low & 15) | ((high & 15) << 4);
            fifths[l] |= (low >> 4) << (2 * pair) | (high >> 4) << (2 * pair + 1);
        }
    }
}

#[inline(always)]
pub(super) fn q6_k(v: &[f32], importance: Option<&[f32]>, b: &mut [u8]) {
    let mut weights = [0.0f32; QK_K];
    match importance {
        Some(importance) => weights.copy_from_slice(importance),
        None => weights.iter_mut().zip(v).for_each(|(w, x)| *w = x * x),
    }
    b.fill(0);
    let mut wanted = [0.0f32; 16];
    for (g, wanted) in wanted.iter_mut().enumerate() {
        *wanted = symmetric_group(&v[16 * g..][..16], &weights[16 * g..][..16], 32.0);
    }
    let extreme = wanted.iter().fold(0.0f32, |m, &s| if s.abs() > m.abs() { s } else { m });
    if extreme.abs() < 1e-15 {
        return;
    }
    let mut d = rounded(extreme / -128.0);
    if d == 0.0 {
        return;
    }
    let mut scales = wanted.map(|s| level(s / d, -128.0, 127.0) as i8);
    let mut error = settle(v, &weights, d, &mut scales);
    for _ in 0..ROUNDS {
        let (mut xx, mut ax) = (0.0f32, 0.0f32);
        for (g, &scale) in scales.iter().enumerate() {
            let scale = f32::from(scale);
            let inverse = inverse(d * scale);
            let [qq, qx] = sums(&v[16 * g..][..16], &weights[16 * g..][..16], |x, w| {
                let q = level(x * inverse, -32.0, 31.0);
                [w * q * q, w * q * x]
            });
            xx += scale * scale * qq;
            ax += scale * qx;
        }
        let (next_d, mut next) = (rounded(ax * inverse(xx)), scales);
        if next_d == 0.0 {
            break;
        }
        let next_error = settle(v, &weights, next_d, &mut next);
        if next_error >= error {
            break;
        }
        (d, scales, error) = (next_d, next, next_error);
    }

    put_f16(b, 208, d);
    let mut q = [32u8; QK_K];
    for (g, &scale) in scales.iter().enumerate() {
        b[192 + g] = scale as u8;
        let inverse = inverse(d * f32::from(scale));
        for (q, x) in q[16 * g..][..16].iter_mut().zip(&v[16 * g..][..16]) {
            *q = (level(x * inverse, -32.0, 31.0) + 32.0) as u8;
        }
    }
    for half in 0..2 {
        let q = &q[half * 128..][..128];
        for i in 0..32 {
            let (q0, q1, q2, q3) = (q[i], q[i + 32], q[i + 64], q[i + 96]);
            b[half * 64 + i] = (q0 & 15) | ((q2 & 15) << 4);
            b[half * 64 + 32 + i] = (q1 & 15) | ((q3 & 15) << 4);
            b[128 + half * 32 + i] = (q0 >> 4) | ((q1 >> 4) << 2) | ((q2 >> 4) << 4) | ((q3 >> 4) << 6);
        }
    }
}

/// Lowers the error of a Q6_K super-block by moving each group's scale by one; the error left.
#[inline(always)]
fn settle(v: &[f32], weights: &[f32], d: f32, scales: &mut [i8; 16]) -> f32 {
    let mut total = 0.0;
    for (g, scale) in scales.iter_mut().enumerate() {
        let mut best: Fit<i8> = (f32::INFINITY, 0);
        for delta in -1..=1i8 {
            let candidate = scale.saturating_add(delta);
            let step = d * f32::from(candidate);
            let inverse = inverse(step);
            let [error] = sums(&v[16 * g..][..16], &weights[16 * g..][..16], |x, w| {
                let d = step * level(x * inverse, -32.0, 31.0) - x;
                [w * d * d]
            });
            if error < best.0 {
                best = (error, candidate);
            }
        }
        total += best.0;
        *scale = best.1;
    }
    total
}
