//! How large the inputs of every projection are, column by column, on some text: what a
//! quantizer needs to know to put its errors where they matter least.
//!
//! Goes through the model layer by layer with the whole text, so that one layer's weights and
//! the residual streams are all that is in memory, whatever the model's size.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use intern_format::checkpoint::Checkpoint;

use crate::batch::Batch;
use crate::checkpoint::{check_shape, to_tensor};
use crate::config::ModelConfig;
use crate::ops::{self, Geometry};
use crate::rope::rope_tables;
use crate::transformer::Layer;
use crate::weights::{outer_names, tensor_shapes};

/// Sums of squares of the columns of everything seen.
pub(crate) struct ColumnPower {
    sums: Mutex<(Vec<f64>, usize)>,
}

impl ColumnPower {
    fn new() -> Self {
        Self { sums: Mutex::new((Vec::new(), 0)) }
    }

    /// Adds the rows of `x`, `(N, in)`.
    pub fn add(&self, x: &Tensor) -> candle_core::Result<()> {
        let (rows, columns) = x.dims2()?;
        let values: Vec<f32> = x.flatten_all()?.to_vec1()?;
        let mut sums = self.sums.lock().expect("no thread panics while it holds the sums");
        sums.0.resize(columns, 0.0);
        for row in values.chunks_exact(columns) {
            sums.0.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x * x));
        }
        sums.1 += rows;
        Ok(())
    }

    fn mean(&self) -> Vec<f32> {
        let sums = self.sums.lock().expect("no thread panics while it holds the sums");
        sums.0.iter().map(|sum| (sum / sums.1.max(1) as f64) as f32).collect()
    }
}

/// Mean square of each input column of every projection of the checkpoint at `dir`, by module name
/// (as in `model.layers.0.mlp.down_proj`), the output head's included, over `texts` of token ids.
///
/// `layer_done` is called after each layer.
///
/// # Errors
/// If tensors are missing or misshapen, or a token is outside the vocabulary.
pub fn column_powers(
    dir: &Path,
    texts: &[Vec<u32>],
    mut layer_done: impl FnMut(),
) -> Result<BTreeMap<String, Vec<f32>>> {
    let checkpoint = Checkpoint::open(dir)?;
    let config = ModelConfig::from_json(checkpoint.config()).with_context(|| dir.display().to_string())?;
    let shapes = tensor_shapes(&config);
    let load = |prefix: &str| -> Result<HashMap<String, Tensor>> {
        let mine = shapes.iter().filter(|(name, _)| name.starts_with(prefix));
        mine.map(|(name, shape)| {
            let view = checkpoint.tensor(name)?;
            check_shape(dir, name, &view, shape)?;
            Ok((name.clone(), to_tensor(&view, &Device::Cpu)?))
        })
        .collect()
    };

    let outer = outer_names(config.arch);
    let embedding = load(outer.embedding)?;
    let embedding = &embedding[&format!("{}.weight", outer.embedding)];
    let mut streams = Vec::with_capacity(texts.len());
    for text in texts {
        let batch = Batch::from_rows(&[text]);
        batch.validate(config.vocab_size)?;
        let (cos, sin) = rope_tables(&config, text.len());
        let geometry = Arc::new(Geometry { starts: batch.starts(), cos, sin });
        streams.push((ops::embedding(embedding, text)?, batch, geometry));
    }

    let mut powers = BTreeMap::new();
    for i in 0..config.num_layers {
        let tensors = load(&format!("model.layers.{i}."))?;
        let mut layer = Layer::new(&config, i, &|name| tensors.get(name).cloned());
        for linear in layer.linears_mut() {
            linear.power = Some(Box::new(ColumnPower::new()));
        }
        for (x, batch, geometry) in &mut streams {
            *x = layer.forward(x, &config, batch, geometry)?;
        }
        for linear in layer.linears_mut() {
            let power = linear.power.take().expect("given above");
            powers.insert(linear.name.clone(), power.mean());
        }
        checkpoint.release();
        layer_done();
    }

    let norm = load(outer.norm)?;
    let power = ColumnPower::new();
    for (x, ..) in &streams {
        power.add(&ops::rms_norm(x, &norm[&format!("{}.weight", outer.norm)], config.rms_norm_eps)?)?;
    }
    powers.insert(outer.head.to_owned(), power.mean());
    Ok(powers)
}
