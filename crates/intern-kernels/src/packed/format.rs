//! How each packed type yields its numbers: written once, compiled for every instruction set.

use super::kernel::Isa;

/// A packed type: `w = scale · q − min`.
pub(super) trait Format {
    /// Blocks of 32 columns per GGUF block.
    const BLOCKS: usize;
    /// As in [`super::layout::Layout`].
    const QUANTS: usize;
    /// As in [`super::layout::Layout`].
    const HEAD: usize;
    /// Scales per 32 columns, 1 or 2.
    const SCALES: usize;
    /// Whether it is read from memory, once.
    const STREAMED: bool = true;
    /// Products of `q` and a signed byte, two by two, that may be summed in 16 bits; 0 if none.
    const DEPTH: usize;

    /// `q` of columns `4 step ..` of block `j`, for `I::ROWS` rows.
    ///
    /// # Safety
    /// `quants` points at the numbers of a GGUF block, moved to the first of those rows.
    unsafe fn quants<I: Isa>(quants: *const u8, j: usize, step: usize) -> I::Bytes;

    /// Scale and minimum number `which` of block `j`, for `I::ROWS` rows from `row`.
    ///
    /// # Safety
    /// `head` points at the scales of a GGUF block.
    unsafe fn scales<I: Isa>(head: *const u8, j: usize, which: usize, row: usize) -> (I::Floats, I::Floats);
}

/// Bytes of four columns of sixteen rows.
const STEP: usize = 64;

pub(super) struct Q4_0;
impl Format for Q4_0 {
    const BLOCKS: usize = 1;
    const QUANTS: usize = 256;
    const HEAD: usize = 32;
    const SCALES: usize = 1;
    const DEPTH: usize = 8;

    #[inline(always)]
    unsafe fn quants<I: Isa>(quants: *const u8, _: usize, step: usize) -> I::Bytes {
        // SAFETY: four words of sixteen rows; the low nibbles are columns 0–15.
        unsafe { I::bits(I::bytes(quants.add(STEP * (step % 4))), 4 * (step / 4), 15) }
    }
    #[inline(always)]
    unsafe fn scales<I: Isa>(head: *const u8, _: usize, _: usize, row: usize) -> (I::Floats, I::Floats) {
        // SAFETY: sixteen f16.
        unsafe {
            let d = I::halves(head.add(2 * row));
            (d, I::mul(d, I::splat(8.0)))
        }
    }
}

pub(super) struct Q8_0;
impl Format for Q8_0 {
    const BLOCKS: usize = 1;
    const QUANTS: usize = 512;
    const HEAD: usize = 32;
    const SCALES: usize = 1;
    const DEPTH: usize = 0;

    #[inline(always)]
    unsafe fn quants<I: Isa>(quants: *const u8, _: usize, step: usize) -> I::Bytes {
        // SAFETY: eight words of sixteen rows.
        unsafe { I::bytes(quants.add(STEP * step)) }
    }
    #[inline(always)]
    unsafe fn scales<I: Isa>(head: *const u8, _: usize, _: usize, row: usize) -> (I::Floats, I::Floats) {
        // SAFETY: sixteen f16.
        unsafe {
            let d = I::halves(head.add(2 * row));
            (d, I::mul(d, I::splat(128.0)))
        }
    }
}

/// Scale and minimum of Q4_K and Q5_K, see `layout::affine`.
///
/// # Safety
/// As [`Format::scales`].
#[inline(always)]
unsafe fn affine<I: Isa>(head: *const u8, j: usize, row: usize) -> (I::Floats, I::Floats) {
    // SAFETY: 64 bytes of f16, 128 of nibbles, 64 of pairs.
    unsafe {
        let low = head.add(64 + 16 * j + row);
        let high = head.add(192 + 16 * (j % 4) + row);
        let shift = 2 * (j / 4);
        let scale = I::six_bits(low, 0, high, shift);
        let min = I::six_bits(low, 4, high, 4 + shift);
        (I::mul(I::halves(head.add(2 * row)), scale), I::mul(I::halves(head.add(32 + 2 * row)), min))
    }
}

pub(super) struct Q4K;
impl Format for Q4K {
    const BLOCKS: usize = 8;
    const QUANTS: usize = 2048;
    const HEAD: usize = 256;
    const SCALES: usize = 1;
    const DEPTH: usize = 8;

