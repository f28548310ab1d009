//! Tiles for AVX2, FMA and F16C.
//!
//! Everything works in units of 32 elements, four vectors of eight lanes. A [`Decode`] turns
//! a unit of floats into those vectors; [`tile`] multiplies `R` rows of `W` with `M` rows of
//! `x`, one accumulator per pair. Values equal `quant::dequantize` exactly, so decoding to a
//! panel first gives the same bits; block formats that are not packed always do.

use std::arch::x86_64::*;

use super::{MatrixRef, Output, PANEL_ROWS};
use crate::quant::{self, BlockType};

/// Rows of `x` from which decoding into a panel beats decoding per tile.
const PANEL_FROM: usize = 5;
/// Rows of `W` per tile of up to three rows of `x`: at three, twelve accumulators and four
/// weights fill the sixteen registers.
const ROWS: usize = 4;

pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Decoding of one float format.
trait Decode {
    /// Bytes of 32 elements.
    const BYTES: usize;

    /// 32 elements.
    ///
    /// # Safety
    /// They are at `p`; AVX2 and F16C are there.
    unsafe fn unit(p: *const u8) -> [__m256; 4];
}

/// # Safety
/// As [`super::task`], and [`available`].
pub(super) unsafe fn task(
    x: &[f32],
    m: usize,
    part: (MatrixRef, usize),
    first: usize,
    last: usize,
    out: &Output,
) {
    // SAFETY: promised by the caller.
    unsafe {
        match part.0.ty() {
            BlockType::F32 => floats::<F32>(x, m, part, first, last, out),
            BlockType::F16 => floats::<F16>(x, m, part, first, last, out),
            BlockType::BF16 => floats::<BF16>(x, m, part, first, last, out),
            _ => panels(x, m, part, first, last, out, |row, to| quant::dequantize(part.0.ty(), row, to)),
        }
    }
}

/// # Safety
/// As [`task`]; `D` is the part's format.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn floats<D: Decode>(
    x: &[f32],
    m: usize,
    part: (MatrixRef, usize),
    first: usize,
    last: usize,
    out: &Output,
) {
    let (weight, column) = part;
    // SAFETY: row pointers come from the matrix, rows of `x` from its (m, k) buffer.
    unsafe {
        if m >= PANEL_FROM {
            return panels(x, m, part, first, last, out, |row, to| decode_row::<D>(row, to));
        }
        let mut n = first;
        while n < last {
            let count = ROWS.min(last - n);
            let w = std::array::from_fn(|r| weight.row(n + r.min(count - 1)).as_ptr());
            tiles::<D>(w, count, x.as_ptr(), m, weight.cols(), out, column + n);
            n += count;
        }
    }
}

/// Decodes up to [`PANEL_ROWS`] rows, then sweeps `x` over them, a tile of it staying in L1.
///
/// # Safety
/// As [`task`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn panels(
    x: &[f32],
    m: usize,
    (weight, column): (MatrixRef, usize),
    first: usize,
    last: usize,
    out: &Output,
    decode: impl Fn(&[u8], &mut [f32]),
) {
    let k = weight.cols();
    let mut panel = vec![0.0f32; PANEL_ROWS * k];
    for n in (first..last).step_by(PANEL_ROWS) {
        let count = PANEL_ROWS.min(last - n);
        for (r, to) in panel.chunks_exact_mut(k).take(count).enumerate() {
            decode(weight.row(n + r), to);
        }
        for row in (0..m).step_by(3) {
            for r0 in (0..count).step_by(ROWS) {
                let width = ROWS.min(count - r0);
                // SAFETY: rows of the panel and of `x` exist; the columns are the caller's.
                unsafe {
                    let w = std::array::from_fn(|r| panel.as_ptr().add((r0 + r.min(width - 1)) * k).cast());
                    let x = x.as_ptr().add(row * k);
                    match m - row {
                        1 => tile::<F32, ROWS, 1>(w, width, x, k, out, row, column + n + r0),
                        2 => tile::<F32, ROWS, 2>(w, width, x, k, out, row, column + n + r0),
                        _ => tile::<F32, ROWS, 3>(w, width, x, k, out, row, column + n + r0),
                    }
                }
            }
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
        for unit in 0..k / 32 {
            let x = x.add(32 * unit);
            unroll!(r, {
                if r < R {
                    let v = D::unit(w[r].add(unit * D::BYTES));
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
                    let v = D::unit(raw.as_ptr());
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

/// Decodes a row of format `D`.
///
/// # Safety
/// `w` holds as many elements as `out`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode_row<D: Decode>(w: &[u8], out: &mut [f32]) {
    // SAFETY: units stay within both; the rest goes through padded copies.
    unsafe {
        for (w, out) in w.chunks(D::BYTES).zip(out.chunks_mut(32)) {
            let mut raw = [0u8; 128];
            let v = if out.len() == 32 {
                D::unit(w.as_ptr())
            } else {
                raw[..w.len()].copy_from_slice(w);
                D::unit(raw.as_ptr())
            };
            let mut wide = [0.0f32; 32];
            for i in 0..4 {
                _mm256_storeu_ps(wide.as_mut_ptr().add(8 * i), v[i]);
            }
            out.copy_from_slice(&wide[..out.len()]);
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

/// Sixteen bytes from `p`.
///
/// # Safety
/// They are there.
#[inline(always)]
unsafe fn load_16(p: *const u8) -> __m128i {
    // SAFETY: promised by the caller.
    unsafe { _mm_loadu_si128(p.cast()) }
}

struct F32;
impl Decode for F32 {
    const BYTES: usize = 128;
    #[inline(always)]
    unsafe fn unit(p: *const u8) -> [__m256; 4] {
        // SAFETY: 128 bytes are there.
        unsafe { std::array::from_fn(|i| _mm256_loadu_ps(p.add(32 * i).cast())) }
    }
}

struct F16;
impl Decode for F16 {
    const BYTES: usize = 64;
    #[inline(always)]
    unsafe fn unit(p: *const u8) -> [__m256; 4] {
        // SAFETY: 64 bytes are there.
        unsafe { std::array::from_fn(|i| _mm256_cvtph_ps(load_16(p.add(16 * i)))) }
    }
}

struct BF16;
impl Decode for BF16 {
    const BYTES: usize = 64;
    #[inline(always)]
    unsafe fn unit(p: *const u8) -> [__m256; 4] {
        // SAFETY: 64 bytes are there; a bf16 is the upper half of its f32.
        unsafe {
            std::array::from_fn(|i| {
                let wide = _mm256_cvtepu16_epi32(load_16(p.add(16 * i)));
                _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))
            })
        }
    }
}
