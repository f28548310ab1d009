//! The element names extraction cares about, and what kind each is.

use html5ever::LocalName;

macro_rules! tags {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// An element's name; `Other` for those extraction treats as plain inline wrappers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Tag { Document, Text, Other, $($variant),* }

        impl Tag {
            /// The tag of an element name.
            #[must_use]
            pub fn of(name: &LocalName) -> Self {
                match &**name { $($name => Self::$variant,)* _ => Self::Other }
            }
        }
    };
}

tags! {
    A "a", Address "address", Annotation "annotation", Article "article", Aside "aside", Audio "audio", B "b", Base "base",
    Blockquote "blockquote", Body "body", Br "br", Button "button", Canvas "canvas", Caption "caption",
    Center "center", Code "code", Col "col", Dd "dd", Details "details", Dialog "dialog", Div "div",
    Dl "dl", Dt "dt", Em "em", Embed "embed", Fieldset "fieldset", Figcaption "figcaption",
    Figure "figure", Footer "footer", Form "form", H1 "h1", H2 "h2", H3 "h3", H4 "h4", H5 "h5",
    H6 "h6", Head "head", Header "header", Hgroup "hgroup", Hr "hr", Html "html", I "i", Iframe "iframe", Img "img",
    Input "input", Label "label", Legend "legend", Li "li", Link "link", Main "main", Map "map",
    Math "math", Menu "menu", Meta "meta", Nav "nav", Noscript "noscript", Object "object",
    Ol "ol", Option "option", P "p", Picture "picture", Pre "pre", Q "q", Rp "rp", Rt "rt", Script "script",
    Section "section", Select "select", Span "span", Strong "strong", Style "style", Sub "sub",
    Summary "summary", Sup "sup", Svg "svg", Table "table", Tbody "tbody", Td "td", Template "template",
    Textarea "textarea", Tfoot "tfoot", Th "th", Thead "thead", Time "time", Title "title", Tr "tr",
    Tt "tt", Ul "ul", Video "video", Wbr "wbr",
}

impl Tag {
    /// Starts and ends a block of text.
    #[must_use]
    pub fn is_block(self) -> bool {
        use Tag::*;
        matches!(
            self,
            Address
                | Article
                | Aside
                | Blockquote
                | Body
                | Caption
                | Center
                | Dd
                | Details
                | Dialog
                | Div
                | Dl
                | Dt
                | Fieldset
                | Figcaption
                | Figure
                | Footer
                | Form
                | H1
                | H2
                | H3
                | H4
                | H5
                | H6
                | Header
                | Hgroup
                | Hr
                | Html
                | Legend
                | Li
                | Main
                | Menu
                | Nav
                | Ol
                | P
                | Pre
                | Section
                | Summary
                | Table
                | Tbody
                | Td
                | Tfoot
                | Th
                | Thead
                | Tr
                | Ul
                | Document
        )
    }

    /// Holds no prose in any mode.
    #[must_use]
    pub fn is_never_text(self) -> bool {
        use Tag::*;
        matches!(
            self,
            Audio
                | Button
                | Canvas
                | Dialog
                | Embed
                | Head
                | Iframe
                | Input
                | Link
                | Map
                | Meta
                | Noscript
                | Object
                | Option
                | Picture
                | Rp
                | Rt
                | Script
                | Select
                | Style
                | Svg
                | Template
                | Textarea
                | Title
                | Video
        )
    }

    /// `1..=6` for headings.
    #[must_use]
    pub fn heading_level(self) -> Option<u8> {
        use Tag::*;
        [H1, H2, H3, H4, H5, H6].iter().position(|t| *t == self).map(|i| i as u8 + 1)
    }
}
