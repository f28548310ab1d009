//! Which pictures are copies of which, and of those what goes.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Result;

use super::{Run, near};

/// A picture no rule dropped, as comparing needs it.
struct Entry {
    /// Number of its sample.
    sample: u32,
    document: bool,
    hash: u128,
    phash: u64,
    pixels: u64,
    bytes: u64,
}

/// What comparing found about the pictures no rule dropped, in order.
#[derive(Default)]
pub(super) struct Copies {
    /// Why each is to go; the number is into `partners`.
    pub verdicts: Vec<Verdict>,
    /// Ids of samples that hold the copies kept.
    pub partners: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Verdict {
    Unique,
    CopyOf(u32),
    /// In so many documents.
    Boilerplate(u32),
}

impl Run<'_> {
    /// Compares all pictures that no rule dropped.
    pub(super) fn copies(&self) -> Result<Copies> {
        let config = &self.config.dedup;
        let mut entries: Vec<Entry> = Vec::new();
        for (sample, judged) in self.all().enumerate() {
            let judged = judged?;
            for p in judged.pictures.iter().filter(|p| judged.drop.is_none() && p.drop.is_none()) {
                entries.push(Entry {
                    sample: sample as u32,
                    document: judged.document,
                    hash: u128::from_str_radix(&p.hash, 16)?,
                    phash: u64::from_str_radix(&p.phash, 16)?,
                    pixels: u64::from(p.width) * u64::from(p.height),
                    bytes: p.bytes,
                });
            }
        }
        let mut groups: Vec<usize> = (0..entries.len()).collect();
        if config.exact {
            let mut first: HashMap<u128, usize> = HashMap::new();
            entries.iter().enumerate().for_each(|(i, e)| groups[i] = *first.entry(e.hash).or_insert(i));
        }
        if config.perceptual {
            // Equal files have equal hashes, so these groups hold the exact ones.
            let hashes: Vec<u64> = entries.iter().map(|e| e.phash).collect();
            groups = near::groups(&hashes, config.max_distance);
        }
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (i, &group) in groups.iter().enumerate() {
            if group != i {
                members.entry(group).or_insert_with(|| vec![group]).push(i);
            }
        }
        let mut verdicts = vec![Verdict::Unique; entries.len()];
        let mut kept_in = Vec::new();
        for group in members.values() {
            self.judge_group(&entries, group, &mut verdicts, &mut kept_in);
        }
        let wanted: HashSet<u32> = kept_in.iter().copied().collect();
        let mut ids: HashMap<u32, String> = HashMap::new();
        for (sample, judged) in self.all().enumerate() {
            if wanted.contains(&(sample as u32)) {
                ids.insert(sample as u32, judged?.id);
            }
        }
        let partners = kept_in.iter().map(|s| ids.get(s).cloned().unwrap_or_default()).collect();
        Ok(Copies { verdicts, partners })
    }

    /// Judges pictures that are copies of one another.
    fn judge_group(
        &self,
        entries: &[Entry],
        group: &[usize],
        verdicts: &mut [Verdict],
        kept_in: &mut Vec<u32>,
    ) {
        let best = |i: &&usize| (entries[**i].pixels, entries[**i].bytes, std::cmp::Reverse(**i));
        let pairs = group.iter().filter(|i| !entries[**i].document);
        if let Some(&kept) = pairs.clone().max_by_key(best) {
            let partner = kept_in.len() as u32;
            kept_in.push(entries[kept].sample);
            pairs.filter(|i| **i != kept).for_each(|&i| verdicts[i] = Verdict::CopyOf(partner));
        }
        let mut documents: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for &i in group.iter().filter(|i| entries[**i].document) {
            documents.entry(entries[i].sample).or_default().push(i);
        }
        let spread = documents.len();
        for (sample, places) in documents {
            if spread > self.config.document.max_copies {
                places.iter().for_each(|&i| verdicts[i] = Verdict::Boilerplate(spread as u32));
            } else if places.len() > 1 {
                let partner = kept_in.len() as u32;
                kept_in.push(sample);
                places[1..].iter().for_each(|&i| verdicts[i] = Verdict::CopyOf(partner));
            }
        }
    }
}
