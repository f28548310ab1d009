//! The parsed page: html5ever's tree in one vector, in document order.
//!
//! `parse` feeds html5ever a piece at a time and counts the tree builder's work, so a
//! pathological page is cut short at the same byte on every machine (no timer). The
//! linked nodes it builds are then laid out in pre-order: a subtree is the range
//! `i..nodes[i].end`, so everything after parsing is a loop and nothing recurses.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};

use html5ever::interface::{ElemName, ElementFlags, NodeOrText, QuirksMode, TreeSink};
use html5ever::tendril::{StrTendril, TendrilSink};
use html5ever::{Attribute, LocalName, Namespace, ParseOpts, QualName, parse_document};

use super::tag::Tag;

/// Bytes fed to the parser between two looks at the work counter.
const PIECE: usize = 4096;
/// Tree-builder steps allowed per page, plus `WORK_PER_BYTE` for each byte of it.
const WORK_BASE: u64 = 2_000_000;
const WORK_PER_BYTE: u64 = 64;
/// Nodes allowed per page: reconstructed formatting elements can multiply.
const MAX_NODES: usize = 4_000_000;

/// One element or text node.
#[derive(Debug)]
pub struct Node {
    /// The element's tag; `Tag::Text` for text, `Tag::Document` for the root.
    pub tag: Tag,
    /// Index of the parent; the root is its own parent.
    pub parent: u32,
    /// One past the last node of this subtree.
    pub end: u32,
    /// Attributes, in source order.
    pub attrs: Vec<Attribute>,
    /// Text of a text node.
    pub text: StrTendril,
}

impl Node {
    /// The value of attribute `name`, if present.
    #[must_use]
    pub fn attr(&self, name: &str) -> Option<&str> {
        self.attrs.iter().find(|a| &*a.name.local == name).map(|a| &*a.value)
    }
}

/// A page's nodes in pre-order.
#[derive(Debug)]
pub struct Dom {
    /// The nodes; `nodes[0]` is the document.
    pub nodes: Vec<Node>,
    /// Whether the work limit cut the page short.
    pub truncated: bool,
}

impl Dom {
    /// Indices of the subtree of `i`, itself included.
    #[must_use]
    pub fn subtree(&self, i: usize) -> std::ops::Range<usize> {
        i..self.nodes[i].end as usize
    }

    /// The ancestors of `i`, nearest first, without the document.
    pub fn ancestors(&self, i: usize) -> impl Iterator<Item = usize> + '_ {
        let mut at = i;
        std::iter::from_fn(move || {
            let parent = self.nodes[at].parent as usize;
            (parent != 0 && at != 0).then(|| {
                at = parent;
                parent
            })
        })
    }

    /// The text below `i`, as written.
    #[must_use]
    pub fn text(&self, i: usize) -> String {
        let mut out = String::new();
        for node in &self.nodes[self.subtree(i)] {
            out.push_str(&node.text);
        }
        out
    }

    /// First element with `tag`, in document order.
    #[must_use]
    pub fn first(&self, tag: Tag) -> Option<usize> {
        self.nodes.iter().position(|n| n.tag == tag)
    }
}

/// Parses `html`; never fails, since HTML parsing cannot.
#[must_use]
pub fn parse(html: &str) -> Dom {
    let limit = WORK_BASE + WORK_PER_BYTE * html.len() as u64;
    let mut opts = ParseOpts::default();
    opts.tree_builder.drop_doctype = true;
    let mut parser = parse_document(Sink::new(), opts);
    let mut rest = html;
    let mut truncated = false;
    while !rest.is_empty() {
        let mut cut = PIECE.min(rest.len());
        while !rest.is_char_boundary(cut) {
            cut += 1;
        }
        let (piece, tail) = rest.split_at(cut);
        parser.process(StrTendril::from(piece));
        rest = tail;
        let sink = &parser.tokenizer.sink.sink;
        if sink.work.get() > limit || sink.nodes.borrow().len() > MAX_NODES {
            truncated = !rest.is_empty();
            break;
        }
    }
    let mut dom = parser.finish();
    dom.truncated = truncated;
    dom
}

const NONE: u32 = u32::MAX;

/// A node while the tree is built: linked, since the parser moves nodes about.
struct Link {
    name: Option<QualName>,
    attrs: Vec<Attribute>,
    text: StrTendril,
    parent: u32,
    prev: u32,
    next: u32,
    first: u32,
    last: u32,
}

impl Link {
    fn new(name: Option<QualName>, attrs: Vec<Attribute>, text: StrTendril) -> Self {
        Self { name, attrs, text, parent: NONE, prev: NONE, next: NONE, first: NONE, last: NONE }
    }
}

struct Sink {
    nodes: RefCell<Vec<Link>>,
    work: Cell<u64>,
}

