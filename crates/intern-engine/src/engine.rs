//! The handle to an engine: loading, configuration, requests and what they hear back.
//!
//! Requests go to the engine's thread (`worker`) through a channel; answers come back through
//! one channel each. Knows token ids and text, no HTTP and no conversations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use intern_lm::{FinishReason, Sampling, TokenLogprob, Usage};
use intern_model::{ModelConfig, RopeScaling};
use intern_tokenizer::Tokenizer;
use serde::{Deserialize, Serialize};

use crate::adapter::Lora;
use crate::block_manager::BlockManager;
use crate::check::Limits;
use crate::draft::Drafter;
use crate::load::{Loaded, Opened, kv_type, load_share, ranks};
use crate::parallel::Ranks;
use crate::prepare::Preparer;
use crate::runner::Runner;
use crate::scheduler::Scheduler;
use crate::worker::{State, Submission, Worker};

/// How an engine uses the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Threads of the forward pass; 0 takes every core.
    pub threads: usize,
    /// Positions per block of the KV cache.
    pub block_size: usize,
    /// Sequences computed at once; more wait.
    pub max_num_seqs: usize,
    /// Tokens per step: decoding sequences take one each, prompts share the rest.
    pub max_batch_tokens: usize,
    /// Memory for keys and values, in MiB. Only what is used is touched.
    pub kv_memory_mb: usize,
    /// How keys and values are kept: "f32", "f16" or "int8"; "f32" for f32 weights, else "f16", if
    /// absent.
    pub kv_type: Option<KvType>,
    /// Multiply quantized weights in f32 instead of integers: slow, to tell the error of the
    /// weights from that of the activations.
    pub f32_products: bool,
    /// Longest prompt plus answer; the model's own limit if absent.
    pub max_context: Option<usize>,
    /// Keep the blocks of earlier requests for later ones that begin the same way.
    pub prefix_cache: bool,
    /// Tokens to guess per step from what was said before, 0 for none. Changes no answer;
    /// pays where answers repeat their prompts and few requests run.
    pub prompt_lookup: usize,
    /// A smaller model of the same tokenizer (checkpoint directory or GGUF file) that guesses
    /// ahead instead. Changes no answer.
    pub draft_model: Option<PathBuf>,
    /// Tokens it guesses per step.
    pub draft_tokens: usize,
    /// While answers are being written, prompts are read in steps of about this many
    /// milliseconds, so that the answers go on; 0 for no bound.
    pub max_step_ms: u64,
    /// Ranks that share the model, each on its part of the threads: a matrix is cut between them, and
    /// the tokens are those of one rank. Under an MPI launcher its processes are the ranks instead,
    /// with `threads` each.
    pub tensor_parallel: usize,
    /// PEFT adapters served beside the model, by name: requests choose one by its name. Their
    /// products are added in f32, whatever the model's weights are stored as.
    pub adapters: BTreeMap<String, PathBuf>,
}

/// How the cache keeps keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KvType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats: half the memory, three digits.
    F16,
    /// 8-bit integers with one scale per token and head: a quarter of the memory, two digits.
    Int8,
}

impl std::str::FromStr for KvType {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "int8" => Ok(Self::Int8),
            other => bail!("{other} is no type of keys and values\nhint: f32, f16 and int8 are"),
        }
    }
}

impl KvType {
    /// Bytes of one head's key, or value, of `head_dim` elements.
    #[must_use]
    pub fn vector_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F32 => 4 * head_dim,
            Self::F16 => 2 * head_dim,
            Self::Int8 => head_dim + size_of::<f32>(),
        }
    }
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            threads: 0,
            block_size: 32,
            max_num_seqs: 64,
            max_batch_tokens: 512,
            kv_memory_mb: 1024,
            kv_type: None,
            f32_products: false,
            max_context: None,
            prefix_cache: true,
            prompt_lookup: 0,
            draft_model: None,
            draft_tokens: 3,
            max_step_ms: 250,
            tensor_parallel: 1,
            adapters: BTreeMap::new(),
        }
    }
}

