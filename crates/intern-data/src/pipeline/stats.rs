//! What became of the pages, counted: the numbers behind the funnel and its report.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::work::{Judged, SegmentInfo};
use crate::stage::Reason;

/// Stages with what their survivors have; those before and after the recipe's stages are
/// in their order.
pub const FUNNEL: &[(&str, &str)] = &[
    ("encoding", "readable"),
    ("extract", "with text"),
    ("url", "address"),
    ("language", "language"),
    ("normalize", "normal form"),
    ("lines", "clean lines"),
    ("length", "length"),
    ("repetition", "no repetition"),
    ("quality", "quality"),
    ("c4", "C4 rules"),
    ("fineweb", "FineWeb rules"),
    ("badwords", "no bad words"),
    ("classifier", "classifiers"),
    ("perplexity", "likely text"),
    ("decontaminate", "no test data"),
    ("score", "scores"),
    ("pii", "little private"),
    ("same_url", "own address"),
    ("exact", "no exact copy"),
    ("minhash", "no near copy"),
    ("same_paragraphs", "own paragraphs"),
    ("same_lines", "own lines"),
    ("same_sentences", "own sentences"),
    ("same_ngrams", "new n-grams"),
    ("same_substrings", "own text"),
];

/// Characters of a sample shown in the report.
const SAMPLE_CHARS: usize = 700;

/// Counts of one shard, or of several merged in order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Pages read.
    pub pages: u64,
    /// Characters extracted from them.
    pub characters: u64,
    /// Stage → what it dropped.
    pub dropped: BTreeMap<String, Count>,
    /// `stage/rule` → what it dropped.
    pub rules: BTreeMap<String, u64>,
    /// `stage/what` → pieces of text that stages took out or replaced, in all documents.
    pub edits: BTreeMap<String, u64>,
    /// What was kept.
    pub kept: Count,
    /// Source → pages read, and what was kept of them.
    pub sources: BTreeMap<String, (u64, Count)>,
    /// Language → kept documents.
    pub languages: BTreeMap<String, u64>,
    /// Encoding → pages.
    pub encodings: BTreeMap<String, u64>,
    /// Pages with undecodable places left out.
    pub repaired: u64,
    /// Pages with double encoding undone.
    pub mended: u64,
    /// Documents by length before and after cleaning: bucket `i` holds lengths of `2^i..2^(i+1)` characters.
    pub lengths: (Vec<u64>, Vec<u64>),
    /// Gold groups.
    pub gold: BTreeMap<String, GoldGroup>,
    /// The worst extractions against gold: (f1, id).
    pub worst: Vec<(f64, String)>,
    /// Samples of kept documents, under `kept`, and of dropped ones per `stage/rule`.
    pub samples: BTreeMap<String, Vec<Sample>>,
    /// Records that are no pages, by kind.
    pub passed: BTreeMap<String, u64>,
    /// Broken records.
    pub broken: u64,
    /// The first of them, in words.
    pub told: Vec<String>,
}

/// Documents and their characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Documents.
    pub documents: u64,
    /// Characters.
    pub characters: u64,
}

impl Count {
    fn add(&mut self, documents: u64, characters: u64) {
        self.documents += documents;
        self.characters += characters;
    }
}

/// How the pages of one gold group fared.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct GoldGroup {
    /// Pages.
    pub pages: u64,
    /// Sum of their precisions, recalls and F1.
    pub sums: [f64; 3],
    /// Kept.
    pub kept: u64,
    /// Dropped as copies.
    pub copies: u64,
    /// Dropped for another reason.
    pub other: u64,
}

/// A document as the report shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Its id.
    pub id: String,
    /// The beginning of its text.
    pub text: String,
    /// Value and limit of the rule, and the copy that was kept, in words; empty for kept documents.
    pub why: String,
}

impl Stats {
    /// Counts one page; `reason` is final.
    pub fn count(&mut self, judged: &Judged, reason: Option<&Reason>, samples: usize) {
        let document = &judged.document;
        let chars = document.text.chars().count() as u64;
        self.pages += 1;
        self.characters += chars;
        for (what, n) in &judged.edits {
            *self.edits.entry(what.clone()).or_default() += n;
        }
        let source = self.sources.entry(document.source.clone()).or_default();
        source.0 += 1;
        if let Some((encoding, errors, mended)) = &judged.decoded {
            *self.encodings.entry(encoding.clone()).or_default() += 1;
            self.repaired += u64::from(*errors > 0);
            self.mended += u64::from(*mended > 0);
        }
        if chars > 0 {
            bump(&mut self.lengths.0, chars);
        }
        let key = match reason {
            None => {
                source.1.add(1, chars);
                self.kept.add(1, chars);
                *self.languages.entry(document.lang.clone()).or_default() += 1;
                bump(&mut self.lengths.1, chars);
                "kept".to_string()
            }
            Some(r) => {
                self.dropped.entry(r.stage.clone()).or_default().add(1, chars);
                let key = format!("{}/{}", r.stage, r.rule);
                *self.rules.entry(key.clone()).or_default() += 1;
                key
            }
        };
        self.count_gold(judged, reason);
        let list = self.samples.entry(key).or_default();
        if list.len() < samples {
            list.push(Sample::new(&document.id, &document.text, reason));
        }
    }

