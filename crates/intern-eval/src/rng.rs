//! CPython's `random.Random`, bit for bit: few-shot examples and bootstrap draws must be
//! the ones lm-evaluation-harness draws.
//!
//! All other randomness of the project comes from `intern_kernels::rng`.

use intern_kernels::mersenne::MersenneTwister;

/// A generator in the state `random.Random(seed)` starts with.
#[derive(Clone)]
pub struct PythonRandom {
    bits: MersenneTwister,
}

impl PythonRandom {
    /// Seeds as `random.Random(seed)` does for a non-negative integer.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let words = [seed as u32, (seed >> 32) as u32];
        let key = if words[1] == 0 { &words[..1] } else { &words[..] };
        Self { bits: MersenneTwister::from_words(key) }
    }

    /// `random.random()`: 53 bits in `[0, 1)`.
    pub fn random(&mut self) -> f64 {
        let (a, b) = (self.bits.next_u32() >> 5, self.bits.next_u32() >> 6);
        (f64::from(a) * 67_108_864.0 + f64::from(b)) / 9_007_199_254_740_992.0
    }

    /// `randrange(n)`: draws just enough bits, again while they are too large.
    fn below(&mut self, n: usize) -> usize {
        debug_assert!(n > 0 && u32::try_from(n).is_ok(), "populations have fewer than 2^32 members");
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let draw = (self.bits.next_u32() >> (32 - bits)) as usize;
            if draw < n {
                return draw;
            }
        }
    }

    /// The indices `random.sample(range(n), k)` picks; `None` if `k > n`.
    pub fn sample(&mut self, n: usize, k: usize) -> Option<Vec<usize>> {
        if k > n {
            return None;
        }
        // CPython chooses between two algorithms by the memory they take.
        let mut set_size = 21.0;
        if k > 5 {
            set_size += 4f64.powf((((k * 3) as f64).ln() / 4f64.ln()).ceil());
        }
        let mut out = Vec::with_capacity(k);
        if n as f64 <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            for i in 0..k {
                let j = self.below(n - i);
                out.push(pool[j]);
                pool[j] = pool[n - i - 1];
            }
        } else {
            let mut seen = std::collections::HashSet::new();
            while out.len() < k {
                let j = self.below(n);
                if seen.insert(j) {
                    out.push(j);
                }
            }
        }
        Some(out)
    }

    /// One index of `random.choices(range(n))`.
    pub fn choice(&mut self, n: usize) -> usize {
        (self.random() * n as f64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Every expected value was printed by CPython 3.11.

    #[test]
    fn floats_are_cpythons() {
        let mut rng = PythonRandom::new(1234);
        assert_eq!([rng.random(), rng.random()], [0.9664535356921388, 0.4407325991753527]);
        let mut rng = PythonRandom::new(1 << 40);
        assert_eq!(rng.random(), 0.1036394562812375);
    }

    #[test]
    fn samples_are_cpythons() {
        let mut rng = PythonRandom::new(1234);
        assert_eq!(rng.sample(100, 5).unwrap(), [99, 56, 14, 0, 11]);
        assert_eq!(rng.sample(10, 6).unwrap(), [9, 0, 1, 8, 2, 7]);
        assert_eq!(
            rng.sample(1000, 26).unwrap(),
            [
                17, 31, 807, 16, 354, 663, 638, 495, 630, 474, 152, 93, 187, 730, 117, 865, 14, 515, 498,
                901, 988, 255, 66, 683, 554, 934
            ]
        );
        assert_eq!(rng.sample(3, 4), None);
    }

    #[test]
    fn choices_are_cpythons() {
        let mut rng = PythonRandom::new(0);
        let drawn: Vec<usize> = (0..10).map(|_| rng.choice(7)).collect();
        assert_eq!(drawn, [5, 5, 2, 1, 3, 2, 5, 2, 3, 4]);
    }
}
