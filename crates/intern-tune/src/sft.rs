//! `intern tune run`: supervised fine-tuning, of all weights or through LoRA.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use intern_format::atomic::AtomicDir;
use intern_model::{LoraConfig, Transformer, lora};
use intern_tokenizer::Tokenizer;
use intern_train::config::Plan;
use intern_train::data::ValidSet;
use intern_train::job::Job;
use intern_train::params::Params;
use intern_train::pretrain::{export, write_end_ids};
use intern_train::trainer::Trainer;
use serde::{Deserialize, Serialize};

use crate::config::TuneConfig;
use crate::rows::Rows;
use crate::samples::{self, Counts, Samples, preview};

/// What a run came to; printed by the command and kept in `provenance.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Updates made.
    pub steps: u64,
    /// Tokens read, padding included.
    pub tokens: u64,
    /// Parameters of the model, adapters not counted.
    pub parameters: usize,
    /// Parameters that were trained.
    pub trained_parameters: usize,
    /// Mean training loss of the last updates, in nats per trained token.
    pub train_loss: f64,
    /// Validation loss before the first update.
    pub first_valid_loss: Option<f64>,
    /// Validation loss at the end.
    pub valid_loss: Option<f64>,
    /// Tokens per second, validation and saving included.
    pub tokens_per_second: f64,
    /// What the data held.
    pub data: Counts,
    /// The tuned model: full tuning, or LoRA with `merge`.
    pub checkpoint: Option<PathBuf>,
    /// The adapter, a PEFT directory.
    pub adapter: Option<PathBuf>,
}

/// A run whose data has been read and found fit.
pub struct Prepared<'a> {
    config: &'a TuneConfig,
    tokenizer: Tokenizer,
    plan: Plan,
    samples: Samples,
    rows: Rows,
    valid: Option<Rows>,
}

/// Reads the data of `config` and refuses what cannot be trained on. Loads no weights.
///
/// # Errors
/// If a setting or file is unusable, or no trained token ends a turn.
pub fn prepare(config: &TuneConfig) -> Result<Prepared<'_>> {
    config.check()?;
    let tokenizer = tokenizer(config)?;
    let data = &config.data;
    let samples = samples::read(data.train.list(), data, &tokenizer).context("data.train")?;
    let rows = Rows::new(samples.list.clone(), data.seq_len, data.packing, config.seed);
    let valid = match &data.valid {
        None => None,
        Some(files) => {
            let held_out = samples::read(files.list(), data, &tokenizer).context("data.valid")?;
            Some(Rows::new(held_out.list, data.seq_len, data.packing, config.seed))
        }
    };
    let plan = config.plan(rows.len())?;
    Ok(Prepared { config, tokenizer, plan, samples, rows, valid })
}

