//! `intern data tokenize`: documents → Megatron shards `train.bin/.idx` and, if asked for,
//! `valid.bin/.idx`, with the end-of-text token after every document.
//!
//! Which documents are held out depends on the hash of their text alone, so a document
//! never moves between the two when others come or go. Each input file becomes a part
//! under `.tmp-work`, so a killed run continues with the next file.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use intern_format::atomic::{read_json, write_json};
use intern_format::shards::{DType, ShardWriter, TokenShard};
use intern_progress::Progress;
use intern_tokenizer::Tokenizer;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::job::Job;
use crate::{corpus, hash};

const COMMAND: &str = "data tokenize";
/// Characters encoded at once.
const BATCH_CHARS: usize = 4 << 20;

/// What to tokenize.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizeConfig {
    /// Document files or directories.
    pub documents: Vec<PathBuf>,
    /// A tokenizer: a directory, `tokenizer.json`, SentencePiece model or tiktoken file.
    pub tokenizer: PathBuf,
    /// Share of the documents held out for validation, 0–1.
    #[serde(default)]
    pub valid_fraction: f64,
    /// Puts the begin-of-text token before every document.
    #[serde(default)]
    pub bos: bool,
}

/// What was written.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Documents for training.
    pub documents: u64,
    /// Tokens for training.
    pub tokens: u64,
    /// Documents held out.
    pub valid_documents: u64,
    /// Tokens held out.
    pub valid_tokens: u64,
    /// UTF-8 bytes of all texts.
    pub bytes: u64,
    /// Nothing had to be done.
    #[serde(default)]
    pub up_to_date: bool,
    /// Tokens per second of this call; 0 when it had nothing to encode.
    #[serde(default)]
    pub tokens_per_second: f64,
}

/// Tokenizes into the directory `out`.
///
/// # Errors
/// If documents or tokenizer cannot be read, there is no text, or the disk refuses.
pub fn run(config: &TokenizeConfig, out: &Path) -> Result<Summary> {
    if !(0.0..1.0).contains(&config.valid_fraction) {
        bail!("valid_fraction = {}: expected at least 0 and less than 1", config.valid_fraction);
    }
    let start = Instant::now();
    let files = corpus::files(&config.documents)?;
    let inputs = corpus::hashes(config.documents.iter().chain([&config.tokenizer]))?;
    let job = Job::new(out, COMMAND, config, inputs)?;
    if let Some(counts) = job.finished()? {
        let counts = serde_json::to_value(counts)?;
        return Ok(Summary { up_to_date: true, ..serde_json::from_value(counts)? });
    }
    let work = job.prepare(&["train.idx", "train.bin", "valid.idx", "valid.bin"])?.to_path_buf();

    let tokenizer = Tokenizer::from_path(&config.tokenizer)
        .with_context(|| format!("cannot load the tokenizer {}", config.tokenizer.display()))?;
    let encoder = Encoder::new(config, tokenizer)?;
    let progress = Progress::new("tokenize", files.len() as u64, "files");
    let mut summary = Summary::default();
    let mut encoded = 0;
    for (i, file) in files.iter().enumerate() {
        let part = work.join(format!("{i:05}"));
        let marker = part.with_extension("json");
        let done: Summary = if marker.is_file() {
            read_json(&marker)?
        } else {
            let done = encoder.file(file, &part)?;
            encoded += done.tokens + done.valid_tokens;
            write_json(&marker, &done)?;
            done
        };
        summary.add(&done);
        progress.set_message(format!("{} tokens", intern_progress::human(summary.tokens as f64)));
        progress.inc(1);
    }
    progress.finish();
    if summary.documents == 0 {
        bail!(
            "there is no text to train on\nhint: the corpus is empty, or valid_fraction holds all of it out"
        );
    }
    join(&work, files.len(), "train", &out.join("train"), encoder.dtype)?;
    if config.valid_fraction > 0.0 {
        join(&work, files.len(), "valid", &out.join("valid"), encoder.dtype)?;
    }

    let Value::Object(mut counts) = serde_json::to_value(&summary)? else {
        unreachable!("a struct is an object")
    };
    counts.retain(|_, v| v.is_u64());
    job.finish(&["train.bin", "valid.bin"], &counts)?;
    summary.tokens_per_second = encoded as f64 / start.elapsed().as_secs_f64().max(1e-9);
    Ok(summary)
}

