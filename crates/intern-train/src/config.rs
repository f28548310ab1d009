//! The settings of a pretraining run: one TOML file, checked here once.
//!
//! Past [`TrainConfig::plan`] and [`ModelSection::resolve`] the code trusts every field. The
//! parts a fine-tuning run shares ([`OptimizerConfig`], [`ScheduleConfig`], [`Plan`]) are used
//! by `intern-tune` as they are.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
pub use intern_model::backprop::Precision;
use intern_model::{Architecture, ModelConfig};
use intern_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::guard::GuardConfig;
use crate::samples::SamplesConfig;
use crate::schedule::{Schedule, ScheduleConfig};

/// One pretraining run, complete.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Updates to make.
    pub steps: u64,
    /// Sequences per update.
    pub batch_size: usize,
    /// Most sequences a process works on at once, one to a thread (default: `batch_size`). Costs
    /// memory and changes no bit of the result.
    #[serde(default)]
    pub micro_batch: Option<usize>,
    /// Sequences of the first updates, where the batch grows to `batch_size` (default: it does not).
    #[serde(default)]
    pub batch_rampup: Option<Rampup>,
    /// Share of the layers whose activations are computed a second time in the backward pass
    /// instead of kept: 0 for none (default), 1 for all. Changes no bit of the result.
    #[serde(default)]
    pub recompute: f64,
    /// Type of the operands of matrix products and of the activations kept for the backward pass:
    /// `f32` (default) or `bf16`. Weights, sums and the optimizer stay f32.
    #[serde(default)]
    pub precision: Precision,
    /// Factor of the squared log-partition added to the loss that is minimized, against drifting
    /// logits; 1e-4 is usual (default 0).
    #[serde(default)]
    pub z_loss: f64,
    /// Decides the initial weights and the order of the data (default 0).
    #[serde(default)]
    pub seed: u64,
    /// Updates between validation losses; 0 for only before and after (default: a tenth of the run).
    #[serde(default)]
    pub eval_every: Option<u64>,
    /// Updates between saved states (default: a tenth of the run).
    #[serde(default)]
    pub save_every: Option<u64>,
    /// Saved states to keep (default 1).
    #[serde(default = "one")]
    pub keep_last: usize,
    /// Updates between saved states that are kept for good; a multiple of `save_every` (default: none).
    #[serde(default)]
    pub keep_every: Option<u64>,
    /// Whether states are written while training goes on; costs a copy of weights and moments meanwhile
    /// (default false).
    #[serde(default)]
    pub save_async: bool,
    /// Type of the weights in the final `checkpoint/`: `f32` (default), `bf16` or `f16`.
    #[serde(default)]
    pub dtype: WeightType,
    /// Tokenizer directory or file, copied into the checkpoint (default: that of `model.init_from`).
    #[serde(default)]
    pub tokenizer: Option<PathBuf>,
    /// What is trained.
    pub model: ModelSection,
    /// What it is trained on.
    pub data: DataConfig,
    /// How gradients become updates.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// How the learning rate moves.
    #[serde(default)]
    pub schedule: ScheduleConfig,
    /// Which updates are left out.
    #[serde(default)]
    pub guard: GuardConfig,
    /// What the model is asked to write meanwhile.
    #[serde(default)]
    pub samples: SamplesConfig,
    /// Operations per second a rank could make at best; then the metrics tell which share of it a
    /// step reached (`mfu`), counting 6 per parameter and token, attention, and nothing twice.
    #[serde(default)]
    pub peak_flops: Option<f64>,
    /// How the work is shared out. Neither `data` nor `pipeline` nor `zero` changes a bit of the
    /// result; a run may continue under other ones.
    #[serde(default)]
    pub parallel: ParallelConfig,
}

