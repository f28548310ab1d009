//! What a person sees of a run: a bar, and on a terminal the loss as a curve with the figures of the last
//! update below it.

use std::path::Path;
use std::time::{Duration, Instant};

use intern_format::metrics;
use intern_progress::{Progress, chart, human};

/// Time between two pictures.
const EVERY: Duration = Duration::from_millis(500);
/// Characters of the curve.
const SIZE: (usize, usize) = (64, 6);

pub(super) struct Dashboard {
    progress: Progress,
    /// Of every update so far.
    losses: Vec<f64>,
    valid: Option<f64>,
    drawn: Option<Instant>,
}

impl Dashboard {
    /// For `left` updates of the run in `out`; the curve goes on from its metrics.
    pub fn new(label: &str, left: u64, out: &Path) -> Self {
        let progress = Progress::new(label, left, "steps");
        let mut losses = Vec::new();
        if progress.is_live() {
            let rows = metrics::read(out).unwrap_or_default();
            losses.extend(rows.iter().filter_map(|row| row.get("loss")?.as_f64()));
        }
        Self { progress, losses, valid: None, drawn: None }
    }

    /// Shows an update's figures, as they were logged, and the `rate` of the process in tokens per second.
    pub fn show(&mut self, row: &[(&str, f64)], rate: f64) {
        let of = |name: &str| row.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        let loss = of("loss").unwrap_or(f64::NAN);
        self.valid = of("valid_loss").or(self.valid);
        let valid = self.valid.map(|v| format!(", valid {v:.3}")).unwrap_or_default();
        let line = format!("loss {loss:.3}{valid}, {} tok/s", human(rate));
        if !self.progress.is_live() {
            self.progress.set_message(line);
            self.progress.inc(1);
            return;
        }
        self.losses.push(loss);
        if self.drawn.is_none_or(|d| d.elapsed() > EVERY) {
            self.drawn = Some(Instant::now());
            self.progress.set_message(format!(
                "{line}\n{}\n{}",
                chart(&self.losses, SIZE.0, SIZE.1),
                figures(row)
            ));
        }
        self.progress.inc(1);
    }

    pub fn finish(&self) {
        self.progress.finish();
    }
}

/// Learning rate, gradient norm, memory, and where the time goes.
fn figures(row: &[(&str, f64)]) -> String {
    let of = |name: &str| row.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
    let mut parts = Vec::new();
    if let (Some(lr), Some(norm), Some(mb)) = (of("lr"), of("grad_norm"), of("memory_mb")) {
        parts.push(format!("lr {lr:.2e}  gradient {norm:.2}  {mb:.0} MB"));
    }
    if let Some(mfu) = of("mfu") {
        parts.push(format!("MFU {:.1} %", 100.0 * mfu));
    }
    let phases: Vec<(&str, f64)> =
        row.iter().filter_map(|(name, s)| Some((name.strip_prefix("seconds_")?, *s))).collect();
    let all: f64 = phases.iter().map(|p| p.1).sum();
    let share = |(name, s): &(&str, f64)| format!("{name} {:.0} %", 100.0 * s / all.max(1e-9));
    parts.push(phases.iter().map(share).collect::<Vec<_>>().join(", "));
    format!("           {}", parts.join("  "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_fit_a_line() {
        let row = [
            ("lr", 3e-4),
            ("grad_norm", 1.25),
            ("memory_mb", 871.6),
            ("seconds_passes", 3.0),
            ("seconds_update", 1.0),
        ];
        assert_eq!(figures(&row).trim(), "lr 3.00e-4  gradient 1.25  872 MB  passes 75 %, update 25 %");
    }
}
