//! Title, language, address, author and date, as a page declares them.

use super::Extracted;
use super::dom::Dom;
use super::tag::Tag;

/// Reads everything but the text.
#[must_use]
pub fn read(dom: &Dom) -> Extracted {
    let mut page = Extracted::default();
    let mut og_title = String::new();
    let mut head_title = String::new();
    let mut h1 = String::new();
    for (i, node) in dom.nodes.iter().enumerate() {
        match node.tag {
            Tag::Html => set(&mut page.lang, node.attr("lang")),
            Tag::Title if head_title.is_empty() && !in_svg(dom, i) => head_title = tidy(&dom.text(i)),
            Tag::H1 if h1.is_empty() => h1 = tidy(&dom.text(i)),
            Tag::Link if node.attr("rel") == Some("canonical") => set(&mut page.canonical, node.attr("href")),
            Tag::Meta => {
                let key = node.attr("property").or_else(|| node.attr("name")).unwrap_or_default();
                let content = node.attr("content");
                match key.to_ascii_lowercase().as_str() {
                    "og:title" => set(&mut og_title, content),
                    "og:url" => set(&mut page.canonical, content),
                    "author" | "article:author" | "dc.creator" => set(&mut page.author, content),
                    "article:published_time" | "date" | "dc.date" | "dcterms.date" | "datepublished" => {
                        set(&mut page.date, content);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }
    page.title = choose_title(&og_title, &head_title, &h1);
    page
}

fn set(field: &mut String, value: Option<&str>) {
    if field.is_empty()
        && let Some(value) = value
    {
        *field = tidy(value);
    }
}

fn in_svg(dom: &Dom, i: usize) -> bool {
    dom.ancestors(i).any(|a| dom.nodes[a].tag == Tag::Svg)
}

fn tidy(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The page's own title: a heading that the document title contains, else the document
/// title without the site's name, else what there is.
fn choose_title(og: &str, head: &str, h1: &str) -> String {
    if !h1.is_empty() && (head.contains(h1) || og.contains(h1)) {
        return h1.to_string();
    }
    let base = if og.is_empty() { head } else { og };
    let base = if base.is_empty() { h1 } else { base };
    for separator in [" | ", " – ", " — ", " - ", " » ", " · ", " :: "] {
        if let Some((left, right)) = base.rsplit_once(separator)
            && left.chars().count() > right.chars().count()
        {
            return left.trim().to_string();
        }
    }
    base.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::dom::parse;
    use super::*;

    #[test]
    fn a_title_loses_the_site_name() {
        let page = read(&parse("<html lang=en><title>A long enough title | Site</title><p>x"));
        assert_eq!((page.title.as_str(), page.lang.as_str()), ("A long enough title", "en"));
        let page = read(&parse("<title>Site: Page</title><h1>Page</h1>"));
        assert_eq!(page.title, "Page");
    }
}
