//! Which conversations share a row: best-fit decreasing, as TRL's `bfd`.
//!
//! Longest first, each goes into the fullest row that still has room; ties go to the earlier
//! conversation and the earlier row, so the result depends on the lengths alone.

use std::collections::BTreeMap;

/// Packs items of the given lengths (each at most `capacity`) into rows; item numbers by row.
#[must_use]
pub fn best_fit(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lengths[i]), i));
    let mut rows: Vec<Vec<usize>> = Vec::new();
    // Rows by the room they have left; the last of equals is found first by `pop`, so order
    // within a room is by descending row number.
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for i in order {
        assert!(lengths[i] <= capacity, "item {i} of {} does not fit into {capacity}", lengths[i]);
        let fit = by_room.range_mut(lengths[i]..).find(|(_, rows)| !rows.is_empty());
        let (row, room) = match fit {
            Some((&room, with_room)) => (with_room.pop().unwrap_or_default(), room),
            None => {
                rows.push(Vec::new());
                (rows.len() - 1, capacity)
            }
        };
        rows[row].push(i);
        let left = by_room.entry(room - lengths[i]).or_default();
        let at = left.partition_point(|&other| other > row);
        left.insert(at, row);
        by_room.retain(|_, rows| !rows.is_empty());
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_row_that_fits_is_taken() {
        assert_eq!(best_fit(&[3, 7, 2, 5, 3], 10), [vec![1, 0], vec![3, 4, 2]]);
        assert_eq!(best_fit(&[], 10), Vec::<Vec<usize>>::new());
    }

    #[test]
    fn every_item_is_placed_once_and_rows_hold() {
        let mut rng = intern_kernels::rng::Rng::new(1, 0);
        for n in [1, 10, 500] {
            let lengths: Vec<usize> = (0..n).map(|_| rng.range(1, 64) as usize).collect();
            let rows = best_fit(&lengths, 64);
            let mut all: Vec<usize> = rows.concat();
            all.sort_unstable();
            assert_eq!(all, (0..n).collect::<Vec<_>>());
            let fill: Vec<usize> = rows.iter().map(|r| r.iter().map(|&i| lengths[i]).sum()).collect();
            assert!(fill.iter().all(|&f| f <= 64));
            // Best-fit decreasing never needs more than 11/9 of the optimum, plus one.
            let least = lengths.iter().sum::<usize>().div_ceil(64);
            assert!(rows.len() * 9 <= least * 11 + 9, "{} rows, at least {least}", rows.len());
        }
    }
}