    fn count_gold(&mut self, judged: &Judged, reason: Option<&Reason>) {
        let Some(score) = &judged.gold else { return };
        let kind = if score.kind.is_empty() { "pages" } else { &score.kind };
        let group = self.gold.entry(kind.to_string()).or_default();
        group.pages += 1;
        for (sum, x) in group.sums.iter_mut().zip([score.precision, score.recall, score.f1]) {
            *sum += x;
        }
        match reason {
            None => group.kept += 1,
            Some(r) if r.duplicate_of.is_some() => group.copies += 1,
            Some(_) => group.other += 1,
        }
        if score.f1 < 1.0 {
            self.worst.push((score.f1, judged.document.id.clone()));
            self.trim_worst();
        }
    }

    fn trim_worst(&mut self) {
        self.worst.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
        self.worst.truncate(5);
    }

    /// Adds what reading a shard met besides pages.
    pub fn add_info(&mut self, info: &SegmentInfo) {
        self.broken += info.broken;
        for (kind, n) in &info.passed {
            *self.passed.entry(kind.clone()).or_default() += n;
        }
        let room = 20usize.saturating_sub(self.told.len());
        self.told.extend(info.told.iter().take(room).cloned());
    }

    /// Adds the counts of the next shard.
    pub fn merge(&mut self, other: Stats, samples: usize) {
        self.pages += other.pages;
        self.characters += other.characters;
        self.kept.add(other.kept.documents, other.kept.characters);
        for (stage, c) in other.dropped {
            self.dropped.entry(stage).or_default().add(c.documents, c.characters);
        }
        for (source, (pages, c)) in other.sources {
            let mine = self.sources.entry(source).or_default();
            mine.0 += pages;
            mine.1.add(c.documents, c.characters);
        }
        for (mine, theirs) in [
            (&mut self.rules, other.rules),
            (&mut self.edits, other.edits),
            (&mut self.languages, other.languages),
            (&mut self.encodings, other.encodings),
            (&mut self.passed, other.passed),
        ] {
            for (key, n) in theirs {
                *mine.entry(key).or_default() += n;
            }
        }
        self.repaired += other.repaired;
        self.mended += other.mended;
        for (mine, theirs) in [(&mut self.lengths.0, other.lengths.0), (&mut self.lengths.1, other.lengths.1)]
        {
            mine.resize(mine.len().max(theirs.len()), 0);
            mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
        }
        for (kind, g) in other.gold {
            let mine = self.gold.entry(kind).or_default();
            mine.pages += g.pages;
            mine.sums.iter_mut().zip(g.sums).for_each(|(a, b)| *a += b);
            mine.kept += g.kept;
            mine.copies += g.copies;
            mine.other += g.other;
        }
        self.worst.extend(other.worst);
        self.trim_worst();
        for (key, list) in other.samples {
            let mine = self.samples.entry(key).or_default();
            let room = samples.saturating_sub(mine.len());
            mine.extend(list.into_iter().take(room));
        }
        self.broken += other.broken;
        let room = 20usize.saturating_sub(self.told.len());
        self.told.extend(other.told.into_iter().take(room));
    }
}

fn bump(histogram: &mut Vec<u64>, length: u64) {
    let bucket = length.ilog2() as usize;
    if histogram.len() <= bucket {
        histogram.resize(bucket + 1, 0);
    }
    histogram[bucket] += 1;
}

impl Sample {
    fn new(id: &str, text: &str, reason: Option<&Reason>) -> Self {
        let mut chars = text.char_indices();
        let cut = chars.nth(SAMPLE_CHARS).map_or(text.len(), |(i, _)| i);
        let dots = if cut < text.len() { " …" } else { "" };
        let why = reason.map_or(String::new(), |r| match &r.duplicate_of {
            Some(kept) => format!("copy of {kept}, similarity {:.3}", r.value),
            None => format!("{} = {:.3}, limit {}", r.rule, r.value, r.limit),
        });
        Self { id: id.to_string(), text: format!("{}{dots}", &text[..cut]), why }
    }
}