    #[inline(always)]
    unsafe fn quants<I: Isa>(quants: *const u8, j: usize, step: usize) -> I::Bytes {
        // SAFETY: 32 words of sixteen rows; eight hold two blocks.
        unsafe { I::bits(I::bytes(quants.add(STEP * (8 * (j / 2) + step))), 4 * (j % 2), 15) }
    }
    #[inline(always)]
    unsafe fn scales<I: Isa>(head: *const u8, j: usize, _: usize, row: usize) -> (I::Floats, I::Floats) {
        // SAFETY: promised by the caller.
        unsafe { affine::<I>(head, j, row) }
    }
}

pub(super) struct Q5K;
impl Format for Q5K {
    const BLOCKS: usize = 8;
    const QUANTS: usize = 2560;
    const HEAD: usize = 256;
    const SCALES: usize = 1;
    const DEPTH: usize = 4;

    #[inline(always)]
    unsafe fn quants<I: Isa>(quants: *const u8, j: usize, step: usize) -> I::Bytes {
        // SAFETY: 32 words of nibbles, then 8 whose bytes hold the fifth bit of block `j` at bit `j`.
        unsafe {
            let low = I::bits(I::bytes(quants.add(STEP * (8 * (j / 2) + step))), 4 * (j % 2), 15);
            let fifth = I::bits(I::bytes(quants.add(STEP * (32 + step))), j, 1);
            I::or(low, I::shift_up(fifth))
        }
    }
    #[inline(always)]
    unsafe fn scales<I: Isa>(head: *const u8, j: usize, _: usize, row: usize) -> (I::Floats, I::Floats) {
        // SAFETY: promised by the caller.
        unsafe { affine::<I>(head, j, row) }
    }
}

pub(super) struct Q6K;
impl Format for Q6K {
    const BLOCKS: usize = 8;
    const QUANTS: usize = 3072;
    const HEAD: usize = 288;
    const SCALES: usize = 2;
    const DEPTH: usize = 2;

    #[inline(always)]
    unsafe fn quants<I: Isa>(quants: *const u8, j: usize, step: usize) -> I::Bytes {
        // SAFETY: 32 words of nibbles, 16 of upper pairs; half and run as in `quant::decode`.
        unsafe {
            let (half, run) = (j / 4, j % 4);
            let low = I::bytes(quants.add(STEP * (16 * half + 8 * (run % 2) + step)));
            let high = I::bytes(quants.add(STEP * (32 + 8 * half + step)));
            I::or(I::bits(low, 4 * (run / 2), 15), I::shift_up(I::bits(high, 2 * run, 3)))
        }
    }
    #[inline(always)]
    unsafe fn scales<I: Isa>(head: *const u8, j: usize, which: usize, row: usize) -> (I::Floats, I::Floats) {
        // SAFETY: sixteen f16, then sixteen scales of sixteen rows.
        unsafe {
            let scale = I::signed_bytes(head.add(32 + 16 * (2 * j + which) + row));
            let scale = I::mul(I::halves(head.add(2 * row)), scale);
            (scale, I::mul(scale, I::splat(32.0)))
        }
    }
}

/// A decoded panel: bytes and f32 scales, from any format with as many scales and as deep.
pub(super) struct Panel<const SCALES: usize, const DEPTH: usize>;
impl<const SCALES: usize, const DEPTH: usize> Format for Panel<SCALES, DEPTH> {
    const BLOCKS: usize = 1;
    const QUANTS: usize = 512;
    const HEAD: usize = 128 * SCALES;
    const SCALES: usize = SCALES;
    const STREAMED: bool = false;
    const DEPTH: usize = DEPTH;

    #[inline(always)]
    unsafe fn quants<I: Isa>(quants: *const u8, _: usize, step: usize) -> I::Bytes {
        // SAFETY: eight words of sixteen rows.
        unsafe { I::bytes(quants.add(STEP * step)) }
    }
    #[inline(always)]
    unsafe fn scales<I: Isa>(head: *const u8, _: usize, which: usize, row: usize) -> (I::Floats, I::Floats) {
        // SAFETY: per scale sixteen f32 scales, sixteen minima.
        unsafe {
            let at = head.add(128 * which + 4 * row).cast::<f32>();
            (I::floats(at), I::floats(at.add(16)))
        }
    }
}
