//! What we write, we read back: properties over arbitrary content, and the promises of
//! directories that are replaced.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use intern_format::checkpoint::{self, Checkpoint, DType, NamedTensor, SafetensorsFile, save_safetensors};
use intern_format::gguf::{Array, GgmlType, Gguf, GgufWriter, Value};
use intern_format::shards::{self, ShardWriter, TokenShard};
use proptest::prelude::*;
use serde_json::json;

const DTYPES: [DType; 6] = [DType::F64, DType::F32, DType::BF16, DType::I64, DType::U16, DType::Bool];

/// Tensors with distinct names and arbitrary bytes.
fn tensors() -> impl Strategy<Value = Vec<NamedTensor<'static>>> {
    let one = (0..DTYPES.len(), prop::collection::vec(0usize..4, 0..4), any::<u8>());
    prop::collection::vec(one, 0..8).prop_map(|list| {
        let tensor = |(i, (dtype, shape, seed)): (usize, (usize, Vec<usize>, u8))| {
            let n = shape.iter().product::<usize>() * DTYPES[dtype].size();
            let data: Vec<u8> = (0..n).map(|k| (k as u8).wrapping_mul(31).wrapping_add(seed)).collect();
            (format!("layers.{i}.书\"weight"), DTYPES[dtype], shape, data.into())
        };
        list.into_iter().enumerate().map(tensor).collect()
    })
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        (-1e9f32..1e9).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e9f64..1e9).prop_map(Value::from),
    ]
}

