//! The training loop: batch → forward → backward → step → log.
//!
//! Shared by pretraining and fine-tuning, which differ in their parameters and their
//! [`BatchSource`]. The gradient of an update is the sum over all its tokens divided by the
//! number of unmasked targets of the whole update, never a mean of means. The sum is order-free
//! and its terms are whole sequences, so an update has the same bits however its sequences are
//! shared out over passes, threads and ranks.
//!
//! Ranks ([`Mesh`]) may hold different stages of the model, slices of its layers, different
//! sequences or different tokens of them. Of those with the same weights each has a share of the
//! optimizer's moments (ZeRO-1): gradients are summed onto the rank that owns their weights, which
//! updates them, and the new weights are given to all. Rank 0 writes every file.

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use intern_comm::{Comm, Op, even_cuts};
use intern_format::metrics::{self, MetricsWriter};
use intern_kernels::train::fixed;
use intern_model::backprop::{Backprop, Settings};
use intern_model::{Batch, ModelConfig, Transformer};

use crate::config::Plan;
use crate::data::{BatchSource, ValidSet, split_rows};
use crate::forecast::flops_per_token;
use crate::interrupt;
use crate::job::Job;
use crate::lanes::Lanes;
use crate::memory;
use crate::mesh::{Mesh, Shape};
use crate::optimizer::{Optimizer, clip};
use crate::params::{Gradients, Params};
use crate::pipeline::Pipeline;
use crate::samples::Sampler;
use crate::sharded::Sharded;
use crate::state::{self, State};
use crate::timer::{Timer, Trace};
use rayon::prelude::*;

mod dashboard;
mod saving;

use dashboard::Dashboard;

/// The loss of a sequence is rounded to this many bits after the point before it is summed.
const LOSS_BITS: i32 = 32;

/// A model with everything that changes while it is trained.
pub struct Trainer<'a> {
    model: Backprop<'a>,
    plan: &'a Plan,
    mesh: &'a Mesh<'a>,
    whole: ModelConfig,
    lanes: Lanes,
    pipeline: Option<Pipeline<'a>>,
    params: Params,
    /// Where every rank has a share of the weights.
    sharded: Option<Sharded<'a>>,
    gradients: Gradients,
    shares: Vec<Share<'a>>,
    state: State,
    /// On rank 0.
    metrics: Option<MetricsWriter>,
    out: PathBuf,
    trainer_dir: PathBuf,
    /// Writes the last saved state.
    saving: Option<std::thread::JoinHandle<Result<()>>>,
    /// End as if interrupted once this many updates are made; for trying out resumption.
    pub stop_after: Option<u64>,
    /// Collects what every step spent its time on.
    pub trace: Option<Trace>,
    /// Writes what the model makes of some prompts.
    pub sampler: Option<Sampler>,
    transformer: &'a Transformer,
}

