//! What a load measurement found: throughput, and percentiles of what users wait for.

use std::time::Duration;

use serde::Serialize;

/// One request, all times since the measurement began.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Tokens of the prompt.
    pub input: usize,
    /// Tokens generated.
    pub output: usize,
    /// When it was sent.
    pub begin: Duration,
    /// When tokens arrived.
    pub times: Vec<Duration>,
    /// When it was answered.
    pub end: Duration,
    /// Why it failed.
    pub error: Option<String>,
}

/// Percentiles in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Average.
    pub mean: f64,
    /// Half are below.
    pub p50: f64,
    /// Nine of ten are below.
    pub p90: f64,
    /// 99 of a hundred are below.
    pub p99: f64,
    /// The largest.
    pub max: f64,
    /// All values, ascending; for the plot.
    #[serde(skip)]
    pub sorted: Vec<f64>,
}

impl Percentiles {
    fn new(values: impl Iterator<Item = Duration>) -> Self {
        let mut sorted: Vec<f64> = values.map(|d| d.as_secs_f64() * 1000.0).collect();
        sorted.sort_by(f64::total_cmp);
        let Some(&max) = sorted.last() else { return Self::default() };
        let at =
            |q: f64| round(sorted[((sorted.len() as f64 * q).ceil() as usize).clamp(1, sorted.len()) - 1]);
        let mean = round(sorted.iter().sum::<f64>() / sorted.len() as f64);
        Self { mean, p50: at(0.5), p90: at(0.9), p99: at(0.99), max: round(max), sorted }
    }
}

fn round(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}

/// A whole measurement.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Requests answered.
    pub completed: usize,
    /// Requests that failed.
    pub failed: usize,
    /// Why the first of them did.
    pub error: Option<String>,
    /// Seconds from the first request to the last answer.
    pub seconds: f64,
    /// Requests answered per second.
    pub req_s: f64,
    /// Prompt tokens of answered requests per second.
    pub input_tok_s: f64,
    /// Tokens generated per second.
    pub output_tok_s: f64,
    /// From sending to the first token, in ms.
    pub ttft_ms: Percentiles,
    /// Between tokens, in ms.
    pub itl_ms: Percentiles,
    /// From sending to the end, in ms.
    pub e2e_ms: Percentiles,
}

impl Report {
    /// Sums up.
    #[must_use]
    pub fn new(samples: &[Sample], wall: Duration) -> Self {
        let good: Vec<&Sample> = samples.iter().filter(|s| s.error.is_none()).collect();
        let seconds = wall.as_secs_f64().max(1e-9);
        let per_second = |n: usize| round(n as f64 / seconds);
        let gaps = good.iter().flat_map(|s| s.times.windows(2).map(|w| w[1] - w[0]));
        Self {
            completed: good.len(),
            failed: samples.len() - good.len(),
            error: samples.iter().find_map(|s| s.error.clone()),
            seconds: round(seconds),
            req_s: per_second(good.len()),
            input_tok_s: per_second(good.iter().map(|s| s.input).sum()),
            output_tok_s: per_second(good.iter().map(|s| s.output).sum()),
            ttft_ms: Percentiles::new(good.iter().filter_map(|s| Some(*s.times.first()? - s.begin))),
            itl_ms: Percentiles::new(gaps),
            e2e_ms: Percentiles::new(good.iter().map(|s| s.end - s.begin)),
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{} requests in {:.1} s ({} failed): {:.2} requests/s, {:.1} prompt tok/s, {:.1} output tok/s",
            self.completed, self.seconds, self.failed, self.req_s, self.input_tok_s, self.output_tok_s
        )?;
        if let Some(error) = &self.error {
            writeln!(f, "first failure: {error}")?;
        }
        write!(f, "{:<24}{:>10}{:>10}{:>10}{:>10}{:>10}", "ms", "mean", "p50", "p90", "p99", "max")?;
        for (name, p) in [
            ("time to first token", &self.ttft_ms),
            ("between tokens", &self.itl_ms),
            ("whole answer", &self.e2e_ms),
        ] {
            write!(
                f,
                "\n{name:<24}{:>10.1}{:>10.1}{:>10.1}{:>10.1}{:>10.1}",
                p.mean, p.p50, p.p90, p.p99, p.max
            )?;
        }
        Ok(())
    }
}

