//! Masks personal data, or drops documents full of it; see `crate::pii`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Candidate, Sheet, Stage};
use crate::pii::{self, Kind};

/// `[pii]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PiiConfig {
    /// Whether the stage runs.
    pub enabled: bool,
    /// What to look for: `key`, `email`, `id`, `card`, `iban`, `ip`, `phone`.
    pub kinds: Vec<Kind>,
    /// Replaces what was found by `[EMAIL]`, `[PHONE]` and so on.
    pub mask: bool,
    /// Drops documents with more findings per thousand characters; 0 sets no limit.
    pub max_per_thousand: f64,
}

impl Default for PiiConfig {
    fn default() -> Self {
        Self { enabled: false, kinds: Kind::ALL.to_vec(), mask: true, max_per_thousand: 0.0 }
    }
}

/// The stage.
pub struct Pii(pub PiiConfig);

impl Stage for Pii {
    fn name(&self) -> &'static str {
        "pii"
    }

    fn judge(&self, candidate: &mut Candidate, sheet: &mut Sheet) {
        let found = pii::find(candidate.text(), &self.0.kinds);
        let limit = self.0.max_per_thousand;
        if limit > 0.0 {
            let chars = candidate.text().chars().count();
            let rate = 1000.0 * found.len() as f64 / chars.max(1) as f64;
            if sheet.over("max_per_thousand", rate, limit) {
                return;
            }
        }
        if found.is_empty() {
            return;
        }
        for f in &found {
            candidate.edited(format!("pii/{}", f.kind.name()), 1);
        }
        candidate.notes.insert("pii".into(), Value::from(found.len()));
        if self.0.mask {
            let masked = pii::mask(candidate.text(), &found);
            candidate.set_text(masked);
        }
    }
}
