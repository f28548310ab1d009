//! Small pages, each with one thing that extraction must get right.

use intern_data::extract::{ExtractConfig, Format, extract};

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
fn hostile_pages_end() {
    let config = ExtractConfig::default();
    let deep = "<div>".repeat(100_000) + FILLER;
    let _ = extract(&deep, &config);
    let formatting = "<b><i><a>".repeat(3000) + &"<p>x".repeat(3000);
    let _ = extract(&formatting, &config);
    assert_eq!(extract("", &config).text, "");
    assert_eq!(extract("\u{0}<\u{0}>", &config).text, "");
}
