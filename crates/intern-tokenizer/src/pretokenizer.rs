//! How text is cut into words before byte-level BPE: the regular expressions of
//! the model families, as `tokenizers` pre-tokenizers.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A family's way of cutting text into words for byte-level BPE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PreTokenizer {
    /// GPT-2: contractions, runs of letters, of digits, of the rest.
    Gpt2,
    /// Llama 3 (cl100k): case-blind contractions, digits in groups of up to three.
    Llama3,
    /// Qwen2: like Llama 3 but every digit on its own, which suits arithmetic.
    #[default]
    Qwen2,
}

/// GPT-2's pattern, as `ByteLevel` applies it by itself.
pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's pattern; also OpenAI's `cl100k`.
pub(crate) const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Qwen2's pattern.
pub(crate) const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// OpenAI's `o200k`: words end where lower case turns to upper.
pub(crate) const O200K: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// Mistral's Tekken: like `o200k` without contractions, digit by digit.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// What llama.cpp's `tokenizer.ggml.pre` names: the patterns applied one after another,
/// and whether a word that is a token needs no merges.
pub(crate) struct GgufPre {
    /// The first is the one we write.
    pub names: &'static [&'static str],
    pub patterns: &'static [&'static str],
    pub ignore_merges: bool,
    pub adds_bos: bool, // where the file does not say
}

pub(crate) const GGUF_PRES: &[GgufPre] = &[
    GgufPre {
        names: &["gpt-2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "jais", "gigachat", "roberta-bpe"],
        patterns: &[GPT2],
        ignore_merges: false,
        adds_bos: false,
    },
    GgufPre {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"],
        patterns: &[LLAMA3],
        ignore_merges: true,
        adds_bos: true,
    },
    GgufPre {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"],
        patterns: &[LLAMA3],
        ignore_merges: false,
        adds_bos: false,
    },
    GgufPre {
        names: &["qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"],
        patterns: &[QWEN2],
        ignore_merges: false,
        adds_bos: false,
    },
    GgufPre { names: &["gpt-4o", "llama4"], patterns: &[O200K], ignore_merges: false, adds_bos: false },
    GgufPre { names: &["tekken"], patterns: &[TEKKEN], ignore_merges: true, adds_bos: true },
    GgufPre {
        names: &["starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"],
        patterns: &[r"\p{N}", GPT2],
        ignore_merges: false,
        adds_bos: false,
    },
    GgufPre {
        names: &["deepseek-coder"],
        patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\u{D7FF}]+", r"\p{N}"],
        ignore_merges: false,
        adds_bos: false,
    },
    GgufPre {
        names: &["deepseek-v3"],
        patterns: &[
            r"\p{N}{1,3}",
            "[一-龥\u{3040}-ゟ゠-ヿ]+",
            concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
                r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
        ],
        ignore_merges: false,
        adds_bos: false,
    },
    GgufPre {
        names: &["falcon"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
        ignore_merges: false,
        adds_bos: false,
    },
    GgufPre {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ignore_merges: false,
        adds_bos: false,
    },
];

/// The patterns of a `pre_tokenizer` entry, if it is of the byte-level kind.
pub(crate) fn patterns_of(pre_tokenizer: &Value) -> Option<Vec<String>> {
    let steps = match pre_tokenizer["type"].as_str()? {
        "Sequence" => pre_tokenizer["pretokenizers"].as_array()?.as_slice(),
        _ => std::slice::from_ref(pre_tokenizer),
    };
    let mut patterns = Vec::new();
    let mut bytes = false;
    for step in steps {
        match step["type"].as_str()? {
            "Split" if step["behavior"] == "Isolated" && step["invert"] == false => {
                patterns.push(step["pattern"]["Regex"].as_str()?.to_string());
            }
            "Digits" if step["individual_digits"] == true => patterns.push(r"\p{N}".to_string()),
            "ByteLevel" if step["add_prefix_space"] == false => {
                bytes = true;
                patterns.extend((step["use_regex"] != false).then(|| GPT2.to_string()));
            }
            _ => return None,
        }
    }
    bytes.then_some(patterns)
}

impl PreTokenizer {
    /// The regular expression that finds words.
    #[must_use]
    pub fn pattern(self) -> &'static str {
        match self {
            Self::Gpt2 => GPT2,
            Self::Llama3 => LLAMA3,
            Self::Qwen2 => QWEN2,
        }
    }

    /// The name llama.cpp knows it by (`tokenizer.ggml.pre`).
    #[must_use]
    pub fn gguf_name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt-2",
            Self::Llama3 => "llama-bpe",
            Self::Qwen2 => "qwen2",
        }
    }

    /// The `pre_tokenizer` entry of a `tokenizer.json`.
    pub(crate) fn to_json(self) -> Value {
        match self {
            Self::Gpt2 => byte_level(true),
            _ => split_then_bytes(&[self.pattern()]),
        }
    }
}

/// `ByteLevel`, with GPT-2's pattern or none.
pub(crate) fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex})
}

/// Splits by each pattern in turn, then maps bytes to GPT-2's characters.
pub(crate) fn split_then_bytes(patterns: &[&str]) -> Value {
    let mut steps: Vec<Value> = patterns.iter().map(|p| split(p)).collect();
    steps.push(byte_level(false));
    json!({"type": "Sequence", "pretokenizers": steps})
}

/// One `Split` step that isolates what the pattern matches.
pub(crate) fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

/// GPT-2's table of printable stand-ins: byte → character.
pub(crate) fn byte_to_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return byte as char;
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(256 + rank).expect("256..324 are characters")
}

/// The inverse of [`byte_to_char`].
pub(crate) fn char_to_byte(c: char) -> Option<u8> {
    match c as u32 {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => Some(c as u8),
        n @ 256..=288 => Some((n - 256) as u8), // controls and the space
        n @ 289..=322 => Some((n - 289) as u8 + 0x7F),
        323 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_table_is_a_bijection() {
        for byte in 0..=255 {
            assert_eq!(char_to_byte(byte_to_char(byte)), Some(byte));
        }
        assert_eq!(byte_to_char(b' '), 'Ġ');
        assert_eq!(char_to_byte('中'), None);
    }
}
