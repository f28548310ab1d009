//! A shuffled order that needs no memory: element `i` of the permutation is computed, not stored.
//!
//! A four-round Feistel network permutes the smallest even-bit power of two that holds `n`;
//! values outside `0..n` are sent through again until they fall inside (cycle walking, Black
//! and Rogaway, 2002). So a run's place in its data is one integer, and resuming costs nothing.

use intern_kernels::rng::mix;

const ROUNDS: u64 = 4;

/// A permutation of `0..n`, chosen by a seed and an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    key: u64,
}

impl Permutation {
    /// The order of `n` elements in epoch `epoch` of `seed`.
    #[must_use]
    pub fn new(n: u64, seed: u64, epoch: u64) -> Self {
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Self {
            n,
            half_bits: bits.div_ceil(2),
            key: mix(mix(seed ^ 0x5348_5546_464c_4521).wrapping_add(epoch)),
        }
    }

    /// The element in place `i`, which must be below `n`.
    #[must_use]
    pub fn at(&self, i: u64) -> u64 {
        assert!(i < self.n, "place {i} of {}", self.n);
        let mut x = i;
        loop {
            x = self.feistel(x);
            if x < self.n {
                return x;
            }
        }
    }

    fn feistel(&self, x: u64) -> u64 {
        let low = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & low);
        for round in 0..ROUNDS {
            let hash = mix(self.key.wrapping_add(mix(right << 8 | round)));
            (left, right) = (right, left ^ (hash & low));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_occurs_once() {
        for n in [1, 2, 3, 5, 16, 17, 1000, 4097] {
            let order = Permutation::new(n, 7, 3);
            let mut seen: Vec<u64> = (0..n).map(|i| order.at(i)).collect();
            assert!(n < 100 || seen.windows(2).filter(|w| w[1] == w[0] + 1).count() < n as usize / 50);
            seen.sort_unstable();
            assert_eq!(seen, (0..n).collect::<Vec<_>>(), "{n}");
        }
    }

    #[test]
    fn orders_differ_by_seed_and_epoch() {
        let order = |seed, epoch| {
            let p = Permutation::new(50, seed, epoch);
            (0..50).map(|i| p.at(i)).collect::<Vec<_>>()
        };
        assert_ne!(order(1, 0), order(1, 1));
        assert_ne!(order(1, 0), order(2, 0));
        assert_eq!(order(1, 0), order(1, 0));
    }

    #[test]
    fn elements_fall_evenly_over_places() {
        // Mean place of element 0 over many epochs: (n-1)/2 within four standard errors.
        let (n, epochs) = (100u64, 4000u64);
        let sum: u64 = (0..epochs).map(|e| Permutation::new(n, 1, e).at(0)).sum();
        let mean = sum as f64 / epochs as f64;
        assert!((mean - 49.5).abs() < 4.0 * 28.9 / (epochs as f64).sqrt(), "{mean}");
    }
}
