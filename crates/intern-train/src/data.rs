//! Training sequences out of token shards, by number.
//!
//! A run reads one endless stream of sequences; sequence `i` depends on the settings, the
//! shards and `i` alone, so a resumed run continues with exactly the sequence it would have
//! seen. Within an epoch every window of the corpus occurs once, in an order given by
//! [`Permutation`]. Weighted sources are interleaved by a fixed table.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use intern_format::shards::TokenShard;
use intern_model::Batch;

use crate::config::DataConfig;
use crate::shuffle::Permutation;

/// An endless numbered stream of training sequences.
pub trait BatchSource {
    /// Sequences `first..first + n` of the stream as one batch of `n` rows.
    ///
    /// # Errors
    /// If the data cannot be read.
    fn batch(&self, first: u64, n: usize) -> Result<Batch>;
}

/// Sequences of fixed length from Megatron shards.
#[derive(Debug)]
pub struct ShardSource {
    groups: Vec<Group>,
    mixture: Mixture,
    seq_len: usize,
    document_mask: bool,
    seed: u64,
}

/// Shards that are read as one corpus.
#[derive(Debug)]
struct Group {
    shards: Vec<TokenShard>,
    /// For each shard, the number of windows in those before it.
    before: Vec<u64>,
    windows: u64,
}

impl Group {
    fn open(paths: &[PathBuf], seq_len: usize, vocab_size: usize) -> Result<Self> {
        let mut group = Self { shards: Vec::new(), before: Vec::new(), windows: 0 };
        for path in paths {
            let shard = TokenShard::open(path)?;
            check_ids(&shard, path, vocab_size)?;
            group.before.push(group.windows);
            // A window needs one token more than its length: the last target.
            group.windows += shard.num_tokens().saturating_sub(1) / seq_len as u64;
            group.shards.push(shard);
        }
        ensure!(
            group.windows > 0,
            "{}: fewer than {} tokens, not one sequence\nhint: lower data.seq_len, or add data",
            paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", "),
            seq_len + 1
        );
        Ok(group)
    }

    /// The shard of window `i` and the window's first token in it.
    fn window(&self, i: u64, seq_len: usize) -> (&TokenShard, u64) {
        let s = self.before.partition_point(|&b| b <= i) - 1;
        (&self.shards[s], (i - self.before[s]) * seq_len as u64)
    }
}

/// Refuses ids the model has no row for, by the first million tokens; the model checks every batch.
fn check_ids(shard: &TokenShard, path: &std::path::Path, vocab_size: usize) -> Result<()> {
    let tokens = shard.window(0, 1 << 20);
    let Some(at) = tokens.iter().position(|&id| id as usize >= vocab_size) else { return Ok(()) };
    anyhow::bail!(
        "{}.bin: token {at} is {}, but the vocabulary ends at {}\n\
         hint: was it written by `intern data tokenize` with this tokenizer?",
        path.display(),
        tokens[at],
        vocab_size - 1
    )
}

impl ShardSource {
    /// Opens the training shards of `config` for a model of `vocab_size` tokens.
    pub fn open(config: &DataConfig, seed: u64, vocab_size: usize) -> Result<Self> {
        let sources = config.sources()?;
        let weights: Option<Vec<f64>> = sources.iter().map(|(_, w)| *w).collect();
        let open = |paths: &[PathBuf]| Group::open(paths, config.seq_len, vocab_size).context("data.train");
        let paths: Vec<PathBuf> = sources.into_iter().map(|(path, _)| path).collect();
        let (groups, mixture) = match weights {
            None => (vec![open(&paths)?], Mixture::new(&[1.0])),
            Some(weights) => {
                let groups = paths.iter().map(|p| open(std::slice::from_ref(p))).collect::<Result<_>>()?;
                (groups, Mixture::new(&weights))
            }
        };
        Ok(Self { groups, mixture, seq_len: config.seq_len, document_mask: config.document_mask, seed })
    }

    /// Sequences in one pass over every source.
    #[must_use]
    pub fn sequences_per_epoch(&self) -> u64 {
        self.groups.iter().map(|g| g.windows).sum()
    }

    fn row(&self, sequence: u64, batch: &mut Batch) {
        let (source, i) = self.mixture.place(sequence);
        let group = &self.groups[source];
        let (epoch, place) = (i / group.windows, i % group.windows);
        // Each source shuffles by its own seed.
        let order = Permutation::new(group.windows, self.seed ^ (source as u64) << 32, epoch);
        let (shard, start) = group.window(order.at(place), self.seq_len);
        push_row(shard, start, self.seq_len, self.document_mask, batch);
    }
}

