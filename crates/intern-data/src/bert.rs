//! Text classifiers of BERT's family, from a Hugging Face directory: BERT (Devlin et al., 2019),
//! RoBERTa and XLM-R, DistilBERT with a sequence classification head.
//!
//! A text is judged alone and cut to the model's length, as `transformers` does with
//! `truncation=True`; so its probabilities do not depend on what is judged beside it. Texts are
//! judged on one thread each, many at once by the pipeline.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use intern_format::atomic::read_json;
use intern_tokenizer::Tokenizer;
use serde::Deserialize;
use serde_json::Value;

use crate::dense::{Linear, Matrix, Norm, Weights, add, attention, gelu, softmax};

/// A model in memory.
pub struct Bert {
    tokenizer: Tokenizer,
    labels: Vec<String>,
    /// Labels exclude one another.
    exclusive: bool,
    heads: usize,
    eps: f32,
    max_tokens: usize,
    /// Position of the first token.
    first_position: usize,
    words: Matrix,
    positions: Matrix,
    /// The row of the only segment there is; zeros where the family knows none.
    segment: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    /// From the first token's state.
    head: [Linear; 2],
    head_act: fn(f32) -> f32,
}

struct Layer {
    qkv: [Linear; 3],
    out: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

/// The keys of `config.json` that matter, under BERT's and DistilBERT's names.
#[derive(Deserialize)]
struct Config {
    model_type: String,
    #[serde(alias = "n_layers")]
    num_hidden_layers: usize,
    #[serde(alias = "n_heads")]
    num_attention_heads: usize,
    max_position_embeddings: usize,
    #[serde(default = "default_eps")]
    layer_norm_eps: f32,
    #[serde(alias = "activation", default = "gelu_name")]
    hidden_act: String,
    #[serde(default)]
    pad_token_id: Option<usize>,
    #[serde(default)]
    id2label: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    problem_type: Option<String>,
}

fn default_eps() -> f32 {
    1e-12
}

fn gelu_name() -> String {
    "gelu".into()
}

/// Where a family keeps its weights.
struct Names {
    base: &'static str,
    layer: &'static str,
    qkv: [&'static str; 3],
    out: &'static str,
    attention_norm: &'static str,
    up: &'static str,
    down: &'static str,
    norm: &'static str,
    head: [&'static str; 2],
    segment: Option<&'static str>,
}

const BERT: Names = Names {
    base: "bert",
    layer: "encoder.layer",
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    out: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    norm: "output.LayerNorm",
    head: ["bert.pooler.dense", "classifier"],
    segment: Some("embeddings.token_type_embeddings.weight"),
};

const ROBERTA: Names = Names { base: "roberta", head: ["classifier.dense", "classifier.out_proj"], ..BERT };

const DISTILBERT: Names = Names {
    base: "distilbert",
    layer: "transformer.layer",
    qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    out: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    norm: "output_layer_norm",
    head: ["pre_classifier", "classifier"],
    segment: None,
};

impl Bert {
    /// Whether `dir` is a Hugging Face directory of a family this reads.
    #[must_use]
    pub fn is_here(dir: &Path) -> bool {
        let config: Result<Value, _> = read_json(&dir.join("config.json"));
        config.is_ok_and(|c| c.get("model_type").is_some())
    }

    /// Loads `config.json`, `model.safetensors` and `tokenizer.json` of `dir`.
    ///
    /// # Errors
    /// If one is missing, of another family, or without a classification head.
    pub fn open(dir: &Path) -> Result<Self> {
        let config: Config = serde_json::from_value(read_json(&dir.join("config.json"))?)
            .with_context(|| format!("{}: config.json", dir.display()))?;
        let (names, head_act, offset): (_, fn(f32) -> f32, _) = match config.model_type.as_str() {
            "bert" => (BERT, f32::tanh, 0),
            "roberta" | "xlm-roberta" => (ROBERTA, f32::tanh, config.pad_token_id.unwrap_or(1) + 1),
            "distilbert" => (DISTILBERT, |x| x.max(0.0), 0),
            other => bail!(
                "{}: model_type {other:?} is no classifier this reads\n\
                 hint: bert, roberta, xlm-roberta or distilbert with a sequence classification head",
                dir.display()
            ),
        };
        ensure!(
            config.hidden_act == "gelu",
            "{}: hidden_act {:?}, expected \"gelu\"",
            dir.display(),
            config.hidden_act
        );
        let weights = Weights::open(dir)?;
        let (floats, matrix) = (|name: &str| weights.floats(name), |name: &str| weights.matrix(name));
        let (linear, norm) = (|name: &str| weights.linear(name), |name: &str| weights.norm(name));
        let base = |name: &str| format!("{}.{name}", names.base);
        let layer = |i: usize| {
            let at = |name: &str| format!("{}.{}.{i}.{name}", names.base, names.layer);
            let [q, k, v] = names.qkv.map(|name| linear(&at(name)));
            Ok(Layer {
                qkv: [q?, k?, v?],
                out: linear(&at(names.out))?,
                attention_norm: norm(&at(names.attention_norm))?,
                up: linear(&at(names.up))?,
                down: linear(&at(names.down))?,
                norm: norm(&at(names.norm))?,
            })
        };
        let words = matrix(&base("embeddings.word_embeddings.weight"))?;
        let positions = matrix(&base("embeddings.position_embeddings.weight"))?;
        let segment = match names.segment {
            Some(name) => floats(&base(name))?[..words.columns].to_vec(),
            None => vec![0.0; words.columns],
        };
        let head = [linear(names.head[0])?, linear(names.head[1])?];
        let count = head[1].weight.rows;
        let label = |i: usize| config.id2label.get(&i.to_string()).cloned().unwrap_or(format!("LABEL_{i}"));
        ensure!(
            config.num_attention_heads > 0 && words.columns % config.num_attention_heads == 0,
            "{}: {} columns for {} heads",
            dir.display(),
            words.columns,
            config.num_attention_heads
        );
        Ok(Self {
            tokenizer: Tokenizer::from_path(&dir.join("tokenizer.json"))?,
            labels: (0..count).map(label).collect(),
            exclusive: config.problem_type.as_deref() != Some("multi_label_classification") && count > 1,
            heads: config.num_attention_heads,
            eps: config.layer_norm_eps,
            max_tokens: config.max_position_embeddings.min(positions.rows) - offset,
            first_position: offset,
            norm: norm(&base("embeddings.LayerNorm"))?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            words,
            positions,
            segment,
            head,
            head_act,
        })
    }

    /// The labels, in the model's order.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The probability of each label: together 1, or each by itself where the model says so.
    ///
    /// # Errors
    /// If the text cannot be tokenized.
    pub fn probabilities(&self, text: &str) -> Result<Vec<f32>> {
        let mut logits = self.logits(text)?;
        if !self.exclusive {
            logits.iter_mut().for_each(|x| *x = 1.0 / (1.0 + (-*x).exp()));
            return Ok(logits);
        }
        softmax(&mut logits);
        Ok(logits)
    }

    /// What the head gives for a text, one number per label.
    ///
    /// # Errors
    /// If the text cannot be tokenized.
    pub fn logits(&self, text: &str) -> Result<Vec<f32>> {
        // No token is longer than this on average; the rest would be cut anyway.
        let end = text.char_indices().nth(self.max_tokens * 32).map_or(text.len(), |(at, _)| at);
        let mut ids = self.tokenizer.encode(&text[..end], true)?;
        if let Some(&last) = ids.last().filter(|_| ids.len() > self.max_tokens) {
            ids.truncate(self.max_tokens);
            ids[self.max_tokens - 1] = last;
        }
        let (n, c) = (ids.len(), self.words.columns);
        ensure!(n > 0, "the tokenizer gives no token for an empty text");
        let mut x = Vec::with_capacity(n * c);
        for (i, &id) in ids.iter().enumerate() {
            ensure!((id as usize) < self.words.rows, "token {id} of {} rows", self.words.rows);
            let word = self.words.row(id as usize);
            let position = self.positions.row(self.first_position + i);
            x.extend(word.iter().zip(position).zip(&self.segment).map(|((w, p), s)| w + p + s));
        }
        self.norm.apply(self.eps, &mut x);
        for layer in &self.layers {
            let y = layer.out.apply(&attention(&layer.qkv, self.heads, &x, n, false), n);
            add(&mut x, &y);
            layer.attention_norm.apply(self.eps, &mut x);
            let mut h = layer.up.apply(&x, n);
            h.iter_mut().for_each(|h| *h = gelu(*h));
            let y = layer.down.apply(&h, n);
            add(&mut x, &y);
            layer.norm.apply(self.eps, &mut x);
        }
        let mut first = self.head[0].apply(&x[..c], 1);
        first.iter_mut().for_each(|x| *x = (self.head_act)(*x));
        Ok(self.head[1].apply(&first, 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_are_those_of_transformers() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert");
        let expected: Value = read_json(&golden.join("expected.json")).unwrap();
        for family in ["bert", "roberta", "distilbert"] {
            let model = Bert::open(&golden.join(family)).unwrap();
            assert_eq!(model.labels(), ["clean", "toxic", "advert"]);
            for (i, text) in expected["texts"].as_array().unwrap().iter().enumerate() {
                let text = text.as_str().unwrap();
                let theirs = expected["logits"][family][i].as_array().unwrap();
                for (ours, theirs) in model.logits(text).unwrap().iter().zip(theirs) {
                    let theirs = theirs.as_f64().unwrap() as f32;
                    assert!(
                        (ours - theirs).abs() < 2e-5 * theirs.abs().max(1.0),
                        "{family}, {text:.20}: {ours}, {theirs}"
                    );
                }
                let sum: f32 = model.probabilities(text).unwrap().iter().sum();
                assert_eq!(
                    (sum - 1.0).abs() < 1e-5,
                    family != "distilbert",
                    "labels of distilbert here are independent"
                );
            }
        }
        assert!(!Bert::is_here(&golden));
    }

    #[test]
    fn another_family_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = r#"{"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 1, "max_position_embeddings": 8}"#;
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let error = Bert::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("\"llama\"") && error.contains("hint: bert"), "{error}");
    }
}
