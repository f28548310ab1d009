//! Causal attention with RoPE over packed documents, from separate or fused projections.

use super::{floats, gradient, stored};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};
use intern_kernels::train::attention::{self, Context, Gradients};
use std::sync::{Arc, Mutex};

/// What all layers of one forward pass share: where documents start and the rotary tables.
pub(crate) struct Geometry {
    /// For every token, the index in its row where its document starts; `(b, t)`.
    pub starts: Vec<u32>,
    /// Cosine of position times frequency, `(positions, D/2)`.
    pub cos: Vec<f32>,
    /// Sine of the same.
    pub sin: Vec<f32>,
}

/// Attention output `(N, H D)` from `q` `(N, H D)` and `k`, `v` `(N, G D)`.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    shape: attention::Shape,
    geometry: &Arc<Geometry>,
) -> Result<Tensor> {
    q.apply_op3(k, v, Attention::new(shape, attention::Layout::separate(&shape), geometry))
}

/// Attention output `(N, H D)` from `qkv` `(N, (H + 2 G) D)`, grouped per key/value head.
pub(crate) fn attention_fused(
    qkv: &Tensor,
    shape: attention::Shape,
    geometry: &Arc<Geometry>,
) -> Result<Tensor> {
    qkv.apply_op1(Attention::new(shape, attention::Layout::fused(&shape), geometry))
}

struct Attention {
    shape: attention::Shape,
    layout: attention::Layout,
    geometry: Arc<Geometry>,
    /// Log-sum-exp of each query's scores, `(B, H, T)`, from the forward pass.
    lse: Mutex<Vec<f32>>,
}

impl Attention {
    fn new(shape: attention::Shape, layout: attention::Layout, geometry: &Arc<Geometry>) -> Self {
        Self { shape, layout, geometry: geometry.clone(), lse: Mutex::new(Vec::new()) }
    }

    fn context(&self) -> Context<'_> {
        let Geometry { starts, cos, sin } = &*self.geometry;
        let all = (0, self.shape.t);
        Context { shape: self.shape, layout: self.layout, starts, queries: all, keys: all, cos, sin }
    }

    fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> Result<(CpuStorage, Shape)> {
        let s = &self.shape;
        let (n, width) = (s.b * s.t, s.heads * s.head_dim);
        for (x, heads) in [(q, self.layout.q), (k, self.layout.k), (v, self.layout.v)] {
            if x.len() != n * heads.row {
                bail!("attention: projection of {} elements, expected {n} x {}", x.len(), heads.row)
            }
        }
        let mut out = vec![0.0; n * width];
        let mut lse = vec![0.0; n * s.heads];
        attention::forward(&self.context(), q, k, v, &mut out, &mut lse);
        *self.lse.lock().expect("no panic while held") = lse;
        Ok((CpuStorage::F32(out), Shape::from((n, width))))
    }

    fn backward(
        &self,
        [q, k, v]: [&[f32]; 3],
        out: &Tensor,
        dout: &Tensor,
        gradients: Gradients,
    ) -> Result<()> {
        let ((so, lo), (sd, ld)) = (out.storage_and_layout(), dout.storage_and_layout());
        let lse = self.lse.lock().expect("no panic while held");
        attention::backward(&self.context(), q, k, v, &stored(&so, lo)?, &lse, &stored(&sd, ld)?, gradients);
        Ok(())
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "fused attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let qkv = floats(qkv, layout)?;
        self.forward(&qkv, &qkv, &qkv)
    }

    fn bwd(&self, qkv: &Tensor, out: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        let (storage, layout) = qkv.storage_and_layout();
        let x = stored(&storage, layout)?;
        let mut dqkv = vec![0.0; x.len()];
        self.backward([&x; 3], out, dout, Gradients::Fused(&mut dqkv))?;
        Ok(Some(gradient(dqkv, qkv)?))
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(&floats(q, lq)?, &floats(k, lk)?, &floats(v, lv)?)
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((sq, lq), (sk, lk), (sv, lv)) =
            (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
        let (qs, ks, vs) = (stored(&sq, lq)?, stored(&sk, lk)?, stored(&sv, lv)?);
        let [mut dq, mut dk, mut dv] = [&qs, &ks, &vs].map(|x| vec![0.0; x.len()]);
        self.backward([&qs, &ks, &vs], out, dout, Gradients::Separate(&mut dq, &mut dk, &mut dv))?;
        Ok((Some(gradient(dq, q)?), Some(gradient(dk, k)?), Some(gradient(dv, v)?)))
    }
}
