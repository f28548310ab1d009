//! Token shards in Megatron's `MMapIndexedDataset` form, version 1: `prefix.bin` holds
//! token ids end to end, `prefix.idx` their sequence lengths, byte offsets and document
//! boundaries.
//!
//! Both files are mapped and read in place; opening allocates nothing that grows with
//! the shard. Read by Megatron-LM, NeMo and GPT-NeoX. Their type table has no uint32,
//! so vocabularies beyond 65,536 are stored as int32, which holds the same ids.

use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::atomic::AtomicFile;
use crate::mapped::Mapped;
use crate::{Error, Result};

const MAGIC: &[u8; 9] = b"MMIDIDX\x00\x00";
const VERSION: u64 = 1;
/// Magic, version, type code, sequence count, document-index count.
const HEADER: usize = 9 + 8 + 1 + 8 + 8;

/// How ids are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DType {
    /// `uint16`, type code 8: ids up to 65,535.
    U16,
    /// `int32`, type code 4: ids up to 2³¹ − 1.
    U32,
}

impl DType {
    /// The narrowest type that holds ids `0..vocab_size`.
    #[must_use]
    pub fn for_vocab(vocab_size: usize) -> Self {
        if vocab_size <= 1 << 16 { DType::U16 } else { DType::U32 }
    }

    /// Bytes per token.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            DType::U16 => 2,
            DType::U32 => 4,
        }
    }

    fn code(self) -> u8 {
        match self {
            DType::U16 => 8,
            DType::U32 => 4,
        }
    }
}

/// `prefix` with `.bin` or `.idx` appended (a dot in the prefix stays).
fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut name = prefix.as_os_str().to_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

/// The two files of a shard: `prefix.bin`, `prefix.idx`.
#[must_use]
pub fn paths(prefix: &Path) -> (PathBuf, PathBuf) {
    (with_suffix(prefix, ".bin"), with_suffix(prefix, ".idx"))
}

/// A checked `.idx` file: offsets into its bytes.
#[derive(Clone, Debug)]
struct Index {
    dtype: DType,
    sequences: usize,
    documents: usize,
    tokens: u64,
}

impl Index {
    /// Checks everything that later reads rely on; `bin_len` is the size of the `.bin` file.
    fn check(path: &Path, b: &[u8], bin_len: Option<u64>) -> Result<Self> {
        if b.len() < HEADER || &b[..9] != MAGIC {
            let found = format!(
                "{} bytes that start with {:?}",
                b.len(),
                String::from_utf8_lossy(&b[..b.len().min(9)])
            );
            return Err(Error::corrupt(path, "byte 0", "the magic MMIDIDX and a 34-byte header", found)
                .with_hint(
                    "token shards are written by `intern data tokenize` or Megatron's preprocess_data.py",
                ));
        }
        let version = u64_at(b, 9);
        if version != VERSION {
            return Err(Error::corrupt(path, "byte 9", "version 1", format!("version {version}")));
        }
        let dtype = match b[17] {
            8 => DType::U16,
            4 => DType::U32,
            code @ (1..=3 | 5..=7) => {
                let name =
                    ["uint8", "int8", "int16", "", "int64", "a float", "a float"][usize::from(code) - 1];
                return Err(Error::unsupported(path, format!("token type {name} (code {code})"))
                    .with_hint("tokenize again as uint16 or int32"));
            }
            code => return Err(Error::corrupt(path, "byte 17", "a type code from 1 to 8", code.to_string())),
        };
        let (sequences, boundaries) = (u64_at(b, 18), u64_at(b, 26));
        let needed = u128::from(sequences) * 12 + u128::from(boundaries) * 8 + HEADER as u128;
        if sequences > 0 && needed + u128::from(sequences) == b.len() as u128 {
            return Err(Error::unsupported(path, "a multimodal shard (a mode per sequence)"));
        }
        if needed != b.len() as u128 {
            let expected =
                format!("{needed} bytes for {sequences} sequences and {boundaries} document boundaries");
            return Err(Error::corrupt(
                path,
                format!("byte {}", b.len()),
                expected,
                format!("{} bytes", b.len()),
            )
            .with_hint("the file is cut short or mixed with another; tokenize again"));
        }
        if boundaries == 0 {
            return Err(Error::corrupt(path, "byte 26", "at least one document boundary", "0"));
        }
        let mut index =
            Index { dtype, sequences: sequences as usize, documents: boundaries as usize - 1, tokens: 0 };
        index.check_sequences(path, b)?;
        index.check_documents(path, b)?;
        let bytes = index.tokens * dtype.size() as u64;
        if let Some(bin_len) = bin_len.filter(|&n| n != bytes) {
            let bin = path.with_extension("bin");
            return Err(Error::corrupt(
                bin,
                format!("byte {bin_len}"),
                format!("{bytes} bytes"),
                format!("{bin_len} bytes"),
            )
            .with_hint("the .bin and .idx files do not belong together; tokenize again"));
        }
        Ok(index)
    }

