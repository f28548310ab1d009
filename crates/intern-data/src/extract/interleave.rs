//! The main text of a page with its pictures where they stand, as OBELICS has it (Laurençon et al.,
//! 2023): what vision-language models are trained on.

use std::collections::HashSet;

use url::Url;

use super::blocks::Block;
use super::dom::{Dom, Node};
use super::hints::{self, Hint};
use super::tag::Tag;
use super::{ExtractConfig, Extracted, dom, main_blocks, meta, render};

/// A place of an interleaved document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text up to the next picture.
    Text(String),
    /// Address of a picture: absolute if the page's own address is known.
    Image(String),
}

/// Sides stated below this, in pixels, are those of icons and of pictures that count visits.
const ICON: u32 = 50;

/// Extracts the main text of `html` with its pictures; `url` is the page's address, if known.
#[must_use]
pub fn interleave(html: &str, url: &str, config: &ExtractConfig) -> (Extracted, Vec<Part>) {
    let dom = dom::parse(html);
    let mut page = meta::read(&dom);
    page.truncated = dom.truncated;
    let blocks = main_blocks(&dom, config);
    page.text = render::render(blocks.iter(), config.format);
    let base = [url, &page.canonical].into_iter().find_map(|u| Url::parse(u).ok());
    let base = base_of(&dom, base);
    let mut parts = Vec::new();
    let mut since: Vec<&Block> = Vec::new();
    let mut rest = blocks.iter().peekable();
    for (at, source) in images(&dom, &blocks) {
        while let Some(block) = rest.next_if(|b| b.node < at) {
            since.push(block);
        }
        flush(&mut since, config, &mut parts);
        let address = match &base {
            Some(base) => base.join(&source).map(String::from).unwrap_or(source),
            None => source,
        };
        parts.push(Part::Image(address));
    }
    since.extend(rest);
    flush(&mut since, config, &mut parts);
    (page, parts)
}

fn flush(since: &mut Vec<&Block>, config: &ExtractConfig, parts: &mut Vec<Part>) {
    if !since.is_empty() {
        parts.push(Part::Text(render::render(since.drain(..), config.format)));
    }
}

fn base_of(dom: &Dom, url: Option<Url>) -> Option<Url> {
    let base = dom.nodes.iter().find(|n| n.tag == Tag::Base).and_then(|n| n.attr("href"));
    match (url, base) {
        (Some(url), Some(base)) => url.join(base).ok().or(Some(url)),
        (None, Some(base)) => Url::parse(base).ok(),
        (url, None) => url,
    }
}

/// Node and source of the pictures among the chosen blocks.
fn images(dom: &Dom, blocks: &[Block]) -> Vec<(u32, String)> {
    let chosen: HashSet<u32> = blocks.iter().map(|b| b.node).collect();
    let (Some(&first), Some(&last)) = (chosen.iter().min(), chosen.iter().max()) else { return Vec::new() };
    let has_chosen = |i: usize| dom.subtree(i).any(|n| chosen.contains(&(n as u32)));
    let (mut i, end) = (first as usize, dom.nodes[last as usize].end as usize);
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    while i < end.min(dom.nodes.len()) {
        let node = &dom.nodes[i];
        // `noscript` repeats the pictures a script would load.
        let apart = hints::of(node) == Hint::Boilerplate && !has_chosen(i);
        if apart || (node.tag.is_never_text() && node.tag != Tag::Img) {
            i = (node.end as usize).max(i + 1);
            continue;
        }
        if node.tag == Tag::Img
            && let Some(source) = source(node)
            && seen.insert(source.clone())
        {
            found.push((i as u32, source));
        }
        i += 1;
    }
    found
}

/// Where the picture is; pages that load pictures late keep it in other attributes.
fn source(node: &Node) -> Option<String> {
    let side = |name: &str| node.attr(name).and_then(|v| v.trim_end_matches("px").trim().parse::<u32>().ok());
    if ["width", "height"].iter().any(|name| side(name).is_some_and(|n| n < ICON)) {
        return None;
    }
    let plain =
        ["data-src", "data-original", "data-lazy-src", "src"].into_iter().filter_map(|n| node.attr(n));
    let largest = node.attr("srcset").and_then(|set| set.rsplit(',').next()?.split_whitespace().next());
    let is_picture =
        |s: &&str| !s.is_empty() && !s.starts_with("data:") && !s.to_lowercase().ends_with(".svg");
    plain.map(str::trim).chain(largest).find(is_picture).map(String::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_stand_where_the_page_has_them() {
        let filler = "The old bridge was built in the spring of that year, when the river stood low and the masons \
                      of three villages could work from both banks at once.";
        let html = format!(
            "<link rel=canonical href=https://a.org/b/c.html><body><header><img src=logo.png></header><main>\
             <h1>Bridges</h1><figure><img src=one.jpg><figcaption>The first of them, in winter.</figcaption></figure>\
             <p>{filler}</p><p>{filler}<img src=x.gif width=1 height=1></p><img data-src=/two.png src='data:image/gif;base64,R'>\
             <p>{filler} Twice.</p><img src=one.jpg><div class=related><img src=ad.png></div><p>{filler}</p></main>\
             <footer><img src=f.png></footer>"
        );
        let (page, parts) = interleave(&html, "", &ExtractConfig::default());
        let image = |s: &str| Part::Image(s.into());
        let pictures: Vec<&Part> = parts.iter().filter(|p| matches!(p, Part::Image(_))).collect();
        assert_eq!(
            pictures,
            [&image("https://a.org/b/one.jpg"), &image("https://a.org/two.png")],
            "{parts:?}"
        );
        assert_eq!(parts[0], Part::Text("Bridges".into()));
        assert!(
            matches!(&parts[2], Part::Text(t) if t.starts_with("The first of them") || t == &format!("{filler}\n\n{filler}"))
        );
        let texts: Vec<&str> = parts
            .iter()
            .filter_map(|p| if let Part::Text(t) = p { Some(t.as_str()) } else { None })
            .collect();
        assert_eq!(texts.join("\n\n"), page.text);
        assert_eq!(interleave("", "", &ExtractConfig::default()).1, []);
    }
}