impl Sink {
    fn new() -> Self {
        let root = Link::new(None, Vec::new(), StrTendril::new());
        Self { nodes: RefCell::new(vec![root]), work: Cell::new(0) }
    }

    fn step(&self) {
        self.work.set(self.work.get() + 1);
    }

    fn push(&self, link: Link) -> u32 {
        self.step();
        let mut nodes = self.nodes.borrow_mut();
        nodes.push(link);
        (nodes.len() - 1) as u32
    }

    fn detach(nodes: &mut [Link], i: u32) {
        let Link { parent, prev, next, .. } = nodes[i as usize];
        if parent == NONE {
            return;
        }
        match prev {
            NONE => nodes[parent as usize].first = next,
            p => nodes[p as usize].next = next,
        }
        match next {
            NONE => nodes[parent as usize].last = prev,
            n => nodes[n as usize].prev = prev,
        }
        let node = &mut nodes[i as usize];
        (node.parent, node.prev, node.next) = (NONE, NONE, NONE);
    }

    fn attach_last(nodes: &mut [Link], parent: u32, i: u32) {
        let last = nodes[parent as usize].last;
        nodes[i as usize].parent = parent;
        nodes[i as usize].prev = last;
        match last {
            NONE => nodes[parent as usize].first = i,
            l => nodes[l as usize].next = i,
        }
        nodes[parent as usize].last = i;
    }

    fn attach_before(nodes: &mut [Link], sibling: u32, i: u32) {
        let Link { parent, prev, .. } = nodes[sibling as usize];
        nodes[i as usize].parent = parent;
        nodes[i as usize].prev = prev;
        nodes[i as usize].next = sibling;
        nodes[sibling as usize].prev = i;
        match prev {
            NONE => nodes[parent as usize].first = i,
            p => nodes[p as usize].next = i,
        }
    }

    /// Appends `text` to node `i` if that is a text node.
    fn merge(nodes: &mut [Link], i: u32, text: &str) -> bool {
        if i == NONE {
            return false;
        }
        let node = &mut nodes[i as usize];
        let is_text = node.name.is_none() && !node.text.is_empty();
        if is_text {
            node.text.push_slice(text);
        }
        is_text
    }
}

/// An element's name by value: names are interned, so a copy is cheap.
#[derive(Debug)]
struct Name(QualName);

impl ElemName for Name {
    fn ns(&self) -> &Namespace {
        &self.0.ns
    }

    fn local_name(&self) -> &LocalName {
        &self.0.local
    }
}

impl TreeSink for Sink {
    type Handle = u32;
    type Output = Dom;
    type ElemName<'a> = Name;

    fn finish(self) -> Dom {
        flatten(self.nodes.into_inner())
    }

    fn parse_error(&self, _: Cow<'static, str>) {}

    fn get_document(&self) -> u32 {
        0
    }

    fn elem_name<'a>(&'a self, target: &'a u32) -> Name {
        self.step();
        let name = self.nodes.borrow()[*target as usize].name.clone();
        Name(name.expect("the parser asks only elements for their name"))
    }

    fn create_element(&self, name: QualName, attrs: Vec<Attribute>, _: ElementFlags) -> u32 {
        self.push(Link::new(Some(name), attrs, StrTendril::new()))
    }

    fn create_comment(&self, _: StrTendril) -> u32 {
        self.push(Link::new(None, Vec::new(), StrTendril::new()))
    }

    fn create_pi(&self, _: StrTendril, _: StrTendril) -> u32 {
        self.push(Link::new(None, Vec::new(), StrTendril::new()))
    }

    fn append(&self, parent: &u32, child: NodeOrText<u32>) {
        match child {
            NodeOrText::AppendNode(i) => {
                let nodes = &mut self.nodes.borrow_mut();
                Self::detach(nodes, i);
                Self::attach_last(nodes, *parent, i);
            }
            NodeOrText::AppendText(text) => {
                let last = self.nodes.borrow()[*parent as usize].last;
                if Self::merge(&mut self.nodes.borrow_mut(), last, &text) {
                    return;
                }
                let i = self.push(Link::new(None, Vec::new(), text));
                Self::attach_last(&mut self.nodes.borrow_mut(), *parent, i);
            }
        }
    }

    fn append_before_sibling(&self, sibling: &u32, new: NodeOrText<u32>) {
        let i = match new {
            NodeOrText::AppendNode(i) => i,
            NodeOrText::AppendText(text) => {
                let prev = self.nodes.borrow()[*sibling as usize].prev;
                if Self::merge(&mut self.nodes.borrow_mut(), prev, &text) {
                    return;
                }
                self.push(Link::new(None, Vec::new(), text))
            }
        };
        let nodes = &mut self.nodes.borrow_mut();
        if nodes[*sibling as usize].parent != NONE {
            Self::detach(nodes, i);
            Self::attach_before(nodes, *sibling, i);
        }
    }

