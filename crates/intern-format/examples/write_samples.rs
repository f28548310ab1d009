//! Writes one file of every format into a directory, for `tests/golden/check_interop.py`
//! to open with the tools that own the formats.
//!
//! `cargo run -p intern-format --example write_samples -- DIR`

use std::error::Error;
use std::path::PathBuf;

use intern_format::adapter::{self, AdapterConfig};
use intern_format::checkpoint::{self, DType, NamedTensor};
use intern_format::document::{Document, DocumentWriter};
use intern_format::gguf::{Array, GgmlType, GgufWriter, Value};
use intern_format::metrics::MetricsWriter;
use intern_format::shards::{self, ShardWriter};
use serde_json::json;

/// A tensor whose element `i` is `i / 64`, in f32.
fn ramp(name: &str, shape: &[usize]) -> NamedTensor<'static> {
    let n: usize = shape.iter().product();
    let data: Vec<u8> = (0..n).flat_map(|i| (i as f32 / 64.0).to_le_bytes()).collect();
    (name.to_string(), DType::F32, shape.to_vec(), data.into())
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = PathBuf::from(std::env::args().nth(1).ok_or("usage: write_samples DIR")?);

    for name in ["documents.jsonl", "documents.jsonl.gz", "documents.jsonl.zst", "documents.parquet"] {
        let mut writer = DocumentWriter::create(&dir.join(name))?;
        for i in 0..3 {
            let mut document = Document::new(format!("d{i}"), format!("text {i} 书生"));
            document.lang = "zh".into();
            document.meta.insert("n".into(), i.into());
            writer.write(&document)?;
        }
        writer.finish()?;
    }

    for (name, dtype, big) in [("u16", shards::DType::U16, 65_535), ("u32", shards::DType::U32, 92_543)] {
        let mut writer = ShardWriter::create(&dir.join(name), dtype)?;
        writer.push(&[1, 2, big])?;
        writer.push(&[])?;
        writer.push(&[4])?;
        writer.finish()?;
    }

    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32, "hidden_size": 8,
        "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "max_position_embeddings": 16, "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "torch_dtype": "float32",
    });
    let layer = |name: &str, shape: &[usize]| ramp(&format!("model.layers.0.{name}.weight"), shape);
    let tensors = [
        ramp("model.embed_tokens.weight", &[32, 8]),
        layer("self_attn.q_proj", &[8, 8]),
        layer("self_attn.k_proj", &[4, 8]),
        layer("self_attn.v_proj", &[4, 8]),
        layer("self_attn.o_proj", &[8, 8]),
        layer("mlp.gate_proj", &[16, 8]),
        layer("mlp.up_proj", &[16, 8]),
        layer("mlp.down_proj", &[8, 16]),
        layer("input_layernorm", &[8]),
        layer("post_attention_layernorm", &[8]),
        ramp("model.norm.weight", &[8]),
        ramp("lm_head.weight", &[32, 8]),
    ];
    let generation = json!({"bos_token_id": 1, "eos_token_id": 2});
    checkpoint::save(&dir.join("single"), &config, &generation, &tensors, u64::MAX)?;
    checkpoint::save(&dir.join("sharded"), &config, &generation, &tensors, 2000)?;

    let base = dir.join("single").to_string_lossy().into_owned();
    let mut lora = AdapterConfig::lora(2, 6.0, vec!["q_proj".into()], Some(base));
    lora.use_rslora = true;
    let name = |part: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{part}.weight");
    adapter::save(&dir.join("adapter"), &lora, &[ramp(&name("A"), &[2, 8]), ramp(&name("B"), &[8, 2])])?;

    let mut gguf = GgufWriter::create(&dir.join("model.gguf"))?;
    gguf.metadata("general.architecture", "llama");
    gguf.metadata("general.alignment", 64u32);
    gguf.metadata("v.u8", 200u8);
    gguf.metadata("v.i8", -100i8);
    gguf.metadata("v.u16", 60_000u16);
    gguf.metadata("v.i16", -30_000i16);
    gguf.metadata("v.u32", 4_000_000_000u32);
    gguf.metadata("v.i32", -2_000_000_000i32);
    gguf.metadata("v.f32", 0.5f32);
    gguf.metadata("v.bool", true);
    gguf.metadata("v.string", "naïve 书生");
    gguf.metadata("v.u64", 1u64 << 63);
    gguf.metadata("v.i64", -(1i64 << 62));
    gguf.metadata("v.f64", 0.1f64);
    gguf.metadata("v.strings", vec!["a".to_string(), String::new(), "词".to_string()]);
    gguf.metadata("v.floats", vec![0.25f32, -1.5]);
    gguf.metadata("v.bools", vec![true, false]);
    gguf.metadata("v.nested", Value::Array(Array::Array(vec![Array::I32(vec![1, 2]), Array::I32(vec![3])])));
    gguf.declare("f32", &[2, 32], GgmlType::F32)?;
    gguf.declare("q8_0", &[2, 32], GgmlType::Q8_0)?;
    gguf.write_tensor("f32", &ramp("", &[2, 32]).3)?;
    // Two blocks: scale 2.0 (0x4000 as f16), then quants 0..32 and −32..0.
    for start in [0i8, -32] {
        gguf.append(&[0x00, 0x40])?;
        gguf.append(&(0..32).map(|i| (start + i) as u8).collect::<Vec<_>>())?;
    }
    gguf.finish()?;

    let mut metrics = MetricsWriter::open(&dir.join("run"))?;
    for step in 1..=5 {
        metrics.log(step, &[("loss", 1.0 / step as f64), ("lr", 0.001)])?;
    }
    drop(metrics);
    let mut metrics = MetricsWriter::open(&dir.join("run"))?;
    metrics.truncate_after(3)?;
    metrics.log(400, &[("loss", 0.125)])?;
    Ok(())
}
