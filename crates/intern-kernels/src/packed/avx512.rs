//! AVX-512 with VNNI: sixteen rows per register, four products per instruction and row.

use std::arch::x86_64::*;

use super::format::Format;
use super::kernel::{self, Isa, Job};

/// # Safety
/// As [`kernel::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run<F: Format>(job: &Job) {
    // SAFETY: promised by the caller.
    unsafe { kernel::run::<Avx512, F>(job) }
}

struct Avx512;

impl Isa for Avx512 {
    const ROWS: usize = 16;
    const TILE: usize = 8;
    type Bytes = __m512i;
    type Floats = __m512;
    type Sum = __m512i;

    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> __m512i {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn bits(v: __m512i, shift: usize, mask: u8) -> __m512i {
        // SAFETY: the caller promises the instructions.
        unsafe {
            _mm512_and_si512(
                _mm512_srl_epi16(v, _mm_cvtsi32_si128(shift as i32)),
                _mm512_set1_epi8(mask as i8),
            )
        }
    }
    #[inline(always)]
    unsafe fn shift_up(v: __m512i) -> __m512i {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm512_slli_epi16(v, 4) }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: __m512i) {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe { _mm512_storeu_si512(p.cast(), v) }
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
    unsafe fn floats(p: *const f32) -> __m512 {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn halves(p: *const u8) -> __m512 {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn signed_bytes(p: *const u8) -> __m512 {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn six_bits(low: *const u8, low_shift: usize, high: *const u8, high_shift: usize) -> __m512 {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe {
            let (low, high) = (_mm_loadu_si128(low.cast()), _mm_loadu_si128(high.cast()));
            let low =
                _mm_and_si128(_mm_srl_epi16(low, _mm_cvtsi32_si128(low_shift as i32)), _mm_set1_epi8(15));
            let high =
                _mm_and_si128(_mm_srl_epi16(high, _mm_cvtsi32_si128(high_shift as i32)), _mm_set1_epi8(3));
            let both = _mm_or_si128(low, _mm_slli_epi16(high, 4));
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(both))
        }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn fnma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm512_fnmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn zero() -> __m512i {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn add<const DEPTH: usize>(sum: __m512i, w: __m512i, a: *const i8, _: bool) -> __m512i {
        // SAFETY: the caller promises the memory and the instructions.
        unsafe { _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(a.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn total<const DEPTH: usize>(sum: __m512i, _: i32) -> __m512 {
        // SAFETY: the caller promises the instructions.
        unsafe { _mm512_cvtepi32_ps(sum) }
    }
}
