//! AWQ and GPTQ checkpoints: 4-bit integers with a scale and a zero point per group of columns.
//!
//! `w = (q - zero) * scale`. Where every zero point is 8 this is Q4_0 exactly; with others it is
//! Q4_1, whose minimum `-zero * scale` is rounded to f16 (at most 1/270 of a step). Layouts are
//! AutoAWQ's "gemm" and AutoGPTQ's, both `(in, out)` with eight integers to a word.

use anyhow::{Context, Result, bail, ensure};
use half::f16;
use intern_format::checkpoint::{Checkpoint, DType, TensorView};
use intern_kernels::quant::BlockType;
use rayon::prelude::*;

/// Columns of a word's nibbles in AWQ, from the lowest.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Words run along the output; zero points as they are.
    Awq,
    /// Words run along the input; zero points are stored minus `offset`.
    Gptq { offset: u8 },
}

/// A matrix of 4-bit integers, unpacked.
pub(crate) struct Packed4 {
    rows: usize,
    cols: usize,
    q: Vec<u8>,       // (rows, cols)
    scales: Vec<f32>, // (groups, rows)
    zeros: Vec<u8>,   // (groups, rows), 0..=16
    groups: Vec<u32>, // (cols,)
    ty: Option<BlockType>,
}

impl Packed4 {
    /// Whether `module` is stored this way.
    pub fn is_there(checkpoint: &Checkpoint, module: &str) -> bool {
        checkpoint.contains(&format!("{module}.qweight"))
    }

    /// Reads `module`, `(rows, cols)`.
    ///
    /// # Errors
    /// If it is of another kind than those above, or tensors do not fit together.
    pub fn read(checkpoint: &Checkpoint, module: &str, rows: usize, cols: usize) -> Result<Self> {
        let dir = checkpoint.dir().display();
        let (layout, group) = read_layout(checkpoint).with_context(|| dir.to_string())?;
        let group = group.unwrap_or(cols);
        ensure!(
            rows.is_multiple_of(8) && cols.is_multiple_of(8) && group > 0,
            "{dir}: {module}: {rows} rows of {cols} in groups of {group} cannot be packed by eight"
        );
        let num_groups = cols.div_ceil(group);
        let tensor = |part: &str, dtype: DType, shape: &[usize]| -> Result<TensorView<'_>> {
            let name = format!("{module}.{part}");
            let view = checkpoint.tensor(&name)?;
            ensure!(
                view.shape == shape && (view.dtype == dtype || dtype == DType::F16),
                "{dir}: tensor {name} is {} {:?}, expected {dtype} {shape:?}\n\
                 hint: is quantization_config in config.json that of these weights?",
                view.dtype,
                view.shape
            );
            Ok(view)
        };
        let zeros = tensor("qzeros", DType::I32, &[num_groups, rows / 8])?;
        let scales = tensor("scales", DType::F16, &[num_groups, rows])?.to_f32();
        let word = |data: &[u8], at: usize| {
            u32::from_le_bytes(data[4 * at..4 * at + 4].try_into().expect("four bytes"))
        };
        let nibble = |word: u32, i: usize| (word >> (4 * i)) as u8 & 15;

