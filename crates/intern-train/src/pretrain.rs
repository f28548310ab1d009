//! `intern train run`: a model of any supported family, new or continued, on token shards.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::Device;
use intern_comm::Comm;
use intern_format::atomic::{self, AtomicDir};
use intern_format::checkpoint::Checkpoint;
use intern_format::safetensors::SafetensorsFile;
use intern_format::shards;
use intern_model::{ModelConfig, Part, Transformer};
use intern_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{Plan, TrainConfig, WeightType};
use crate::data::{self, BatchSource, ShardSource};
use crate::interrupt;
use crate::job::Job;
use crate::mesh::{Mesh, Shape};
use crate::params::Params;
use crate::samples::Sampler;
use crate::state;
use crate::timer::Trace;
use crate::trainer::Trainer;

/// What a run came to; printed by the command and kept in `provenance.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Updates made.
    pub steps: u64,
    /// Tokens read.
    pub tokens: u64,
    /// Parameters of the model.
    pub parameters: usize,
    /// Mean training loss of the last updates, in nats per token.
    pub train_loss: f64,
    /// Validation loss before the first update.
    pub first_valid_loss: Option<f64>,
    /// Validation loss at the end.
    pub valid_loss: Option<f64>,
    /// Tokens per second, validation and saving included.
    pub tokens_per_second: f64,
    /// The trained model, a Hugging Face directory.
    pub checkpoint: PathBuf,
}

/// Trains as `config` says and writes `checkpoint/`, `trainer/` and the metrics to `out`.
///
/// # Errors
/// If a setting, the tokenizer or the data is unusable, or if the run diverges or is
/// interrupted; the same call then continues from the last saved state.
pub fn run(config: &TrainConfig, out: &Path) -> Result<Summary> {
    run_with(config, out, &Options::default())
}

/// What does not concern what a run computes.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// End as if interrupted after this update.
    pub stop_after: Option<u64>,
    /// Write what the steps spent their time on there, as a trace for Chrome's viewer; ranks but the
    /// first add their number to the name.
    pub profile: Option<PathBuf>,
}

/// [`run`] with options.
///
/// # Errors
/// As [`run`].
pub fn run_with(config: &TrainConfig, out: &Path, options: &Options) -> Result<Summary> {
    if let Some(comm) = intern_comm::world()? {
        let shape = Shape::resolve(&config.parallel, Some(comm.size()))?;
        let result = run_rank(config, out, options, &Mesh::new(&comm, shape));
        if let Err(error) = &result
            && interrupt::exit_code().is_none()
        {
            comm.abandon(&format!("{error:#}"));
        }
        return result;
    }
    let shape = Shape::resolve(&config.parallel, None)?;
    match shape.size() {
        1 => run_rank(config, out, options, &Mesh::new(&Comm::alone(), shape)),
        ranks => {
            let threads = (rayon::current_num_threads() / ranks).max(1);
            let summaries = intern_comm::threads::run(ranks, |comm| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
                pool.install(|| run_rank(config, out, options, &Mesh::new(comm, shape)))
            })?;
            Ok(summaries.into_iter().next().expect("at least two ranks"))
        }
    }
}

/// The first sequence that a run is trained on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Preview {
    /// Tokens.
    pub tokens: usize,
    /// Tokens that follow one that is asked for them.
    pub targets: usize,
    /// Its documents, or the parts of them that are in it.
    pub documents: Vec<PreviewDocument>,
}

/// One document of a [`Preview`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PreviewDocument {
    /// The text.
    pub text: String,
    /// Tokens.
    pub tokens: usize,
    /// Those with a target that counts.
    pub targets: usize,
}

/// The first sequence of the run as the model will see it; `None` if tokenizer or data are not there.
///
/// # Errors
/// If they are there and unusable.
pub fn preview(config: &TrainConfig) -> Result<Option<Preview>> {
    let there = inputs(config)?.iter().all(|path| path.exists());
    let (true, Ok(path)) = (there, config.tokenizer_path()) else { return Ok(None) };
    let tokenizer = Tokenizer::from_path(path).context("tokenizer")?;
    let source = ShardSource::open(&config.data, config.seed, usize::MAX)?;
    let parts = config.data.curriculum.map_or(1, |c| c.parts(config.data.seq_len, 0));
    let batch = data::split_rows(source.batch(0, 1)?, parts);
    let starts = &batch.doc_starts[0];
    let ends = starts.iter().skip(1).copied().chain([batch.t]);
    let document = |(from, to): (usize, usize)| {
        Ok(PreviewDocument {
            text: tokenizer.decode(&batch.tokens[from..to], false)?,
            tokens: to - from,
            targets: batch.mask[from..to].iter().filter(|m| **m).count(),
        })
    };
    let documents = starts.iter().copied().zip(ends).map(document).collect::<Result<Vec<_>>>()?;
    let targets = documents.iter().map(|d| d.targets).sum();
    Ok(Some(Preview { tokens: batch.t, targets, documents }))
}

