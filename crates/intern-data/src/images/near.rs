//! Pictures that look alike: perceptual hashes within a Hamming distance, found by their bands.

use rayon::prelude::*;

use crate::dedup::UnionFind;

/// Groups hashes that differ in at most `distance` bits, directly or over others. Returns the
/// number of each hash's group: the place of its first member.
///
/// Of `distance + 1` bands of bits one at least is equal in two such hashes (Manku et al., "Detecting
/// Near-Duplicates for Web Crawling", 2007), so only hashes with an equal band are compared.
#[must_use]
pub fn groups(hashes: &[u64], distance: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..hashes.len()).collect();
    order.sort_by_key(|&i| (hashes[i], i));
    let mut unique: Vec<u64> = order.iter().map(|&i| hashes[i]).collect();
    unique.dedup();
    let bands = distance + 1;
    let found: Vec<UnionFind> = (0..bands)
        .into_par_iter()
        .map(|band| {
            let (from, to) = (64 * band / bands, 64 * (band + 1) / bands);
            let key = |h: u64| h << (64 - to) >> (64 - to + from);
            let mut list: Vec<(u64, usize)> = unique.iter().zip(0..).map(|(&h, i)| (key(h), i)).collect();
            list.sort_unstable();
            let mut sets = UnionFind::new(unique.len());
            for same in list.chunk_by(|a, b| a.0 == b.0) {
                for (n, &(_, a)) in same.iter().enumerate() {
                    for &(_, b) in &same[n + 1..] {
                        if (unique[a] ^ unique[b]).count_ones() <= distance {
                            sets.union(a, b);
                        }
                    }
                }
            }
            sets
        })
        .collect();
    let mut sets = UnionFind::new(unique.len());
    for mut band in found {
        for i in 0..unique.len() {
            sets.union(i, band.find(i));
        }
    }
    let mut first = vec![usize::MAX; unique.len()];
    let mut group = vec![0; hashes.len()];
    for (i, hash) in hashes.iter().enumerate() {
        let place = unique.binary_search(hash).unwrap_or_default();
        let first = &mut first[sets.find(place)];
        *first = (*first).min(i);
        group[i] = *first;
    }
    group
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_those_of_comparing_all() {
        let mut rng = intern_kernels::rng::Rng::new(5, 0);
        let mut bits = || (rng.unit() * 4_294_967_296.0) as u64;
        let mut hashes = Vec::new();
        for _ in 0..150 {
            let hash = bits() << 32 | bits();
            hashes.push(hash);
            for _ in 0..3 {
                let flips = (0..bits() % 8).fold(0_u64, |f, _| f | 1 << (bits() % 64));
                hashes.push(hash ^ flips);
            }
        }
        hashes.extend([0, 0, u64::MAX, 1]);
        for distance in [0, 1, 4, 10, 63] {
            let mut sets = UnionFind::new(hashes.len());
            for a in 0..hashes.len() {
                for b in 0..a {
                    if (hashes[a] ^ hashes[b]).count_ones() <= distance {
                        sets.union(a, b);
                    }
                }
            }
            let found = groups(&hashes, distance);
            for a in 0..hashes.len() {
                assert!(found[a] <= a);
                for b in 0..a {
                    assert_eq!(sets.find(a) == sets.find(b), found[a] == found[b], "{distance}: {a}, {b}");
                }
            }
        }
    }
}
