//! Files written by Python's safetensors, transformers, peft, gguf, pyarrow and Megatron
//! (`tests/golden/make_golden.py`) read as those tools meant them.

use intern_format::adapter;
use intern_format::checkpoint::{Checkpoint, DType, SafetensorsFile};
use intern_format::document::{self, Document};
use intern_format::gguf::{Array, GgmlType, Gguf, Value};
use intern_format::shards::{self, TokenShard};
use serde_json::json;

use crate::golden;

#[test]
fn safetensors_of_every_type() {
    let file = SafetensorsFile::open(&golden("types.safetensors")).unwrap();
    assert_eq!(file.metadata()["made by"], "safetensors");
    let x = [0.0, 1.0, -2.5, 0.125, 3.0, -448.0];
    for name in ["f64", "f32", "f16", "bf16", "f8_e4m3", "f8_e5m2"] {
        let tensor = file.tensor(name).unwrap();
        assert_eq!(tensor.dtype.name(), name.to_uppercase());
        assert_eq!(tensor.shape, [2, 3]);
        let got = tensor.to_f32();
        for (got, want) in got.iter().zip(x) {
            // E5M2 has two mantissa bits; every other type holds these numbers exactly.
            let tolerance = if name == "f8_e5m2" { 0.15 * f32::abs(want) } else { 0.0 };
            assert!((got - want).abs() <= tolerance, "{name}: {got} for {want}");
        }
    }
    let ints = [
        ("i64", vec![-1.0, 2f32.powi(40)]),
        ("i32", vec![-1.0, 2f32.powi(20)]),
        ("i16", vec![-1.0, 300.0]),
        ("i8", vec![-1.0, 100.0]),
        ("u8", vec![0.0, 255.0]),
        ("bool", vec![1.0, 0.0]),
        ("scalar", vec![7.0]),
        ("empty", vec![]),
    ];
    for (name, want) in ints {
        assert_eq!(file.tensor(name).unwrap().to_f32(), want, "{name}");
    }
    assert_eq!(file.tensor("scalar").unwrap().shape, [0usize; 0]);
    assert_eq!(file.tensor("empty").unwrap().shape, [0, 3]);
    assert_eq!(file.names().count(), 14);
}

#[test]
fn checkpoints_of_transformers_single_and_sharded_agree() {
    let single = Checkpoint::open(&golden("checkpoint-single")).unwrap();
    let sharded = Checkpoint::open(&golden("checkpoint-sharded")).unwrap();
    assert_eq!(single.config()["hidden_size"], 8);
    assert!(single.generation_config().is_object());
    assert_eq!(single.names().collect::<Vec<_>>(), sharded.names().collect::<Vec<_>>());
    assert_eq!(single.names().count(), 12);
    for name in single.names() {
        assert_eq!(single.tensor(name).unwrap(), sharded.tensor(name).unwrap());
    }
    let q = single.tensor("model.layers.0.self_attn.k_proj.weight").unwrap();
    assert_eq!((q.dtype, q.shape), (DType::F32, vec![4, 8]));
}

#[test]
fn adapter_of_peft() {
    let adapter = adapter::open(&golden("adapter")).unwrap();
    assert_eq!((adapter.config.r, adapter.config.lora_alpha, adapter.config.scale()), (2, 6.0, 3.0));
    let mut modules = adapter.config.target_modules.clone();
    modules.sort();
    assert_eq!(modules, ["q_proj", "v_proj"]);
    let a = adapter.file.tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight").unwrap();
    assert_eq!(a.shape, [2, 8]);
    // Saved again, nothing is lost: PEFT reads its own fields back.
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("adapter");
    let names: Vec<String> = adapter.file.names().map(str::to_string).collect();
    let tensors: Vec<_> = names
        .iter()
        .map(|name| {
            let t = adapter.file.tensor(name).unwrap();
            (name.clone(), t.dtype, t.shape, t.data.into())
        })
        .collect();
    adapter::save(&out, &adapter.config, &tensors).unwrap();
    let again = adapter::open(&out).unwrap();
    assert_eq!(again.config, adapter.config);
    assert!(again.config.extra.contains_key("rank_pattern"));
    for name in &names {
        assert_eq!(again.file.tensor(name).unwrap(), adapter.file.tensor(name).unwrap());
    }
}

