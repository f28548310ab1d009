//! Three scores from 0 to 1, after the data value that InternLM2's report (2024) names but
//! does not define. Each is a mean of plain measurements, the same for English and Chinese:
//!
//! - **quality** of the text: lines end as sentences do, words are words, function words
//!   occur as in prose, little repeats and few symbols stand between;
//! - **information**: vocabulary is rich for the length (Herdan's C), and names, numbers and
//!   quotations occur;
//! - **density**: how little the text compresses (bits per character by zstd), since
//!   boilerplate and padding compress well.
//!
//! The ends of each scale were chosen on English web pages and encyclopaedia articles and
//! on Chinese prose. Scores go to `meta`; copies are chosen by their mean.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Candidate, Sheet, Stage, share};
use crate::hash::{HashedSet, hash64};
use crate::words::chars::{TERMINAL, is};
use crate::words::{Class, chinese};

/// `[score]` of a recipe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ScoreConfig {
    /// Whether the stage runs.
    pub enabled: bool,
    /// Least quality of the text, 0–1.
    pub min_quality: f64,
    /// Least information.
    pub min_information: f64,
    /// Least density.
    pub min_density: f64,
}

/// The stage.
pub struct Score(pub ScoreConfig);

const ENGLISH: [&str; 20] = [
    "the", "of", "and", "to", "a", "in", "is", "that", "for", "it", "was", "on", "with", "as", "be", "at",
    "by", "are", "this", "have",
];
const CHINESE: [char; 14] =
    ['的', '是', '在', '了', '和', '有', '不', '我', '这', '一', '他', '也', '就', '人'];

/// `x` on the scale from `low` (0) to `high` (1).
fn scale(x: f64, low: f64, high: f64) -> f64 {
    ((x - low) / (high - low)).clamp(0.0, 1.0)
}

/// A document's scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// Of the text.
    pub quality: f64,
    /// Of what it tells.
    pub information: f64,
    /// Of how tightly.
    pub density: f64,
}

/// Measures a document.
pub fn measure(candidate: &mut Candidate) -> Scores {
    let chinese = candidate.is_chinese();
    let (text, words) = candidate.words();
    let chars = text.chars().count();

    let (mut all, mut ended, mut repeated) = (0, 0, 0);
    let mut lines = HashedSet::default();
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        let length = line.chars().count();
        all += length;
        let last = line.trim_end_matches(['"', '”', '’', ')', '）', '」', ' ']).chars().next_back();
        if last.is_some_and(|c| is(c, TERMINAL)) || (chinese && chinese::ends_sentence(line)) {
            ended += length;
        }
        if !lines.insert(hash64(line.as_bytes())) {
            repeated += length;
        }
    }
    let (mut count, mut alpha, mut function, mut named) = (0usize, 0usize, 0usize, 0usize);
    let mut vocabulary = HashedSet::default();
    let mut sentence_starts = true;
    for t in &words.tokens {
        let token = t.of(text);
        match t.class {
            Class::Punctuation => {
                sentence_starts |= token.ends_with(['.', '!', '?', '。', '！', '？']);
                named += usize::from(token.contains(['《', '「', '“']));
                continue;
            }
            Class::Word | Class::Cjk => alpha += 1,
            Class::Number => named += 1,
        }
        count += 1;
        let bare = token.trim_matches(|c: char| !c.is_alphanumeric());
        let is_function = if t.class == Class::Cjk {
            bare.chars().all(|c| CHINESE.contains(&c))
        } else {
            ENGLISH.iter().any(|w| w.eq_ignore_ascii_case(bare))
        };
        function += usize::from(is_function);
        named += usize::from(!sentence_starts && bare.starts_with(char::is_uppercase));
        sentence_starts = token.ends_with(['.', '!', '?', ':']);
        vocabulary.insert(hash64(bare.to_lowercase().as_bytes()));
    }
    let symbols = text.chars().filter(|c| !c.is_alphanumeric() && !c.is_whitespace()).count();
    let function_high = if chinese { 0.16 } else { 0.32 };
    let quality = [
        scale(share(ended, all), 0.1, 0.9),
        scale(share(alpha, count), 0.7, 0.95),
        scale(share(function, count), 0.04, function_high),
        1.0 - scale(share(repeated, all), 0.0, 0.3),
        1.0 - scale(share(symbols, chars), if chinese { 0.16 } else { 0.05 }, 0.3),
    ];
    // Herdan's C: log of the vocabulary over log of the length.
    let herdan = if count > 1 { (vocabulary.len() as f64).ln() / (count as f64).ln() } else { 0.0 };
    let information = [
        scale(herdan, 0.7, 0.93),
        scale(share(named, count), 0.0, if chinese { 0.06 } else { 0.18 }),
        scale((count as f64).ln(), 3.0, 6.5),
    ];
    let packed = zstd::bulk::compress(text.as_bytes(), 3).map_or(0, |b| b.len());
    let bits = 8.0 * packed as f64 / chars.max(1) as f64;
    let density = if chinese { scale(bits, 4.0, 11.0) } else { scale(bits, 1.6, 4.6) };
    let mean = |list: &[f64]| list.iter().sum::<f64>() / list.len() as f64;
    Scores { quality: mean(&quality), information: mean(&information), density }
}

impl Stage for Score {
    fn name(&self) -> &'static str {
        "score"
    }

    fn judge(&self, candidate: &mut Candidate, sheet: &mut Sheet) {
        let scores = measure(candidate);
        candidate.rank = ((scores.quality + scores.information + scores.density) / 3.0) as f32;
        let list = [
            ("quality", scores.quality, self.0.min_quality),
            ("information", scores.information, self.0.min_information),
            ("density", scores.density, self.0.min_density),
        ];
        for (name, score, _) in list {
            let rounded = (score * 1000.0).round() / 1000.0;
            candidate.notes.insert(format!("{name}_score"), Value::from(rounded));
        }
        for (name, score, limit) in list {
            if sheet.under(&format!("min_{name}"), score, limit) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_scores_above_menus_and_padding() {
        let prose = "The bridge at Mostar was built in 1566 by the architect Mimar Hayruddin, who had been told \
                     that he would be executed if it fell. It stood for 427 years. Travellers from Vienna and \
                     Istanbul wrote of its single arch, which was 29 metres wide and, as one of them put it, \
                     “like a rainbow soaring up to the skies”.";
        let menu = "Home\nProducts\nAbout\nContact\nHome\nProducts\n#sale #new >>\nLogin | Register";
        let padding =
            "The same words come again and the same words come again and the same words. ".repeat(8);
        let chinese = "赵州桥建于隋朝大业年间，由著名匠师李春设计建造，距今已有一千四百多年的历史。这座桥全长六十四米，是世界上现存年代最久的石拱桥，\
                       《朝野佥载》里说它“望之如初月出云，长虹饮涧”。桥上的石栏雕刻精美，每年都有许多人前来参观。";
        let score = |text: &str| measure(&mut Candidate::new(text, ""));
        let (prose, menu, padding, chinese) = (score(prose), score(menu), score(&padding), score(chinese));
        assert!(prose.quality > menu.quality + 0.3, "{prose:?} {menu:?}");
        assert!(prose.information > padding.information + 0.2, "{prose:?} {padding:?}");
        assert!(prose.density > padding.density + 0.3, "{prose:?} {padding:?}");
        assert!(chinese.quality > 0.6 && chinese.information > 0.4 && chinese.density > 0.4, "{chinese:?}");
    }
}
