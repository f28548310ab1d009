//! GGUF's block formats: how `n` numbers become bytes and come back.
//!
//! A row of a weight matrix is a run of blocks; every block is decoded alone, so a matrix
//! may be cut at any row. Layouts are ggml's, so files are exchanged with llama.cpp; the
//! searches for scales are written from their published descriptions. What is quantized
//! how is `intern-engine`'s business.

mod decode;
mod encode;
mod kquants;
mod search;

use half::{bf16, f16};

pub(crate) use decode::decode_blocks;

/// Numbers per super-block of the k-quants.
pub const QK_K: usize = 256;

/// How the elements of a matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockType {
    /// 32-bit floats.
    F32,
    /// IEEE half floats.
    F16,
    /// The upper half of 32-bit floats.
    BF16,
    /// 32 signed bytes and one f16 scale.
    Q8_0,
    /// 32 nibbles minus 8 and one f16 scale.
    Q4_0,
    /// 32 nibbles, one f16 scale and one f16 minimum.
    Q4_1,
    /// 32 five-bit numbers minus 16 and one f16 scale.
    Q5_0,
    /// 32 five-bit numbers, one f16 scale and one f16 minimum.
    Q5_1,
    /// 256 nibbles in eight groups, each with a 6-bit scale and a 6-bit minimum.
    Q4K,
    /// 256 five-bit numbers in eight groups, scales and minima as in [`BlockType::Q4K`].
    Q5K,
    /// 256 six-bit numbers minus 32 in sixteen groups, each with an 8-bit scale.
    Q6K,
    /// 256 two-bit numbers in sixteen groups, each with a 4-bit scale and a 4-bit minimum.
    Q2K,
    /// 256 three-bit numbers minus 4 in sixteen groups, each with a 6-bit scale.
    Q3K,
    /// 32 indices into a table of sixteen values and one f16 scale.
    Iq4Nl,
    /// 32 four-bit floats (E2M1) and one shared exponent.
    Mxfp4,
}

impl BlockType {
    /// Every type, for tests and tables.
    pub const ALL: [Self; 15] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Q2K,
        Self::Q3K,
        Self::Iq4Nl,
        Self::Mxfp4,
    ];

    /// Elements per block; a row's length must be a multiple of it.
    #[must_use]
    pub const fn block_size(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Iq4Nl | Self::Mxfp4 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => QK_K,
        }
    }

    /// Bytes per block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8_0 => 34,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Mxfp4 => 17,
        }
    }

    /// Bytes of a row of `columns` elements, which must be whole blocks.
    #[must_use]
    pub const fn row_bytes(self, columns: usize) -> usize {
        assert!(columns.is_multiple_of(self.block_size()), "a row is whole blocks");
        columns / self.block_size() * self.block_bytes()
    }

    /// ggml's name, as in `Q4_K`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q8_0 => "Q8_0",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Iq4Nl => "IQ4_NL",
            Self::Mxfp4 => "MXFP4",
        }
    }

    /// Whether [`quantize`] can write it.
    #[must_use]
    pub const fn can_encode(self) -> bool {
        !matches!(self, Self::Q2K | Self::Q3K | Self::Iq4Nl | Self::Mxfp4)
    }
}

/// Decodes whole blocks: `bytes` holds `out.len()` elements of type `ty`.
///
/// Panics when the sizes do not fit.
pub fn dequantize(ty: BlockType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), ty.row_bytes(out.len()), "bytes of {} elements of {}", out.len(), ty.name());
    decode_blocks(ty, bytes, out);
}

/// Encodes `values` (whole blocks) as type `ty`.
///
/// Panics when the sizes do not fit or [`BlockType::can_encode`] is false.
pub fn quantize(ty: BlockType, values: &[f32], bytes: &mut [u8]) {
    assert_eq!(
        bytes.len(),
        ty.row_bytes(values.len()),
        "bytes of {} elements of {}",
        values.len(),
        ty.name()
    );
    encode::encode_blocks(ty, values, None, bytes);
}

/// As [`quantize`] for one row: an error in column `i` counts `importance[i]` times.
///
/// Panics as [`quantize`] does, or when there is not one importance per value.
pub fn quantize_weighted(ty: BlockType, values: &[f32], importance: &[f32], bytes: &mut [u8]) {
    assert_eq!(bytes.len(), ty.row_bytes(values.len()), "bytes of {} {}", values.len(), ty.name());
    assert_eq!(values.len(), importance.len(), "one importance per value");
    encode::encode_blocks(ty, values, Some(importance), bytes);
}

/// The dot product of one stored row with `x`, summed in f64: the reference for [`crate::matmul`].
#[must_use]
pub fn dot(ty: BlockType, row: &[u8], x: &[f32]) -> f64 {
    let mut w = vec![0.0; x.len()];
    dequantize(ty, row, &mut w);
    w.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum()
}

/// The f16 at `bytes[at..at + 2]`.
#[inline]
fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The bf16 at `bytes[at..at + 2]`.
#[inline]
fn bf16_at(bytes: &[u8], at: usize) -> f32 {
    bf16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Scale and minimum of group `j` in the 12 packed bytes of Q4_K and Q5_K.
///
/// Groups 0–3 keep six bits in one byte; groups 4–7 keep four, their top two bits ride in
/// the upper bits of the bytes of groups 0–3.
#[inline]
pub(crate) fn unpack_scale_min(j: usize, packed: &[u8]) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let scale = (packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4);
        let min = (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4);
        (scale, min)
    }
}

/// The inverse of [`unpack_scale_min`] for all eight groups.
fn pack_scale_min(scales: &[u8; 8], mins: &[u8; 8], packed: &mut [u8]) {
    for j in 0..4 {
        packed[j] = scales[j] | ((scales[j + 4] >> 4) << 6);
        packed[j + 4] = mins[j] | ((mins[j + 4] >> 4) << 6);
        packed[j + 8] = (scales[j + 4] & 15) | ((mins[j + 4] & 15) << 4);
    }
}

#[cfg(test)]
mod tests;