/// `[parallel]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ParallelConfig {
    /// Ranks that share the sequences of an update: threads with a copy of the weights each, or
    /// the processes `mpirun` started (default: as many as these leave, or 1).
    pub data: Option<usize>,
    /// Ranks that the layers are shared out to, as stages of a pipeline (default 1).
    pub pipeline: Option<usize>,
    /// Stages of each rank of the pipeline; several leave it idle for less time, and make it talk
    /// more (default 1).
    pub interleave: Option<usize>,
    /// Ranks that share the tokens of each sequence, for long ones (default 1). Rounds otherwise
    /// than one rank does.
    pub context: Option<usize>,
    /// Ranks that share each layer: its heads, its feed-forward width, and the rows of its residual
    /// stream (default 1). Rounds otherwise than one rank does.
    pub tensor: Option<usize>,
    /// 1 (default): each rank keeps the optimizer's moments of its share of the weights only, and
    /// updates those (ZeRO-1; Rajbhandari et al., 2020). 0: every rank keeps and updates all. 3: weights and
    /// gradients are shared out too, between `data` ranks, which get each layer whole while they work on it
    /// with `micro_batch` sequences at once (ZeRO-3, FSDP): the least memory, the most traffic.
    pub zero: Option<u8>,
}

/// `batch_rampup`: updates start with few sequences, so that early ones are cheap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rampup {
    /// Sequences of the first update.
    pub start: usize,
    /// Sequences added each time.
    pub increment: usize,
    /// Updates after which they are added.
    pub every: u64,
}

/// `[model]`: either the shape of a new model, or `init_from`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelSection {
    /// Checkpoint directory to start from; excludes every other key.
    pub init_from: Option<PathBuf>,
    /// `internlm2` (default), `internlm3`, `llama`, `mistral`, `qwen2` or `qwen3`.
    pub architecture: Option<String>,
    /// Width of the residual stream.
    pub hidden_size: Option<usize>,
    /// Decoder layers.
    pub num_layers: Option<usize>,
    /// Query heads.
    pub num_heads: Option<usize>,
    /// Key/value heads (default: `num_heads`).
    pub num_kv_heads: Option<usize>,
    /// Width of a head (default: `hidden_size / num_heads`).
    pub head_dim: Option<usize>,
    /// Width inside the feed-forward network (default: 8/3 of `hidden_size`, rounded up to 16).
    pub intermediate_size: Option<usize>,
    /// Rows of the embedding (default: the tokenizer's vocabulary).
    pub vocab_size: Option<usize>,
    /// Context length the checkpoint declares (default: the larger of 2048 and `data.seq_len`).
    pub max_position_embeddings: Option<usize>,
    /// Base of the rotary frequencies (default 10000).
    pub rope_theta: Option<f64>,
    /// Added to the mean square in RMSNorm (default 1e-5).
    pub rms_norm_eps: Option<f64>,
    /// Attention window in tokens (default: none).
    pub sliding_window: Option<usize>,
    /// The output head shares the embedding's matrix (default false).
    pub tie_word_embeddings: Option<bool>,
    /// `hidden_size` of the smaller model that `optimizer.lr` was found with: starting weights and rates
    /// of matrices are scaled to fit this one (µP; default: no scaling). Keep `head_dim` the same.
    pub mup_base: Option<usize>,
}

/// `[data]`.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Token shards by prefix (`tokens/train` for `tokens/train.bin` and `.idx`): one, a list
    /// (read as one corpus), or a list of `{path, weight}` drawn in those proportions.
    pub train: Prefixes,
    /// Held-out shard for the validation loss: a prefix, or a table of names and prefixes, of which each
    /// has its own loss in the metrics (`valid_loss.NAME`) and all together one.
    #[serde(default)]
    pub valid: Option<Valid>,
    /// Tokens per sequence.
    pub seq_len: usize,
    /// Shorter sequences at first (default: none). The same tokens come in the same order; attention
    /// reaches less far.
    #[serde(default)]
    pub curriculum: Option<Curriculum>,
    /// Attention stays within a document and positions restart with it (default true).
    #[serde(default = "yes")]
    pub document_mask: bool,
    /// Most sequences of `valid` to use, spread evenly over it (default 64).
    #[serde(default = "sixty_four")]
    pub valid_sequences: usize,
}

/// `[data.curriculum]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Curriculum {
    /// Tokens per sequence of the first updates: `seq_len` halved some times.
    pub start: usize,
    /// Updates until the length doubles.
    pub every: u64,
}

impl Curriculum {
    /// How many sequences are made of one of `seq_len` tokens in update `step` (from 0).
    #[must_use]
    pub fn parts(&self, seq_len: usize, step: u64) -> usize {
        let doublings = u32::try_from(step / self.every).unwrap_or(u32::MAX);
        (seq_len / self.start).checked_shr(doublings).unwrap_or(0).max(1)
    }
}