impl Prepared<'_> {
    /// What the data holds.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.samples.counts
    }

    /// Counts, the plan, and the first sample with its trained tokens marked, for a person.
    pub fn describe(&self, colour: bool) -> Result<String> {
        let c = self.counts();
        let room = self.rows.len() * self.config.data.seq_len;
        let ends: Vec<String> =
            self.samples.end_ids.iter().filter_map(|&id| self.tokenizer.id_to_token(id)).collect();
        let mut lines = vec![
            format!(
                "{} conversations: {} dropped and {} cut as too long, {} with nothing to train on",
                c.conversations, c.dropped, c.truncated, c.untrained
            ),
            format!(
                "{} tokens, {} trained on; {} rows, {:.0} % full; {} steps",
                c.tokens,
                c.trained_tokens,
                self.rows.len(),
                100.0 * (c.tokens - self.samples.list.len()) as f64 / room.max(1) as f64,
                self.plan.steps
            ),
            format!("turns end with {}; {} conversations lack a trained end", ends.join(", "), c.endless),
        ];
        let marked = if colour { "trained tokens in green" } else { "trained tokens in ⟦ ⟧" };
        lines.push(format!("the first sample, {marked}:"));
        lines.push(preview(&self.tokenizer, &self.samples.list[0], colour)?);
        Ok(lines.join("\n"))
    }

    /// Trains, and writes `checkpoint/` or `adapter/`, `trainer/` and the metrics to `out`.
    ///
    /// # Errors
    /// If the model is unusable, or the run diverges or is interrupted; the same call then
    /// continues from the last saved state.
    pub fn train(&self, out: &Path) -> Result<Summary> {
        let job = job(self.config, out)?;
        if let Some(summary) = job.begin()? {
            return Ok(summary);
        }
        let mut model = Transformer::load(&self.config.model, DType::F32, &Device::Cpu)?;
        let parameters = model.config().num_parameters();
        if let Some(lora) = &self.config.lora {
            // The run's seed decides, unless the adapter has its own.
            let seed = if lora.seed == 0 { self.config.seed } else { lora.seed };
            model.add_lora(&LoraConfig { seed, ..lora.clone() })?;
        }
        let params = Params::new(model.trainable_vars(), &self.plan.optimizer)?;
        let trained_parameters = params.num_elements();
        let set =
            |rows: &Rows| ValidSet { batches: rows.in_order(self.plan.micro_batch), ..ValidSet::default() };
        let valid: Vec<ValidSet> = self.valid.iter().map(set).collect();
        let outcome = Trainer::new(&model, params, &self.plan, &job)?.train("tune", &self.rows, &valid)?;

        let (checkpoint, adapter) = self.write(&model, out)?;
        let summary = Summary {
            steps: outcome.steps,
            tokens: outcome.tokens,
            parameters,
            trained_parameters,
            train_loss: outcome.train_loss,
            first_valid_loss: outcome.first_valid_loss,
            valid_loss: outcome.valid_loss,
            tokens_per_second: outcome.tokens_per_second,
            data: self.counts().clone(),
            checkpoint,
            adapter,
        };
        let outputs: Vec<&str> = [("checkpoint", &summary.checkpoint), ("adapter", &summary.adapter)]
            .iter()
            .filter_map(|(name, path)| path.as_ref().map(|_| *name))
            .collect();
        job.finish(&outputs, &summary)?;
        Ok(summary)
    }

    /// The results: paths of the checkpoint and of the adapter, as far as there are any.
    fn write(&self, model: &Transformer, out: &Path) -> Result<(Option<PathBuf>, Option<PathBuf>)> {
        let checkpoint = out.join("checkpoint");
        let mut end_ids = self.samples.end_ids.clone();
        end_ids.extend(self.tokenizer.eos_id());
        let end_ids: Vec<u32> = end_ids.into_iter().collect();
        if self.config.lora.is_none() {
            export(model, &self.tokenizer, self.config.dtype, &end_ids, &checkpoint)?;
            return Ok((Some(checkpoint), None));
        }
        let adapter = out.join("adapter");
        let new = AtomicDir::create(&adapter)?;
        model.save_adapter(new.path(), self.config.model.to_str())?;
        self.tokenizer.save(new.path())?;
        new.commit()?;
        if !self.config.merge {
            return Ok((None, Some(adapter)));
        }
        let new = AtomicDir::create(&checkpoint)?;
        lora::merge(&self.config.model, &adapter, new.path())?;
        self.tokenizer.save(new.path())?;
        write_end_ids(&end_ids, new.path())?;
        new.commit()?;
        Ok((Some(checkpoint), Some(adapter)))
    }
}

/// Fine-tunes as `config` says; see [`Prepared::train`].
///
/// # Errors
/// As [`prepare`] and [`Prepared::train`].
pub fn run(config: &TuneConfig, out: &Path) -> Result<Summary> {
    config.check()?;
    if let Some(summary) = job(config, out)?.finished()? {
        return Ok(summary);
    }
    prepare(config)?.train(out)
}

/// The run as a job: what it reads, and where it stands in `out`.
pub fn job(config: &TuneConfig, out: &Path) -> Result<Job> {
    let data = &config.data;
    let files = data.train.list().iter().chain(data.valid.iter().flat_map(|f| f.list()));
    let mut inputs: Vec<PathBuf> = std::iter::once(&config.model).chain(files).cloned().collect();
    inputs.extend(data.chat_template.as_ref().filter(|name| *name != INTERNLM2).map(PathBuf::from));
    Job::new("tune run", config, &inputs, out)
}

const INTERNLM2: &str = "internlm2";

fn tokenizer(config: &TuneConfig) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::from_path(&config.model)?;
    let source = match config.data.chat_template.as_deref() {
        None => return Ok(tokenizer),
        Some(INTERNLM2) => intern_tokenizer::internlm2::CHAT_TEMPLATE.to_string(),
        Some(path) => std::fs::read_to_string(path).with_context(|| {
            format!("data.chat_template: cannot read {path}\nhint: give \"internlm2\" or a Jinja file")
        })?,
    };
    intern_tokenizer::ChatTemplate::new(&source).context("data.chat_template")?;
    Ok(tokenizer.with_chat_template(source))
}
