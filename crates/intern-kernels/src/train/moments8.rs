//! Optimizer moments in 8 bits (Dettmers et al., "8-bit Optimizers via Block-wise Quantization", 2022):
//! blocks of 256 values, each a code of a table that is dense near zero, times the block's scale.
//!
//! The scale carries the sign of the value it comes from, so that this value is held exactly. Then
//! decoding and encoding again gives the same codes and scales, and states can be saved as plain f32.
//! What is not zero never becomes it: a squared mean of zero would divide by `eps` alone.

use std::sync::LazyLock;

use rayon::prelude::*;

use super::adamw::{self, Update};

/// Values that share a scale.
pub const BLOCK: usize = 256;
/// Blocks one task takes.
const BLOCKS: usize = 64;

/// The codes' values in ascending order, and where to search.
struct Table {
    values: [f32; 256],
    /// The code of zero.
    zero: u8,
    /// For numbers above zero, and for those below.
    signs: [Search; 2],
}

/// How the codes of one sign are found.
struct Search {
    /// By the upper half of a number's bits below the sign: the code nearest to the first such number.
    first: Vec<u8>,
    /// By code: from which size on the next code away from zero is nearer.
    next: [f32; 256],
}

/// Means of both signs, and squares.
static SIGNED: LazyLock<Table> = LazyLock::new(|| Table::new(true));
static UNSIGNED: LazyLock<Table> = LazyLock::new(|| Table::new(false));

impl Table {
    /// Seven decades below 1; each next one is cut twice as fine.
    fn new(signed: bool) -> Self {
        let mut values = vec![0.0f32, 1.0];
        for decade in 0..7u32 {
            let cuts = if signed { 1u32 << decade } else { 2 << decade };
            let size = 10f64.powi(decade as i32 - 6);
            for i in 0..cuts {
                let middle = 0.1 + 0.9 * (f64::from(i) + 0.5) / f64::from(cuts);
                values.push((size * middle) as f32);
                if signed {
                    values.push((-size * middle) as f32);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        let values: [f32; 256] = values.try_into().expect("256 codes");
        let zero = values.iter().position(|v| *v == 0.0).expect("zero has a code") as u8;
        Self { values, zero, signs: [Search::new(&values, 1.0), Search::new(&values, -1.0)] }
    }

    /// The code nearest to `x`, -1 to 1, of its sign: zero's only for zero.
    #[inline(always)]
    fn code(&self, x: f32) -> u8 {
        if x == 0.0 {
            return self.zero;
        }
        let search = &self.signs[usize::from(x < 0.0)];
        // Numbers with one key are so near to each other that the code is the first one's or the next.
        let first = search.first[((x.to_bits() & 0x7fff_ffff) >> 16) as usize & 0x3fff];
        let is_next = u8::from(x.abs() > search.next[usize::from(first)]);
        if x < 0.0 { first - is_next } else { first + is_next }
    }

    fn encode(&self, values: &[f32], codes: &mut [u8]) -> f32 {
        let largest = values.iter().fold(0.0f32, |m, x| if x.abs() > m { x.abs() } else { m });
        // Also where one is no number: the comparison with it is false.
        if largest == 0.0 || !largest.is_finite() {
            codes.fill(self.zero);
            return 0.0;
        }
        let scale = if values.contains(&largest) { largest } else { -largest };
        let factor = 1.0 / scale;
        for (code, x) in codes.iter_mut().zip(values) {
            // The factor may be rounded up, or infinite for the smallest numbers there are.
            let x = (x * factor).clamp(-1.0, 1.0);
            *code = self.code(if x.is_nan() { 0.0 } else { x });
        }
        scale
    }

    fn decode(&self, codes: &[u8], scale: f32, values: &mut [f32]) {
        values.iter_mut().zip(codes).for_each(|(x, c)| *x = self.values[usize::from(*c)] * scale);
    }
}

impl Search {
    fn new(values: &[f32; 256], sign: f32) -> Self {
        let own: Vec<u8> = (0..=255u8).filter(|c| values[usize::from(*c)] * sign > 0.0).collect();
        let far = |c: u8, x: f32| (f64::from(values[usize::from(c)]) - f64::from(x)).abs();
        let nearest = |key: u32| {
            let x = sign * f32::from_bits(key << 16);
            own.iter().copied().min_by(|a, b| far(*a, x).total_cmp(&far(*b, x))).unwrap_or(0)
        };
        let next = std::array::from_fn(|code| {
            let after = if sign > 0.0 { code.checked_add(1) } else { code.checked_sub(1) };
            let after = after.filter(|after| own.contains(&(*after as u8)) && *after < 256);
            after.map_or(f32::INFINITY, |after| f32::midpoint(values[code].abs(), values[after].abs()))
        });
        let first = if own.is_empty() { vec![0; 0x4000] } else { (0..0x4000).map(nearest).collect() };
        Self { first, next }
    }
}

/// Moments of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments8 {
    mean: Vec<u8>,
    square: Vec<u8>,
    /// Scale of the mean and of the square, per block.
    scales: Vec<[f32; 2]>,
}

impl Moments8 {
    /// Zeros for `len` elements.
    #[must_use]
    pub fn new(len: usize) -> Self {
        let zeros = |table: &Table| vec![table.zero; len];
        Self { mean: zeros(&SIGNED), square: zeros(&UNSIGNED), scales: vec![[0.0; 2]; len.div_ceil(BLOCK)] }
    }

    /// Bytes held for `len` elements.
    #[must_use]
    pub fn bytes(len: usize) -> usize {
        2 * len + 8 * len.div_ceil(BLOCK)
    }

    /// The mean and the square.
    #[must_use]
    pub fn decode(&self) -> [Vec<f32>; 2] {
        let mut out = [vec![0.0; self.mean.len()], vec![0.0; self.mean.len()]];
        for (i, (table, codes)) in [(&SIGNED, &self.mean), (&UNSIGNED, &self.square)].into_iter().enumerate()
        {
            for ((values, codes), scales) in
                out[i].chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).zip(&self.scales)
            {
                table.decode(codes, scales[i], values);
            }
        }
        out
    }

    /// What [`Self::decode`] gave, held again.
    pub fn encode(&mut self, mean: &[f32], square: &[f32]) {
        for (i, (table, codes, values)) in
            [(&SIGNED, &mut self.mean, mean), (&UNSIGNED, &mut self.square, square)].into_iter().enumerate()
        {
            for ((values, codes), scales) in
                values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).zip(&mut self.scales)
            {
                scales[i] = table.encode(values, codes);
            }
        }
    }

