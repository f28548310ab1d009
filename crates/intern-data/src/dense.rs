//! The parts that encoders of BERT's and CLIP's families are made of, in f32 and on one thread.

use std::f32::consts::FRAC_1_SQRT_2;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use intern_format::safetensors::SafetensorsFile;
use intern_kernels::train::gemm::{Into, View, ViewMut, matmul_here};

/// `(rows, columns)`.
pub struct Matrix {
    pub data: Vec<f32>,
    pub rows: usize,
    pub columns: usize,
}

/// `x Wᵀ + b`.
pub struct Linear {
    pub weight: Matrix,
    pub bias: Vec<f32>,
}

/// LayerNorm's scale and shift.
pub struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

/// The weights of a Hugging Face directory.
pub struct Weights {
    dir: PathBuf,
    file: SafetensorsFile,
}

impl Weights {
    /// Opens `model.safetensors` of `dir`.
    pub fn open(dir: &Path) -> Result<Self> {
        Ok(Self { dir: dir.into(), file: SafetensorsFile::open(&dir.join("model.safetensors"))? })
    }

    pub fn floats(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.file.tensor(name)?.to_f32())
    }

    /// A tensor of two dimensions; of more, its first and all others together.
    pub fn matrix(&self, name: &str) -> Result<Matrix> {
        let view = self.file.tensor(name)?;
        ensure!(view.shape.len() >= 2, "{}: {name} has shape {:?}", self.dir.display(), view.shape);
        let (rows, columns) = (view.shape[0], view.shape[1..].iter().product());
        Ok(Matrix { data: view.to_f32(), rows, columns })
    }

    /// `name.weight` and `name.bias`.
    pub fn linear(&self, name: &str) -> Result<Linear> {
        let weight = self.matrix(&format!("{name}.weight"))?;
        let linear = Linear { weight, bias: self.floats(&format!("{name}.bias"))? };
        ensure!(linear.bias.len() == linear.weight.rows, "{}: {name}.bias", self.dir.display());
        Ok(linear)
    }

    /// `name.weight` and `name.bias`.
    pub fn norm(&self, name: &str) -> Result<Norm> {
        let weight = self.floats(&format!("{name}.weight"))?;
        Ok(Norm { weight, bias: self.floats(&format!("{name}.bias"))? })
    }
}

impl Matrix {
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.columns..(i + 1) * self.columns]
    }

    /// `(N, columns)` to `(N, rows)`, added to `y`.
    pub fn apply_into(&self, x: &[f32], n: usize, y: &mut [f32]) {
        let weight = View::new(&self.data, self.rows, self.columns).t();
        let into = ViewMut::new(y, n, self.rows);
        matmul_here(into, Into::Add, 1.0, View::new(x, n, self.columns), weight);
    }
}

impl Linear {
    /// `(N, in)` to `(N, out)`.
    pub fn apply(&self, x: &[f32], n: usize) -> Vec<f32> {
        let mut y = self.bias.repeat(n);
        self.weight.apply_into(x, n, &mut y);
        y
    }
}

impl Norm {
    /// LayerNorm of every row.
    pub fn apply(&self, eps: f32, x: &mut [f32]) {
        let c = self.weight.len();
        for row in x.chunks_exact_mut(c) {
            let mean = row.iter().sum::<f32>() / c as f32;
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / c as f32;
            let scale = 1.0 / (variance + eps).sqrt();
            for ((x, w), b) in row.iter_mut().zip(&self.weight).zip(&self.bias) {
                *x = (*x - mean) * scale * w + b;
            }
        }
    }
}

/// Every row's view of all, or with `causal` of itself and those before; `(N, C)`.
pub fn attention(qkv: &[Linear; 3], heads: usize, x: &[f32], n: usize, causal: bool) -> Vec<f32> {
    let c = qkv[0].weight.rows;
    let d = c / heads;
    let [q, k, v] = [0, 1, 2].map(|i| qkv[i].apply(x, n));
    let scale = 1.0 / (d as f32).sqrt();
    let mut out = vec![0.0; n * c];
    let (mut scores, mut part) = (vec![0.0; n * n], vec![0.0; n * d]);
    for head in 0..heads {
        let of_head = |m: &'_ [f32]| -> Vec<f32> {
            m.chunks_exact(c).flat_map(|row| &row[head * d..(head + 1) * d]).copied().collect()
        };
        let (q, k, v) = (of_head(&q), of_head(&k), of_head(&v));
        let into = ViewMut::new(&mut scores, n, n);
        matmul_here(into, Into::Overwrite, scale, View::new(&q, n, d), View::new(&k, n, d).t());
        for (i, row) in scores.chunks_exact_mut(n).enumerate() {
            let seen = if causal { i + 1 } else { n };
            softmax(&mut row[..seen]);
            row[seen..].fill(0.0);
        }
        let into = ViewMut::new(&mut part, n, d);
        matmul_here(into, Into::Overwrite, 1.0, View::new(&scores, n, n), View::new(&v, n, d));
        for (row, part) in out.chunks_exact_mut(c).zip(part.chunks_exact(d)) {
            row[head * d..(head + 1) * d].copy_from_slice(part);
        }
    }
    out
}

pub fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

pub fn softmax(x: &mut [f32]) {
    let top = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    x.iter_mut().for_each(|x| *x = (*x - top).exp());
    let sum: f32 = x.iter().sum();
    x.iter_mut().for_each(|x| *x /= sum);
}

/// `x Φ(x)`, with the error function itself, not its approximation by tanh.
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * FRAC_1_SQRT_2))
}
