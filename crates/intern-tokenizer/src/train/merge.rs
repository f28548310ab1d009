//! Learning merges from counted words: pair counts and the words each pair occurs in
//! are kept up to date, a heap finds the next pair.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ahash::{AHashMap, AHashSet};

use super::Merge;

type Pair = (u32, u32);

/// What is known of a pair of neighbouring symbols.
#[derive(Default)]
struct Occurrences {
    count: i64,
    words: Vec<u32>, // indices of words that have it, or had it once
}

/// Learns up to `max_tokens` new tokens from words of symbols (ids `0..256`).
///
/// `bytes_of_symbol` gives the byte of each initial symbol. Merges that would spell one
/// of the `forbidden` strings are passed over.
pub(super) fn learn(
    words: &[(Box<[u8]>, u64)],
    symbol_of_byte: &[u32; 256],
    max_tokens: usize,
    min_frequency: u64,
    forbidden: &AHashSet<Vec<u8>>,
) -> Vec<Merge> {
    let mut symbols: Vec<Vec<u32>> =
        words.iter().map(|(w, _)| w.iter().map(|&b| symbol_of_byte[b as usize]).collect()).collect();
    let mut spelling: Vec<Vec<u8>> = vec![Vec::new(); 256];
    for (byte, &symbol) in symbol_of_byte.iter().enumerate() {
        spelling[symbol as usize] = vec![byte as u8];
    }
    // Different merges may spell the same token ("a"+"aa", "aa"+"a"): it gets one id.
    let mut ids: AHashMap<Vec<u8>, u32> = AHashMap::new();

    let mut pairs: AHashMap<Pair, Occurrences> = AHashMap::new();
    for (i, word) in symbols.iter().enumerate() {
        for pair in word.windows(2) {
            let entry = pairs.entry((pair[0], pair[1])).or_default();
            entry.count += words[i].1 as i64;
            entry.add_word(i as u32);
        }
    }
    let mut heap: BinaryHeap<(i64, Reverse<Pair>)> =
        pairs.iter().map(|(&p, o)| (o.count, Reverse(p))).collect();

    let mut merges = Vec::with_capacity(max_tokens);
    let mut grown: Vec<Pair> = Vec::new(); // pairs whose count rose in this merge
    while ids.len() < max_tokens {
        let Some((count, Reverse(pair))) = heap.pop() else { break };
        let now = pairs.get(&pair).map_or(0, |o| o.count);
        if count != now {
            if now > 0 && now < count {
                heap.push((now, Reverse(pair))); // it shrank since it was pushed
            }
            continue;
        }
        if count < 1 || (count as u64) < min_frequency {
            break;
        }
        let spelled = [spelling[pair.0 as usize].as_slice(), &spelling[pair.1 as usize]].concat();
        if forbidden.contains(&spelled) {
            continue;
        }
        let next = spelling.len() as u32;
        let token = *ids.entry(spelled.clone()).or_insert(next);
        if token == next {
            spelling.push(spelled);
        }
        merges.push(Merge { pair, token });

        let places = std::mem::take(&mut pairs.get_mut(&pair).expect("it has a count").words);
        grown.clear();
        for i in places {
            let weight = words[i as usize].1 as i64;
            replace(&mut symbols[i as usize], pair, token, |changed, sign| {
                let entry = pairs.entry(changed).or_default();
                entry.count += sign * weight;
                if sign > 0 {
                    entry.add_word(i);
                    grown.push(changed);
                }
            });
        }
        pairs.remove(&pair);
        grown.sort_unstable();
        grown.dedup();
        for &pair in &grown {
            if let Some(o) = pairs.get(&pair).filter(|o| o.count > 0) {
                heap.push((o.count, Reverse(pair)));
            }
        }
    }
    merges
}

impl Occurrences {
    fn add_word(&mut self, i: u32) {
        if self.words.last() != Some(&i) {
            self.words.push(i);
        }
    }
}

/// Replaces every occurrence of a pair from the left, reporting the neighbouring pairs
/// that vanish (−1) and appear (+1).
fn replace(word: &mut Vec<u32>, pair: Pair, token: u32, mut report: impl FnMut(Pair, i64)) {
    let mut write = 0;
    let mut read = 0;
    while read < word.len() {
        if word[read] == pair.0 && word.get(read + 1) == Some(&pair.1) {
            if write > 0 {
                report((word[write - 1], pair.0), -1);
                report((word[write - 1], token), 1);
            }
            if let Some(&after) = word.get(read + 2) {
                report((pair.1, after), -1);
                report((token, after), 1);
            }
            word[write] = token;
            read += 2;
        } else {
            word[write] = word[read];
            read += 1;
        }
        write += 1;
    }
    word.truncate(write);
}