/// The forms of `data.valid`.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged, expecting = "data.valid: a prefix, or a table of names and prefixes")]
pub enum Valid {
    /// One shard.
    One(PathBuf),
    /// Several, by name.
    Named(std::collections::BTreeMap<String, PathBuf>),
}

impl Valid {
    /// Names (empty for one without) and prefixes.
    #[must_use]
    pub fn list(&self) -> Vec<(String, PathBuf)> {
        match self {
            Self::One(path) => vec![(String::new(), path.clone())],
            Self::Named(map) => map.iter().map(|(name, path)| (name.clone(), path.clone())).collect(),
        }
    }
}

/// The forms of `data.train`.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged, expecting = "data.train: a prefix, a list of prefixes, or a list of {path, weight}")]
pub enum Prefixes {
    /// One shard.
    One(PathBuf),
    /// Several.
    Many(Vec<Prefix>),
}

/// One entry of `data.train`.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged, expecting = "data.train: a prefix or {path, weight}")]
pub enum Prefix {
    /// In proportion to its tokens.
    Plain(PathBuf),
    /// In proportion to `weight`.
    Weighted {
        /// The shard's prefix.
        path: PathBuf,
        /// Share of the sequences, relative to the others' weights.
        weight: f64,
    },
}

/// A shard's prefix and its weight.
pub type Source = (PathBuf, Option<f64>);

/// `[optimizer]`. Weight decay applies to matrices except embeddings; norms and biases never decay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// `adamw` (default), or `muon` for the matrices inside the model and AdamW for the rest.
    pub kind: Kind,
    /// Peak learning rate (default 3e-4); Muon's is scaled to fit AdamW's.
    pub lr: f64,
    /// Decay of the gradient's mean and squared mean (default 0.9 and 0.95).
    pub betas: [f64; 2],
    /// Added to the root of the squared mean (default 1e-8).
    pub eps: f64,
    /// Decoupled weight decay (default 0.1).
    pub weight_decay: f64,
    /// Largest norm of the whole gradient; 0 for no limit (default 1).
    pub grad_clip: f64,
    /// How AdamW's moments of matrices are held: `f32` (default), or `8bit` for a quarter of the memory.
    /// Those of embeddings, the head and norms stay f32.
    pub moments: MomentType,
    /// Decay of the gradient's mean under Muon (default 0.95).
    pub momentum: f64,
    /// Iterations that make a matrix of Muon nearly orthogonal (default 5).
    pub ns_steps: u32,
    /// Decay of a running average of the weights per update, e.g. 0.999, written to `checkpoint-ema/`
    /// (default: none is kept). Early averages follow faster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Tensors with settings of their own; the first that fits counts.
    pub group: Vec<Group>,
}

/// What makes updates out of gradients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Each element by its own mean and square.
    #[default]
    AdamW,
    /// Each matrix as a whole.
    Muon,
}

/// How moments are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum MomentType {
    /// 8 bytes per parameter.
    #[default]
    #[serde(rename = "f32")]
    F32,
    /// 2 bytes per parameter.
    #[serde(rename = "8bit")]
    Bits8,
}

/// One `[[optimizer.group]]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Names of its tensors, with `*` for anything: `*.norm.weight`, `model.layers.*.mlp.*`.
    pub r#match: String,
    /// Factor on the learning rate (default 1).
    #[serde(default)]
    pub lr: Option<f64>,
    /// Weight decay (default: as without the group).
    #[serde(default)]
    pub weight_decay: Option<f64>,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: Kind::AdamW,
            lr: 3e-4,
            betas: [0.9, 0.95],
            eps: 1e-8,
            weight_decay: 0.1,
            grad_clip: 1.0,
            moments: MomentType::F32,
            momentum: 0.95,
            ns_steps: 5,
            ema: None,
            group: Vec::new(),
        }
    }
}