/// One request to [`Engine::submit`].
#[derive(Clone, Debug, Default)]
pub struct EngineRequest {
    /// The prompt, at least one token.
    pub tokens: Vec<u32>,
    /// How to continue it; `max_tokens = 0` only reads the prompt.
    pub sampling: Sampling,
    /// Score the prompt's tokens from this index on (at least 1: the first has no context).
    pub score_from: Option<usize>,
    /// A token to score after the prompt without reading it, so that one more than the context
    /// fits; needs `score_from` and `max_tokens = 0`.
    pub score_next: Option<u32>,
    /// Alternatives to report for each scored token.
    pub score_top: usize,
    /// Return the logits of every prompt position.
    pub prompt_logits: bool,
    /// Return the mean of the prompt's final hidden states, of length 1; needs `max_tokens = 0`.
    pub embed: bool,
    /// Tokens to guess per step; if absent, [`EngineConfig::draft_tokens`] with a smaller model
    /// and [`EngineConfig::prompt_lookup`] without.
    pub guesses: Option<usize>,
    /// When the request is given up, with [`Event::Expired`].
    pub deadline: Option<Instant>,
    /// One of [`EngineConfig::adapters`]; the model itself if absent.
    pub adapter: Option<String>,
}

impl EngineRequest {
    /// Continues `tokens`.
    #[must_use]
    pub fn new(tokens: Vec<u32>, sampling: Sampling) -> Self {
        Self { tokens, sampling, ..Self::default() }
    }
}

/// How the model liked one token of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// The token.
    pub id: u32,
    /// Natural logarithm of its probability given what precedes it.
    pub logprob: f32,
    /// Whether it was the likeliest.
    pub is_greedy: bool,
    /// The likeliest tokens, as many as `score_top`.
    pub top: Vec<(u32, f32)>,
}

/// What a request hears, in order. `Done`, `Error` or `Expired` comes last.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// So many of the prompt's tokens were read.
    Prefill {
        /// Tokens read.
        done: usize,
        /// Tokens to read.
        total: usize,
    },
    /// Nothing new: the engine asks whether somebody still listens.
    Ping,
    /// A token was generated.
    Token {
        /// Its id. A token that ends the answer is reported too, with no text.
        id: u32,
        /// Text that became certain; often, not always, the token's own.
        text: String,
        /// If asked for.
        logprob: Option<TokenLogprob>,
    },
    /// The answer is complete.
    Done {
        /// Text that was held back until now.
        text: String,
        /// Why it ended.
        finish: FinishReason,
        /// Tokens used.
        usage: Usage,
        /// One per scored prompt token.
        scores: Vec<TokenScore>,
        /// `(T, V)` row-major if asked for, else empty.
        logits: Vec<f32>,
        /// `(C)` if asked for, else empty.
        embedding: Vec<f32>,
        /// Prompt tokens that were not read again, because an earlier request began the same way.
        cached_tokens: usize,
    },
    /// The request failed; others did not.
    Error(String),
    /// The request's deadline passed.
    Expired,
}

/// What the engine is doing, as of its last step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Sequences that run.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// Blocks of the cache nobody holds; prefixes that may come again stay in them.
    pub free_blocks: usize,
    /// All blocks of the cache.
    pub num_blocks: usize,
    /// Steps taken.
    pub steps: u64,
    /// Prompt tokens read, recomputed ones included.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Times a sequence gave up its blocks.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_lookup_tokens: u64,
    /// Prompt tokens found there.
    pub prefix_hit_tokens: u64,
    /// Tokens guessed by speculation.
    pub draft_tokens: u64,
    /// Guesses that were right.
    pub accepted_tokens: u64,
}

impl Stats {
    /// Share of the cache's blocks that running sequences hold, from 0 to 1.
    #[must_use]
    pub fn kv_usage(&self) -> f64 {
        let held = self.num_blocks - self.free_blocks.min(self.num_blocks);
        held as f64 / self.num_blocks.max(1) as f64
    }
}

/// Receives a request's events; false when nobody listens any more.
pub type Listener = Box<dyn Fn(Event) -> bool + Send>;

/// A loaded model that answers requests; cheap to clone, usable from any thread.
///
/// The thread ends and the memory is freed when the last clone is dropped.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    sender: Mutex<Option<Sender<Submission>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    tokenizer: Tokenizer,
    config: ModelConfig,
    name: String,
    limits: Limits,
    preparer: Preparer,
    eos_ids: Vec<u32>,
    weight_bytes: usize,
    stats: Arc<Mutex<Stats>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Closing the channel ends the thread after the step it is in.
        self.sender.lock().map(|mut s| s.take()).ok();
        if let Some(thread) = self.thread.lock().ok().and_then(|mut t| t.take()) {
            let _ = thread.join();
        }
    }
}

