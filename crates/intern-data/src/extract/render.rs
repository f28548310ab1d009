//! Writes the chosen blocks as plain text or Markdown.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::blocks::{Block, Kind};

/// How the structure of a page is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Paragraphs apart by a blank line, list items with `- ` or their number, table cells
    /// with ` | ` between, code as it stands.
    #[default]
    Text,
    /// Also `#` before headings, `>` before quotations, fences around code.
    Markdown,
}

/// The text of `chosen` blocks.
#[must_use]
pub fn render<'a>(chosen: impl Iterator<Item = &'a Block>, format: Format) -> String {
    let markdown = format == Format::Markdown;
    let mut out = String::new();
    let mut before: Option<&Block> = None;
    for b in chosen {
        if let Some(a) = before {
            out.push_str(separator(a, b));
        }
        match b.kind {
            Kind::Heading(level) if markdown => {
                out.extend(std::iter::repeat_n('#', level as usize));
                out.push(' ');
                out.push_str(&b.text.replace('\n', " "));
            }
            Kind::Item { first, ordinal, depth } => {
                out.extend(std::iter::repeat_n("  ", depth as usize - 1));
                match (first, ordinal) {
                    (true, 0) => out.push_str("- "),
                    (true, n) => {
                        let _ = write!(out, "{n}. ");
                    }
                    (false, _) => out.push_str("  "),
                }
                out.push_str(&b.text);
            }
            Kind::Cell { .. } => out.push_str(&b.text.replace('\n', " ")),
            Kind::Pre if markdown => {
                let fence = if b.text.contains("```") { "````" } else { "```" };
                let _ = write!(out, "{fence}\n{}\n{fence}", b.text);
            }
            _ if b.quoted && markdown => {
                out.push_str("> ");
                out.push_str(&b.text.replace('\n', "\n> "));
            }
            _ => out.push_str(&b.text),
        }
        before = Some(b);
    }
    out
}

fn separator(a: &Block, b: &Block) -> &'static str {
    match (a.kind, b.kind) {
        (Kind::Cell { .. }, Kind::Cell { first: false, .. }) => " | ",
        (Kind::Cell { .. }, Kind::Cell { .. }) | (Kind::Item { .. }, Kind::Item { .. }) => "\n",
        (Kind::Term, Kind::Term) => "\n",
        _ => "\n\n",
    }
}
