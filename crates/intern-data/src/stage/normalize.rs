//! Makes texts alike before they are judged: Unicode normal forms, and simplified Chinese
//! characters for traditional ones. Drops nothing.

use serde::{Deserialize, Serialize};
use unicode_normalization::{UnicodeNormalization, is_nfc, is_nfkc};

use super::{Candidate, Sheet, Stage};
use crate::words::traditional::to_simplified;

/// `[normalize]` of a recipe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct NormalizeConfig {
    /// Whether the stage runs.
    pub enabled: bool,
    /// The normal form texts are brought to: `none`, `nfc`, or `nfkc`, which also makes
    /// full-width letters and ligatures plain.
    pub unicode: Form,
    /// Writes Chinese texts in simplified characters; Japanese ones are left alone.
    pub simplified_chinese: bool,
}

/// A Unicode normal form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// As texts come.
    None,
    /// Composed.
    #[default]
    Nfc,
    /// Composed, compatibility characters replaced.
    Nfkc,
}

/// The stage.
pub struct Normalize(pub NormalizeConfig);

impl Stage for Normalize {
    fn name(&self) -> &'static str {
        "normalize"
    }

    fn judge(&self, candidate: &mut Candidate, _: &mut Sheet) {
        let text = candidate.text();
        if text.is_ascii() {
            return;
        }
        let normal: Option<String> = match self.0.unicode {
            Form::Nfc if !is_nfc(text) => Some(text.nfc().collect()),
            Form::Nfkc if !is_nfkc(text) => Some(text.nfkc().collect()),
            _ => None,
        };
        if let Some(normal) = normal {
            candidate.edited("normalize/unicode", 1);
            candidate.set_text(normal);
        }
        let kana = |c: char| matches!(c, '\u{3040}'..='\u{30ff}');
        if self.0.simplified_chinese && candidate.is_chinese() && !candidate.text().contains(kana) {
            let (simple, changed) = to_simplified(candidate.text());
            if changed > 0 {
                candidate.edited("normalize/simplified", changed as u64);
                candidate.set_text(simple);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_brought_to_their_form() {
        let run = |config: NormalizeConfig, text: &str| {
            let mut c = Candidate::new(text, "");
            Normalize(config).judge(&mut c, &mut Sheet::default());
            c.text().to_string()
        };
        let nfc = NormalizeConfig { enabled: true, ..Default::default() };
        assert_eq!(run(nfc.clone(), "e\u{301}ｘ"), "éｘ");
        let all = NormalizeConfig { unicode: Form::Nfkc, simplified_chinese: true, ..nfc };
        assert_eq!(run(all.clone(), "ｘ漢字的簡體。"), "x汉字的简体。");
        assert_eq!(run(all, "漢字を書くのが好きです。"), "漢字を書くのが好きです。");
    }
}
