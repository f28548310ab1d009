//! The part of a model that one rank of a parallel run holds: some layers, and of these a slice.
//!
//! With `T` tensor ranks each has `1/T` of the heads and of the feed-forward width (Megatron's
//! cut; Shoeybi et al., 2019): rows of the projections into attention and of gate and up, columns
//! of those back to the residual stream. Embedding, norms and head are not cut.

use std::ops::Range;
use std::path::Path;

use anyhow::{Result, ensure};
use candle_core::{Device, Var};
use intern_format::checkpoint::Checkpoint;

use crate::checkpoint::check_shape;
use crate::config::ModelConfig;
use crate::transformer::Transformer;
use crate::weights::{layer_names, outer_names, tensor_shapes};

/// Consecutive layers that a rank works through at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// Numbers of the layers in the whole model.
    pub layers: Range<usize>,
    /// The embedding comes before them.
    pub first: bool,
    /// Final norm and head come after them.
    pub last: bool,
}

/// What a rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its stages; several where the pipeline is interleaved.
    pub stages: Vec<Stage>,
    /// Its place in the tensor group.
    pub tensor_rank: usize,
    /// Ranks of the tensor group.
    pub tensor: usize,
}

/// A tensor of the model, and which of it the rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its name in checkpoints.
    pub name: String,
    /// Of the whole tensor.
    pub shape: Vec<usize>,
    /// The dimension that is cut, and the range held; `None` if all of it is.
    pub cut: Option<(usize, Range<usize>)>,
}

impl Piece {
    /// Shape of what is held.
    #[must_use]
    pub fn held_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if let Some((dim, range)) = &self.cut {
            shape[*dim] = range.len();
        }
        shape
    }

    /// What is held of the whole tensor's elements.
    #[must_use]
    pub fn take(&self, whole: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.held_shape().iter().product());
        self.runs(|run| out.extend_from_slice(&whole[run]));
        out
    }

    /// Puts what is held in its place in the whole tensor.
    pub fn put(&self, held: &[f32], whole: &mut [f32]) {
        let mut rest = held;
        self.runs(|run| {
            let (now, later) = rest.split_at(run.len());
            whole[run].copy_from_slice(now);
            rest = later;
        });
    }

    /// The consecutive elements of the whole tensor that are held.
    fn runs(&self, mut each: impl FnMut(Range<usize>)) {
        let Some((dim, range)) = &self.cut else { return each(0..self.shape.iter().product()) };
        let inner: usize = self.shape[dim + 1..].iter().product();
        let row = self.shape[*dim] * inner;
        for outer in 0..self.shape[..*dim].iter().product() {
            each(outer * row + range.start * inner..outer * row + range.end * inner);
        }
    }
}

impl Part {
    /// All of a model with these layers.
    #[must_use]
    pub fn whole(num_layers: usize) -> Self {
        Self::of_pipeline(num_layers, 0, 1, 1, 0, 1)
    }

    /// Rank `rank` of `ranks` of a pipeline with `chunks` stages each: stage `i` is rank
    /// `i % ranks`'s. Layers are shared out evenly.
    #[must_use]
    pub fn of_pipeline(
        num_layers: usize,
        rank: usize,
        ranks: usize,
        chunks: usize,
        tensor_rank: usize,
        tensor: usize,
    ) -> Self {
        let cuts = intern_comm::even_cuts(num_layers, ranks * chunks, 1);
        let stage = |chunk: usize| {
            let i = chunk * ranks + rank;
            Stage { layers: cuts[i]..cuts[i + 1], first: i == 0, last: i + 1 == ranks * chunks }
        };
        Self { stages: (0..chunks).map(stage).collect(), tensor_rank, tensor }
    }

