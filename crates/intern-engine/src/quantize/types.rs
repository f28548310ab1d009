//! Which tensor gets which block type: llama.cpp's mixtures.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result};
use intern_kernels::quant::BlockType;
use serde::{Deserialize, Serialize};

/// What most matrices become.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(non_camel_case_types, reason = "llama.cpp's own names")]
pub enum QuantType {
    /// 16-bit floats.
    F16,
    /// 8.5 bits per weight, practically lossless.
    Q8_0,
    /// 6.6 bits per weight.
    Q6_K,
    /// 5.5 bits per weight, with Q6_K where it matters.
    Q5_K_M,
    /// 4.5 bits per weight in k-quant blocks, with Q6_K where it matters.
    #[serde(alias = "q4_k", alias = "Q4_K")]
    Q4_K_M,
    /// 4.5 bits per weight, one scale per 32.
    Q4_0,
}

impl QuantType {
    /// Every type.
    pub const ALL: [Self; 6] = [Self::F16, Self::Q8_0, Self::Q6_K, Self::Q5_K_M, Self::Q4_K_M, Self::Q4_0];

    fn block_type(self) -> BlockType {
        match self {
            Self::F16 => BlockType::F16,
            Self::Q8_0 => BlockType::Q8_0,
            Self::Q6_K => BlockType::Q6K,
            Self::Q5_K_M => BlockType::Q5K,
            Self::Q4_K_M => BlockType::Q4K,
            Self::Q4_0 => BlockType::Q4_0,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q6_K => "q6_k",
            Self::Q5_K_M => "q5_k_m",
            Self::Q4_K_M => "q4_k_m",
            Self::Q4_0 => "q4_0",
        }
    }

    /// llama.cpp's number for the mixture, `general.file_type`.
    pub(super) fn file_type(self) -> u32 {
        match self {
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4_K_M => 15,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
        }
    }

    /// Whether errors are large enough that importances and scaling matter.
    pub(super) fn is_coarse(self) -> bool {
        !matches!(self, Self::F16 | Self::Q8_0)
    }
}

impl fmt::Display for QuantType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for QuantType {
    type Err = anyhow::Error;
    fn from_str(text: &str) -> Result<Self> {
        let name = match text.to_lowercase().as_str() {
            "q4_k" => "q4_k_m".to_owned(),
            "q5_k" => "q5_k_m".to_owned(),
            other => other.to_owned(),
        };
        let all: Vec<&str> = Self::ALL.into_iter().map(Self::name).collect();
        Self::ALL
            .into_iter()
            .find(|t| t.name() == name)
            .with_context(|| format!("unknown quantization type {text}\nhint: one of {}", all.join(", ")))
    }
}

/// What the choice looks at besides a tensor's name.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    pub num_layers: usize,
    /// The embedding serves as output head.
    pub tied: bool,
    /// Fewer key/value heads than query heads.
    pub grouped: bool,
    /// There are importances.
    pub weighted: bool,
}

/// The type the mixture has for matrix `name` (as in `blk.3.attn_v.weight`), and the one its
/// rows of `cols` elements can have.
pub(super) fn choose(quant: QuantType, name: &str, cols: usize, facts: Facts) -> (BlockType, BlockType) {
    let wanted = wanted(quant, name, facts);
    let mut ty = wanted;
    if !cols.is_multiple_of(ty.block_size()) {
        ty = match ty {
            BlockType::Q4K => BlockType::Q5_0,
            BlockType::Q5K => BlockType::Q5_1,
            BlockType::Q6K => BlockType::Q8_0,
            other => other,
        };
    }
    if !cols.is_multiple_of(ty.block_size()) {
        ty = BlockType::F16;
    }
    (wanted, ty)
}

