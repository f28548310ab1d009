//! Tiles for AVX2, FMA and F16C.
//!
//! Everything works in units of 32 elements, four vectors of eight lanes. A [`Decode`] turns
//! unit `u` of a stored row into those vectors; [`tile`] multiplies `R` rows of `W` with `M`
//! rows of `x`, one accumulator per pair. Vector values equal `quant::dequantize` exactly,
//! so decoding to a panel first gives the same bits.

use std::arch::x86_64::*;

use super::{Output, PANEL_ROWS, Part};
use crate::quant::{self, BlockType, unpack_scale_min};

/// Rows of `x` from which decoding into a panel beats decoding per tile.
const PANEL_FROM: usize = 5;
/// Rows of `W` per tile of up to three rows of `x`: at three, twelve accumulators and four
/// weights fill the sixteen registers.
const ROWS: usize = 4;

pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Unit-wise decoding of one format.
trait Decode {
    /// Elements per block.
    const BLOCK: usize;
    /// Bytes per block.
    const BYTES: usize;
    /// What is prepared once per block: broadcast scales.
    type Head: Copy;

    /// Prepares a block.
    ///
    /// # Safety
    /// `block` points at a whole block; AVX2 and F16C are there.
    unsafe fn head(block: *const u8) -> Self::Head;

    /// Elements `32 * unit ..` of the block.
    ///
    /// # Safety
    /// As [`Decode::head`]; `unit < BLOCK / 32`.
    unsafe fn unit(block: *const u8, head: Self::Head, unit: usize) -> [__m256; 4];
}

/// # Safety
/// As [`super::task`], and [`available`].
pub(super) unsafe fn task(x: &[f32], m: usize, part: &Part, first: usize, last: usize, out: &Output) {
    // SAFETY: promised by the caller.
    unsafe {
        match part.weight.ty() {
            BlockType::F32 => rows::<F32>(x, m, part, first, last, out),
            BlockType::F16 => rows::<F16>(x, m, part, first, last, out),
            BlockType::BF16 => rows::<BF16>(x, m, part, first, last, out),
            BlockType::Q8_0 => rows::<Q8_0>(x, m, part, first, last, out),
            BlockType::Q4_0 => rows::<Q4_0>(x, m, part, first, last, out),
            BlockType::Q4_1 => rows::<Scalar<4>>(x, m, part, first, last, out),
            BlockType::Q5_0 => rows::<Q5_0>(x, m, part, first, last, out),
            BlockType::Q5_1 => rows::<Scalar<6>>(x, m, part, first, last, out),
            BlockType::Q4K => rows::<Q4K>(x, m, part, first, last, out),
            BlockType::Q5K => rows::<Q5K>(x, m, part, first, last, out),
            BlockType::Q6K => rows::<Q6K>(x, m, part, first, last, out),
            BlockType::Q2K | BlockType::Q3K | BlockType::Iq4Nl | BlockType::Mxfp4 => {
                super::plain::task(x, m, part, first, last, out);
            }
        }
    }
}

/// # Safety
/// As [`task`]; `D` is the part's format.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows<D: Decode>(x: &[f32], m: usize, part: &Part, first: usize, last: usize, out: &Output) {
    let k = part.weight.cols();
    let x = x.as_ptr();
    // SAFETY: row pointers come from the matrix, rows of `x` from its (m, k) buffer.
    unsafe {
        if m < PANEL_FROM {
            let mut n = first;
            while n < last {
                let count = ROWS.min(last - n);
                let w = std::array::from_fn(|r| part.weight.row(n + r.min(count - 1)).as_ptr());
                tiles::<D>(w, count, x, m, k, out, part.column + n);
                n += count;
            }
            return;
        }
        // Decode up to PANEL_ROWS rows, then sweep x over them, a tile of x staying in L1.
        let mut panel = vec![0.0f32; PANEL_ROWS * k];
        let mut n = first;
        while n < last {
            let count = PANEL_ROWS.min(last - n);
            for r in 0..count {
                decode_row::<D>(part.weight.row(n + r).as_ptr(), k, panel.as_mut_ptr().add(r * k));
            }
            let mut row = 0;
            while row < m {
                let height = 3.min(m - row);
                let mut r0 = 0;
                while r0 < count {
                    let width = ROWS.min(count - r0);
                    let w = std::array::from_fn(|r| panel.as_ptr().add((r0 + r.min(width - 1)) * k).cast());
                    let x = x.add(row * k);
                    match height {
                        3 => tile::<F32, ROWS, 3>(w, width, x, k, out, row, part.column + n + r0),
                        2 => tile::<F32, ROWS, 2>(w, width, x, k, out, row, part.column + n + r0),
                        _ => tile::<F32, ROWS, 1>(w, width, x, k, out, row, part.column + n + r0),
                    }
                    r0 += width;
                }
                row += height;
            }
            n += count;
        }
    }
}

