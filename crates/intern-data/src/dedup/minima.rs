//! The heart of MinHash: of every hash function the least value over a document's shingles.
//!
//! Functions are `((a·h + b) mod 2^64) mod (2^61 − 1)`, as datatrove's. One loop, compiled
//! for the widest registers that the processor may have and chosen at run time; the values
//! are the same with all of them.

/// The prime 2^61 − 1, modulo which hash functions are computed.
pub const PRIME: u64 = (1 << 61) - 1;

/// The least value of every function (a, b) over `shingles`, of which there is at least one.
pub fn minima(functions: &[(u64, u64)], shingles: &[u64]) -> Vec<u64> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            // SAFETY: the processor has AVX-512F and AVX-512DQ, as just asked.
            return unsafe { minima_avx512(functions, shingles) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as just asked.
            return unsafe { minima_avx2(functions, shingles) };
        }
    }
    minima_plain(functions, shingles)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq")]
fn minima_avx512(functions: &[(u64, u64)], shingles: &[u64]) -> Vec<u64> {
    minima_plain(functions, shingles)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn minima_avx2(functions: &[(u64, u64)], shingles: &[u64]) -> Vec<u64> {
    minima_plain(functions, shingles)
}

/// Loops without closures of iterators, which would be compiled apart for plain processors.
#[inline(always)]
fn minima_plain(functions: &[(u64, u64)], shingles: &[u64]) -> Vec<u64> {
    let mut all = vec![0; functions.len()];
    for (i, &(a, b)) in functions.iter().enumerate() {
        // Signed, since that is what vectors compare; folded values are far below 2^63.
        let (mut least, mut most) = (i64::MAX, 0);
        for &h in shingles {
            let x = folded(a, b, h) as i64;
            least = least.min(x);
            most = most.max(x);
        }
        all[i] = least as u64;
        // Folding leaves up to 2^61 + 6; once in 10^17 that has to be taken off.
        if most as u64 >= PRIME {
            for &h in shingles {
                all[i] = all[i].min(folded(a, b, h) % PRIME);
            }
        }
    }
    all
}

/// The function's value, or the prime more. The affine map wraps at 2^64 before the
/// remainder is taken, as in datatrove.
#[inline(always)]
fn folded(a: u64, b: u64, h: u64) -> u64 {
    let x = a.wrapping_mul(h).wrapping_add(b);
    (x & PRIME) + (x >> 61)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(functions: &[(u64, u64)], shingles: &[u64]) -> Vec<u64> {
        let value = |a: u64, b: u64, h: u64| a.wrapping_mul(h).wrapping_add(b) % PRIME;
        functions.iter().map(|&(a, b)| shingles.iter().map(|&h| value(a, b, h)).min().unwrap()).collect()
    }

    proptest! {
        #[test]
        fn all_ways_give_the_definition(
            functions in proptest::collection::vec((any::<u64>(), any::<u64>()), 1..4),
            shingles in proptest::collection::vec(any::<u64>(), 1..40),
        ) {
            let expect = slow(&functions, &shingles);
            prop_assert_eq!(minima(&functions, &shingles), expect.clone());
            prop_assert_eq!(minima_plain(&functions, &shingles), expect);
        }
    }

    #[test]
    fn multiples_of_the_prime_are_zero() {
        let shingles = [5, PRIME, 7];
        assert_eq!(minima(&[(1, 0)], &shingles), [0]);
        assert_eq!(minima(&[(1, 3), (0, 2 * PRIME)], &shingles), slow(&[(1, 3), (0, 2 * PRIME)], &shingles));
    }
}
