//! Draws a report as one HTML page: no scripts, no other files, readable on a phone.

use std::fmt::Write as _;

use super::{Report, Sample, Step};

/// The page.
#[must_use]
pub fn page(report: &Report) -> String {
    let mut body = String::from("<h1>What became of the pages</h1>\n");
    summary(report, &mut body);
    funnel(&report.funnel, &mut body);
    for note in &report.notes {
        let _ = writeln!(body, "<p class=\"note\">{}</p>", escape(note));
    }
    gold(report, &mut body);
    lengths(report, &mut body);
    tables(report, &mut body);
    rules(report, &mut body);
    body.push_str("<h2>Kept documents</h2>\n");
    report.kept.iter().for_each(|s| sample(s, &mut body));
    document("What became of the pages", &body)
}

/// A whole page with this body.
pub fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

fn summary(report: &Report, out: &mut String) {
    let (Some(first), Some(last)) = (report.funnel.first(), report.funnel.last()) else { return };
    let _ = writeln!(
        out,
        "<p>{} pages read, <b>{} documents kept</b> ({:.1} %), {} characters of text.</p>",
        grouped(first.documents),
        grouped(last.documents),
        percent(last.documents, first.documents),
        grouped(last.characters)
    );
}

/// Bars from all pages down to the kept ones; the part each stage dropped is lighter.
pub fn funnel(steps: &[Step], out: &mut String) {
    const ROW: usize = 34;
    let all = steps.first().map_or(1, |s| s.documents).max(1);
    out.push_str("<h2>Funnel</h2>\n");
    let _ = writeln!(out, "<svg viewBox=\"0 0 640 {}\" role=\"img\">", ROW * steps.len());
    for (i, step) in steps.iter().enumerate() {
        let y = i * ROW + 4;
        let width = |n: u64| 330.0 * n as f64 / all as f64;
        let (left, came) = (width(step.documents), width(step.documents + step.dropped));
        let dropped = match step.dropped {
            0 => String::new(),
            n => format!("  −{} ({:.1} %)", grouped(n), 100.0 * step.dropped_share),
        };
        let _ = writeln!(
            out,
            "<text x=\"112\" y=\"{ty}\" text-anchor=\"end\" class=\"ink\">{label}</text>\
             <rect x=\"120\" y=\"{y}\" width=\"{came:.1}\" height=\"24\" rx=\"3\" class=\"gone\"/>\
             <rect x=\"120\" y=\"{y}\" width=\"{left:.1}\" height=\"24\" rx=\"3\" class=\"bar\"/>\
             <text x=\"{tx:.1}\" y=\"{ty}\">{n}{dropped}</text>",
            ty = y + 16,
            tx = 128.0 + came,
            label = escape(&step.label),
            n = grouped(step.documents),
        );
    }
    out.push_str("</svg>\n");
}

fn gold(report: &Report, out: &mut String) {
    let Some(gold) = &report.gold else { return };
    let _ = writeln!(
        out,
        "<h2>Cleaning scored</h2>\n<p>Against {} pages whose text is known, word by word: \
         precision {:.4}, recall {:.4}, <b>F1 {:.4}</b>.</p>",
        grouped(gold.pages),
        gold.precision,
        gold.recall,
        gold.f1
    );
    let rows = gold.groups.iter().map(|g| {
        let numbers = [g.pages, g.kept, g.copies, g.other].map(grouped);
        let mut row = vec![g.kind.clone(), format!("{:.4}", g.f1)];
        row.extend(numbers);
        row
    });
    table(&["Group", "F1", "Pages", "Kept", "Dropped as copies", "Dropped otherwise"], rows, out);
    if !gold.worst.is_empty() {
        let worst: Vec<String> =
            gold.worst.iter().map(|(f, id)| format!("{} ({f:.3})", escape(id))).collect();
        let _ = writeln!(out, "<p class=\"note\">Worst pages: {}</p>", worst.join(", "));
    }
}

fn lengths(report: &Report, out: &mut String) {
    let top = report.lengths.iter().map(|l| l.before).max().unwrap_or(0);
    if top == 0 {
        return;
    }
    out.push_str("<h2>Length of documents</h2>\n<p class=\"note\">Characters; light: before cleaning, dark: kept.</p>\n");
    out.push_str("<svg viewBox=\"0 0 640 190\" role=\"img\">\n");
    let step = 620.0 / report.lengths.len() as f64;
    for (i, l) in report.lengths.iter().enumerate() {
        let x = 10.0 + step * i as f64;
        let height = |n: u64| 140.0 * n as f64 / top as f64;
        for (n, class) in [(l.before, "gone"), (l.kept, "bar")] {
            let h = height(n);
            let _ = write!(
                out,
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{h:.1}\" class=\"{class}\"/>",
                160.0 - h,
                step * 0.86
            );
        }
        let middle = x + step * 0.43;
        let _ = writeln!(
            out,
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
             <text x=\"{middle:.1}\" y=\"178\" text-anchor=\"middle\">{}</text>",
            155.0 - height(l.before),
            if l.before > 0 { short(l.before) } else { String::new() },
            short(l.from)
        );
    }
    out.push_str("</svg>\n");
}

