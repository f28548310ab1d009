//! N-gram language models in KenLM's formats (Heafield, 2011): ARPA text, plain or
//! compressed, and binary files with probing hash tables (version 5). Trie binaries are
//! refused with a hint.
//!
//! Both are looked up alike: a word's key is its MurmurHash64A, an n-gram's key starts with
//! the id of its last word and goes back, each step `key · C1 ^ (id + 1) · C2`, as in the
//! binary format. Probabilities are logarithms to base 10.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::hash::HashedMap;

const MAGIC: &[u8] = b"mmap lm http://kheafield.com/code format version 5\n\0";
/// Before the counts: magic and test values (88 bytes), then the parameters (20).
const FIXED: usize = 108;
/// Of unknown words where the model has none, as KenLM has it.
const UNKNOWN: f32 = -100.0;

/// A model in memory.
pub struct NgramModel {
    order: usize,
    vocabulary: Table<u32>,
    /// Per word id: probability and backoff.
    unigrams: Vec<(f32, f32)>,
    /// Of 2-grams and more; the longest have no backoff.
    longer: Vec<Table<(f32, f32)>>,
    begin: u32,
    end: u32,
}

/// Keys and what they stand for.
enum Table<T> {
    Map(HashedMap<T>),
    /// A table of KenLM's: `u64` key (0 where free) and value, probed linearly from `key % slots`.
    Probing {
        bytes: Vec<u8>,
        entry: usize,
        value: fn(&[u8]) -> T,
    },
}

impl<T: Copy> Table<T> {
    fn get(&self, key: u64) -> Option<T> {
        match self {
            Self::Map(map) => map.get(&key).copied(),
            Self::Probing { bytes, entry, value } => {
                let slots = bytes.len() / entry;
                let mut slot = (key % slots as u64) as usize;
                // A damaged table might have no free slot.
                for _ in 0..slots {
                    let found = &bytes[slot * entry..(slot + 1) * entry];
                    match u64::from_le_bytes(found[..8].try_into().expect("8 bytes")) {
                        k if k == key => return Some(value(&found[8..])),
                        0 => return None,
                        _ => slot = if slot + 1 == slots { 0 } else { slot + 1 },
                    }
                }
                None
            }
        }
    }
}

