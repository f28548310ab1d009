//! SentencePiece's unigram segmentation: the path of the best total score, with the
//! single-precision arithmetic of its `EncodeOptimized`, so that ties fall the same way.

use super::Encoder;
use crate::sentencepiece::PieceType;

/// How much worse than the worst piece an unknown character is.
pub(super) const UNKNOWN_PENALTY: f32 = 10.0;

/// The best path that ends at a position.
#[derive(Clone, Copy)]
struct Node {
    score: f32,
    start: u32, // of its last piece
    id: u32,
}

const NONE: u32 = u32::MAX;

/// Segments prepared text; reports each piece as (id, start, end).
pub(super) fn segment(encoder: &Encoder, text: &str, mut emit: impl FnMut(u32, usize, usize)) {
    let mut ends = vec![Node { score: 0.0, start: NONE, id: 0 }; text.len() + 1];
    for (start, c) in text.char_indices() {
        let so_far = ends[start].score;
        let mut offer = |end: usize, id: u32, score: f32| {
            let total = score + so_far;
            let node = &mut ends[end];
            if node.start == NONE || total > node.score {
                *node = Node { score: total, start: start as u32, id };
            }
        };
        let mut has_single = false;
        let reach = text.len().min(start + encoder.longest);
        let mut end = start;
        for next in text[start..].chars() {
            end += next.len_utf8();
            if end > reach {
                break;
            }
            let Some(&id) = encoder.ids.get(&text[start..end]) else { continue };
            let piece = &encoder.model.pieces[id as usize];
            let score = match piece.kind {
                PieceType::Unused => continue,
                PieceType::UserDefined => (end - start) as f32 * encoder.max_score - 0.1,
                _ => piece.score,
            };
            offer(end, id, score);
            has_single |= end - start == c.len_utf8();
        }
        if !has_single {
            offer(start + c.len_utf8(), encoder.unk, encoder.unk_score);
        }
    }
    let mut path = Vec::new();
    let mut end = text.len();
    while end > 0 {
        let node = ends[end];
        path.push((node.id, node.start as usize, end));
        end = node.start as usize;
    }
    path.iter().rev().for_each(|&(id, start, end)| emit(id, start, end));
}