/// Four rows of `W` (the first `count` count) with all `m` rows of `x`, at most four.
///
/// # Safety
/// As [`rows`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tiles<D: Decode>(
    w: [*const u8; ROWS],
    count: usize,
    x: *const f32,
    m: usize,
    k: usize,
    out: &Output,
    column: usize,
) {
    // SAFETY: `row` stays below m.
    unsafe {
        match m {
            1 => tile::<D, ROWS, 1>(w, count, x, k, out, 0, column),
            2 => tile::<D, ROWS, 2>(w, count, x, k, out, 0, column),
            3 => tile::<D, ROWS, 3>(w, count, x, k, out, 0, column),
            _ => {
                tile::<D, 2, 4>([w[0], w[1]], count.min(2), x, k, out, 0, column);
                if count > 2 {
                    tile::<D, 2, 4>([w[2], w[3]], count - 2, x, k, out, 0, column + 2);
                }
            }
        }
    }
}

/// The body for indices 0 to 3, written out: left as loops, LLVM keeps accumulators in memory.
macro_rules! unroll {
    ($i:ident, $body:block) => {{
        {
            let $i = 0usize;
            $body
        }
        {
            let $i = 1usize;
            $body
        }
        {
            let $i = 2usize;
            $body
        }
        {
            let $i = 3usize;
            $body
        }
    }};
}

/// `R` rows of `W` (the first `count` count) with `M` rows of `x` from `x`.
///
/// # Safety
/// Every `w` points at a row of `k` elements of format `D`, `x` at `M` rows of `k`; elements
/// `(row.., column..)` of `out` are the caller's.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<D: Decode, const R: usize, const M: usize>(
    w: [*const u8; R],
    count: usize,
    x: *const f32,
    k: usize,
    out: &Output,
    row: usize,
    column: usize,
) {
    let mut acc = [[_mm256_setzero_ps(); M]; R];
    // SAFETY: blocks and units stay within k elements of each row.
    unsafe {
        for block in 0..k / D::BLOCK {
            let at = block * D::BYTES;
            let heads: [D::Head; R] = std::array::from_fn(|r| D::head(w[r].add(at)));
            for unit in 0..D::BLOCK / 32 {
                let x = x.add(block * D::BLOCK + unit * 32);
                unroll!(r, {
                    if r < R {
                        let v = D::unit(w[r].add(at), heads[r], unit);
                        unroll!(i, {
                            unroll!(m, {
                                if m < M {
                                    let x = _mm256_loadu_ps(x.add(m * k + 8 * i));
                                    acc[r][m] = _mm256_fmadd_ps(v[i], x, acc[r][m]);
                                }
                            });
                        });
                    }
                });
            }
        }
        // Only the float formats have a rest, since only their block is one element.
        let rest = k % 32;
        if rest > 0 {
            let done = k - rest;
            let mut x_rest = [[0.0f32; 32]; M];
            for (m, padded) in x_rest.iter_mut().enumerate() {
                std::ptr::copy_nonoverlapping(x.add(m * k + done), padded.as_mut_ptr(), rest);
            }
            unroll!(r, {
                if r < R {
                    let bytes = D::BYTES / 32;
                    let mut raw = [0u8; 128];
                    std::ptr::copy_nonoverlapping(w[r].add(done * bytes), raw.as_mut_ptr(), rest * bytes);
                    let v = D::unit(raw.as_ptr(), D::head(raw.as_ptr()), 0);
                    unroll!(i, {
                        unroll!(m, {
                            if m < M {
                                let x = _mm256_loadu_ps(x_rest[m].as_ptr().add(8 * i));
                                acc[r][m] = _mm256_fmadd_ps(v[i], x, acc[r][m]);
                            }
                        });
                    });
                }
            });
        }
        unroll!(r, {
            if r < R && r < count {
                unroll!(m, {
                    if m < M {
                        out.set(row + m, column + r, fold(acc[r][m]));
                    }
                });
            }
        });
    }
}

