//! `report.json` and `report.html`: what became of every page, and why.
//!
//! The funnel tells how many documents each stage left; every rule comes with how much
//! it dropped and samples to judge it by. Without times or machine names, so that equal
//! runs give equal reports. `html` draws it.

pub(crate) mod html;

pub(crate) use html::grouped;

use serde::Serialize;

use crate::pipeline::{FUNNEL, RecipeConfig, STAGES, Sample, Stats};

/// The report of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What is left after each stage, from the pages read to the documents kept.
    pub funnel: Vec<Step>,
    /// Every rule that dropped something.
    pub rules: Vec<Rule>,
    /// `stage/what` → pieces of text that stages took out or replaced.
    pub edits: Vec<(String, u64)>,
    /// What a reader should know: absent sources, samples, broken records.
    pub notes: Vec<String>,
    /// Sources.
    pub sources: Vec<Source>,
    /// Language → kept documents, most first.
    pub languages: Vec<(String, u64)>,
    /// Encodings and repairs.
    pub encodings: Encodings,
    /// Documents by length, in characters.
    pub lengths: Vec<Length>,
    /// Extraction against the gold file, if one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gold: Option<GoldReport>,
    /// Records of archives that are no pages, by kind.
    pub passed: Vec<(String, u64)>,
    /// Broken records.
    pub broken: u64,
    /// The first broken records, in words.
    pub broken_records: Vec<String>,
    /// Pairs compared for near copies, and those similar enough.
    pub compared_pairs: (u64, u64),
    /// Kept documents to look at.
    pub kept: Vec<Sample>,
}

/// One stage of the funnel.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// The stage's name.
    pub stage: String,
    /// What its survivors have, in a word or two.
    pub label: String,
    /// Documents left.
    pub documents: u64,
    /// Characters left.
    pub characters: u64,
    /// Documents dropped here.
    pub dropped: u64,
    /// Share of the documents that came in and were dropped here, 0–1.
    pub dropped_share: f64,
}

/// One rule.
#[derive(Clone, Debug, Serialize)]
pub struct Rule {
    /// Its stage.
    pub stage: String,
    /// Its name.
    pub rule: String,
    /// Documents it dropped.
    pub dropped: u64,
    /// Some of them.
    pub samples: Vec<Sample>,
}

/// One source.
#[derive(Clone, Debug, Serialize)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// Pages read.
    pub pages: u64,
    /// Documents kept.
    pub documents: u64,
    /// Characters kept.
    pub characters: u64,
}

/// Encodings met, and repairs.
#[derive(Clone, Debug, Serialize)]
pub struct Encodings {
    /// Encoding → pages, most first.
    pub pages: Vec<(String, u64)>,
    /// Pages in which undecodable places were left out.
    pub repaired: u64,
    /// Pages in which double encoding was undone.
    pub mended: u64,
}

/// One bar of the length histogram.
#[derive(Clone, Debug, Serialize)]
pub struct Length {
    /// Shortest length of the bar, characters; the next bar begins at twice that.
    pub from: u64,
    /// Documents with text, before cleaning.
    pub before: u64,
    /// Documents kept.
    pub kept: u64,
}

/// How extraction and cleaning did against the gold file.
#[derive(Clone, Debug, Serialize)]
pub struct GoldReport {
    /// Pages compared.
    pub pages: u64,
    /// Mean precision, by words.
    pub precision: f64,
    /// Mean recall, by words.
    pub recall: f64,
    /// Mean F1, by words.
    pub f1: f64,
    /// The groups of the gold file.
    pub groups: Vec<Group>,
    /// The worst pages: (F1, id).
    pub worst: Vec<(f64, String)>,
}

/// One group of gold pages.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// Its name.
    pub kind: String,
    /// Pages.
    pub pages: u64,
    /// Mean F1.
    pub f1: f64,
    /// Documents kept.
    pub kept: u64,
    /// Dropped as copies.
    pub copies: u64,
    /// Dropped for another reason.
    pub other: u64,
}

