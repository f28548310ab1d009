//! Drops documents with words from lists (LDNOOBW and the like), by C4's way of matching:
//! in Chinese, Japanese and Thai anywhere, in other languages as whole words.
//!
//! `files` may name a directory whose files are named after languages (`en`, `zh`,
//! `zh.txt`); a document is then compared with its language's list.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::url::entries;
use super::{Candidate, Sheet, Stage};

/// `[badwords]` of a recipe.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BadwordsConfig {
    /// Whether the stage runs.
    pub enabled: bool,
    /// Word lists, or directories of lists named after languages.
    pub files: Vec<PathBuf>,
    /// More words, for all languages.
    pub words: Vec<String>,
    /// Words on the lists that are allowed.
    pub allow: Vec<String>,
    /// Most matches per thousand words; 0 drops at the first.
    pub max_per_thousand: f64,
}

/// The stage.
pub struct Badwords {
    /// Language → its words; `""` for all languages.
    lists: BTreeMap<String, AhoCorasick>,
    max: f64,
}

impl Badwords {
    /// Reads the lists.
    ///
    /// # Errors
    /// If one cannot be read, or there are none.
    pub fn new(c: &BadwordsConfig) -> Result<Self> {
        let mut words: BTreeMap<String, Vec<String>> = BTreeMap::new();
        words.entry(String::new()).or_default().extend(c.words.iter().map(|w| w.to_lowercase()));
        for path in &c.files {
            if path.is_dir() {
                for file in list(path)? {
                    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                    // Readme and licence lie beside the lists.
                    if (2..=3).contains(&stem.len()) && stem.bytes().all(|b| b.is_ascii_lowercase()) {
                        words.entry(stem).or_default().extend(lower(&file)?);
                    }
                }
            } else {
                words.entry(String::new()).or_default().extend(lower(path)?);
            }
        }
        let allow: Vec<String> = c.allow.iter().map(|w| w.to_lowercase()).collect();
        let mut lists = BTreeMap::new();
        for (lang, mut words) in words {
            words.retain(|w| !w.is_empty() && !allow.contains(w));
            words.sort();
            words.dedup();
            if !words.is_empty() {
                lists.insert(lang, AhoCorasick::new(&words)?);
            }
        }
        if lists.is_empty() {
            bail!("badwords: the lists are empty\nhint: set badwords.files to a list with one word per line");
        }
        Ok(Self { lists, max: c.max_per_thousand })
    }
}

fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut files: Vec<PathBuf> = read.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    files.retain(|f| f.is_file());
    files.sort();
    Ok(files)
}

fn lower(path: &Path) -> Result<Vec<String>> {
    Ok(entries(path)?.into_iter().map(|w| w.to_lowercase()).collect())
}

impl Stage for Badwords {
    fn name(&self) -> &'static str {
        "badwords"
    }

    fn judge(&self, candidate: &mut Candidate, sheet: &mut Sheet) {
        let chinese = candidate.is_chinese();
        let lang = match (candidate.lang.as_str(), chinese) {
            ("" | "und", true) => "zh".to_string(),
            ("" | "und", false) => "en".to_string(),
            (lang, _) => lang.to_string(),
        };
        let anywhere = matches!(lang.as_str(), "zh" | "ja" | "th");
        let text = candidate.text().to_lowercase();
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let mut found = 0;
        for list in [lang.as_str(), ""].iter().filter_map(|l| self.lists.get(*l)) {
            found += list
                .find_overlapping_iter(&text)
                .filter(|m| {
                    anywhere
                        || (!text[..m.start()].ends_with(is_word) && !text[m.end()..].starts_with(is_word))
                })
                .count();
        }
        let words = candidate.words().1.count().max(1);
        sheet.over("max_per_thousand", 1000.0 * found as f64 / words as f64, self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict;
    use super::*;

    #[test]
    fn words_match_whole_or_anywhere_by_language() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("en"), "darn\nbad word\n").unwrap();
        std::fs::write(dir.path().join("zh.txt"), "坏话\n").unwrap();
        std::fs::write(dir.path().join("README.md"), "fine\n").unwrap();
        let config = BadwordsConfig { files: vec![dir.path().into()], ..Default::default() };
        let stage = Badwords::new(&config).unwrap();
        let drops = |text: &str| verdict(&stage, &mut Candidate::new(text, "")).is_some();
        assert!(drops("Oh DARN, again") && drops("a bad word!") && drops("他常说坏话的人"));
        assert!(!drops("darned fine words") && !drops("他常说好话的人"));
    }
}