/// A range of the flat parameters, which several ranks have, and this rank's share of its updates.
struct Share<'a> {
    ranks: &'a Comm,
    /// Where each rank's share starts and ends.
    cuts: Vec<usize>,
    optimizer: Optimizer,
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
    /// The guard left the update out.
    pub skipped: bool,
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
        static MESH: LazyLock<Mesh> = LazyLock::new(|| Mesh::new(&ALONE, Shape::ALONE));
        Self::on(&MESH, model, model.config().clone(), params, plan, job)
    }

    /// As [`Self::new`], as one of the ranks of `mesh`, which all call this; `model` is this rank's
    /// part of the model `whole`.
    pub fn on(
        mesh: &'a Mesh,
        model: &'a Transformer,
        whole: ModelConfig,
        params: Params,
        plan: &'a Plan,
        job: &Job,
    ) -> Result<Self> {
        let layers = whole.num_layers;
        let sharded =
            plan.shard_weights.then(|| Sharded::new(&mesh.replicas, &params, layers, plan.micro_batch));
        // What is cut between tensor ranks has fewer replicas than the rest.
        let kinds = params.kinds().into_iter().zip([&mesh.replicas, &mesh.stage]);
        let mut shares: Vec<Share> = kinds
            .filter(|(kind, _)| !kind.is_empty())
            .map(|(kind, ranks)| -> Result<Share> {
                let cuts = params.cuts(&kind, ranks.size());
                let own = if plan.zero { cuts[ranks.rank()]..cuts[ranks.rank() + 1] } else { kind };
                let optimizer = Optimizer::new(&plan.optimizer, plan.width, &params, own)?;
                Ok(Share { ranks, cuts, optimizer })
            })
            .collect::<Result<_>>()?;
        if let Some(sharded) = &sharded {
            let share = |cuts: &[usize]| {
                let (ranks, own) =
                    (&mesh.replicas, cuts[mesh.replicas.rank()]..cuts[mesh.replicas.rank() + 1]);
                let optimizer = Optimizer::new(&plan.optimizer, plan.width, &params, own)?;
                Ok(Share { ranks, cuts: cuts.to_vec(), optimizer })
            };
            shares = sharded.cuts().map(share).collect::<Result<_>>()?;
        }
        let trainer_dir = job.trainer();
        let state = match state::newest(&trainer_dir, job.fingerprint())? {
            Some((state, dir)) => {
                state::restore(&dir, &params, shares.iter_mut().map(|s| &mut s.optimizer))?;
                tracing::info!("continuing from {}", dir.display());
                state
            }
            None => State::start(job.fingerprint()),
        };
        if let Some(sharded) = &sharded {
            sharded.release_all(&params)?;
        }
        let mut metrics = None;
        let comm = mesh.world;
        if comm.rank() == 0 {
            let mut writer = MetricsWriter::open(job.out())?;
            writer.truncate_after(state.step)?;
            metrics = Some(writer);
        }
        // Nobody writes before everybody has read.
        comm.barrier()?;
        let layers = whole.num_layers as f64;
        let settings = Settings {
            precision: plan.precision,
            recompute: (plan.recompute * layers).ceil() as usize,
            z_loss: plan.z_loss as f32,
        };
        let split = mesh.split();
        let is_pipeline = mesh.shape.pipeline > 1;
        // Where ranks meet within a sequence, they go through the sequences in one order.
        let lanes = if is_pipeline || split.is_shared() { 1 } else { plan.micro_batch };
        Ok(Self {
            model: Backprop::on(model, settings, split),
            plan,
            mesh,
            whole,
            lanes: Lanes::new(lanes)?,
            pipeline: is_pipeline.then(|| Pipeline::new(&mesh.pipeline, mesh.shape.interleave)),
            gradients: if sharded.is_some() { Gradients::none() } else { Gradients::new(&params) },
            sharded,
            params,
            shares,
            state,
            metrics,
            out: job.out().to_path_buf(),
            trainer_dir,
            saving: None,
            stop_after: None,
            trace: None,
            sampler: None,
            transformer: model,
        })
    }

    /// Runs to the end of the plan. `label` names the work in the progress bar.
    ///
    /// A signal saves the state and ends with an error, as does a loss that is no number.
    pub fn train(&mut self, label: &str, source: &dyn BatchSource, valid: &[ValidSet]) -> Result<Outcome> {
        memory::keep_freed_blocks();
        let guard = interrupt::Guard::new();
        let start = (Instant::now(), self.state.tokens);
        let left = self.plan.steps - self.state.step;
        let mut dashboard = (self.mesh.world.rank() == 0).then(|| Dashboard::new(label, left, &self.out));
        let mut valid_loss = None;
        if self.state.step == 0 && !valid.is_empty() {
            let losses = self.evaluate_all(valid)?;
            let row: Vec<(&str, f64)> = losses.iter().map(|(name, loss)| (name.as_str(), *loss)).collect();
            self.log(&row)?;
        }
        while self.state.step < self.plan.steps {
            let (begin, sent, mut timer) = (Instant::now(), self.sent(), Timer::new());
            let batch = self.batch(source)?;
            timer.lap("data");
            let stats = self.step(std::slice::from_ref(&batch), &mut timer)?;
            let losses;
            let mut row: Vec<(&str, f64)> = vec![
                ("loss", stats.loss),
                ("lr", stats.lr),
                ("grad_norm", stats.grad_norm),
                ("tokens", self.state.tokens as f64),
                ("targets", stats.targets as f64),
                ("tokens_per_second", stats.tokens as f64 / begin.elapsed().as_secs_f64()),
                ("memory_mb", memory::resident_mb() as f64),
            ];
            if stats.skipped {
                row.push(("skipped", 1.0));
            }
            if let Some(peak) = self.plan.peak_flops {
                let per_token = flops_per_token(&self.whole, batch.t, 0.0);
                let reached = stats.tokens as f64 * per_token / begin.elapsed().as_secs_f64();
                row.push(("mfu", reached / (peak * self.mesh.world.size() as f64)));
            }
            if self.mesh.world.size() > 1 {
                row.push(("sent_bytes", (self.sent() - sent) as f64));
            }
            if self.evaluates() && !valid.is_empty() {
                losses = self.evaluate_all(valid)?;
                valid_loss = losses.first().map(|(_, loss)| *loss);
                row.extend(losses.iter().map(|(name, loss)| (name.as_str(), *loss)));
                timer.lap("valid");
            }
            row.extend(timer.seconds().map(|(name, seconds)| -> (&str, f64) { (name, seconds) }));
            self.log(&row)?;
            if let Some(sampler) = &self.sampler
                && self.mesh.world.rank() == 0
                && sampler.is_due(self.state.step, self.plan.steps)
            {
                let texts = sampler.write(self.transformer, self.state.step, &self.out)?;
                texts.iter().for_each(|text| tracing::info!("step {}: {text}", self.state.step));
                timer.lap("samples");
            }
            let stop = self.any(guard.requested() || self.stop_after == Some(self.state.step))?;
            if self.saves() || stop {
                self.save()?;
                timer.lap("save");
            }
            if let Some(trace) = &mut self.trace {
                trace.add(self.state.step, &timer);
            }
            let rate = (self.state.tokens - start.1) as f64 / start.0.elapsed().as_secs_f64();
            if let Some(dashboard) = &mut dashboard {
                dashboard.show(&row, rate);
            }
            if stop && self.state.step < self.plan.steps {
                self.finish_saving()?;
                if let Some(dashboard) = &dashboard {
                    dashboard.finish();
                }
                bail!(
                    "stopped at step {} of {}; the state is saved\nhint: the same command continues from there",
                    self.state.step,
                    self.plan.steps
                );
            }
        }
        if let Some(dashboard) = &dashboard {
            dashboard.finish();
        }
        self.finish_saving()?;
        if self.mesh.world.rank() == 0 {
            // An earlier process may have been killed between its last save and this.
            let plan = self.plan;
            let (regular, kept) = (|step| plan.is_regular(step), |step| plan.is_kept(step));
            state::prune(&self.trainer_dir, plan.keep_last, regular, kept)?;
        }
        if valid_loss.is_none() && !valid.is_empty() {
            // Every update was made by an earlier process.
            valid_loss = self.evaluate_all(valid)?.first().map(|(_, loss)| *loss);
        }
        // Rank 0 has logged everything it will before any rank reads it.
        self.mesh.world.barrier()?;
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
        let cuts = even_cuts(n, self.mesh.shape.data, 1);
        let (from, to) = (cuts[self.mesh.data_rank()], cuts[self.mesh.data_rank() + 1]);
        let batch = source
            .batch(first + from as u64, to - from)
            .with_context(|| format!("reading the data of step {}", self.state.step + 1))?;
        let parts = self.plan.curriculum.map_or(1, |c| c.parts(batch.t, self.state.step));
        Ok(split_rows(batch, parts))
    }

    /// Forward, backward and update over `batches`, this rank's sequences of the update.
    pub fn step(&mut self, batches: &[Batch], timer: &mut Timer) -> Result<StepStats> {
        let step = self.state.step + 1;
        let mut totals = [
            batches.iter().map(Batch::num_targets).sum::<usize>() as i64,
            batches.iter().map(|b| b.b * b.t).sum::<usize>() as i64,
        ];
        self.mesh.world.all_reduce(&mut totals, Op::Sum)?;
        // Every sequence was counted by all ranks that work on it.
        let each = self.mesh.shape.size() / self.mesh.shape.data;
        let [targets, tokens] = totals.map(|n| n as usize / each);
        // A batch of nothing but masked targets has a zero gradient.
        let count = targets.max(1) as f64;

        // 1. Forward and backward.
        let rows = rows_of(batches);
        let mut sharded_bounds = None;
        self.gradients.sums.begin(tokens);
        let (model, gradients, pipeline) = (&self.model, &self.gradients, Mutex::new(&mut self.pipeline));
        let losses = match (self.mesh.shape.pipeline, &mut self.sharded) {
            (_, Some(sharded)) => sharded.gradients(model, &rows, tokens, &mut self.lanes, &self.params).map(
                |(losses, bounds)| {
                    sharded_bounds = Some(bounds);
                    losses
                },
            ),
            (1, None) => self.lanes.run(rows.len(), |i, work| {
                let (batch, row) = rows[i];
                Ok(model.gradients(batch, row, work, gradients)?)
            }),
            _ => self
                .lanes
                .run(1, |_, work| {
                    let mut pipeline = pipeline.lock().expect("there is one lane");
                    pipeline.as_mut().expect("with several stages").gradients(model, &rows, work, gradients)
                })
                .map(|losses| losses.concat()),
        };
        let losses = losses.with_context(|| format!("step {step}"))?;
        timer.lap("passes");
        let sum = self.sum_losses(&losses)?;
        let mut bounds = sharded_bounds.unwrap_or_else(|| self.gradients.sums.bounds());
        self.mesh.stage.all_reduce(&mut bounds, Op::Sum)?;
        let fit = !self.any(!fixed::fit(&bounds))?;
        let Some(sum) = sum.filter(|_| fit) else { return Err(self.diverged(&rows, &losses)) };
        timer.lap("exchange");

        // 2. Every rank gets the sums of its share of the weights, or of all.
        let unit = self.sharded.as_ref().map_or(self.gradients.sums.unit(), Sharded::unit);
        let sums = self.gradients.sums.sums();
        for Share { ranks, cuts, .. } in self.shares.iter().filter(|_| self.sharded.is_none()) {
            let (from, to) = (cuts[0], cuts[ranks.size()]);
            let within: Vec<usize> = cuts.iter().map(|c| c - from).collect();
            match self.plan.zero {
                true => ranks.reduce_scatter(&mut sums[from..to], &within, Op::Sum)?,
                false => ranks.all_reduce(&mut sums[from..to], Op::Sum)?,
            }
        }
        let (sums, sharded): (&[i64], _) = (sums, &self.sharded);
        let sums_of = |elements: std::ops::Range<usize>| match sharded {
            Some(sharded) => sharded.sums_of(elements),
            None => &sums[elements],
        };
        // One rank has each chunk, so this sum has one term per element.
        let mut squares = vec![0.0; self.params.num_chunks()];
        for Share { ranks, cuts, .. } in &self.shares {
            let chunks: Vec<_> = self.params.chunks(cuts[ranks.rank()]..cuts[ranks.rank() + 1]).collect();
            let own: Vec<f64> =
                chunks.par_iter().map(|c| fixed::squares(sums_of(c.elements.clone()))).collect();
            chunks.iter().zip(own).for_each(|(c, square)| squares[c.number] = square);
        }
        self.mesh.world.all_reduce(&mut squares, Op::Sum)?;
        let grad_norm = squares.iter().sum::<f64>().sqrt() * f64::from(unit) / count;

        // 3. Update the own share, and give it to all.
        timer.lap("exchange");
        let (loss, lr) = (sum / count, self.plan.optimizer.lr * self.plan.schedule.factor(step - 1));
        let taken = self.state.guard.takes(&self.plan.guard, step, loss, grad_norm).map_err(|what| {
            anyhow::anyhow!(
                "step {step}: {what}\nhint: lower optimizer.lr, or raise guard.z or guard.patience"
            )
        })?;
        let scale = clip(grad_norm, self.plan.optimizer.grad_clip) / count;
        let made = step - self.state.guard.skipped;
        for Share { ranks, cuts, optimizer } in self.shares.iter_mut().filter(|_| taken) {
            optimizer.step(&self.params, (sums_of, unit), made, lr, scale)?;
            if self.plan.zero && !self.plan.shard_weights {
                self.params.gather(ranks, cuts)?;
            }
        }
        timer.lap("update");
        self.state.step = step;
        self.state.tokens += tokens as u64;
        Ok(StepStats { loss, grad_norm, lr, tokens, targets, skipped: !taken })
    }

    /// The validation losses under their names in the metrics: that of all sets together, and of each.
    fn evaluate_all(&mut self, sets: &[ValidSet]) -> Result<Vec<(String, f64)>> {
        let (mut losses, mut sum, mut all) = (Vec::new(), 0.0, 0);
        for set in sets {
            let targets: usize = set.batches.iter().map(Batch::num_targets).sum();
            let loss = self.evaluate(&set.batches)?;
            if let [_] = sets {
                return Ok(vec![("valid_loss".into(), loss)]);
            }
            losses.push((format!("valid_loss.{}", set.name), loss));
            (sum, all) = (sum + loss * targets as f64, all + targets);
        }
        losses.insert(0, ("valid_loss".into(), sum / all.max(1) as f64));
        Ok(losses)
    }

    /// Mean cross-entropy over the unmasked targets of `batches`, which every rank has whole.
    fn evaluate(&mut self, batches: &[Batch]) -> Result<f64> {
        let rows = rows_of(batches);
        let cuts = even_cuts(rows.len(), self.mesh.shape.data, 1);
        let own = &rows[cuts[self.mesh.data_rank()]..cuts[self.mesh.data_rank() + 1]];
        let (model, pipeline) = (&self.model, Mutex::new(&mut self.pipeline));
        let losses = match (self.mesh.shape.pipeline, &mut self.sharded) {
            (_, Some(sharded)) => sharded.losses(model, own, &mut self.lanes, &self.params),
            (1, None) => self.lanes.run(own.len(), |i, work| Ok(model.loss(own[i].0, own[i].1, work)?)),
            _ => self
                .lanes
                .run(1, |_, work| {
                    let mut pipeline = pipeline.lock().expect("there is one lane");
                    pipeline.as_mut().expect("with several stages").losses(model, own, work)
                })
                .map(|losses| losses.concat()),
        };
        let losses = losses.context("validation")?;
        let count: usize = batches.iter().map(Batch::num_targets).sum();
        Ok(self.sum_losses(&losses)?.unwrap_or(f64::NAN) / count.max(1) as f64)
    }

    /// The sum of all ranks' losses, whatever their order; `None` if one is no number.
    fn sum_losses(&self, losses: &[f64]) -> Result<Option<f64>> {
        let scale = 2.0f64.powi(LOSS_BITS);
        let finite = losses.iter().all(|l| l.is_finite());
        let mut sums = [losses.iter().map(|l| (l * scale).round() as i64).sum(), i64::from(!finite)];
        self.mesh.world.all_reduce(&mut sums, Op::Sum)?;
        Ok((sums[1] == 0).then_some(sums[0] as f64 / scale))
    }

    /// Bytes this rank has sent so far.
    fn sent(&self) -> u64 {
        self.mesh.world.traffic().values().map(|t| t.bytes).sum()
    }

    /// Whether `condition` holds on any rank.
    fn any(&self, condition: bool) -> Result<bool> {
        let mut any = [i64::from(condition)];
        self.mesh.world.all_reduce(&mut any, Op::Max)?;
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
        self.plan.is_regular(self.state.step)
    }

    fn diverged(&self, rows: &[(&Batch, usize)], losses: &[f64]) -> anyhow::Error {
        let written = match self.write_diverged(rows, losses) {
            Ok(Some(path)) => format!("; its sequences are in {}", path.display()),
            Ok(None) => String::new(),
            Err(error) => format!("; its sequences could not be written: {error:#}"),
        };
        let saved = match state::list(&self.trainer_dir).ok().and_then(|mut l| l.pop()) {
            Some((_, dir)) => format!("the last good state is {}", dir.display()),
            None => "no state was saved yet".to_string(),
        };
        anyhow::anyhow!(
            "the loss of step {} is no finite number, or its gradient is beyond all use{written}; {saved}\n\
             hint: lower optimizer.lr, raise schedule.warmup_steps or set optimizer.grad_clip; the same command \
             with the same settings comes to the same step",
            self.state.step + 1
        )
    }
}

/// Every row of every batch that has a target.
fn rows_of(batches: &[Batch]) -> Vec<(&Batch, usize)> {
    let rows = batches.iter().flat_map(|batch| (0..batch.b).map(move |row| (batch, row)));
    rows.filter(|(batch, row)| batch.mask[row * batch.t..(row + 1) * batch.t].contains(&true)).collect()
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
