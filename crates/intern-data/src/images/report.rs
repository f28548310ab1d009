//! What became of the pictures, as JSON and as a page with the pictures themselves.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Cursor;
use std::ops::ControlFlow;

use anyhow::Result;
use base64::Engine as _;
use image::ImageFormat;
use serde::Serialize;

use super::{Fate, Judged, Run, Summary};
use crate::report::html::{document, escape, funnel, table};
use crate::report::{Step, grouped};

/// Edge of a picture in the page, pixels.
const EDGE: u32 = 120;

/// Figures of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// From all samples to those kept, by what drops them.
    pub funnel: Vec<Step>,
    /// Rule → samples dropped.
    pub dropped: BTreeMap<String, u64>,
    /// Rule → pictures taken out of documents.
    pub taken_out: BTreeMap<String, u64>,
    /// Format → pictures.
    pub formats: BTreeMap<String, u64>,
    /// Pictures by their shorter side: from so many pixels on, all and kept.
    pub sides: Vec<Side>,
    /// Samples shown, by rule; "kept" for those kept.
    pub shown: BTreeMap<String, Vec<Shown>>,
    #[serde(skip)]
    most: usize,
}

/// A bar of the histogram.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Side {
    /// Pixels from which on.
    pub from: u32,
    /// Pictures read.
    pub images: u64,
    /// Those in samples kept.
    pub kept: u64,
}

/// A sample to show.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Shown {
    #[serde(skip)]
    order: [u8; 8],
    /// Its id.
    pub id: String,
    /// Why it was dropped.
    pub why: String,
    /// Unit and number in it.
    #[serde(skip)]
    at: (usize, usize),
}

impl Report {
    pub(super) fn new(most: usize) -> Self {
        let from = std::iter::once(0).chain((5..=12).map(|n| 1 << n));
        Self {
            funnel: Vec::new(),
            dropped: BTreeMap::new(),
            taken_out: BTreeMap::new(),
            formats: BTreeMap::new(),
            sides: from.map(|from| Side { from, ..Side::default() }).collect(),
            shown: BTreeMap::new(),
            most,
        }
    }

    pub(super) fn add(&mut self, judged: &Judged, fate: &Fate, at: (usize, usize)) {
        let (rule, why) = match fate {
            Fate::Kept(_) => ("kept", ""),
            Fate::Dropped(drop) => (drop.rule.as_str(), drop.why.as_str()),
        };
        for (i, picture) in judged.pictures.iter().enumerate() {
            let format = if picture.format.is_empty() { "none" } else { &picture.format };
            *self.formats.entry(format.into()).or_default() += 1;
            let place = self.sides.partition_point(|s| s.from <= picture.width.min(picture.height));
            let side = &mut self.sides[place.saturating_sub(1)];
            side.images += 1;
            side.kept += u64::from(matches!(fate, Fate::Kept(images) if images[i]));
        }
        // A sample that is the same on every run: the lowest hashes of ids.
        let mut order = [0; 8];
        order.copy_from_slice(&blake3::hash(judged.id.as_bytes()).as_bytes()[..8]);
        let shown = self.shown.entry(rule.into()).or_default();
        let one = Shown { order, id: judged.id.clone(), why: why.into(), at };
        if shown.len() < self.most || shown.last().is_some_and(|last| one < *last) {
            shown.insert(shown.partition_point(|s| *s < one), one);
            shown.truncate(self.most);
        }
    }

    pub(super) fn finish(&mut self, summary: &Summary) {
        self.dropped = summary.dropped.clone();
        self.taken_out = summary.taken_out.clone();
        let stages: [(&str, &str, &[&str]); 4] = [
            ("read", "readable", &["broken", "no_image", "missing"]),
            ("text", "text fits", &["caption_chars", "caption_words", "document_chars"]),
            ("similarity", "text matches", &["similarity"]),
            ("copies", "no copies", &["copy", "boilerplate"]),
        ];
        let of = |rules: &[&str]| rules.iter().filter_map(|r| summary.dropped.get(*r)).sum::<u64>();
        let image = summary.dropped.values().sum::<u64>() - stages.iter().map(|s| of(s.2)).sum::<u64>();
        let mut left = summary.samples;
        let step = |stage: &str, label: &str, dropped: u64, left: &mut u64| {
            let came = *left;
            *left -= dropped;
            let dropped_share = dropped as f64 / came.max(1) as f64;
            let (stage, label) = (stage.into(), label.into());
            Step { stage, label, documents: *left, characters: 0, dropped, dropped_share }
        };
        self.funnel.push(step("all", "samples", 0, &mut left));
        for (i, (stage, label, rules)) in stages.iter().enumerate() {
            if i == 2 {
                self.funnel.push(step("image", "pictures fit", image, &mut left));
            }
            self.funnel.push(step(stage, label, of(rules), &mut left));
        }
        self.funnel.retain(|s| s.dropped > 0 || s.stage == "all" || s.stage == "copies");
    }
}

