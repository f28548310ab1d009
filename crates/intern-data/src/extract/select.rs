//! Chooses which blocks are the page's main text.
//!
//! Every block gets a weight: prose counts by its mass, link lists and crumbs of text
//! count against. Weights add up the tree; from the body we walk down while one child
//! holds nearly all of the weight, helped by what containers are named. Inside the
//! chosen container, blocks that read as boilerplate where they stand are left out.

use super::Mode;
use super::blocks::{Block, Kind};
use super::dom::Dom;
use super::hints::Hint;
use super::phrases;
use super::tag::Tag;

/// A child must hold this share of the weight to be entered instead of its parent.
const DESCEND: f32 = 0.92;
/// The same for containers named as the article's text.
const DESCEND_BODY: f32 = 0.4;
/// The same for `<main>`, `<article>` and containers named so.
const DESCEND_MAIN: f32 = 0.55;

/// Indices of the blocks that are main text, in reading order.
#[must_use]
pub fn select(dom: &Dom, hints: &[Hint], blocks: &[Block], mode: Mode) -> Vec<usize> {
    if blocks.is_empty() {
        return Vec::new();
    }
    let weights: Vec<f32> = blocks.iter().map(weight).collect();
    let mut sums = vec![0f32; dom.nodes.len()];
    for (b, w) in blocks.iter().zip(&weights) {
        sums[b.node as usize] += w;
    }
    for i in (1..dom.nodes.len()).rev() {
        let factor = if hints[i] == Hint::Weak { 0.5 } else { 1.0 };
        let sum = if sums[i] > 0.0 { sums[i] * factor } else { sums[i] };
        sums[i] = sum;
        sums[dom.nodes[i].parent as usize] += sum;
    }
    let root = descend(dom, hints, &sums);
    let range = dom.subtree(root);
    let inside: Vec<usize> =
        (0..blocks.len()).filter(|&k| range.contains(&(blocks[k].node as usize))).collect();
    let mut chosen = lead(blocks, hints, range.start);
    chosen.extend(prune(blocks, &inside, mode));
    chosen
}

/// What a block contributes to its containers.
fn weight(b: &Block) -> f32 {
    let mass = b.mass as f32;
    let density = b.link_density();
    let prose = (b.mass - b.link_mass.min(b.mass)) as f32 - 1.5 * b.link_mass as f32;
    match b.kind {
        Kind::Heading(_) => {
            if density > 0.5 {
                -5.0
            } else {
                5.0
            }
        }
        Kind::Pre => mass.min(400.0),
        _ if density > 0.5 => -(mass.min(60.0)) * 0.5,
        Kind::Paragraph => prose.min(600.0),
        Kind::Loose if b.mass < 25 => -8.0,
        Kind::Loose => 0.8 * prose.min(600.0),
        Kind::Item { .. } if b.mass < 25 => -2.0,
        Kind::Item { .. } => 0.6 * prose.min(400.0),
        Kind::Cell { .. } => 0.3 * prose.min(200.0),
        Kind::Caption | Kind::Term => 0.2 * prose.min(100.0),
    }
}

fn descend(dom: &Dom, hints: &[Hint], sums: &[f32]) -> usize {
    let mut root = dom.first(Tag::Body).unwrap_or(0);
    let total = sums[root].max(1.0);
    // The named containers, wherever they stand.
    for (wanted, share) in [(Hint::Body, DESCEND_BODY), (Hint::Main, DESCEND_MAIN)] {
        let best = dom
            .subtree(root)
            .filter(|&i| hints[i] == wanted && sums[i] >= share * total)
            .max_by(|&a, &b| sums[a].total_cmp(&sums[b]).then(a.cmp(&b)));
        if let Some(best) = best {
            root = best;
            break;
        }
    }
    loop {
        let mut child = root + 1;
        let end = dom.nodes[root].end as usize;
        let mut next = None;
        while child < end {
            if sums[child] >= DESCEND * sums[root].max(1.0)
                && sums[child] > 0.0
                && dom.nodes[child].tag.is_block()
            {
                next = Some(child);
                break;
            }
            child = dom.nodes[child].end as usize;
        }
        match next {
            // A single paragraph is no container, nor is an element that only wraps text: its
            // siblings, a heading above all, belong to it.
            Some(i)
                if dom.subtree(i).skip(1).any(|n| dom.nodes[n].tag.is_block())
                    && !matches!(
                        dom.nodes[i].tag,
                        Tag::P
                            | Tag::Ul
                            | Tag::Ol
                            | Tag::Table
                            | Tag::Tbody
                            | Tag::Tr
                            | Tag::Pre
                            | Tag::Li
                            | Tag::Blockquote
                    ) =>
            {
                root = i
            }
            _ => return root,
        }
    }
}

