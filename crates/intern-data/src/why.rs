//! `intern data why`: what a run made of one document, with every value and limit, and
//! its duplicate partner.
//!
//! The run's record names its configuration and sources. The page is read again from its
//! source and judged with every rule, also those behind the one that dropped it; copies
//! are found in the run's own output, since only the whole corpus knows them.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use intern_format::document::{self, Document};
use intern_format::provenance;
use serde::Serialize;
use serde_json::Value;

use crate::pipeline::{self, RecipeConfig};
use crate::stage::{Measure, Reason};

/// The answer.
#[derive(Clone, Debug, Serialize)]
pub struct Why {
    /// The document's id.
    pub id: String,
    /// Whether the run kept it.
    pub kept: bool,
    /// Why it was dropped, as the run recorded it.
    pub reason: Option<Reason>,
    /// Every comparison, in order; empty if the source is gone.
    pub measures: Vec<Measure>,
    /// What stages changed in the text.
    pub edits: Vec<(String, u64)>,
    /// The document as the run wrote it.
    pub document: Document,
    /// The document kept in its place.
    pub partner: Option<Document>,
    /// Documents dropped as copies of this one.
    pub copies: Vec<String>,
    /// What could not be told.
    pub notes: Vec<String>,
}

/// Explains document `id` of the run in `run`.
///
/// # Errors
/// If there is no finished run, or no such document in it.
pub fn explain(run: &Path, id: &str) -> Result<Why> {
    let record = provenance::read(run)?.filter(|p| p.command == "data run").with_context(|| {
        format!(
            "{}: no finished `intern data run` here\nhint: give the directory passed to --out",
            run.display()
        )
    })?;
    let config: RecipeConfig =
        serde_json::from_value(record.config.clone()).context("reading the run's configuration")?;
    let mut why = recorded(run, id)?;
    if !why.kept && !config.output.dropped {
        why.notes.push("The run did not write dropped documents.".into());
    }
    match pipeline::inspect(&config, id) {
        Ok(Some((measures, edits))) => {
            why.measures = measures;
            why.edits = edits.into_iter().collect();
        }
        Ok(None) => {
            why.notes.push("Its page is no longer in the source, so rules were not applied again.".into())
        }
        Err(e) => why.notes.push(format!("Rules were not applied again: {e:#}")),
    }
    Ok(why)
}

/// What the run's output says.
fn recorded(run: &Path, id: &str) -> Result<Why> {
    let mut found: Option<(bool, Document)> = None;
    let mut copies = Vec::new();
    for (kept, name) in [(true, "documents"), (false, "dropped")] {
        let dir = run.join(name);
        if !dir.is_dir() {
            continue;
        }
        for document in document::open(&dir).into_iter().flatten() {
            let document = document?;
            if document.id == id {
                found = Some((kept, document));
            } else if !kept && document.meta.get("duplicate_of").and_then(Value::as_str) == Some(id) {
                copies.push(document.id);
            }
        }
    }
    let Some((kept, document)) = found else {
        bail!(
            "{}: no document {id:?}\nhint: `intern data show {} --dropped` lists ids; a run with output.dropped = false \
             forgets what it drops",
            run.display(),
            run.display()
        );
    };
    let reason = reason(&document);
    let partner = match reason.as_ref().and_then(|r| r.duplicate_of.clone()) {
        Some(partner) => {
            document::open(&run.join("documents"))?.find_map(|d| d.ok().filter(|d| d.id == partner))
        }
        None => None,
    };
    Ok(Why {
        id: id.to_string(),
        kept,
        reason,
        measures: Vec::new(),
        edits: Vec::new(),
        document,
        partner,
        copies,
        notes: Vec::new(),
    })
}

/// The reason in a dropped document's `meta`.
pub fn reason(document: &Document) -> Option<Reason> {
    let text = |key: &str| document.meta.get(key).and_then(Value::as_str);
    let number = |key: &str| document.meta.get(key).and_then(Value::as_f64).unwrap_or(0.0);
    let mut reason = Reason::new(text("reason")?, text("rule")?, number("value"), number("limit"));
    reason.duplicate_of = text("duplicate_of").map(String::from);
    Some(reason)
}

/// The answer for reading.
#[must_use]
pub fn pretty(why: &Why) -> String {
    let mut out = format!("{}: {}\n", why.id, if why.kept { "kept" } else { "dropped" });
    if let Some(r) = &why.reason {
        let _ = writeln!(out, "  by {}/{}: {} against {}", r.stage, r.rule, short(r.value), short(r.limit));
        if let Some(partner) = &r.duplicate_of {
            let _ = writeln!(out, "  copy of {partner}");
        }
    }
    let mut stage = "";
    for m in &why.measures {
        if m.stage != stage {
            let _ = writeln!(out, "\n  {}", m.stage);
            stage = &m.stage;
        }
        let (mark, sign) = (if m.ok { " " } else { "✗" }, if m.at_most { "≤" } else { "≥" });
        let _ = writeln!(out, "  {mark} {:<28} {:>12}   {sign} {}", m.rule, short(m.value), short(m.limit));
    }
    if !why.edits.is_empty() {
        let edits: Vec<String> = why.edits.iter().map(|(what, n)| format!("{what} {n}")).collect();
        let _ = writeln!(out, "\n  changed: {}", edits.join(", "));
    }
    if !why.copies.is_empty() {
        let _ = writeln!(out, "\n  kept instead of: {}", why.copies.join(", "));
    }
    for note in &why.notes {
        let _ = writeln!(out, "\n  {note}");
    }
    let _ = writeln!(out, "\n{}", beginning(&why.document.text));
    if let Some(partner) = &why.partner {
        let _ = writeln!(out, "\n── {}\n{}", partner.id, beginning(&partner.text));
    }
    out.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

fn short(x: f64) -> String {
    if x.fract() == 0.0 { format!("{x}") } else { format!("{x:.4}") }
}

fn beginning(text: &str) -> String {
    const CHARS: usize = 600;
    let cut: String = text.chars().take(CHARS).collect();
    if cut.len() < text.len() { cut + " …" } else { cut }
}
