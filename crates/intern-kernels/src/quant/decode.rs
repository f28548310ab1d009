//! Bytes to numbers, one plain loop per format. `matmul` has vector versions of the hot ones
//! and is tested against these.

use super::{BlockType, QK_K, bf16_at, f16_at, unpack_scale_min};

/// Decodes whole blocks of `bytes` into `out`; sizes were checked by the caller.
pub(crate) fn decode_blocks(ty: BlockType, bytes: &[u8], out: &mut [f32]) {
    let blocks = bytes.chunks_exact(ty.block_bytes()).zip(out.chunks_exact_mut(ty.block_size()));
    match ty {
        BlockType::F32 => blocks.for_each(|(b, o)| o[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        BlockType::F16 => blocks.for_each(|(b, o)| o[0] = f16_at(b, 0)),
        BlockType::BF16 => blocks.for_each(|(b, o)| o[0] = bf16_at(b, 0)),
        BlockType::Q8_0 => blocks.for_each(|(b, o)| q8_0(b, o)),
        BlockType::Q4_0 => blocks.for_each(|(b, o)| nibbles(b, 2, f16_at(b, 0), -8, o)),
        BlockType::Q4_1 => blocks.for_each(|(b, o)| q4_1(b, o)),
        BlockType::Q5_0 => blocks.for_each(|(b, o)| q5(b, 2, -16, 0.0, o)),
        BlockType::Q5_1 => blocks.for_each(|(b, o)| q5(b, 4, 0, f16_at(b, 2), o)),
        BlockType::Q4K => blocks.for_each(|(b, o)| q4_k(b, o)),
        BlockType::Q5K => blocks.for_each(|(b, o)| q5_k(b, o)),
        BlockType::Q6K => blocks.for_each(|(b, o)| q6_k(b, o)),
        BlockType::Q2K => blocks.for_each(|(b, o)| q2_k(b, o)),
        BlockType::Q3K => blocks.for_each(|(b, o)| q3_k(b, o)),
        BlockType::Iq4Nl => blocks.for_each(|(b, o)| table(&b[2..], f16_at(b, 0), &IQ4_NL, o)),
        BlockType::Mxfp4 => blocks.for_each(|(b, o)| table(&b[1..], shared_exponent(b[0]), &E2M1, o)),
    }
}

fn q8_0(b: &[u8], out: &mut [f32]) {
    let d = f16_at(b, 0);
    for (o, &q) in out.iter_mut().zip(&b[2..]) {
        *o = d * f32::from(q as i8);
    }
}

/// Sixteen bytes from `at`: low nibbles are elements 0–15, high ones 16–31.
fn nibbles(b: &[u8], at: usize, d: f32, offset: i32, out: &mut [f32]) {
    for (j, &byte) in b[at..at + 16].iter().enumerate() {
        out[j] = d * (i32::from(byte & 15) + offset) as f32;
        out[j + 16] = d * (i32::from(byte >> 4) + offset) as f32;
    }
}

fn q4_1(b: &[u8], out: &mut [f32]) {
    let min = f16_at(b, 2);
    nibbles(b, 4, f16_at(b, 0), 0, out);
    for o in out {
        *o += min;
    }
}

/// Q5_0 and Q5_1: fifth bits in a 32-bit mask at `at`, nibbles after it.
fn q5(b: &[u8], at: usize, offset: i32, min: f32, out: &mut [f32]) {
    let d = f16_at(b, 0);
    let high = u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    for (j, &byte) in b[at + 4..at + 20].iter().enumerate() {
        let low = i32::from(byte & 15) | (((high >> j) & 1) << 4) as i32;
        let upper = i32::from(byte >> 4) | (((high >> (j + 16)) & 1) << 4) as i32;
        out[j] = d * (low + offset) as f32 + min;
        out[j + 16] = d * (upper + offset) as f32 + min;
    }
}

/// `d, dmin`: f16; 12 bytes of scales and minima; 128 bytes: each 32 hold two groups of 32.
fn q4_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
    for (j, group) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = unpack_scale_min(j, &b[4..16]);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let qs = &b[16 + j / 2 * 32..][..32];
        let shift = 4 * (j % 2);
        for (o, &q) in group.iter_mut().zip(qs) {
            *o = scale * f32::from((q >> shift) & 15) - min;
        }
    }
}