    /// Whether it is all of the model.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.tensor == 1 && self.stages.len() == 1 && self.stages[0].first && self.stages[0].last
    }

    /// Checks that `config` can be cut so.
    ///
    /// # Errors
    /// Naming what does not divide.
    pub fn check(&self, config: &ModelConfig) -> Result<()> {
        let t = self.tensor;
        for (name, n) in [
            ("key/value heads", config.num_kv_heads),
            ("query heads", config.num_heads),
            ("feed-forward columns", config.intermediate_size),
        ] {
            ensure!(
                n.is_multiple_of(t),
                "parallel.tensor is {t}, which does not divide the model's {n} {name}\nhint: lower it"
            );
        }
        ensure!(
            t == 1 || !(config.output_bias || config.mlp_bias),
            "parallel.tensor is {t}, but the projections of this model have biases that cannot be cut\n\
             hint: use parallel.pipeline or parallel.data"
        );
        ensure!(
            self.stages.iter().all(|s| !s.layers.is_empty()),
            "the pipeline has more stages than the model's {} layers\nhint: lower parallel.pipeline or \
             parallel.interleave",
            config.num_layers
        );
        ensure!(
            !config.tie_word_embeddings || self.stages.iter().all(|s| s.first == s.last),
            "the output head is the embedding (model.tie_word_embeddings), but a pipeline puts them on \
             different ranks\nhint: leave the head untied, or use parallel.tensor or parallel.data"
        );
        Ok(())
    }

    /// The tensors it holds, in the order of [`tensor_shapes`].
    #[must_use]
    pub fn pieces(&self, config: &ModelConfig) -> Vec<Piece> {
        let outer = outer_names(config.arch);
        let is_of = |name: &str, module: &str| name.rsplit_once('.').is_some_and(|(m, _)| m == module);
        let held = |name: &str| {
            if is_of(name, outer.embedding) {
                return self.stages.iter().any(|s| s.first);
            }
            if is_of(name, outer.norm) || is_of(name, outer.head) {
                return self.stages.iter().any(|s| s.last);
            }
            let layer = name.strip_prefix("model.layers.").and_then(|n| n.split('.').next()?.parse().ok());
            layer.is_some_and(|layer: usize| self.stages.iter().any(|s| s.layers.contains(&layer)))
        };
        let shapes = tensor_shapes(config).into_iter().filter(|(name, _)| held(name));
        shapes.map(|(name, shape)| Piece { cut: self.cut(config, &name, &shape), name, shape }).collect()
    }

    /// What it holds of the tensor `name`, if anything.
    #[must_use]
    pub fn piece(&self, config: &ModelConfig, name: &str) -> Option<Piece> {
        self.pieces(config).into_iter().find(|piece| piece.name == name)
    }

    fn cut(&self, config: &ModelConfig, name: &str, shape: &[usize]) -> Option<(usize, Range<usize>)> {
        if self.tensor == 1 {
            return None;
        }
        let layer = name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()?;
        let names = layer_names(config.arch, layer);
        let (module, _) = name.rsplit_once('.')?;
        let columns = [&names.o, &names.down].contains(&&module.to_owned());
        let norms = [Some(&names.attention_norm), Some(&names.ffn_norm)]
            .into_iter()
            .chain([names.qk_norm.as_ref().map(|n| &n.0), names.qk_norm.as_ref().map(|n| &n.1)]);
        if norms.flatten().any(|norm| norm == module) {
            return None;
        }
        let dim = usize::from(columns);
        let share = shape[dim] / self.tensor;
        Some((dim, self.tensor_rank * share..(self.tensor_rank + 1) * share))
    }

    /// The constants of the layers as this rank computes them: its heads and columns.
    fn held_config(&self, config: &ModelConfig) -> ModelConfig {
        ModelConfig {
            num_heads: config.num_heads / self.tensor,
            num_kv_heads: config.num_kv_heads / self.tensor,
            intermediate_size: config.intermediate_size / self.tensor,
            ..config.clone()
        }
    }
}

