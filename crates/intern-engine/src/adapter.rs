//! LoRA adapters (Hu et al., 2021) in PEFT's files: merged into a checkpoint's matrices while it
//! is loaded, or served beside the base.
//!
//! Beside the base, an adapter is a pair of small f32 matrices per adapted one, whatever the
//! base's are stored as: rows whose request names the adapter get `y += B (A x)` with the scale
//! already in `B`. The rows of `B` follow the base's: where a GGUF file cuts `wqkv` apart and
//! reorders heads, so do we.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use intern_format::adapter::{self, Adapter};
use intern_kernels::matmul::{Part, Weight};
use intern_kernels::quant::BlockType;
use intern_model::weights::{QkvNames, layer_names, outer_names};
use intern_model::{Architecture, ModelConfig};
use rayon::prelude::*;

use crate::rope::head_order;
use crate::weights::{HeadOffsets, Stored, Weights, f32_bytes};

/// An adapter's files.
pub(crate) struct AdapterFile {
    path: PathBuf,
    adapter: Adapter,
    used: RefCell<BTreeSet<String>>,
}

/// What an adapter adds to one matrix of `(rows, cols)`: `scale * B A`.
struct Factors {
    r: usize,
    /// (r, cols)
    a: Vec<f32>,
    /// (rows, r)
    b: Vec<f32>,
    scale: f32,
}

impl AdapterFile {
    pub fn open(path: &Path) -> Result<Self> {
        let adapter = adapter::open(path)?;
        let unsupported = [
            (adapter.config.use_dora, "DoRA"),
            (adapter.config.fan_in_fan_out, "fan_in_fan_out"),
            (adapter.config.bias != "none", "trained biases"),
            (adapter.config.modules_to_save.as_ref().is_some_and(|m| !m.is_empty()), "modules_to_save"),
        ];
        if let Some((_, what)) = unsupported.iter().find(|(found, _)| *found) {
            bail!(
                "{}: adapters with {what} are not supported\nhint: merge it with PEFT first",
                path.display()
            );
        }
        if adapter.file.names().next().is_none() {
            bail!("{}: the adapter holds no tensors", path.display());
        }
        Ok(Self { path: path.to_path_buf(), adapter, used: RefCell::default() })
    }

    /// Whether the adapter changes `module`.
    pub fn touches(&self, module: &str) -> bool {
        self.adapter.file.contains(&format!("base_model.model.{module}.lora_A.weight"))
    }

    fn factors(&self, module: &str, rows: usize, cols: usize) -> Result<Option<Factors>> {
        if !self.touches(module) {
            return Ok(None);
        }
        let name = |which: &str| format!("base_model.model.{module}.{which}.weight");
        let (name_a, name_b) = (name("lora_A"), name("lora_B"));
        let (a, b) = (self.adapter.file.tensor(&name_a)?, self.adapter.file.tensor(&name_b)?);
        let r = self.adapter.config.r;
        for (name, found, expected) in [(&name_a, &a.shape, [r, cols]), (&name_b, &b.shape, [rows, r])] {
            ensure!(
                *found == expected,
                "{}: tensor {name} has shape {found:?}, expected {expected:?}\n\
                 hint: does the adapter belong to this base model?",
                self.path.display()
            );
        }
        let scale = self.adapter.config.scale() as f32;
        let factors = Factors { r, a: a.to_f32(), b: b.to_f32(), scale };
        self.used.borrow_mut().extend([name_a, name_b]);
        Ok(Some(factors))
    }

    /// `scale * B A` for `module`, `(rows, cols)`, if the adapter has it.
    pub fn delta(&self, module: &str, rows: usize, cols: usize) -> Result<Option<Vec<f32>>> {
        let Some(Factors { r, a, b, scale }) = self.factors(module, rows, cols)? else { return Ok(None) };
        let mut delta = vec![0.0f32; rows * cols];
        delta.par_chunks_exact_mut(cols).zip(b.par_chunks_exact(r)).for_each(|(row, b)| {
            for (&b, a) in b.iter().zip(a.chunks_exact(cols)) {
                row.iter_mut().zip(a).for_each(|(d, a)| *d += b * a);
            }
            row.iter_mut().for_each(|d| *d *= scale);
        });
        Ok(Some(delta))
    }

    /// A tensor nobody asked for means the adapter is for another model.
    pub fn check_all_used(&self) -> Result<()> {
        let used = self.used.borrow();
        if let Some(name) = self.adapter.file.names().find(|n| !used.contains(*n)) {
            bail!(
                "{}: tensor {name} fits no projection of the base model\n\
                 hint: does the adapter belong to this base model?",
                self.path.display()
            );
        }
        Ok(())
    }
}

/// `B A` for some of the columns of one output row.
pub(crate) struct LowRank {
    /// (r, K)
    a: Stored,
    /// (N, r)
    b: Stored,
    /// Where its N columns start.
    pub column: usize,
}

impl LowRank {
    pub fn a(&self, column: usize) -> Part<'_> {
        Part { weight: Weight::Stored(self.a.view()), column }
    }

    pub fn b(&self) -> Part<'_> {
        Part { weight: Weight::Stored(self.b.view()), column: 0 }
    }

    /// r.
    pub fn rank(&self) -> usize {
        self.a.rows
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.b.rows
    }

    fn nbytes(&self) -> usize {
        self.a.data.len() + self.b.data.len()
    }
}

/// What an adapter adds to the products of one layer.
#[derive(Default)]
pub(crate) struct LayerLora {
    pub qkv: Vec<LowRank>,
    pub o: Vec<LowRank>,
    /// Gate, then up, in one row.
    pub gate_up: Vec<LowRank>,
    pub down: Vec<LowRank>,
}

