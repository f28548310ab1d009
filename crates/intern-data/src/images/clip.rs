//! How well a text fits a picture: CLIP (Radford et al., "Learning Transferable Visual Models From
//! Natural Language Supervision", 2021) from a Hugging Face directory.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use image::DynamicImage;
use image::imageops::FilterType;
use intern_format::atomic::read_json;
use intern_tokenizer::Tokenizer;
use serde::Deserialize;

use crate::dense::{Linear, Matrix, Norm, Weights, add, attention, gelu};

/// A model in memory. Everything runs on the calling thread.
pub struct Clip {
    tokenizer: Tokenizer,
    words: Matrix,
    word_positions: Matrix,
    text: Encoder,
    text_norm: Norm,
    text_projection: Matrix,
    /// The token whose state stands for the text; `None` takes the one with the highest number.
    eos: Option<u32>,
    class: Vec<f32>,
    patches: Matrix,
    patch_positions: Matrix,
    before: Norm,
    vision: Encoder,
    after: Norm,
    visual_projection: Matrix,
    patch: usize,
    prepare: Preprocessor,
}

struct Encoder {
    heads: usize,
    eps: f32,
    act: fn(f32) -> f32,
    layers: Vec<Layer>,
}

struct Layer {
    norms: [Norm; 2],
    qkv: [Linear; 3],
    out: Linear,
    up: Linear,
    down: Linear,
}

#[derive(Deserialize)]
struct Config {
    text_config: Tower,
    vision_config: Tower,
}

/// Keys of `text_config` and `vision_config`; their defaults are those of the base model.
#[derive(Deserialize)]
struct Tower {
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    hidden_act: Option<String>,
    layer_norm_eps: Option<f32>,
    eos_token_id: Option<u32>,
    patch_size: Option<usize>,
}

/// What `preprocessor_config.json` says.
#[derive(Deserialize)]
struct Preprocessor {
    #[serde(default = "crop_size")]
    crop_size: Size,
    #[serde(default = "mean")]
    image_mean: [f32; 3],
    #[serde(default = "std")]
    image_std: [f32; 3],
}

/// `224` or `{"height": 224, "width": 224}`.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Size {
    One(u32),
    Two { height: u32 },
}

fn crop_size() -> Size {
    Size::One(224)
}

fn mean() -> [f32; 3] {
    [0.481_454_66, 0.457_827_5, 0.408_210_73]
}

fn std() -> [f32; 3] {
    [0.268_629_54, 0.261_302_6, 0.275_777_1]
}

impl Clip {
    /// Loads `config.json`, `preprocessor_config.json`, `tokenizer.json` and `model.safetensors` of
    /// `dir`.
    ///
    /// # Errors
    /// If one is missing or is no CLIP model.
    pub fn open(dir: &Path) -> Result<Self> {
        let config: Config = serde_json::from_value(read_json(&dir.join("config.json"))?)
            .with_context(|| format!("{}: config.json is no CLIP model's", dir.display()))?;
        let prepare = read_json(&dir.join("preprocessor_config.json"))?;
        let weights = Weights::open(dir)?;
        let tower = |name: &str, config: &Tower, heads: usize| {
            let layer = |i: usize| {
                let at = |part: &str| format!("{name}.encoder.layers.{i}.{part}");
                let [q, k, v] = ["q", "k", "v"].map(|p| weights.linear(&at(&format!("self_attn.{p}_proj"))));
                Ok(Layer {
                    norms: [weights.norm(&at("layer_norm1"))?, weights.norm(&at("layer_norm2"))?],
                    qkv: [q?, k?, v?],
                    out: weights.linear(&at("self_attn.out_proj"))?,
                    up: weights.linear(&at("mlp.fc1"))?,
                    down: weights.linear(&at("mlp.fc2"))?,
                })
            };
            Ok::<_, anyhow::Error>(Encoder {
                heads: config.num_attention_heads.unwrap_or(heads),
                eps: config.layer_norm_eps.unwrap_or(1e-5),
                act: match config.hidden_act.as_deref() {
                    Some("gelu") => gelu,
                    None | Some("quick_gelu") => quick_gelu,
                    Some(other) => {
                        anyhow::bail!(
                            "{}: {name}: hidden_act {other:?}, expected gelu or quick_gelu",
                            dir.display()
                        )
                    }
                },
                layers: (0..config.num_hidden_layers.unwrap_or(12)).map(layer).collect::<Result<_>>()?,
            })
        };
        let clip = Self {
            tokenizer: Tokenizer::from_path(&dir.join("tokenizer.json"))?,
            words: weights.matrix("text_model.embeddings.token_embedding.weight")?,
            word_positions: weights.matrix("text_model.embeddings.position_embedding.weight")?,
            text: tower("text_model", &config.text_config, 8)?,
            text_norm: weights.norm("text_model.final_layer_norm")?,
            text_projection: weights.matrix("text_projection.weight")?,
            // Early configurations carry a wrong number, 2.
            eos: config.text_config.eos_token_id.filter(|&id| id != 2),
            class: weights.floats("vision_model.embeddings.class_embedding")?,
            patches: weights.matrix("vision_model.embeddings.patch_embedding.weight")?,
            patch_positions: weights.matrix("vision_model.embeddings.position_embedding.weight")?,
            before: weights.norm("vision_model.pre_layrnorm")?,
            vision: tower("vision_model", &config.vision_config, 12)?,
            after: weights.norm("vision_model.post_layernorm")?,
            visual_projection: weights.matrix("visual_projection.weight")?,
            patch: config.vision_config.patch_size.unwrap_or(32),
            prepare,
        };
        let cells = clip.prepare.side() as usize / clip.patch;
        ensure!(
            clip.patch_positions.rows == cells * cells + 1
                && clip.patches.columns == 3 * clip.patch * clip.patch,
            "{}: pictures of {} pixels in patches of {} do not fit the weights",
            dir.display(),
            clip.prepare.side(),
            clip.patch
        );
        for (rows, heads) in [(clip.words.columns, clip.text.heads), (clip.class.len(), clip.vision.heads)] {
            ensure!(heads > 0 && rows % heads == 0, "{}: {rows} columns for {heads} heads", dir.display());
        }
        Ok(clip)
    }

