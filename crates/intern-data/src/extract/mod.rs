//! Main-content extraction: a page in, its title and text out.
//!
//! html5ever parses (`dom`), class names and roles give hints (`hints`), the rest is cut
//! into blocks of text (`blocks`), the main ones are chosen (`select`) and written
//! (`render`). No step recurses or looks at a clock: the same page gives the same text
//! everywhere. Language identification and quality rules come later, as stages.

mod blocks;
mod dom;
mod hints;
mod interleave;
mod json_ld;
mod meta;
mod phrases;
mod render;
mod select;
mod tag;

use std::path::PathBuf;

use anyhow::Result;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use interleave::{Part, interleave};
pub use render::Format;

use crate::source::{self, Body, Item, Paths, Shard, SourceConfig, SourceKind, encoding};
use blocks::Block;
use dom::Dom;
use hints::Hint;
use tag::Tag;

/// How pages become text.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExtractConfig {
    /// Whether to look for the main text at all; `false` keeps all visible text.
    pub main_content: bool,
    /// What to do in doubt.
    pub mode: Mode,
    /// Plain text or Markdown.
    pub format: Format,
    /// Puts the title before the text when the text does not begin with it.
    pub title: bool,
}

impl Default for ExtractConfig {
    fn default() -> Self {
        Self { main_content: true, mode: Mode::Balanced, format: Format::Text, title: false }
    }
}

/// What to do with text that may or may not be main text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Leave it out: for training on clean prose.
    Precision,
    /// Decide by what is likely.
    #[default]
    Balanced,
    /// Keep it: nothing of the main text should be missing.
    Recall,
}

/// What a page says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// The title, without the site's name; empty if there is none.
    pub title: String,
    /// The main text.
    pub text: String,
    /// Language as the page declares it (`<html lang>`), empty if it does not.
    pub lang: String,
    /// The page's own address (`<link rel=canonical>` or `og:url`), empty if not given.
    pub canonical: String,
    /// Publication date as the page declares it, empty if it does not.
    pub date: String,
    /// Author as the page declares it, empty if it does not.
    pub author: String,
    /// The work limit cut the page short.
    pub truncated: bool,
}

/// Extracts the main text of `html`. Never fails: a page without text gives an empty one.
#[must_use]
pub fn extract(html: &str, config: &ExtractConfig) -> Extracted {
    let dom = dom::parse(html);
    let mut page = meta::read(&dom);
    page.truncated = dom.truncated;
    let blocks = main_blocks(&dom, config);
    page.text = render::render(blocks.iter(), config.format);
    // Some pages show their text by script only, but declare it to search engines.
    if config.main_content && page.text.len() < JSON_LD_BELOW {
        let declared = json_ld::article_body(html);
        if declared.len() > 4 * page.text.len() && declared.len() > JSON_LD_BELOW {
            page.text = declared;
        }
    }
    if config.title && !page.title.is_empty() && !page.text.starts_with(&page.title) {
        page.text = format!("{}\n\n{}", page.title, page.text);
    }
    page
}

/// Longest page that `files` reads, bytes.
const MAX_PAGE: usize = 8 << 20;
/// Pages extracted at once.
const CHUNK: usize = 64;

/// A page as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The file, and `#` with the number of its record in an archive.
    pub path: String,
    /// Its address, if an archive tells it.
    pub url: String,
    /// How its bytes were decoded.
    pub encoding: &'static str,
}