    /// Lengths are not negative, and each sequence starts where the one before it ends.
    fn check_sequences(&mut self, path: &Path, b: &[u8]) -> Result<()> {
        for i in 0..self.sequences {
            let length = i32::from_le_bytes(bytes_at(b, HEADER + 4 * i));
            if length < 0 {
                let at = format!("byte {}", HEADER + 4 * i);
                return Err(Error::corrupt(path, at, "a sequence length of 0 or more", length.to_string()));
            }
            let start = self.tokens * self.dtype.size() as u64;
            let at = self.pointers() + 8 * i;
            if u64_at(b, at) != start {
                return Err(Error::corrupt(
                    path,
                    format!("byte {at}"),
                    format!("offset {start} for sequence {i}, where the one before ends"),
                    u64_at(b, at).to_string(),
                ));
            }
            self.tokens += length as u64;
        }
        Ok(())
    }

    /// Boundaries run from 0 to the sequence count without going back.
    fn check_documents(&self, path: &Path, b: &[u8]) -> Result<()> {
        let mut before = 0;
        for i in 0..=self.documents {
            let at = self.boundaries() + 8 * i;
            let boundary = u64_at(b, at);
            let low = if i == 0 { 0 } else { before };
            let high = if i == 0 { 0 } else { self.sequences as u64 };
            let low = if i > 0 && i == self.documents { high } else { low };
            if boundary < low || boundary > high {
                let expected = format!("a document boundary from {low} to {high}");
                return Err(Error::corrupt(path, format!("byte {at}"), expected, boundary.to_string()));
            }
            before = boundary;
        }
        if self.documents == 0 && self.sequences > 0 {
            let at = format!("byte {}", self.boundaries());
            return Err(Error::corrupt(
                path,
                at,
                format!("boundaries for {} sequences", self.sequences),
                "none",
            ));
        }
        Ok(())
    }

    fn pointers(&self) -> usize {
        HEADER + 4 * self.sequences
    }

    fn boundaries(&self) -> usize {
        HEADER + 12 * self.sequences
    }

    /// First token of document `i`; the token count for `i == documents`.
    fn document_start(&self, b: &[u8], i: usize) -> u64 {
        let sequence = u64_at(b, self.boundaries() + 8 * i) as usize;
        if sequence == self.sequences {
            self.tokens
        } else {
            u64_at(b, self.pointers() + 8 * sequence) / self.dtype.size() as u64
        }
    }
}

fn bytes_at<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    b[at..at + N].try_into().expect("N bytes")
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(b, at))
}

/// Checks the bytes of an `.idx` file as [`TokenShard::open`] does; its token count. For fuzzing.
pub fn check_index(bytes: &[u8]) -> Result<u64> {
    let index = Index::check(Path::new("(bytes)"), bytes, None)?;
    for i in 0..=index.documents {
        if index.document_start(bytes, i) > index.tokens {
            return Err(Error::corrupt(
                "(bytes)",
                format!("document {i}"),
                "a start within the tokens",
                "more",
            ));
        }
    }
    Ok(index.tokens)
}

/// An open shard.
#[derive(Debug)]
pub struct TokenShard {
    bin: Mapped,
    idx: Mapped,
    index: Index,
}

impl TokenShard {
    /// Maps `prefix.bin` and `prefix.idx` and checks the index in full.
    pub fn open(prefix: &Path) -> Result<Self> {
        let (bin_path, idx_path) = paths(prefix);
        let idx = Mapped::open(&idx_path)?;
        let bin = Mapped::open(&bin_path)?;
        let index = Index::check(&idx_path, &idx, Some(bin.len() as u64))?;
        Ok(Self { bin, idx, index })
    }

    /// Documents in the shard.
    #[must_use]
    pub fn num_documents(&self) -> usize {
        self.index.documents
    }

    /// Tokens in the shard.
    #[must_use]
    pub fn num_tokens(&self) -> u64 {
        self.index.tokens
    }

