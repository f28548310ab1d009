//! The training loop: batch → forward → backward → step → log.
//!
//! Shared by pretraining and fine-tuning, which differ in their parameters and their
//! [`BatchSource`]. The gradient of an update is the sum over all its tokens divided by the
//! number of unmasked targets of the whole update, never a mean of means. The sum is order-free
//! and its terms are whole sequences, so an update has the same bits however its sequences are
//! shared out over passes, threads and ranks.
//!
//! Ranks ([`Comm`]) each hold all weights and a share of the optimizer's moments (ZeRO-1): every
//! rank works on its share of the sequences, gradients are summed onto the rank that owns their
//! weights, which updates them, and the new weights are given to all. Rank 0 writes every file.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use intern_comm::{Comm, Op, even_cuts};
use intern_format::metrics::{self, MetricsWriter};
use intern_kernels::train::fixed;
use intern_model::backprop::{Backprop, Settings};
use intern_model::{Batch, Transformer};
use intern_progress::{Progress, human};

use crate::config::Plan;
use crate::data::BatchSource;
use crate::interrupt;
use crate::job::Job;
use crate::lanes::Lanes;
use crate::memory;
use crate::optimizer::{AdamW, clip};
use crate::params::{Gradients, Params};
use crate::state::{self, State};

/// The loss of a sequence is rounded to this many bits after the point before it is summed.
const LOSS_BITS: i32 = 32;

/// A model with everything that changes while it is trained.
pub struct Trainer<'a> {
    model: Backprop<'a>,
    plan: &'a Plan,
    comm: &'a Comm,
    lanes: Lanes,
    params: Params,
    gradients: Gradients,
    optimizer: AdamW,
    /// Where each rank's share of the flat parameters starts and ends.
    cuts: Vec<usize>,
    state: State,
    /// On rank 0.
    metrics: Option<MetricsWriter>,
    out: PathBuf,
    trainer_dir: PathBuf,
    /// End as if interrupted once this many updates are made; for trying out resumption.
    pub stop_after: Option<u64>,
}

/// The figures of one update.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepStats {
    /// Mean cross-entropy over the unmasked targets, in nats.
    pub loss: f64,
    /// Norm of the whole gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub lr: f64,
    /// Tokens read, padding included.
    pub tokens: usize,
    /// Targets that counted.
    pub targets: usize,
}

/// The figures of a whole run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Updates made in all.
    pub steps: u64,
    /// Tokens read in all.
    pub tokens: u64,
    /// Training loss averaged over the last updates (up to 20).
    pub train_loss: f64,
    /// Validation loss before the first update.
    pub first_valid_loss: Option<f64>,
    /// Validation loss after the last update.
    pub valid_loss: Option<f64>,
    /// Tokens per second in this process, validation and saving included.
    pub tokens_per_second: f64,
}

impl<'a> Trainer<'a> {
    /// Sets up training of `params` (the trainable tensors of `model`) under `plan`, and continues
    /// from the newest saved state of `job` where there is one.
    pub fn new(model: &'a Transformer, params: Params, plan: &'a Plan, job: &Job) -> Result<Self> {
        static ALONE: LazyLock<Comm> = LazyLock::new(Comm::alone);
        Self::on(&ALONE, model, params, plan, job)
    }

