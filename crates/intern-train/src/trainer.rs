//! The training loop: batch → forward → backward → step → log.
//!
//! Shared by pretraining and fine-tuning, which differ in their parameters and their
//! [`BatchSource`]. The gradient of an update is the sum over all its tokens divided by the
//! number of unmasked targets of the whole update, never a mean of means, so cutting a batch
//! into passes changes nothing but rounding.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use intern_format::metrics::{self, MetricsWriter};
use intern_model::{Batch, Transformer};
use intern_progress::{Progress, human};

use crate::config::Plan;
use crate::data::BatchSource;
use crate::interrupt;
use crate::job::Job;
use crate::memory;
use crate::optimizer::{AdamW, clip};
use crate::params::{Gradients, Params};
use crate::state::{self, State};

/// A model with everything that changes while it is trained.
pub struct Trainer<'a> {
    model: &'a Transformer,
    plan: &'a Plan,
    params: Params,
    gradients: Gradients,
    optimizer: AdamW,
    state: State,
    metrics: MetricsWriter,
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
    /// Sets up training of `params` (tensors of `model`) under `plan`, and continues from the
    /// newest saved state of `job` where there is one.
    pub fn new(model: &'a Transformer, params: Params, plan: &'a Plan, job: &Job) -> Result<Self> {
        let mut optimizer = AdamW::new(&plan.optimizer, &params);
        let trainer_dir = job.trainer();
        let state = match state::newest(&trainer_dir, job.fingerprint())? {
            Some((state, dir)) => {
                state::restore(&dir, &params, &mut optimizer)?;
                tracing::info!("continuing from {}", dir.display());
                state
            }
            None => State::start(job.fingerprint()),
        };
        let mut metrics = MetricsWriter::open(job.out())?;
        metrics.truncate_after(state.step)?;
        let gradients = Gradients::new(&params);
        Ok(Self {
            model,
            plan,
            params,
            gradients,
            optimizer,
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
        let progress = Progress::new(label, self.plan.steps - self.state.step, "steps");
        let mut valid_loss = None;
        if self.state.step == 0 && !valid.is_empty() {
            let loss = self.evaluate(valid)?;
            self.metrics.log(0, &[("valid_loss", loss)])?;
        }
        while self.state.step < self.plan.steps {
            let begin = Instant::now();
            let batches = self.batches(source)?;
            let stats = self.step(&batches)?;
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
            self.metrics.log(self.state.step, &row)?;
            let stop = guard.requested() || self.stop_after == Some(self.state.step);
            if self.saves() || stop {
                self.save()?;
            }
            let rate = (self.state.tokens - start.1) as f64 / start.0.elapsed().as_secs_f64();
            progress.set_message(message(stats.loss, valid_loss, rate));
            progress.inc(1);
            if stop && self.state.step < self.plan.steps {
                progress.finish();
                bail!(
                    "stopped at step {} of {}; the state is saved\nhint: the same command continues from there",
                    self.state.step,
                    self.plan.steps
                );
            }
        }
        progress.finish();
        // An earlier process may have been killed between its last save and this.
        state::prune(&self.trainer_dir, self.plan.keep_last, |step| self.is_regular(step))?;
        if valid_loss.is_none() && !valid.is_empty() {
            // Every update was made by an earlier process.
            valid_loss = Some(self.evaluate(valid)?);
        }
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

    /// The next update's sequences, cut into forward passes.
    fn batches(&self, source: &dyn BatchSource) -> Result<Vec<Batch>> {
        let Plan { batch_size, micro_batch, .. } = *self.plan;
        let first = self.state.step * batch_size as u64;
        (0..batch_size)
            .step_by(micro_batch)
            .map(|at| source.batch(first + at as u64, micro_batch.min(batch_size - at)))
            .collect::<Result<_>>()
            .with_context(|| format!("reading the data of step {}", self.state.step + 1))
    }

    /// Forward, backward and update over `batches`, which together make one update.
    pub fn step(&mut self, batches: &[Batch]) -> Result<StepStats> {
        let step = self.state.step + 1;
        let targets: usize = batches.iter().map(Batch::num_targets).sum();
        // A batch of nothing but masked targets has a zero gradient.
        let count = targets.max(1) as f64;
        let mut sum = 0.0;
        self.gradients.clear();
        for batch in batches {
            let loss = self.model.loss(batch).with_context(|| format!("forward pass of step {step}"))?;
            sum += f64::from(loss.sum.to_scalar::<f32>()?);
            if !sum.is_finite() {
                return Err(self.diverged("loss", sum / count));
            }
            let mut store = loss.sum.backward().with_context(|| format!("backward pass of step {step}"))?;
            drop(loss); // Activations live as long as the loss.
            self.gradients.add(&self.params, &mut store)?;
        }
        let grad_norm = self.gradients.norm() / count;
        if !grad_norm.is_finite() {
            return Err(self.diverged("gradient norm", grad_norm));
        }
        let lr = self.plan.optimizer.lr * self.plan.schedule.factor(step - 1);
        let scale = clip(grad_norm, self.plan.optimizer.grad_clip) / count;
        self.optimizer.step(&self.params, &self.gradients, step, lr, scale)?;
        let tokens = batches.iter().map(|b| b.b * b.t).sum();
        self.state.step = step;
        self.state.tokens += tokens as u64;
        Ok(StepStats { loss: sum / count, grad_norm, lr, tokens, targets })
    }

    /// Mean cross-entropy over the unmasked targets of `batches`.
    pub fn evaluate(&self, batches: &[Batch]) -> Result<f64> {
        let (mut sum, mut count) = (0.0, 0);
        for batch in batches {
            let (loss, targets) = self.model.eval_loss(batch).context("validation")?;
            sum += loss;
            count += targets;
        }
        Ok(sum / count.max(1) as f64)
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
        state::save(&self.trainer_dir, &self.state, &self.params, &self.optimizer)?;
        if self.saves() {
            state::prune(&self.trainer_dir, self.plan.keep_last, |step| self.is_regular(step))?;
        }
        Ok(())
    }

    fn diverged(&self, what: &str, value: f64) -> anyhow::Error {
        let saved = match state::list(&self.trainer_dir).ok().and_then(|mut l| l.pop()) {
            Some((_, dir)) => format!("the last good state is {}", dir.display()),
            None => "no state was saved yet".to_string(),
        };
        anyhow::anyhow!(
            "the {what} of step {} is {value}; {saved}\n\
             hint: lower optimizer.lr, raise schedule.warmup_steps or set optimizer.grad_clip; the same command \
             with the same settings comes to the same step",
            self.state.step + 1
        )
    }
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
