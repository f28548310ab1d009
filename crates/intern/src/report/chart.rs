//! Line charts as SVG: inline in a page, or stacked in a file of their own.

use std::fmt::Write as _;

use super::escape;

/// One line of a chart.
pub struct Series {
    /// Shown in the legend.
    pub name: String,
    /// (x, y) in data units, by rising x.
    pub points: Vec<(f64, f64)>,
    /// Its place in the order of colours.
    pub colour: usize,
    /// Drawn thin and pale, and left out of the legend: what another line smooths.
    pub faint: bool,
}

impl Series {
    /// A line of full strength.
    pub fn new(name: impl Into<String>, colour: usize, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, colour, faint: false }
    }
}

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 44.0;
const BOTTOM: f64 = 30.0;
const TOP: f64 = 22.0;
/// A page sets the first two itself, for light and dark.
const COLOURS: [(&str, &str); 6] = [
    ("var(--a)", "#2563a8"),
    ("var(--b)", "#c2571a"),
    ("#2f7d4f", "#2f7d4f"),
    ("#8a4f9e", "#8a4f9e"),
    ("#a08a1c", "#a08a1c"),
    ("#9b2d3a", "#9b2d3a"),
];
/// Points drawn per line at most.
const MOST_POINTS: usize = 1000;

/// Where the axis of values begins.
#[derive(Clone, Copy, PartialEq)]
pub enum From {
    /// At zero, or below it.
    Zero,
    /// At the least value.
    Least,
}

/// A file of charts, one below the other, each under its title.
pub fn document(charts: &[(String, Vec<Series>)], x_label: &str) -> String {
    let mut body = String::new();
    let mut height = 0.0;
    for (title, series) in charts {
        let chart = lines(series, x_label, From::Least);
        if chart.is_empty() {
            continue;
        }
        let place = format!("<svg y=\"{}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" ", height + 24.0);
        let _ = writeln!(
            body,
            "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"600\">{}</text>\n{}",
            height + 18.0,
            escape(title),
            chart.replacen("<svg ", &place, 1)
        );
        height += HEIGHT + 34.0;
    }
    for (name, value) in [("var(--line)", "#d9dde3"), COLOURS[0], COLOURS[1]] {
        body = body.replace(name, value);
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"-8 0 {} {height}\" width=\"{WIDTH}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"11\" fill=\"#445\">\n\
         <rect x=\"-8\" width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n",
        WIDTH + 16.0
    )
}

/// Draws `series` over shared axes; empty if there is nothing to draw.
pub fn lines(series: &[Series], x_label: &str, from: From) -> String {
    let points = || series.iter().flat_map(|s| &s.points);
    if points().count() < 2 {
        return String::new();
    }
    let fold = |f: fn(f64, f64) -> f64, of: fn(&(f64, f64)) -> f64| points().map(of).reduce(f).unwrap_or(0.0);
    let (x0, x1) = (fold(f64::min, |p| p.0), fold(f64::max, |p| p.0));
    let (mut y0, y1) = (fold(f64::min, |p| p.1), fold(f64::max, |p| p.1));
    if from == From::Zero {
        y0 = y0.min(0.0);
    }
    let px = |x: f64| LEFT + (x - x0) / (x1 - x0).max(1e-12) * (WIDTH - LEFT - 18.0);
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
    for s in series {
        let (colour, _) = COLOURS[s.colour % COLOURS.len()];
        let stride = s.points.len().div_ceil(MOST_POINTS).max(1);
        let last = s.points.len().saturating_sub(1);
        let kept = s.points.iter().enumerate().filter(|(i, _)| i % stride == 0 || *i == last);
        let path: Vec<String> = kept.map(|(_, (x, y))| format!("{:.1},{:.1}", px(*x), py(*y))).collect();
        let (width, opacity) = if s.faint { (1, 0.3) } else { (2, 1.0) };
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" \
             stroke-opacity=\"{opacity}\" stroke-linejoin=\"round\"/>",
            path.join(" ")
        );
        if s.faint {
            continue;
        }
        let _ = writeln!(
            svg,
            "<rect x=\"{legend_x}\" y=\"4\" width=\"12\" height=\"4\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"11\">{}</text>",
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
    let raw = ((high - low) / 4.0).max(1e-12);
    let magnitude = 10f64.powf(raw.log10().floor());
    let step =
        [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|m| m * magnitude).find(|s| *s >= raw).unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    // Multiply rather than add, and round away the last bits, so labels print short.
    (first..=last).map(|i| format!("{:.3e}", i as f64 * step).parse().unwrap_or(0.0)).collect()
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
        let series = [Series::new("x", 0, vec![(0.0, 1.0)])];
        assert!(lines(&series, "step", From::Zero).is_empty());
    }

    #[test]
    fn small_numbers_have_ticks_too() {
        assert_eq!(ticks(0.0, 4e-4), [0.0, 1e-4, 2e-4, 3e-4, 4e-4]);
    }

    #[test]
    fn a_file_needs_no_style_sheet() {
        let series = Series::new("a & b", 0, (0..5000).map(|i| (f64::from(i), f64::from(i % 7))).collect());
        let file = document(&[("loss".into(), vec![series])], "step");
        assert!(!file.contains("var("), "{file}");
        assert!(file.contains("a &amp; b"));
        assert!(file.matches(',').count() <= 1002);
    }
}
