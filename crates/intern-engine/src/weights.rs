//! The weights of a decoder as the runner wants them: quantized matrices packed for the integer
//! kernels, others in their stored form, borrowed from mapped files where possible; vectors as
//! f32; and where each head lies in a row of queries, keys and values.
//!
//! [`load`] takes a checkpoint directory (an adapter is merged on the way, touched matrices
//! become f32) or a GGUF file. InternLM2's fused `wqkv` is used as it is: its head order is
//! a table of offsets, not a copy.

use std::any::Any;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use intern_format::checkpoint::{Checkpoint, DType};
use intern_kernels::matmul::{MatrixRef, Part, Weight};
use intern_kernels::packed::Packed;
use intern_kernels::pool::Pool;
use intern_kernels::quant::BlockType;
use intern_model::ModelConfig;
use intern_model::weights::{QkvNames, layer_names, outer_names};

use crate::adapter::AdapterFile;
use crate::packed4::Packed4;
use crate::parallel::Share;

/// Bytes that stay where they are: their own, or part of something mapped.
pub(crate) struct Bytes {
    data: *const [u8],
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the bytes are read-only, and the owner that keeps them may cross threads.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    /// Takes ownership.
    pub fn owned(data: Vec<u8>) -> Self {
        let owner = Arc::new(data);
        let data: *const [u8] = owner.as_slice();
        Self { data, _owner: owner }
    }

    /// Keeps `owner` alive for the part of it that `part` returns.
    pub fn part_of<T: Send + Sync + 'static>(owner: &Arc<T>, part: impl FnOnce(&T) -> &[u8]) -> Self {
        let data: *const [u8] = part(owner);
        Self { data, _owner: owner.clone() }
    }

    /// A part of it, kept alive by the same owner.
    fn slice(&self, range: Range<usize>) -> Self {
        let data: *const [u8] = &self[range];
        Self { data, _owner: self._owner.clone() }
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the slice was borrowed from the owner, which lives behind an Arc we hold and
        // is never changed, so neither it nor the heap or map it points to moves.
        unsafe { &*self.data }
    }
}

/// A matrix as its file stores it.
pub(crate) struct Stored {
    pub ty: BlockType,
    pub rows: usize,
    pub cols: usize,
    pub data: Bytes,
}

impl Stored {
    pub fn view(&self) -> MatrixRef<'_> {
        MatrixRef::new(self.ty, self.rows, self.cols, &self.data)
    }

    /// The rows of a share.
    pub fn part(&self, share: Share) -> Self {
        let (rows, bytes) = (share.range(self.rows), self.ty.row_bytes(self.cols));
        let data = self.data.slice(rows.start * bytes..rows.end * bytes);
        Self { rows: rows.len(), data, ..*self }
    }
}

/// A matrix to multiply with.
pub(crate) enum Matrix {
    Stored(Stored),
    Packed(Packed),
}

impl Matrix {
    /// Packs what has an integer kernel, on `pool` if there is one; keeps the rest.
    pub fn new(pool: Option<&Pool>, stored: Stored) -> Self {
        match pool.and_then(|pool| Packed::new(pool, stored.view())) {
            Some(packed) => Self::Packed(packed),
            None => Self::Stored(stored),
        }
    }

    /// For `matmul`, writing from `column` on.
    pub fn part(&self, column: usize) -> Part<'_> {
        let weight = match self {
            Self::Stored(stored) => Weight::Stored(stored.view()),
            Self::Packed(packed) => Weight::Packed(packed),
        };
        Part { weight, column }
    }

    fn nbytes(&self) -> usize {
        match self {
            Self::Stored(stored) => stored.data.len(),
            Self::Packed(packed) => packed.nbytes(),
        }
    }
}

/// One decoder layer.
pub(crate) struct Layer {
    pub attention_norm: Vec<f32>,
    /// Matrices with the column of a `qkv` row at which their output starts.
    pub qkv: Vec<(Matrix, usize)>,
    /// In `qkv` row order; empty for none. So are all biases.
    pub qkv_bias: Vec<f32>,
    /// Norms over query and key heads.
    pub qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    pub o: Matrix,
    pub o_bias: Vec<f32>,
    pub ffn_norm: Vec<f32>,
    pub gate: Matrix,
    pub gate_bias: Vec<f32>,
    pub up: Matrix,
    pub up_bias: Vec<f32>,
    pub down: Matrix,
    pub down_bias: Vec<f32>,
}

/// Where heads start in a `qkv` row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeadOffsets {
    pub q: Vec<usize>,
    pub k: Vec<usize>,
    pub v: Vec<usize>,
}

impl HeadOffsets {
    /// All queries, then all keys, then all values.
    pub fn separate(config: &ModelConfig) -> Self {
        let (h, g, d) = (config.num_heads, config.num_kv_heads, config.head_dim);
        let run = |start: usize, n: usize| (start..start + n).map(|i| i * d).collect();
        Self { q: run(0, h), k: run(h, g), v: run(h + g, g) }
    }