fn array() -> impl Strategy<Value = Array> {
    let flat = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..5).prop_map(Array::U8),
        prop::collection::vec(any::<i16>(), 0..5).prop_map(Array::I16),
        prop::collection::vec(any::<u32>(), 0..5).prop_map(Array::U32),
        prop::collection::vec(any::<i32>(), 0..5).prop_map(Array::I32),
        prop::collection::vec(-1e9f32..1e9, 0..5).prop_map(Array::F32),
        prop::collection::vec(any::<bool>(), 0..5).prop_map(Array::Bool),
        prop::collection::vec(".{0,6}", 0..5).prop_map(Array::String),
        prop::collection::vec(any::<u64>(), 0..5).prop_map(Array::U64),
        prop::collection::vec(-1e9f64..1e9, 0..5).prop_map(Array::F64),
    ];
    flat.prop_recursive(3, 12, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(Array::Array))
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![scalar(), array().prop_map(Value::Array)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn safetensors(tensors in tensors(), note in ".{0,8}") {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let metadata = BTreeMap::from([("note".to_string(), note)]);
        save_safetensors(&path, &tensors, &metadata).unwrap();
        let file = SafetensorsFile::open(&path).unwrap();
        prop_assert_eq!(file.metadata(), &metadata);
        prop_assert_eq!(file.names().count(), tensors.len());
        for (name, dtype, shape, data) in &tensors {
            let view = file.tensor(name).unwrap();
            prop_assert_eq!((view.dtype, &view.shape, view.data), (*dtype, shape, &data[..]));
            // Widest first, so a tensor of N-byte elements starts at a multiple of N.
            prop_assert_eq!(view.data.as_ptr() as usize % dtype.size(), 0);
        }
    }

    #[test]
    fn checkpoints_in_any_shard_size(tensors in tensors(), shard_bytes in 1u64..200) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        let config = json!({"vocab_size": 3, "nested": {"b": 1, "a": [null]}});
        let generation = json!({"eos_token_id": 2});
        // Twice: into a new directory, then over it with another cut.
        for shard_bytes in [shard_bytes, 100] {
            checkpoint::save(&path, &config, &generation, &tensors, shard_bytes).unwrap();
            let read = Checkpoint::open(&path).unwrap();
            prop_assert_eq!(read.config().to_string(), config.to_string());
            prop_assert_eq!(read.generation_config(), &generation);
            prop_assert_eq!(read.names().count(), tensors.len());
            for (name, dtype, shape, data) in &tensors {
                let view = read.tensor(name).unwrap();
                prop_assert_eq!((view.dtype, &view.shape, view.data), (*dtype, shape, &data[..]));
            }
            let total: usize = tensors.iter().map(|t| t.3.len()).sum();
            let index = path.join("model.safetensors.index.json");
            prop_assert!(path.join("model.safetensors").exists() != index.exists());
            if let Ok(text) = fs::read_to_string(index) {
                let index: serde_json::Value = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(index["metadata"]["total_size"].as_u64(), Some(total as u64));
            }
        }
    }

    #[test]
    fn gguf(
        metadata in prop::collection::btree_map("[a-z.]{1,8}", value(), 0..8),
        shapes in prop::collection::vec((0usize..5, prop::collection::vec(0usize..4, 0..3)), 0..6),
        alignment in prop::sample::select(vec![None, Some(8u32), Some(64)]),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        let mut writer = GgufWriter::create(&path).unwrap();
        for (key, value) in &metadata {
            writer.metadata(key, value.clone());
        }
        if let Some(n) = alignment {
            writer.metadata("general.alignment", n);
        }
        let types = [GgmlType::F32, GgmlType::F16, GgmlType::Q8_0, GgmlType::Q4_K, GgmlType::I8];
        let mut expect = Vec::new();
        for (i, (kind, outer)) in shapes.iter().enumerate() {
            let kind = types[*kind];
            let mut shape = outer.clone();
            shape.push(kind.block_size() * 2);
            let nbytes = kind.nbytes(&shape).unwrap();
            writer.declare(&format!("t{i}"), &shape, kind).unwrap();
            expect.push((format!("t{i}"), shape, kind, vec![i as u8 + 1; nbytes]));
        }
        for (i, (name, _, _, data)) in expect.iter().enumerate() {
            if i % 2 == 0 && !data.is_empty() {
                data.chunks(7).for_each(|chunk| writer.append(chunk).unwrap());
            } else {
                writer.write_tensor(name, data).unwrap();
            }
        }
        writer.finish().unwrap();
        let file = Gguf::open(&path).unwrap();
        prop_assert_eq!(file.alignment(), alignment.unwrap_or(32) as usize);
        for (key, value) in &metadata {
            prop_assert_eq!(file.get(key), Some(value));
        }
        prop_assert_eq!(file.tensors().len(), expect.len());
        for (name, shape, kind, data) in &expect {
            let info = file.tensor(name).unwrap();
            prop_assert_eq!((&info.shape, info.ggml_type, file.data(info)), (shape, *kind, &data[..]));
        }
    }

    #[test]
    fn shards_like_vectors(
        documents in prop::collection::vec(prop::collection::vec(any::<u16>(), 0..6), 0..12),
        wide in any::<bool>(),
        start in 0u64..80,
        len in 0usize..80,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("corpus.v1");
        let dtype = if wide { shards::DType::U32 } else { shards::DType::U16 };
        let scale = if wide { 1000 } else { 1 };
        let documents: Vec<Vec<u32>> =
            documents.iter().map(|d| d.iter().map(|&t| u32::from(t) * scale).collect()).collect();
        let mut writer = ShardWriter::create(&prefix, dtype).unwrap();
        documents.iter().for_each(|d| writer.push(d).unwrap());
        writer.finish().unwrap();

        let shard = TokenShard::open(&prefix).unwrap();
        let stream: Vec<u32> = documents.concat();
        prop_assert_eq!(shard.num_documents(), documents.len());
        prop_assert_eq!(shard.num_tokens(), stream.len() as u64);
        for (i, document) in documents.iter().enumerate() {
            prop_assert_eq!(&shard.document(i), document);
        }
        let end = (start as usize + len).min(stream.len());
        let expect = stream.get(start as usize..end).unwrap_or_default();
        prop_assert_eq!(shard.window(start, len), expect);
        let owners = documents.iter().enumerate().flat_map(|(i, d)| d.iter().map(move |_| i));
        for (token, owner) in owners.enumerate() {
            prop_assert_eq!(shard.document_at(token as u64), owner);
        }
    }
}

fn tensor(name: &str, n: usize) -> NamedTensor<'static> {
    (name.to_string(), DType::U8, vec![n], vec![7; n].into())
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_saved_over_another_leaves_only_itself_and_other_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    let empty = json!({});
    let two = [tensor("a", 100), tensor("b", 100)];
    checkpoint::save(&path, &empty, &empty, &two, 100).unwrap();
    fs::write(path.join("tokenizer.json"), "{}").unwrap();
    let sharded = [
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(names(&path), sharded);
    checkpoint::save(&path, &empty, &empty, &two, u64::MAX).unwrap();
    assert_eq!(
        names(&path),
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    );
    checkpoint::save(&path, &empty, &empty, &two, 100).unwrap();
    assert_eq!(names(&path), sharded);
    assert_eq!(names(dir.path()), ["model"]);
}