/// Decodes a row of `k` elements to `out`.
///
/// # Safety
/// `w` points at a row of `k` elements of format `D`, `out` at room for them.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode_row<D: Decode>(w: *const u8, k: usize, out: *mut f32) {
    // SAFETY: blocks and units stay within k elements.
    unsafe {
        for block in 0..k / D::BLOCK {
            let at = w.add(block * D::BYTES);
            let head = D::head(at);
            for unit in 0..D::BLOCK / 32 {
                let v = D::unit(at, head, unit);
                for i in 0..4 {
                    _mm256_storeu_ps(out.add(block * D::BLOCK + unit * 32 + 8 * i), v[i]);
                }
            }
        }
        let rest = k % 32;
        if rest > 0 {
            let (done, bytes) = (k - rest, D::BYTES / 32);
            let mut raw = [0u8; 128];
            std::ptr::copy_nonoverlapping(w.add(done * bytes), raw.as_mut_ptr(), rest * bytes);
            let v = D::unit(raw.as_ptr(), D::head(raw.as_ptr()), 0);
            let mut padded = [0.0f32; 32];
            for i in 0..4 {
                _mm256_storeu_ps(padded.as_mut_ptr().add(8 * i), v[i]);
            }
            std::ptr::copy_nonoverlapping(padded.as_ptr(), out.add(done), rest);
        }
    }
}

/// The sum of eight lanes, always in this order.
#[inline]
#[target_feature(enable = "avx2")]
fn fold(v: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}

/// A broadcast f16.
///
/// # Safety
/// Two bytes at `p`; F16C.
#[inline(always)]
unsafe fn half(p: *const u8) -> __m256 {
    // SAFETY: promised by the caller.
    unsafe { _mm256_cvtph_ps(_mm_set1_epi16(p.cast::<i16>().read_unaligned())) }
}

/// Eight signed bytes as floats.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn signed(bytes: __m128i) -> __m256 {
    // SAFETY: promised by the caller.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)) }
}

/// The 32 signed bytes of two registers as floats.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn signed_32(low: __m128i, high: __m128i) -> [__m256; 4] {
    // SAFETY: promised by the caller.
    unsafe { [signed(low), signed(_mm_srli_si128(low, 8)), signed(high), signed(_mm_srli_si128(high, 8))] }
}

/// Sixteen bytes from `p`.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn load_16(p: *const u8) -> __m128i {
    // SAFETY: promised by the caller.
    unsafe { _mm_loadu_si128(p.cast()) }
}

/// Every byte of `v` shifted right by `shift` (below 8) and masked.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn bits(v: __m128i, shift: usize, mask: i8) -> __m128i {
    // SAFETY: promised by the caller.
    unsafe { _mm_and_si128(_mm_srl_epi16(v, _mm_cvtsi32_si128(shift as i32)), _mm_set1_epi8(mask)) }
}

struct F32;
impl Decode for F32 {
    const BLOCK: usize = 32;
    const BYTES: usize = 128;
    type Head = ();
    #[inline(always)]
    unsafe fn head(_: *const u8) {}
    #[inline(always)]
    unsafe fn unit(block: *const u8, (): (), _: usize) -> [__m256; 4] {
        // SAFETY: 128 bytes are there.
        unsafe { std::array::from_fn(|i| _mm256_loadu_ps(block.add(32 * i).cast())) }
    }
}

struct F16;
impl Decode for F16 {
    const BLOCK: usize = 32;
    const BYTES: usize = 64;
    type Head = ();
    #[inline(always)]
    unsafe fn head(_: *const u8) {}
    #[inline(always)]
    unsafe fn unit(block: *const u8, (): (), _: usize) -> [__m256; 4] {
        // SAFETY: 64 bytes are there.
        unsafe { std::array::from_fn(|i| _mm256_cvtph_ps(load_16(block.add(16 * i)))) }
    }
}

struct BF16;
impl Decode for BF16 {
    const BLOCK: usize = 32;
    const BYTES: usize = 64;
    type Head = ();
    #[inline(always)]
    unsafe fn head(_: *const u8) {}
    #[inline(always)]
    unsafe fn unit(block: *const u8, (): (), _: usize) -> [__m256; 4] {
        // SAFETY: 64 bytes are there; a bf16 is the upper half of its f32.
        unsafe {
            std::array::from_fn(|i| {
                let wide = _mm256_cvtepu16_epi32(load_16(block.add(16 * i)));
                _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))
            })
        }
    }
}

