//! GGUF, the single-file format of llama.cpp: typed metadata, tensor table, aligned data.
//!
//! Versions 2 and 3 are read, 3 is written. [`Gguf`] maps a file and checks its whole
//! table before handing out bytes; [`GgufWriter`] streams, holding one tensor at most.
//! What is inside a quantized block belongs to `intern-kernels`.
//! Specification: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod read;
mod value;
mod write;

pub use read::Gguf;
pub use read::check_bytes;
pub use value::{Array, Value, ValueType};
pub use write::GgufWriter;

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
const DEFAULT_ALIGNMENT: usize = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// ggml's limit.
const MAX_DIMS: usize = 4;

/// One row of the tensor table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Unique within the file, e.g. `blk.0.attn_q.weight`.
    pub name: String,
    /// Row-major, outermost first (the file stores the reverse).
    pub shape: Vec<usize>,
    /// Element or block type.
    pub ggml_type: GgmlType,
    /// From the start of the file's data section, a multiple of the alignment.
    pub offset: u64,
    /// Bytes of data.
    pub nbytes: usize,
}

macro_rules! ggml_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal, $block:literal, $bytes:literal;)*) => {
        /// ggml's tensor element types. Quantized types store blocks along the innermost dimension.
        #[allow(non_camel_case_types, reason = "ggml's own names")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum GgmlType { $($(#[$doc])* $variant,)* }

        impl GgmlType {
            /// Every type known here.
            pub const ALL: &[GgmlType] = &[$(GgmlType::$variant,)*];

            /// The number stored in files.
            #[must_use]
            pub fn id(self) -> u32 {
                match self { $(GgmlType::$variant => $id,)* }
            }

            /// By the number stored in files.
            #[must_use]
            pub fn from_id(id: u32) -> Option<Self> {
                match id { $($id => Some(GgmlType::$variant),)* _ => None }
            }

            /// ggml's name, e.g. `Q4_K`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(GgmlType::$variant => $name,)* }
            }

            /// Elements per block; 1 for plain types.
            #[must_use]
            pub fn block_size(self) -> usize {
                match self { $(GgmlType::$variant => $block,)* }
            }

            /// Bytes per block.
            #[must_use]
            pub fn block_bytes(self) -> usize {
                match self { $(GgmlType::$variant => $bytes,)* }
            }
        }
    };
}

ggml_types! {
    /// 32-bit float.
    F32 = 0, "F32", 1, 4;
    /// IEEE half.
    F16 = 1, "F16", 1, 2;
    /// 4 bits, one scale per 32.
    Q4_0 = 2, "Q4_0", 32, 18;
    /// 4 bits, scale and minimum per 32.
    Q4_1 = 3, "Q4_1", 32, 20;
    /// 5 bits, one scale per 32.
    Q5_0 = 6, "Q5_0", 32, 22;
    /// 5 bits, scale and minimum per 32.
    Q5_1 = 7, "Q5_1", 32, 24;
    /// 8 bits, one scale per 32.
    Q8_0 = 8, "Q8_0", 32, 34;
    /// 2-bit k-quant.
    Q2_K = 10, "Q2_K", 256, 84;
    /// 3-bit k-quant.
    Q3_K = 11, "Q3_K", 256, 110;
    /// 4-bit k-quant.
    Q4_K = 12, "Q4_K", 256, 144;
    /// 5-bit k-quant.
    Q5_K = 13, "Q5_K", 256, 176;
    /// 6-bit k-quant.
    Q6_K = 14, "Q6_K", 256, 210;
    /// 8-bit k-quant, used for activations.
    Q8_K = 15, "Q8_K", 256, 292;
    /// 2.06 bits per weight.
    IQ2_XXS = 16, "IQ2_XXS", 256, 66;
    /// 2.31 bits per weight.
    IQ2_XS = 17, "IQ2_XS", 256, 74;
    /// 3.06 bits per weight.
    IQ3_XXS = 18, "IQ3_XXS", 256, 98;
    /// 1.56 bits per weight.
    IQ1_S = 19, "IQ1_S", 256, 50;
    /// 4 bits, non-linear, per 32.
    IQ4_NL = 20, "IQ4_NL", 32, 18;
    /// 3.44 bits per weight.
    IQ3_S = 21, "IQ3_S", 256, 110;
    /// 2.5 bits per weight.
    IQ2_S = 22, "IQ2_S", 256, 82;
    /// 4.25 bits per weight, non-linear.
    IQ4_XS = 23, "IQ4_XS", 256, 136;
    /// Signed 8-bit.
    I8 = 24, "I8", 1, 1;
    /// Signed 16-bit.
    I16 = 25, "I16", 1, 2;
    /// Signed 32-bit.
    I32 = 26, "I32", 1, 4;
    /// Signed 64-bit.
    I64 = 27, "I64", 1, 8;
    /// 64-bit float.
    F64 = 28, "F64", 1, 8;
    /// 1.75 bits per weight.
    IQ1_M = 29, "IQ1_M", 256, 56;
    /// Brain float.
    BF16 = 30, "BF16", 1, 2;
    /// Ternary, 1.69 bits per weight.
    TQ1_0 = 34, "TQ1_0", 256, 54;
    /// Ternary, 2.06 bits per weight.
    TQ2_0 = 35, "TQ2_0", 256, 66;
    /// 4-bit float with a shared exponent per 32.
    MXFP4 = 39, "MXFP4", 32, 17;
    /// 4-bit float with 8-bit float scales, four per 64.
    NVFP4 = 40, "NVFP4", 64, 36;
    /// 1 bit, one scale per 128.
    Q1_0 = 41, "Q1_0", 128, 18;
}

impl GgmlType {
    /// Bytes of a tensor of this type and shape (outermost first); `None` if the innermost
    /// dimension is not whole blocks or the count overflows.
    #[must_use]
    pub fn nbytes(self, shape: &[usize]) -> Option<usize> {
        let inner = shape.last().copied().unwrap_or(1);
        if inner % self.block_size() != 0 {
            return None;
        }
        let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        (elements / self.block_size()).checked_mul(self.block_bytes())
    }
}