/// Extracts the pages of `paths` (HTML files and WARC archives, directories of them, patterns) on all
/// cores by `extract`, which gets text and address, and calls `each` with the result of every one, in
/// order.
///
/// # Errors
/// If a path is missing or a page unreadable, or whatever `each` fails with.
pub fn files<T: Send>(
    paths: &[PathBuf],
    extract: impl Fn(&str, &str) -> T + Sync,
    mut each: impl FnMut(Found, T) -> Result<()>,
) -> Result<()> {
    let archive = |kind| SourceConfig { name: String::new(), kind, path: Paths::default(), limit: 0 };
    let (pages, archives) = (archive(SourceKind::Html), archive(SourceKind::Warc));
    let endings = [pages.extensions(), archives.extensions()].concat();
    let mut files = Vec::new();
    for path in paths {
        files.extend(source::files::list(path, &endings)?);
    }
    let is_archive = |name: &str| archives.extensions().iter().any(|e| name.to_lowercase().ends_with(e));
    let mut flush = |batch: &mut Vec<(String, String, Vec<u8>, Option<String>)>| {
        let done: Vec<_> = std::mem::take(batch)
            .into_par_iter()
            .map(|(path, url, bytes, charset)| {
                let decoded = encoding::decode(&bytes, charset.as_deref(), true);
                let result = extract(&decoded.text, &url);
                (Found { path, url, encoding: decoded.encoding }, result)
            })
            .collect();
        done.into_iter().try_for_each(|(found, result)| each(found, result))
    };
    let mut batch = Vec::new();
    for file in files {
        let path = file.path.display().to_string();
        if !is_archive(&file.name) {
            batch.push((path, String::new(), source::read_page(&file.path, MAX_PAGE)?, None));
        } else {
            let shard = Shard { source: 0, files: vec![file] };
            for item in source::open(&archives, &shard, MAX_PAGE)? {
                if let Item::Page(raw) = item
                    && let Body::Bytes { bytes, html: true, charset } = raw.body
                {
                    let number = raw.id.rsplit('#').next().unwrap_or_default();
                    batch.push((format!("{path}#{number}"), raw.url, bytes, charset));
                }
                if batch.len() >= CHUNK {
                    flush(&mut batch)?;
                }
            }
        }
        if batch.len() >= CHUNK {
            flush(&mut batch)?;
        }
    }
    flush(&mut batch)
}

/// Texts shorter than this, in bytes, are compared with what the page declares.
const JSON_LD_BELOW: usize = 400;

/// Below this mass of text, the hints are suspected of having thrown the text away.
const TOO_LITTLE: u32 = 200;

fn main_blocks(dom: &Dom, config: &ExtractConfig) -> Vec<Block> {
    if !config.main_content {
        let skip: Vec<bool> = dom.nodes.iter().map(|n| n.tag.is_never_text()).collect();
        return blocks::cut(dom, &skip);
    }
    let mut hints: Vec<Hint> = dom.nodes.iter().map(hints::of).collect();
    doubt(dom, &mut hints);
    let strict = choose(dom, &hints, true, config.mode);
    if mass(&strict) >= TOO_LITTLE {
        return strict;
    }
    // Some pages wrap their whole text in elements with telling names.
    let lenient = choose(dom, &hints, false, config.mode);
    if mass(&lenient) > 2 * mass(&strict) { lenient } else { strict }
}

/// A name that says boilerplate is not believed where most of the page's prose stands.
fn doubt(dom: &Dom, hints: &mut [Hint]) {
    let prose = prose(dom);
    let total = prose[0];
    for i in 0..dom.nodes.len() {
        let tag = dom.nodes[i].tag;
        let certain = matches!(tag, Tag::Nav | Tag::Footer | Tag::Aside) || tag.is_never_text();
        if hints[i] == Hint::Boilerplate && !certain && 2 * prose[i] > total && total >= TOO_LITTLE {
            hints[i] = Hint::None;
        }
    }
}

/// Mass of the paragraphs below every node, links left out.
fn prose(dom: &Dom) -> Vec<u32> {
    let mut sums = vec![0u32; dom.nodes.len()];
    let (mut in_paragraph, mut in_link, mut never) = (0, 0, 0);
    for (i, node) in dom.nodes.iter().enumerate() {
        match node.tag {
            Tag::P => in_paragraph = in_paragraph.max(node.end),
            Tag::A => in_link = in_link.max(node.end),
            tag if tag.is_never_text() => never = never.max(node.end),
            Tag::Text if (i as u32) >= in_link && (i as u32) >= never => {
                let long = (i as u32) < in_paragraph || node.text.len() > 80;
                if long {
                    sums[i] = node.text.chars().map(blocks::char_mass).sum();
                }
            }
            _ => {}
        }
    }
    for i in (1..dom.nodes.len()).rev() {
        sums[dom.nodes[i].parent as usize] += sums[i];
    }
    sums
}

fn choose(dom: &Dom, hints: &[Hint], obey: bool, mode: Mode) -> Vec<Block> {
    let skip: Vec<bool> = dom
        .nodes
        .iter()
        .zip(hints)
        .map(|(n, hint)| n.tag.is_never_text() || (obey && *hint == Hint::Boilerplate))
        .collect();
    let blocks = blocks::cut(dom, &skip);
    let chosen = select::select(dom, hints, &blocks, mode);
    chosen.into_iter().map(|k| blocks[k].clone()).collect()
}

fn mass(blocks: &[Block]) -> u32 {
    blocks.iter().map(|b| b.mass).sum()
}
