//! What an element's class, id and role say about it, before any of its text is read.
//!
//! Names are cut into lower-case words (`postContent`, `post-content` → `post`, `content`)
//! so that `ad` is not found in `header`. The lists are general web vocabulary in the
//! languages whose sites name their classes natively (English, some German and French).

use super::dom::Node;
use super::tag::Tag;

/// What names promise about an element's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Menus, comments, sharing, adverts: left out with all below it.
    Boilerplate,
    /// Likely not the main text (teasers, bylines, site headers): counts less.
    Weak,
    /// Says nothing.
    None,
    /// Named as the page's main part (`main`, `content`).
    Main,
    /// Named as the text itself (`article-body`, `entry-content`).
    Body,
}

/// Reads an element's hint from its tag, role, class and id.
#[must_use]
pub fn of(node: &Node) -> Hint {
    if is_hidden(node) {
        return Hint::Boilerplate;
    }
    let by_name = by_name(node);
    match node.attr("role") {
        Some(
            "navigation" | "banner" | "complementary" | "contentinfo" | "search" | "dialog" | "alert"
            | "menu" | "menubar" | "toolbar" | "tablist" | "alertdialog",
        ) => return Hint::Boilerplate,
        Some("main") if by_name != Hint::Body => return Hint::Main,
        Some("article") if by_name != Hint::Body => return Hint::Main,
        _ => {}
    }
    if node.attr("itemprop").is_some_and(|v| matches!(v, "articleBody" | "text" | "recipeInstructions")) {
        return Hint::Body;
    }
    match node.tag {
        Tag::Nav | Tag::Menu => Hint::Boilerplate,
        Tag::Aside | Tag::Footer if by_name == Hint::None => Hint::Boilerplate,
        Tag::Main | Tag::Article if matches!(by_name, Hint::None | Hint::Weak) => Hint::Main,
        Tag::Html | Tag::Body | Tag::Main | Tag::Article if by_name == Hint::Boilerplate => Hint::None,
        _ => by_name,
    }
}

/// Not shown by a browser, or shown only to screen readers.
fn is_hidden(node: &Node) -> bool {
    node.attr("hidden").is_some()
        || node.attr("aria-hidden") == Some("true")
        || node.attr("style").is_some_and(|s| {
            let s: String = s.chars().filter(|c| !c.is_whitespace()).collect();
            s.contains("display:none") || s.contains("visibility:hidden")
        })
}

fn by_name(node: &Node) -> Hint {
    let mut words: Vec<String> = Vec::new();
    for name in ["class", "id"] {
        if let Some(value) = node.attr(name) {
            split_words(value, &mut words);
        }
    }
    if words.is_empty() {
        return Hint::None;
    }
    let has = |w: &str| words.iter().any(|x| x == w);
    let strong = words.iter().any(|w| is_boilerplate(w)) || is_boilerplate_pair(&words);
    // "article-comments" is about comments; "comments-article-body" hardly exists.
    if strong {
        return Hint::Boilerplate;
    }
    let text_part =
        ["content", "body", "text", "entry", "inhalt", "contenu", "contenido", "copy"].iter().any(|w| has(w));
    let article_part = ["article", "post", "entry", "story", "artikel", "beitrag", "blog", "news", "page"]
        .iter()
        .any(|w| has(w));
    let joined = words.iter().any(|w| {
        matches!(
            w.as_str(),
            "articlebody"
                | "articletext"
                | "articlecontent"
                | "postcontent"
                | "postbody"
                | "entrycontent"
                | "storybody"
                | "storytext"
                | "newstext"
                | "bodytext"
                | "artikeltext"
                | "posttext"
                | "fulltext"
                | "blogcontent"
        )
    });
    if joined || (text_part && article_part) {
        return Hint::Body;
    }
    if words.iter().any(|w| is_weak(w)) {
        return Hint::Weak;
    }
    let main = [
        "main",
        "content",
        "article",
        "post",
        "story",
        "entry",
        "maincontent",
        "inhalt",
        "hauptinhalt",
        "contenu",
    ]
    .iter()
    .any(|w| has(w));
    if main { Hint::Main } else { Hint::None }
}

/// Cuts `value` at separators and case changes, into lower-case words.
fn split_words(value: &str, out: &mut Vec<String>) {
    let mut word = String::new();
    let mut lower_before = false;
    for c in value.chars() {
        if !c.is_alphanumeric() {
            flush(&mut word, out);
            lower_before = false;
            continue;
        }
        if c.is_uppercase() && lower_before {
            flush(&mut word, out);
        }
        lower_before = c.is_lowercase() || c.is_numeric();
        word.extend(c.to_lowercase());
    }
    flush(&mut word, out);
}

fn flush(word: &mut String, out: &mut Vec<String>) {
    if !word.is_empty() {
        out.push(std::mem::take(word));
    }
}