/// What one of the ranks does; rank 0 writes `out`.
fn run_rank(config: &TrainConfig, out: &Path, options: &Options, mesh: &Mesh) -> Result<Summary> {
    let comm = mesh.world;
    let plan = config.plan()?;
    let tokenizer_path = config.tokenizer_path()?;
    let tokenizer = Tokenizer::from_path(tokenizer_path).context("tokenizer")?;
    let shape = config.model.resolve(&tokenizer, config.data.seq_len)?;
    let job = job(config, out)?;
    let is_root = comm.rank() == 0;
    // Rank 0 prepares the directory before the others look at it.
    let mut summary = None;
    if is_root {
        summary = job.begin()?;
    }
    comm.barrier()?;
    if !is_root {
        summary = job.finished()?;
    }
    if let Some(summary) = summary {
        return Ok(summary);
    }

    let (whole, model) = match (&config.model.init_from, shape) {
        (Some(dir), _) => {
            let whole = ModelConfig::from_json(Checkpoint::open(dir)?.config())?;
            let part = part(&plan, mesh, whole.num_layers);
            (whole, Transformer::load_part(dir, &part, &Device::Cpu)?)
        }
        (None, Some(whole)) => {
            let part = part(&plan, mesh, whole.num_layers);
            let model = Transformer::init_part(&whole, config.seed, plan.width, &part, &Device::Cpu)?;
            (whole, model)
        }
        (None, None) => unreachable!("without init_from, resolve gives a shape"),
    };
    let vocab_size = whole.vocab_size;
    let source = ShardSource::open(&config.data, config.seed, vocab_size)?;
    let valid = data::validation(&config.data, plan.micro_batch, vocab_size)?;
    let params = Params::of_part(model.trainable_vars(), model.part(), &whole, &plan.optimizer)?;
    let parameters = whole.num_parameters();

    let mut trainer = Trainer::on(mesh, &model, whole.clone(), params, &plan, &job)?;
    trainer.stop_after = options.stop_after;
    trainer.sampler = Some(Sampler::new(&config.samples, tokenizer.clone(), config.seed));
    trainer.trace = options.profile.is_some().then(|| Trace::new(comm.rank()));
    let outcome = trainer.train("train", &source, &valid);
    if let (Some(trace), Some(path)) = (&trainer.trace, &options.profile) {
        match comm.rank() {
            0 => trace.write(path)?,
            rank => trace.write(&path.with_added_extension(format!("rank-{rank}")))?,
        }
    }
    let outcome = outcome?;
    drop(trainer);

    let checkpoint = out.join("checkpoint");
    let summary = Summary {
        steps: outcome.steps,
        tokens: outcome.tokens,
        parameters,
        train_loss: outcome.train_loss,
        first_valid_loss: outcome.first_valid_loss,
        valid_loss: outcome.valid_loss,
        tokens_per_second: outcome.tokens_per_second,
        checkpoint: checkpoint.clone(),
    };
    if is_root {
        let end_ids: Vec<u32> = tokenizer.eos_id().into_iter().collect();
        let model = if model.part().is_whole() { model } else { saved_model(&whole, &job, false)? };
        export(&model, &tokenizer, config.dtype, &end_ids, &checkpoint)?;
        let mut outputs = vec!["checkpoint"];
        if config.optimizer.ema.is_some() {
            drop(model);
            let average = saved_model(&whole, &job, true)?;
            export(&average, &tokenizer, config.dtype, &end_ids, &out.join("checkpoint-ema"))?;
            outputs.push("checkpoint-ema");
        }
        job.finish(&outputs, &summary)?;
    }
    comm.barrier()?;
    Ok(summary)
}

/// What this rank holds; where weights are shared out, each layer is a stage.
fn part(plan: &Plan, mesh: &Mesh, layers: usize) -> Part {
    if plan.shard_weights { Part::of_pipeline(layers, 0, 1, layers, 0, 1) } else { mesh.part(layers) }
}

/// The model `whole` as the last update, after which every run saves, left it: its weights, or their
/// running average.
fn saved_model(whole: &ModelConfig, job: &Job, average: bool) -> Result<Transformer> {
    let (_, dir) = state::newest(&job.trainer(), job.fingerprint())?.context("no state was saved")?;
    let (file, slot) =
        if average { ("optimizer.safetensors", "average.") } else { ("model.safetensors", "") };
    let weights = SafetensorsFile::open(&dir.join(file))?;
    Transformer::from_values(
        whole,
        |name| Ok(weights.tensor(&format!("{slot}{name}"))?.to_f32()),
        &Device::Cpu,
    )
}

/// Writes `dir` whole: weights, config and tokenizer, as `transformers` reads them.
/// `end_ids` are the tokens that end a generation.
pub fn export(
    model: &Transformer,
    tokenizer: &Tokenizer,
    dtype: WeightType,
    end_ids: &[u32],
    dir: &Path,
) -> Result<()> {
    let new = AtomicDir::create(dir)?;
    model.save(new.path(), dtype.dtype())?;
    tokenizer.save(new.path())?;
    write_end_ids(end_ids, new.path())?;
    new.commit().with_context(|| format!("writing {}", dir.display()))
}

/// Names the tokens that end a generation in the `generation_config.json` of `dir`.
pub fn write_end_ids(end_ids: &[u32], dir: &Path) -> Result<()> {
    let path = dir.join("generation_config.json");
    let mut config: Value = atomic::read_json(&path)?;
    config["eos_token_id"] = match end_ids {
        [] => return Ok(()),
        [one] => json!(one),
        several => json!(several),
    };
    Ok(atomic::write_json(&path, &config)?)
}

/// The run as a job: what it reads, and where it stands in `out`.
pub fn job(config: &TrainConfig, out: &Path) -> Result<Job> {
    Job::new("train run", config, &inputs(config)?, out)
}

/// Every file the run reads.
fn inputs(config: &TrainConfig) -> Result<Vec<PathBuf>> {
    let mut inputs: Vec<PathBuf> = config.model.init_from.iter().chain(&config.tokenizer).cloned().collect();
    let valid = config.data.valid.iter().flat_map(|v| v.list()).map(|(_, path)| path);
    let prefixes = config.data.sources()?.into_iter().map(|(path, _)| path).chain(valid);
    for prefix in prefixes {
        let (bin, idx) = shards::paths(&prefix);
        inputs.extend([bin, idx]);
    }
    Ok(inputs)
}