impl OptimizerConfig {
    /// Errors name the key.
    fn check(&self) -> Result<()> {
        ensure!(self.lr > 0.0 && self.lr.is_finite(), "optimizer.lr is {}, expected above 0", self.lr);
        for beta in self.betas {
            ensure!((0.0..1.0).contains(&beta), "optimizer.betas holds {beta}, expected 0 up to but not 1");
        }
        ensure!(self.eps > 0.0, "optimizer.eps is {}, expected above 0", self.eps);
        ensure!(
            self.weight_decay >= 0.0,
            "optimizer.weight_decay is {}, expected at least 0",
            self.weight_decay
        );
        ensure!(self.grad_clip >= 0.0, "optimizer.grad_clip is {}, expected at least 0", self.grad_clip);
        let momentum = self.momentum;
        ensure!(
            (0.0..1.0).contains(&momentum),
            "optimizer.momentum is {momentum}, expected 0 up to but not 1"
        );
        ensure!(self.ns_steps > 0, "optimizer.ns_steps is 0, expected at least 1");
        if let Some(ema) = self.ema.filter(|ema| !(0.0..1.0).contains(ema)) {
            bail!("optimizer.ema is {ema}, expected 0 up to but not 1");
        }
        for Group { r#match, lr, weight_decay } in &self.group {
            let fits = |x: &Option<f64>| x.is_none_or(|x| x >= 0.0 && x.is_finite());
            ensure!(
                fits(lr) && fits(weight_decay),
                "optimizer.group {match:?}: lr and weight_decay are at least 0"
            );
        }
        Ok(())
    }
}

/// Type of saved weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WeightType {
    /// As trained.
    #[default]
    F32,
    /// Half the size, 8 bits of precision.
    Bf16,
    /// Half the size, 11 bits of precision, range to 65504.
    F16,
}

impl WeightType {
    /// candle's name for it.
    #[must_use]
    pub fn dtype(self) -> candle_core::DType {
        match self {
            Self::F32 => candle_core::DType::F32,
            Self::Bf16 => candle_core::DType::BF16,
            Self::F16 => candle_core::DType::F16,
        }
    }
}

/// The loop's settings, resolved and checked.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Updates to make.
    pub steps: u64,
    /// Sequences per update.
    pub batch_size: usize,
    /// Most sequences at once.
    pub micro_batch: usize,
    /// Updates between validation losses; `None` for only before and after.
    pub eval_every: Option<u64>,
    /// Updates between saved states.
    pub save_every: u64,
    /// Saved states to keep.
    pub keep_last: usize,
    /// Updates between saved states that are kept for good.
    pub keep_every: Option<u64>,
    /// States are written by a thread of their own.
    pub save_async: bool,
    /// How gradients become updates.
    pub optimizer: OptimizerConfig,
    /// Width of the model beside that its learning rate was found for.
    pub width: f64,
    /// Learning rate by update.
    pub schedule: Schedule,
    /// How the batch grows to `batch_size`.
    pub batch_rampup: Option<Rampup>,
    /// How sequences grow to their length.
    pub curriculum: Option<Curriculum>,
    /// Share of the layers whose activations are computed twice.
    pub recompute: f64,
    /// Type of operands and kept activations.
    pub precision: Precision,
    /// Factor of the squared log-partition.
    pub z_loss: f64,
    /// Which updates are left out.
    pub guard: GuardConfig,
    /// Operations per second of a rank at best.
    pub peak_flops: Option<f64>,
    /// Each rank has the moments of its share of the weights only.
    pub zero: bool,
    /// And its share of the weights and gradients only.
    pub shard_weights: bool,
}

/// What [`Plan::new`] checks; the fields carry the names of the TOML keys.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct PlanArgs<'a> {
    pub steps: u64,
    pub batch_size: usize,
    pub micro_batch: Option<usize>,
    pub eval_every: Option<u64>,
    pub save_every: Option<u64>,
    pub keep_last: usize,
    pub optimizer: &'a OptimizerConfig,
    pub schedule: &'a ScheduleConfig,
}

impl Plan {
    /// Checks the settings and fills in defaults; errors name the key.
    pub fn new(args: &PlanArgs) -> Result<Self> {
        let PlanArgs { steps, batch_size, .. } = *args;
        ensure!(steps > 0, "steps is 0, expected at least 1");
        ensure!(batch_size > 0, "batch_size is 0, expected at least 1");
        let micro_batch = args.micro_batch.unwrap_or(batch_size);
        ensure!(
            (1..=batch_size).contains(&micro_batch),
            "micro_batch is {micro_batch}, expected 1 to batch_size = {batch_size}"
        );
        ensure!(
            args.keep_last > 0,
            "keep_last is 0, expected at least 1\nhint: resuming needs one saved state"
        );
        ensure!(args.save_every != Some(0), "save_every is 0, expected at least 1");
        args.optimizer.check()?;
        let tenth = (steps / 10).max(1);
        Ok(Self {
            steps,
            batch_size,
            micro_batch,
            eval_every: Some(args.eval_every.unwrap_or(tenth)).filter(|&n| n > 0),
            save_every: args.save_every.unwrap_or(tenth),
            keep_last: args.keep_last,
            keep_every: None,
            save_async: false,
            optimizer: args.optimizer.clone(),
            schedule: args.schedule.resolve(steps)?,
            width: 1.0,
            batch_rampup: None,
            curriculum: None,
            recompute: 0.0,
            precision: Precision::F32,
            z_loss: 0.0,
            guard: GuardConfig::default(),
            peak_flops: None,
            zero: true,
            shard_weights: false,
        })
    }

