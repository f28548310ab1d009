//! Cuts a page into blocks: runs of inline text between block-level boundaries.
//!
//! Whitespace collapses as a browser would show it, `<br>` is a line break, a double
//! `<br>` ends the block, `<pre>` stays verbatim. Each block knows how much of it is
//! link text and where it stands, which is all that `select` looks at.

use super::dom::Dom;
use super::tag::Tag;

/// What a block is to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text of a `<p>`.
    Paragraph,
    /// Text directly in a `<div>` or another container.
    Loose,
    /// A heading of this level, 1–6.
    Heading(u8),
    /// Text in a list item: `first` begins the item, `ordinal` is its number in an `<ol>`.
    Item {
        /// First block of its item.
        first: bool,
        /// 1-based number in an ordered list, 0 in an unordered one.
        ordinal: u32,
        /// Lists around this one.
        depth: u8,
    },
    /// A cell of a data table.
    Cell {
        /// First cell of its row.
        first: bool,
        /// `<th>`.
        header: bool,
    },
    /// Verbatim text.
    Pre,
    /// A caption of a figure.
    Caption,
    /// A term of a definition list, or the caption of a table.
    Term,
}

/// A run of text with nothing block-level inside.
#[derive(Clone, Debug)]
pub struct Block {
    /// Index of the innermost block element around the text.
    pub node: u32,
    /// Its place among the page's shapes.
    pub kind: Kind,
    /// Inside a `<blockquote>`.
    pub quoted: bool,
    /// Normalized text; lines are separated by `\n`.
    pub text: String,
    /// Text mass: letters and digits, a CJK character counting 3.
    pub mass: u32,
    /// Mass inside links.
    pub link_mass: u32,
    /// Sentence punctuation seen (`. , ; : ! ?` and the CJK forms).
    pub punctuation: u32,
}

impl Block {
    /// Share of the mass inside links, 0..=1.
    #[must_use]
    pub fn link_density(&self) -> f32 {
        if self.mass == 0 { 0.0 } else { self.link_mass as f32 / self.mass as f32 }
    }

    /// Ends as a sentence does.
    #[must_use]
    pub fn ends_sentence(&self) -> bool {
        let end = self.text.trim_end_matches(['"', '\'', ')', '”', '’', '»', '」', '』', '）', ']']);
        end.ends_with(['.', '!', '?', '…', '。', '！', '？', ':', '：', ';', '；', '।', '؟'])
    }
}

/// The mass of one character: letters and digits count, a CJK character as a short word.
#[must_use]
pub fn char_mass(c: char) -> u32 {
    match c {
        '\u{3040}'..='\u{30ff}'
        | '\u{3400}'..='\u{9fff}'
        | '\u{ac00}'..='\u{d7af}'
        | '\u{f900}'..='\u{faff}' => 3,
        c if (c as u32) < 128 => u32::from(c.is_ascii_alphanumeric()),
        c => u32::from(c.is_alphanumeric()),
    }
}

/// Cuts the page (without the subtrees marked in `skip`) into blocks, in reading order.
#[must_use]
pub fn cut(dom: &Dom, skip: &[bool]) -> Vec<Block> {
    let mut cutter = Cutter::new(dom);
    let mut i = 0;
    while i < dom.nodes.len() {
        cutter.close_until(i);
        let node = &dom.nodes[i];
        if skip[i] {
            if node.tag.is_block() {
                cutter.flush();
            }
            i = node.end as usize;
            continue;
        }
        match node.tag {
            Tag::Text => cutter.text(&node.text),
            Tag::Br => cutter.line_break(),
            Tag::Math => {
                if let Some(tex) = tex_of(dom, i) {
                    cutter.text(&tex);
                    i = node.end as usize;
                    continue;
                }
                cutter.open(i);
            }
            _ => cutter.open(i),
        }
        i += 1;
    }
    cutter.close_until(usize::MAX);
    cutter.blocks
}

/// TeX source of a formula, as MathJax, KaTeX and Wikipedia keep it, in dollars.
fn tex_of(dom: &Dom, math: usize) -> Option<String> {
    let annotated = dom
        .subtree(math)
        .find(|&i| {
            dom.nodes[i].tag == Tag::Annotation
                && dom.nodes[i].attr("encoding").is_some_and(|e| e.contains("tex"))
        })
        .map(|i| dom.text(i));
    let tex = annotated.or_else(|| dom.nodes[math].attr("alttext").map(String::from))?;
    let mut tex = tex.trim();
    if let Some(inner) = tex.strip_prefix("{\\displaystyle").and_then(|t| t.strip_suffix('}')) {
        tex = inner.trim();
    }
    Some(format!("${tex}$"))
}

