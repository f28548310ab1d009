//! Small pages, each with one thing that extraction must get right.

use intern_data::extract::{ExtractConfig, Format, Part, extract, files, interleave};

const FILLER: &str = "The old bridge was built in the spring of that year, when the river stood low and the masons \
                      of three villages could work from both banks at once.";

#[track_caller]
fn check(format: Format, html: &str, expect: &str) {
    let config = ExtractConfig { format, ..ExtractConfig::default() };
    assert_eq!(extract(html, &config).text, expect);
}

#[test]
fn boilerplate_goes_and_structure_stays() {
    let html = format!(
        "<title>Bridges | Site</title><body><header><nav><a href=/>Home</a> <a href=/b>Blog</a></nav></header>\
         <div id=cookie-notice>We use cookies</div><main><h1>Bridges</h1><p>{FILLER}</p><h2>Parts</h2>\
         <ul><li>an arch<li>a pier</ul><ol><li>first</li><li>second</li></ol>\
         <table><tr><th>Name<th>Year<tr><td>Old Bridge<td>1566</table>\
         <pre><code>fn main() {{\n    build();\n}}</code></pre></main>\
         <aside class=related><p>{FILLER}</p></aside><footer>All rights reserved</footer>"
    );
    check(
        Format::Text,
        &html,
        &format!(
            "Bridges\n\n{FILLER}\n\nParts\n\n- an arch\n- a pier\n1. first\n2. second\n\nName | Year\nOld Bridge | 1566\n\n\
             fn main() {{\n    build();\n}}"
        ),
    );
    check(
        Format::Markdown,
        &html,
        &format!(
            "# Bridges\n\n{FILLER}\n\n## Parts\n\n- an arch\n- a pier\n1. first\n2. second\n\nName | Year\n\
             Old Bridge | 1566\n\n```\nfn main() {{\n    build();\n}}\n```"
        ),
    );
}

#[test]
fn a_misleading_name_does_not_cost_the_text() {
    let html = format!(
        "<body><div class='has-sidebar'><div class=text><p>{FILLER}</p><p>{FILLER} Twice.</p></div></div>"
    );
    check(Format::Text, &html, &format!("{FILLER}\n\n{FILLER} Twice."));
}

#[test]
fn pages_of_archives_are_found_with_their_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let page = format!("<body><main><p>{FILLER}</p><img src=a.png><p>{FILLER} Twice.</p></main>");
    let http = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{page}");
    let record = format!(
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: https://b.org/c/d.html\r\n\
         Content-Type: application/http; msgtype=response\r\nContent-Length: {}\r\n\r\n{http}\r\n\r\n",
        http.len()
    );
    std::fs::write(dir.path().join("x.warc"), record.repeat(100)).unwrap();
    std::fs::write(dir.path().join("y.html"), &page).unwrap();
    let mut found = Vec::new();
    let extract = |html: &str, url: &str| interleave(html, url, &ExtractConfig::default()).1;
    files(&[dir.path().to_path_buf()], extract, |page, parts| {
        found.push((page, parts));
        Ok(())
    })
    .unwrap();
    assert_eq!(found.len(), 101);
    assert!(found[1].0.path.ends_with("x.warc#2") && found[100].0.path.ends_with("y.html"));
    assert_eq!(found[99].1[1], Part::Image("https://b.org/c/a.png".into()));
    assert_eq!(found[100].1[1], Part::Image("a.png".into()));
}

#[test]
fn hostile_pages_end() {
    let config = ExtractConfig::default();
    let deep = "<div>".repeat(100_000) + FILLER;
    let _ = extract(&deep, &config);
    let formatting = "<b><i><a>".repeat(3000) + &"<p>x".repeat(3000);
    let _ = extract(&formatting, &config);
    assert_eq!(extract("", &config).text, "");
    assert_eq!(extract("\u{0}<\u{0}>", &config).text, "");
}
