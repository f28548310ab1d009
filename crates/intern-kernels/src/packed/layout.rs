//! Where the bytes of a packed group lie, and how they get there.
//!
//! A group holds its quantized numbers first, then its scales, so that the former stay aligned
//! to cache lines. Within them, words of four neighbouring bytes of sixteen rows alternate:
//! word `i` of row `r` is at `(16 i + r) · 4`.

use super::GROUP;
use crate::matmul::MatrixRef;
use crate::quant::{BlockType, QK_K, unpack_scale_min};

/// Sizes of one packed type at one width.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// GGUF blocks per row.
    pub blocks: usize,
    /// Bytes of quantized numbers of one block of sixteen rows.
    pub quants: usize,
    /// Bytes of their scales.
    pub head: usize,
    /// Cache lines of one group.
    pub lines: usize,
}

impl Layout {
    /// `None` for a type without an integer kernel.
    pub fn of(ty: BlockType, cols: usize) -> Option<Self> {
        let (quants, head) = match ty {
            BlockType::Q4_0 => (16 * 16, 32),
            BlockType::Q8_0 => (32 * 16, 32),
            BlockType::Q4K => (128 * 16, 64 + 192),
            BlockType::Q5K => ((128 + 32) * 16, 64 + 192),
            BlockType::Q6K => ((128 + 64) * 16, 32 + 256),
            _ => return None,
        };
        let blocks = cols / ty.block_size();
        Some(Self { blocks, quants, head, lines: (blocks * (quants + head)).div_ceil(64) })
    }

    /// Packs rows `first .. first + 16` (those that exist) into `out`, which is zero.
    pub fn pack_group(&self, matrix: &MatrixRef, first: usize, out: &mut [u8]) {
        let (quants, heads) = out.split_at_mut(self.blocks * self.quants);
        let (ty, bytes) = (matrix.ty(), matrix.ty().block_bytes());
        let count = GROUP.min(matrix.rows() - first);
        // Rows that do not exist are read from the last one and left out of the scales.
        let rows: [&[u8]; GROUP] = std::array::from_fn(|r| matrix.row(first + r.min(count - 1)));
        let places = quants.chunks_exact_mut(self.quants).zip(heads.chunks_exact_mut(self.head));
        for (i, (quants, head)) in places.enumerate() {
            let blocks = rows.map(|row| &row[i * bytes..][..bytes]);
            match ty {
                BlockType::Q4_0 => interleave(&blocks, 2, quants, 0),
                // Signed to unsigned: plus 128.
                BlockType::Q8_0 => interleave(&blocks, 2, quants, 0x8080_8080),
                BlockType::Q4K => interleave(&blocks, 16, quants, 0),
                BlockType::Q5K => {
                    let (nibbles, fifth) = quants.split_at_mut(128 * GROUP);
                    interleave(&blocks, 48, nibbles, 0);
                    interleave(&blocks, 16, fifth, 0);
                }
                BlockType::Q6K => interleave(&blocks, 0, quants, 0),
                other => unreachable!("{} has no layout", other.name()),
            }
            for (r, block) in blocks.iter().take(count).enumerate() {
                match ty {
                    BlockType::Q4K | BlockType::Q5K => affine(&block[..16], head, r),
                    BlockType::Q6K => {
                        head[2 * r..][..2].copy_from_slice(&block[208..]);
                        for (i, &scale) in block[192..208].iter().enumerate() {
                            head[32 + GROUP * i + r] = scale;
                        }
                    }
                    _ => head[2 * r..][..2].copy_from_slice(&block[..2]),
                }
            }
        }
    }
}

/// Fills `out` with the words of all rows from byte `at` on, bits flipped by `mask`.
fn interleave(rows: &[&[u8]; GROUP], at: usize, out: &mut [u8], mask: u32) {
    for (i, out) in out.chunks_exact_mut(4 * GROUP).enumerate() {
        let at = at + 4 * i;
        for (row, out) in rows.iter().zip(out.chunks_exact_mut(4)) {
            let word = u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]]) ^ mask;
            out.copy_from_slice(&word.to_le_bytes());
        }
    }
}

/// Scales of Q4_K and Q5_K: `d` of all rows, `dmin` of all rows, then 6 bits per scale and
/// minimum. Number `i = 16 group + row` keeps the low nibbles of both in byte `i`; the upper
/// pairs of `i` and `i + 64` share a byte: scale, scale, minimum, minimum.
fn affine(block: &[u8], head: &mut [u8], r: usize) {
    head[2 * r..][..2].copy_from_slice(&block[..2]);
    head[32 + 2 * r..][..2].copy_from_slice(&block[2..4]);
    for group in 0..QK_K / 32 {
        let (scale, min) = unpack_scale_min(group, &block[4..16]);
        let i = GROUP * group + r;
        head[64 + i] = (scale & 15) | (min << 4);
        head[192 + i % 64] |= ((scale >> 4) << (2 * (i / 64))) | ((min >> 4) << (4 + 2 * (i / 64)));
    }
}