    /// As [`Self::new`], as one of the ranks of `comm`, which all call this.
    pub fn on(
        comm: &'a Comm,
        model: &'a Transformer,
        params: Params,
        plan: &'a Plan,
        job: &Job,
    ) -> Result<Self> {
        let cuts = even_cuts(params.num_elements(), comm.size(), fixed::CHUNK);
        let own = if plan.zero { cuts[comm.rank()]..cuts[comm.rank() + 1] } else { 0..params.num_elements() };
        let mut optimizer = AdamW::new(&plan.optimizer, own);
        let trainer_dir = job.trainer();
        let state = match state::newest(&trainer_dir, job.fingerprint())? {
            Some((state, dir)) => {
                state::restore(&dir, &params, &mut optimizer)?;
                tracing::info!("continuing from {}", dir.display());
                state
            }
            None => State::start(job.fingerprint()),
        };
        let mut metrics = None;
        if comm.rank() == 0 {
            let mut writer = MetricsWriter::open(job.out())?;
            writer.truncate_after(state.step)?;
            metrics = Some(writer);
        }
        // Nobody writes before everybody has read.
        comm.barrier()?;
        let layers = model.config().num_layers as f64;
        let settings = Settings {
            precision: plan.precision,
            recompute: (plan.recompute * layers).ceil() as usize,
            z_loss: plan.z_loss as f32,
        };
        Ok(Self {
            model: Backprop::new(model, settings),
            plan,
            comm,
            lanes: Lanes::new(plan.micro_batch)?,
            gradients: Gradients::new(&params),
            params,
            optimizer,
            cuts,
            state,
            metrics,
            out: job.out().to_path_buf(),
            trainer_dir,
            stop_after: None,
        })
    }

    /// Runs to the end of the plan. `label` names the work in the progress bar.
    ///
    /// A signal saves the state and ends with an error, as does a loss that is no number.
    pub fn train(&mut self, label: &str, source: &dyn BatchSource, valid: &[Batch]) -> Result<Outcome> {
        memory::keep_freed_blocks();
        let guard = interrupt::Guard::new();
        let start = (Instant::now(), self.state.tokens);
        let left = self.plan.steps - self.state.step;
        let progress = (self.comm.rank() == 0).then(|| Progress::new(label, left, "steps"));
        let mut valid_loss = None;
        if self.state.step == 0 && !valid.is_empty() {
            let loss = self.evaluate(valid)?;
            self.log(&[("valid_loss", loss)])?;
        }
        while self.state.step < self.plan.steps {
            let begin = Instant::now();
            let batch = self.batch(source)?;
            let stats = self.step(std::slice::from_ref(&batch))?;
            let mut row = vec![
                ("loss", stats.loss),
                ("lr", stats.lr),
                ("grad_norm", stats.grad_norm),
                ("tokens", self.state.tokens as f64),
                ("targets", stats.targets as f64),
                ("tokens_per_second", stats.tokens as f64 / begin.elapsed().as_secs_f64()),
            ];
            if self.evaluates() && !valid.is_empty() {
                let loss = self.evaluate(valid)?;
                valid_loss = Some(loss);
                row.push(("valid_loss", loss));
            }
            self.log(&row)?;
            let stop = self.any(guard.requested() || self.stop_after == Some(self.state.step))?;
            if self.saves() || stop {
                self.save()?;
            }
            let rate = (self.state.tokens - start.1) as f64 / start.0.elapsed().as_secs_f64();
            if let Some(progress) = &progress {
                progress.set_message(message(stats.loss, valid_loss, rate));
                progress.inc(1);
            }
            if stop && self.state.step < self.plan.steps {
                if let Some(progress) = &progress {
                    progress.finish();
                }
                bail!(
                    "stopped at step {} of {}; the state is saved\nhint: the same command continues from there",
                    self.state.step,
                    self.plan.steps
                );
            }
        }
        if let Some(progress) = &progress {
            progress.finish();
        }
        if self.comm.rank() == 0 {
            // An earlier process may have been killed between its last save and this.
            state::prune(&self.trainer_dir, self.plan.keep_last, |step| self.is_regular(step))?;
        }
        if valid_loss.is_none() && !valid.is_empty() {
            // Every update was made by an earlier process.
            valid_loss = Some(self.evaluate(valid)?);
        }
        // Rank 0 has logged everything it will before any rank reads it.
        self.comm.barrier()?;
        let (first_valid_loss, train_loss) = from_metrics(&self.out)?;
        Ok(Outcome {
            steps: self.state.step,
            tokens: self.state.tokens,
            train_loss,
            first_valid_loss,
            valid_loss,
            tokens_per_second: (self.state.tokens - start.1) as f64 / start.0.elapsed().as_secs_f64(),
        })
    }