/// An SVG of the share of requests (or gaps between tokens) that were faster than each time.
#[must_use]
pub fn plot(report: &Report) -> String {
    const WIDTH: f64 = 720.0;
    const HEIGHT: f64 = 400.0;
    const EDGE: f64 = 56.0;
    let curves = [
        ("time to first token", "#9a4f1c", &report.ttft_ms.sorted),
        ("between tokens", "#2f6f73", &report.itl_ms.sorted),
        ("whole answer", "#6b5b95", &report.e2e_ms.sorted),
    ];
    let all = || curves.iter().flat_map(|c| c.2.iter().copied()).filter(|&ms| ms > 0.0);
    let low = all().fold(f64::INFINITY, f64::min).clamp(1e-3, 1e6).log10().floor();
    let high = all().fold(1e-3, f64::max).log10().ceil().max(low + 1.0);
    let x = |ms: f64| EDGE + (ms.max(1e-3).log10() - low).max(0.0) / (high - low) * (WIDTH - 2.0 * EDGE);
    let y = |share: f64| HEIGHT - EDGE - share * (HEIGHT - 2.0 * EDGE);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for tick in low as i32..=high as i32 {
        let at = x(10f64.powi(tick));
        let label =
            if tick < 3 { format!("{} ms", 10f64.powi(tick)) } else { format!("{} s", 10f64.powi(tick - 3)) };
        out.push_str(&format!(
            "<path d=\"M{at:.1} {:.1}V{:.1}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>\n",
            y(1.0), y(0.0), y(0.0) + 18.0
        ));
    }
    for percent in [0, 25, 50, 75, 100] {
        let at = y(f64::from(percent) / 100.0);
        out.push_str(&format!(
            "<path d=\"M{EDGE} {at:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{percent} %</text>\n",
            WIDTH - EDGE, EDGE - 6.0, at + 4.0
        ));
    }
    for (i, (name, colour, sorted)) in curves.iter().enumerate() {
        let step = (sorted.len() / 500).max(1);
        let mut path = String::new();
        for (rank, ms) in
            sorted.iter().enumerate().filter(|(rank, _)| rank % step == 0 || *rank + 1 == sorted.len())
        {
            let command = if path.is_empty() { 'M' } else { 'L' };
            path.push_str(&format!(
                "{command}{:.1} {:.1}",
                x(*ms),
                y((rank + 1) as f64 / sorted.len() as f64)
            ));
        }
        out.push_str(&format!("<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n"));
        let at = EDGE + 200.0 * i as f64;
        out.push_str(&format!(
            "<path d=\"M{at} 26h20\" stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"{}\" y=\"30\">{name}</text>\n",
            at + 26.0
        ));
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_sums_up() {
        let ms = Duration::from_millis;
        let sample = |begin: u64, times: &[u64]| Sample {
            input: 10,
            output: times.len(),
            begin: ms(begin),
            times: times.iter().map(|&t| ms(t)).collect(),
            end: ms(times.last().copied().unwrap_or(begin)),
            error: None,
        };
        let failed = Sample { error: Some("no".into()), ..Sample::default() };
        let report = Report::new(&[sample(0, &[10, 20, 40]), sample(100, &[150]), failed], ms(1000));
        assert_eq!((report.completed, report.failed, report.error.as_deref()), (2, 1, Some("no")));
        assert_eq!((report.req_s, report.input_tok_s, report.output_tok_s), (2.0, 20.0, 4.0));
        assert_eq!((report.ttft_ms.p50, report.ttft_ms.p99, report.ttft_ms.mean), (10.0, 50.0, 30.0));
        assert_eq!((report.itl_ms.p50, report.itl_ms.max), (10.0, 20.0));
        assert!(report.to_string().contains("2 requests in 1.0 s (1 failed)"));
        let svg = plot(&report);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n") && !svg.contains("NaN"), "{svg}");
        assert!(!plot(&Report::default()).contains("NaN"));
    }
}
