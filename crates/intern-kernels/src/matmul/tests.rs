//! Agreement of the kernels with their plain references.

use super::*;
use crate::rng::Rng;

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, 1);
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// Random bytes of a type whose scales are tame; encoded where we can, patched where we cannot.
fn weights(ty: BlockType, rows: usize, cols: usize) -> Vec<u8> {
    let mut bytes = vec![0; rows * ty.row_bytes(cols)];
    if ty.can_encode() {
        quant::quantize(ty, &random(rows * cols, 3), &mut bytes);
        return bytes;
    }
    let mut rng = Rng::new(5, 0);
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        block.iter_mut().for_each(|b| *b = rng.next_u64() as u8);
        let mut put =
            |at: usize, x: f32| block[at..at + 2].copy_from_slice(&half::f16::from_f32(x).to_le_bytes());
        match ty {
            BlockType::Q2K => {
                put(80, 0.01);
                put(82, -0.02);
            }
            BlockType::Q3K => put(108, 0.01),
            BlockType::Mxfp4 => block[0] = 118,
            _ => put(0, 0.01),
        }
    }
    bytes
}

fn pool() -> Pool {
    Pool::new(2).unwrap()
}

/// The product with stored weights.
fn stored(pool: &Pool, x: &[f32], m: usize, w: MatrixRef) -> Vec<f32> {
    let mut out = vec![0.0; m * w.rows()];
    let parts = [Part { weight: Weight::Stored(w), column: 0 }];
    matmul(pool, x, m, &parts, (&mut out, w.rows()), &mut Activations::default());
    out
}

fn check(ty: BlockType, m: usize, n: usize, k: usize) {
    let (data, x) = (weights(ty, n, k), random(m * k, 7));
    let w = MatrixRef::new(ty, n, k, &data);
    let pool = pool();
    let out = stored(&pool, &x, m, w);
    let want = reference(&x, m, w);
    let size = (k as f32).sqrt();
    for (i, (a, b)) in out.iter().zip(&want).enumerate() {
        assert!(
            (a - b).abs() < 2e-6 * size.max(1.0) * 4.0,
            "{} m={m} n={n} k={k} at {i}: {a} {b}",
            ty.name()
        );
    }
    // One row at a time: the same bits.
    for row in 0..m {
        let alone = stored(&pool, &x[row * k..(row + 1) * k], 1, w);
        assert!(
            alone == out[row * n..(row + 1) * n],
            "{} m={m} n={n} k={k}: row {row} differs alone",
            ty.name()
        );
    }
}

#[test]
fn every_format_agrees_with_the_reference_and_with_itself() {
    for ty in BlockType::ALL {
        for m in [1, 2, 3, 4, 5, 6, 7, 16] {
            check(ty, m, 37, 512);
        }
        check(ty, 2, 1, 256);
    }
}

#[test]
fn float_rows_of_any_length_work() {
    for ty in [BlockType::F32, BlockType::F16, BlockType::BF16] {
        for k in [1, 7, 31, 33, 172] {
            for m in [1, 5] {
                check(ty, m, 9, k);
            }
        }
    }
}

#[test]
fn thread_count_changes_no_bit() {
    let (n, k, m) = (512, 256, 9);
    let (data, x) = (weights(BlockType::Q4K, n, k), random(m * k, 9));
    let w = MatrixRef::new(BlockType::Q4K, n, k, &data);
    let packed = Packed::new(&pool(), w).unwrap();
    let run = |threads: usize, weight: Weight| {
        let (mut out, pool) = (vec![0.0; m * n], Pool::new(threads).unwrap());
        let parts = [Part { weight, column: 0 }];
        matmul(&pool, &x, m, &parts, (&mut out, n), &mut Activations::default());
        out
    };
    for weight in [Weight::Stored(w), Weight::Packed(&packed)] {
        assert!(run(1, weight) == run(2, weight) && run(1, weight) == run(3, weight));
    }
}

#[test]
fn parts_write_their_own_columns() {
    let (a, b, c) =
        (weights(BlockType::F32, 3, 64), weights(BlockType::Q8_0, 5, 64), weights(BlockType::Q4_0, 40, 64));
    let a = MatrixRef::new(BlockType::F32, 3, 64, &a);
    let b = MatrixRef::new(BlockType::Q8_0, 5, 64, &b);
    let c = MatrixRef::new(BlockType::Q4_0, 40, 64, &c);
    let (x, pool) = (random(2 * 64, 11), pool());
    let packed = Packed::new(&pool, c).unwrap();
    let mut out = vec![-1.0; 2 * 51];
    let parts = [
        Part { weight: Weight::Stored(b), column: 4 },
        Part { weight: Weight::Stored(a), column: 0 },
        Part { weight: Weight::Packed(&packed), column: 10 },
    ];
    matmul(&pool, &x, 2, &parts, (&mut out, 51), &mut Activations::default());
    let wants =
        [(0, reference(&x, 2, a), 1e-4), (4, reference(&x, 2, b), 1e-4), (10, reference(&x, 2, c), 0.2)];
    for row in 0..2 {
        let out = &out[row * 51..(row + 1) * 51];
        for (column, want, tolerance) in &wants {
            let n = want.len() / 2;
            let pairs = out[*column..].iter().zip(&want[row * n..(row + 1) * n]);
            pairs.for_each(|(x, y)| assert!((x - y).abs() < *tolerance, "{column}: {x} {y}"));
        }
        assert!([3, 9, 50].iter().all(|&i| out[i] == -1.0));
    }
}
