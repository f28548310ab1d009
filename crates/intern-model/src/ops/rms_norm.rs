//! RMSNorm over the last dimension.

use super::{floats, gradient, rows_and_columns, stored};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use intern_kernels::train::rms_norm;

/// `x / sqrt(mean(x^2) + eps) * w`: `x` is `(..., C)`, `w` is `(C,)`.
pub(crate) fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    x.apply_op2(w, RmsNorm { eps: eps as f32 })
}

struct RmsNorm {
    eps: f32,
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, c) = rows_and_columns(lx.shape())?;
        let (x, w) = (floats(x, lx)?, floats(w, lw)?);
        if w.len() != c {
            bail!("rms norm: rows of {c}, weight of {}", w.len())
        }
        let mut y = vec![0.0; x.len()];
        rms_norm::forward(&x, &w, self.eps, &mut y);
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((sx, lx), (sw, lw), (sdy, ldy)) =
            (x.storage_and_layout(), w.storage_and_layout(), dy.storage_and_layout());
        let (xs, ws, dy) = (stored(&sx, lx)?, stored(&sw, lw)?, stored(&sdy, ldy)?);
        let mut dx = vec![0.0; xs.len()];
        let mut dw = w.track_op().then(|| vec![0.0; ws.len()]);
        rms_norm::backward(&xs, &ws, self.eps, &dy, &mut dx, dw.as_deref_mut());
        let dx = if x.track_op() { Some(gradient(dx, x)?) } else { None };
        Ok((dx, dw.map(|dw| gradient(dw, w)).transpose()?))
    }
}
