//! Counter-based random numbers: value `i` of a stream depends on nothing but
//! `(seed, stream, i)`, so results are the same for any thread count or restart.
//!
//! Each value is two rounds of SplitMix64's finalizer (Steele, Lea and Flood, 2014)
//! over the key and the counter. Not for cryptography.

/// SplitMix64's finalizer: a bijection on 64 bits that mixes well.
#[must_use]
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One stream of random numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    key: u64,
    counter: u64,
}

impl Rng {
    /// The stream `stream` of `seed`, at its first value.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { key: mix(mix(seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_add(stream)), counter: 0 }
    }

    /// Value `i` of this stream, without moving.
    #[must_use]
    pub fn at(&self, i: u64) -> u64 {
        mix(mix(self.key.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15))) ^ self.key)
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let value = self.at(self.counter);
        self.counter += 1;
        value
    }

    /// A float in `[0, 1)` with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// An integer in `0..n`; bias is below `n / 2^64`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// An integer in `low..=high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// One of `items`, which must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len() as u64) as usize]
    }

    /// Fisher–Yates shuffle.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }

    /// A standard normal value (Box–Muller, one of the pair).
    pub fn normal(&mut self) -> f64 {
        let u = 1.0 - self.unit();
        let v = self.unit();
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_depend_on_seed_stream_and_position_only() {
        let mut a = Rng::new(1, 2);
        let first: Vec<u64> = (0..4).map(|_| a.next_u64()).collect();
        let b = Rng::new(1, 2);
        assert_eq!(first, (0..4).map(|i| b.at(i)).collect::<Vec<_>>());
        assert_ne!(Rng::new(1, 3).at(0), b.at(0));
        assert_ne!(Rng::new(2, 2).at(0), b.at(0));
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut rng = Rng::new(7, 0);
        let n = 100_000;
        let (mut mean, mut var, mut unit) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            let x = rng.normal();
            mean += x / f64::from(n);
            var += x * x / f64::from(n);
            unit += rng.unit() / f64::from(n);
        }
        assert!(mean.abs() < 0.02 && (var - 1.0).abs() < 0.02 && (unit - 0.5).abs() < 0.01);
    }
}