        let mut unpacked_zeros = vec![0u8; num_groups * rows];
        for (at, zeros_8) in unpacked_zeros.chunks_exact_mut(8).enumerate() {
            let word = word(zeros.data, at);
            for i in 0..8 {
                match layout {
                    Layout::Awq => zeros_8[AWQ_ORDER[i]] = nibble(word, i),
                    Layout::Gptq { offset } => zeros_8[i] = nibble(word, i) + offset,
                }
            }
        }
        let mut q = vec![0u8; rows * cols];
        match layout {
            Layout::Awq => {
                let data = tensor("qweight", DType::I32, &[cols, rows / 8])?.data;
                q.par_chunks_exact_mut(8 * cols).enumerate().for_each(|(c, eight_rows)| {
                    for k in 0..cols {
                        let word = word(data, k * (rows / 8) + c);
                        for (i, row) in AWQ_ORDER.iter().enumerate() {
                            eight_rows[row * cols + k] = nibble(word, i);
                        }
                    }
                });
            }
            Layout::Gptq { .. } => {
                let data = tensor("qweight", DType::I32, &[cols / 8, rows])?.data;
                q.par_chunks_exact_mut(cols).enumerate().for_each(|(row, out)| {
                    for (r, eight) in out.chunks_exact_mut(8).enumerate() {
                        let word = word(data, r * rows + row);
                        eight.iter_mut().enumerate().for_each(|(i, q)| *q = nibble(word, i));
                    }
                });
            }
        }
        let name = format!("{module}.g_idx");
        let groups: Vec<u32> = if checkpoint.contains(&name) {
            let view = tensor("g_idx", DType::I32, &[cols])?;
            (0..cols).map(|k| word(view.data, k)).collect()
        } else {
            (0..cols).map(|k| (k / group) as u32).collect()
        };
        ensure!(
            groups.iter().all(|&g| (g as usize) < num_groups),
            "{dir}: tensor {name} names a group beyond {num_groups}"
        );
        let whole = cols.is_multiple_of(32)
            && groups.chunks_exact(32).all(|block| block.iter().all(|&g| g == block[0]));
        let exact_scales = scales.iter().all(|&s| f16::from_f32(s).to_f32() == s);
        let ty = if unpacked_zeros.iter().all(|&z| z == 8) { BlockType::Q4_0 } else { BlockType::Q4_1 };
        let ty = (whole && exact_scales).then_some(ty);
        Ok(Self { rows, cols, q, scales, zeros: unpacked_zeros, groups, ty })
    }

    /// Row `row` as numbers.
    pub fn row(&self, row: usize) -> Vec<f32> {
        let q = &self.q[row * self.cols..(row + 1) * self.cols];
        let one = |(&q, &g): (&u8, &u32)| {
            let at = g as usize * self.rows + row;
            (f32::from(q) - f32::from(self.zeros[at])) * self.scales[at]
        };
        q.iter().zip(&self.groups).map(one).collect()
    }

    /// The block type with the same integers and scales, unless groups cut through blocks.
    pub fn block_type(&self) -> Option<BlockType> {
        self.ty
    }

    /// Row `row` as `ty`, one of [`Self::block_type`]'s, integers unchanged.
    pub fn encode_row(&self, ty: BlockType, row: usize, out: &mut [u8]) {
        let q = &self.q[row * self.cols..(row + 1) * self.cols];
        let blocks = q.chunks_exact(32).zip(self.groups.chunks_exact(32));
        for ((q, groups), out) in blocks.zip(out.chunks_exact_mut(ty.block_bytes())) {
            let at = groups[0] as usize * self.rows + row;
            let scale = self.scales[at];
            let (head, nibbles) = out.split_at_mut(ty.block_bytes() - 16);
            head[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            if ty == BlockType::Q4_1 {
                let min = f16::from_f32(-f32::from(self.zeros[at]) * scale);
                head[2..].copy_from_slice(&min.to_le_bytes());
            }
            nibbles.iter_mut().enumerate().for_each(|(j, b)| *b = q[j] | (q[j + 16] << 4));
        }
    }

    /// All rows in a stored form, floats where no block type holds them.
    pub fn to_blocks(&self) -> (BlockType, Vec<u8>) {
        let ty = self.block_type().unwrap_or(BlockType::F32);
        let row_bytes = ty.row_bytes(self.cols);
        let mut out = vec![0u8; self.rows * row_bytes];
        out.par_chunks_exact_mut(row_bytes).enumerate().for_each(|(row, out)| match ty {
            BlockType::F32 => out.copy_from_slice(bytemuck::cast_slice(&self.row(row))),
            _ => self.encode_row(ty, row, out),
        });
        (ty, out)
    }
}

/// Layout and group size (`None`: the whole row) from `quantization_config`.
fn read_layout(checkpoint: &Checkpoint) -> Result<(Layout, Option<usize>)> {
    let config = &checkpoint.config()["quantization_config"];
    let text = |key: &str| config[key].as_str().unwrap_or_default().to_lowercase();
    let number = |keys: [&str; 2]| keys.iter().find_map(|key| config[*key].as_i64());
    let bits = number(["bits", "w_bit"]).unwrap_or(4);
    ensure!(bits == 4, "weights of {bits} bits are not supported\nhint: 4-bit AWQ and GPTQ are");
    let group = match number(["group_size", "q_group_size"]).unwrap_or(128) {
        -1 => None,
        n => Some(usize::try_from(n).ok().filter(|n| *n > 0).context("group_size is not a size")?),
    };
    let layout = match text("quant_method").as_str() {
        "awq" => {
            let version = text("version");
            ensure!(
                version.is_empty() || version == "gemm",
                "AWQ weights of version {version} are not supported\nhint: version gemm is"
            );
            Layout::Awq
        }
        "gptq" => Layout::Gptq { offset: u8::from(text("checkpoint_format") != "gptq_v2") },
        other => bail!("quantization method `{other}` is not supported\nhint: awq and gptq are"),
    };
    Ok((layout, group))
}
