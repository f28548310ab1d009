//! What a run will take, worked out before it starts: `intern train run --dry-run`.
//!
//! P parameters that a rank holds of the model, L layers, C width, Q and K widths of all query and of
//! all key heads, F width of the feed-forward, V vocabulary, N tokens of a sequence, R ranks with the
//! same weights; bytes.
//!
//! - Memory of a rank: weights 4 P, gradient sums 8 P, moments 8 P (in 8 bits 2 P of what is so held;
//!   Muon's 4 P; averages 4 P more), or an R-th of them under ZeRO-1, and the buffers of each sequence
//!   at work, which are those of [`intern_model::backprop`]; in a pipeline as many sets as it has
//!   sequences on their way. Under ZeRO-3 weights and sums are an R-th too, and those of one layer whole,
//!   and micro_batch sequences are under way at once. Saving goes tensor by tensor; with `save_async` rank 0 has a copy of all.
//! - Traffic: a rank sends (R − 1) / R of 8 P bytes of sums and, under ZeRO-1, of 4 P bytes of
//!   new weights, a little more where its share is the largest; without it of 2 · 8 P bytes of sums; under
//!   ZeRO-3 of the sums and of twice the weights for each micro_batch sequences it has.
//!   The bounds of the sums and the squares for
//!   their norm are at most 16 · 2 bytes for each 65,536 parameters and each tensor of the model,
//!   and the counts and flags of a step 128. With T tensor ranks, 4 N C (T − 1) / T for each of the
//!   6 gathers and 4 scatters of a layer, with C context ranks keys and values C − 1 times forward,
//!   and with their gradients once more and C times back; a pipeline 4 N C each way for each stage.
//! - Work: 6 operations per token for each parameter but the embedding's (2 forward, 4 backward;
//!   Kaplan et al., 2020), 6 L Q N for attention to half a sequence on average, and 2 more per
//!   parameter of layers whose activations are computed twice.

use anyhow::Result;
use intern_format::checkpoint::Checkpoint;
use intern_kernels::train::fixed::CHUNK;
use intern_model::backprop::Precision;
use intern_model::part::Piece;
use intern_model::{ModelConfig, Part};
use intern_tokenizer::Tokenizer;
use serde::Serialize;

use crate::config::{Plan, TrainConfig};
use crate::mesh::Shape;
use crate::optimizer::{bytes_per_element, is_muons};
use crate::sharded::stage_of;
use crate::{params, pipeline};

/// Bytes of the program itself, its threads' stacks and the allocator's reserve.
const PROGRAM: u64 = 32 << 20;
/// Logits computed at once, as the loss has it.
const LOGITS: usize = 1 << 23;

/// The figures of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Parameters of the model.
    pub parameters: u64,
    /// Updates.
    pub steps: u64,
    /// Sequences of an update, once it has grown.
    pub batch_size: usize,
    /// Tokens of a sequence.
    pub seq_len: usize,
    /// Tokens of the whole run.
    pub tokens: u64,
    /// The grid of ranks.
    pub mesh: Shape,
    /// Ranks.
    pub ranks: usize,
    /// Each keeps the moments of its share of the weights only.
    pub zero: bool,
    /// And its share of the weights and gradients only.
    pub shard_weights: bool,
    /// Sequences a rank has of an update, at most.
    pub sequences_per_rank: usize,
    /// Sequences a rank works on at once.
    pub lanes: usize,
    /// Share of the time that the pipeline leaves ranks idle.
    pub idle: f64,
    /// Operations per token, multiplications and additions counted each.
    pub flops_per_token: f64,
    /// Bytes of the rank that needs most.
    pub memory: Memory,
    /// Bytes a rank sends per update, at most.
    pub sent_per_step: Traffic,
}

/// Bytes of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The model, or what the rank holds of it.
    pub weights: u64,
    /// Sums of gradients.
    pub gradients: u64,
    /// The optimizer's moments and averages.
    pub moments: u64,
    /// Buffers of the sequences at work.
    pub activations: u64,
    /// Copies that are made to save a state.
    pub saving: u64,
    /// The program.
    pub program: u64,
    /// All of these.
    pub total: u64,
}

/// Bytes one rank sends for one update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Sums of gradients, and what tells whether they are sound and how large.
    pub sums: u64,
    /// New weights.
    pub weights: u64,
    /// Rows of the residual stream, between the ranks that share layers.
    pub tensor: u64,
    /// Keys, values and their gradients, between the ranks that share sequences.
    pub context: u64,
    /// Activations and their gradients, between stages.
    pub pipeline: u64,
    /// All of these.
    pub total: u64,
}

