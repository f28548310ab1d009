//! Activations as signed bytes: one f32 scale and the sums of each 32 columns.

use super::InstructionSet;
use crate::multiversion;
use crate::pool::Pool;

/// Columns per block.
pub const BLOCK: usize = 32;
/// Rows of `x` per tile when there are many.
pub(super) const TILE: usize = 8;

/// One block of one row.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Block {
    /// `x ≈ d · q`, with `q` from −127 to 127.
    pub q: [i8; BLOCK],
    /// The scale.
    pub d: f32,
    /// `d · Σ q` of all columns.
    pub s: f32,
    /// `d · Σ q` of the first and the last sixteen.
    pub halves: [f32; 2],
    /// `Σ q`.
    pub sum: i32,
}

/// Quantized rows, in tiles of eight (the last one smaller): in a tile, block by block, the
/// rows of each side by side.
#[derive(Debug)]
pub struct Activations {
    isa: InstructionSet,
    rows: usize,
    cols: usize,
    blocks: Vec<Block>,
}

impl Default for Activations {
    fn default() -> Self {
        Self::new(InstructionSet::best())
    }
}

impl Activations {
    /// Empty; products with them run on `isa`, which the processor must have.
    #[must_use]
    pub fn new(isa: InstructionSet) -> Self {
        assert!(InstructionSet::available().contains(&isa), "this processor has no {isa:?}");
        Self { isa, rows: 0, cols: 0, blocks: Vec::new() }
    }

    /// Rows, M.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns, K.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Replaces the contents with `x`, `(rows, cols)`; `cols` is whole blocks.
    pub fn quantize(&mut self, pool: &Pool, x: &[f32], rows: usize, cols: usize) {
        assert_eq!(x.len(), rows * cols, "x is ({rows}, {cols})");
        assert!(cols.is_multiple_of(BLOCK), "{cols} columns are not whole blocks");
        (self.rows, self.cols) = (rows, cols);
        let blank = Block { q: [0; BLOCK], d: 0.0, s: 0.0, halves: [0.0; 2], sum: 0 };
        self.blocks.resize(rows * cols / BLOCK, blank);
        pool.chunks(&mut self.blocks, TILE * cols / BLOCK, |i, tile| {
            let height = tile.len() * BLOCK / cols;
            for (r, row) in x[i * TILE * cols..].chunks_exact(cols).take(height).enumerate() {
                quantize_row(row, &mut tile[r..], height);
            }
        });
    }

    pub(super) fn isa(&self) -> InstructionSet {
        self.isa
    }

    /// The tile that starts at row `first` (a multiple of eight), and its height.
    pub(super) fn tile(&self, first: usize) -> (*const Block, usize) {
        let height = TILE.min(self.rows - first);
        (self.blocks[first * (self.cols / BLOCK)..].as_ptr(), height)
    }
}

multiversion! {
    /// Blocks of one row, every `step`-th of `out`.
    fn quantize_row(x: &[f32], out: &mut [Block], step: usize) {
        for (x, block) in x.chunks_exact(BLOCK).zip(out.iter_mut().step_by(step)) {
            let mut lanes = [0.0f32; 16];
            for half in x.chunks_exact(16) {
                for l in 0..16 {
                    lanes[l] = lanes[l].max(half[l].abs());
                }
            }
            let largest = lanes.iter().fold(0.0f32, |m, &x| m.max(x));
            let d = largest / 127.0;
            // A block of zeros, or of numbers too small to divide by, is zero.
            let inverse = if d >= f32::MIN_POSITIVE { 1.0 / d } else { 0.0 };
            let mut wide = [0i32; BLOCK];
            for (w, x) in wide.iter_mut().zip(x) {
                // Adding and taking away 1.5 · 2²³ rounds to the nearest whole number.
                let rounded = (x * inverse + 12_582_912.0) - 12_582_912.0;
                // SAFETY: within ±127 up to rounding, or NaN from an infinite x: see below.
                *w = if rounded.abs() <= 127.0 { unsafe { rounded.to_int_unchecked() } } else { 0 };
            }
            let mut sums = [0i32; 2];
            for (sum, half) in sums.iter_mut().zip(wide.chunks_exact(16)) {
                *sum = half.iter().sum();
            }
            for (q, w) in block.q.iter_mut().zip(&wide) {
                *q = *w as i8;
            }
            // What is not a number shows in the result.
            let finite = x.iter().fold(0.0f32, |a, x| a + x * 0.0) == 0.0;
            block.d = if finite { d } else { f32::NAN };
            block.sum = sums[0] + sums[1];
            block.s = block.d * block.sum as f32;
            block.halves = sums.map(|s| block.d * s as f32);
        }
    }
}