    /// Whether a state is saved after `step` updates in every run, interrupted or not.
    #[must_use]
    pub fn is_regular(&self, step: u64) -> bool {
        step == self.steps || step.is_multiple_of(self.save_every)
    }

    /// Whether that state is kept for good.
    #[must_use]
    pub fn is_kept(&self, step: u64) -> bool {
        self.keep_every.is_some_and(|n| step.is_multiple_of(n))
    }

    /// The sequences of update `step` (from 0): the number of the first, and how many.
    #[must_use]
    pub fn sequences(&self, step: u64) -> (u64, usize) {
        let full = self.batch_size as u64;
        let Some(Rampup { start, increment, every }) = self.batch_rampup else {
            return (step * full, self.batch_size);
        };
        let (start, increment) = (start as u64, increment as u64);
        // Whole periods below the full batch, then full batches.
        let periods = (full.saturating_sub(start)).div_ceil(increment);
        let done = (step / every).min(periods);
        let grown = every * (done * start + increment * done * done.saturating_sub(1) / 2);
        let now = if done == periods { full } else { start + increment * done };
        (grown + (step - done * every) * now, now as usize)
    }
}

impl TrainConfig {
    /// The loop's settings; errors name the key.
    pub fn plan(&self) -> Result<Plan> {
        ensure!(self.data.seq_len > 0, "data.seq_len is 0, expected at least 1");
        ensure!(
            (0.0..=1.0).contains(&self.recompute),
            "recompute is {}, expected 0 to 1\nhint: it is a share of the layers",
            self.recompute
        );
        ensure!(
            self.z_loss >= 0.0 && self.z_loss.is_finite(),
            "z_loss is {}, expected at least 0",
            self.z_loss
        );
        if let Some(Rampup { start, increment, every }) = self.batch_rampup {
            ensure!(
                start > 0 && increment > 0 && every > 0 && start <= self.batch_size,
                "batch_rampup: start {start}, increment {increment}, every {every}; expected at least 1 each, and \
                 start at most batch_size = {}",
                self.batch_size
            );
        }
        if let Some(Curriculum { start, every }) = self.data.curriculum {
            let len = self.data.seq_len;
            ensure!(
                start > 0 && every > 0 && len.is_multiple_of(start) && (len / start).is_power_of_two(),
                "data.curriculum: start {start}, every {every}; expected seq_len = {len} halved some times, and at \
                 least 1"
            );
        }
        let cut = [self.parallel.pipeline, self.parallel.tensor].into_iter().flatten().any(|n| n > 1);
        self.samples.check(!cut)?;
        ensure!(
            self.guard.z >= 0.0 && self.guard.window > 0,
            "guard: z {}, window {}; expected at least 0 and at least 1",
            self.guard.z,
            self.guard.window
        );
        ensure!(
            self.optimizer.kind != Kind::Muon || self.parallel.tensor.is_none_or(|n| n == 1),
            "parallel.tensor cuts the matrices that optimizer.kind = \"muon\" needs whole\n\
             hint: use parallel.data, pipeline or context, or \"adamw\""
        );
        let zero = self.parallel.zero;
        ensure!(
            zero.is_none_or(|z| [0, 1, 3].contains(&z)),
            "parallel.zero is {}\nhint: 1 shares out the optimizer's moments, 3 also weights and gradients, 0 nothing",
            zero.unwrap_or(0)
        );
        if zero == Some(3) {
            let p = &self.parallel;
            ensure!(
                [p.pipeline, p.context, p.tensor].into_iter().flatten().all(|n| n == 1),
                "parallel.zero = 3 shares out weights between parallel.data ranks only\n\
                 hint: leave out pipeline, context and tensor, or use zero = 1"
            );
            ensure!(
                self.samples.prompts.is_empty() && self.model.tie_word_embeddings != Some(true),
                "parallel.zero = 3 goes neither with samples.prompts nor with model.tie_word_embeddings\n\
                 hint: no rank has the whole model at a time"
            );
        }
        let plan = Plan::new(&PlanArgs {
            steps: self.steps,
            batch_size: self.batch_size,
            micro_batch: self.micro_batch,
            eval_every: self.eval_every,
            save_every: self.save_every,
            keep_last: self.keep_last,
            optimizer: &self.optimizer,
            schedule: &self.schedule,
        })?;
        if let Some(n) = self.keep_every {
            ensure!(
                n > 0 && n.is_multiple_of(plan.save_every),
                "keep_every is {n}, expected a multiple of save_every = {}",
                plan.save_every
            );
        }
        Ok(Plan {
            keep_every: self.keep_every,
            save_async: self.save_async,
            width: self.model.width()?,
            batch_rampup: self.batch_rampup,
            curriculum: self.data.curriculum,
            recompute: self.recompute,
            precision: self.precision,
            z_loss: self.z_loss,
            guard: self.guard.clone(),
            peak_flops: self.peak_flops,
            zero: zero != Some(0),
            shard_weights: zero == Some(3),
            ..plan
        })
    }

