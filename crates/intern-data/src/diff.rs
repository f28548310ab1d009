//! `intern data diff`: what two runs over the same pages decided differently.
//!
//! Every document has a fate in each run: kept, dropped by a rule, or not there. The
//! table counts pairs of fates that differ, with some documents for each.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Result, bail};
use intern_format::document::{self, Document};
use serde::Serialize;

use crate::hash::content;
use crate::why;

/// What differs between two runs.
#[derive(Clone, Debug, Serialize)]
pub struct Diff {
    /// Documents kept in both.
    pub kept: u64,
    /// Of these, documents whose text differs.
    pub changed: u64,
    /// Some of them.
    pub changed_ids: Vec<String>,
    /// Documents with the same fate in both.
    pub same: u64,
    /// Pairs of fates that differ, most frequent first.
    pub moves: Vec<Move>,
}

/// Documents with one fate in the first run and another in the second.
#[derive(Clone, Debug, Serialize)]
pub struct Move {
    /// Fate in the first run: `kept`, `stage/rule` or `absent`.
    pub from: String,
    /// Fate in the second.
    pub to: String,
    /// How many.
    pub documents: u64,
    /// Some of them.
    pub ids: Vec<String>,
}

const SHOWN: usize = 5;

/// Compares the runs in `a` and `b`.
///
/// # Errors
/// If a directory holds no documents.
pub fn compare(a: &Path, b: &Path) -> Result<Diff> {
    let first = fates(a)?;
    let mut diff = Diff { kept: 0, changed: 0, changed_ids: Vec::new(), same: 0, moves: Vec::new() };
    let mut moves: BTreeMap<(String, String), (u64, Vec<String>)> = BTreeMap::new();
    let mut add = |from: &str, to: &str, id: &str| {
        let entry = moves.entry((from.into(), to.into())).or_default();
        entry.0 += 1;
        entry.1.push(id.into());
        // The alphabetically first ones, whatever the order of reading.
        if entry.1.len() > 4 * SHOWN {
            entry.1.sort();
            entry.1.truncate(SHOWN);
        }
    };
    let second = fates(b)?;
    for (id, (fate, text)) in &second {
        match first.get(id) {
            None => add("absent", fate, id),
            Some((before, _)) if before != fate => add(before, fate, id),
            Some((_, old)) => {
                diff.same += 1;
                if fate == "kept" {
                    diff.kept += 1;
                    if old != text {
                        diff.changed += 1;
                        diff.changed_ids.push(id.clone());
                    }
                }
            }
        }
    }
    first
        .iter()
        .filter(|(id, _)| !second.contains_key(*id))
        .for_each(|(id, (fate, _))| add(fate, "absent", id));
    diff.changed_ids.sort();
    diff.changed_ids.truncate(SHOWN);
    diff.moves = moves
        .into_iter()
        .map(|((from, to), (documents, mut ids))| {
            ids.sort();
            ids.truncate(SHOWN);
            Move { from, to, documents, ids }
        })
        .collect();
    diff.moves.sort_by_key(|m| std::cmp::Reverse(m.documents));
    Ok(diff)
}

/// Id → (fate, hash of the text).
fn fates(run: &Path) -> Result<HashMap<String, (String, [u8; 16])>> {
    let mut all = HashMap::new();
    let mut read = |dir: &Path, fate: fn(&Document) -> String| -> Result<()> {
        if !dir.is_dir() || document::files(dir)?.is_empty() {
            return Ok(());
        }
        for document in document::open(dir)? {
            let document = document?;
            let value = (fate(&document), content(&document.text));
            all.insert(document.id, value);
        }
        Ok(())
    };
    read(&run.join("documents"), |_| "kept".into())?;
    read(&run.join("dropped"), |d| {
        why::reason(d).map_or_else(|| "dropped".into(), |r| format!("{}/{}", r.stage, r.rule))
    })?;
    if all.is_empty() {
        bail!(
            "{}: no documents here\nhint: give the directories of two finished `intern data run`",
            run.display()
        );
    }
    Ok(all)
}

/// The comparison for reading.
#[must_use]
pub fn pretty(diff: &Diff) -> String {
    let mut out = format!(
        "same fate    {}\nkept in both {}, of which {} with another text\n",
        diff.same, diff.kept, diff.changed
    );
    if !diff.changed_ids.is_empty() {
        let _ = writeln!(out, "             {}", diff.changed_ids.join(", "));
    }
    for m in &diff.moves {
        let _ = writeln!(out, "{:>8}  {} → {}\n          {}", m.documents, m.from, m.to, m.ids.join(", "));
    }
    out
}
