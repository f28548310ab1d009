//! bf16 beside f32: rounding in place, and storage at half the size.
//!
//! A rounded value is kept as an f32 whose low 16 bits are zero, so every f32 kernel takes it as it
//! is, products of two are exact, and [`pack`] loses nothing.

use crate::multiversion;
use rayon::prelude::*;

/// Elements of one task.
const BLOCK: usize = 1 << 14;

/// The nearest bf16, ties to even; not-a-number stays one.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000;
    if x.is_nan() { bits | 0x0040_0000 } else { nearest }
}

multiversion! {
    fn round_block(x: &mut [f32]) {
        for x in x.iter_mut() {
            *x = f32::from_bits(rounded(*x));
        }
    }
}

multiversion! {
    fn round_block_into(x: &[f32], y: &mut [f32]) {
        for (x, y) in x.iter().zip(y) {
            *y = f32::from_bits(rounded(*x));
        }
    }
}

multiversion! {
    fn pack_block(x: &[f32], packed: &mut [u16]) {
        for (x, packed) in x.iter().zip(packed) {
            *packed = (rounded(*x) >> 16) as u16;
        }
    }
}

multiversion! {
    fn unpack_block(packed: &[u16], x: &mut [f32]) {
        for (packed, x) in packed.iter().zip(x) {
            *x = f32::from_bits(u32::from(*packed) << 16);
        }
    }
}

/// Rounds to bf16.
pub fn round(x: &mut [f32]) {
    x.par_chunks_mut(BLOCK).for_each(round_block);
}

/// `y = x`, rounded to bf16; slices of one length.
pub fn round_into(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "slices of one length");
    x.par_chunks(BLOCK).zip(y.par_chunks_mut(BLOCK)).for_each(|(x, y)| round_block_into(x, y));
}

/// Stores `x`, rounded to bf16, in half the bytes; slices of one length.
pub fn pack(x: &[f32], packed: &mut [u16]) {
    assert_eq!(x.len(), packed.len(), "slices of one length");
    x.par_chunks(BLOCK).zip(packed.par_chunks_mut(BLOCK)).for_each(|(x, packed)| pack_block(x, packed));
}

/// What [`pack`] stored; slices of one length.
pub fn unpack(packed: &[u16], x: &mut [f32]) {
    assert_eq!(x.len(), packed.len(), "slices of one length");
    packed.par_chunks(BLOCK).zip(x.par_chunks_mut(BLOCK)).for_each(|(packed, x)| unpack_block(packed, x));
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn rounds_as_the_half_crate_does() {
        let special = [0.0, -0.0, 1.0, f32::MAX, f32::MIN_POSITIVE, f32::INFINITY, f32::NEG_INFINITY, 1e-40];
        // Every pattern of the bits that decide, with all exponents.
        let patterns = (0..=u32::from(u16::MAX))
            .flat_map(|high| [0, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| f32::from_bits(high << 16 | low)));
        for x in special.into_iter().chain(patterns) {
            let expect = bf16::from_f32(x).to_f32();
            let got = f32::from_bits(rounded(x));
            assert!(got.to_bits() == expect.to_bits() || (got.is_nan() && expect.is_nan()), "{x:e}");
        }
    }

    #[test]
    fn packing_keeps_rounded_values() {
        let mut x = crate::train::testing::random(3 * BLOCK + 5, 1);
        let mut y = vec![0.0; x.len()];
        round_into(&x, &mut y);
        assert_ne!(x, y);
        round(&mut x);
        assert_eq!(x, y);
        let mut packed = vec![0; x.len()];
        pack(&x, &mut packed);
        unpack(&packed, &mut y);
        assert_eq!(x, y);
    }
}