#[test]
fn writers_refuse_what_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let text = |e: intern_format::Error| e.to_string();
    let wrong: NamedTensor<'_> = ("a".into(), DType::F32, vec![2], vec![0; 7].into());
    assert!(
        text(save_safetensors(&path, &[wrong], &BTreeMap::new()).unwrap_err())
            .contains("tensor `a`: expected 8 bytes for shape [2] in F32, found 7 bytes")
    );
    let twice = [tensor("a", 1), tensor("a", 1)];
    assert!(
        text(save_safetensors(&path, &twice, &BTreeMap::new()).unwrap_err())
            .contains("expected each name once")
    );
    let model = dir.path().join("model");
    assert!(checkpoint::save(&model, &json!({}), &json!({}), &twice, 1).is_err());
    assert!(!model.exists());

    let mut writer = ShardWriter::create(&path, shards::DType::U16).unwrap();
    assert!(
        text(writer.push(&[1, 65536]).unwrap_err())
            .contains("token id 65536 in a U16 shard is not supported\nhint:")
    );
    drop(writer);

    let mut writer = GgufWriter::create(&path).unwrap();
    assert!(
        text(writer.declare("t", &[2, 33], GgmlType::Q8_0).unwrap_err())
            .contains("rows of whole Q8_0 blocks of 32")
    );
    writer.declare("t", &[2], GgmlType::F32).unwrap();
    assert!(text(writer.declare("t", &[2], GgmlType::F32).unwrap_err()).contains("each tensor once"));
    assert!(
        text(writer.write_tensor("u", &[0; 8]).unwrap_err())
            .contains("expected tensor `t`, found tensor `u`")
    );
    assert!(text(writer.write_tensor("t", &[0; 7]).unwrap_err()).contains("expected 8 bytes, found 7 bytes"));
    writer.append(&[0; 4]).unwrap();
    assert!(text(writer.append(&[0; 5]).unwrap_err()).contains("only what was declared"));
    assert!(text(writer.finish().unwrap_err()).contains("tensor `t`: expected 8 bytes, found 4 bytes"));
    assert!(names(dir.path()).is_empty());
}

#[test]
fn the_right_hint_for_the_wrong_directory() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    #[track_caller]
    fn check(path: &Path, expect: &str) {
        let text = Checkpoint::open(path).unwrap_err().to_string();
        assert!(text.contains(expect), "{text}");
    }
    check(&root.join("none"), "hint: check the path");
    check(root, "missing config.json\nhint: a checkpoint is a directory with config.json");
    fs::write(root.join("adapter_config.json"), "{}").unwrap();
    check(root, "hint: this is an adapter");
    check(&root.join("adapter_config.json"), "hint: give the directory");
    fs::write(root.join("config.json"), "[]").unwrap();
    check(root, "config.json: line 1: expected a JSON object, found an array");
    fs::write(root.join("config.json"), "{}").unwrap();
    check(root, "missing model.safetensors\nhint:");
    fs::write(root.join("pytorch_model.bin"), "").unwrap();
    check(root, "a pickled checkpoint is not supported\nhint:");
    let index = root.join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {"a": "../secret"}}"#).unwrap();
    check(root, "weight_map: expected names of files beside it, found `../secret`");
    fs::write(&index, r#"{"weight_map": {"a": "b.safetensors"}}"#).unwrap();
    check(root, "missing shard `b.safetensors`\nhint:");
    save_safetensors(&root.join("b.safetensors"), &[tensor("c.weight", 1)], &BTreeMap::new()).unwrap();
    check(root, "b.safetensors: missing tensor `a`\nhint: model.safetensors.index.json says it is there");
    fs::write(&index, r#"{"weight_map": {"c.weight": "b.safetensors"}}"#).unwrap();
    let text = Checkpoint::open(root).unwrap().tensor("model.c.weight").unwrap_err().to_string();
    assert!(text.contains("missing tensor `model.c.weight`\nhint: there is a tensor `c.weight`"), "{text}");
}