/// Tables that hold data: several short cells per row, nothing nested.
fn is_data_table(dom: &Dom, table: usize) -> bool {
    if matches!(dom.nodes[table].attr("role"), Some("presentation" | "none")) {
        return false;
    }
    let (mut rows, mut cells, mut text) = (0, 0, 0);
    for node in &dom.nodes[table + 1..dom.nodes[table].end as usize] {
        match node.tag {
            Tag::Table => return false,
            Tag::Tr => rows += 1,
            Tag::Td | Tag::Th => cells += 1,
            Tag::Text => text += node.text.trim().len(),
            _ => {}
        }
    }
    rows >= 2 && cells * 2 >= rows * 3 && text / cells.max(1) < 200
}

/// An open element and what has been counted in it.
struct Frame {
    node: u32,
    /// `Li`: its number, 0 if unordered. `Ol`, `Tr`: children so far.
    count: u32,
    /// `Li`, `Td`, `Th`: a block of it is out.
    used: bool,
    /// `Table`: holds data.
    data: bool,
}

struct Cutter<'a> {
    dom: &'a Dom,
    blocks: Vec<Block>,
    open: Vec<Frame>,
    links: u32,
    pre: u32,
    quotes: u32,
    lists: u32,
    text: String,
    /// A collapsed space waits for the next visible character.
    space: bool,
    /// `<br>`s since the last visible character.
    breaks: u32,
    sums: Sums,
}

#[derive(Clone, Copy, Default)]
struct Sums {
    mass: u32,
    link_mass: u32,
    punctuation: u32,
}

impl<'a> Cutter<'a> {
    fn new(dom: &'a Dom) -> Self {
        Self {
            dom,
            blocks: Vec::new(),
            open: Vec::new(),
            links: 0,
            pre: 0,
            quotes: 0,
            lists: 0,
            text: String::new(),
            space: false,
            breaks: 0,
            sums: Sums::default(),
        }
    }

    fn open(&mut self, i: usize) {
        let tag = self.dom.nodes[i].tag;
        if tag.is_block() {
            self.flush();
        }
        let mut frame = Frame { node: i as u32, count: 0, used: false, data: false };
        match tag {
            Tag::A => self.links += 1,
            Tag::Pre => self.pre += 1,
            Tag::Blockquote => self.quotes += 1,
            Tag::Ul | Tag::Ol => self.lists += 1,
            Tag::Table => frame.data = is_data_table(self.dom, i),
            Tag::Li => {
                if let Some(list) = self.open.last_mut()
                    && self.dom.nodes[list.node as usize].tag == Tag::Ol
                {
                    list.count += 1;
                    frame.count = list.count;
                }
            }
            Tag::Td | Tag::Th => {
                if let Some(row) = self.open.last_mut() {
                    row.count += 1;
                    frame.count = row.count;
                }
            }
            _ => {}
        }
        self.open.push(frame);
    }

    /// Closes the elements that end at or before `i`.
    fn close_until(&mut self, i: usize) {
        while let Some(top) = self.open.last() {
            let node = &self.dom.nodes[top.node as usize];
            if node.end as usize > i {
                break;
            }
            if node.tag.is_block() {
                self.flush();
            }
            match node.tag {
                Tag::A => self.links -= 1,
                Tag::Pre => self.pre -= 1,
                Tag::Blockquote => self.quotes -= 1,
                Tag::Ul | Tag::Ol => self.lists -= 1,
                _ => {}
            }
            self.open.pop();
        }
    }

    fn text(&mut self, text: &str) {
        if self.pre > 0 {
            self.text.push_str(text);
            for c in text.chars() {
                self.count(c);
            }
            return;
        }
        for c in text.chars() {
            if c.is_whitespace() || c == '\u{200b}' || c == '\u{feff}' || c == '\u{ad}' {
                self.space |= c.is_whitespace();
                continue;
            }
            if self.breaks > 0 && !self.text.is_empty() {
                self.text.push('\n');
            } else if self.space && !self.text.is_empty() {
                self.text.push(' ');
            }
            (self.space, self.breaks) = (false, 0);
            self.text.push(c);
            self.count(c);
        }
    }

    fn count(&mut self, c: char) {
        let mass = char_mass(c);
        let sums = &mut self.sums;
        sums.mass += mass;
        if self.links > 0 {
            sums.link_mass += mass;
        }
        if matches!(
            c,
            '.' | ',' | ';' | ':' | '!' | '?' | '。' | '，' | '；' | '：' | '！' | '？' | '、' | '…'
        ) {
            sums.punctuation += 1;
        }
    }

