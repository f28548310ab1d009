//! Importances of columns: the mean square of what they are multiplied with on calibration text.
//!
//! What llama.cpp calls an importance matrix. Errors in a column whose inputs are large change
//! the output most, so encoders spend their freedom there.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use intern_model::calibrate;
use intern_model::weights::{QkvNames, layer_names, outer_names};
use intern_progress::Progress;

use super::input::Input;

/// By tensor of the GGUF file (as in `blk.0.attn_q.weight`): one number per column.
pub(super) type Importances = BTreeMap<String, Vec<f32>>;

/// Tokens the model sees at once.
const LENGTH: usize = 512;
/// No column counts less than this share of the mean: calibration has not seen everything.
const FLOOR: f32 = 1e-3;

/// Runs the first `max_tokens` tokens of `text` through the model. Also the number of tokens used.
pub(super) fn measure(input: &Input, text: &Path, max_tokens: usize) -> Result<(Importances, usize)> {
    let Input::Checkpoint { checkpoint, config, tokenizer } = input else {
        bail!(
            "importances are measured on a checkpoint directory, not on a GGUF file\n\
             hint: quantize the checkpoint the file was made from"
        );
    };
    ensure!(
        checkpoint.config().get("quantization_config").is_none_or(serde_json::Value::is_null),
        "{}: importances are measured on floats, and these weights are quantized already\n\
         hint: calibrate on the checkpoint they were made from",
        checkpoint.dir().display()
    );
    let content = std::fs::read_to_string(text).with_context(|| {
        format!("cannot read {}\nhint: calibration text is a plain UTF-8 file", text.display())
    })?;
    // A long file need not be tokenized whole.
    let mut end = content.len().min(max_tokens.saturating_mul(16));
    while !content.is_char_boundary(end) {
        end -= 1;
    }
    let mut tokens = tokenizer.encode(&content[..end], true)?;
    tokens.truncate(max_tokens);
    let length = LENGTH.min(config.max_position_embeddings);
    ensure!(
        tokens.len() >= 16,
        "{}: {} tokens are too few to calibrate on\nhint: some thousand tokens of ordinary text will do",
        text.display(),
        tokens.len()
    );
    let texts: Vec<Vec<u32>> = tokens.chunks(length).map(<[u32]>::to_vec).collect();

    let progress = Progress::new("calibrate", config.num_layers as u64, "layers");
    let powers = calibrate::column_powers(checkpoint.dir(), &texts, || progress.inc(1))?;
    progress.finish();

    let mut out = Importances::new();
    let mut put = |name: String, module: &str| {
        let mut power = powers[module].clone();
        let mean = power.iter().sum::<f32>() / power.len().max(1) as f32;
        if mean > 0.0 {
            power.iter_mut().for_each(|p| *p = (*p / mean).max(FLOOR));
            out.insert(name + ".weight", power);
        }
    };
    for i in 0..config.num_layers {
        let names = layer_names(config.arch, i);
        let at = |part: &str| format!("blk.{i}.{part}");
        for (slot, part) in ["attn_q", "attn_k", "attn_v"].into_iter().enumerate() {
            match &names.qkv {
                QkvNames::Fused(module) => put(at(part), module),
                QkvNames::Separate(modules) => put(at(part), &modules[slot]),
            }
        }
        for (part, module) in [
            ("attn_output", &names.o),
            ("ffn_gate", &names.gate),
            ("ffn_up", &names.up),
            ("ffn_down", &names.down),
        ] {
            put(at(part), module);
        }
    }
    let head = if config.tie_word_embeddings { "token_embd" } else { "output" };
    put(head.to_owned(), outer_names(config.arch).head);
    Ok((out, tokens.len()))
}
