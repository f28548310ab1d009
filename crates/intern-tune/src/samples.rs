//! Conversations as tokens with their training mask, and everything said about them before
//! the first update: counts, refusals, and a preview of what is trained.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use intern_format::conversation::{self, Conversation};
use intern_progress::Progress;
use intern_tokenizer::{ChatTokens, Tokenizer};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::config::{DataConfig, TooLong};

/// Usable samples and what was found on the way.
#[derive(Clone, Debug)]
pub struct Samples {
    /// In the order of the files; each has at least one trained token besides its first.
    pub list: Vec<ChatTokens>,
    /// Counts and the tokens that end a turn.
    pub counts: Counts,
    /// Trained tokens that end a turn.
    pub end_ids: BTreeSet<u32>,
}

/// What a data set holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Conversations read.
    pub conversations: usize,
    /// Of these, longer than a row and left out.
    pub dropped: usize,
    /// Of these, longer than a row and cut.
    pub truncated: usize,
    /// Of these, with nothing to train on and left out.
    pub untrained: usize,
    /// Of those used, without a trained end of turn.
    pub endless: usize,
    /// Tokens of those used.
    pub tokens: usize,
    /// Of these, trained on.
    pub trained_tokens: usize,
}

/// Reads and encodes every conversation of `files` with `tokenizer`'s chat template.
///
/// # Errors
/// If a file cannot be read, a conversation does not suit the template, nothing is left to
/// train on, or no trained token ends a turn: a model so trained would never stop.
pub fn read(files: &[PathBuf], config: &DataConfig, tokenizer: &Tokenizer) -> Result<Samples> {
    ensure!(
        tokenizer.chat_template().is_some(),
        "the tokenizer has no chat template\nhint: set data.chat_template, e.g. to \"internlm2\""
    );
    let mut samples = Samples { list: Vec::new(), counts: Counts::default(), end_ids: BTreeSet::new() };
    for file in files {
        let conversations = conversation::open(file)?;
        for (i, sample) in encode(&conversations, file, tokenizer)?.into_iter().enumerate() {
            samples.add(sample, config, tokenizer).with_context(|| place(file, i))?;
        }
    }
    let names = || files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ");
    let counts = &samples.counts;
    ensure!(
        !samples.list.is_empty(),
        "{}: nothing to train on: {} conversations, {} too long, {} without a trained token\n\
         hint: raise data.seq_len, or check that the data has assistant messages",
        names(),
        counts.conversations,
        counts.dropped,
        counts.untrained
    );
    if samples.end_ids.is_empty() {
        bail!(
            "{}: no trained token ends a turn, so the model would learn never to stop\n\
             hint: the chat template's {{% generation %}} block must include the end-of-turn token; the first \
             sample reads\n{}",
            names(),
            preview(tokenizer, &samples.list[0], false)?
        );
    }
    Ok(samples)
}

fn encode(conversations: &[Conversation], file: &Path, tokenizer: &Tokenizer) -> Result<Vec<ChatTokens>> {
    let progress = Progress::new("encode", conversations.len() as u64, "conversations");
    let encoded = conversations
        .par_iter()
        .enumerate()
        .map(|(i, conversation)| {
            progress.inc(1);
            tokenizer.encode_conversation(conversation).with_context(|| place(file, i))
        })
        .collect();
    progress.finish();
    encoded
}

fn place(file: &Path, i: usize) -> String {
    format!("{}: conversation {}", file.display(), i + 1)
}

impl Samples {
    fn add(&mut self, mut sample: ChatTokens, config: &DataConfig, tokenizer: &Tokenizer) -> Result<()> {
        let counts = &mut self.counts;
        counts.conversations += 1;
        // A row holds the tokens that predict: all but the last.
        if sample.ids.len() > config.seq_len + 1 {
            match config.too_long {
                TooLong::Drop => {
                    counts.dropped += 1;
                    return Ok(());
                }
                TooLong::Truncate => {
                    counts.truncated += 1;
                    sample.ids.truncate(config.seq_len + 1);
                    sample.mask.truncate(config.seq_len + 1);
                }
                TooLong::Error => bail!(
                    "{} tokens do not fit into data.seq_len = {}\nhint: raise it, or set data.too_long",
                    sample.ids.len(),
                    config.seq_len
                ),
            }
        }
        let trained = sample.mask.iter().skip(1).filter(|m| **m).count();
        if trained == 0 {
            counts.untrained += 1;
            return Ok(());
        }
        let ends = ends(&sample, tokenizer);
        counts.endless += usize::from(ends.is_empty());
        counts.tokens += sample.ids.len();
        counts.trained_tokens += trained;
        self.end_ids.extend(ends);
        self.list.push(sample);
        Ok(())
    }
}

/// The trained tokens of `sample` that end a turn: the tokenizer's own, or a special token with
/// which a trained stretch closes.
fn ends(sample: &ChatTokens, tokenizer: &Tokenizer) -> BTreeSet<u32> {
    let known = tokenizer.end_ids();
    let trained = (1..sample.ids.len()).filter(|&i| sample.mask[i]);
    trained
        .filter(|&i| {
            let closes = sample.mask.get(i + 1) != Some(&true);
            known.contains(&sample.ids[i]) || (closes && tokenizer.is_special(sample.ids[i]))
        })
        .map(|i| sample.ids[i])
        .collect()
}

/// A sample as text, with what is trained on in green, or in ⟦ ⟧ without colour.
pub fn preview(tokenizer: &Tokenizer, sample: &ChatTokens, colour: bool) -> Result<String> {
    let (open, close) = if colour { ("\x1b[32m", "\x1b[0m") } else { ("⟦", "⟧") };
    let mut out = String::new();
    let mut at = 0;
    while at < sample.ids.len() {
        let trained = sample.mask[at];
        let end = (at..sample.ids.len()).find(|&i| sample.mask[i] != trained).unwrap_or(sample.ids.len());
        let text = tokenizer.decode(&sample.ids[at..end], false)?;
        if trained {
            out.push_str(open);
            out.push_str(&text);
            out.push_str(close);
        } else {
            out.push_str(&text);
        }
        at = end;
    }
    Ok(out)
}
