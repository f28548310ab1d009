//! A line chart as inline SVG.

use std::fmt::Write as _;

use super::escape;

/// One line of a chart.
pub struct Series {
    /// Shown in the legend.
    pub name: String,
    /// (x, y) in data units, by rising x.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 44.0;
const BOTTOM: f64 = 30.0;
const TOP: f64 = 22.0;
const COLOURS: [&str; 2] = ["var(--a)", "var(--b)"];

/// Draws `series` over shared axes; empty if there is nothing to draw.
pub fn lines(series: &[Series], x_label: &str) -> String {
    let points = || series.iter().flat_map(|s| &s.points);
    if points().count() < 2 {
        return String::new();
    }
    let fold = |f: fn(f64, f64) -> f64, of: fn(&(f64, f64)) -> f64| points().map(of).reduce(f).unwrap_or(0.0);
    let (x0, x1) = (fold(f64::min, |p| p.0), fold(f64::max, |p| p.0));
    let (y0, y1) = (fold(f64::min, |p| p.1).min(0.0), fold(f64::max, |p| p.1));
    let px = |x: f64| LEFT + (x - x0) / (x1 - x0).max(1e-12) * (WIDTH - LEFT - 8.0);
    let py = |y: f64| HEIGHT - BOTTOM - (y - y0) / (y1 - y0).max(1e-12) * (HEIGHT - BOTTOM - TOP);

    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n");
    for y in ticks(y0, y1) {
        let at = py(y);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"var(--line)\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{y}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    for x in ticks(x0, x1) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x}</text>",
            px(x),
            HEIGHT - BOTTOM + 16.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{WIDTH}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        HEIGHT - 2.0,
        escape(x_label)
    );
    let mut legend_x = LEFT;
    for (s, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let path: Vec<String> =
            s.points.iter().map(|(x, y)| format!("{:.1},{:.1}", px(*x), py(*y))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-linejoin=\"round\"/>\
             <rect x=\"{legend_x}\" y=\"4\" width=\"12\" height=\"4\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"11\">{}</text>",
            path.join(" "),
            legend_x + 17.0,
            escape(&s.name)
        );
        legend_x += 40.0 + 6.5 * s.name.chars().count() as f64;
    }
    svg.push_str("</svg>\n");
    svg
}

/// Three to six round values within `[low, high]`.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let raw = ((high - low) / 4.0).max(1e-9);
    let magnitude = 10f64.powf(raw.log10().floor());
    let step =
        [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * magnitude).find(|s| *s >= raw).unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    // Multiply rather than add, and round away the last bits, so labels print short.
    (first..=last).map(|i| (i as f64 * step * 1e6).round() / 1e6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_within_range() {
        assert_eq!(ticks(0.0, 8.3), [0.0, 2.5, 5.0, 7.5]);
        assert_eq!(ticks(0.0, 400.0), [0.0, 100.0, 200.0, 300.0, 400.0]);
        assert_eq!(ticks(0.0, 0.9), [0.0, 0.25, 0.5, 0.75]);
    }

    #[test]
    fn one_point_draws_nothing() {
        let series = [Series { name: "x".into(), points: vec![(0.0, 1.0)] }];
        assert!(lines(&series, "step").is_empty());
    }
}
