//! The portable version, sixteen rows at a time: the reference the others equal bit for bit.

use half::f16;

use super::GROUP;
use super::format::Format;
use super::kernel::{self, Isa, Job};

/// # Safety
/// As [`kernel::run`].
pub(super) unsafe fn run<F: Format>(job: &Job) {
    // SAFETY: promised by the caller.
    unsafe { kernel::run::<Plain, F>(job) }
}

struct Plain;

type Lanes<T> = [T; GROUP];

fn each<T>(f: impl FnMut(usize) -> T) -> Lanes<T> {
    std::array::from_fn(f)
}

impl Isa for Plain {
    const ROWS: usize = GROUP;
    const TILE: usize = 1;
    type Bytes = [u8; 4 * GROUP];
    type Floats = Lanes<f32>;
    type Sum = Lanes<i32>;

    unsafe fn bytes(p: *const u8) -> Self::Bytes {
        // SAFETY: the caller promises the memory.
        unsafe { p.cast::<Self::Bytes>().read() }
    }
    unsafe fn bits(v: Self::Bytes, shift: usize, mask: u8) -> Self::Bytes {
        v.map(|b| (b >> shift) & mask)
    }
    unsafe fn shift_up(v: Self::Bytes) -> Self::Bytes {
        v.map(|b| b << 4)
    }
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        std::array::from_fn(|i| a[i] | b[i])
    }
    unsafe fn store_bytes(p: *mut u8, v: Self::Bytes) {
        // SAFETY: the caller promises the memory.
        unsafe { p.cast::<Self::Bytes>().write(v) }
    }

    fn prefetch_l1(_: *const u8) {}
    #[inline(always)]
    fn prefetch_l2(_: *const u8) {}

    unsafe fn floats(p: *const f32) -> Lanes<f32> {
        // SAFETY: the caller promises the memory.
        unsafe { p.cast::<Lanes<f32>>().read() }
    }
    unsafe fn halves(p: *const u8) -> Lanes<f32> {
        // SAFETY: the caller promises the memory.
        let bits: Lanes<[u8; 2]> = unsafe { p.cast::<Lanes<[u8; 2]>>().read() };
        bits.map(|b| f16::from_le_bytes(b).to_f32())
    }
    unsafe fn signed_bytes(p: *const u8) -> Lanes<f32> {
        // SAFETY: the caller promises the memory.
        unsafe { p.cast::<Lanes<i8>>().read() }.map(f32::from)
    }
    unsafe fn six_bits(low: *const u8, low_shift: usize, high: *const u8, high_shift: usize) -> Lanes<f32> {
        // SAFETY: the caller promises the memory.
        let (low, high) = unsafe { (p_read(low), p_read(high)) };
        each(|i| f32::from(((low[i] >> low_shift) & 15) | (((high[i] >> high_shift) & 3) << 4)))
    }
    unsafe fn splat(x: f32) -> Lanes<f32> {
        [x; GROUP]
    }
    unsafe fn mul(a: Lanes<f32>, b: Lanes<f32>) -> Lanes<f32> {
        each(|i| a[i] * b[i])
    }
    unsafe fn fma(a: Lanes<f32>, b: Lanes<f32>, c: Lanes<f32>) -> Lanes<f32> {
        each(|i| a[i].mul_add(b[i], c[i]))
    }
    unsafe fn fnma(a: Lanes<f32>, b: Lanes<f32>, c: Lanes<f32>) -> Lanes<f32> {
        each(|i| (-a[i]).mul_add(b[i], c[i]))
    }
    unsafe fn store(p: *mut f32, v: Lanes<f32>) {
        // SAFETY: the caller promises the memory.
        unsafe { p.cast::<Lanes<f32>>().write(v) }
    }

    unsafe fn zero() -> Lanes<i32> {
        [0; GROUP]
    }
    unsafe fn add<const DEPTH: usize>(sum: Lanes<i32>, w: Self::Bytes, a: *const i8, _: bool) -> Lanes<i32> {
        // SAFETY: the caller promises the memory.
        let a: [i32; 4] = unsafe { a.cast::<[i8; 4]>().read() }.map(i32::from);
        each(|i| sum[i] + (0..4).map(|c| i32::from(w[4 * i + c]) * a[c]).sum::<i32>())
    }
    unsafe fn total<const DEPTH: usize>(sum: Lanes<i32>, _: i32) -> Lanes<f32> {
        sum.map(|s| s as f32)
    }
}

unsafe fn p_read(p: *const u8) -> Lanes<u8> {
    // SAFETY: promised by the caller.
    unsafe { p.cast::<Lanes<u8>>().read() }
}