impl Forecast {
    /// Of `config`, with the threads of the current pool.
    ///
    /// # Errors
    /// If a setting is unusable, or the tokenizer or the checkpoint to start from cannot be read.
    pub fn new(config: &TrainConfig) -> Result<Self> {
        let plan = config.plan()?;
        let model = match &config.model.init_from {
            Some(dir) => ModelConfig::from_json(Checkpoint::open(dir)?.config())?,
            // A shape with its vocabulary needs no tokenizer.
            None if config.model.vocab_size.is_some() && config.tokenizer_path().is_err() => {
                config.model.shape(None, config.data.seq_len)?
            }
            None => {
                let tokenizer = Tokenizer::from_path(config.tokenizer_path()?)?;
                config.model.shape(Some(&tokenizer), config.data.seq_len)?
            }
        };
        let mesh = Shape::resolve(&config.parallel, None)?;
        Part::of_pipeline(model.num_layers, 0, mesh.pipeline, mesh.interleave, 0, mesh.tensor)
            .check(&model)?;
        Ok(Self::of(&plan, &model, config.data.seq_len, mesh, rayon::current_num_threads()))
    }

    pub(crate) fn of(plan: &Plan, model: &ModelConfig, seq_len: usize, mesh: Shape, threads: usize) -> Self {
        let parameters = model.num_parameters() as u64;
        let ranks = mesh.size();
        let sequences_per_rank = plan.batch_size.div_ceil(mesh.data);
        let shared = ranks > mesh.data;
        let lanes =
            if shared { 1 } else { (threads / ranks).max(1).min(plan.micro_batch).min(sequences_per_rank) };
        let (first, n) = plan.sequences(plan.steps - 1);
        let idle = pipeline::idle(mesh.pipeline, mesh.interleave, sequences_per_rank);
        let all = Held::new(plan, model, &Shape::ALONE, 0);
        let all_slots = all.cut.iter().chain(&all.uncut).map(|t| t.slots).sum::<f64>() as u64;
        let of_ranks = (0..mesh.pipeline).map(|p| Held::new(plan, model, &mesh, p));
        let held: Vec<Held> = of_ranks.collect();
        let replicas = (mesh.data * mesh.context) as u64;
        let memory = |(p, held): (usize, &Held)| {
            let in_flight = match (mesh.pipeline, mesh.interleave) {
                (1, _) if plan.shard_weights => plan.micro_batch.min(sequences_per_rank) * held.stages,
                (1, _) => lanes,
                (_, 1) => (mesh.pipeline - p).min(sequences_per_rank),
                (ranks, chunks) => {
                    (2 * (ranks - p - 1) + (chunks - 1) * ranks + 1).min(chunks * sequences_per_rank)
                }
            };
            let recomputed = (plan.recompute * held.layers as f64).ceil() as usize;
            let rows = seq_len.div_ceil(mesh.context);
            let buffers = Buffers::new(model, &mesh, held, rows, recomputed, plan.precision);
            let share = if plan.zero { replicas } else { 1 };
            let both = [&held.cut, &held.uncut];
            let [cut, uncut] = both.map(|list| list.iter().map(|t| t.len).sum::<usize>() as u64);
            let slots = both.map(|list| list.iter().map(|t| t.slots).sum::<f64>() as u64);
            // What is not cut is shared by the tensor ranks too.
            let moments = match plan.zero {
                true => slots[0].div_ceil(share) + slots[1].div_ceil(share * mesh.tensor as u64),
                false => slots[0] + slots[1],
            };
            let own = cut + uncut;
            let largest = held.cut.iter().chain(&held.uncut).map(|t| t.len as u64).max().unwrap_or(0);
            // Tensor after tensor, its weights or one slot, and as it comes from other ranks.
            let saving = match plan.save_async {
                true => 4 * parameters + all_slots,
                false => 8 * largest * mesh.tensor as u64,
            };
            let (weights, sums) = match plan.shard_weights {
                true => {
                    let stage = held.stage_lens().max().unwrap_or(0) as u64;
                    // A stage is whole, and once more while it is put together.
                    (4 * (own.div_ceil(share) + stage) + 4 * largest, 8 * (own.div_ceil(share) + stage))
                }
                false => (4 * own, 8 * own),
            };
            let mut memory = Memory {
                weights,
                gradients: sums,
                moments,
                activations: buffers.kept * in_flight as u64 + buffers.temporary * lanes as u64,
                saving,
                program: PROGRAM,
                total: 0,
            };
            let Memory { weights, gradients, moments, activations, saving, program, .. } = memory;
            memory.total = weights + gradients + moments + activations + saving + program;
            memory
        };
        let memory = held.iter().enumerate().map(memory).max_by_key(|m| m.total).expect("at least one rank");
        let traffic = held.iter().map(|held| held.traffic(plan, model, &mesh, seq_len, sequences_per_rank));
        Self {
            parameters,
            steps: plan.steps,
            batch_size: plan.batch_size,
            seq_len,
            tokens: (first + n as u64) * seq_len as u64,
            mesh,
            ranks,
            zero: plan.zero,
            shard_weights: plan.shard_weights,
            sequences_per_rank,
            lanes,
            idle,
            flops_per_token: flops_per_token(model, seq_len, plan.recompute),
            memory,
            sent_per_step: traffic.max_by_key(|t| t.total).expect("at least one rank"),
        }
    }
}

