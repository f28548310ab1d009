//! AVX2: eight rows per register, pairs of products summed in 16 bits as long as they fit.

use std::arch::x86_64::*;

use super::format::Format;
use super::kernel::{self, Isa, Job};

/// # Safety
/// As [`kernel::run`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<F: Format>(job: &Job) {
    // SAFETY: promised by the caller.
    unsafe { kernel::run::<Avx2, F>(job) }
}

struct Avx2;

/// Running sums: pairs of columns in 16 bits, and what was moved to 32.
#[derive(Clone, Copy)]
struct Sums {
    narrow: __m256i,
    wide: __m256i,
}

impl Isa for Avx2 {
    const ROWS: usize = 8;
    const TILE: usize = 8;
    type Bytes = __m256i;
    type Floats = __m256;
    type Sum = Sums;

    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> __m256i {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }
    #[inline(always)]
    unsafe fn bits(v: __m256i, shift: usize, mask: u8) -> __m256i {
        // SAFETY: the caller promises the instructions.
        unsafe {
            _mm256_and_si256(
                _mm256_srl_epi16(v, _mm_cvtsi32_si128(shift as i32)),
                _mm256_set1_epi8(mask as i8),
            )
        }
    }
    #[inline(always)]
    unsafe fn shift_up(v: __m256i) -> __m256i {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm256_slli_epi16(v, 4) }
    }
    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: __m256i) {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe { _mm256_storeu_si256(p.cast(), v) }
    }

    #[inline(always)]
    fn prefetch_l1(p: *const u8) {
        // SAFETY: a hint that never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_l2(p: *const u8) {
        // SAFETY: a hint that never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn floats(p: *const f32) -> __m256 {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn halves(p: *const u8) -> __m256 {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn signed_bytes(p: *const u8) -> __m256 {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn six_bits(low: *const u8, low_shift: usize, high: *const u8, high_shift: usize) -> __m256 {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe {
            let (low, high) = (_mm_loadl_epi64(low.cast()), _mm_loadl_epi64(high.cast()));
            let low =
                _mm_and_si128(_mm_srl_epi16(low, _mm_cvtsi32_si128(low_shift as i32)), _mm_set1_epi8(15));
            let high =
                _mm_and_si128(_mm_srl_epi16(high, _mm_cvtsi32_si128(high_shift as i32)), _mm_set1_epi8(3));
            let both = _mm_or_si128(low, _mm_slli_epi16(high, 4));
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(both))
        }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn fnma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm256_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe { _mm256_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn zero() -> Sums {
        // SAFETY: the caller promises the instructions.
        unsafe { Sums { narrow: _mm256_setzero_si256(), wide: _mm256_setzero_si256() } }
    }
    #[inline(always)]
    unsafe fn add<const DEPTH: usize>(sum: Sums, w: __m256i, a: *const i8, flush: bool) -> Sums {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe {
            let (a, ones) = (_mm256_set1_epi32(a.cast::<i32>().read_unaligned()), _mm256_set1_epi16(1));
            if DEPTH == 0 {
                // Full bytes: minus 128 they are signed, and two products fit 16 bits, not more.
                let w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
                let wide = _mm256_add_epi32(sum.wide, _mm256_madd_epi16(pairs, ones));
                return Sums { wide, ..sum };
            }
            let narrow = _mm256_add_epi16(sum.narrow, _mm256_maddubs_epi16(w, a));
            if !flush {
                return Sums { narrow, ..sum };
            }
            let wide = _mm256_add_epi32(sum.wide, _mm256_madd_epi16(narrow, ones));
            Sums { narrow: _mm256_setzero_si256(), wide }
        }
    }
    #[inline(always)]
    unsafe fn total<const DEPTH: usize>(sum: Sums, a: i32) -> __m256 {
        // SAFETY: the caller promises the instructions.
        unsafe {
            let whole =
                if DEPTH == 0 { _mm256_add_epi32(sum.wide, _mm256_set1_epi32(128 * a)) } else { sum.wide };
            _mm256_cvtepi32_ps(whole)
        }
    }
}