    /// A text's direction, of length 1. Long texts are cut to the model's length.
    ///
    /// # Errors
    /// If it cannot be tokenized.
    pub fn text(&self, text: &str) -> Result<Vec<f32>> {
        let most = self.word_positions.rows;
        let end = text.char_indices().nth(most * 32).map_or(text.len(), |(at, _)| at);
        let mut ids = self.tokenizer.encode(&text[..end], true)?;
        if let Some(&last) = ids.last().filter(|_| ids.len() > most) {
            ids.truncate(most);
            ids[most - 1] = last;
        }
        let (n, c) = (ids.len(), self.words.columns);
        ensure!(n > 0, "the tokenizer gives no token for an empty text");
        let mut x = Vec::with_capacity(n * c);
        for (i, &id) in ids.iter().enumerate() {
            ensure!((id as usize) < self.words.rows, "token {id} of {} rows", self.words.rows);
            let word = self.words.row(id as usize).iter().zip(self.word_positions.row(i));
            x.extend(word.map(|(w, p)| w + p));
        }
        self.text.apply(&mut x, n, true);
        let at = match self.eos.and_then(|eos| ids.iter().position(|&id| id == eos)) {
            Some(at) => at,
            // The first of the highest numbers.
            None => (0..n).max_by_key(|&i| (ids[i], std::cmp::Reverse(i))).unwrap_or(0),
        };
        let state = &mut x[at * c..(at + 1) * c];
        self.text_norm.apply(self.text.eps, state);
        Ok(direction(&self.text_projection, state))
    }

    /// A picture's direction, of length 1.
    #[must_use]
    pub fn image(&self, image: &DynamicImage) -> Vec<f32> {
        let pixels = self.prepare.pixels(image);
        let (side, patch, c) = (self.prepare.side() as usize, self.patch, self.class.len());
        let cells = side / patch;
        let mut cut = Vec::with_capacity(cells * cells * 3 * patch * patch);
        for cell in 0..cells * cells {
            let (top, left) = (cell / cells * patch, cell % cells * patch);
            for channel in 0..3 {
                for y in top..top + patch {
                    let row = (channel * side + y) * side + left;
                    cut.extend_from_slice(&pixels[row..row + patch]);
                }
            }
        }
        let n = cells * cells + 1;
        let mut x = self.class.clone();
        x.resize(n * c, 0.0);
        self.patches.apply_into(&cut, n - 1, &mut x[c..]);
        add(&mut x, &self.patch_positions.data);
        self.before.apply(self.vision.eps, &mut x);
        self.vision.apply(&mut x, n, false);
        self.after.apply(self.vision.eps, &mut x[..c]);
        direction(&self.visual_projection, &x[..c])
    }
}

/// The cosine of two directions.
#[must_use]
pub fn similarity(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Encoder {
    fn apply(&self, x: &mut [f32], n: usize, causal: bool) {
        for layer in &self.layers {
            let mut y = x.to_vec();
            layer.norms[0].apply(self.eps, &mut y);
            add(x, &layer.out.apply(&attention(&layer.qkv, self.heads, &y, n, causal), n));
            y.copy_from_slice(x);
            layer.norms[1].apply(self.eps, &mut y);
            let mut h = layer.up.apply(&y, n);
            h.iter_mut().for_each(|h| *h = (self.act)(*h));
            add(x, &layer.down.apply(&h, n));
        }
    }
}

impl Preprocessor {
    fn side(&self) -> u32 {
        match self.crop_size {
            Size::One(side) | Size::Two { height: side } => side,
        }
    }

    /// The middle of the picture, scaled so that its shorter side fits; `(3, side, side)`.
    fn pixels(&self, image: &DynamicImage) -> Vec<f32> {
        let side = self.side();
        let (w, h) = (image.width(), image.height());
        let long =
            |long: u32, short: u32| (u64::from(side) * u64::from(long) / u64::from(short)).max(1) as u32;
        let (w, h) = if w < h { (side, long(h, w)) } else { (long(w, h), side) };
        let small = image::imageops::resize(&image.to_rgb8(), w, h, FilterType::CatmullRom);
        let (left, top) = ((w - side) / 2, (h - side) / 2);
        let mut out = Vec::with_capacity(3 * (side * side) as usize);
        for channel in 0..3 {
            let (mean, std) = (self.image_mean[channel], self.image_std[channel]);
            for y in top..top + side {
                let row = (left..left + side).map(|x| small.get_pixel(x, y)[channel]);
                out.extend(row.map(|v| (f32::from(v) / 255.0 - mean) / std));
            }
        }
        out
    }
}

fn direction(projection: &Matrix, x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; projection.rows];
    projection.apply_into(x, 1, &mut y);
    let length = y.iter().map(|y| y * y).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    y.iter_mut().for_each(|y| *y /= length);
    y
}

fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + (-1.702 * x).exp())
}
