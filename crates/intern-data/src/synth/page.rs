//! Renders lessons as the kind of web page a crawl finds: menus, ads, cookie
//! notices, copies under other addresses, and bytes in the wrong encoding.
//!
//! `gold.jsonl` has one line per page: `path`, the main `text` that extraction
//! should give, and `kind`: `plain`, `exact-duplicate`, `near-duplicate` or `broken-encoding`,
//! with `duplicate_of` for the copies.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use intern_format::atomic::write_atomic;
use intern_kernels::rng::Rng;
use serde_json::json;

use super::problems::Language;
use super::{STREAM_PAGES, SynthConfig, lessons};

/// How a page's bytes relate to its text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bytes {
    Utf8,
    /// GB18030 (or windows-1252), declared in a `meta` tag.
    Declared,
    /// GB18030 with nothing declared.
    Undeclared,
    /// UTF-8 cut inside a character near the end.
    Damaged,
}

struct Page {
    language: Language,
    title: String,
    paragraphs: Vec<String>,
    bytes: Bytes,
}

/// Writes `pages/*.html` and `gold.jsonl`; returns the number of pages.
pub fn write_pages(config: &SynthConfig, taken: &HashSet<String>, out: &Path) -> Result<usize> {
    let mut gold = String::new();
    let mut count = 0;
    let mut write = |page: &Page, rng: &mut Rng, kind: &str, of: Option<&str>| -> Result<String> {
        let name = format!("pages/lesson-{count:05}.html");
        count += 1;
        write_atomic(&out.join(&name), &render(page, rng))?;
        let text = format!("{}\n\n{}", page.title, page.paragraphs.join("\n\n"));
        let mut line = json!({"path": name, "text": text, "kind": kind, "lang": page.language.code()});
        if let Some(of) = of {
            line["duplicate_of"] = json!(of);
        }
        writeln!(gold, "{line}")?;
        Ok(name)
    };
    for i in 0..config.pages {
        // One stream per page, so that a page does not depend on those before it.
        let mut rng = Rng::new(config.seed, (STREAM_PAGES << 32) | i as u64);
        let language = Language::ALL[i % Language::ALL.len()];
        let (title, paragraphs) = lessons::document(language, config.lessons_per_page, taken, &mut rng);
        let broken = rng.chance(config.broken_encodings);
        let bytes = if broken {
            *rng.pick(&[Bytes::Declared, Bytes::Undeclared, Bytes::Damaged])
        } else {
            Bytes::Utf8
        };
        let mut page = Page { language, title, paragraphs, bytes };
        let name = write(&page, &mut rng, if broken { "broken-encoding" } else { "plain" }, None)?;
        page.bytes = Bytes::Utf8;
        if rng.chance(config.exact_duplicates) {
            write(&page, &mut rng, "exact-duplicate", Some(&name))?;
        }
        if rng.chance(config.near_duplicates) {
            change_a_little(&mut page, taken, &mut rng);
            write(&page, &mut rng, "near-duplicate", Some(&name))?;
        }
    }
    write_atomic(&out.join("gold.jsonl"), gold.as_bytes())?;
    Ok(count)
}

/// A new last lesson: most of the page stays the same.
fn change_a_little(page: &mut Page, taken: &HashSet<String>, rng: &mut Rng) {
    let (_, mut fresh) = lessons::document(page.language, 1, taken, rng);
    page.paragraphs.pop();
    page.paragraphs.append(&mut fresh);
}

fn render(page: &Page, rng: &mut Rng) -> Vec<u8> {
    let html = html(page, rng);
    match (page.bytes, page.language) {
        (Bytes::Utf8, _) => html.into_bytes(),
        (Bytes::Declared | Bytes::Undeclared, Language::Chinese) => {
            encoding_rs::GB18030.encode(&html).0.into_owned()
        }
        (Bytes::Declared | Bytes::Undeclared, Language::English) => {
            encoding_rs::WINDOWS_1252.encode(&html).0.into_owned()
        }
        (Bytes::Damaged, _) => {
            // A lone continuation byte in the footer, as a cut-off upload leaves it.
            let mut bytes = html.into_bytes();
            let at = bytes.len() - "</body></html>\n".len();
            bytes.splice(at..at, [0xe4, 0xbd]);
            bytes
        }
    }
}

fn html(page: &Page, rng: &mut Rng) -> String {
    let english = page.language == Language::English;
    let say = |en: &'static str, zh: &'static str| if english { en } else { zh };
    let charset = match (page.bytes, english) {
        (Bytes::Utf8 | Bytes::Damaged, _) => "<meta charset=\"utf-8\">",
        (Bytes::Declared, true) => "<meta charset=\"windows-1252\">",
        (Bytes::Declared, false) => "<meta charset=\"gb18030\">",
        (Bytes::Undeclared, _) => "",
    };
    let menu: String = (0..rng.range(4, 8))
        .map(|_| {
            format!(
                "<li><a href=\"/{}\">{}</a></li>",
                rng.below(1000),
                rng.pick(if english { EN_MENU } else { ZH_MENU })
            )
        })
        .collect();
    let ads = if english { EN_ADS } else { ZH_ADS };
    let body: String =
        page.paragraphs.iter().map(|p| format!("<p>{}</p>\n", escape(p).replace('\n', "<br>\n"))).collect();
    let (open, close) = *rng.pick(&[
        ("<main><article>", "</article></main>"),
        ("<article>", "</article>"),
        ("<div class=\"content\">", "</div>"),
    ]);
    format!(
        "<!doctype html>\n<html lang=\"{lang}\"><head>{charset}<title>{title} | {site}</title>\
         <style>body{{font-family:sans-serif}}</style><script>var page={number};</script></head>\n<body>\n\
         <header><nav class=\"menu\"><ul>{menu}</ul></nav></header>\n\
         <div class=\"cookie-banner\">{cookies} <button>{accept}</button></div>\n\
         {open}<h1>{title}</h1>\n{body}{close}\n\
         <aside class=\"sidebar ad\"><div class=\"advert\"><a href=\"/buy\">{ad}</a></div></aside>\n\
         <footer><p>&copy; 2024 {site}. <a href=\"/terms\">{terms}</a></p></footer>\n</body></html>\n",
        lang = page.language.code(),
        title = escape(&page.title),
        site = say("Lessons Online", "在线课堂"),
        number = rng.below(100_000),
        cookies =
            say("This site uses cookies to improve your visit.", "本网站使用Cookie来改善您的访问体验。"),
        accept = say("Accept", "接受"),
        ad = rng.pick(ads),
        terms = say("Terms of use", "使用条款"),
    )
}

const EN_MENU: &[&str] =
    &["Home", "Lessons", "Tests", "Teachers", "Shop", "Contact", "News", "Log in", "Forum"];
const ZH_MENU: &[&str] = &["首页", "课程", "测验", "教师", "商店", "联系我们", "新闻", "登录", "论坛"];
const EN_ADS: &[&str] = &[
    "Buy two notebooks and pay for one! Only today.",
    "Learn faster with our premium plan. Try it free.",
    "Cheap school bags in every colour. Click here.",
];
const ZH_ADS: &[&str] =
    &["笔记本买一送一，仅限今天！", "升级会员，学习更快，免费试用。", "各色书包低价出售，点击这里。"];

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