/// As Q4_K with 32 bytes of fifth bits (bit `j` is group `j`'s) before the nibbles.
fn q5_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(b, 0), f16_at(b, 2));
    for (j, group) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = unpack_scale_min(j, &b[4..16]);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let (high, qs) = (&b[16..48], &b[48 + j / 2 * 32..][..32]);
        let shift = 4 * (j % 2);
        for ((o, &q), &h) in group.iter_mut().zip(qs).zip(high) {
            *o = scale * f32::from(((q >> shift) & 15) | (((h >> j) & 1) << 4)) - min;
        }
    }
}

/// 128 bytes of low nibbles, 64 of upper bit pairs, 16 signed scales, `d`: f16.
///
/// Each half of 128 elements is four runs of 32: runs 0 and 2 share nibble bytes, as do 1 and 3.
fn q6_k(b: &[u8], out: &mut [f32]) {
    let d = f16_at(b, 208);
    for half in 0..QK_K / 128 {
        let (low, high) = (&b[half * 64..][..64], &b[128 + half * 32..][..32]);
        let scales = &b[192 + half * 8..][..8];
        for run in 0..4 {
            let nibble_shift = 4 * (run / 2);
            for i in 0..32 {
                let nibble = (low[32 * (run % 2) + i] >> nibble_shift) & 15;
                let pair = (high[i] >> (2 * run)) & 3;
                let q = i32::from(nibble | (pair << 4)) - 32;
                let scale = d * f32::from(scales[2 * run + i / 16] as i8);
                out[half * 128 + run * 32 + i] = scale * q as f32;
            }
        }
    }
}

/// Sixteen bytes of scale (low nibble) and minimum (high), 64 bytes of bit pairs, `d, dmin`: f16.
///
/// Each half of 128 elements is four runs of 32, which share bytes: run `j` has bits `2j, 2j + 1`.
fn q2_k(b: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(b, 80), f16_at(b, 82));
    for (g, group) in out.chunks_exact_mut(16).enumerate() {
        let (scale, min) = (d * f32::from(b[g] & 15), dmin * f32::from(b[g] >> 4));
        let (half, run, first) = (g / 8, g % 8 / 2, g % 2 * 16);
        for (o, &q) in group.iter_mut().zip(&b[16 + 32 * half + first..]) {
            *o = scale * f32::from((q >> (2 * run)) & 3) - min;
        }
    }
}

/// 32 bytes of third bits, 64 of bit pairs (as in Q2_K), 12 of six-bit scales plus 32, `d`: f16.
///
/// Third bit `j` of a byte is that of the `j`-th run of 32; where it is missing, 4 is subtracted.
fn q3_k(b: &[u8], out: &mut [f32]) {
    let d = f16_at(b, 108);
    let packed = &b[96..108];
    for (g, group) in out.chunks_exact_mut(16).enumerate() {
        let low = (packed[g % 8] >> (4 * (g / 8))) & 15;
        let high = (packed[8 + g % 4] >> (2 * (g / 4))) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        let (half, run, first) = (g / 8, g % 8 / 2, g % 2 * 16);
        for (i, o) in group.iter_mut().enumerate() {
            let pair = (b[32 + 32 * half + first + i] >> (2 * run)) & 3;
            let third = (b[first + i] >> (4 * half + run)) & 1;
            *o = scale * (f32::from(pair | third << 2) - 4.0);
        }
    }
}

/// Finer near zero, where weights are dense.
const IQ4_NL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of a four-bit float: sign, two exponent bits, one fraction bit.
const E2M1: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of two to the power `e - 127` (the table holds doubled values).
fn shared_exponent(e: u8) -> f32 {
    match e {
        0 | 1 => f32::from_bits(0x0020_0000 << e),
        _ => f32::from_bits(u32::from(e - 1) << 23),
    }
}

/// Sixteen bytes of indices: low nibbles are elements 0–15, high ones 16–31.
fn table(indices: &[u8], d: f32, values: &[i8; 16], out: &mut [f32]) {
    for (j, &byte) in indices[..16].iter().enumerate() {
        out[j] = d * f32::from(values[usize::from(byte & 15)]);
        out[j + 16] = d * f32::from(values[usize::from(byte >> 4)]);
    }
}
