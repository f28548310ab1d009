//! What a person sees while a long command runs: a bar with rate and ETA.
//!
//! On a terminal this is an `indicatif` bar; elsewhere it is one plain line every
//! few seconds, so CI logs stay readable. Nothing is printed for work that ends
//! within two seconds. Reports and results do not belong here.

mod chart;

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use chart::chart;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work shorter than this stays silent.
const QUIET: Duration = Duration::from_secs(2);
/// Time between plain lines when standard error is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

static SILENT: AtomicBool = AtomicBool::new(false);

/// Turns all progress output off (`--json`, tests).
pub fn set_silent(silent: bool) {
    SILENT.store(silent, Ordering::Relaxed);
}

/// Progress of one piece of work, counted in `unit`s. Shared freely between threads.
pub struct Progress {
    label: String,
    unit: &'static str,
    total: u64,
    done: AtomicU64,
    start: Instant,
    bar: Option<ProgressBar>,
    last_line: Mutex<Instant>,
    message: Mutex<String>,
}

impl Progress {
    /// Starts work of `total` units (0 when unknown), e.g. `Progress::new("train", 1000, "tok")`.
    #[must_use]
    pub fn new(label: &str, total: u64, unit: &'static str) -> Self {
        let silent = SILENT.load(Ordering::Relaxed);
        let bar = (!silent && std::io::stderr().is_terminal()).then(|| {
            let bar = if total == 0 { ProgressBar::no_length() } else { ProgressBar::new(total) };
            bar.set_draw_target(ProgressDrawTarget::hidden());
            let template = if total == 0 {
                format!("{{prefix:>12}} {{spinner}} {{human_pos}} {unit} ({{per_sec}}) {{elapsed}} {{msg}}")
            } else {
                format!(
                    "{{prefix:>12}} [{{bar:24}}] {{human_pos}}/{{human_len}} {unit} ({{per_sec}}, ETA {{eta}}) {{msg}}"
                )
            };
            let style = ProgressStyle::with_template(&template).expect("the template is ours and valid");
            bar.set_style(style.progress_chars("━╸ "));
            bar.set_prefix(label.to_string());
            bar
        });
        let now = Instant::now();
        Self {
            label: label.to_string(),
            unit,
            total,
            done: AtomicU64::new(0),
            start: now,
            bar,
            last_line: Mutex::new(now),
            message: Mutex::new(String::new()),
        }
    }

    /// Adds `n` finished units.
    pub fn inc(&self, n: u64) {
        let done = self.done.fetch_add(n, Ordering::Relaxed) + n;
        if let Some(bar) = &self.bar {
            if self.start.elapsed() > QUIET && bar.is_hidden() {
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
            bar.set_position(done);
        } else {
            self.plain_line(done);
        }
    }

    /// Whether a person sees the bar, and more lines than one.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.bar.is_some()
    }

    /// Sets the figure shown after the bar, e.g. `loss 2.31`; on a terminal further lines stand below.
    pub fn set_message(&self, message: impl Into<String>) {
        let message = message.into();
        if let Some(bar) = &self.bar {
            bar.set_message(message);
        } else {
            *self.message.lock().unwrap_or_else(|e| e.into_inner()) = message;
        }
    }

    /// Units finished so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Removes the bar and prints one closing line if the work took long enough to be seen.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let elapsed = self.start.elapsed();
        if elapsed > QUIET && !SILENT.load(Ordering::Relaxed) {
            let done = self.done();
            let rate = done as f64 / elapsed.as_secs_f64();
            eprintln!(
                "{:>12} {} {} in {} ({}/s)",
                self.label,
                human(done as f64),
                self.unit,
                clock(elapsed),
                human(rate)
            );
        }
    }

    fn plain_line(&self, done: u64) {
        let Ok(mut last) = self.last_line.try_lock() else { return };
        if SILENT.load(Ordering::Relaxed) || last.elapsed() < LINE_EVERY {
            return;
        }
        *last = Instant::now();
        let elapsed = self.start.elapsed();
        let rate = done as f64 / elapsed.as_secs_f64();
        let message = self.message.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let progress = if self.total == 0 {
            format!("{} {}", human(done as f64), self.unit)
        } else {
            let left = Duration::from_secs_f64(self.total.saturating_sub(done) as f64 / rate.max(1e-9));
            format!("{}/{} {}, ETA {}", human(done as f64), human(self.total as f64), self.unit, clock(left))
        };
        eprintln!("{:>12} {progress} ({}/s) {message}", self.label, human(rate));
    }
}

/// `1234567.0` → `1.23M`: three significant figures with an SI letter.
#[must_use]
pub fn human(x: f64) -> String {
    let (scaled, suffix) = match x.abs() {
        a if a >= 1e9 => (x / 1e9, "G"),
        a if a >= 1e6 => (x / 1e6, "M"),
        a if a >= 1e4 => (x / 1e3, "k"),
        _ => (x, ""),
    };
    match scaled.abs() {
        _ if suffix.is_empty() && (x.fract() == 0.0 || x.abs() >= 100.0) => format!("{x:.0}"),
        a if a >= 100.0 => format!("{scaled:.0}{suffix}"),
        a if a >= 10.0 => format!("{scaled:.1}{suffix}"),
        _ => format!("{scaled:.2}{suffix}"),
    }
}

/// `3725 s` → `1h02m`, `65 s` → `1m05s`.
#[must_use]
pub fn clock(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(human(12.0), "12");
        assert_eq!(human(9_999.0), "9999");
        assert_eq!(human(12_340.0), "12.3k");
        assert_eq!(human(1_234_567.0), "1.23M");
        assert_eq!(human(3.25), "3.25");
        assert_eq!(clock(Duration::from_secs(65)), "1m05s");
        assert_eq!(clock(Duration::from_secs(3725)), "1h02m");
    }
}