impl NgramModel {
    /// Opens a model file.
    ///
    /// # Errors
    /// If it is missing, damaged or of another kind.
    pub fn open(path: &Path) -> Result<Self> {
        let at =
            || format!("{}: no n-gram model\nhint: KenLM's ARPA or binary (probing) format", path.display());
        let file = File::open(path).with_context(|| format!("cannot open the model {}", path.display()))?;
        let mut input = BufReader::with_capacity(1 << 20, file);
        let start = input.fill_buf().with_context(at)?;
        if start.starts_with(MAGIC) {
            return Self::read_binary(&mut input).with_context(at);
        }
        if start.starts_with(&[0x1f, 0x8b]) {
            let input = flate2::bufread::MultiGzDecoder::new(input);
            return Self::read_arpa(&mut BufReader::with_capacity(1 << 20, input)).with_context(at);
        }
        if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            return Self::read_arpa(&mut BufReader::new(zstd::Decoder::with_buffer(input)?)).with_context(at);
        }
        Self::read_arpa(&mut input).with_context(at)
    }

    fn read_binary(input: &mut impl Read) -> Result<Self> {
        let mut take = |n: usize| -> Result<Vec<u8>> {
            let mut bytes = Vec::new();
            let got = input.take(n as u64).read_to_end(&mut bytes)?;
            if got < n {
                bail!("the file ends early");
            }
            Ok(bytes)
        };
        let fixed = take(FIXED)?;
        let order = usize::from(fixed[88]);
        let multiplier = float(&fixed[92..96]);
        let (kind, version) = (number(&fixed[96..100]), number(&fixed[104..108]));
        if kind != 0 || version != 0 {
            bail!("a binary of kind {kind}, version {version}\nhint: build it with `build_binary probing`");
        }
        if !(2..=16).contains(&order) || !(1.0..=100.0).contains(&multiplier) {
            bail!("order {order}, multiplier {multiplier}");
        }
        let counts: Vec<u64> =
            take(8 * order)?.chunks(8).map(|b| u64::from_le_bytes(b.try_into().expect("8 bytes"))).collect();
        // The header is padded to whole words.
        take((FIXED + 8 * order).next_multiple_of(8) - FIXED - 8 * order)?;
        let slots = |n: u64| -> Result<usize> {
            if n > 1 << 40 {
                bail!("{n} n-grams");
            }
            Ok((n + 1).max((multiplier * n as f32) as u64) as usize)
        };
        take(8)?;
        let vocabulary = Table::Probing { bytes: take(12 * slots(counts[0])?)?, entry: 12, value: number };
        let unigrams =
            take(8 * (counts[0] as usize + 1))?.chunks(8).map(|b| (prob(&b[..4]), float(&b[4..]))).collect();
        let mut longer = Vec::new();
        for count in &counts[1..order - 1] {
            let bytes = take(16 * slots(*count)?)?;
            longer.push(Table::Probing { bytes, entry: 16, value: |b| (prob(&b[..4]), float(&b[4..8])) });
        }
        let bytes = take(12 * slots(counts[order - 1])?)?;
        longer.push(Table::Probing { bytes, entry: 12, value: |b| (prob(&b[..4]), 0.0) });
        Self { order, vocabulary, unigrams, longer, begin: 0, end: 0 }.with_ends()
    }

    fn read_arpa(input: &mut impl BufRead) -> Result<Self> {
        let mut words: HashedMap<u32> = HashedMap::default();
        let mut unigrams = vec![(UNKNOWN, 0.0)];
        let mut longer: Vec<HashedMap<(f32, f32)>> = Vec::new();
        let (mut n, mut ended) = (0, false);
        for (i, line) in input.lines().enumerate() {
            let line = line?;
            let line = line.trim_end();
            let wrong = || format!("line {}: {line:?}", i + 1);
            if line.is_empty() || line == "\\data\\" || line.starts_with("ngram ") {
                continue;
            }
            if line == "\\end\\" {
                ended = true;
                break;
            }
            if let Some(section) = line.strip_prefix('\\').and_then(|l| l.strip_suffix("-grams:")) {
                let next: usize = section.parse().with_context(wrong)?;
                if next != n + 1 {
                    bail!("{} begins behind the {n}-grams", wrong());
                }
                n = next;
                if n > 1 {
                    longer.push(HashedMap::default());
                }
                continue;
            }
            let mut fields = line.split([' ', '\t']);
            let log: f32 = fields.next().unwrap_or_default().parse().with_context(wrong)?;
            let gram: Vec<&str> = fields.by_ref().take(n).collect();
            if n == 0 || gram.len() < n {
                bail!("{}", wrong());
            }
            let backoff: f32 = fields.next().map_or(Ok(0.0), str::parse).with_context(wrong)?;
            if n == 1 {
                if matches!(gram[0], "<unk>" | "<UNK>") {
                    unigrams[0] = (log, backoff);
                    continue;
                }
                words.insert(murmur(gram[0].as_bytes()), unigrams.len() as u32);
                unigrams.push((log, backoff));
                continue;
            }
            let id = |word: &&str| words.get(&murmur(word.as_bytes())).copied().unwrap_or(0);
            let ids: Vec<u32> = gram.iter().map(id).collect();
            let key = ids[..n - 1].iter().rev().fold(u64::from(ids[n - 1]), |key, id| longer_key(key, *id));
            longer[n - 2].insert(key, (log, backoff));
        }
        if !ended || n < 2 {
            bail!("no `\\end\\`, or no 2-grams");
        }
        let longer = longer.into_iter().map(Table::Map).collect();
        Self { order: n, vocabulary: Table::Map(words), unigrams, longer, begin: 0, end: 0 }.with_ends()
    }

    fn with_ends(mut self) -> Result<Self> {
        (self.begin, self.end) = (self.id("<s>"), self.id("</s>"));
        if self.begin == 0 || self.end == 0 {
            bail!("the model has no <s> or no </s>");
        }
        Ok(self)
    }

    fn id(&self, word: &str) -> u32 {
        self.vocabulary
            .get(murmur(word.as_bytes()))
            .filter(|id| (*id as usize) < self.unigrams.len())
            .unwrap_or(0)
    }

    /// Logarithm to base 10 of the probability of a sentence of these words, its end
    /// included, and the number of words with the end.
    #[must_use]
    pub fn score<'a>(&self, words: impl Iterator<Item = &'a str>) -> (f64, u64) {
        // The last words, newest first.
        let mut context = vec![self.begin];
        let (mut sum, mut n) = (0.0, 0);
        for id in words.map(|w| self.id(w)).chain([self.end]) {
            sum += f64::from(self.next(&context, id));
            n += 1;
            context.insert(0, id);
            context.truncate(self.order - 1);
        }
        (sum, n)
    }

    /// Log probability of `word` behind `context` (newest word first): that of the longest
    /// n-gram known, and the backoffs of the contexts that are longer.
    fn next(&self, context: &[u32], word: u32) -> f32 {
        let mut prob = self.unigrams[word as usize].0;
        let mut key = u64::from(word);
        let mut matched = 0;
        for (table, id) in self.longer.iter().zip(context) {
            key = longer_key(key, *id);
            let Some((found, _)) = table.get(key) else { break };
            prob = found;
            matched += 1;
        }
        let Some(newest) = context.first() else { return prob };
        let mut key = u64::from(*newest);
        for length in 1..=context.len() {
            let backoff = match length {
                1 => Some(self.unigrams[*newest as usize].1),
                n => {
                    key = longer_key(key, context[n - 1]);
                    self.longer[n - 2].get(key).map(|v| v.1)
                }
            };
            match backoff {
                Some(b) if length > matched => prob += b,
                Some(_) => {}
                None => break,
            }
        }
        prob
    }
}