#[test]
fn gguf_of_every_value_type() {
    let file = Gguf::open(&golden("types.gguf")).unwrap();
    assert_eq!((file.version(), file.alignment()), (3, 32));
    let expect: Vec<(&str, Value)> = vec![
        ("general.architecture", "llama".into()),
        ("v.u8", 200u8.into()),
        ("v.i8", (-100i8).into()),
        ("v.u16", 60_000u16.into()),
        ("v.i16", (-30_000i16).into()),
        ("v.u32", 4_000_000_000u32.into()),
        ("v.i32", (-2_000_000_000i32).into()),
        ("v.f32", 0.5f32.into()),
        ("v.bool", true.into()),
        ("v.string", "naïve 书生".into()),
        ("v.u64", (1u64 << 63).into()),
        ("v.i64", (-(1i64 << 62)).into()),
        ("v.f64", 0.1f64.into()),
        ("v.strings", vec!["a".to_string(), String::new(), "词".to_string()].into()),
        ("v.ints", vec![1i32, -2, 3].into()),
        ("v.floats", vec![0.25f32, -1.5].into()),
        ("v.bools", vec![true, false].into()),
        ("v.nested", Value::Array(Array::Array(vec![Array::I32(vec![1, 2]), Array::I32(vec![3])]))),
    ];
    for (key, value) in &expect {
        assert_eq!(file.get(key), Some(value), "{key}");
    }
    assert_eq!(file.metadata().len(), expect.len());

    let tensors: Vec<_> =
        file.tensors().iter().map(|t| (t.name.as_str(), t.shape.clone(), t.ggml_type, t.nbytes)).collect();
    assert_eq!(
        tensors,
        [
            ("f32", vec![2, 32], GgmlType::F32, 256),
            ("f16", vec![2, 32], GgmlType::F16, 128),
            ("q8_0", vec![2, 32], GgmlType::Q8_0, 68),
            ("bf16", vec![2, 5], GgmlType::BF16, 20),
        ]
    );
    let f32s: Vec<f32> = file
        .data(file.tensor("f32").unwrap())
        .chunks_exact(4)
        .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
        .collect();
    assert_eq!(f32s, (0..64).map(|i| i as f32 / 8.0).collect::<Vec<_>>());
}

#[test]
fn parquet_of_pyarrow_in_each_codec() {
    let fields = |url: &str, lang: &str, meta: serde_json::Value, id: &str, text: &str| Document {
        id: id.into(),
        text: text.into(),
        url: url.into(),
        lang: lang.into(),
        meta: meta.as_object().unwrap().clone(),
        ..Document::default()
    };
    for codec in ["snappy", "zstd", "gzip", "none"] {
        let name = format!("documents-{codec}.parquet");
        let got: Vec<Document> = document::open(&golden(&name)).unwrap().map(Result::unwrap).collect();
        let meta = |score: f64, tags: &[&str], n: u64, big: &str, when: u64| json!({"score": score, "tags": tags, "n": n, "big": big, "when": when});
        assert_eq!(
            got,
            [
                fields("https://example.org/1", "en", meta(0.5, &["x", "y"], 1, "u", 0), "a", "one"),
                fields(
                    "https://example.org/2",
                    "zh",
                    meta(1.5, &[], 2, "v", 1),
                    &format!("{name}/2"),
                    "naïve\n书生"
                ),
                fields("", "", json!({"big": "w", "when": 2}), "c", "three"),
            ]
        );
    }
}

#[test]
fn shards_of_megatron() {
    let shard = TokenShard::open(&golden("shard-uint16")).unwrap();
    assert_eq!(shard.dtype(), shards::DType::U16);
    assert_eq!((shard.num_documents(), shard.num_tokens()), (3, 7));
    // A document of two sequences reads as one.
    let documents: Vec<_> = (0..3).map(|i| shard.document(i)).collect();
    assert_eq!(documents, [vec![1, 2, 65535], vec![4, 5, 6], vec![7]]);
    assert_eq!((0..7).map(|t| shard.document_at(t)).collect::<Vec<_>>(), [0, 0, 0, 1, 1, 1, 2]);
    assert_eq!(shard.window(2, 3), [65535, 4, 5]);

    let shard = TokenShard::open(&golden("shard-int32")).unwrap();
    assert_eq!(shard.dtype(), shards::DType::U32);
    assert_eq!((shard.document(0), shard.document(1)), (vec![70000, 2], vec![3]));
}