impl BatchSource for ShardSource {
    fn batch(&self, first: u64, n: usize) -> Result<Batch> {
        let mut batch = Batch { b: n, t: self.seq_len, ..Batch::default() };
        for sequence in first..first + n as u64 {
            self.row(sequence, &mut batch);
        }
        Ok(batch)
    }
}

/// Held-out sequences with a loss of their own.
#[derive(Clone, Debug, Default)]
pub struct ValidSet {
    /// What the metrics call it; empty where it is all there is.
    pub name: String,
    /// The sequences.
    pub batches: Vec<Batch>,
}

/// The validation sets of `config`, in batches of `rows`; none where there is none.
pub fn validation(config: &DataConfig, rows: usize, vocab_size: usize) -> Result<Vec<ValidSet>> {
    let set = |(name, path): (String, PathBuf)| {
        let group =
            Group::open(std::slice::from_ref(&path), config.seq_len, vocab_size).context("data.valid")?;
        let n = group.windows.min(config.valid_sequences as u64);
        let starts: Vec<u64> = (0..n).map(|i| i * group.windows / n).collect();
        let batch = |chunk: &[u64]| {
            let mut batch = Batch { b: chunk.len(), t: config.seq_len, ..Batch::default() };
            for &i in chunk {
                let (shard, start) = group.window(i, config.seq_len);
                push_row(shard, start, config.seq_len, config.document_mask, &mut batch);
            }
            batch
        };
        Ok(ValidSet { name, batches: starts.chunks(rows).map(batch).collect() })
    };
    config.valid.iter().flat_map(crate::config::Valid::list).map(set).collect()
}

/// Cuts every row into `parts` shorter ones, which are sequences of their own.
#[must_use]
pub fn split_rows(batch: Batch, parts: usize) -> Batch {
    if parts == 1 {
        return batch;
    }
    let t = batch.t / parts;
    let piece = |starts: &Vec<usize>, i: usize| {
        let within = starts.iter().filter(|s| (i * t + 1..(i + 1) * t).contains(s)).map(|s| s - i * t);
        std::iter::once(0).chain(within).collect()
    };
    let pieces = |starts: &Vec<usize>| (0..parts).map(|i| piece(starts, i)).collect::<Vec<_>>();
    Batch { b: batch.b * parts, t, doc_starts: batch.doc_starts.iter().flat_map(pieces).collect(), ..batch }
}

/// Appends the window of `t` tokens at `start`, with its targets and document starts.
///
/// With `document_mask`, a document's last token has no target: what follows is another's.
fn push_row(shard: &TokenShard, start: u64, t: usize, document_mask: bool, batch: &mut Batch) {
    let tokens = shard.window(start, t + 1);
    batch.tokens.extend(&tokens[..t]);
    batch.targets.extend(&tokens[1..]);
    let row = batch.mask.len();
    batch.mask.resize(row + t, true);
    let mut starts = vec![0];
    if document_mask {
        let mut end = shard.document_range(shard.document_at(start)).end;
        while end <= start + t as u64 {
            let boundary = (end - start) as usize;
            batch.mask[row + boundary - 1] = false;
            if boundary == t {
                break;
            }
            starts.push(boundary);
            end = shard.document_range(shard.document_at(end)).end;
        }
    }
    batch.doc_starts.push(starts);
}

/// Interleaves sources in given proportions: a table of sources, repeated for ever.
#[derive(Clone, Debug)]
struct Mixture {
    /// The source of each place of a cycle.
    table: Vec<usize>,
    /// For each place, how often its source came before in the cycle.
    nth: Vec<u64>,
    /// How often each source comes in a cycle.
    per_cycle: Vec<u64>,
}

impl Mixture {
    /// Places of a cycle: proportions are kept to one in this many.
    const CYCLE: usize = 4096;

    fn new(weights: &[f64]) -> Self {
        let total: f64 = weights.iter().sum();
        let cycle = if weights.len() == 1 { 1 } else { Self::CYCLE };
        let mut mixture = Self {
            table: Vec::with_capacity(cycle),
            nth: Vec::with_capacity(cycle),
            per_cycle: vec![0; weights.len()],
        };
        for place in 0..cycle {
            // The source furthest behind its share comes next; the first of equals wins.
            let behind = |s: usize| weights[s] / total * (place + 1) as f64 - mixture.per_cycle[s] as f64;
            let next = (1..weights.len()).fold(0, |best, s| if behind(s) > behind(best) { s } else { best });
            mixture.table.push(next);
            mixture.nth.push(mixture.per_cycle[next]);
            mixture.per_cycle[next] += 1;
        }
        mixture
    }