impl Report {
    /// Builds the report from a run's counts.
    #[must_use]
    pub fn new(config: &RecipeConfig, notes: &[String], stats: &Stats, compared_pairs: (u64, u64)) -> Self {
        let mut notes = notes.to_vec();
        if stats.broken > 0 {
            notes.push(format!("{} broken records were skipped.", stats.broken));
        }
        if stats.encodings.len() > 1 || stats.repaired + stats.mended > 0 {
            notes.push(format!(
                "Encodings: {}; {} pages had undecodable places left out, {} had double encoding undone.",
                most_first(&stats.encodings)
                    .iter()
                    .map(|(k, n)| format!("{k} {n}"))
                    .collect::<Vec<_>>()
                    .join(", "),
                stats.repaired,
                stats.mended
            ));
        }
        Self {
            funnel: funnel(config, stats),
            rules: rules(stats),
            edits: stats.edits.iter().map(|(k, n)| (k.clone(), *n)).collect(),
            notes,
            sources: stats
                .sources
                .iter()
                .map(|(name, (pages, kept))| Source {
                    name: name.clone(),
                    pages: *pages,
                    documents: kept.documents,
                    characters: kept.characters,
                })
                .collect(),
            languages: most_first(&stats.languages),
            encodings: Encodings {
                pages: most_first(&stats.encodings),
                repaired: stats.repaired,
                mended: stats.mended,
            },
            lengths: lengths(stats),
            gold: gold(stats),
            passed: most_first(&stats.passed),
            broken: stats.broken,
            broken_records: stats.told.clone(),
            compared_pairs,
            kept: stats.samples.get("kept").cloned().unwrap_or_default(),
        }
    }

    /// The report as one self-contained page.
    #[must_use]
    pub fn html(&self) -> String {
        html::page(self)
    }
}

fn funnel(config: &RecipeConfig, stats: &Stats) -> Vec<Step> {
    let mut left = stats.pages;
    let mut characters = stats.characters;
    let mut steps = vec![Step {
        stage: "read".into(),
        label: "pages read".into(),
        documents: left,
        characters,
        dropped: 0,
        dropped_share: 0.0,
    }];
    // The recipe may put its stages in another order.
    let order = config.names().unwrap_or_default();
    type Label = (&'static str, &'static str);
    let (before, after): (Vec<&Label>, Vec<&Label>) =
        FUNNEL.iter().filter(|s| !STAGES.contains(&s.0)).partition(|s| matches!(s.0, "encoding" | "extract"));
    let middle = order.iter().filter_map(|name| FUNNEL.iter().find(|s| s.0 == *name));
    let after = after.into_iter().filter(|s| config.is_enabled(s.0));
    for (stage, label) in before.into_iter().chain(middle).chain(after) {
        let dropped = stats.dropped.get(*stage).copied().unwrap_or_default();
        let came = left;
        left -= dropped.documents;
        characters -= dropped.characters;
        steps.push(Step {
            stage: (*stage).into(),
            label: (*label).into(),
            documents: left,
            characters,
            dropped: dropped.documents,
            dropped_share: dropped.documents as f64 / came.max(1) as f64,
        });
    }
    steps
}

fn rules(stats: &Stats) -> Vec<Rule> {
    let mut rules: Vec<Rule> = stats
        .rules
        .iter()
        .map(|(key, n)| {
            let (stage, rule) = key.split_once('/').unwrap_or((key, ""));
            let samples = stats.samples.get(key).cloned().unwrap_or_default();
            Rule { stage: stage.into(), rule: rule.into(), dropped: *n, samples }
        })
        .collect();
    let place = |stage: &str| FUNNEL.iter().position(|(s, _)| *s == stage);
    rules.sort_by(|a, b| {
        place(&a.stage)
            .cmp(&place(&b.stage))
            .then(b.dropped.cmp(&a.dropped))
            .then_with(|| a.rule.cmp(&b.rule))
    });
    rules
}

fn lengths(stats: &Stats) -> Vec<Length> {
    let (before, kept) = &stats.lengths;
    let at = |list: &[u64], i: usize| list.get(i).copied().unwrap_or(0);
    let first = before.iter().position(|n| *n > 0).unwrap_or(before.len());
    (first..before.len()).map(|i| Length { from: 1 << i, before: at(before, i), kept: at(kept, i) }).collect()
}

fn gold(stats: &Stats) -> Option<GoldReport> {
    let pages: u64 = stats.gold.values().map(|g| g.pages).sum();
    if pages == 0 {
        return None;
    }
    let mean = |i: usize| round(stats.gold.values().map(|g| g.sums[i]).sum::<f64>() / pages as f64);
    Some(GoldReport {
        pages,
        precision: mean(0),
        recall: mean(1),
        f1: mean(2),
        groups: stats
            .gold
            .iter()
            .map(|(kind, g)| Group {
                kind: kind.clone(),
                pages: g.pages,
                f1: round(g.sums[2] / g.pages.max(1) as f64),
                kept: g.kept,
                copies: g.copies,
                other: g.other,
            })
            .collect(),
        worst: stats.worst.iter().map(|(f, id)| (round(*f), id.clone())).collect(),
    })
}

fn round(x: f64) -> f64 {
    (x * 1e6).round() / 1e6
}

fn most_first(counts: &std::collections::BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let mut list: Vec<(String, u64)> = counts.iter().map(|(k, n)| (k.clone(), *n)).collect();
    list.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    list
}