    /// Per key/value head: its queries, its key, its value.
    pub fn grouped(config: &ModelConfig) -> Self {
        let (h, g, d) = (config.num_heads, config.num_kv_heads, config.head_dim);
        let per = h / g;
        let at = |group: usize, slot: usize| (group * (per + 2) + slot) * d;
        Self {
            q: (0..h).map(|i| at(i / per, i % per)).collect(),
            k: (0..g).map(|i| at(i, per)).collect(),
            v: (0..g).map(|i| at(i, per + 1)).collect(),
        }
    }
}

/// A model, or the share of it that one rank holds.
pub(crate) struct Weights {
    /// With the heads and the feed-forward width of the share.
    pub config: ModelConfig,
    /// The model's own.
    pub whole: ModelConfig,
    pub share: Share,
    pub embedding: Stored,
    pub layers: Vec<Layer>,
    pub norm: Vec<f32>,
    /// `None` when the embedding serves as head as it is.
    pub head: Option<Matrix>,
    pub heads: HeadOffsets,
    /// RoPE pairs `(2i, 2i + 1)` instead of `(i, i + D/2)`.
    pub interleaved: bool,
    /// Divides each rotary frequency (GGUF's `rope_freqs`); empty for none.
    pub rope_factors: Vec<f32>,
}

impl Weights {
    pub fn head(&self) -> Part<'_> {
        if let Some(head) = &self.head {
            return head.part(0);
        }
        let (Stored { ty, rows, cols, data }, bytes) =
            (&self.embedding, self.embedding.ty.row_bytes(self.embedding.cols));
        let ours = self.share.range(*rows);
        let view = MatrixRef::new(*ty, ours.len(), *cols, &data[ours.start * bytes..ours.end * bytes]);
        Part { weight: Weight::Stored(view), column: 0 }
    }

    /// Elements of a `qkv` row.
    pub fn qkv_len(&self) -> usize {
        (self.config.num_heads + 2 * self.config.num_kv_heads) * self.config.head_dim
    }

    /// Bytes of all matrices.
    pub fn nbytes(&self) -> usize {
        let of_layer = |l: &Layer| {
            let qkv: usize = l.qkv.iter().map(|(m, _)| m.nbytes()).sum();
            qkv + l.o.nbytes() + l.gate.nbytes() + l.up.nbytes() + l.down.nbytes()
        };
        let outer = self.embedding.data.len() + self.head.as_ref().map_or(0, Matrix::nbytes);
        outer + self.layers.iter().map(of_layer).sum::<usize>()
    }
}

/// What [`load_checkpoint`] reads besides weights.
pub(crate) struct CheckpointFacts {
    /// Tokens that end a generation.
    pub eos_ids: Vec<u32>,
}

/// Loads a share of a Hugging Face directory, with a LoRA adapter merged into the matrices it touches.
pub(crate) fn load_checkpoint(
    dir: &Path,
    adapter: Option<&Path>,
    pool: Option<&Pool>,
    share: Share,
) -> Result<(Weights, CheckpointFacts)> {
    let checkpoint = Arc::new(Checkpoint::open(dir)?);
    let whole = ModelConfig::from_json(checkpoint.config()).with_context(|| dir.display().to_string())?;
    let config = share.config(&whole)?;
    let adapter = match adapter {
        Some(path) => Some(AdapterFile::open(path)?),
        None => None,
    };
    let source = Source { dir, pool, share, checkpoint: &checkpoint, adapter };

    let (hidden, inner) = (whole.hidden_size, whole.intermediate_size);
    let (q, kv) = (whole.num_heads * whole.head_dim, whole.num_kv_heads * whole.head_dim);
    let outer = outer_names(config.arch);
    let mut layers = Vec::with_capacity(config.num_layers);
    for i in 0..config.num_layers {
        let names = layer_names(config.arch, i);
        let mut qkv_bias = Vec::new();
        let mut qkv = Vec::new();
        let mut column = 0;
        let parts: Vec<(&str, usize)> = match &names.qkv {
            QkvNames::Fused(name) => vec![(name, q + 2 * kv)],
            QkvNames::Separate([a, b, c]) => vec![(a, q), (b, kv), (c, kv)],
        };
        for (name, rows) in parts {
            qkv.push((source.matrix(name, rows, hidden)?, column));
            qkv_bias.extend(share.of(source.bias(name, rows, config.attention_bias)?));
            column += share.range(rows).len();
        }
        let qk_norm = match &names.qk_norm {
            Some((q, k)) => Some((source.vector(q, config.head_dim)?, source.vector(k, config.head_dim)?)),
            None => None,
        };
        layers.push(Layer {
            attention_norm: source.vector(&names.attention_norm, hidden)?,
            qkv,
            qkv_bias,
            qk_norm,
            o: source.matrix(&names.o, hidden, q)?,
            o_bias: source.bias(&names.o, hidden, config.output_bias)?,
            ffn_norm: source.vector(&names.ffn_norm, hidden)?,
            gate: source.matrix(&names.gate, inner, hidden)?,
            gate_bias: share.of(source.bias(&names.gate, inner, config.mlp_bias)?),
            up: source.matrix(&names.up, inner, hidden)?,
            up_bias: share.of(source.bias(&names.up, inner, config.mlp_bias)?),
            down: source.matrix(&names.down, hidden, inner)?,
            down_bias: source.bias(&names.down, hidden, config.mlp_bias)?,
        });
    }
    let weights = Weights {
        embedding: source.stored(outer.embedding, config.vocab_size, hidden)?,
        norm: source.vector(outer.norm, hidden)?,
        head: match config.tie_word_embeddings {
            true => None,
            false => Some(source.matrix(outer.head, config.vocab_size, hidden)?),
        },
        heads: if config.has_fused_qkv() {
            HeadOffsets::grouped(&config)
        } else {
            HeadOffsets::separate(&config)
        },
        interleaved: false,
        rope_factors: Vec::new(),
        layers,
        config,
        whole,
        share,
    };
    if let Some(merge) = &source.adapter {
        merge.check_all_used()?;
    }
    let eos_ids = checkpoint_eos_ids(&checkpoint, &weights.config);
    Ok((weights, CheckpointFacts { eos_ids }))
}