impl Transformer {
    /// The part of [`Transformer::init`]'s model that a rank holds; nothing else is made.
    ///
    /// # Errors
    /// If the model cannot be cut so.
    pub fn init_part(
        config: &ModelConfig,
        seed: u64,
        width: f64,
        part: &Part,
        device: &Device,
    ) -> Result<Self> {
        config.validate()?;
        part.check(config)?;
        let vars = part
            .pieces(config)
            .into_iter()
            .map(|piece| {
                let whole = crate::init::tensor(config, seed, width, &piece.name, &piece.shape);
                let held = if piece.cut.is_some() { piece.take(&whole) } else { whole };
                Ok((piece.name.clone(), Var::from_vec(held, piece.held_shape(), device)?))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self::assemble_part(part.held_config(config), part, vars))
    }

    /// The part of a checkpoint that a rank holds, in f32; nothing else is kept.
    ///
    /// # Errors
    /// If the checkpoint cannot be read or the model cannot be cut so.
    pub fn load_part(dir: &Path, part: &Part, device: &Device) -> Result<Self> {
        let checkpoint = Checkpoint::open(dir)?;
        let config = ModelConfig::from_json(checkpoint.config())?;
        part.check(&config)?;
        let vars = part
            .pieces(&config)
            .into_iter()
            .map(|piece| {
                let view = checkpoint.tensor(&piece.name)?;
                check_shape(dir, &piece.name, &view, &piece.shape)?;
                let held = piece.take(&view.to_f32());
                Ok((piece.name.clone(), Var::from_vec(held, piece.held_shape(), device)?))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self::assemble_part(part.held_config(&config), part, vars))
    }

    /// A model with these weights, given by name, in the order of [`tensor_shapes`].
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn from_values(
        config: &ModelConfig,
        mut values: impl FnMut(&str) -> Result<Vec<f32>>,
        device: &Device,
    ) -> Result<Self> {
        let vars = tensor_shapes(config)
            .into_iter()
            .map(|(name, shape)| {
                let var = Var::from_vec(values(&name)?, shape, device)?;
                Ok((name, var))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self::assemble_part(config.clone(), &Part::whole(config.num_layers), vars))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Architecture;

    #[test]
    fn the_parts_of_a_model_make_up_the_whole() {
        for arch in [Architecture::InternLm2, Architecture::Qwen3] {
            let config = ModelConfig::small(arch, 64, 32, 5, 4, 2);
            let whole = Transformer::init(&config, 7, &Device::Cpu).unwrap().named_vars();
            for (pipeline, chunks, tensor) in [(1, 1, 1), (2, 1, 1), (2, 2, 1), (1, 1, 2), (2, 1, 2)] {
                let mut seen: Vec<Vec<f32>> =
                    whole.iter().map(|(_, v)| vec![f32::NAN; v.elem_count()]).collect();
                for (p, t) in (0..pipeline).flat_map(|p| (0..tensor).map(move |t| (p, t))) {
                    let part = Part::of_pipeline(5, p, pipeline, chunks, t, tensor);
                    let model = Transformer::init_part(&config, 7, 1.0, &part, &Device::Cpu).unwrap();
                    assert_eq!(part.is_whole(), pipeline * tensor == 1);
                    for (piece, (name, var)) in part.pieces(&config).iter().zip(model.named_vars()) {
                        assert_eq!((&piece.name, piece.held_shape()), (&name, var.dims().to_vec()));
                        let at = whole.iter().position(|(n, _)| *n == name).unwrap();
                        piece.put(&var.flatten_all().unwrap().to_vec1().unwrap(), &mut seen[at]);
                    }
                }
                for ((name, var), seen) in whole.iter().zip(&seen) {
                    assert_eq!(&var.flatten_all().unwrap().to_vec1::<f32>().unwrap(), seen, "{name}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_cut_is_refused() {
        let config = ModelConfig::small(Architecture::Llama, 64, 32, 2, 4, 2);
        let error = |config: &ModelConfig, part: Part| part.check(config).unwrap_err().to_string();
        let cut = Part::of_pipeline(2, 0, 1, 1, 0, 4);
        assert!(error(&config, cut).contains("does not divide the model's 2 key/value heads"));
        assert!(error(&config, Part::of_pipeline(2, 0, 3, 1, 0, 1)).contains("more stages"));
        let tied = ModelConfig { tie_word_embeddings: true, ..config };
        assert!(error(&tied, Part::of_pipeline(2, 0, 2, 1, 0, 1)).contains("untied"));
    }
}
