//! `silu(gate) * up`.

use super::{floats, gradient, stored};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use intern_kernels::train::swiglu;

/// `silu(gate) * up`, both of one shape.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2(up, SwiGlu)
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        g: &CpuStorage,
        lg: &Layout,
        u: &CpuStorage,
        lu: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (g, u) = (floats(g, lg)?, floats(u, lu)?);
        if g.len() != u.len() {
            bail!("swiglu: gate of {} elements, up of {}", g.len(), u.len())
        }
        let mut y = vec![0.0; g.len()];
        swiglu::forward(&g, &u, &mut y);
        Ok((CpuStorage::F32(y), lg.shape().clone()))
    }

    fn bwd(
        &self,
        g: &Tensor,
        u: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((sg, lg), (su, lu), (sdy, ldy)) =
            (g.storage_and_layout(), u.storage_and_layout(), dy.storage_and_layout());
        let (gs, us, dy) = (stored(&sg, lg)?, stored(&su, lu)?, stored(&sdy, ldy)?);
        let (mut dg, mut du) = (vec![0.0; gs.len()], vec![0.0; us.len()]);
        swiglu::backward(&gs, &us, &dy, &mut dg, &mut du);
        Ok((Some(gradient(dg, g)?), Some(gradient(du, u)?)))
    }
}
