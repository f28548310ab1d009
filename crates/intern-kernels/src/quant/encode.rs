//! Numbers to bytes. Q8_0 and Q4_0 round to the scale of the largest element; the k-quants
//! look for scales that lower the weighted squared error (`search`).

use half::{bf16, f16};

use super::search::{affine_group, symmetric_group};
use super::{BlockType, QK_K, pack_scale_min, unpack_scale_min};

/// Encodes whole blocks of `values`; sizes were checked by the caller.
pub(super) fn encode_blocks(ty: BlockType, values: &[f32], bytes: &mut [u8]) {
    let blocks = values.chunks_exact(ty.block_size()).zip(bytes.chunks_exact_mut(ty.block_bytes()));
    match ty {
        BlockType::F32 => blocks.for_each(|(v, b)| b.copy_from_slice(&v[0].to_le_bytes())),
        BlockType::F16 => blocks.for_each(|(v, b)| b.copy_from_slice(&f16::from_f32(v[0]).to_le_bytes())),
        BlockType::BF16 => blocks.for_each(|(v, b)| b.copy_from_slice(&bf16::from_f32(v[0]).to_le_bytes())),
        BlockType::Q8_0 => blocks.for_each(|(v, b)| q8_0(v, b)),
        BlockType::Q4_0 => blocks.for_each(|(v, b)| q4_0(v, b)),
        BlockType::Q4K => blocks.for_each(|(v, b)| q4_k(v, b)),
        BlockType::Q6K => blocks.for_each(|(v, b)| q6_k(v, b)),
        BlockType::Q5_0 => blocks.for_each(|(v, b)| q5_0(v, b)),
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q5K => {
            panic!("{} is read, not written", ty.name())
        }
    }
}

/// `1 / x`, or 0 where `x` is 0: an all-zero block keeps scale 0.
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

fn put_f16(b: &mut [u8], at: usize, x: f32) -> f32 {
    let half = f16::from_f32(x);
    b[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

fn q8_0(v: &[f32], b: &mut [u8]) {
    let largest = v.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let d = largest / 127.0;
    let id = inverse(d);
    put_f16(b, 0, d);
    for (q, x) in b[2..].iter_mut().zip(v) {
        *q = (x * id).round() as i8 as u8;
    }
}

/// The scale carries the sign of the largest element, which so lands on -8 exactly.
fn q4_0(v: &[f32], b: &mut [u8]) {
    let extreme = v.iter().fold(0.0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
    let d = extreme / -8.0;
    let id = inverse(d);
    put_f16(b, 0, d);
    let nibble = |x: f32| ((x * id + 8.5) as i32).clamp(0, 15) as u8;
    for j in 0..16 {
        b[2 + j] = nibble(v[j]) | (nibble(v[j + 16]) << 4);
    }
}

/// As Q4_0 with 32 levels; fifth bits form a mask before the nibbles.
fn q5_0(v: &[f32], b: &mut [u8]) {
    let extreme = v.iter().fold(0.0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
    let d = extreme / -16.0;
    let id = inverse(d);
    put_f16(b, 0, d);
    let level = |x: f32| ((x * id + 16.5) as i32).clamp(0, 31) as u32;
    let mut fifth = 0u32;
    for j in 0..16 {
        let (low, high) = (level(v[j]), level(v[j + 16]));
        fifth |= (low >> 4) << j | (high >> 4) << (j + 16);
        b[6 + j] = ((low & 15) | ((high & 15) << 4)) as u8;
    }
    b[2..6].copy_from_slice(&fifth.to_le_bytes());
}

fn q4_k(v: &[f32], b: &mut [u8]) {
    let mut scales = [0.0f32; 8];
    let mut mins = [0.0f32; 8];
    for (j, group) in v.chunks_exact(32).enumerate() {
        // Large elements matter more, but the group's own size sets a floor.
        let power: f32 = group.iter().map(|x| x * x).sum::<f32>() / 32.0;
        let mut weights = [0.0; 32];
        for (w, x) in weights.iter_mut().zip(group) {
            *w = power.sqrt() + x.abs();
        }
        (scales[j], mins[j]) = affine_group(group, &weights, 15, -1.0, 0.1, 20);
    }
    let largest = |xs: &[f32; 8]| xs.iter().fold(0.0f32, |m, &x| m.max(x));
    let (max_scale, max_min) = (largest(&scales), largest(&mins));
    let six_bits = |x: f32, max: f32| (63.0 * inverse(max) * x).round_ties_even().clamp(0.0, 63.0) as u8;
    pack_scale_min(
        &scales.map(|s| six_bits(s, max_scale)),
        &mins.map(|m| six_bits(m, max_min)),
        &mut b[4..16],
    );
    let d = put_f16(b, 0, max_scale / 63.0);
    let dmin = put_f16(b, 2, max_min / 63.0);

    // Nibbles against the scales as they were stored.
    let mut q = [0u8; QK_K];
    for (j, (group, q)) in v.chunks_exact(32).zip(q.chunks_exact_mut(32)).enumerate() {
        let (scale, min) = unpack_scale_min(j, &b[4..16]);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        if scale == 0.0 {
            continue;
        }
        for (q, x) in q.iter_mut().zip(group) {
            *q = ((x + min) / scale).round_ties_even().clamp(0.0, 15.0) as u8;
        }
    }
    for (pair, out) in q.chunks_exact(64).zip(b[16..].chunks_exact_mut(32)) {
        for (l, out) in out.iter_mut().enumerate() {
            *out = pair[l] | (pair[l + 32] << 4);
        }
    }
}

fn q6_k(v: &[f32], b: &mut [u8]) {
    let mut scales = [0.0f32; 16];
    for (scale, group) in scales.iter_mut().zip(v.chunks_exact(16)) {
        *scale = symmetric_group(group, 32);
    }
    let extreme = scales.iter().fold(0.0f32, |m, &s| if s.abs() > m.abs() { s } else { m });
    b.fill(0);
    if extreme.abs() < 1e-15 {
        return;
    }
    let per_scale = -128.0 / extreme;
    let d = put_f16(b, 208, 1.0 / per_scale);
    let mut q = [32u8; QK_K];
    for (g, (group, q)) in v.chunks_exact(16).zip(q.chunks_exact_mut(16)).enumerate() {
        let scale = (per_scale * scales[g]).round_ties_even().min(127.0) as i8;
        b[192 + g] = scale as u8;
        let step = d * f32::from(scale);
        if step == 0.0 {
            continue;
        }
        for (q, x) in q.iter_mut().zip(group) {
            *q = ((x / step).round_ties_even().clamp(-32.0, 31.0) as i32 + 32) as u8;
        }
    }
    for half in 0..2 {
        let q = &q[half * 128..][..128];
        for i in 0..32 {
            let (q0, q1, q2, q3) = (q[i], q[i + 32], q[i + 64], q[i + 96]);
            b[half * 64 + i] = (q0 & 15) | ((q2 & 15) << 4);
            b[half * 64 + 32 + i] = (q1 & 15) | ((q3 & 15) << 4);
            b[128 + half * 32 + i] = (q0 >> 4) | ((q1 >> 4) << 2) | ((q2 >> 4) << 4) | ((q3 >> 4) << 6);
        }
    }
}