fn tables(report: &Report, out: &mut String) {
    out.push_str("<h2>Sources</h2>\n");
    let rows = report
        .sources
        .iter()
        .map(|s| vec![s.name.clone(), grouped(s.pages), grouped(s.documents), grouped(s.characters)]);
    table(&["Source", "Pages", "Documents kept", "Characters kept"], rows, out);
    for (title, list) in [
        ("Languages", &report.languages),
        ("Encodings", &report.encodings.pages),
        ("Changes to the text", &report.edits),
        ("Records that are no pages", &report.passed),
    ] {
        if !list.is_empty() {
            let _ = writeln!(out, "<h2>{title}</h2>");
            table(&["", "Count"], list.iter().map(|(k, n)| vec![k.clone(), grouped(*n)]), out);
        }
    }
    if !report.broken_records.is_empty() {
        out.push_str("<h2>Broken records</h2>\n<ul>\n");
        for what in &report.broken_records {
            let _ = writeln!(out, "<li>{}</li>", escape(what));
        }
        out.push_str("</ul>\n");
    }
}

fn rules(report: &Report, out: &mut String) {
    out.push_str("<h2>Dropped documents, by rule</h2>\n");
    for rule in &report.rules {
        let _ = writeln!(
            out,
            "<details><summary><b>{}</b> {} <span class=\"n\">{}</span></summary>",
            escape(&rule.stage),
            escape(&rule.rule),
            grouped(rule.dropped)
        );
        rule.samples.iter().for_each(|s| sample(s, out));
        out.push_str("</details>\n");
    }
}

fn sample(s: &Sample, out: &mut String) {
    let why = if s.why.is_empty() { String::new() } else { format!(" · {}", escape(&s.why)) };
    let _ = writeln!(
        out,
        "<div class=\"sample\"><b>{}</b>{why}\n<pre>{}</pre></div>",
        escape(&s.id),
        escape(&s.text)
    );
}

pub fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>, out: &mut String) {
    let cell = |i: usize, text: &str, tag: &str| {
        let class = if i > 0 { " class=\"n\"" } else { "" };
        format!("<{tag}{class}>{}</{tag}>", escape(text))
    };
    let row = |cells: Vec<String>| format!("<tr>{}</tr>\n", cells.concat());
    out.push_str("<div class=\"scroll\"><table>\n");
    out.push_str(&row(head.iter().enumerate().map(|(i, h)| cell(i, h, "th")).collect()));
    for cells in rows {
        out.push_str(&row(cells.iter().enumerate().map(|(i, c)| cell(i, c, "td")).collect()));
    }
    out.push_str("</table></div>\n");
}

/// `1234567` → `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// `16384` → `16k`.
fn short(n: u64) -> String {
    match n {
        0..1000 => n.to_string(),
        1000..1_000_000 => format!("{}k", n / 1000),
        _ => format!("{}M", n / 1_000_000),
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Control characters are not allowed in HTML, nor may text turn the page's direction.
            c if c.is_control() && c != '\n' && c != '\t' => {}
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            c => out.push(c),
        }
    }
    out
}

const STYLE: &str = "\
:root { --ink: #1b1f24; --soft: #667; --line: #d9dde3; --paper: #fff; --a: #2563a8; --gone: #c9d8ea; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa3ad; --line: #3a414a; --paper: #15181c; --a: #6aa9ee; --gone: #2c405a; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 46rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.note { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); }
.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font: 12px system-ui, sans-serif; white-space: pre; }
svg text.ink { fill: var(--ink); } rect.bar { fill: var(--a); } rect.gone { fill: var(--gone); }
details { border-bottom: 1px solid var(--line); padding: .4rem 0; } summary .n { float: right; }
.sample { border-left: 3px solid var(--line); padding: .1rem .8rem; margin: .6rem 0; font-size: .85rem; color: var(--soft); }
.sample pre { margin: .2rem 0; white-space: pre-wrap; overflow-wrap: anywhere; color: var(--ink);
  font: 13px/1.45 ui-monospace, monospace; max-height: 14rem; overflow-y: auto; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .8rem; }
figure { margin: 0; } figure img { max-width: 100%; border-radius: 3px; display: block; }
figcaption { color: var(--soft); font-size: .72rem; line-height: 1.3; margin-top: .2rem; }
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_and_texts_are_safe_to_show() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(escape("<script>\u{202e}\u{0}\"&"), "&lt;script&gt;&quot;&amp;");
    }
}