/// `eos_token_id` of `generation_config.json`, else of `config.json`.
pub(crate) fn checkpoint_eos_ids(checkpoint: &Checkpoint, config: &ModelConfig) -> Vec<u32> {
    match token_ids(checkpoint.generation_config().get("eos_token_id")) {
        ids if ids.is_empty() => config.eos_token_ids.clone(),
        ids => ids,
    }
}

/// One id or a list of them.
fn token_ids(value: Option<&serde_json::Value>) -> Vec<u32> {
    let id = |v: &serde_json::Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(serde_json::Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// Where the tensors of a checkpoint come from.
struct Source<'a> {
    dir: &'a Path,
    pool: Option<&'a Pool>,
    share: Share,
    checkpoint: &'a Arc<Checkpoint>,
    adapter: Option<AdapterFile>,
}

impl Source<'_> {
    fn check(&self, name: &str, found: &[usize], expected: &[usize]) -> Result<()> {
        ensure!(
            found == expected,
            "{}: tensor {name} has shape {found:?}, expected {expected:?}\n\
             hint: config.json and the weights do not belong together",
            self.dir.display()
        );
        Ok(())
    }

    fn matrix(&self, module: &str, rows: usize, cols: usize) -> Result<Matrix> {
        if Packed4::is_there(self.checkpoint, module) {
            ensure!(
                self.adapter.as_ref().is_none_or(|a| !a.touches(module)),
                "{}: an adapter cannot be merged into the quantized matrix {module}\n\
                 hint: merge it into the checkpoint it was trained on, then quantize that",
                self.dir.display()
            );
            let (ty, data) = Packed4::read(self.checkpoint, module, rows, cols)?.to_blocks();
            let stored = Stored { ty, rows, cols, data: Bytes::owned(data) };
            return Ok(Matrix::new(self.pool, stored.part(self.share)));
        }
        Ok(Matrix::Stored(self.stored(module, rows, cols)?.part(self.share)))
    }

    fn stored(&self, module: &str, rows: usize, cols: usize) -> Result<Stored> {
        let name = format!("{module}.weight");
        let view = self.checkpoint.tensor(&name)?;
        self.check(&name, &view.shape, &[rows, cols])?;
        if let Some(delta) = self.adapter.as_ref().map(|a| a.delta(module, rows, cols)).transpose()?.flatten()
        {
            let mut merged = view.to_f32();
            merged.iter_mut().zip(&delta).for_each(|(w, d)| *w += d);
            return Ok(Stored { ty: BlockType::F32, rows, cols, data: f32_bytes(&merged) });
        }
        let ty = match view.dtype {
            DType::F32 => BlockType::F32,
            DType::F16 => BlockType::F16,
            DType::BF16 => BlockType::BF16,
            // Rare types are widened once.
            _ => return Ok(Stored { ty: BlockType::F32, rows, cols, data: f32_bytes(&view.to_f32()) }),
        };
        let data = Bytes::part_of(self.checkpoint, |c| c.tensor(&name).expect("it was there above").data);
        Ok(Stored { ty, rows, cols, data })
    }

    fn vector(&self, module: &str, len: usize) -> Result<Vec<f32>> {
        self.named_vector(&format!("{module}.weight"), len)
    }

    fn bias(&self, module: &str, len: usize, wanted: bool) -> Result<Vec<f32>> {
        if wanted { self.named_vector(&format!("{module}.bias"), len) } else { Ok(Vec::new()) }
    }

    fn named_vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let view = self.checkpoint.tensor(name)?;
        self.check(name, &view.shape, &[len])?;
        Ok(view.to_f32())
    }
}

pub(crate) fn f32_bytes(values: &[f32]) -> Bytes {
    Bytes::owned(bytemuck::cast_slice(values).to_vec())
}