struct Q8_0;
impl Decode for Q8_0 {
    const BLOCK: usize = 32;
    const BYTES: usize = 34;
    type Head = __m256;
    #[inline(always)]
    unsafe fn head(block: *const u8) -> __m256 {
        // SAFETY: the block starts with its scale.
        unsafe { half(block) }
    }
    #[inline(always)]
    unsafe fn unit(block: *const u8, d: __m256, _: usize) -> [__m256; 4] {
        // SAFETY: 32 bytes follow the scale.
        unsafe { signed_32(load_16(block.add(2)), load_16(block.add(18))).map(|v| _mm256_mul_ps(d, v)) }
    }
}

struct Q4_0;
impl Decode for Q4_0 {
    const BLOCK: usize = 32;
    const BYTES: usize = 18;
    type Head = __m256;
    #[inline(always)]
    unsafe fn head(block: *const u8) -> __m256 {
        // SAFETY: the block starts with its scale.
        unsafe { half(block) }
    }
    #[inline(always)]
    unsafe fn unit(block: *const u8, d: __m256, _: usize) -> [__m256; 4] {
        // SAFETY: 16 bytes follow the scale.
        unsafe {
            let (q, eight) = (load_16(block.add(2)), _mm_set1_epi8(8));
            let low = _mm_sub_epi8(bits(q, 0, 15), eight);
            let high = _mm_sub_epi8(bits(q, 4, 15), eight);
            signed_32(low, high).map(|v| _mm256_mul_ps(d, v))
        }
    }
}

struct Q5_0;
impl Decode for Q5_0 {
    const BLOCK: usize = 32;
    const BYTES: usize = 22;
    type Head = __m256;
    #[inline(always)]
    unsafe fn head(block: *const u8) -> __m256 {
        // SAFETY: the block starts with its scale.
        unsafe { half(block) }
    }
    #[inline(always)]
    unsafe fn unit(block: *const u8, d: __m256, _: usize) -> [__m256; 4] {
        // SAFETY: four bytes of fifth bits and 16 of nibbles follow the scale.
        unsafe {
            let q = load_16(block.add(6));
            // Each lane of eight tests its own byte's bits: set where the fifth bit is clear, so
            // that or-ing 0xf0 there subtracts 16.
            let fifth = _mm_set1_epi32(block.add(2).cast::<i32>().read_unaligned());
            let bit = _mm_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let clear = |bytes: __m128i| {
                let spread = _mm_and_si128(_mm_shuffle_epi8(fifth, bytes), bit);
                _mm_and_si128(_mm_cmpeq_epi8(spread, _mm_setzero_si128()), _mm_set1_epi8(-16))
            };
            let low = clear(_mm_set_epi64x(0x0101_0101_0101_0101, 0));
            let high = clear(_mm_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202));
            let (low, high) = (_mm_or_si128(bits(q, 0, 15), low), _mm_or_si128(bits(q, 4, 15), high));
            signed_32(low, high).map(|v| _mm256_mul_ps(d, v))
        }
    }
}

/// Scales and minima of a block of Q4_K or Q5_K, broadcast when used.
#[derive(Clone, Copy)]
struct Affine {
    scale: [f32; 8],
    min: [f32; 8],
}

impl Affine {
    /// # Safety
    /// `block` starts with `d`, `dmin` and the 12 packed bytes.
    #[inline(always)]
    unsafe fn read(block: *const u8) -> Self {
        // SAFETY: promised by the caller.
        unsafe {
            let packed = std::slice::from_raw_parts(block.add(4), 12);
            let d = _mm256_cvtss_f32(half(block));
            let dmin = _mm256_cvtss_f32(half(block.add(2)));
            let mut affine = Self { scale: [0.0; 8], min: [0.0; 8] };
            for j in 0..8 {
                let (scale, min) = unpack_scale_min(j, packed);
                affine.scale[j] = d * f32::from(scale);
                affine.min[j] = dmin * f32::from(min);
            }
            affine
        }
    }

    /// # Safety
    /// AVX2.
    #[inline(always)]
    unsafe fn apply(&self, unit: usize, q: [__m256; 4]) -> [__m256; 4] {
        // SAFETY: promised by the caller.
        unsafe {
            let (scale, min) = (_mm256_set1_ps(self.scale[unit]), _mm256_set1_ps(self.min[unit]));
            // Multiply, then subtract: one rounding more than FMA, as `dequantize` does it.
            q.map(|q| _mm256_sub_ps(_mm256_mul_ps(scale, q), min))
        }
    }
}

