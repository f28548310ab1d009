//! Quantizes a model into a GGUF file, and says what that did to it.
//!
//! The work is `intern_engine::quantize`'s; here is the table for people.

pub use intern_engine::quantize::{QuantType, QuantizeConfig, Summary, run};

/// Sizes before and after, and how many tensors became what.
#[must_use]
pub fn table(summary: &Summary) -> String {
    let bits = |bytes: u64| bytes as f64 * 8.0 / summary.parameters.max(1) as f64;
    let row = |what: &str, bytes: u64| {
        format!("{what:<8}{:>12}{:>10.2} bits per weight\n", human_bytes(bytes), bits(bytes))
    };
    let mut out = format!(
        "{}: {}, {} weights\n",
        summary.out.display(),
        summary.architecture,
        human_count(summary.parameters)
    );
    out.push_str(&row("before", summary.bytes_before));
    out.push_str(&row("after", summary.bytes_after));
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
            table(&summary),
            "m.gguf: internlm2, 1.5 M weights\n\
             before       5.7 MiB     32.00 bits per weight\n\
             after      878.9 KiB      4.80 bits per weight\n\
             tensors: 3 f32, 12 q4_0\n\
             warning: rows of w2 became q8_0"
        );
    }
}