    fn append_based_on_parent_node(&self, element: &u32, prev_element: &u32, child: NodeOrText<u32>) {
        if self.nodes.borrow()[*element as usize].parent != NONE {
            self.append_before_sibling(element, child);
        } else {
            self.append(prev_element, child);
        }
    }

    fn append_doctype_to_document(&self, _: StrTendril, _: StrTendril, _: StrTendril) {}

    fn get_template_contents(&self, target: &u32) -> u32 {
        *target
    }

    fn same_node(&self, x: &u32, y: &u32) -> bool {
        self.step();
        x == y
    }

    fn set_quirks_mode(&self, _: QuirksMode) {}

    fn add_attrs_if_missing(&self, target: &u32, attrs: Vec<Attribute>) {
        let node = &mut self.nodes.borrow_mut()[*target as usize];
        for attr in attrs {
            if node.attrs.iter().all(|a| a.name != attr.name) {
                node.attrs.push(attr);
            }
        }
    }

    fn remove_from_parent(&self, target: &u32) {
        Self::detach(&mut self.nodes.borrow_mut(), *target);
    }

    fn reparent_children(&self, node: &u32, new_parent: &u32) {
        let nodes = &mut self.nodes.borrow_mut();
        let mut child = nodes[*node as usize].first;
        while child != NONE {
            self.step();
            let next = nodes[child as usize].next;
            Self::detach(nodes, child);
            Self::attach_last(nodes, *new_parent, child);
            child = next;
        }
    }
}

/// Lays the linked nodes out in pre-order; comments and detached nodes fall away.
fn flatten(mut links: Vec<Link>) -> Dom {
    let mut nodes: Vec<Node> = Vec::with_capacity(links.len());
    let root = Node { tag: Tag::Document, parent: 0, end: 0, attrs: Vec::new(), text: StrTendril::new() };
    nodes.push(root);
    let (mut at, mut parent) = (links[0].first, 0u32);
    // `open` holds (link, laid-out index) of the elements around `at`.
    let mut open: Vec<(u32, u32)> = vec![(0, 0)];
    loop {
        if at == NONE {
            let (link, index) = open.pop().expect("the root is popped last");
            nodes[index as usize].end = nodes.len() as u32;
            let Some(&(_, up)) = open.last() else { break };
            parent = up;
            at = links[link as usize].next;
            continue;
        }
        let link = &mut links[at as usize];
        let attrs = std::mem::take(&mut link.attrs);
        match &link.name {
            Some(name) => {
                let index = nodes.len() as u32;
                let tag = Tag::of(&name.local);
                nodes.push(Node { tag, parent, end: 0, attrs, text: StrTendril::new() });
                open.push((at, index));
                parent = index;
                at = link.first;
            }
            None => {
                let text = std::mem::take(&mut link.text);
                if !text.is_empty() {
                    let end = nodes.len() as u32 + 1;
                    nodes.push(Node { tag: Tag::Text, parent, end, attrs, text });
                }
                at = link.next;
            }
        }
    }
    Dom { nodes, truncated: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outline(html: &str) -> String {
        let dom = parse(html);
        let mut out = String::new();
        for (i, node) in dom.nodes.iter().enumerate().skip(1) {
            let depth = dom.ancestors(i).count();
            let label =
                if node.tag == Tag::Text { format!("{:?}", &*node.text) } else { format!("{:?}", node.tag) };
            out.push_str(&format!("{}{label}\n", "  ".repeat(depth)));
        }
        out
    }

    #[test]
    fn nodes_come_in_document_order() {
        let got = outline("<p>one<b>two</b>three<p>four");
        assert_eq!(
            got,
            "Html\n  Head\n  Body\n    P\n      \"one\"\n      B\n        \"two\"\n      \"three\"\n    P\n      \"four\"\n"
        );
    }

    #[test]
    fn misnested_formatting_and_foster_parents_are_moved() {
        assert_eq!(
            outline("<table>stray<tr><td>cell</table>"),
            "Html\n  Head\n  Body\n    \"stray\"\n    Table\n      Tbody\n        Tr\n          Td\n            \"cell\"\n"
        );
        let dom = parse("<b><p>x</b>y</p>");
        assert_eq!(dom.text(0), "xy");
    }

    #[test]
    fn ends_bound_subtrees() {
        let dom = parse("<div><ul><li>a<li>b</ul></div><p>c");
        for (i, node) in dom.nodes.iter().enumerate() {
            assert!(i < node.end as usize || i == 0);
            assert!(node.end <= dom.nodes[node.parent as usize].end);
        }
        let ul = dom.first(Tag::Ul).unwrap();
        assert_eq!(dom.text(ul), "ab");
    }

    #[test]
    fn deep_nesting_ends_by_the_work_limit() {
        let html = "<div><p>".repeat(200_000);
        let dom = parse(&html);
        assert!(dom.truncated);
        assert!(dom.nodes.len() > 100);
    }
}