    /// How ids are stored.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.index.dtype
    }

    /// The tokens of document `i` within the concatenated stream. Panics if `i` is out of range.
    #[must_use]
    pub fn document_range(&self, i: usize) -> Range<u64> {
        assert!(i < self.index.documents, "document {i} of {}", self.index.documents);
        self.index.document_start(&self.idx, i)..self.index.document_start(&self.idx, i + 1)
    }

    /// The tokens of document `i`. Panics if `i` is out of range.
    #[must_use]
    pub fn document(&self, i: usize) -> Vec<u32> {
        let range = self.document_range(i);
        self.window(range.start, (range.end - range.start) as usize)
    }

    /// `len` tokens of the concatenated stream from `start`; fewer at the end of the shard.
    #[must_use]
    pub fn window(&self, start: u64, len: usize) -> Vec<u32> {
        let start = start.min(self.index.tokens);
        let end = start.saturating_add(len as u64).min(self.index.tokens);
        let size = self.index.dtype.size();
        let bytes = &self.bin[start as usize * size..end as usize * size];
        match self.index.dtype {
            DType::U16 => {
                bytes.chunks_exact(2).map(|c| u32::from(u16::from_le_bytes([c[0], c[1]]))).collect()
            }
            DType::U32 => {
                bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
            }
        }
    }

    /// The document that token `token_index` belongs to (empty documents own no token).
    /// Panics if the shard has no such token.
    #[must_use]
    pub fn document_at(&self, token_index: u64) -> usize {
        assert!(token_index < self.index.tokens, "token {token_index} of {}", self.index.tokens);
        let (mut low, mut high) = (0, self.index.documents);
        // The last document that starts at or before the token.
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.index.document_start(&self.idx, middle) <= token_index {
                low = middle;
            } else {
                high = middle;
            }
        }
        low
    }
}

/// Writes a shard document by document. Holds 4 bytes per document until [`ShardWriter::finish`].
#[derive(Debug)]
pub struct ShardWriter {
    idx_path: PathBuf,
    bin: AtomicFile,
    dtype: DType,
    lengths: Vec<i32>,
    buffer: Vec<u8>,
}

impl ShardWriter {
    /// Starts `prefix.bin` and `prefix.idx`.
    pub fn create(prefix: &Path, dtype: DType) -> Result<Self> {
        let (bin_path, idx_path) = paths(prefix);
        let bin = AtomicFile::create(&bin_path)?;
        Ok(Self { idx_path, bin, dtype, lengths: Vec::new(), buffer: Vec::new() })
    }

    /// Appends one document. [`Error::Unsupported`] if an id does not fit the type.
    pub fn push(&mut self, tokens: &[u32]) -> Result<()> {
        let max = match self.dtype {
            DType::U16 => u32::from(u16::MAX),
            DType::U32 => i32::MAX as u32,
        };
        if let Some(id) = tokens.iter().find(|&&id| id > max) {
            return Err(Error::unsupported(
                self.bin.path(),
                format!("token id {id} in a {:?} shard", self.dtype),
            )
            .with_hint("choose the type with DType::for_vocab"));
        }
        let length = i32::try_from(tokens.len()).map_err(|_| {
            Error::unsupported(self.bin.path(), format!("a document of {} tokens", tokens.len()))
        })?;
        self.buffer.clear();
        match self.dtype {
            DType::U16 => self.buffer.extend(tokens.iter().flat_map(|&t| (t as u16).to_le_bytes())),
            DType::U32 => self.buffer.extend(tokens.iter().flat_map(|&t| t.to_le_bytes())),
        }
        self.bin.write_all(&self.buffer).map_err(|e| Error::io(self.bin.path(), e))?;
        self.lengths.push(length);
        Ok(())
    }

    /// Documents so far.
    #[must_use]
    pub fn num_documents(&self) -> usize {
        self.lengths.len()
    }

    /// Writes the index and gives both files their names, the index last.
    pub fn finish(self) -> Result<()> {
        let io = |e| Error::io(&self.idx_path, e);
        let mut idx = AtomicFile::create(&self.idx_path)?;
        let n = self.lengths.len() as u64;
        idx.write_all(MAGIC).map_err(io)?;
        idx.write_all(&VERSION.to_le_bytes()).map_err(io)?;
        idx.write_all(&[self.dtype.code()]).map_err(io)?;
        idx.write_all(&n.to_le_bytes()).map_err(io)?;
        idx.write_all(&(n + 1).to_le_bytes()).map_err(io)?;
        for length in &self.lengths {
            idx.write_all(&length.to_le_bytes()).map_err(io)?;
        }
        let mut offset = 0i64;
        for &length in &self.lengths {
            idx.write_all(&offset.to_le_bytes()).map_err(io)?;
            offset += i64::from(length) * self.dtype.size() as i64;
        }
        for document in 0..=n {
            idx.write_all(&document.to_le_bytes()).map_err(io)?;
        }
        // An index from an earlier run must not be seen beside the new tokens.
        match fs::remove_file(&self.idx_path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(e)),
            _ => {}
        }
        self.bin.commit()?;
        idx.commit()
    }
}