    /// This rank's sequences of the next update.
    fn batch(&self, source: &dyn BatchSource) -> Result<Batch> {
        let (first, n) = self.plan.sequences(self.state.step);
        let cuts = even_cuts(n, self.comm.size(), 1);
        let (from, to) = (cuts[self.comm.rank()], cuts[self.comm.rank() + 1]);
        source
            .batch(first + from as u64, to - from)
            .with_context(|| format!("reading the data of step {}", self.state.step + 1))
    }

    /// Forward, backward and update over `batches`, this rank's sequences of the update.
    pub fn step(&mut self, batches: &[Batch]) -> Result<StepStats> {
        let step = self.state.step + 1;
        let mut totals = [
            batches.iter().map(Batch::num_targets).sum::<usize>() as i64,
            batches.iter().map(|b| b.b * b.t).sum::<usize>() as i64,
        ];
        self.comm.all_reduce(&mut totals, Op::Sum)?;
        let [targets, tokens] = totals.map(|n| n as usize);
        // A batch of nothing but masked targets has a zero gradient.
        let count = targets.max(1) as f64;

        // 1. Forward and backward.
        self.gradients.sums.begin(tokens);
        let rows = rows_of(batches);
        let (model, gradients) = (&self.model, &self.gradients);
        let losses = self
            .lanes
            .run(rows.len(), |i, work| {
                let (batch, row) = rows[i];
                Ok(model.gradients(batch, row, work, gradients)?)
            })
            .with_context(|| format!("step {step}"))?;
        let sum = self.sum_losses(&losses)?;
        let mut bounds = self.gradients.sums.bounds();
        self.comm.all_reduce(&mut bounds, Op::Sum)?;
        let Some(sum) = sum.filter(|_| fixed::fit(&bounds)) else { return Err(self.diverged()) };

        // 2. Every rank gets the sums of its share of the weights, or of all.
        let unit = self.gradients.sums.unit();
        let sums = self.gradients.sums.sums();
        if self.plan.zero {
            self.comm.reduce_scatter(sums, &self.cuts, Op::Sum)?;
        } else {
            self.comm.all_reduce(sums, Op::Sum)?;
        }
        let mut squares = vec![0.0; sums.len().div_ceil(fixed::CHUNK)];
        let own = self.optimizer.range();
        let chunks = own.start / fixed::CHUNK..own.end.div_ceil(fixed::CHUNK);
        squares[chunks].copy_from_slice(&fixed::squares(&sums[own]));
        if self.plan.zero {
            let cuts: Vec<usize> = self.cuts.iter().map(|c| c.div_ceil(fixed::CHUNK)).collect();
            self.comm.all_gather(&mut squares, &cuts)?;
        }
        let grad_norm = squares.iter().sum::<f64>().sqrt() * f64::from(unit) / count;

        // 3. Update the own share, and give it to all.
        let lr = self.plan.optimizer.lr * self.plan.schedule.factor(step - 1);
        let scale = clip(grad_norm, self.plan.optimizer.grad_clip) / count;
        self.optimizer.step(&self.params, (sums, unit), step, lr, scale)?;
        if self.plan.zero {
            self.params.gather(self.comm, &self.cuts)?;
        }
        self.state.step = step;
        self.state.tokens += tokens as u64;
        Ok(StepStats { loss: sum / count, grad_norm, lr, tokens, targets })
    }

    /// Mean cross-entropy over the unmasked targets of `batches`, which every rank has whole.
    pub fn evaluate(&mut self, batches: &[Batch]) -> Result<f64> {
        let rows = rows_of(batches);
        let cuts = even_cuts(rows.len(), self.comm.size(), 1);
        let own = &rows[cuts[self.comm.rank()]..cuts[self.comm.rank() + 1]];
        let model = &self.model;
        let losses = self
            .lanes
            .run(own.len(), |i, work| Ok(model.loss(own[i].0, own[i].1, work)?))
            .context("validation")?;
        let count: usize = batches.iter().map(Batch::num_targets).sum();
        Ok(self.sum_losses(&losses)?.unwrap_or(f64::NAN) / count.max(1) as f64)
    }