    /// Updates `p` from a gradient in fixed point, as [`adamw::step_fixed`].
    pub fn step_fixed(&mut self, p: &mut [f32], g: &[i64], unit: f32, update: &Update) {
        assert!(g.len() == p.len() && self.mean.len() == p.len(), "slices of one length");
        let constants = adamw::constants(update);
        const TASK: usize = BLOCK * BLOCKS;
        p.par_chunks_mut(TASK)
            .zip(g.par_chunks(TASK))
            .zip(self.mean.par_chunks_mut(TASK))
            .zip(self.square.par_chunks_mut(TASK))
            .zip(self.scales.par_chunks_mut(BLOCKS))
            .for_each(|((((p, g), mean), square), scales)| {
                let mut floats = [[0.0f32; BLOCK]; 3];
                let blocks = p.chunks_mut(BLOCK).zip(g.chunks(BLOCK)).zip(mean.chunks_mut(BLOCK));
                let blocks = blocks.zip(square.chunks_mut(BLOCK)).zip(scales);
                for ((((p, g), mean), square), scales) in blocks {
                    let [f, m, v] = floats.each_mut().map(|f| &mut f[..g.len()]);
                    super::fixed::to_floats(g, unit, f);
                    SIGNED.decode(mean, scales[0], m);
                    UNSIGNED.decode(square, scales[1], v);
                    adamw::block(p, f, m, v, &constants);
                    *scales = [SIGNED.encode(m, mean), UNSIGNED.encode(v, square)];
                }
            });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::random;

    #[test]
    fn the_nearest_code_is_found_and_zero_is_only_zero() {
        for table in [&*SIGNED, &*UNSIGNED] {
            let lowest = table.values[0];
            for i in 0..200_001u32 {
                let x = (f64::from(i) / 100_000.0 - 1.0) as f32;
                let x = x * x * x;
                if x < lowest.min(0.0) {
                    continue;
                }
                let ours = table.values[usize::from(table.code(x))];
                let best = table.values.iter().map(|v| (v - x).abs()).fold(f32::INFINITY, f32::min);
                let smallest =
                    table.values.iter().copied().filter(|v| *v > 0.0).fold(f32::INFINITY, f32::min);
                assert!((ours - x).abs() <= best || (x != 0.0 && ours.abs() <= smallest), "{x}: {ours}");
                assert_eq!(ours == 0.0, x == 0.0);
            }
        }
    }

    #[test]
    fn held_again_nothing_changes() {
        let mean: Vec<f32> = random(1000, 1).iter().map(|x| x * x * x - 0.3).collect();
        let square: Vec<f32> = random(1000, 2).iter().map(|x| (x * x).powi(4)).collect();
        let mut moments = Moments8::new(1000);
        moments.encode(&mean, &square);
        let [m, v] = moments.decode();
        let mut again = Moments8::new(1000);
        again.encode(&m, &v);
        assert_eq!(again, moments);
        for ((a, b), block) in m.iter().zip(&mean).zip(0..) {
            let scale = moments.scales[block / BLOCK][0].abs();
            assert!((a - b).abs() <= 0.008 * scale, "{a}, {b}");
        }
        assert!(v.iter().zip(&square).all(|(a, b)| (*a == 0.0) == (*b == 0.0)));
    }

    #[test]
    fn updates_stay_near_those_in_f32() {
        let n = 3000;
        let mut p = [random(n, 5), random(n, 5)];
        let (mut m, mut v, mut held) = (vec![0.0; n], vec![0.0; n], Moments8::new(n));
        let start = p[0].clone();
        for step in 1..=30 {
            let g: Vec<i64> = random(n, 10 + step % 3).iter().map(|x| (x * 1e6) as i64).collect();
            let update = Update {
                lr: 1e-2,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
                grad_scale: 1.0,
                step,
            };
            adamw::step_fixed(&mut p[0], &g, 1e-6, &mut m, &mut v, &update);
            held.step_fixed(&mut p[1], &g, 1e-6, &update);
        }
        let norm = |d: &mut dyn Iterator<Item = f32>| d.map(|x| f64::from(x * x)).sum::<f64>().sqrt();
        let apart = norm(&mut p[0].iter().zip(&p[1]).map(|(a, b)| a - b));
        let moved = norm(&mut p[0].iter().zip(&start).map(|(a, b)| a - b));
        assert!(apart < 0.05 * moved, "{apart} of {moved}");
    }
}
