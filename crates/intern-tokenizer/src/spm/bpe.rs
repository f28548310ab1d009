//! SentencePiece's BPE: the pair whose merged piece scores best first, the leftmost of
//! equals; user-defined symbols never merge; unused pieces fall apart again.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use ahash::AHashMap;

use super::Encoder;
use crate::sentencepiece::PieceType;

/// A stretch of the text, linked to its living neighbours.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    len: u32, // 0 once merged into its left neighbour
    prev: u32,
    next: u32,
    frozen: bool,
}

const NONE: u32 = u32::MAX;

/// A possible merge.
struct Candidate {
    score: f32,
    left: u32,
    right: u32,
    len: u32, // of the merged piece; tells whether the candidate is still current
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// Segments prepared text; reports each piece as (id, start, end).
pub(super) fn segment(encoder: &Encoder, text: &str, mut emit: impl FnMut(u32, usize, usize)) {
    let mut symbols = symbols(encoder, text);
    let mut search = Search { encoder, text, queue: BinaryHeap::new(), halves: AHashMap::new() };
    for left in 1..symbols.len() as u32 {
        search.propose(&symbols, left - 1, left);
    }
    while let Some(best) = search.queue.pop() {
        let (left, right) = (symbols[best.left as usize], symbols[best.right as usize]);
        if left.len == 0 || right.len == 0 || left.len + right.len != best.len {
            continue; // one of the two has merged with another since
        }
        symbols[best.left as usize].len = best.len;
        symbols[best.left as usize].next = right.next;
        symbols[best.right as usize].len = 0;
        if right.next != NONE {
            symbols[right.next as usize].prev = best.left;
        }
        search.propose(&symbols, left.prev, best.left);
        search.propose(&symbols, best.left, right.next);
    }
    for symbol in symbols.iter().filter(|s| s.len > 0) {
        search.emit(symbol.start, symbol.len, &mut emit);
    }
}

/// One symbol per character or user-defined piece.
fn symbols(encoder: &Encoder, text: &str) -> Vec<Symbol> {
    let mut symbols = Vec::with_capacity(text.len());
    let mut push = |start: usize, len: usize, frozen: bool| {
        let index = symbols.len() as u32;
        symbols.push(Symbol {
            start: start as u32,
            len: len as u32,
            prev: index.wrapping_sub(1), // NONE for the first
            next: index + 1,
            frozen,
        });
    };
    for (start, end, user_defined) in encoder.normalizer.split_user_defined(text) {
        if user_defined {
            push(start, end - start, true);
        } else {
            text[start..end].char_indices().for_each(|(i, c)| push(start + i, c.len_utf8(), false));
        }
    }
    if let Some(last) = symbols.last_mut() {
        last.next = NONE;
    }
    symbols
}

struct Search<'a> {
    encoder: &'a Encoder,
    text: &'a str,
    queue: BinaryHeap<Candidate>,
    /// What unused pieces were merged from: piece → length of its left half.
    halves: AHashMap<&'a str, u32>,
}

impl<'a> Search<'a> {
    fn piece(&self, start: u32, len: u32) -> &'a str {
        &self.text[start as usize..(start + len) as usize]
    }

    fn propose(&mut self, symbols: &[Symbol], left: u32, right: u32) {
        if left == NONE || right == NONE {
            return;
        }
        let (l, r) = (symbols[left as usize], symbols[right as usize]);
        if l.frozen || r.frozen {
            return;
        }
        let len = l.len + r.len;
        let merged = self.piece(l.start, len);
        if let Some(&id) = self.encoder.ids.get(merged) {
            let piece = &self.encoder.model.pieces[id as usize];
            self.queue.push(Candidate { score: piece.score, left, right, len });
            if piece.kind == PieceType::Unused {
                self.halves.insert(merged, l.len);
            }
        }
    }

    fn emit(&self, start: u32, len: u32, emit: &mut impl FnMut(u32, usize, usize)) {
        let piece = self.piece(start, len);
        let id = self.encoder.ids.get(piece).copied().unwrap_or(self.encoder.unk);
        match self.halves.get(piece) {
            Some(&half) => {
                self.emit(start, half, emit);
                self.emit(start + half, len - half, emit);
            }
            None => emit(id, start as usize, (start + len) as usize),
        }
    }
}