/// Operations per token, of a forward and a backward pass.
pub(crate) fn flops_per_token(model: &ModelConfig, seq_len: usize, recompute: f64) -> f64 {
    let parameters = model.num_parameters() as f64;
    let embedding = (model.vocab_size * model.hidden_size) as f64;
    // A tied embedding is the head too, which is multiplied with.
    let lookup = if model.tie_word_embeddings { 0.0 } else { embedding };
    let heads = (model.num_heads * model.head_dim) as f64;
    let attention = 6.0 * model.num_layers as f64 * heads * seq_len as f64;
    let blocks = parameters - embedding - lookup;
    6.0 * (parameters - lookup) + attention + 2.0 * recompute * (blocks + attention / 6.0)
}

/// What a rank holds of a tensor.
#[derive(Clone, Copy)]
struct Tensor {
    len: usize,
    /// Bytes of its moments and averages.
    slots: f64,
    may_cut: bool,
    /// The layer it is with where weights are shared out.
    stage: usize,
}

/// What a rank of the pipeline holds.
struct Held {
    layers: usize,
    stages: usize,
    first: bool,
    last: bool,
    /// The tensors that are cut between tensor ranks, as this one has them.
    cut: Vec<Tensor>,
    /// The others.
    uncut: Vec<Tensor>,
}

impl Held {
    fn new(plan: &Plan, model: &ModelConfig, mesh: &Shape, rank: usize) -> Self {
        let optimizer = &plan.optimizer;
        let stages = if plan.shard_weights { model.num_layers } else { mesh.interleave };
        let part = Part::of_pipeline(model.num_layers, rank, mesh.pipeline, stages, 0, mesh.tensor);
        let tensors = |cut: bool| -> Vec<Tensor> {
            let pieces = part.pieces(model).into_iter().filter(|p| p.cut.is_some() == cut);
            let tensor = |p: Piece| {
                let (len, dims) = (p.held_shape().iter().product(), p.shape.len());
                let slots = len as f64 * bytes_per_element(optimizer, &p.name, dims, len);
                let may_cut = !is_muons(optimizer, &p.name, dims);
                Tensor { len, slots, may_cut, stage: stage_of(&p.name, model.num_layers) }
            };
            pieces.map(tensor).collect()
        };
        Self {
            layers: part.stages.iter().map(|s| s.layers.len()).sum(),
            stages: part.stages.len(),
            first: rank == 0,
            last: rank + 1 == mesh.pipeline,
            cut: tensors(true),
            uncut: tensors(false),
        }
    }

    /// Elements of each stage.
    fn stage_lens(&self) -> impl Iterator<Item = usize> {
        self.uncut.chunk_by(|a, b| a.stage == b.stage).map(|stage| stage.iter().map(|t| t.len).sum())
    }

    /// Bytes that the rank that sends most sends of sums and of weights where these are shared out and the
    /// layers are gone through `rounds` times.
    fn shared_out(&self, ranks: usize, rounds: u64) -> (u64, u64) {
        let last = self.uncut.last().map_or(0, |t| t.stage);
        let mut sent = vec![(0, 0); ranks];
        for stage in self.uncut.chunk_by(|a, b| a.stage == b.stage) {
            let (spans, len) = spans(stage);
            // The last one is whole between its two passes.
            let times = if stage[0].stage == last { rounds } else { 2 * rounds };
            for (cut, sent) in params::cuts(spans.into_iter(), &(0..len), ranks).windows(2).zip(&mut sent) {
                let own = (cut[1] - cut[0]) as u64;
                sent.0 += 8 * (len as u64 - own) * rounds;
                sent.1 += 4 * own * (ranks as u64 - 1) * times;
            }
        }
        sent.into_iter().max_by_key(|(sums, weights)| sums + weights).expect("at least one rank")
    }

