//! A curve in a few lines of text, of Braille dots.

/// Dots of a character: two columns of four.
const DOTS: [[u32; 4]; 2] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];

/// Draws `values` from left to right in `width` by `height` characters, with the highest and the lowest
/// value beside them. Where there are more values than columns of dots, a column has their mean; what is
/// no number is left out.
#[must_use]
pub fn chart(values: &[f64], width: usize, height: usize) -> String {
    let columns = (2 * width).min(values.len());
    let mean = |c: usize| {
        let part = &values[c * values.len() / columns..(c + 1) * values.len() / columns];
        let finite = part.iter().filter(|v| v.is_finite());
        let n = finite.clone().count();
        (n > 0).then(|| finite.sum::<f64>() / n as f64)
    };
    let means: Vec<Option<f64>> = (0..columns).map(mean).collect();
    let known = means.iter().flatten();
    let (low, high) =
        (known.clone().copied().fold(f64::MAX, f64::min), known.copied().fold(f64::MIN, f64::max));
    if low > high {
        return String::new();
    }
    let mut cells = vec![vec![0u32; width]; height];
    let rows = 4 * height - 1;
    let row = |v: f64| (((high - v) / (high - low).max(1e-12)) * rows as f64).round() as usize;
    let mut before = None;
    for (c, value) in means.iter().enumerate() {
        let Some(here) = value.map(row) else { continue };
        // A steep step is a line, not two dots.
        let from =
            before.map_or(here, |b: usize| if b < here { b + 1 } else { b.saturating_sub(1).max(here) });
        for y in from.min(here)..=from.max(here) {
            cells[y / 4][c / 2] |= DOTS[c % 2][y % 4];
        }
        before = Some(here);
    }
    let mut out = String::new();
    for (i, line) in cells.iter().enumerate() {
        let label = match i {
            0 => format!("{high:>10.3} "),
            i if i + 1 == height => format!("{low:>10.3} "),
            _ => " ".repeat(11),
        };
        let dots: String = line.iter().map(|d| char::from_u32(0x2800 + d).unwrap_or(' ')).collect();
        if i > 0 {
            out.push('\n');
        }
        out += &label;
        out += dots.trim_end_matches('\u{2800}');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_falling_line_falls() {
        let falling: Vec<f64> = (0..8).map(|i| 7.0 - f64::from(i)).collect();
        let text = chart(&falling, 4, 2);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines, ["     7.000 ⠑⢄", "     0.000 \u{2800}\u{2800}⠑⢄"]);
        // More values than dots, a gap, and one value only.
        let many: Vec<f64> = (0..1000).map(|i| if i % 7 == 0 { f64::NAN } else { f64::from(i) }).collect();
        assert!(chart(&many, 10, 3).lines().count() == 3);
        assert_eq!(chart(&[], 10, 3), "");
        assert_eq!(chart(&[f64::NAN], 10, 3), "");
        assert!(chart(&[2.5], 10, 1).starts_with("     2.500 "));
    }
}