struct Q4K;
impl Decode for Q4K {
    const BLOCK: usize = 256;
    const BYTES: usize = 144;
    type Head = Affine;
    #[inline(always)]
    unsafe fn head(block: *const u8) -> Affine {
        // SAFETY: promised by the caller.
        unsafe { Affine::read(block) }
    }
    #[inline(always)]
    unsafe fn unit(block: *const u8, head: Affine, unit: usize) -> [__m256; 4] {
        // SAFETY: 128 bytes of nibbles start at 16.
        unsafe {
            let (p, shift) = (block.add(16 + unit / 2 * 32), 4 * (unit % 2));
            head.apply(unit, signed_32(bits(load_16(p), shift, 15), bits(load_16(p.add(16)), shift, 15)))
        }
    }
}

struct Q5K;
impl Decode for Q5K {
    const BLOCK: usize = 256;
    const BYTES: usize = 176;
    type Head = Affine;
    #[inline(always)]
    unsafe fn head(block: *const u8) -> Affine {
        // SAFETY: promised by the caller.
        unsafe { Affine::read(block) }
    }
    #[inline(always)]
    unsafe fn unit(block: *const u8, head: Affine, unit: usize) -> [__m256; 4] {
        // SAFETY: 32 bytes of fifth bits start at 16, 128 of nibbles at 48.
        unsafe {
            let (p, shift) = (block.add(48 + unit / 2 * 32), 4 * (unit % 2));
            let q = |i: usize| {
                let fifth = _mm_slli_epi16(bits(load_16(block.add(16 + i)), unit, 1), 4);
                _mm_or_si128(bits(load_16(p.add(i)), shift, 15), fifth)
            };
            head.apply(unit, signed_32(q(0), q(16)))
        }
    }
}

struct Q6K;
impl Decode for Q6K {
    const BLOCK: usize = 256;
    const BYTES: usize = 210;
    type Head = __m256;
    #[inline(always)]
    unsafe fn head(block: *const u8) -> __m256 {
        // SAFETY: the scale ends the block.
        unsafe { half(block.add(208)) }
    }
    #[inline(always)]
    unsafe fn unit(block: *const u8, d: __m256, unit: usize) -> [__m256; 4] {
        // SAFETY: offsets as in `quant::decode`, all within 210 bytes.
        unsafe {
            let (half, run) = (unit / 4, unit % 4);
            let low = block.add(half * 64 + 32 * (run % 2));
            let high = block.add(128 + half * 32);
            let scales = block.add(192 + half * 8 + 2 * run).cast::<i8>();
            let q = |i: usize| {
                let pair = _mm_slli_epi16(bits(load_16(high.add(i)), 2 * run, 3), 4);
                let q = _mm_or_si128(bits(load_16(low.add(i)), 4 * (run / 2), 15), pair);
                _mm_sub_epi8(q, _mm_set1_epi8(32))
            };
            let v = signed_32(q(0), q(16));
            let first = _mm256_mul_ps(d, _mm256_set1_ps(f32::from(*scales)));
            let second = _mm256_mul_ps(d, _mm256_set1_ps(f32::from(*scales.add(1))));
            [
                _mm256_mul_ps(first, v[0]),
                _mm256_mul_ps(first, v[1]),
                _mm256_mul_ps(second, v[2]),
                _mm256_mul_ps(second, v[3]),
            ]
        }
    }
}

/// The rare formats, decoded by the plain code; `ID` is 4 for Q4_1, 6 for Q5_1.
struct Scalar<const ID: usize>;
impl<const ID: usize> Scalar<ID> {
    const TY: BlockType = match ID {
        4 => BlockType::Q4_1,
        _ => BlockType::Q5_1,
    };
}
impl<const ID: usize> Decode for Scalar<ID> {
    const BLOCK: usize = 32;
    const BYTES: usize = Self::TY.block_bytes();
    type Head = ();
    #[inline(always)]
    unsafe fn head(_: *const u8) {}
    #[inline(always)]
    unsafe fn unit(block: *const u8, (): (), _: usize) -> [__m256; 4] {
        let mut out = [0.0f32; 32];
        // SAFETY: a whole block is there.
        unsafe {
            quant::decode_blocks(Self::TY, std::slice::from_raw_parts(block, Self::BYTES), &mut out);
            std::array::from_fn(|i| _mm256_loadu_ps(out.as_ptr().add(8 * i)))
        }
    }
}