    /// Where the tokenizer is.
    pub fn tokenizer_path(&self) -> Result<&PathBuf> {
        self.tokenizer.as_ref().or(self.model.init_from.as_ref()).context(
            "tokenizer is not set\nhint: give the directory `intern data tokenizer` wrote, e.g. \
             tokenizer = \"runs/tokenizer\"",
        )
    }
}

impl DataConfig {
    /// The shards with their weights: all have one, or none has.
    pub fn sources(&self) -> Result<Vec<Source>> {
        let sources: Vec<Source> = match &self.train {
            Prefixes::One(path) => vec![(path.clone(), None)],
            Prefixes::Many(list) => list
                .iter()
                .map(|p| match p {
                    Prefix::Plain(path) => (path.clone(), None),
                    Prefix::Weighted { path, weight } => (path.clone(), Some(*weight)),
                })
                .collect(),
        };
        ensure!(!sources.is_empty(), "data.train is empty, expected at least one prefix");
        let weighted = sources.iter().filter(|(_, w)| w.is_some()).count();
        if weighted != 0 && weighted != sources.len() {
            bail!(
                "data.train: {weighted} of {} entries have a weight\nhint: give all or none one",
                sources.len()
            );
        }
        for (path, weight) in &sources {
            if let Some(w) = weight.filter(|w| !(w.is_finite() && *w > 0.0)) {
                bail!("data.train: {} has weight {w}, expected above 0", path.display());
            }
        }
        Ok(sources)
    }
}

impl ModelSection {
    /// The shape of a new model over `tokenizer`; `None` where the model starts from a checkpoint.
    pub fn resolve(&self, tokenizer: &Tokenizer, seq_len: usize) -> Result<Option<ModelConfig>> {
        if self.init_from.is_none() {
            return self.shape(Some(tokenizer), seq_len).map(Some);
        }
        let others = serde_json::to_value(self)?;
        let set = others.as_object().into_iter().flatten().find(|(k, v)| *k != "init_from" && !v.is_null());
        if let Some((key, _)) = set {
            bail!(
                "model.{key} is set beside model.init_from\nhint: the checkpoint decides the shape; remove one"
            );
        }
        Ok(None)
    }

    /// How much wider the model is than that its settings were found with.
    fn width(&self) -> Result<f64> {
        let (Some(base), Some(size)) = (self.mup_base, self.hidden_size) else { return Ok(1.0) };
        ensure!(base > 0, "model.mup_base is 0, expected a hidden_size");
        ensure!(
            self.tie_word_embeddings != Some(true),
            "model.mup_base and model.tie_word_embeddings exclude each other\n\
             hint: the embedding and the head need different rates"
        );
        Ok(size as f64 / base as f64)
    }

