//! Sums of gradients that do not depend on their order: integers on a shared grid.
//!
//! Each value is rounded to a multiple of the *unit*, a power of two, and added as an `i64`.
//! Integer addition is associative, so the sum has the same bits however its terms are shared
//! out over passes, threads and ranks. The unit follows from the number of tokens the sum
//! extends over: a mean gradient is resolved to [`RESOLUTION`], far below what AdamW's `eps`
//! lets count. One token's may be anything; what the terms of a sum could come to together is
//! itself summed ([`FixedSum::bounds`]), and beyond [`LARGEST`] per token a run has diverged.

use crate::multiversion;
use rayon::prelude::*;
use std::cell::UnsafeCell;
use std::sync::Mutex;

/// Bits after the point of a mean gradient.
const BITS: u32 = 48;
/// Smallest difference between mean gradients, `2^-48`.
pub const RESOLUTION: f64 = 1.0 / (1u64 << BITS) as f64;
/// Largest mean over the tokens of a chunk's largest magnitudes, `2^13`.
pub const LARGEST: f64 = (1u64 << (61 - BITS)) as f64;
/// No term is counted as larger than this; one this large is refused anyway.
const LIMIT: f32 = (1u64 << 62) as f32;
/// Units of a sum that are one of its bound, so that bounds of many ranks can be added.
const COARSE: f32 = (1u64 << 20) as f32;
/// Elements under one lock, and at most that many whose squares are summed at once.
pub const CHUNK: usize = 1 << 16;

/// A vector of sums that threads add to at once.
pub struct FixedSum {
    sums: UnsafeCell<Vec<i64>>,
    /// One per [`CHUNK`] elements, held by whoever adds to them: the sum of the terms' largest
    /// magnitudes, see [`FixedSum::bounds`].
    bounds: Vec<Mutex<i64>>,
    /// Values are multiplied by this.
    scale: f32,
}

// SAFETY: `add` touches elements under their chunk's lock only; everything else needs `&mut`.
unsafe impl Sync for FixedSum {}

impl FixedSum {
    /// `len` sums of nothing.
    #[must_use]
    pub fn new(len: usize) -> Self {
        Self {
            sums: UnsafeCell::new(vec![0; len]),
            bounds: (0..len.div_ceil(CHUNK)).map(|_| Mutex::new(0)).collect(),
            scale: 1.0,
        }
    }

    /// Starts a sum over `tokens` tokens in all, on every rank with the same number.
    pub fn begin(&mut self, tokens: usize) {
        self.sums.get_mut().par_chunks_mut(CHUNK).for_each(|c| c.fill(0));
        let tokens_log2 = usize::BITS - tokens.max(1).next_power_of_two().leading_zeros() - 1;
        self.scale = (2.0f64).powi(BITS as i32 - tokens_log2 as i32) as f32;
        self.bounds.iter_mut().for_each(|b| *b.get_mut().expect("adding does not panic") = 0);
    }

    /// What one step of the integers is worth.
    #[must_use]
    pub fn unit(&self) -> f32 {
        1.0 / self.scale
    }

    /// Adds `values` from element `at` on.
    pub fn add(&self, mut at: usize, mut values: &[f32]) {
        while !values.is_empty() {
            let chunk = at / CHUNK;
            let (now, later) = values.split_at(values.len().min((chunk + 1) * CHUNK - at));
            let mut bound = self.bounds[chunk].lock().expect("adding does not panic");
            // SAFETY: no `&mut self` exists while `&self` does, so the vector is not resized; the
            // elements lie in `chunk`, whose lock is held, so nobody else refers to them.
            let sums = unsafe {
                let all = &*self.sums.get();
                assert!(at + now.len() <= all.len(), "elements of the sum");
                std::slice::from_raw_parts_mut(all.as_ptr().cast_mut().add(at), now.len())
            };
            let largest = add_rounded(sums, now, self.scale);
            *bound = bound.saturating_add((largest / COARSE).ceil() as i64).min(LIMIT as i64 / COARSE as i64);
            drop(bound);
            (at, values) = (at + now.len(), later);
        }
    }

    /// For every [`CHUNK`], the sum over its terms of the largest magnitude in each: no sum of the
    /// chunk is larger. Order-free too; the bounds of several ranks are added like their sums.
    #[must_use]
    pub fn bounds(&self) -> Vec<i64> {
        self.bounds.iter().map(|b| *b.lock().expect("adding does not panic")).collect()
    }

    /// The integers.
    pub fn sums(&mut self) -> &mut [i64] {
        self.sums.get_mut()
    }
}

/// Whether sums with these bounds hold what was added to them. If not, a gradient was no number,
/// or so large that its run has diverged, and the sums are worthless.
#[must_use]
pub fn fit(bounds: &[i64]) -> bool {
    bounds.iter().all(|&b| b < (1i64 << 61) / COARSE as i64)
}

