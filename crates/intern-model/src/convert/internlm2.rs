//! InternLM2's fused `wqkv` and names to Llama's layout, and back.
//!
//! The two compute the same function, so this is a renaming and a reordering of rows.

use super::copy_tokenizer;
use crate::config::{Architecture, ModelConfig, RopeScaling};
use crate::weights::{QkvNames, fuse_wqkv, layer_names, outer_names, split_wqkv, tensor_shapes};
use anyhow::{Context, Result, bail, ensure};
use intern_format::checkpoint::{self, Checkpoint, TensorSpec};
use serde_json::Value;
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

/// Rewrites an InternLM2 checkpoint as Llama, which `transformers` opens without custom code.
pub fn internlm2_to_llama(input: &Path, out: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(input)?;
    let from = ModelConfig::from_json(checkpoint.config()).with_context(|| input.display().to_string())?;
    ensure!(
        from.arch == Architecture::InternLm2,
        "{}: model_type is {}, expected internlm2\nhint: this checkpoint has Llama's layout already",
        input.display(),
        from.arch.model_type()
    );
    let to = ModelConfig { arch: Architecture::Llama, ..from.clone() };
    rewrite(&checkpoint, &from, &to, out)
}

/// Rewrites a checkpoint in Llama's layout (Llama, InternLM3, Mistral without a window) as InternLM2.
///
/// Refused where InternLM2 cannot express the model: feed-forward biases, heads that do not make up
/// the hidden size, RoPE scalings other than linear and dynamic.
pub fn llama_to_internlm2(input: &Path, out: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(input)?;
    let from = ModelConfig::from_json(checkpoint.config()).with_context(|| input.display().to_string())?;
    let refuse = |why: String| -> Result<()> {
        bail!("{}: {why}\nhint: InternLM2's layout cannot hold this model", input.display())
    };
    match from.arch {
        Architecture::Llama | Architecture::InternLm3 => {}
        Architecture::Mistral if from.sliding_window.is_none() => {}
        Architecture::Mistral => refuse("it has a sliding attention window".to_owned())?,
        other => refuse(format!("model_type is {}, expected llama", other.model_type()))?,
    }
    if from.mlp_bias || from.attention_bias != from.output_bias {
        refuse("it has biases InternLM2 lacks".to_owned())?;
    }
    if from.num_heads * from.head_dim != from.hidden_size {
        refuse(format!(
            "hidden_size {} is not num_attention_heads {} * head_dim {}",
            from.hidden_size, from.num_heads, from.head_dim
        ))?;
    }
    if matches!(from.rope_scaling, RopeScaling::Llama3 { .. } | RopeScaling::Yarn { .. }) {
        refuse("its RoPE scaling is neither linear nor dynamic".to_owned())?;
    }
    let to = ModelConfig { arch: Architecture::InternLm2, ..from.clone() };
    rewrite(&checkpoint, &from, &to, out)
}

/// Where an output tensor comes from.
enum Source {
    Same(String),
    /// The whole `wqkv`, of which query, key or value (0, 1, 2) is taken.
    Part(String, usize),
    /// Query, key and value.
    Whole([String; 3]),
}

/// For every tensor of `to`, its source among the tensors of `from`.
fn sources(from: &ModelConfig, to: &ModelConfig) -> HashMap<String, Source> {
    let mut out = HashMap::new();
    let mut module = |to: &str, from: &str| {
        for part in ["weight", "bias"] {
            out.insert(format!("{to}.{part}"), Source::Same(format!("{from}.{part}")));
        }
    };
    let (a, b) = (outer_names(from.arch), outer_names(to.arch));
    module(b.embedding, a.embedding);
    module(b.norm, a.norm);
    module(b.head, a.head);
    let layers: Vec<_> =
        (0..from.num_layers).map(|i| (layer_names(from.arch, i), layer_names(to.arch, i))).collect();
    for (a, b) in &layers {
        module(&b.attention_norm, &a.attention_norm);
        module(&b.ffn_norm, &a.ffn_norm);
        module(&b.o, &a.o);
        module(&b.gate, &a.gate);
        module(&b.up, &a.up);
        module(&b.down, &a.down);
    }
    for (a, b) in &layers {
        for part in ["weight", "bias"] {
            match (&a.qkv, &b.qkv) {
                (QkvNames::Fused(a), QkvNames::Separate(b)) => {
                    for (i, b) in b.iter().enumerate() {
                        out.insert(format!("{b}.{part}"), Source::Part(format!("{a}.{part}"), i));
                    }
                }
                (QkvNames::Separate(a), QkvNames::Fused(b)) => {
                    let from = [0, 1, 2].map(|i| format!("{}.{part}", a[i]));
                    out.insert(format!("{b}.{part}"), Source::Whole(from));
                }
                _ => unreachable!("one side is InternLM2"),
            }
        }
    }
    out
}

fn rewrite(checkpoint: &Checkpoint, from: &ModelConfig, to: &ModelConfig, out: &Path) -> Result<()> {
    let expected: HashMap<String, Vec<usize>> = tensor_shapes(from).into_iter().collect();
    let read = |name: &str| -> Result<checkpoint::TensorView<'_>> {
        let view = checkpoint.tensor(name)?;
        crate::checkpoint::check_shape(checkpoint.dir(), name, &view, &expected[name])?;
        Ok(view)
    };
    let sources = sources(from, to);
    let shapes = tensor_shapes(to);
    let specs = shapes
        .iter()
        .map(|(name, shape)| {
            let (Source::Same(source) | Source::Part(source, _) | Source::Whole([source, ..])) =
                &sources[name];
            Ok(TensorSpec { name: name.clone(), dtype: read(source)?.dtype, shape: shape.clone() })
        })
        .collect::<Result<Vec<_>>>()?;
    let bytes = |i: usize| -> Result<Cow<'_, [u8]>> {
        // Bytes of one row: as many bytes as columns, times the size of an element.
        let row = shapes[i].1[1..].iter().product::<usize>() * specs[i].dtype.size();
        Ok(match &sources[&shapes[i].0] {
            Source::Same(name) => Cow::Borrowed(read(name)?.data),
            Source::Part(name, which) => {
                let [q, k, v] = split_wqkv(from, read(name)?.data, row);
                Cow::Owned([q, k, v].into_iter().nth(*which).expect("three parts"))
            }
            Source::Whole([q, k, v]) => {
                let (q, k, v) = (read(q)?, read(k)?, read(v)?);
                ensure!(q.dtype == k.dtype && k.dtype == v.dtype, "q_proj, k_proj and v_proj of one type");
                Cow::Owned(fuse_wqkv(to, q.data, k.data, v.data, row))
            }
        })
    };
    let mut config = to.to_json();
    for key in ["torch_dtype", "dtype"] {
        if let Some(dtype) = checkpoint.config().get(key) {
            config["torch_dtype"] = dtype.clone();
        }
    }
    let generation = match checkpoint.generation_config() {
        Value::Object(o) if !o.is_empty() => checkpoint.generation_config().clone(),
        _ => to.generation_json(),
    };
    checkpoint::save_with(out, &config, &generation, &specs, checkpoint::DEFAULT_SHARD_BYTES, |i, file| {
        file.write_all(&bytes(i).map_err(std::io::Error::other)?)
    })?;
    copy_tokenizer(checkpoint.dir(), out)
}
