//! `intern data signatures`: MinHash signatures and the documents to remove in datatrove's
//! files, so that either program can go on with the other's.
//!
//! Per bucket `bucket_000/00000.minhash.sig`: sorted rows of `rows` hashes (`u64`) and the
//! document's number (`u32`); and `000000.remove` with the numbers (`u32`) of the documents
//! that datatrove's clustering removes. All little endian.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use intern_format::atomic::write_atomic;
use rayon::prelude::*;

use crate::corpus;
use crate::dedup::minhash::{MinHasher, MinhashConfig, Normalize};
use crate::words::Splitter;

/// What was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Documents read.
    pub documents: usize,
    /// Documents long enough for a signature.
    pub signed: usize,
    /// Documents that are copies of others.
    pub removed: usize,
}

/// A document's row in a bucket: its hashes, then its number.
type Row = (Vec<u64>, u32);

/// Signs the documents of `file` with datatrove's settings (English words, 5-grams, xxhash,
/// seed 1) and writes its files to `out`.
///
/// # Errors
/// If the documents cannot be read or the disk refuses.
pub fn run(file: &Path, out: &Path, bands: usize, rows: usize) -> Result<Summary> {
    if bands == 0 || rows == 0 {
        anyhow::bail!("bands and rows must be at least 1\nhint: FineWeb's are 14 and 8");
    }
    let config = MinhashConfig { bands, rows, normalize: Normalize::Fineweb, ..MinhashConfig::default() };
    let hasher = MinHasher::new(&config).with_splitter(Splitter::English);
    let mut texts = Vec::new();
    for file in corpus::files(&[file.to_path_buf()])? {
        for document in corpus::read(&file)? {
            texts.push(document?.text);
        }
    }
    let signatures: Vec<Vec<u64>> = texts.par_iter().map(|text| hasher.rows(text)).collect();
    let mut pairs: Vec<(u32, u32)> = Vec::new();
    for band in 0..bands {
        let mut bucket: Vec<Row> = (0..)
            .zip(&signatures)
            .filter(|(_, s)| !s.is_empty())
            .map(|(i, s)| (s[band * rows..(band + 1) * rows].to_vec(), i))
            .collect();
        bucket.sort();
        pairs.extend(bucket.windows(2).filter(|w| w[0].0 == w[1].0).map(|w| (w[0].1, w[1].1)));
        let mut bytes = Vec::with_capacity(bucket.len() * (8 * rows + 4));
        for (hashes, i) in bucket {
            hashes.iter().for_each(|h| bytes.extend(h.to_le_bytes()));
            bytes.extend(i.to_le_bytes());
        }
        let dir = out.join(format!("bucket_{band:03}"));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        write_atomic(&dir.join("00000.minhash.sig"), &bytes)?;
    }
    let removed = removed(&pairs);
    let bytes: Vec<u8> = removed.iter().flat_map(|i| i.to_le_bytes()).collect();
    write_atomic(&out.join("000000.remove"), &bytes)?;
    let signed = signatures.iter().filter(|s| !s.is_empty()).count();
    Ok(Summary { documents: texts.len(), signed, removed: removed.len() })
}

/// All but the root of each cluster, by datatrove's union by size: pairs come bucket after
/// bucket, and of equal sizes the first one's root stays.
fn removed(pairs: &[(u32, u32)]) -> Vec<u32> {
    let mut parent: HashMap<u32, u32> = HashMap::new();
    let mut size: HashMap<u32, u32> = HashMap::new();
    fn find(parent: &mut HashMap<u32, u32>, x: u32) -> u32 {
        let mut root = x;
        while let Some(&up) = parent.get(&root).filter(|up| **up != root) {
            root = up;
        }
        parent.insert(x, root);
        root
    }
    for &(a, b) in pairs {
        let (a, b) = (find(&mut parent, a), find(&mut parent, b));
        if a == b {
            continue;
        }
        let (size_a, size_b) = (size.get(&a).copied().unwrap_or(1), size.get(&b).copied().unwrap_or(1));
        let (a, b) = if size_a < size_b { (b, a) } else { (a, b) };
        parent.insert(b, a);
        size.insert(a, size_a + size_b);
    }
    let mut nodes: Vec<u32> = parent.keys().copied().collect();
    nodes.sort_unstable();
    nodes.retain(|x| find(&mut parent, *x) != *x);
    nodes
}