multiversion! {
    /// Adds `values * scale`, rounded; the largest magnitude of these, [`LIMIT`] if one is larger
    /// or no number.
    fn add_rounded(sums: &mut [i64], values: &[f32], scale: f32) -> f32 {
        let mut largest = 0.0f32;
        for (sum, value) in sums.iter_mut().zip(values) {
            let scaled = value * scale;
            // A NaN becomes the limit here.
            let magnitude = scaled.abs().min(LIMIT);
            largest = largest.max(magnitude);
            let rounded = magnitude.copysign(scaled).round_ties_even();
            // SAFETY: the value is within the limit, 2^62.
            *sum = sum.wrapping_add(unsafe { rounded.to_int_unchecked::<i64>() });
        }
        largest
    }
}

multiversion! {
    /// `floats[i] = sums[i] * unit`, `unit` being a power of two.
    pub fn to_floats(sums: &[i64], unit: f32, floats: &mut [f32]) {
        for (float, sum) in floats.iter_mut().zip(sums) {
            *float = *sum as f32 * unit;
        }
    }
}

multiversion! {
    /// The sum of squares, in one order.
    pub fn squares(sums: &[i64]) -> f64 {
        let mut lanes = [0.0f64; 8];
        let groups = sums.chunks_exact(8);
        let tail: f64 = groups.remainder().iter().map(|x| *x as f64 * *x as f64).sum();
        for group in groups {
            for (lane, x) in lanes.iter_mut().zip(group) {
                *lane += *x as f64 * *x as f64;
            }
        }
        lanes.iter().sum::<f64>() + tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::testing::random;

    #[test]
    fn sums_are_right_and_do_not_depend_on_order() {
        let n = CHUNK + 1000;
        let terms: Vec<Vec<f32>> = (0..7).map(|i| random(n, i)).collect();
        let run = |order: &[usize], parts: usize| {
            let mut sum = FixedSum::new(n);
            sum.begin(7);
            std::thread::scope(|scope| {
                for part in order.chunks(order.len().div_ceil(parts)) {
                    let (sum, terms) = (&sum, &terms);
                    scope.spawn(move || part.iter().for_each(|&i| sum.add(0, &terms[i])));
                }
            });
            assert!(fit(&sum.bounds()));
            sum
        };
        let mut first = run(&[0, 1, 2, 3, 4, 5, 6], 1);
        assert_eq!(first.sums(), run(&[6, 2, 4, 0, 1, 5, 3], 3).sums());
        let mut floats = vec![0.0; n];
        let unit = first.unit();
        to_floats(first.sums(), unit, &mut floats);
        let mut square = 0.0;
        for (i, float) in floats.iter().enumerate() {
            let exact: f64 = terms.iter().map(|t| f64::from(t[i])).sum();
            assert!((f64::from(*float) - exact).abs() <= 1e-7 * exact.abs() + 8.0 * 7.0 * RESOLUTION);
            square += exact * exact;
        }
        let unit = f64::from(first.unit());
        let squares: f64 = squares(first.sums()) * unit * unit;
        assert!((squares - square).abs() < 1e-9 * square, "{squares} {square}");
    }

    #[test]
    fn a_part_is_added_at_its_place() {
        let mut sum = FixedSum::new(3 * CHUNK);
        sum.begin(4);
        sum.add(CHUNK - 2, &vec![0.5; CHUNK + 4]);
        let expect = (0.5 / f64::from(sum.unit())) as i64;
        let sums = sum.sums();
        assert!(
            sums.iter()
                .enumerate()
                .all(|(i, s)| *s == if (CHUNK - 2..2 * CHUNK + 2).contains(&i) { expect } else { 0 })
        );
    }

    #[test]
    fn what_does_not_fit_is_noticed() {
        for (value, fits) in [(8190.0, true), (9000.0, false), (f32::NAN, false), (f32::INFINITY, false)] {
            for value in [value, -value] {
                let mut sum = FixedSum::new(40);
                sum.begin(1);
                sum.add(3, &[0.0, value, 1.0]);
                assert_eq!(fit(&sum.bounds()), fits, "{value}");
            }
        }
    }

    #[test]
    fn one_token_may_have_a_large_gradient_where_their_mean_is_small() {
        let mut sum = FixedSum::new(CHUNK);
        sum.begin(4096);
        sum.add(0, &[20_000.0, 1.0]);
        sum.add(0, &[-3.0, 30.0]);
        assert!(fit(&sum.bounds()));
        assert_eq!(sum.sums()[0] as f64 * f64::from(sum.unit()), 19_997.0);
        (0..4096).for_each(|_| sum.add(7, &[8200.0]));
        assert!(!fit(&sum.bounds()));
    }
}
