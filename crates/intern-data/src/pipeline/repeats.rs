//! Parts of documents that other documents have: found over the whole corpus, one way after
//! another, each in what the ones before it leave.

use std::path::Path;

use anyhow::Result;

use super::config::RecipeConfig;
use super::emit::Copies;
use super::signatures::Signatures;
use super::work::{Judged, Segment, SegmentFiles, read_part};
use crate::dedup::bloom::{Ngrams, Scope};
use crate::dedup::pieces::{Pieces, Twice, Unit};
use crate::stage::Reason;

/// One way to find them, and what it found.
struct Way {
    stage: &'static str,
    unit: Unit,
    max_removed: f64,
    places: Places,
}

/// Where pieces begin that go.
enum Places {
    /// (page, index), sorted.
    List(Vec<(u32, u32)>),
    /// A bit per index; a page's begin at `starts[page]`.
    Bits { starts: Vec<u64>, bits: Vec<u64> },
    /// Whole documents: their pages, sorted.
    Pages(Vec<u32>),
}

impl Places {
    fn of(&self, page: u32) -> Vec<u32> {
        match self {
            Self::List(all) => {
                let from = all.partition_point(|p| p.0 < page);
                all[from..].iter().take_while(|p| p.0 == page).map(|p| p.1).collect()
            }
            Self::Bits { starts, bits } => {
                let (from, to) = (starts[page as usize], starts[page as usize + 1]);
                let set = |i: &u64| bits[(i / 64) as usize] >> (i % 64) & 1 == 1;
                (from..to).filter(set).map(|i| (i - from) as u32).collect()
            }
            Self::Pages(pages) => pages.binary_search(&page).ok().map(|_| 0).into_iter().collect(),
        }
    }
}

/// All that was found.
pub struct Repeats(Vec<Way>);

/// What finding them reads.
struct Corpus<'a> {
    work: &'a Path,
    segments: &'a [Segment],
    all: &'a Signatures,
    copies: &'a Copies,
}

impl Repeats {
    /// Finds what the recipe asks for in documents that are no copies: paragraphs, lines,
    /// sentences, n-grams, substrings.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn find(
        config: &RecipeConfig,
        work: &Path,
        segments: &[Segment],
        all: &Signatures,
        copies: &Copies,
    ) -> Result<Self> {
        let corpus = Corpus { work, segments, all, copies };
        let dedup = &config.dedup;
        let mut found = Self(Vec::new());
        for (stage, unit, settings) in [
            ("same_paragraphs", Unit::Paragraph, &dedup.paragraphs),
            ("same_lines", Unit::Line, &dedup.lines),
        ] {
            if settings.enabled {
                let places = corpus.pieces(&found, unit, settings.min_chars)?;
                found.0.push(Way { stage, unit, max_removed: settings.max_removed, places });
            }
        }
        let s = &dedup.sentences;
        if s.enabled {
            let unit = Unit::Sentences(s.run);
            let places = corpus.pieces(&found, unit, 0)?;
            found.0.push(Way { stage: "same_sentences", unit, max_removed: s.max_removed, places });
        }
        let n = &dedup.ngrams;
        if n.enabled {
            // About every sixth character begins a word.
            let mut filter = Ngrams::new(n, all.kept_chars() / 6);
            let places = corpus.known(&found, &mut filter, n.unit)?;
            let (unit, max_removed) = (Unit::Paragraph, n.max_removed);
            found.0.push(Way { stage: "same_ngrams", unit, max_removed, places });
        }
        let s = &dedup.substrings;
        if s.enabled {
            let unit = Unit::Characters(s.min_chars);
            let places = corpus.substrings(&found, unit, s.memory_mb << 20)?;
            found.0.push(Way { stage: "same_substrings", unit, max_removed: s.max_removed, places });
        }
        Ok(found)
    }

    /// Takes out of a page what other documents have; the reason to drop it if too little is left.
    pub fn take_out(&self, judged: &mut Judged, page: u32) -> Option<Reason> {
        for way in &self.0 {
            let indices = way.places.of(page);
            if indices.is_empty() {
                continue;
            }
            if matches!(way.places, Places::Pages(_)) {
                return Some(Reason::new(way.stage, "known_ngrams", 1.0, 0.0));
            }
            let (text, removed) = way.unit.without(&judged.document.text, &indices);
            let chars = judged.document.text.chars().count();
            let share = removed as f64 / chars.max(1) as f64;
            if share > way.max_removed || text.trim().is_empty() {
                return Some(Reason::new(way.stage, "max_removed", share, way.max_removed));
            }
            let pieces = match way.unit {
                Unit::Characters(_) => removed,
                _ => indices.len(),
            };
            *judged.edits.entry(format!("{}/removed", way.stage)).or_default() += pieces as u64;
            judged.document.text = text;
        }
        None
    }
}

