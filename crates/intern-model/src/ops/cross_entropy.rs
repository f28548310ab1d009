//! Summed cross-entropy fused with the output head.

use super::{floats, gradient};
use crate::batch::Batch;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use intern_kernels::train::cross_entropy::{self, Gradients, Want};
use std::sync::Mutex;

/// Sum of the cross-entropy over the batch's mask: `x` is `(N, C)`, `w` `(V, C)`.
///
/// Gradients of whatever is tracked are computed along with the loss; the backward pass scales them.
pub(crate) fn linear_cross_entropy(x: &Tensor, w: &Tensor, batch: &Batch) -> Result<Tensor> {
    let want = match (x.track_op(), w.track_op()) {
        (false, false) => Want::Loss,
        (true, false) => Want::Input,
        (_, true) => Want::InputAndWeight,
    };
    let (targets, mask) = (batch.targets.clone(), batch.mask.clone());
    x.apply_op2(w, CrossEntropy { targets, mask, want, gradients: Mutex::new(None) })
}

struct CrossEntropy {
    targets: Vec<u32>,
    mask: Vec<bool>,
    want: Want,
    /// Of the summed loss, from the forward pass; the backward pass takes them.
    gradients: Mutex<Option<Gradients>>,
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "linear cross-entropy"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, c), (vocab, c_w)) = (lx.shape().dims2()?, lw.shape().dims2()?);
        if c != c_w || n != self.targets.len() || n != self.mask.len() {
            bail!("cross-entropy: {n} rows of {c}, {} targets, head of {c_w} columns", self.targets.len())
        }
        let mut counted = self.targets.iter().zip(&self.mask).filter(|(_, m)| **m);
        if let Some((target, _)) = counted.find(|(target, _)| **target as usize >= vocab) {
            bail!("cross-entropy: target {target}, expected below {vocab}")
        }
        let (x, w) = (floats(x, lx)?, floats(w, lw)?);
        let (loss, gradients) =
            cross_entropy::linear_cross_entropy(&x, &w, c, &self.targets, &self.mask, self.want);
        *self.gradients.lock().expect("no panic while held") = gradients;
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _loss: &Tensor,
        dloss: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(Gradients { dx, dw }) = self.gradients.lock().expect("no panic while held").take() else {
            bail!("cross-entropy: the gradients of a loss can be taken once")
        };
        let scale = f64::from(dloss.to_scalar::<f32>()?);
        let scaled = |data: Vec<f32>, arg: &Tensor| -> Result<Tensor> {
            let grad = gradient(data, arg)?;
            if scale == 1.0 { Ok(grad) } else { grad.affine(scale, 0.0) }
        };
        let dx = if x.track_op() { Some(scaled(dx, x)?) } else { None };
        Ok((dx, dw.map(|dw| scaled(dw, w)).transpose()?))
    }
}