    fn line_break(&mut self) {
        if self.pre > 0 {
            self.text.push('\n');
            return;
        }
        self.breaks += 1;
        if self.breaks >= 2 {
            self.flush();
        }
    }

    /// Ends the block being written; blocks without letters or digits are dropped, unless verbatim.
    fn flush(&mut self) {
        (self.space, self.breaks) = (false, 0);
        let sums = std::mem::take(&mut self.sums);
        let text = std::mem::take(&mut self.text);
        if sums.mass == 0 {
            return;
        }
        let (node, kind) = self.place();
        let text = if kind == Kind::Pre { text.trim_matches('\n').trim_end().to_string() } else { text };
        self.blocks.push(Block {
            node,
            kind,
            quoted: self.quotes > 0,
            text,
            mass: sums.mass,
            link_mass: sums.link_mass,
            punctuation: sums.punctuation,
        });
    }

    /// The innermost block element, and the kind its surroundings give.
    fn place(&mut self) -> (u32, Kind) {
        let mut node = None;
        let mut paragraph = false;
        // Deeper than this, nothing changes what a block is.
        for at in (0..self.open.len()).rev().take(64) {
            let i = self.open[at].node;
            let tag = self.dom.nodes[i as usize].tag;
            if tag.is_block() && node.is_none() {
                node = Some(i);
            }
            let node = node.unwrap_or(i);
            match tag {
                Tag::Pre => return (node, Kind::Pre),
                Tag::Figcaption => return (node, Kind::Caption),
                Tag::Caption => return (node, Kind::Term),
                Tag::Dt => return (node, Kind::Term),
                Tag::Li => {
                    let first = !std::mem::replace(&mut self.open[at].used, true);
                    if paragraph && !first {
                        return (node, Kind::Paragraph);
                    }
                    let depth = self.lists.clamp(1, 8) as u8;
                    return (node, Kind::Item { first, ordinal: self.open[at].count, depth });
                }
                Tag::Td | Tag::Th => {
                    let mut around = self.open[..at].iter().rev().take(8);
                    let table = around.find(|f| self.dom.nodes[f.node as usize].tag == Tag::Table);
                    if table.is_some_and(|f| f.data) {
                        let first = self.open[at].count == 1 && !self.open[at].used;
                        self.open[at].used = true;
                        return (node, Kind::Cell { first, header: tag == Tag::Th });
                    }
                }
                Tag::P => paragraph = true,
                _ => {
                    if let Some(level) = tag.heading_level() {
                        return (node, Kind::Heading(level));
                    }
                }
            }
        }
        (node.unwrap_or(0), if paragraph { Kind::Paragraph } else { Kind::Loose })
    }
}

#[cfg(test)]
mod tests {
    use super::super::dom::parse;
    use super::*;

    fn blocks(html: &str) -> Vec<(Kind, String)> {
        let dom = parse(html);
        let skip = vec![false; dom.nodes.len()];
        cut(&dom, &skip).into_iter().map(|b| (b.kind, b.text)).collect()
    }

    #[test]
    fn whitespace_collapses_and_breaks_split() {
        assert_eq!(
            blocks("<p>a  \n b<br>c<br><br> d</p>e <b>f</b>"),
            [
                (Kind::Paragraph, "a b\nc".to_string()),
                (Kind::Paragraph, "d".to_string()),
                (Kind::Loose, "e f".to_string())
            ]
        );
    }

    #[test]
    fn code_keeps_its_whitespace() {
        assert_eq!(
            blocks("<pre><code>\nfn main() {\n    x();\n}\n</code></pre>"),
            [(Kind::Pre, "fn main() {\n    x();\n}".to_string())]
        );
    }

    #[test]
    fn lists_and_tables_are_numbered() {
        let got = blocks("<ol><li>a<p>b</p></li><li>c</li></ol><table><tr><td>1<td>2<tr><td>3<td>4</table>");
        let item = |first, ordinal| Kind::Item { first, ordinal, depth: 1 };
        assert_eq!(got[0], (item(true, 1), "a".to_string()));
        assert_eq!(got[1].0, Kind::Paragraph);
        assert_eq!(got[2], (item(true, 2), "c".to_string()));
        assert_eq!(got[3], (Kind::Cell { first: true, header: false }, "1".to_string()));
        assert_eq!(got[4], (Kind::Cell { first: false, header: false }, "2".to_string()));
    }

    #[test]
    fn link_mass_and_formulas() {
        let dom = parse("<p>see <a href=x>this page</a> <math alttext='x^2'><mi>x</mi></math></p>");
        let skip = vec![false; dom.nodes.len()];
        let b = &cut(&dom, &skip)[0];
        assert_eq!(b.text, "see this page $x^2$");
        assert_eq!(b.link_mass, 8);
    }
}