impl Corpus<'_> {
    /// Calls `each` with every document that is left, as it is left, in order.
    fn each(&self, found: &Repeats, mut each: impl FnMut(u32, &str) -> Result<()>) -> Result<()> {
        for (s, segment) in self.segments.iter().enumerate() {
            let first = self.all.starts[s] as u32;
            for (page, judged) in (first..).zip(read_part(&SegmentFiles::of(self.work, *segment).part)?) {
                let mut judged = judged?;
                let stays = judged.reason.is_none() && self.copies.of(page as usize).is_none();
                if stays && found.take_out(&mut judged, page).is_none() {
                    each(page, &judged.document.text)?;
                }
            }
        }
        Ok(())
    }

    fn pieces(&self, found: &Repeats, unit: Unit, min_chars: usize) -> Result<Places> {
        let mut pieces = Pieces::create(self.work, unit, self.all.kept_chars() / 60)?;
        self.each(found, |page, text| {
            unit.pieces(text, min_chars, |index, hash| pieces.add(hash, page, index))
        })?;
        let mut list = Vec::new();
        pieces.repeated(|page, index| list.push((page, index)))?;
        list.sort_unstable();
        Ok(Places::List(list))
    }

    fn known(&self, found: &Repeats, filter: &mut Ngrams, unit: Scope) -> Result<Places> {
        let (mut list, mut pages) = (Vec::new(), Vec::new());
        self.each(found, |page, text| {
            match unit {
                Scope::Document => {
                    let grams = filter.of(text);
                    if filter.is_known(&grams) {
                        pages.push(page);
                    }
                }
                Scope::Paragraph => {
                    for (index, paragraph) in (0..).zip(text.split("\n\n")) {
                        let grams = filter.of(paragraph);
                        if filter.is_known(&grams) {
                            list.push((page, index));
                        }
                    }
                }
            }
            Ok(())
        })?;
        Ok(if unit == Scope::Document { Places::Pages(pages) } else { Places::List(list) })
    }

    fn substrings(&self, found: &Repeats, unit: Unit, memory: usize) -> Result<Places> {
        let mut twice = Twice::new(memory);
        let mut starts = vec![0u64; self.all.pages() + 1];
        let mut runs = 0;
        self.each(found, |page, text| {
            let chars = text.chars().count();
            starts[page as usize + 1] = chars as u64;
            unit.pieces(text, 0, |_, hash| {
                runs += 1;
                twice.count(hash);
                Ok(())
            })
        })?;
        for page in 0..self.all.pages() {
            starts[page + 1] += starts[page];
        }
        let mut bits = vec![0u64; starts.last().map_or(0, |n| n / 64 + 1) as usize];
        // Most runs are written nowhere; buckets are for the case that half of them come twice.
        let mut pieces = Pieces::create(self.work, unit, runs / 2)?;
        self.each(found, |page, text| {
            unit.pieces(text, 0, |index, hash| match twice.is(hash) {
                true => pieces.add(hash, page, index),
                false => Ok(()),
            })
        })?;
        drop(twice);
        pieces.repeated(|page, index| {
            let bit = starts[page as usize] + u64::from(index);
            bits[(bit / 64) as usize] |= 1 << (bit % 64);
        })?;
        Ok(Places::Bits { starts, bits })
    }
}
