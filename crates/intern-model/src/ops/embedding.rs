//! Rows of the embedding table by token id.

use super::{floats, gradient, stored};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use intern_kernels::train::embedding;

/// `(N, C)`: row `ids[n]` of `table` `(V, C)` for each token.
pub(crate) fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    table.apply_op1(Embedding { ids: ids.to_vec() })
}

struct Embedding {
    ids: Vec<u32>,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (vocab, c) = layout.shape().dims2()?;
        if let Some(id) = self.ids.iter().find(|id| **id as usize >= vocab) {
            bail!("embedding: token id {id}, expected below {vocab}")
        }
        let table = floats(table, layout)?;
        let mut y = vec![0.0; self.ids.len() * c];
        embedding::forward(&table, &self.ids, c, &mut y);
        Ok((CpuStorage::F32(y), Shape::from((self.ids.len(), c))))
    }

    fn bwd(&self, table: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        if !table.track_op() {
            return Ok(None);
        }
        let (storage, layout) = dy.storage_and_layout();
        let (vocab, c) = table.dims2()?;
        let mut dtable = vec![0.0; vocab * c];
        embedding::backward(&self.ids, c, &stored(&storage, layout)?, &mut dtable);
        Ok(Some(gradient(dtable, table)?))
    }
}
