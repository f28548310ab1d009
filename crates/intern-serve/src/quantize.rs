//! Quantizes a model into a GGUF file, and says what that did to it.
//!
//! The work is `intern_engine::quantize`'s; here are the perplexities and the table for people.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use intern_engine::{Engine, EngineConfig};
use intern_lm::{LanguageModel, ScoreRequest};
use serde::Serialize;

pub use intern_engine::quantize::{QuantType, QuantizeConfig, Summary, run};

/// How well the model predicts a text, before and after.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// Of the model that was quantized.
    pub before: f64,
    /// Of the file that was written.
    pub after: f64,
    /// Tokens of the text.
    pub tokens: usize,
}

/// Perplexity per token of the file `text` under `model` and under `quantized`, in windows of the
/// models' context length.
///
/// # Errors
/// If the text is empty or not UTF-8, or a model cannot be loaded.
pub fn compare(model: &Path, quantized: &Path, text: &Path) -> Result<Perplexity> {
    let content = std::fs::read_to_string(text)
        .with_context(|| format!("cannot read {}\nhint: --text takes a plain UTF-8 file", text.display()))?;
    ensure!(!content.trim().is_empty(), "{} is empty\nhint: --text takes a text to predict", text.display());
    let measure = |path: &Path| -> Result<(f64, usize)> {
        let engine = Engine::load(path, None, &EngineConfig::default())
            .with_context(|| format!("loading {}", path.display()))?;
        let scores = engine.score(&[ScoreRequest::Rolling { text: content.clone() }])?;
        let score = scores.first().context("one score per request")?;
        Ok(((-score.logprob / score.num_tokens.max(1) as f64).exp(), score.num_tokens))
    };
    let (before, tokens) = measure(model)?;
    let (after, _) = measure(quantized)?;
    Ok(Perplexity { before, after, tokens })
}

/// Sizes and perplexities before and after, and how many tensors became what.
#[must_use]
pub fn table(summary: &Summary, perplexity: Option<Perplexity>) -> String {
    let bits = |bytes: u64| bytes as f64 * 8.0 / summary.parameters.max(1) as f64;
    let row = |what: &str, bytes: u64, perplexity: Option<f64>| {
        let perplexity = perplexity.map_or_else(String::new, |p| format!(", perplexity {p:.4}"));
        format!("{what:<8}{:>12}{:>10.2} bits per weight{perplexity}\n", human_bytes(bytes), bits(bytes))
    };
    let mut out = format!(
        "{}: {}, {} weights\n",
        summary.out.display(),
        summary.architecture,
        human_count(summary.parameters)
    );
    out.push_str(&row("before", summary.bytes_before, perplexity.map(|p| p.before)));
    out.push_str(&row("after", summary.bytes_after, perplexity.map(|p| p.after)));
    if let Some(Perplexity { before, after, tokens }) = perplexity {
        let change = 100.0 * (after / before - 1.0);
        out.push_str(&format!("perplexity {change:+.2} % over {tokens} tokens\n"));
    }
    let kinds: Vec<String> = summary.tensors.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    out.push_str(&format!("tensors: {}", kinds.join(", ")));
    for warning in &summary.warnings {
        out.push_str(&format!("\nwarning: {warning}"));
    }
    out
}

fn human_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{size:.1} {}", units[unit]) }
}

fn human_count(count: u64) -> String {
    match count {
        0..1_000_000 => format!("{:.1} k", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.2} G", count as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_counts() {
        let summary = Summary {
            out: "m.gguf".into(),
            architecture: "internlm2".into(),
            parameters: 1_500_000,
            bytes_before: 6_000_000,
            bytes_after: 900_000,
            tensors: [("q4_0".to_string(), 12), ("f32".to_string(), 3)].into_iter().collect(),
            warnings: vec!["rows of w2 became q8_0".into()],
        };
        assert_eq!(
            table(&summary, None),
            "m.gguf: internlm2, 1.5 M weights\n\
             before       5.7 MiB     32.00 bits per weight\n\
             after      878.9 KiB      4.80 bits per weight\n\
             tensors: 3 f32, 12 q4_0\n\
             warning: rows of w2 became q8_0"
        );
        let with = table(&summary, Some(Perplexity { before: 8.0, after: 8.1, tokens: 900 }));
        assert!(with.contains("32.00 bits per weight, perplexity 8.0000\n"), "{with}");
        assert!(with.contains("perplexity +1.25 % over 900 tokens\n"), "{with}");
    }
}
