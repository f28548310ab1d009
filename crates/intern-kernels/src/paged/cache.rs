//! Keys and values of one layer, and how new ones are stored.
//!
//! Floats are kept as they are rounded. Integers of eight bits share one scale per token and
//! head, kept beside them in f32: attention multiplies it into scores and shares, so that the
//! products themselves run over plain integers widened to f32.

use half::f16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;

use super::Shape;
use crate::multiversion;
use crate::pool::{Pool, Shareable};

/// What a cache may hold.
pub trait KvElement: Copy + Send + Sync {
    /// Whether every vector has a scale.
    const SCALED: bool;
    /// `n` zeros in pages that are only mapped when first written.
    fn zeros(n: usize) -> Vec<Self>;
    /// What the elements of `vector` are multiplied by before they are rounded, and afterwards.
    fn scales(vector: &[f32]) -> (f32, f32);
    /// Rounds to the stored type.
    fn from_f32(x: f32) -> Self;
    /// `values` as f32, through `scratch` where they are not already.
    fn widen<'a>(values: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32];
}

impl KvElement for f32 {
    const SCALED: bool = false;
    fn zeros(n: usize) -> Vec<Self> {
        vec![0.0; n]
    }
    fn scales(_: &[f32]) -> (f32, f32) {
        (1.0, 1.0)
    }
    fn from_f32(x: f32) -> Self {
        x
    }
    fn widen<'a>(values: &'a [Self], _: &'a mut Vec<f32>) -> &'a [f32] {
        values
    }
}

impl KvElement for f16 {
    const SCALED: bool = false;
    fn zeros(n: usize) -> Vec<Self> {
        vec![0u16; n].reinterpret_into()
    }
    fn scales(_: &[f32]) -> (f32, f32) {
        (1.0, 1.0)
    }
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
    fn widen<'a>(values: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.resize(values.len(), 0.0);
        widen_f16(values.reinterpret_cast(), scratch);
        scratch
    }
}

impl KvElement for i8 {
    const SCALED: bool = true;
    fn zeros(n: usize) -> Vec<Self> {
        vec![0; n]
    }
    fn scales(vector: &[f32]) -> (f32, f32) {
        let largest = vector.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        // Below, the inverse would not be finite; such a vector is zero for all that matters.
        if largest < f32::MIN_POSITIVE * 127.0 { (0.0, 0.0) } else { (127.0 / largest, largest / 127.0) }
    }
    fn from_f32(x: f32) -> Self {
        x.round_ties_even() as i8
    }
    fn widen<'a>(values: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.resize(values.len(), 0.0);
        widen_i8(values, scratch);
        scratch
    }
}

multiversion! {
    /// `out = values`, given as bits: in registers, where `half` calls a function every eight.
    fn widen_f16(values: &[u16], out: &mut [f32]) {
        for (out, &value) in out.iter_mut().zip(values) {
            let magnitude = u32::from(value & 0x7fff);
            // The exponents differ by 112; those of ones, of what is not finite, by twice as much.
            let excess = if magnitude < 0x7c00 { 112 << 23 } else { 224 << 23 };
            let normal = (magnitude << 13) + excess;
            // Below the normal range: with an exponent one larger, less the bit that was implied.
            let small = f32::from_bits((magnitude << 13) + (113 << 23)) - f32::from_bits(113 << 23);
            let bits = if magnitude < 0x400 { small.to_bits() } else { normal };
            *out = f32::from_bits(bits | (u32::from(value & 0x8000) << 16));
        }
    }
}

multiversion! {
    /// `out = values`.
    fn widen_i8(values: &[i8], out: &mut [f32]) {
        for (out, &value) in out.iter_mut().zip(values) {
            *out = f32::from(value);
        }
    }
}

/// The cache of one layer.
#[derive(Clone, Debug)]
pub struct LayerCache<T> {
    /// Blocks of `(G, D, S)`.
    pub(super) keys: Vec<T>,
    /// Blocks of `(G, S, D)`.
    pub(super) values: Vec<T>,
    /// Blocks of `(G, S)`; empty where vectors have no scale.
    pub(super) key_scales: Vec<f32>,
    /// As `key_scales`.
    pub(super) value_scales: Vec<f32>,
}

