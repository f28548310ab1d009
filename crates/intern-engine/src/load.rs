//! A model from disk: its weights or a share of them, its tokenizer, and the ranks that share it.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use intern_comm::Comm;
use intern_format::gguf::Gguf;
use intern_kernels::pool::Pool;
use intern_kernels::quant::BlockType;
use intern_tokenizer::Tokenizer;

use crate::engine::{EngineConfig, KvType};
use crate::gguf_model;
use crate::parallel::{Ranks, Share};
use crate::runner::Runner;
use crate::weights::{Weights, load_checkpoint};

/// A model from disk.
pub(crate) struct Loaded {
    pub weights: Weights,
    pub tokenizer: Tokenizer,
    pub name: String,
    pub eos_ids: Vec<u32>,
}

fn open(model: &Path, adapter: Option<&Path>, pool: Option<&Pool>, share: Share) -> Result<Loaded> {
    if model.is_file() {
        ensure!(
            adapter.is_none(),
            "{}: an adapter cannot be merged into a GGUF file\n\
             hint: serve it beside the file, by a name (`--adapter NAME=DIR` of `intern serve api`), or\n\
             `intern tune merge` it into the checkpoint, then quantize",
            model.display()
        );
        let gguf = Arc::new(Gguf::open(model)?);
        let tokenizer = Tokenizer::from_gguf(&gguf).with_context(|| model.display().to_string())?;
        let (weights, facts) = gguf_model::load(&gguf, pool, share)?;
        let name = facts.name.unwrap_or_else(|| file_name(model));
        return Ok(Loaded { weights, tokenizer, name, eos_ids: facts.eos_ids });
    }
    let (weights, facts) = load_checkpoint(model, adapter, pool, share)?;
    let tokenizer = Tokenizer::from_path(model).with_context(|| model.display().to_string())?;
    Ok(Loaded { weights, tokenizer, name: file_name(model), eos_ids: facts.eos_ids })
}

fn file_name(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    path.file_stem().map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned())
}

/// What an engine starts with.
pub(crate) struct Opened {
    pub large: Loaded,
    pub pool: Pool,
    pub draft: Option<(Weights, Pool)>,
}

/// The threads of one rank.
fn pool(config: &EngineConfig) -> Result<Pool> {
    if intern_comm::launched_rank().is_some() {
        return Pool::new(config.threads).context("starting the engine's threads");
    }
    let all = match config.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    Pool::new((all / config.tensor_parallel.max(1)).max(1)).context("starting the engine's threads")
}

/// How the cache keeps keys and values.
pub(crate) fn kv_type(config: &EngineConfig, weights: &Weights) -> KvType {
    config.kv_type.unwrap_or(match weights.embedding.ty {
        BlockType::F32 => KvType::F32,
        _ => KvType::F16,
    })
}

/// The ranks that share the model: processes of an MPI launcher if one started us, else threads.
pub(crate) fn ranks(model: &Path, adapter: Option<&Path>, config: &EngineConfig) -> Result<Ranks> {
    ensure!(
        intern_comm::launched_rank().is_none_or(|rank| rank == 0),
        "this command does not compute on several ranks\n\
         hint: `intern serve api`, `chat` and `bench` do; start others without an MPI launcher"
    );
    if let Some(comm) = intern_comm::world()? {
        return Ok(Ranks::new(comm, Vec::new()));
    }
    let mut comms = intern_comm::threads::group(config.tensor_parallel.max(1));
    let leader = comms.remove(0);
    let threads = comms.into_iter().map(|comm| {
        let (model, adapter, config) = (model.to_owned(), adapter.map(Path::to_owned), config.clone());
        let name = format!("rank-{}", comm.rank());
        std::thread::Builder::new().name(name).spawn(move || {
            // Rank 0 hears the reason and reports it.
            let _ = follow(&model, adapter.as_deref(), &config, comm);
        })
    });
    let threads = threads.collect::<std::io::Result<_>>().context("starting the engine's ranks")?;
    Ok(Ranks::new(leader, threads))
}

/// Our share of the model, and the smaller one.
pub(crate) fn load_share(
    model: &Path,
    adapter: Option<&Path>,
    config: &EngineConfig,
    ranks: &Ranks,
) -> Result<Opened> {
    let pool = pool(config)?;
    let large = open(model, adapter, (!config.f32_products).then_some(&pool), ranks.share())?;
    let Some(path) = &config.draft_model else { return Ok(Opened { large, pool, draft: None }) };
    let pool_2 = Pool::new(config.threads).context("starting the engine's threads")?;
    let small = open(path, None, (!config.f32_products).then_some(&pool_2), Share::WHOLE)
        .context("loading draft_model")?;
    let (a, b) = (&large.tokenizer, &small.tokenizer);
    ensure!(
        a.vocab_size() == b.vocab_size()
            && (0..a.vocab_size() as u32).all(|id| a.token_bytes(id) == b.token_bytes(id))
            && small.weights.config.vocab_size >= large.weights.config.vocab_size,
        "draft_model = {} has another vocabulary than {}\n\
         hint: use a smaller model of the same family",
        path.display(),
        model.display()
    );
    Ok(Opened { large, pool, draft: Some((small.weights, pool_2)) })
}

/// Computes a share of `model` for rank 0, which loads it with the same configuration, until that
/// one drops its engine.
///
/// # Errors
/// If the share cannot be loaded, or rank 0 died.
pub fn follow(model: &Path, adapter: Option<&Path>, config: &EngineConfig, comm: Comm) -> Result<()> {
    let ranks = Ranks::new(comm, Vec::new());
    let pool = pool(config)?;
    let loaded = open(model, adapter, (!config.f32_products).then_some(&pool), ranks.share())
        .inspect_err(|error| ranks.abandon(&format!("{error:#}")))?;
    let kv_type = kv_type(config, &loaded.weights);
    let num_blocks = ranks.agree(0)?;
    Runner::new(ranks, loaded.weights, Vec::new(), pool, num_blocks, config.block_size, kv_type).follow()
}
