//! Every instruction set against the plain one, bit for bit, and that one against f64.

use super::*;
use crate::quant::dequantize;
use crate::rng::Rng;

const TYPES: [BlockType; 5] =
    [BlockType::Q4_0, BlockType::Q8_0, BlockType::Q4K, BlockType::Q5K, BlockType::Q6K];

fn pool() -> Pool {
    Pool::new(2).unwrap()
}

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, 1);
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// Random bytes with tame scales: every pattern of bits a file may hold.
fn weights(ty: BlockType, rows: usize, cols: usize) -> Vec<u8> {
    let mut bytes = vec![0; rows * ty.row_bytes(cols)];
    let mut rng = Rng::new(5, rows as u64);
    let scales: &[usize] = match ty {
        BlockType::Q4K | BlockType::Q5K => &[0, 2],
        BlockType::Q6K => &[208],
        _ => &[0],
    };
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        block.iter_mut().for_each(|b| *b = rng.next_u64() as u8);
        for &at in scales {
            let scale = half::f16::from_f32(0.01 * rng.normal() as f32);
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
    }
    bytes
}

fn multiply(packed: &Packed, x: &[f32], m: usize, isa: InstructionSet) -> Vec<f32> {
    let mut quantized = Activations::new(isa);
    quantized.quantize(&pool(), x, m, packed.cols());
    // A column before and after that must stay.
    let stride = packed.rows() + 2;
    let mut out = vec![f32::MAX; m * stride];
    let place = Output::new(&mut out, stride);
    // SAFETY: the output is ours, and only available sets are asked for.
    unsafe { packed.task(&quantized, (0, packed.rows().div_ceil(GROUP)), 1, &place) };
    assert!(out.chunks_exact(stride).all(|row| row[0] == f32::MAX && row[stride - 1] == f32::MAX));
    out.chunks_exact(stride).flat_map(|row| row[1..stride - 1].to_vec()).collect()
}

/// The dot products of what the integers stand for, in f64.
fn exact(ty: BlockType, bytes: &[u8], x: &[f32], m: usize, (n, k): (usize, usize)) -> Vec<f64> {
    let mut w = vec![0.0; n * k];
    dequantize(ty, bytes, &mut w);
    let mut out = Vec::new();
    for x in x.chunks_exact(k).take(m) {
        let rounded: Vec<f64> = x
            .chunks_exact(32)
            .flat_map(|block| {
                let d = block.iter().fold(0.0f32, |a, x| a.max(x.abs())) / 127.0;
                let inverse = if d > 0.0 { 1.0 / d } else { 0.0 };
                block.iter().map(move |x| f64::from(d) * f64::from((x * inverse).round_ties_even()))
            })
            .collect();
        out.extend(
            w.chunks_exact(k).map(|w| w.iter().zip(&rounded).map(|(&w, a)| f64::from(w) * a).sum::<f64>()),
        );
    }
    out
}

#[test]
fn every_instruction_set_gives_the_same_bits_and_they_are_right() {
    let (n, k) = (37, 768);
    let x = random(29 * k, 7);
    for ty in TYPES {
        let bytes = weights(ty, n, k);
        let packed = Packed::new(&pool(), MatrixRef::new(ty, n, k, &bytes)).unwrap();
        let alone: Vec<f32> =
            x.chunks_exact(k).flat_map(|x| multiply(&packed, x, 1, InstructionSet::Plain)).collect();
        let want = exact(ty, &bytes, &x, 29, (n, k));
        let size = want.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        for (i, (a, b)) in alone.iter().zip(&want).enumerate() {
            assert!((f64::from(*a) - b).abs() < 1e-5 * size, "{} at {i}: {a} {b}", ty.name());
        }
        for isa in InstructionSet::available() {
            for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 21, 29] {
                let got = multiply(&packed, &x[..m * k], m, isa);
                assert!(got == alone[..m * n], "{} {isa:?} m={m} differs", ty.name());
            }
        }
    }
}

#[test]
fn extremes_overflow_nothing() {
    let (n, k) = (16, 256);
    for ty in TYPES {
        // All numbers at their largest and smallest, activations all at one end.
        for fill in [0x00u8, 0xff, 0x7f, 0x80] {
            let mut bytes = vec![fill; n * ty.row_bytes(k)];
            for block in bytes.chunks_exact_mut(ty.block_bytes()) {
                let at = if ty == BlockType::Q6K { 208 } else { 0 };
                block[at..at + 2].copy_from_slice(&half::f16::ONE.to_le_bytes());
                if matches!(ty, BlockType::Q4K | BlockType::Q5K) {
                    block[2..4].copy_from_slice(&half::f16::ONE.to_le_bytes());
                }
            }
            let packed = Packed::new(&pool(), MatrixRef::new(ty, n, k, &bytes)).unwrap();
            for sign in [1.0f32, -1.0] {
                let x = vec![sign * 127.0; k];
                let want = exact(ty, &bytes, &x, 1, (n, k))[0];
                for isa in InstructionSet::available() {
                    let got = f64::from(multiply(&packed, &x, 1, isa)[0]);
                    assert!(
                        (got - want).abs() <= 1e-5 * want.abs().max(1e6),
                        "{} {fill:#x} {isa:?}: {got} {want}",
                        ty.name()
                    );
                }
            }
        }
    }
}

#[test]
fn packing_loses_nothing_and_takes_no_more_room() {
    let (n, k) = (32, 512);
    for ty in TYPES {
        let bytes = weights(ty, n, k);
        let packed = Packed::new(&pool(), MatrixRef::new(ty, n, k, &bytes)).unwrap();
        assert!(packed.nbytes() <= bytes.len() + 128, "{}: {} {}", ty.name(), packed.nbytes(), bytes.len());
        // Unit vectors times 127 read single columns.
        let mut w = vec![0.0; n * k];
        dequantize(ty, &bytes, &mut w);
        for column in [0, 1, 31, 32, 255, 256, 511] {
            let mut x = vec![0.0; k];
            x[column] = 127.0;
            let got = multiply(&packed, &x, 1, InstructionSet::Plain);
            for (row, got) in got.iter().enumerate() {
                let want = 127.0 * w[row * k + column];
                assert!((got - want).abs() <= 1e-4 * want.abs().max(1.0), "{} {row} {column}", ty.name());
            }
        }
    }
}

#[test]
fn what_is_not_a_number_shows() {
    let bytes = weights(BlockType::Q4_0, 16, 64);
    let packed = Packed::new(&pool(), MatrixRef::new(BlockType::Q4_0, 16, 64, &bytes)).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = random(64, 3);
        x[40] = bad;
        for isa in InstructionSet::available() {
            assert!(multiply(&packed, &x, 1, isa).iter().all(|y| y.is_nan()));
        }
    }
    assert!(multiply(&packed, &[1e-42; 64], 1, InstructionSet::best()).iter().all(|y| *y == 0.0));
}

#[test]
fn types_without_a_kernel_are_refused() {
    let bytes = vec![0; 4 * BlockType::F16.row_bytes(32)];
    assert!(Packed::new(&pool(), MatrixRef::new(BlockType::F16, 4, 32, &bytes)).is_none());
}