impl<T: KvElement> LayerCache<T> {
    /// Room for `blocks` blocks. Memory is only mapped when first written.
    #[must_use]
    pub fn new(shape: &Shape, blocks: usize) -> Self {
        let elements = blocks * shape.block_len();
        let scales = if T::SCALED { elements / shape.head_dim } else { 0 };
        Self {
            keys: T::zeros(elements),
            values: T::zeros(elements),
            key_scales: vec![0.0; scales],
            value_scales: vec![0.0; scales],
        }
    }

    /// Scales of head `group` in block `block`, `(S)`.
    pub(super) fn scales_of<'a>(
        &self,
        shape: &Shape,
        scales: &'a [f32],
        block: u32,
        group: usize,
    ) -> &'a [f32] {
        let s = shape.block_size;
        &scales[(block as usize * shape.num_kv_heads + group) * s..][..s]
    }
}

/// One token whose key and value are to be stored.
#[derive(Clone, Copy, Debug)]
pub struct NewRow<'a> {
    /// Holds the G keys and values somewhere, see `offsets` of [`store`].
    pub kv: &'a [f32],
    /// Blocks of the sequence; covers `position`.
    pub table: &'a [u32],
    /// Index in the sequence.
    pub position: usize,
}

/// Stores keys and values of new positions.
///
/// Key of head `g` of a row is `kv[offsets.0[g]..][..D]`, its value `kv[offsets.1[g]..][..D]`.
pub fn store<T: KvElement>(
    pool: &Pool,
    shape: &Shape,
    cache: &mut LayerCache<T>,
    rows: &[NewRow],
    offsets: (&[usize], &[usize]),
) {
    let (d, s, len) = (shape.head_dim, shape.block_size, shape.block_len());
    let blocks = cache.keys.len() / len;
    assert!(rows.iter().all(|r| (r.table[r.position / s] as usize) < blocks), "blocks lie in the cache");
    let (keys, values) = (Shareable(cache.keys.as_mut_ptr()), Shareable(cache.values.as_mut_ptr()));
    let scales = (Shareable(cache.key_scales.as_mut_ptr()), Shareable(cache.value_scales.as_mut_ptr()));
    let one = |head: usize| {
        for row in rows {
            let (block, slot) = (row.table[row.position / s] as usize, row.position % s);
            let base = block * len + head * d * s;
            let (k, v) = (&row.kv[offsets.0[head]..][..d], &row.kv[offsets.1[head]..][..d]);
            let ((k_up, k_down), (v_up, v_down)) = (T::scales(k), T::scales(v));
            for i in 0..d {
                // SAFETY: inside the block, which is inside the cache; heads do not share elements.
                unsafe {
                    *keys.get().add(base + i * s + slot) = T::from_f32(k[i] * k_up);
                    *values.get().add(base + slot * d + i) = T::from_f32(v[i] * v_up);
                }
            }
            if T::SCALED {
                let at = (block * shape.num_kv_heads + head) * s + slot;
                // SAFETY: as above; there is one scale per block, head and slot.
                unsafe {
                    *scales.0.get().add(at) = k_down;
                    *scales.1.get().add(at) = v_down;
                }
            }
        }
    };
    if rows.len() < 8 {
        (0..shape.num_kv_heads).for_each(one);
    } else {
        pool.run(shape.num_kv_heads, one);
    }
}

/// What comes back for `vector` from a cache of `T`: the plain version of storing and reading.
#[must_use]
pub fn rounded<T: KvElement>(vector: &[f32]) -> Vec<f32> {
    let (up, down) = T::scales(vector);
    let stored: Vec<T> = vector.iter().map(|x| T::from_f32(x * up)).collect();
    let mut scratch = Vec::new();
    T::widen(&stored, &mut scratch).iter().map(|x| x * down).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_widens_to_itself() {
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let mut scratch = Vec::new();
        for (value, wide) in all.iter().zip(f16::widen(&all, &mut scratch)) {
            let same = wide.to_bits() == value.to_f32().to_bits();
            assert!(same || (value.is_nan() && wide.is_nan()), "{:#x}: {wide}", value.to_bits());
        }
    }
}
