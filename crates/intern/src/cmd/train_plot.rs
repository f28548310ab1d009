//! `intern train plot`: the curves of training runs, over each other.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use intern_format::atomic::write_atomic;
use intern_progress::human;
use serde_json::{Map, Value};

use crate::report::chart::{Series, document};

const DEFAULT: [&str; 5] = ["loss", "valid_loss", "lr", "grad_norm", "tokens_per_second"];

/// Arguments of `intern train plot`.
#[derive(Args)]
#[command(after_help = "Examples:
  intern train plot runs/tiny
  intern train plot runs/tiny runs/fast --out compare.svg
  intern train plot runs/tiny runs/fast --x time --metrics loss,tokens_per_second --smooth 0.95")]
pub struct PlotArgs {
    /// Directories of `train run` or `tune run`, or their metrics.jsonl.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// The SVG file to write.
    #[arg(long, default_value = "plot.svg")]
    out: PathBuf,
    /// What is drawn, a chart each: names of metrics.jsonl. Without it, losses, learning rate,
    /// gradient norm and speed.
    #[arg(long, value_delimiter = ',')]
    metrics: Vec<String>,
    /// What the charts run over.
    #[arg(long, default_value = "step")]
    x: Axis,
    /// How much of the line so far each point keeps: 0 draws what was measured, 0.99 its trend.
    #[arg(long, default_value_t = 0.9)]
    smooth: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Axis {
    /// Optimizer steps.
    Step,
    /// Tokens read.
    Tokens,
    /// Seconds since the run began.
    Time,
}

impl Axis {
    fn label(self) -> &'static str {
        match self {
            Self::Step => "step",
            Self::Tokens => "tokens",
            Self::Time => "seconds",
        }
    }
}

/// One run's curve.
struct Run {
    name: String,
    lines: Vec<Map<String, Value>>,
}

/// Runs `intern train plot`.
pub fn run(args: &PlotArgs) -> Result<()> {
    if !(0.0..1.0).contains(&args.smooth) {
        bail!("--smooth is {}, not from 0 to below 1", args.smooth);
    }
    let runs = args.runs.iter().map(|path| read(path)).collect::<Result<Vec<Run>>>()?;
    let mut charts = Vec::new();
    let default = || DEFAULT.map(str::to_owned).to_vec();
    let metrics = if args.metrics.is_empty() { default() } else { args.metrics.clone() };
    for metric in &metrics {
        let mut chart = Vec::new();
        for (colour, run) in runs.iter().enumerate() {
            let points = points(run, metric, args.x);
            // A schedule is no measurement.
            if args.smooth > 0.0 && points.len() > 20 && metric != "lr" {
                let smooth = smoothed(&points, args.smooth);
                let raw = Series { faint: true, ..Series::new("", colour, points) };
                chart.extend([raw, Series::new(&run.name, colour, smooth)]);
            } else if !points.is_empty() {
                chart.push(Series::new(&run.name, colour, points));
            }
        }
        if chart.iter().any(|s| s.points.len() > 1) {
            charts.push((metric.clone(), chart));
        } else if !args.metrics.is_empty() {
            let mut known: Vec<&str> =
                runs[0].lines.iter().flat_map(|l| l.keys().map(String::as_str)).collect();
            known.sort_unstable();
            known.dedup();
            bail!("no run has a curve of {metric:?}\nhint: {} has {}", runs[0].name, known.join(", "));
        }
    }
    if charts.is_empty() {
        bail!("nothing to draw: a curve begins with two steps\nhint: let the run go on for a while");
    }
    write_atomic(&args.out, document(&charts, args.x.label()).as_bytes())?;
    print_table(&runs);
    println!("{} with {} charts", args.out.display(), charts.len());
    Ok(())
}

fn read(path: &Path) -> Result<Run> {
    let lines = intern_format::metrics::read(path).with_context(|| {
        format!("{} is no training run\nhint: name what --out of `intern train run` named", path.display())
    })?;
    let dir = if path.is_file() { path.parent().unwrap_or(path) } else { path };
    let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned();
    Ok(Run { name, lines })
}

fn points(run: &Run, metric: &str, x: Axis) -> Vec<(f64, f64)> {
    let number = |line: &Map<String, Value>, name: &str| line.get(name).and_then(Value::as_f64);
    let begin = run.lines.iter().find_map(|line| number(line, "time")).unwrap_or(0.0);
    // A line of an evaluation has no tokens of its own: those of the step before count.
    let mut tokens = 0.0;
    let mut out: Vec<(f64, f64)> = Vec::new();
    for line in &run.lines {
        tokens = number(line, "tokens").unwrap_or(tokens);
        let at = match x {
            Axis::Step => number(line, "step"),
            Axis::Tokens => Some(tokens),
            Axis::Time => number(line, "time").map(|t| t - begin),
        };
        if let (Some(at), Some(value)) = (at, number(line, metric)) {
            out.push((at, value));
        }
    }
    out
}

/// The exponential average, corrected at its beginning as Adam's is.
fn smoothed(points: &[(f64, f64)], keep: f64) -> Vec<(f64, f64)> {
    let (mut sum, mut weight) = (0.0, 0.0);
    points
        .iter()
        .map(|&(x, y)| {
            sum = keep * sum + (1.0 - keep) * y;
            weight = keep * weight + (1.0 - keep);
            (x, sum / weight)
        })
        .collect()
}

fn print_table(runs: &[Run]) {
    let width = runs.iter().map(|r| r.name.chars().count()).max().unwrap_or(0).max(3);
    println!(
        "{:<width$}  {:>8}  {:>8}  {:>10}  {:>10}  {:>8}",
        "run", "steps", "tokens", "loss", "held out", "tok/s"
    );
    for run in runs {
        let last = |name: &str| run.lines.iter().rev().find_map(|l| l.get(name).and_then(Value::as_f64));
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"));
        let large = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), human);
        println!(
            "{:<width$}  {:>8}  {:>8}  {:>10}  {:>10}  {:>8}",
            run.name,
            last("step").unwrap_or(0.0),
            large(last("tokens")),
            shown(last("loss")),
            shown(last("valid_loss")),
            large(last("tokens_per_second"))
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_begins_at_the_first_value_and_follows() {
        let flat = smoothed(&[(0.0, 2.0), (1.0, 2.0)], 0.9);
        assert!(flat.iter().all(|p| (p.1 - 2.0).abs() < 1e-12));
        let step = smoothed(&[(0.0, 0.0), (1.0, 1.0)], 0.5);
        assert!((step[1].1 - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn evaluations_lie_at_the_tokens_of_their_step() {
        let line = |text: &str| serde_json::from_str(text).unwrap();
        let run = Run {
            name: "r".into(),
            lines: vec![
                line(r#"{"step":0,"time":5.0,"valid_loss":3.0}"#),
                line(r#"{"step":1,"time":6.0,"tokens":64.0,"loss":2.5}"#),
                line(r#"{"step":1,"time":7.0,"valid_loss":2.0}"#),
            ],
        };
        assert_eq!(points(&run, "valid_loss", Axis::Tokens), [(0.0, 3.0), (64.0, 2.0)]);
        assert_eq!(points(&run, "loss", Axis::Time), [(1.0, 2.5)]);
    }
}