/// An adapter beside its base.
pub(crate) struct Lora {
    pub layers: Vec<LayerLora>,
    pub head: Vec<LowRank>,
}

impl Lora {
    /// Reads the adapter in directory `path` for the model `weights`.
    pub fn load(path: &Path, weights: &Weights) -> Result<Self> {
        let file = AdapterFile::open(path)?;
        let config = &weights.config;
        let is_fused = weights.layers.first().is_some_and(|layer| layer.qkv.len() == 1);
        // A file in GGUF does not tell how the checkpoint it was made from called its modules.
        let mut families = vec![config.arch];
        if !is_fused {
            families.extend([Architecture::InternLm2, Architecture::Llama]);
        }
        let is_of = |arch: &Architecture| {
            (0..config.num_layers).any(|i| {
                let names = layer_names(*arch, i);
                let qkv = match &names.qkv {
                    QkvNames::Fused(name) => vec![name.clone()],
                    QkvNames::Separate(names) => names.to_vec(),
                };
                qkv.iter().chain([&names.o, &names.gate, &names.up, &names.down]).any(|m| file.touches(m))
            })
        };
        let arch = families.into_iter().find(is_of).unwrap_or(config.arch);
        let reader = Reader { file: &file, config, arch, is_fused, interleaved: weights.interleaved };
        let layers = (0..config.num_layers).map(|i| reader.layer(i)).collect::<Result<_>>()?;
        let head = reader.module(outer_names(arch).head, config.vocab_size, config.hidden_size, 0, None)?;
        file.check_all_used()?;
        Ok(Self { layers, head: head.into_iter().collect() })
    }

    /// Bytes of its matrices.
    pub fn nbytes(&self) -> usize {
        let of_layer = |l: &LayerLora| {
            l.qkv.iter().chain(&l.o).chain(&l.gate_up).chain(&l.down).map(LowRank::nbytes).sum::<usize>()
        };
        self.layers.iter().map(of_layer).chain(self.head.iter().map(LowRank::nbytes)).sum()
    }
}

struct Reader<'a> {
    file: &'a AdapterFile,
    config: &'a ModelConfig,
    /// The family whose names the adapter uses.
    arch: Architecture,
    /// The base keeps queries, keys and values in one matrix, grouped.
    is_fused: bool,
    /// The base's query and key rows are reordered for rotary pairs `(2i, 2i + 1)`.
    interleaved: bool,
}

impl Reader<'_> {
    fn layer(&self, i: usize) -> Result<LayerLora> {
        let names = layer_names(self.arch, i);
        let (c, f, d) = (self.config.hidden_size, self.config.intermediate_size, self.config.head_dim);
        let (q, kv) = (self.config.num_heads * d, self.config.num_kv_heads * d);
        let mut layer = LayerLora::default();
        match &names.qkv {
            QkvNames::Fused(name) => {
                let order =
                    (!self.is_fused).then(|| self.qkv_order(&HeadOffsets::grouped(self.config)).concat());
                layer.qkv.extend(self.module(name, q + 2 * kv, c, 0, order)?);
            }
            QkvNames::Separate(names) => {
                let from_zero = |heads: usize| (0..heads).map(|h| h * d).collect::<Vec<_>>();
                let (q_heads, kv_heads) = (self.config.num_heads, self.config.num_kv_heads);
                let own =
                    HeadOffsets { q: from_zero(q_heads), k: from_zero(kv_heads), v: from_zero(kv_heads) };
                let orders = self.qkv_order(&own);
                for ((name, order), (rows, column)) in
                    names.iter().zip(orders).zip([(q, 0), (kv, q), (kv, q + kv)])
                {
                    layer.qkv.extend(self.module(name, rows, c, column, Some(order))?);
                }
            }
        }
        layer.o.extend(self.module(&names.o, c, q, 0, None)?);
        layer.gate_up.extend(self.module(&names.gate, f, c, 0, None)?);
        layer.gate_up.extend(self.module(&names.up, f, c, f, None)?);
        layer.down.extend(self.module(&names.down, c, f, 0, None)?);
        Ok(layer)
    }

    /// The adapter's rows, at these heads, in the order of the base's queries, keys and values.
    fn qkv_order(&self, heads: &HeadOffsets) -> [Vec<usize>; 3] {
        let d = self.config.head_dim;
        [
            head_order(&heads.q, d, self.interleaved),
            head_order(&heads.k, d, self.interleaved),
            head_order(&heads.v, d, false),
        ]
    }

    /// The adapter's part for `module`; row `i` of its `B` becomes row `order[i]` of the file's.
    fn module(
        &self,
        module: &str,
        rows: usize,
        cols: usize,
        column: usize,
        order: Option<Vec<usize>>,
    ) -> Result<Option<LowRank>> {
        let Some(Factors { r, a, b, scale }) = self.file.factors(module, rows, cols)? else {
            return Ok(None);
        };
        let row = |i: usize| order.as_ref().map_or(i, |order| order[i]);
        let scaled = (0..rows).flat_map(|i| b[row(i) * r..(row(i) + 1) * r].iter().map(|x| scale * x));
        let b = f32_bytes(&scaled.collect::<Vec<f32>>());
        Ok(Some(LowRank {
            a: Stored { ty: BlockType::F32, rows: r, cols, data: f32_bytes(&a) },
            b: Stored { ty: BlockType::F32, rows, cols: r, data: b },
            column,
        }))
    }
}
