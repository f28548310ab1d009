//! `y = scale * x w^T`, plus a bias or a residual; frozen operands pay for no gradient.

use super::{floats, gradient, rows_and_columns, stored, with_columns};
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use intern_kernels::train::gemm::{Into, View, ViewMut, matmul};
use intern_kernels::train::math::add_assign;
use rayon::prelude::*;

/// The optional third operand of a linear layer.
#[derive(Clone, Copy)]
pub(crate) enum Third<'a> {
    /// Nothing is added.
    None,
    /// `(out,)`, added to every row.
    Bias(&'a Tensor),
    /// `(..., out)`, added element by element.
    Residual(&'a Tensor),
}

/// `scale * x w^T + third`: `x` is `(..., in)`, `w` is `(out, in)`.
pub(crate) fn linear(x: &Tensor, w: &Tensor, scale: f32, third: Third) -> Result<Tensor> {
    match third {
        Third::None => x.apply_op2(w, Linear { scale, is_bias: false }),
        Third::Bias(bias) => x.apply_op3(w, bias, Linear { scale, is_bias: true }),
        Third::Residual(residual) => x.apply_op3(w, residual, Linear { scale, is_bias: false }),
    }
}

struct Linear {
    scale: f32,
    is_bias: bool,
}

impl Linear {
    /// Writes the product over or onto `y`.
    fn product(
        &self,
        (x, lx): (&CpuStorage, &Layout),
        (w, lw): (&CpuStorage, &Layout),
        y: Option<Vec<f32>>,
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, c), (out, c_w)) = (rows_and_columns(lx.shape())?, lw.shape().dims2()?);
        if c != c_w {
            bail!("linear: input of {c} columns, weight of {c_w}")
        }
        let (x, w) = (floats(x, lx)?, floats(w, lw)?);
        let into = if y.is_some() { Into::Add } else { Into::Overwrite };
        let mut y = y.unwrap_or_else(|| vec![0.0; n * out]);
        if y.len() != n * out {
            bail!("linear: third operand of {} elements, expected {}", y.len(), n * out)
        }
        matmul(
            ViewMut::new(&mut y, n, out),
            into,
            self.scale,
            View::new(&x, n, c),
            View::new(&w, out, c).t(),
        );
        Ok((CpuStorage::F32(y), with_columns(lx.shape(), out)))
    }

    fn backward(&self, x: &Tensor, w: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((n, c), (out, _)) = (rows_and_columns(x.shape())?, w.dims2()?);
        let ((sx, lx), (sw, lw), (sdy, ldy)) =
            (x.storage_and_layout(), w.storage_and_layout(), dy.storage_and_layout());
        let dy = stored(&sdy, ldy)?;
        let dy = View::new(&dy, n, out);
        let mut grads = (None, None);
        if x.track_op() {
            let w = stored(&sw, lw)?;
            let mut dx = vec![0.0; n * c];
            matmul(ViewMut::new(&mut dx, n, c), Into::Overwrite, self.scale, dy, View::new(&w, out, c));
            grads.0 = Some(gradient(dx, x)?);
        }
        if w.track_op() {
            let x = stored(&sx, lx)?;
            let mut dw = vec![0.0; out * c];
            matmul(ViewMut::new(&mut dw, out, c), Into::Overwrite, self.scale, dy.t(), View::new(&x, n, c));
            grads.1 = Some(gradient(dw, w)?);
        }
        Ok(grads)
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.product((x, lx), (w, lw), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, w, dy)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        if self.is_bias { "linear with bias" } else { "linear with residual" }
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        third: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let third = floats(third, l3)?;
        let y = if self.is_bias { third.repeat(rows_and_columns(lx.shape())?.0) } else { third.into_owned() };
        self.product((x, lx), (w, lw), Some(y))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        third: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.backward(x, w, dy)?;
        let d3 = match (third.track_op(), self.is_bias) {
            (false, _) => None,
            (true, false) => Some(dy.to_dtype(third.dtype())?),
            (true, true) => {
                let (storage, layout) = dy.storage_and_layout();
                Some(gradient(column_sums(&stored(&storage, layout)?, third.elem_count()), third)?)
            }
        };
        Ok((dx, dw, d3))
    }
}

/// Sums over rows of `columns` elements, folded in an order that no thread count changes.
fn column_sums(data: &[f32], columns: usize) -> Vec<f32> {
    let partial: Vec<Vec<f32>> = data
        .par_chunks(64 * columns)
        .map(|rows| {
            let mut sum = vec![0.0; columns];
            rows.chunks_exact(columns).for_each(|row| add_assign(&mut sum, row));
            sum
        })
        .collect();
    let mut total = vec![0.0; columns];
    partial.iter().for_each(|part| add_assign(&mut total, part));
    total
}