/// Words that alone mark an element as no main text.
fn is_boilerplate(word: &str) -> bool {
    const STEMS: &[&str] = &[
        "sidebar",
        "comment",
        "kommentar",
        "cookie",
        "newsletter",
        "breadcrumb",
        "navigation",
        "pagination",
        "paginator",
        "sponsor",
        "advert",
        "recommend",
        "disqus",
        "taboola",
        "outbrain",
        "sharedaddy",
        "related",
        "relatedpost",
        "socialmedia",
        "subscri",
        "tagcloud",
        "masthead",
        "mainmenu",
        "topmenu",
        "submenu",
        "navbar",
        "werbung",
        "publicidad",
        "footer",
        "shariff",
        "addthis",
        "sharethis",
        "colophon",
        "mostread",
        "mostpopular",
        "readmore",
        "morefrom",
        "promobox",
        "dropdown",
        "lightbox",
        "screenreader",
        "trackback",
        "syndicat",
        "paywall",
        "embedly",
        "anzeige",
        "impressum",
        "fusszeile",
        "metanav",
        "skiplink",
        "jumpnav",
        "toolbar",
        "offcanvas",
        "livefyre",
        "similarpost",
        "bookmarks",
        "postmeta",
        "entrymeta",
        "postinfo",
        "articlemeta",
    ];
    match word {
        "nav" | "menu" | "menus" | "crumb" | "crumbs" | "ad" | "ads" | "adv" | "adbox" | "adslot"
        | "adsense" | "share" | "sharing" | "sharebar" | "shares" | "social" | "socials" | "rss" | "gdpr"
        | "consent" | "popup" | "modal" | "overlay" | "widget" | "widgets" | "login" | "signin"
        | "signup" | "pager" | "pagenav" | "promo" | "promos" | "banner" | "banners" | "reply"
        | "respond" | "replies" | "noprint" | "sr" | "sronly" | "hidden" | "invisible" | "copyright"
        | "tags" | "taglist" | "foot" | "navi" | "subnav" | "topbar" | "ticker" | "carousel" | "rating"
        | "ratings" | "feedback" | "poll" | "print" | "printonly" | "mod-share" | "facebook" | "twitter"
        | "pinterest" | "whatsapp" | "likes" | "upvote" | "rail" | "marginalie" | "marginal"
        | "authorbox" | "bio" | "vcard" => true,
        "commentary" | "commentaire" => false,
        _ => STEMS.iter().any(|stem| word.starts_with(stem)),
    }
}

/// Pairs of words that mark boilerplate only together.
fn is_boilerplate_pair(words: &[String]) -> bool {
    const PAIRS: &[(&str, &str)] = &[
        ("author", "box"),
        ("author", "info"),
        ("about", "author"),
        ("author", "bio"),
        ("post", "meta"),
        ("entry", "meta"),
        ("article", "meta"),
        ("post", "navigation"),
        ("read", "next"),
        ("read", "more"),
        ("see", "also"),
        ("more", "stories"),
        ("more", "news"),
        ("side", "bar"),
        ("side", "column"),
        ("right", "column"),
        ("left", "column"),
        ("bread", "crumb"),
        ("site", "header"),
        ("page", "header"),
        ("header", "nav"),
        ("screen", "reader"),
        ("visually", "hidden"),
        ("site", "info"),
        ("similar", "posts"),
        ("similar", "articles"),
        ("popular", "posts"),
        ("latest", "posts"),
        ("recent", "posts"),
        ("latest", "news"),
        ("also", "like"),
        ("jump", "link"),
        ("skip", "link"),
        ("skip", "content"),
        ("tag", "list"),
        ("tag", "cloud"),
        ("post", "tags"),
        ("entry", "tags"),
        ("cat", "links"),
        ("category", "links"),
        ("search", "form"),
        ("contact", "form"),
        ("post", "footer"),
        ("entry", "footer"),
        ("mehr", "zum"),
        ("site", "footer"),
        ("edit", "section"),
        ("mw", "editsection"),
        ("sticky", "header"),
        ("mobile", "header"),
        ("main", "header"),
        ("top", "header"),
        ("meta", "data"),
        ("to", "top"),
    ];
    PAIRS.iter().any(|(a, b)| words.windows(2).any(|w| w[0] == *a && w[1] == *b))
}

/// Words that lower the expectation without deciding.
fn is_weak(word: &str) -> bool {
    matches!(
        word,
        "header"
            | "meta"
            | "metadata"
            | "byline"
            | "info"
            | "infos"
            | "date"
            | "author"
            | "autor"
            | "tag"
            | "category"
            | "categories"
            | "caption"
            | "credit"
            | "credits"
            | "list"
            | "links"
            | "link"
            | "side"
            | "right"
            | "left"
            | "secondary"
            | "tools"
            | "services"
            | "service"
            | "box"
            | "card"
            | "cards"
            | "item"
            | "archive"
            | "latest"
            | "popular"
            | "trending"
            | "recent"
            | "more"
            | "next"
            | "prev"
            | "previous"
            | "legal"
            | "disclaimer"
            | "form"
            | "search"
            | "logo"
            | "top"
            | "bottom"
            | "button"
            | "btn"
            | "notice"
            | "alert"
            | "toc"
            | "teaser"
            | "teasers"
            | "register"
            | "cta"
            | "contact"
            | "kontakt"
            | "gallery"
            | "slider"
    )
}

#[cfg(test)]
mod tests {
    use super::super::dom::parse;
    use super::*;

    #[track_caller]
    fn check(html: &str, expect: Hint) {
        let dom = parse(html);
        let body = dom.first(Tag::Body).unwrap();
        assert_eq!(of(&dom.nodes[body + 1]), expect, "{html}");
    }

    #[test]
    fn names_are_read_word_by_word() {
        check("<div class='header'>", Hint::Weak);
        check("<div class='post-content'>", Hint::Body);
        check("<div id='articleBody'>", Hint::Body);
        check("<div class='adContent'>", Hint::Boilerplate);
        check("<div class='gradient'>", Hint::None);
        check("<div class='article-comments'>", Hint::Boilerplate);
        check("<div class='sidebarLeft'>", Hint::Boilerplate);
        check("<div id='content'>", Hint::Main);
        check("<nav>", Hint::Boilerplate);
        check("<div role='contentinfo'>", Hint::Boilerplate);
        check("<div style='display : none'>", Hint::Boilerplate);
        check("<div class='commentary'>", Hint::None);
        check("<p class='postmetadata'>", Hint::Boilerplate);
    }
}