    fn traffic(
        &self,
        plan: &Plan,
        model: &ModelConfig,
        mesh: &Shape,
        len: usize,
        sequences: usize,
    ) -> Traffic {
        /// `bytes` around a ring of `ranks`, of which each sends all but its own part.
        fn ring(bytes: u64, ranks: usize) -> u64 {
            (bytes * (ranks as u64 - 1)).div_ceil(ranks as u64)
        }
        let replicas = mesh.data * mesh.context;
        let chunks = model.num_parameters() / CHUNK + 16 * (model.num_layers + 1) * mesh.tensor;
        let small = ring(2 * 8 * 2 * chunks as u64 + 128, mesh.size());
        let (sequences, c) = (sequences as u64, model.hidden_size);
        let rows = len.div_ceil(mesh.context);
        let stream = 4 * (rows * c) as u64;
        let again = (plan.recompute * self.layers as f64).ceil() as u64;
        // Three gathers and a scatter in a pass that is repeated, whose output is known.
        let meetings = 10 * self.layers as u64 + 3 * again;
        let kv = 2 * 4 * (rows * model.num_kv_heads / mesh.tensor * model.head_dim) as u64;
        let turns = mesh.context as u64 - 1;
        let rounds = if turns > 0 { (3 * turns + 1) * self.layers as u64 + turns * again } else { 0 };
        let (stages, pipeline) = (self.stages as u64, mesh.pipeline > 1);
        let handed = 2 * stages - u64::from(self.first) - u64::from(self.last);
        let cut = exchanged(&self.cut, replicas, plan.zero);
        let uncut = exchanged(&self.uncut, replicas * mesh.tensor, plan.zero);
        let (sums, weights) = match plan.shard_weights {
            true => self.shared_out(mesh.data, sequences.div_ceil(plan.micro_batch as u64)),
            false => (cut.0 + uncut.0, cut.1 + uncut.1),
        };
        let mut traffic = Traffic {
            sums: sums + small,
            weights,
            tensor: sequences * meetings * ring(stream, mesh.tensor),
            context: sequences * rounds * kv,
            pipeline: if pipeline { sequences * handed * stream.div_ceil(mesh.tensor as u64) } else { 0 },
            total: 0,
        };
        let Traffic { sums, weights, tensor, context, pipeline, .. } = traffic;
        traffic.total = sums + weights + tensor + context + pipeline;
        traffic
    }
}

/// Bytes of sums and of weights that the rank sends, of `ranks` that have tensors of these sizes,
/// Where the tensors lie one after the other and whether they may be cut, and their length together.
fn spans(tensors: &[Tensor]) -> (Vec<(std::ops::Range<usize>, bool)>, usize) {
    let mut at = 0;
    let span = |t: &Tensor| {
        at += t.len;
        (at - t.len..at, t.may_cut)
    };
    (tensors.iter().map(span).collect(), at)
}

/// that sends most: all sums but those of its own share, and its share to all others.
fn exchanged(tensors: &[Tensor], ranks: usize, zero: bool) -> (u64, u64) {
    let (spans, at) = spans(tensors);
    let cuts = match zero {
        true => params::cuts(spans.into_iter(), &(0..at), ranks),
        false => intern_comm::even_cuts(at, ranks, 1),
    };
    let of_rank = |own: u64| {
        let (away, around) = (at as u64 - own, own * (ranks as u64 - 1));
        if zero { (8 * away, 4 * around) } else { (8 * (away + around), 0) }
    };
    let shares = cuts.windows(2).map(|c| of_rank((c[1] - c[0]) as u64));
    shares.max_by_key(|(sums, weights)| sums + weights).expect("at least one rank")
}

/// Bytes of the buffers a sequence is worked on with.
struct Buffers {
    /// What its backward pass needs of its forward pass.
    kept: u64,
    /// The rest, of each lane.
    temporary: u64,
}