    /// The source of `sequence`, and how many of its sequences came before.
    fn place(&self, sequence: u64) -> (usize, u64) {
        let cycle = self.table.len() as u64;
        let (round, place) = (sequence / cycle, (sequence % cycle) as usize);
        let source = self.table[place];
        (source, round * self.per_cycle[source] + self.nth[place])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Prefix, Prefixes, Valid};
    use intern_format::shards::{DType, ShardWriter};
    use std::path::Path;

    fn write(prefix: &Path, documents: &[Vec<u32>]) {
        let mut writer = ShardWriter::create(prefix, DType::U16).unwrap();
        for document in documents {
            writer.push(document).unwrap();
        }
        writer.finish().unwrap();
    }

    fn config(train: Prefixes, seq_len: usize, document_mask: bool) -> DataConfig {
        DataConfig { train, valid: None, seq_len, curriculum: None, document_mask, valid_sequences: 3 }
    }

    #[test]
    fn an_epoch_holds_every_window_once() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("a"), &[(0..33).collect()]);
        write(&dir.path().join("b"), &[(33..60).collect()]);
        let prefixes = ["a", "b"].map(|p| Prefix::Plain(dir.path().join(p))).to_vec();
        let source = ShardSource::open(&config(Prefixes::Many(prefixes), 4, false), 3, 64).unwrap();
        assert_eq!(source.sequences_per_epoch(), 8 + 6);
        for epoch in 0..2 {
            let batch = source.batch(epoch * 14, 14).unwrap();
            let mut firsts: Vec<u32> = batch.tokens.chunks(4).map(|row| row[0]).collect();
            assert!(batch.tokens.iter().zip(&batch.targets).all(|(a, b)| a + 1 == *b));
            firsts.sort_unstable();
            let expect: Vec<u32> = (0..8).map(|i| i * 4).chain((0..6).map(|i| 33 + i * 4)).collect();
            assert_eq!(firsts, expect);
        }
        let split: Vec<u32> = (0..7).flat_map(|i| source.batch(i * 2, 2).unwrap().tokens).collect();
        assert_eq!(split, source.batch(0, 14).unwrap().tokens);
    }

    #[test]
    fn documents_are_marked_and_do_not_predict_one_another() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("a");
        write(&prefix, &[vec![1, 2, 3], vec![4, 5], vec![], vec![6], vec![7, 8, 9, 10]]);
        let batches = validation(
            &DataConfig {
                valid: Some(Valid::One(prefix.clone())),
                ..config(Prefixes::One(prefix.clone()), 4, true)
            },
            8,
            11,
        )
        .unwrap();
        let batch = &batches[0].batches[0];
        assert_eq!(batch.tokens, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(batch.doc_starts, [vec![0, 3], vec![0, 1, 2]]);
        assert_eq!(batch.mask, [true, true, false, true, false, false, true, true]);
        batch.validate(11).unwrap();
        let halves = split_rows(batch.clone(), 2);
        halves.validate(11).unwrap();
        assert_eq!((halves.b, halves.t), (4, 2));
        assert_eq!((&halves.tokens, &halves.mask), (&batch.tokens, &batch.mask));
        assert_eq!(halves.doc_starts, [vec![0], vec![0, 1], vec![0, 1], vec![0]]);
        let plain = validation(
            &DataConfig {
                valid: Some(Valid::One(prefix.clone())),
                ..config(Prefixes::One(prefix), 4, false)
            },
            1,
            11,
        )
        .unwrap();
        let plain = &plain[0].batches;
        assert_eq!(plain.len(), 2);
        assert!(plain.iter().all(|b| b.mask == [true; 4] && b.doc_starts == [vec![0]]));
    }

    #[test]
    fn weights_decide_the_proportions() {
        let mixture = Mixture::new(&[3.0, 1.0]);
        let mut next = [0, 0];
        for sequence in 0..10_000 {
            let (source, i) = mixture.place(sequence);
            assert_eq!(i, next[source], "each source counts up");
            next[source] += 1;
        }
        assert_eq!(next, [7500, 2500]);
    }

    #[test]
    fn foreign_ids_and_short_data_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("a");
        write(&prefix, &[vec![1, 70, 3]]);
        let open = |seq_len, vocab| {
            let error = ShardSource::open(&config(Prefixes::One(prefix.clone()), seq_len, true), 0, vocab);
            format!("{:#}", error.unwrap_err())
        };
        assert!(open(2, 64).contains("token 1 is 70, but the vocabulary ends at 63"));
        assert!(open(3, 100).contains("fewer than 4 tokens"));
    }
}