/// Most blocks of a lead, and its most mass.
const LEAD_BLOCKS: usize = 3;
const LEAD_MASS: u32 = 900;

/// The lead: sentences between the page's heading and the chosen container, which many
/// layouts put into the head of the article.
fn lead(blocks: &[Block], hints: &[Hint], root: usize) -> Vec<usize> {
    let before = blocks.partition_point(|b| (b.node as usize) < root);
    let heading = blocks[..before].iter().rposition(|b| b.kind == Kind::Heading(1));
    let Some(heading) = heading else { return Vec::new() };
    let reads = |b: &Block| {
        let prose = matches!(b.kind, Kind::Paragraph | Kind::Loose | Kind::Heading(_));
        prose
            && b.mass >= 30
            && b.link_density() < 0.2
            && b.ends_sentence()
            && hints[b.node as usize] != Hint::Boilerplate
            && !phrases::is_pointer(&b.text)
    };
    let found: Vec<usize> = (heading + 1..before).filter(|&k| reads(&blocks[k])).collect();
    let mass: u32 = found.iter().map(|&k| blocks[k].mass).sum();
    // More than that is another text.
    if found.len() > LEAD_BLOCKS || mass > LEAD_MASS { Vec::new() } else { found }
}

/// Leaves out what reads as boilerplate inside the chosen container.
fn prune(blocks: &[Block], inside: &[usize], mode: Mode) -> Vec<usize> {
    let mut keep: Vec<bool> = inside.iter().map(|&k| is_content(&blocks[k], mode)).collect();
    // A heading stays if content follows before the next heading of its level or above.
    for at in (0..inside.len()).rev() {
        if let Kind::Heading(level) = blocks[inside[at]].kind {
            let mut follows = false;
            for next in at + 1..inside.len() {
                match blocks[inside[next]].kind {
                    Kind::Heading(l) if l <= level => break,
                    Kind::Heading(_) => {}
                    _ if keep[next] => {
                        follows = true;
                        break;
                    }
                    _ => {}
                }
            }
            keep[at] &= follows;
        }
    }
    inside.iter().zip(keep).filter_map(|(&k, keep)| keep.then_some(k)).collect()
}

fn is_content(b: &Block, mode: Mode) -> bool {
    let density = b.link_density();
    // Precision asks more of every block, recall less.
    let (links, crumb) = match mode {
        Mode::Precision => (0.75, 40),
        Mode::Balanced => (1.0, 20),
        Mode::Recall => (1.3, 5),
    };
    if mode != Mode::Recall && phrases::is_pointer(&b.text) {
        return false;
    }
    match b.kind {
        Kind::Pre | Kind::Heading(_) => true,
        Kind::Paragraph => density < 0.9 * links || (b.mass > 200 && mode != Mode::Precision),
        Kind::Loose => density < 0.5 * links && (b.mass >= crumb || b.punctuation > 0 || b.ends_sentence()),
        // What a picture shows is told beside the text, not in it.
        Kind::Caption => mode == Mode::Recall,
        Kind::Item { .. } | Kind::Cell { .. } | Kind::Term => density < 0.7 * links,
    }
}