    /// The sum of all ranks' losses, whatever their order; `None` if one is no number.
    fn sum_losses(&self, losses: &[f64]) -> Result<Option<f64>> {
        let scale = 2.0f64.powi(LOSS_BITS);
        let finite = losses.iter().all(|l| l.is_finite());
        let mut sums = [losses.iter().map(|l| (l * scale).round() as i64).sum(), i64::from(!finite)];
        self.comm.all_reduce(&mut sums, Op::Sum)?;
        Ok((sums[1] == 0).then_some(sums[0] as f64 / scale))
    }

    /// Whether `condition` holds on any rank.
    fn any(&self, condition: bool) -> Result<bool> {
        let mut any = [i64::from(condition)];
        self.comm.all_reduce(&mut any, Op::Max)?;
        Ok(any[0] != 0)
    }

    fn log(&mut self, values: &[(&str, f64)]) -> Result<()> {
        match &mut self.metrics {
            Some(metrics) => Ok(metrics.log(self.state.step, values)?),
            None => Ok(()),
        }
    }

    fn evaluates(&self) -> bool {
        let step = self.state.step;
        step == self.plan.steps || self.plan.eval_every.is_some_and(|n| step.is_multiple_of(n))
    }

    /// Whether a state is saved after the current step in every run, interrupted or not.
    fn saves(&self) -> bool {
        self.is_regular(self.state.step)
    }

    fn is_regular(&self, step: u64) -> bool {
        step == self.plan.steps || step.is_multiple_of(self.plan.save_every)
    }

    fn save(&self) -> Result<()> {
        let AdamW { mean, square, .. } = &self.optimizer;
        let whole;
        let moments = if self.plan.zero && self.comm.size() > 1 {
            whole = [self.gathered(mean)?, self.gathered(square)?];
            [&whole[0][..], &whole[1]]
        } else {
            [&mean[..], square]
        };
        if self.comm.rank() == 0 {
            state::save(&self.trainer_dir, &self.state, &self.params, moments)?;
            if self.saves() {
                state::prune(&self.trainer_dir, self.plan.keep_last, |step| self.is_regular(step))?;
            }
        }
        Ok(())
    }

    /// All ranks' shares of a moment, flat.
    fn gathered(&self, own: &[f32]) -> Result<Vec<f32>> {
        let mut whole = vec![0.0; self.params.num_elements()];
        whole[self.optimizer.range()].copy_from_slice(own);
        self.comm.all_gather(&mut whole, &self.cuts)?;
        Ok(whole)
    }

    fn diverged(&self) -> anyhow::Error {
        let saved = match state::list(&self.trainer_dir).ok().and_then(|mut l| l.pop()) {
            Some((_, dir)) => format!("the last good state is {}", dir.display()),
            None => "no state was saved yet".to_string(),
        };
        anyhow::anyhow!(
            "the loss of step {} is no finite number, or its gradient is beyond all use; {saved}\n\
             hint: lower optimizer.lr, raise schedule.warmup_steps or set optimizer.grad_clip; the same command \
             with the same settings comes to the same step",
            self.state.step + 1
        )
    }
}

/// Every row of every batch.
fn rows_of(batches: &[Batch]) -> Vec<(&Batch, usize)> {
    batches.iter().flat_map(|batch| (0..batch.b).map(move |row| (batch, row))).collect()
}

fn message(loss: f64, valid: Option<f64>, rate: f64) -> String {
    let valid = valid.map(|v| format!(", valid {v:.3}")).unwrap_or_default();
    format!("loss {loss:.3}{valid}, {} tok/s", human(rate))
}

/// The validation loss before the first update, and the mean training loss of the last updates
/// (up to 20): from the metrics, so that they do not depend on where the run was interrupted.
fn from_metrics(out: &Path) -> Result<(Option<f64>, f64)> {
    let rows = metrics::read(out)?;
    let first = rows.iter().find(|r| r.get("step").and_then(serde_json::Value::as_u64) == Some(0));
    let losses: Vec<f64> = rows.iter().rev().filter_map(|r| r.get("loss")?.as_f64()).take(20).collect();
    let mean = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
    Ok((first.and_then(|r| r.get("valid_loss")?.as_f64()), mean))
}