impl Buffers {
    /// Of `n` tokens on a rank that holds `held`.
    fn new(
        model: &ModelConfig,
        mesh: &Shape,
        held: &Held,
        n: usize,
        recompute: usize,
        precision: Precision,
    ) -> Self {
        let (c, vocab) = (model.hidden_size, model.vocab_size);
        let (t, layers) = (mesh.tensor, held.layers.div_ceil(held.stages));
        let (f, heads) = (model.intermediate_size / t, model.num_heads / t);
        let q = heads * model.head_dim;
        let qkv = q + 2 * model.num_kv_heads / t * model.head_dim;
        let own = n.div_ceil(t);
        let kept = layers.saturating_sub(recompute.div_ceil(held.stages));
        let (wide, narrow) = (n * (qkv + q + 2 * f), n * heads + own * c);
        let (kept, once) = match precision {
            Precision::F32 => (kept * 4 * (wide + narrow), 4 * (wide + narrow)),
            Precision::Bf16 => (kept * (2 * wide + 4 * narrow), 4 * (wide + narrow)),
        };
        let chunk = (LOGITS / vocab).clamp(32, 512).min(own);
        let rounded = match precision {
            Precision::F32 => 0,
            Precision::Bf16 => (vocab * c).max(f * c) + n * f.max(qkv),
        };
        let streams = (layers + 1) * own * c;
        let met = if t > 1 { 2 * n * c } else { 0 };
        let temporary = n * (4 * c + 4 * f + q + qkv) + met;
        let head = if held.last { chunk * (vocab + 2 * c) } else { 0 };
        Self {
            kept: (kept + 4 * streams) as u64,
            temporary: (once + 4 * (temporary + head + rounded)) as u64,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use intern_model::Architecture;

    use super::*;
    use crate::config::PlanArgs;
    use crate::{OptimizerConfig, ScheduleConfig};

    pub(crate) fn plan(batch_size: usize) -> Plan {
        let (optimizer, schedule) = (OptimizerConfig::default(), ScheduleConfig::default());
        let plan = Plan::new(&PlanArgs {
            steps: 100,
            batch_size,
            micro_batch: None,
            eval_every: None,
            save_every: None,
            keep_last: 1,
            optimizer: &optimizer,
            schedule: &schedule,
        });
        plan.unwrap()
    }

    fn forecast(mesh: Shape, zero: bool) -> Forecast {
        let model = ModelConfig::small(Architecture::Llama, 8192, 512, 8, 8, 4);
        let model = ModelConfig { intermediate_size: 1408, ..model };
        Forecast::of(&Plan { zero, ..plan(4) }, &model, 512, mesh, 2)
    }

    /// 885 MB were measured with `intern train bench`, which saves nothing, on 2 threads.
    #[test]
    fn memory_is_within_a_tenth_of_what_was_measured() {
        let memory = forecast(Shape::ALONE, true).memory;
        let total = (memory.total - memory.saving) as f64 / f64::from(1 << 20);
        assert!((total / 885.0 - 1.0).abs() < 0.1, "{total} MB");
    }

    #[test]
    fn ranks_share_moments_and_talk() {
        let data = |data| Shape { data, ..Shape::ALONE };
        let (alone, two, plain) =
            (forecast(data(1), true), forecast(data(2), true), forecast(data(2), false));
        assert_eq!(alone.sent_per_step.total, 0);
        assert_eq!(two.memory.moments * 2, alone.memory.moments);
        assert_eq!(plain.memory.moments, alone.memory.moments);
        let sent = |f: &Forecast| f.sent_per_step.total as f64 / f.parameters as f64;
        assert!((sent(&two) - 6.0).abs() < 0.01 && (sent(&plain) - 8.0).abs() < 0.01);
        assert_eq!(two.tokens, 100 * 4 * 512);
        assert!(two.flops_per_token > 6.0 * (two.parameters - 8192 * 512) as f64);
    }

    #[test]
    fn parts_of_a_model_take_parts_of_the_memory() {
        let alone = forecast(Shape::ALONE, true).memory;
        let tensor = forecast(Shape { tensor: 4, ..Shape::ALONE }, true).memory;
        let pipeline = forecast(Shape { pipeline: 4, ..Shape::ALONE }, true).memory;
        // The embedding and the head, a quarter of this model, are not cut between tensor ranks.
        assert!(tensor.weights < alone.weights / 2 && tensor.activations < alone.activations / 2);
        assert!(pipeline.weights < alone.weights / 2 && pipeline.gradients < alone.gradients / 2);
    }
}
