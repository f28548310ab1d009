//! What is found out about a sample by itself: its pictures, its text, and how they fit.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::check::{Drop, Picture, look};
use super::clip::{self, Clip};
use super::config::{CaptionRules, DocumentRules, ImagesConfig};
use super::sample::{self, Sample};
use crate::words::Words;

/// What was found out about a sample by itself: a line of a unit's marker.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Judged {
    pub id: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub document: bool,
    pub pictures: Vec<Picture>,
    /// CLIP's cosine per picture.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub similarity: Vec<f32>,
    /// Why the sample is left out as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop: Option<Drop>,
}

/// Judges a sample, or what was wrong with one.
///
/// # Errors
/// If a text cannot be tokenized.
pub(super) fn judge(config: &ImagesConfig, clip: Option<&Clip>, sample: &Result<Sample>) -> Result<Judged> {
    let sample = match sample {
        Ok(sample) => sample,
        Err(e) => {
            let drop = Some(Drop::new("broken", format!("{e:#}").replace('\n', "; ")));
            return Ok(Judged { drop, ..Judged::default() });
        }
    };
    let document = sample.parts.is_some();
    let mut judged = Judged { id: sample.id.clone(), document, ..Judged::default() };
    judged.drop = if document {
        judge_document(&config.document, sample)
    } else {
        judge_caption(&config.caption, sample)
    };
    for (i, image) in sample.images.iter().enumerate() {
        let (mut picture, pixels) = look(&image.bytes, &config.image);
        if let (Some(clip), Some(pixels)) = (clip, pixels) {
            let seen = clip.image(&pixels);
            let mut best = f32::NEG_INFINITY;
            for text in sample.texts_of(i) {
                best = best.max(clip::similarity(&seen, &clip.text(text)?));
            }
            if best < config.clip.min_similarity {
                let why = match best.is_finite() {
                    true => format!("{best:.3}, at least {}", config.clip.min_similarity),
                    false => "there is no text".into(),
                };
                picture.drop = Some(Drop::new("similarity", why));
            }
            judged.similarity.resize(i, 0.0);
            judged.similarity.push(if best.is_finite() { best } else { 0.0 });
        }
        judged.pictures.push(picture);
    }
    Ok(judged)
}

fn judge_caption(rules: &CaptionRules, sample: &Sample) -> Option<Drop> {
    if sample.images.is_empty() {
        return Some(Drop::new("no_image", "there is no picture"));
    }
    let text = sample.caption.as_deref().unwrap_or_default();
    let chars = text.chars().count();
    if chars < rules.min_chars {
        return Some(Drop::new("caption_chars", format!("{chars} characters, at least {}", rules.min_chars)));
    }
    if rules.max_chars > 0 && chars > rules.max_chars {
        return Some(Drop::new("caption_chars", format!("{chars} characters, at most {}", rules.max_chars)));
    }
    let words = if rules.min_words > 0 { Words::split(text).count() } else { 0 };
    (words < rules.min_words)
        .then(|| Drop::new("caption_words", format!("{words} words, at least {}", rules.min_words)))
}

fn judge_document(rules: &DocumentRules, sample: &Sample) -> Option<Drop> {
    let texts = sample.parts.iter().flatten().filter_map(sample::Part::text);
    let chars: usize = texts.map(|t| t.chars().count()).sum();
    (chars < rules.min_chars)
        .then(|| Drop::new("document_chars", format!("{chars} characters, at least {}", rules.min_chars)))
}
