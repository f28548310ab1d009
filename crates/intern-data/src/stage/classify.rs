//! Labels documents with fastText classifiers (`.bin`, `.ftz`, or the directory of an
//! `intern data classifier train`) or encoders of BERT's family (a Hugging Face directory) and drops those with the wrong label: toxicity, adverts,
//! quality, topic.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Candidate, Sheet, Stage};
use crate::classifier::Classifier;

/// One `[[classifier]]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassifyConfig {
    /// Name of its rules, and of the score in `meta`.
    pub name: String,
    /// The model: a fastText file, the directory of a training, or a Hugging Face directory of BERT,
    /// RoBERTa, XLM-R or DistilBERT.
    pub model: PathBuf,
    /// The label whose probability counts, without `__label__`.
    pub label: String,
    /// Drops documents below this probability.
    #[serde(default)]
    pub min: f64,
    /// Drops documents above it.
    #[serde(default = "one")]
    pub max: f64,
}

fn one() -> f64 {
    1.0
}

/// The stage: all classifiers of a recipe.
pub struct Classify {
    models: Vec<(ClassifyConfig, Classifier)>,
}

impl Classify {
    /// Loads the models.
    ///
    /// # Errors
    /// If one cannot be read or does not know its label.
    pub fn new(configs: &[ClassifyConfig]) -> Result<Self> {
        let mut models = Vec::new();
        for config in configs {
            let model = Classifier::open(&config.model)?;
            if !model.labels().contains(&config.label) {
                bail!(
                    "{}: no label {:?}\nhint: its labels are {}",
                    config.model.display(),
                    config.label,
                    model.labels().join(", ")
                );
            }
            models.push((config.clone(), model));
        }
        Ok(Self { models })
    }
}

impl Stage for Classify {
    fn name(&self) -> &'static str {
        "classifier"
    }

    fn judge(&self, candidate: &mut Candidate, sheet: &mut Sheet) {
        for (config, model) in &self.models {
            let p = f64::from(model.probability(candidate.text(), &config.label));
            let rounded = (p * 1e4).round() / 1e4;
            candidate.notes.insert(format!("{}_score", config.name), Value::from(rounded));
            if sheet.under(&config.name, p, config.min) || sheet.over(&config.name, p, config.max) {
                return;
            }
        }
    }
}