impl Engine {
    /// Loads a checkpoint directory or a `.gguf` file; `adapter` is merged into a checkpoint.
    ///
    /// # Errors
    /// If files are missing or do not belong together; the message names them.
    pub fn load(model: &Path, adapter: Option<&Path>, config: &EngineConfig) -> Result<Self> {
        let ranks = ranks(model, adapter, config)?;
        load_share(model, adapter, config, &ranks)
            .inspect_err(|error| ranks.abandon(&format!("{error:#}")))
            .and_then(|loaded| Self::start(loaded, ranks, config))
    }

    fn start(opened: Opened, ranks: Ranks, config: &EngineConfig) -> Result<Self> {
        let Opened { large: Loaded { weights, tokenizer, name, mut eos_ids }, pool, draft } = opened;
        ensure!(config.block_size > 0, "block_size is 0, expected at least 1");
        ensure!(
            tokenizer.vocab_size() <= weights.config.vocab_size,
            "the tokenizer has {} tokens, the model {}\nhint: do they belong together?",
            tokenizer.vocab_size(),
            weights.config.vocab_size
        );
        if eos_ids.is_empty() {
            eos_ids = tokenizer.eos_id().into_iter().collect();
        }
        let named = |(name, path): (&String, &PathBuf)| {
            Lora::load(path, &weights).with_context(|| format!("loading the adapter {name}"))
        };
        let adapters: Vec<Lora> = config.adapters.iter().map(named).collect::<Result<_>>()?;
        ensure!(
            ranks.is_alone() || adapters.is_empty(),
            "adapters cannot be served beside a model that {} ranks share\n\
             hint: merge one (`--adapter DIR`), or set tensor_parallel = 1",
            ranks.share().size
        );
        let (model, ours) = (weights.whole.clone(), weights.config.clone());
        let kv_type = kv_type(config, &weights);
        let per_position = |model: &ModelConfig| {
            2 * model.num_layers * model.num_kv_heads * kv_type.vector_bytes(model.head_dim)
        };
        let models = || std::iter::once(&ours).chain(draft.as_ref().map(|d| &d.0.config));
        let per_position: usize = models().map(per_position).sum();
        let dynamic = models().filter(|m| matches!(m.rope_scaling, RopeScaling::Dynamic { .. }));
        let dynamic_rope = dynamic.map(|m| m.max_position_embeddings).min();
        let mut max_context = config.max_context.unwrap_or(model.max_position_embeddings).max(1);
        let wanted = max_context.saturating_mul(config.max_num_seqs.max(1)).div_ceil(config.block_size);
        let affordable = (config.kv_memory_mb << 20) / (per_position * config.block_size);
        ensure!(
            affordable > 0,
            "kv_memory_mb = {} holds not one block of {} positions\nhint: raise kv_memory_mb",
            config.kv_memory_mb,
            config.block_size
        );
        let num_blocks = ranks.agree(wanted.min(affordable))?;
        max_context = max_context.min(num_blocks * config.block_size);

        let limits = Limits { max_context, vocab_size: model.vocab_size };

        let blocks = BlockManager::new(num_blocks, config.block_size);
        let beside: usize = adapters.iter().map(Lora::nbytes).sum();
        let weight_bytes = weights.nbytes() + beside + draft.as_ref().map_or(0, |d| d.0.nbytes());
        let stats = Arc::new(Mutex::new(Stats { free_blocks: num_blocks, num_blocks, ..Stats::default() }));
        let runner = |ranks, weights, adapters, pool| {
            Runner::new(ranks, weights, adapters, pool, num_blocks, config.block_size, kv_type)
        };
        let drafter = |(weights, pool)| Drafter {
            runner: runner(Ranks::alone(), weights, Vec::new(), pool),
            most: config.draft_tokens,
        };
        let worker = Worker {
            drafter: draft.map(drafter),
            runner: runner(ranks, weights, adapters, pool),
            scheduler: Scheduler::new(
                blocks,
                config.max_num_seqs,
                config.max_batch_tokens,
                config.prefix_cache,
            ),
            tokenizer: tokenizer.clone(),
            eos_ids: eos_ids.clone(),
            limits,
            prompt_lookup: config.prompt_lookup,
            max_step: Duration::from_millis(config.max_step_ms),
            dynamic_rope,
            published: stats.clone(),
            state: State::default(),
        };
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || worker.run(&receiver))
            .context("starting the engine's thread")?;
        Ok(Self {
            inner: Arc::new(Inner {
                sender: Mutex::new(Some(sender)),
                thread: Mutex::new(Some(thread)),
                preparer: Preparer::new(&tokenizer, &eos_ids, config.adapters.keys().cloned().collect()),
                tokenizer,
                config: model,
                name,
                limits,
                eos_ids,
                weight_bytes,
                stats,
            }),
        })
    }

    /// The model's tokenizer.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    /// The model's shape.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.inner.config
    }

    /// File or directory name, or the name a GGUF file gives itself.
    #[must_use]
    pub fn model_name(&self) -> &str {
        &self.inner.name
    }

    /// Longest prompt plus answer, in tokens.
    #[must_use]
    pub fn context_length(&self) -> usize {
        self.inner.limits.max_context
    }

    /// Names of the adapters that requests may choose.
    #[must_use]
    pub fn adapters(&self) -> &[String] {
        &self.inner.preparer.adapters
    }

    /// Tokens that end an answer.
    #[must_use]
    pub fn eos_ids(&self) -> &[u32] {
        &self.inner.eos_ids
    }

    /// Bytes of the weights' matrices.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.inner.weight_bytes
    }

    /// What the engine is doing.
    #[must_use]
    pub fn stats(&self) -> Stats {
        *self.inner.stats.lock().expect("no code panics while holding this lock")
    }

    /// Finds what would make a request fail, without running it.
    ///
    /// # Errors
    /// If the prompt does not fit, a parameter is out of range or a grammar is not supported.
    pub fn check(&self, request: &EngineRequest) -> Result<()> {
        self.inner.limits.check(request)?;
        self.inner.preparer.prepare(request).map(drop)
    }

    /// Queues a request. Dropping the receiver cancels it.
    #[must_use]
    pub fn submit(&self, request: EngineRequest) -> Receiver<Event> {
        let (sender, receiver) = channel();
        self.submit_to(request, Box::new(move |event| sender.send(event).is_ok()));
        receiver
    }

    /// Queues a request whose events go to `listener`, on the engine's thread. What must be
    /// compiled first is compiled on the caller's.
    pub fn submit_to(&self, request: EngineRequest, listener: Listener) {
        let checked = self.inner.limits.check(&request);
        let prepared = match checked.and_then(|()| self.inner.preparer.prepare(&request)) {
            Ok(prepared) => prepared,
            Err(error) => {
                listener(Event::Error(format!("{error:#}")));
                return;
            }
        };
        let sender = self.inner.sender.lock().expect("no code panics while holding this lock");
        let sender = sender.as_ref().expect("the channel closes only when the engine is dropped");
        if let Err(unsent) = sender.send(Submission { request, prepared, listener }) {
            (unsent.0.listener)(Event::Error("the engine has stopped".to_owned()));
        }
    }

    /// The logits of every position, `(T, V)` row-major.
    ///
    /// # Errors
    /// If there are no tokens, too many, or ids outside the vocabulary.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let sampling = Sampling { max_tokens: 0, ..Sampling::default() };
        let request = EngineRequest { prompt_logits: true, ..EngineRequest::new(tokens.to_vec(), sampling) };
        end(self.submit(request), |event| match event {
            Event::Done { logits, .. } => Some(logits),
            _ => None,
        })
    }

    /// One vector of length 1 per text: the mean of its tokens' final hidden states.
    ///
    /// # Errors
    /// If a text has no tokens, too many, or ids outside the vocabulary.
    pub fn embed(&self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        let request = |tokens: &Vec<u32>| {
            let sampling = Sampling { max_tokens: 0, ..Sampling::default() };
            self.submit(EngineRequest { embed: true, ..EngineRequest::new(tokens.clone(), sampling) })
        };
        let receivers: Vec<_> = texts.iter().map(request).collect();
        let embedding = |event| match event {
            Event::Done { embedding, .. } => Some(embedding),
            _ => None,
        };
        let one = |(i, receiver)| end(receiver, embedding).with_context(|| format!("text {i}"));
        receivers.into_iter().enumerate().map(one).collect()
    }
}

/// What `take` finds in the last event.
fn end<T>(events: Receiver<Event>, take: impl Fn(Event) -> Option<T>) -> Result<T> {
    for event in events {
        match event {
            Event::Done { .. } => return take(event).context("the last event holds the answer"),
            Event::Error(message) => bail!(message),
            Event::Expired => bail!("the request's deadline has passed"),
            Event::Ping | Event::Prefill { .. } | Event::Token { .. } => {}
        }
    }
    bail!("the engine has stopped")
}