struct Encoder<'a> {
    config: &'a TokenizeConfig,
    tokenizer: Tokenizer,
    dtype: DType,
    bos: Option<u32>,
    eos: u32,
}

impl<'a> Encoder<'a> {
    fn new(config: &'a TokenizeConfig, tokenizer: Tokenizer) -> Result<Self> {
        let eos = tokenizer.eos_id().with_context(|| {
            format!(
                "{}: the tokenizer has no end-of-text token\nhint: set eos_token in tokenizer_config.json",
                config.tokenizer.display()
            )
        })?;
        let bos = match (config.bos, tokenizer.bos_id()) {
            (false, _) => None,
            (true, Some(id)) => Some(id),
            (true, None) => {
                bail!(
                    "{}: the tokenizer has no begin-of-text token\nhint: set bos = false",
                    config.tokenizer.display()
                )
            }
        };
        let dtype = DType::for_vocab(tokenizer.vocab_size());
        Ok(Self { config, tokenizer, dtype, bos, eos })
    }

    /// Encodes one file into `part.train` and `part.valid`.
    fn file(&self, file: &Path, part: &Path) -> Result<Summary> {
        let mut summary = Summary::default();
        let mut train = ShardWriter::create(&prefix(part, "train"), self.dtype)?;
        let mut valid = ShardWriter::create(&prefix(part, "valid"), self.dtype)?;
        let mut documents = corpus::read(file)?.peekable();
        while documents.peek().is_some() {
            let (mut batch, mut size) = (Vec::new(), 0);
            while size < BATCH_CHARS
                && let Some(document) = documents.next()
            {
                let text = document?.text;
                size += text.len();
                batch.push(text);
            }
            let encoded: Vec<(bool, Vec<u32>)> = batch
                .par_iter()
                .filter(|text| !text.is_empty())
                .map(|text| Ok((self.holds_out(text), self.encode(text)?)))
                .collect::<Result<_>>()?;
            summary.bytes += size as u64;
            for (held_out, tokens) in encoded {
                let n = tokens.len() as u64;
                if held_out {
                    summary.valid_documents += 1;
                    summary.valid_tokens += n;
                    valid.push(&tokens)?;
                } else {
                    summary.documents += 1;
                    summary.tokens += n;
                    train.push(&tokens)?;
                }
            }
        }
        train.finish()?;
        valid.finish()?;
        Ok(summary)
    }

    /// Text that spells a special token is data here, never a special token.
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens: Vec<u32> = self.bos.into_iter().collect();
        tokens.extend(self.tokenizer.encode_plain(text)?);
        tokens.push(self.eos);
        Ok(tokens)
    }

    fn holds_out(&self, text: &str) -> bool {
        let h = hash::content(text);
        let unit = u64::from_le_bytes(h[..8].try_into().expect("8 bytes")) as f64 / 2f64.powi(64);
        unit < self.config.valid_fraction
    }
}

fn prefix(part: &Path, split: &str) -> PathBuf {
    let mut name = part.as_os_str().to_os_string();
    name.push(format!(".{split}"));
    PathBuf::from(name)
}

/// Joins the parts of one split.
fn join(work: &Path, parts: usize, split: &str, out: &Path, dtype: DType) -> Result<()> {
    let mut writer = ShardWriter::create(out, dtype)?;
    for i in 0..parts {
        let shard = TokenShard::open(&prefix(&work.join(format!("{i:05}")), split))?;
        for document in 0..shard.num_documents() {
            writer.push(&shard.document(document))?;
        }
    }
    Ok(writer.finish()?)
}

impl Summary {
    fn add(&mut self, other: &Summary) {
        self.documents += other.documents;
        self.tokens += other.tokens;
        self.valid_documents += other.valid_documents;
        self.valid_tokens += other.valid_tokens;
        self.bytes += other.bytes;
    }
}
