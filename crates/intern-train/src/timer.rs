//! What a step spends its time on, for the metrics and for a trace.

use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::Result;
use intern_format::atomic;
use serde_json::{Value, json};

/// The clock of all traces of this process.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The phases that are over when a step is logged, as the metrics call them; saving comes after, and
/// is in the trace.
const PHASES: [(&str, &str); 5] = [
    ("data", "seconds_data"),
    ("passes", "seconds_passes"),
    ("exchange", "seconds_exchange"),
    ("update", "seconds_update"),
    ("valid", "seconds_valid"),
];

/// Measures the phases of one step, one after the other.
#[derive(Debug)]
pub struct Timer {
    last: Instant,
    laps: Vec<(&'static str, Instant, Duration)>,
}

impl Timer {
    /// Starts the first phase.
    #[must_use]
    pub fn new() -> Self {
        LazyLock::force(&START);
        Self { last: Instant::now(), laps: Vec::new() }
    }

    /// Ends the phase `name`, and starts the next.
    pub fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        self.laps.push((name, self.last, now - self.last));
        self.last = now;
    }

    /// Seconds of each phase there was, under the name the metrics have for it.
    pub fn seconds(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        PHASES.into_iter().filter_map(|(phase, name)| {
            let of_phase = self.laps.iter().filter(|l| l.0 == phase).map(|l| l.2.as_secs_f64());
            let total: f64 = of_phase.sum();
            (total > 0.0).then_some((name, total))
        })
    }
}

impl Default for Timer {
    fn default() -> Self {
        Self::new()
    }
}

/// The phases of many steps, in the format of Chrome's trace viewer (and Perfetto's).
#[derive(Debug, Default)]
pub struct Trace {
    rank: usize,
    events: Vec<Value>,
}

impl Trace {
    /// Of rank `rank`.
    #[must_use]
    pub fn new(rank: usize) -> Self {
        Self { rank, events: Vec::new() }
    }

    /// Adds a step's phases.
    pub fn add(&mut self, step: u64, timer: &Timer) {
        for (name, start, length) in &timer.laps {
            let micros = |d: Duration| d.as_secs_f64() * 1e6;
            self.events.push(json!({
                "name": name, "ph": "X", "ts": micros(start.duration_since(*START)), "dur": micros(*length),
                "pid": 0, "tid": self.rank, "args": {"step": step},
            }));
        }
    }

    /// Writes the trace.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        Ok(atomic::write_json(path, &json!({"traceEvents": self.events, "displayTimeUnit": "ms"}))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_summed_and_traced() {
        let mut timer = Timer::new();
        for phase in ["data", "passes", "exchange", "update", "exchange"] {
            std::thread::sleep(Duration::from_millis(2));
            timer.lap(phase);
        }
        let seconds: Vec<_> = timer.seconds().collect();
        let names: Vec<_> = seconds.iter().map(|s| s.0).collect();
        assert_eq!(names, ["seconds_data", "seconds_passes", "seconds_exchange", "seconds_update"]);
        assert!(seconds[2].1 >= 0.004);
        let mut trace = Trace::new(3);
        trace.add(7, &timer);
        let dir = tempfile::tempdir().unwrap();
        trace.write(&dir.path().join("trace.json")).unwrap();
        let value: Value = atomic::read_json(&dir.path().join("trace.json")).unwrap();
        let events = value["traceEvents"].as_array().unwrap();
        assert_eq!((events.len(), &events[1]["name"], &events[1]["tid"]), (5, &json!("passes"), &json!(3)));
        assert!(events[1]["ts"].as_f64() >= events[0]["ts"].as_f64());
    }
}
