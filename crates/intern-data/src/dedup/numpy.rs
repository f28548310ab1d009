//! numpy's `RandomState.randint` for 64-bit numbers (Mersenne Twister, masked rejection),
//! so that hash functions are those datatrove draws from the same seed.

use intern_kernels::mersenne::MersenneTwister;

/// numpy's generator of that name, seeded by one number.
pub struct RandomState {
    bits: MersenneTwister,
}

impl RandomState {
    /// `numpy.random.RandomState(seed)`.
    #[must_use]
    pub fn new(seed: u32) -> Self {
        Self { bits: MersenneTwister::from_number(seed) }
    }

    /// `randint(low, high, dtype=uint64)`, for ranges of more than 32 bits.
    pub fn randint(&mut self, low: u64, high: u64) -> u64 {
        let range = high - 1 - low;
        let mask = u64::MAX >> range.leading_zeros();
        loop {
            let value = (u64::from(self.bits.next_u32()) << 32 | u64::from(self.bits.next_u32())) & mask;
            if value <= range {
                return low + value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `g = numpy.random.RandomState(1)`, then 112 × `g.randint(1, 2**61 - 1, dtype=uint64)` and 112 from 0.
    #[test]
    fn numbers_are_numpys() {
        let mut g = RandomState::new(1);
        let prime = (1 << 61) - 1;
        let a: Vec<u64> = (0..112).map(|_| g.randint(1, prime)).collect();
        let b: Vec<u64> = (0..112).map(|_| g.randint(0, prime)).collect();
        assert_eq!(a[..3], [775_169_054_918_279_404, 1_758_426_461_858_698_313, 2_109_959_069_025_162]);
        assert_eq!((a[111], b[0]), (223_865_076_026_037_746, 1_062_448_801_025_099_917));
        assert_eq!(b[111], 1_097_409_548_522_419_201);
    }
}
