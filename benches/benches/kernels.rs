//! Kernel benchmarks: GMAC/s and GB/s beside the plain reference and the machine's limits.
//!
//! `cargo bench --bench kernels [FILTER]` prints one line per kernel and size, one thread;
//! the best of several runs, since these are shared machines.

use std::hint::black_box;
use std::time::{Duration, Instant};

use half::f16;
use intern_kernels::matmul::{MatrixRef, Part, Weight, matmul, reference};
use intern_kernels::packed::activations::Activations;
use intern_kernels::packed::{InstructionSet, Packed};
use intern_kernels::paged::{self, KvElement, LayerCache, NewRow, Row, Shape};
use intern_kernels::pool::Pool;
use intern_kernels::quant::{BlockType, dequantize, quantize};
use intern_kernels::rng::Rng;
use intern_kernels::{ops, sampling};

/// Time spent on one line.
const BUDGET: Duration = Duration::from_millis(300);

/// Best seconds of one call, over [`BUDGET`].
fn best(mut work: impl FnMut()) -> f64 {
    work();
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < BUDGET {
        let once = Instant::now();
        work();
        best = best.min(once.elapsed().as_secs_f64());
    }
    best
}

fn random(n: usize) -> Vec<f32> {
    let mut rng = Rng::new(1, 0);
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// What one core does at best: reads from memory in GB/s, f32 multiply-adds in GMAC/s.
fn limits() -> (f64, f64) {
    let data = vec![1u64; 32 << 20]; // 256 MB
    let seconds = best(|| {
        let mut sums = [0u64; 16];
        for chunk in data.chunks_exact(16) {
            for l in 0..16 {
                sums[l] = sums[l].wrapping_add(chunk[l]);
            }
        }
        black_box(sums);
    });
    let read = data.len() as f64 * 8.0 / seconds / 1e9;
    // Twelve vectors of eight lanes in registers, the most AVX2 keeps busy.
    let (mut lanes, rounds) = (random(96), 1 << 20);
    let seconds = best(|| multiply_add(black_box(&mut lanes), 0.999, rounds));
    (read, (96 * rounds) as f64 / seconds / 1e9)
}

intern_kernels::multiversion! {
    fn multiply_add(lanes: &mut [f32], factor: f32, rounds: usize) -> () {
        let mut acc = [0.0f32; 96];
        acc.copy_from_slice(lanes);
        for _ in 0..rounds {
            for a in &mut acc {
                *a = a.mul_add(factor, 0.001);
            }
        }
        lanes.copy_from_slice(&acc);
    }
}

fn matmuls(wanted: impl Fn(&str) -> bool, (read, peak): (f64, f64)) {
    // Larger than the last-level cache at every type but the smallest.
    let (n, k) = (16384, 2048);
    let weights = random(n * k);
    for ty in BlockType::ALL {
        if !wanted(&format!("matmul {}", ty.name())) {
            continue;
        }
        let mut bytes = vec![0u8; n * ty.row_bytes(k)];
        if ty.can_encode() {
            quantize(ty, &weights, &mut bytes);
        }
        let small = MatrixRef::new(ty, 64, k, &bytes[..64 * ty.row_bytes(k)]);
        let x = random(k);
        let seconds = best(|| {
            black_box(reference(&x, 1, small));
        });
        println!("matmul {:5} reference m=1     {:8.2} GMAC/s", ty.name(), (64 * k) as f64 / seconds / 1e9);
        let pool = Pool::new(1).expect("one thread");
        let sets = match Packed::supports(ty, k) {
            true => InstructionSet::available()[1..].to_vec(),
            false => vec![InstructionSet::best()],
        };
        for isa in sets {
            for m in [1, 2, 3, 4, 8, 64, 512] {
                // Calls short enough that some of them run undisturbed on a busy machine, but
                // for few rows more bytes than the last-level cache holds.
                let n = if m <= 4 { 4 * n } else { (n / 2 / m).max(512) };
                let bytes = bytes.repeat(n.div_ceil(bytes.len() / ty.row_bytes(k)));
                let bytes = &bytes[..n * ty.row_bytes(k)];
                let mut out = vec![0.0; m * n];
                let stored = MatrixRef::new(ty, n, k, bytes);
                let packed = Packed::new(&pool, stored);
                let weight = packed.as_ref().map_or(Weight::Stored(stored), Weight::Packed);
                let (x, mut scratch) = (random(m * k), Activations::new(isa));
                let parts = [Part { weight, column: 0 }];
                let seconds = best(|| matmul(&pool, black_box(&x), m, &parts, (&mut out, n), &mut scratch));
                let (gmac, gb) = ((m * n * k) as f64 / seconds / 1e9, bytes.len() as f64 / seconds / 1e9);
                let share = 100.0 * gb / read;
                let of_peak = 100.0 * gmac / peak;
                println!(
                    "matmul {:5} {isa:?} m={m:<3}     {gmac:8.2} GMAC/s ({of_peak:3.0} % of f32)  {gb:6.2} GB/s ({share:3.0} %)",
                    ty.name()
                );
            }
        }
    }
}

fn codecs(wanted: impl Fn(&str) -> bool) {
    let values = random(1 << 18);
    let mut back = vec![0.0; values.len()];
    for ty in
        BlockType::ALL.into_iter().filter(|ty| ty.can_encode() && wanted(&format!("codec {}", ty.name())))
    {
        let mut bytes = vec![0u8; ty.row_bytes(values.len())];
        let encode = best(|| quantize(ty, black_box(&values), &mut bytes));
        let decode = best(|| dequantize(ty, black_box(&bytes), &mut back));
        let rate = |seconds: f64| values.len() as f64 / seconds / 1e6;
        println!("codec  {:5} encode {:8.1} M/s   decode {:8.1} M/s", ty.name(), rate(encode), rate(decode));
    }
}

fn attention(wanted: impl Fn(&str) -> bool) {
    for (t, rows) in [(128, 1), (2048, 1), (512, 256)] {
        if wanted(&format!("attention {t}")) {
            attention_over::<f32>("f32", t, rows);
            attention_over::<f16>("f16", t, rows);
            attention_over::<i8>("int8", t, rows);
        }
    }
}

fn attention_over<T: KvElement>(name: &str, t: usize, rows: usize) {
    let shape =
        Shape { num_heads: 16, num_kv_heads: 8, head_dim: 128, block_size: 32, window: None, scale: 0.1 };
    let table: Vec<u32> = (0..t as u32 / 32).collect();
    let mut cache = LayerCache::<T>::new(&shape, table.len());
    let kv = random(2 * shape.num_kv_heads * shape.head_dim);
    let new: Vec<NewRow> = (0..t).map(|position| NewRow { kv: &kv, table: &table, position }).collect();
    let at: Vec<usize> = (0..2 * shape.num_kv_heads).map(|i| i * shape.head_dim).collect();
    let pool = Pool::new(1).expect("one thread");
    paged::store(&pool, &shape, &mut cache, &new, at.split_at(shape.num_kv_heads));
    let q = random(shape.num_heads * shape.head_dim);
    let offsets: Vec<usize> = (0..shape.num_heads).map(|h| h * shape.head_dim).collect();
    let row = |i: usize| Row { q: &q, table: &table, position: t - rows + i };
    let rows: Vec<Row> = (0..rows).map(row).collect();
    let mut out = vec![0.0; rows.len() * q.len()];
    let seconds = best(|| paged::attention(&pool, &shape, black_box(&cache), &rows, &offsets, &mut out));
    let macs = 2 * (t * rows.len() - rows.len() * rows.len() / 2) * shape.num_heads * shape.head_dim;
    let bytes = 2 * t * shape.num_kv_heads * shape.head_dim * size_of::<T>();
    println!(
        "attention {name:<4} t={t:<5} rows={:<3} {:8.2} GMAC/s  {:6.2} GB/s",
        rows.len(),
        macs as f64 / seconds / 1e9,
        bytes as f64 / seconds / 1e9
    );
}

fn rows(wanted: impl Fn(&str) -> bool) {
    let n = 8192;
    let (x, y) = (random(n), random(n));
    let mut out = vec![0.0; n];
    let mut line = |name: &str, bytes: usize, work: &mut dyn FnMut(&mut [f32])| {
        if wanted(name) {
            let seconds = best(|| work(&mut out));
            println!("{name:<28}   {:8.2} GB/s", bytes as f64 / seconds / 1e9);
        }
    };
    line("rms_norm 8192", 12 * n, &mut |out| ops::rms_norm(black_box(&x), &y, 1e-5, out));
    line("swiglu 8192", 12 * n, &mut |out| ops::swiglu(black_box(&x), &y, out));
    line("softmax 8192", 8 * n, &mut |out| ops::softmax(black_box(out)));
    line("rope 8192", 16 * n, &mut |out| ops::rope(black_box(out), &x[..n / 2], &y[..n / 2]));
    let logits = random(92_544);
    let bytes = 4 * logits.len();
    line("argmax 92544", bytes, &mut |_| {
        black_box(sampling::argmax(black_box(&logits)));
    });
    line("log_sum_exp 92544", bytes, &mut |_| {
        black_box(sampling::log_sum_exp(black_box(&logits)));
    });
    line("top_k(40) 92544", bytes, &mut |_| {
        black_box(sampling::top_k(black_box(&logits), 40));
    });
}

fn main() {
    // Cargo passes `--bench`; anything else is a filter.
    let filter = std::env::args().skip(1).find(|a| !a.starts_with('-')).unwrap_or_default();
    let wanted = |name: &str| name.contains(&filter);
    let limits = limits();
    println!("limits of one core           {:8.2} GMAC/s  {:6.2} GB/s", limits.1, limits.0);
    matmuls(wanted, limits);
    codecs(wanted);
    attention(wanted);
    rows(wanted);
}