impl Run<'_> {
    /// The page.
    pub(super) fn page(&self, report: &Report) -> Result<String> {
        let pictures = self.thumbnails(report)?;
        let mut body = String::from("<h1>What became of the pictures</h1>\n");
        funnel(&report.funnel, &mut body);
        let rows = |map: &BTreeMap<String, u64>| -> Vec<Vec<String>> {
            map.iter().map(|(name, n)| vec![name.clone(), grouped(*n)]).collect()
        };
        for (title, name, map) in [
            ("Samples dropped", "Rule", &report.dropped),
            ("Pictures taken out of documents", "Rule", &report.taken_out),
            ("Formats", "Format", &report.formats),
        ] {
            if !map.is_empty() {
                let _ = writeln!(body, "<h2>{title}</h2>");
                table(&[name, "Number"], rows(map).into_iter(), &mut body);
            }
        }
        body.push_str("<h2>Shorter side</h2>\n");
        let sides = report.sides.iter().filter(|s| s.images > 0);
        let sides = sides.map(|s| vec![format!("from {}", s.from), grouped(s.images), grouped(s.kept)]);
        table(&["Pixels", "Pictures", "Kept"], sides, &mut body);
        let kept_first = |rule: &&String| (*rule != "kept", (*rule).clone());
        let mut rules: Vec<&String> = report.shown.keys().collect();
        rules.sort_by_key(kept_first);
        for rule in rules {
            let title = if rule == "kept" { "Kept" } else { rule };
            let _ = writeln!(body, "<h2>{}</h2>\n<div class=\"pictures\">", escape(title));
            for shown in &report.shown[rule] {
                let picture = match pictures.get(&shown.at) {
                    Some(data) => format!("<img alt=\"\" src=\"data:image/jpeg;base64,{data}\">"),
                    None => String::new(),
                };
                let _ = writeln!(
                    body,
                    "<figure>{picture}<figcaption>{}<br>{}</figcaption></figure>",
                    escape(&shown.id),
                    escape(&shown.why)
                );
            }
            body.push_str("</div>\n");
        }
        Ok(document("What became of the pictures", &body))
    }

    /// The first picture of each sample shown, small, as base64 of a JPEG.
    fn thumbnails(&self, report: &Report) -> Result<BTreeMap<(usize, usize), String>> {
        let mut wanted: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (unit, index) in report.shown.values().flatten().map(|s| s.at) {
            wanted.entry(unit).or_default().push(index);
        }
        let mut found = BTreeMap::new();
        for (unit, indices) in wanted {
            let last = indices.iter().max().copied().unwrap_or(0);
            let mut index = 0;
            self.units[unit].read(&mut |sample| {
                if indices.contains(&index)
                    && let Ok(sample) = sample
                    && let Some(small) = sample.images.first().and_then(|i| thumbnail(&i.bytes))
                {
                    found.insert((unit, index), small);
                }
                index += 1;
                Ok(if index > last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
        }
        Ok(found)
    }
}

fn thumbnail(bytes: &[u8]) -> Option<String> {
    let mut reader = image::ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?;
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(20_000);
    limits.max_image_height = Some(20_000);
    reader.limits(limits);
    let small = reader.decode().ok()?.thumbnail(EDGE, EDGE).to_rgb8();
    let mut out = Cursor::new(Vec::new());
    small.write_to(&mut out, ImageFormat::Jpeg).ok()?;
    Some(base64::engine::general_purpose::STANDARD.encode(out.into_inner()))
}