/// The key of the n-gram that has one word more in front.
fn longer_key(key: u64, id: u32) -> u64 {
    key.wrapping_mul(8_978_948_897_894_561_157) ^ (1 + u64::from(id)).wrapping_mul(17_894_857_484_156_487_943)
}

fn number(b: &[u8]) -> u32 {
    u32::from_le_bytes(b[..4].try_into().expect("4 bytes"))
}

fn float(b: &[u8]) -> f32 {
    f32::from_bits(number(b))
}

/// A probability, whose sign is a flag in binary files.
fn prob(b: &[u8]) -> f32 {
    -float(b).abs()
}

/// MurmurHash64A with seed 0 (Appleby), which KenLM names words by.
fn murmur(bytes: &[u8]) -> u64 {
    const M: u64 = 0xc6a4_a793_5bd1_e995;
    let mut h = (bytes.len() as u64).wrapping_mul(M);
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let mut k = u64::from_le_bytes(chunk.try_into().expect("8 bytes")).wrapping_mul(M);
        k = (k ^ k >> 47).wrapping_mul(M);
        h = (h ^ k).wrapping_mul(M);
    }
    if !chunks.remainder().is_empty() {
        let mut last = [0u8; 8];
        last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
        h = (h ^ u64::from_le_bytes(last)).wrapping_mul(M);
    }
    h = (h ^ h >> 47).wrapping_mul(M);
    h ^ h >> 47
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARPA: &str = "\\data\\\nngram 1=5\nngram 2=4\nngram 3=2\n\n\\1-grams:\n-1.5\t<unk>\n-99\t<s>\t-0.3\n\
        -0.9\t</s>\n-0.7\tthe\t-0.25\n-1.1\tcat\t-0.125\n\n\\2-grams:\n-0.4\t<s> the\t-0.5\n-0.6\tthe cat\t-0.0625\n\
        -0.2\tcat </s>\n-0.8\tcat the\n\n\\3-grams:\n-0.3\t<s> the cat\n-0.1\tthe cat </s>\n\n\\end\\\n";

    fn score(text: &str) -> (f64, u64) {
        let model = NgramModel::read_arpa(&mut ARPA.as_bytes()).unwrap();
        model.score(text.split_whitespace())
    }

    #[track_caller]
    fn check(text: &str, expect: f64) {
        let (sum, n) = score(text);
        assert!((sum - expect).abs() < 1e-5, "{text}: {sum}");
        assert_eq!(n as usize, text.split_whitespace().count() + 1);
    }

    #[test]
    fn arpa_backs_off_as_katz_does() {
        check("the cat", -0.4 - 0.3 - 0.1);
        // p(cat | <s>) = backoff(<s>) + p(cat); p(</s> | <s> cat): no such context, p(</s> | cat).
        check("cat", (-0.3 - 1.1) - 0.2);
        // p(the | the cat): backoff of `the cat`, then p(the | cat); p(</s> | cat the): backoffs of both contexts.
        check("the cat the", -0.4 - 0.3 + (-0.0625 - 0.8) + (-0.25 - 0.9));
        check("the dog", -0.4 + (-0.5 - 0.25 - 1.5) - 0.9);
    }

    #[test]
    fn words_hash_as_murmur_does() {
        assert_eq!(murmur(b""), 0);
        let all: std::collections::HashSet<u64> =
            ["a", "b", "ab", "abcdefgh", "abcdefghi"].iter().map(|w| murmur(w.as_bytes())).collect();
        assert_eq!(all.len(), 5);
    }

    #[test]
    fn damaged_files_are_refused() {
        for cut in [0, 20, 120, ARPA.len() - 8] {
            assert!(NgramModel::read_arpa(&mut &ARPA.as_bytes()[..cut]).is_err(), "{cut}");
        }
        assert!(NgramModel::read_arpa(&mut ARPA.replace("-0.6", "x").as_bytes()).is_err());
    }
}