    /// The shape of a new model over `tokenizer`; without one `vocab_size` has to be set, and no
    /// token has a meaning.
    pub fn shape(&self, tokenizer: Option<&Tokenizer>, seq_len: usize) -> Result<ModelConfig> {
        let need = |key: &str, value: Option<usize>| {
            value.filter(|&n| n > 0).with_context(|| {
                format!("model.{key} is not set\nhint: give the shape, or model.init_from = a checkpoint directory")
            })
        };
        let arch = self.architecture.as_deref().unwrap_or("internlm2");
        let arch = Architecture::from_model_type(arch).with_context(|| {
            let known: Vec<&str> = Architecture::ALL.iter().map(|a| a.model_type()).collect();
            format!("model.architecture is \"{arch}\"\nhint: one of {}", known.join(", "))
        })?;
        let hidden_size = need("hidden_size", self.hidden_size)?;
        let num_heads = need("num_heads", self.num_heads)?;
        let known = tokenizer.map_or(0, Tokenizer::vocab_size);
        let vocab_size = self.vocab_size.unwrap_or(known);
        ensure!(
            vocab_size >= known.max(1),
            "model.vocab_size is {vocab_size}, below the tokenizer's {known}"
        );
        ensure!(
            self.head_dim.is_some() || hidden_size % num_heads == 0,
            "model.hidden_size {hidden_size} is not a multiple of model.num_heads {num_heads}"
        );
        let num_kv_heads = self.num_kv_heads.unwrap_or(num_heads);
        let num_layers = need("num_layers", self.num_layers)?;
        let mut config =
            ModelConfig::small(arch, vocab_size, hidden_size, num_layers, num_heads, num_kv_heads);
        config.max_position_embeddings = self.max_position_embeddings.unwrap_or(seq_len.max(2048));
        ensure!(
            seq_len <= config.max_position_embeddings,
            "data.seq_len {seq_len} exceeds model.max_position_embeddings {}",
            config.max_position_embeddings
        );
        config.head_dim = self.head_dim.unwrap_or(config.head_dim);
        config.intermediate_size = self.intermediate_size.unwrap_or(config.intermediate_size);
        config.rope_theta = self.rope_theta.unwrap_or(config.rope_theta);
        config.rms_norm_eps = self.rms_norm_eps.unwrap_or(config.rms_norm_eps);
        config.sliding_window = self.sliding_window;
        config.tie_word_embeddings = self.tie_word_embeddings.unwrap_or(false);
        config.bos_token_id = tokenizer.and_then(Tokenizer::bos_id);
        config.eos_token_ids = tokenizer.and_then(Tokenizer::eos_id).into_iter().collect();
        config.pad_token_id = tokenizer.and_then(Tokenizer::pad_id);
        config.validate().context("[model]")?;
        Ok(config)
    }
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn sixty_four() -> usize {
    64
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(patch: Value) -> Result<(Plan, Vec<Source>)> {
        let mut config = json!({
            "steps": 20, "batch_size": 8, "tokenizer": "t", "model": {"hidden_size": 8},
            "data": {"train": "a", "seq_len": 4},
        });
        let (map, patch) = (config.as_object_mut().unwrap(), patch.as_object().unwrap().clone());
        map.extend(patch);
        let config: TrainConfig = serde_json::from_value(config)?;
        Ok((config.plan()?, config.data.sources()?))
    }

    #[test]
    fn defaults_follow_the_length_of_the_run() {
        let (plan, sources) = check(json!({})).unwrap();
        assert_eq!((plan.micro_batch, plan.eval_every, plan.save_every), (8, Some(2), 2));
        assert_eq!(sources, [(PathBuf::from("a"), None)]);
        assert_eq!(check(json!({"eval_every": 0})).unwrap().0.eval_every, None);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |patch| format!("{:#}", check(patch).unwrap_err());
        assert!(error(json!({"micro_batch": 9})).contains("expected 1 to batch_size = 8"));
        assert!(error(json!({"optimizer": {"lr": 0.0}})).contains("optimizer.lr is 0"));
        assert!(error(json!({"learning_rate": 1})).contains("unknown field `learning_rate`"));
        let mixed = json!({"train": ["a", {"path": "b", "weight": 1.0}], "seq_len": 4});
        assert!(error(json!({"data": mixed})).contains("1 of 2 entries have a weight"));
        assert!(error(json!({"data": {"train": 3, "seq_len": 4}})).contains("a list of {path, weight}"));
    }
}
