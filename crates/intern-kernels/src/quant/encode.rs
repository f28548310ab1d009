//! Numbers to bytes. Without importances Q8_0, Q4_0 and Q5_0 round to the scale of the largest
//! element, as ggml does; everything else looks for scales that lower the weighted squared error.

use half::{bf16, f16};

use super::search::{Grid, affine_group, inverse, level, symmetric_group};
use super::{BlockType, kquants};

/// Encodes whole blocks of `values`, one importance per value if any; sizes were checked by the caller.
pub(super) fn encode_blocks(ty: BlockType, values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the instructions.
        return unsafe { encode_avx2(ty, values, importance, bytes) };
    }
    encode(ty, values, importance, bytes);
}

/// The same code compiled for wider vectors; it rounds alike.
///
/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn encode_avx2(ty: BlockType, values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    encode(ty, values, importance, bytes);
}

#[inline(always)]
fn encode(ty: BlockType, values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    let n = ty.block_size();
    // A loop, not closures: only what is inlined here is compiled for the caller's vectors.
    for (i, (v, b)) in values.chunks_exact(n).zip(bytes.chunks_exact_mut(ty.block_bytes())).enumerate() {
        let importance = importance.map(|w| &w[i * n..(i + 1) * n]);
        match ty {
            BlockType::F32 => b.copy_from_slice(&v[0].to_le_bytes()),
            BlockType::F16 => b.copy_from_slice(&f16::from_f32(v[0]).to_le_bytes()),
            BlockType::BF16 => b.copy_from_slice(&bf16::from_f32(v[0]).to_le_bytes()),
            BlockType::Q8_0 => q8_0(v, b),
            BlockType::Q4_0 => q4_0(v, importance, b),
            BlockType::Q5_0 => q5_0(v, importance, b),
            BlockType::Q4_1 => q4_1(v, importance, b),
            BlockType::Q5_1 => q5_1(v, importance, b),
            BlockType::Q4K => kquants::q4_k(v, importance, b),
            BlockType::Q5K => kquants::q5_k(v, importance, b),
            BlockType::Q6K => kquants::q6_k(v, importance, b),
            BlockType::Q2K | BlockType::Q3K | BlockType::Iq4Nl | BlockType::Mxfp4 => {
                panic!("{} is read, not written", ty.name())
            }
        }
    }
}

fn put_f16(b: &mut [u8], at: usize, x: f32) -> f32 {
    let half = f16::from_f32(x);
    b[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

#[inline(always)]
fn q8_0(v: &[f32], b: &mut [u8]) {
    let largest = v.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let d = largest / 127.0;
    let id = inverse(d);
    put_f16(b, 0, d);
    for (q, x) in b[2..].iter_mut().zip(v) {
        *q = (x * id).round() as i8 as u8;
    }
}

/// Importances of a block of 32, more for large elements.
#[inline(always)]
fn element_weights(v: &[f32], importance: &[f32]) -> [f32; 32] {
    let power = v.iter().map(|x| x * x).sum::<f32>() / 32.0;
    std::array::from_fn(|i| importance[i] * (power + v[i] * v[i]).sqrt())
}

/// Integers `0..2 * half` around `half`, and the scale put at `b[0..2]`.
///
/// Without importances the scale carries the sign of the largest element, which so lands on
/// `-half` exactly.
#[inline(always)]
fn symmetric(v: &[f32], importance: Option<&[f32]>, half: f32, b: &mut [u8]) -> [u8; 32] {
    let top = 2.0 * half - 1.0;
    match importance {
        None => {
            let extreme = v.iter().fold(0.0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
            let d = extreme / -half;
            let id = inverse(d);
            put_f16(b, 0, d);
            std::array::from_fn(|i| (v[i] * id + half + 0.5).max(0.0).min(top) as u8)
        }
        Some(importance) => {
            let d = put_f16(b, 0, symmetric_group(v, &element_weights(v, importance), half));
            let id = inverse(d);
            std::array::from_fn(|i| (level(v[i] * id, -half, half - 1.0) + half) as u8)
        }
    }
}

/// Integers `0..=levels`, scale at `b[0..2]` and minimum at `b[2..4]`.
#[inline(always)]
fn affine(v: &[f32], importance: Option<&[f32]>, levels: f32, b: &mut [u8]) -> [u8; 32] {
    let weights = importance.map_or([1.0; 32], |w| element_weights(v, w));
    let grid = Grid { first: -0.9, step: 0.05, steps: 36 };
    let (scale, min) = affine_group(v, &weights, levels, grid, true);
    let (d, min) = (put_f16(b, 0, scale), put_f16(b, 2, min));
    let id = inverse(d);
    std::array::from_fn(|i| level((v[i] - min) * id, 0.0, levels) as u8)
}

/// Sixteen bytes: low nibbles are elements 0–15, high ones 16–31.
#[inline(always)]
fn put_nibbles(q: &[u8; 32], b: &mut [u8]) {
    for j in 0..16 {
        b[j] = (q[j] & 15) | ((q[j + 16] & 15) << 4);
    }
}

/// The fifth bits as a mask.
#[inline(always)]
fn put_fifths(q: &[u8; 32], b: &mut [u8]) {
    let mask = q.iter().enumerate().fold(0u32, |mask, (j, q)| mask | u32::from(q >> 4) << j);
    b[..4].copy_from_slice(&mask.to_le_bytes());
}

#[inline(always)]
fn q4_0(v: &[f32], importance: Option<&[f32]>, b: &mut [u8]) {
    let q = symmetric(v, importance, 8.0, b);
    put_nibbles(&q, &mut b[2..]);
}

#[inline(always)]
fn q5_0(v: &[f32], importance: Option<&[f32]>, b: &mut [u8]) {
    let q = symmetric(v, importance, 16.0, b);
    put_fifths(&q, &mut b[2..]);
    put_nibbles(&q, &mut b[6..]);
}

#[inline(always)]
fn q4_1(v: &[f32], importance: Option<&[f32]>, b: &mut [u8]) {
    let q = affine(v, importance, 15.0, b);
    put_nibbles(&q, &mut b[4..]);
}

#[inline(always)]
fn q5_1(v: &[f32], importance: Option<&[f32]>, b: &mut [u8]) {
    let q = affine(v, importance, 31.0, b);
    put_fifths(&q, &mut b[4..]);
    put_nibbles(&q, &mut b[8..]);
}
