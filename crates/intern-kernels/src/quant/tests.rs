//! The block codecs against their definitions.

use proptest::prelude::*;

use super::*;
use crate::rng::Rng;

fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = Rng::new(seed, 0);
    (0..n).map(|_| rng.normal() as f32).collect()
}

fn round_trip(ty: BlockType, values: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0; ty.row_bytes(values.len())];
    quantize(ty, values, &mut bytes);
    let mut back = vec![0.0; values.len()];
    dequantize(ty, &bytes, &mut back);
    back
}

/// Root mean square error relative to the values' own size.
fn relative_error(values: &[f32], back: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = values.iter().zip(back).map(|(a, b)| square(f64::from(a - b))).sum();
    let power: f64 = values.iter().map(|a| square(f64::from(*a))).sum();
    (error / power).sqrt()
}

#[test]
fn error_of_normal_values_is_what_the_bits_allow() {
    let values = normal(256 * 64, 1);
    for (ty, most) in [
        (BlockType::F32, 0.0),
        (BlockType::F16, 3e-4),
        (BlockType::BF16, 2e-3),
        (BlockType::Q8_0, 0.0060),
        (BlockType::Q6K, 0.0180),
        (BlockType::Q5K, 0.0390),
        (BlockType::Q5_0, 0.0450),
        (BlockType::Q5_1, 0.0430),
        (BlockType::Q4K, 0.0760),
        (BlockType::Q4_1, 0.0850),
        (BlockType::Q4_0, 0.0900),
    ] {
        let error = relative_error(&values, &round_trip(ty, &values));
        assert!(error <= most, "{}: {error} > {most}", ty.name());
    }
}

/// A type, ggml's bytes and the values ggml reads from them.
type Golden = (BlockType, &'static [u8], Vec<f32>);

/// What `make_quant.py` wrote.
struct Goldens {
    values: Vec<f32>,
    types: Vec<Golden>,
    importance: Vec<f32>,
    /// ggml's bytes when it knows the importances.
    weighted: Vec<(BlockType, &'static [u8])>,
}

fn golden() -> Goldens {
    use BlockType as B;
    const N: usize = 2048;
    let mut file: &[u8] = include_bytes!("../../tests/golden/quant.bin");
    let mut take = |n: usize| {
        let (head, tail) = file.split_at(n);
        file = tail;
        head
    };
    let floats = |b: &[u8]| b.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let values = floats(take(4 * N));
    let types = [
        B::Q8_0,
        B::Q4_0,
        B::Q4_1,
        B::Q5_0,
        B::Q5_1,
        B::Q4K,
        B::Q5K,
        B::Q6K,
        B::Q2K,
        B::Q3K,
        B::Iq4Nl,
        B::Mxfp4,
    ]
    .map(|ty| (ty, take(ty.row_bytes(N)), floats(take(4 * N))));
    let importance = floats(take(4 * N));
    let weighted =
        [B::Q4_0, B::Q4_1, B::Q5_0, B::Q5_1, B::Q4K, B::Q5K, B::Q6K].map(|ty| (ty, take(ty.row_bytes(N))));
    assert!(file.is_empty(), "quant.bin holds more than is read here");
    Goldens { values, types: types.into(), importance, weighted: weighted.into() }
}

#[test]
fn ggmls_bytes_decode_to_ggmls_numbers() {
    for (ty, bytes, want) in golden().types {
        let mut got = vec![0.0; want.len()];
        dequantize(ty, bytes, &mut got);
        // ggml's compiler fuses some multiplications with additions.
        let close = |a: f32, b: f32| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
        assert!(got.iter().zip(&want).all(|(a, b)| close(*a, *b)), "{}", ty.name());
    }
}

#[test]
fn our_encoders_are_as_good_as_ggmls() {
    let Goldens { values, types, .. } = golden();
    for (ty, bytes, ggml) in types.into_iter().filter(|g| g.0.can_encode()) {
        let mut ours = vec![0; bytes.len()];
        quantize(ty, &values, &mut ours);
        let (our_error, their_error) =
            (relative_error(&values, &round_trip(ty, &values)), relative_error(&values, &ggml));
        println!("{}: error {our_error:.6}, ggml's {their_error:.6}", ty.name());
        assert!(our_error <= their_error, "{}: {our_error}, ggml {their_error}", ty.name());
        if matches!(ty, BlockType::Q8_0 | BlockType::Q4_0 | BlockType::Q5_0) {
            assert_eq!(ours, bytes, "{}", ty.name());
        }
    }
}

#[test]
fn with_importances_too() {
    let Goldens { values, importance, weighted, .. } = golden();
    let error = |ty: BlockType, bytes: &[u8]| {
        let mut back = vec![0.0; values.len()];
        dequantize(ty, bytes, &mut back);
        let term = |((x, y), w): ((&f32, &f32), &f32)| f64::from(*w) * f64::from(x - y).powi(2);
        values.iter().zip(&back).zip(&importance).map(term).sum::<f64>().sqrt()
    };
    for (ty, ggml) in weighted {
        let (mut plain, mut ours) = (vec![0; ggml.len()], vec![0; ggml.len()]);
        quantize(ty, &values, &mut plain);
        quantize_weighted(ty, &values, &importance, &mut ours);
        let (plain, ours, theirs) = (error(ty, &plain), error(ty, &ours), error(ty, ggml));
        println!(
            "{}: weighted error {ours:.4}, ggml's {theirs:.4}, without importances {plain:.4}",
            ty.name()
        );
        assert!(ours <= theirs && ours < plain, "{}: {ours}, ggml {theirs}, plain {plain}", ty.name());
    }
}

#[test]
fn zeros_and_constants_survive() {
    for ty in BlockType::ALL.into_iter().filter(|t| t.can_encode()) {
        assert_eq!(round_trip(ty, &[0.0; 256]), vec![0.0; 256], "{}", ty.name());
        for c in [-3.0, 0.5] {
            let back = round_trip(ty, &[c; 256]);
            assert!(back.iter().all(|x| (x - c).abs() < 0.04 * c.abs()), "{} of {c}: {}", ty.name(), back[0]);
        }
    }
}

#[test]
fn scales_and_minima_pack_into_twelve_bytes() {
    let scales = [0, 1, 17, 63, 62, 33, 16, 15];
    let mins = [63, 48, 15, 0, 1, 32, 47, 63];
    let mut packed = [0; 12];
    pack_scale_min(&scales, &mins, &mut packed);
    for j in 0..8 {
        assert_eq!(unpack_scale_min(j, &packed), (scales[j], mins[j]), "group {j}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 210 * 2)) {
        for ty in BlockType::ALL {
            let blocks = bytes.len() / ty.block_bytes();
            let mut out = vec![0.0; blocks * ty.block_size()];
            dequantize(ty, &bytes[..blocks * ty.block_bytes()], &mut out);
        }
    }

    #[test]
    fn any_finite_values_encode(values in prop::collection::vec(-1e4f32..1e4, 256)) {
        for ty in BlockType::ALL.into_iter().filter(|t| t.can_encode()) {
            let back = round_trip(ty, &values);
            prop_assert!(back.iter().all(|x| x.is_finite()), "{}", ty.name());
            prop_assert!(relative_error(&values, &back) < 0.2, "{}", ty.name());
        }
    }
}