fn wanted(quant: QuantType, name: &str, facts: Facts) -> BlockType {
    if !quant.is_coarse() {
        return quant.block_type();
    }
    let name = name.strip_suffix(".weight").unwrap_or(name);
    let Some((layer, part)) = layer_part(name) else {
        return match name {
            "output" => BlockType::Q6K,
            "token_embd" if facts.tied => BlockType::Q6K,
            // Ours: an embedding costs no time, and small models feel its errors.
            "token_embd" if quant == QuantType::Q4_0 => BlockType::Q6K,
            _ => quant.block_type(),
        };
    };
    let n = facts.num_layers;
    // The first and last eighth, and every third between.
    let more_bits = layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2;
    let mixed = matches!(quant, QuantType::Q4_K_M | QuantType::Q5_K_M);
    match part {
        "attn_v" | "ffn_down" if mixed && more_bits => BlockType::Q6K,
        // 70B models, whose values are shared by eight query heads.
        "attn_v" if quant == QuantType::Q4_K_M && n == 80 && facts.grouped => BlockType::Q5K,
        "ffn_down" if quant == QuantType::Q4_0 && facts.weighted && layer < n / 8 => BlockType::Q4_1,
        _ => quant.block_type(),
    }
}

/// `3` and `attn_v` of `blk.3.attn_v`.
pub(super) fn layer_part(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_llama_cpps_choice() {
        use BlockType as B;
        use QuantType as Q;
        let facts = Facts { num_layers: 24, ..Facts::default() };
        for (quant, name, cols, want) in [
            (Q::Q4_K_M, "blk.9.attn_q.weight", 512, B::Q4K),
            (Q::Q4_K_M, "blk.0.attn_v.weight", 512, B::Q6K),
            (Q::Q4_K_M, "blk.3.attn_v.weight", 512, B::Q4K),
            (Q::Q4_K_M, "blk.5.ffn_down.weight", 512, B::Q6K),
            (Q::Q5_K_M, "blk.5.ffn_down.weight", 512, B::Q6K),
            (Q::Q5_K_M, "blk.4.ffn_down.weight", 512, B::Q5K),
            (Q::Q4_K_M, "token_embd.weight", 512, B::Q4K),
            (Q::Q4_K_M, "output.weight", 512, B::Q6K),
            (Q::Q6_K, "token_embd.weight", 512, B::Q6K),
            (Q::Q4_K_M, "blk.9.attn_q.weight", 96, B::Q5_0),
            (Q::Q5_K_M, "blk.9.attn_q.weight", 96, B::Q5_1),
            (Q::Q4_K_M, "output.weight", 96, B::Q8_0),
            (Q::Q4_K_M, "blk.9.attn_q.weight", 172, B::F16),
            (Q::Q4_0, "blk.0.ffn_down.weight", 96, B::Q4_0),
            (Q::Q4_0, "output.weight", 512, B::Q6K),
            (Q::Q8_0, "output.weight", 512, B::Q8_0),
            (Q::F16, "output.weight", 3, B::F16),
        ] {
            assert_eq!(choose(quant, name, cols, facts).1, want, "{quant} {name} {cols}");
        }
        let tied = Facts { tied: true, ..facts };
        assert_eq!(choose(Q::Q5_K_M, "token_embd.weight", 512, tied).1, B::Q6K);
        let large = Facts { num_layers: 80, grouped: true, ..facts };
        assert_eq!(choose(Q::Q4_K_M, "blk.30.attn_v.weight", 512, large).1, B::Q6K);
        assert_eq!(choose(Q::Q4_K_M, "blk.31.attn_v.weight", 512, large).1, B::Q5K);
        let weighted = Facts { weighted: true, ..facts };
        assert_eq!(choose(Q::Q4_0, "blk.2.ffn_down.weight", 512, weighted).1, B::Q4_1);
        assert_eq!(choose(Q::Q4_0, "blk.3.ffn_down.weight", 512, weighted).1, B::Q4_0);
    }

    #[test]
    fn names_are_read_in_any_case() {
        for ty in QuantType::ALL {
            assert_eq!(ty.to_string().to_uppercase().parse::<QuantType>().unwrap(), ty);
            let json = serde_json::to_value(ty).unwrap();
            assert_eq!(json, ty.to_string());
            assert_eq!(serde_json::from_value::<QuantType>(json).unwrap(), ty);
        }
        assert_eq!("Q4_K".parse::<QuantType>().unwrap(), QuantType::Q4_K_M);
        assert!("q3".parse::<QuantType>().unwrap_err().to_string().contains("hint: one of f16"));
    }
}
