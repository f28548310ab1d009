//! Block lists of addresses: domains, whole URLs, and words in URLs, hard ones (one is
//! enough), soft ones (so many together) and parts of words (RefinedWeb, Penedo et al.,
//! 2023, appendix G.1).
//!
//! Lists are text files with one entry per line; `#` begins a comment. A domain blocks its
//! subdomains too.

use std::collections::HashSet;
use std::path::PathBuf;

use aho_corasick::AhoCorasick;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{Candidate, Sheet, Stage};

/// `[url]` of a recipe. Lists may be given in place or as files.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UrlConfig {
    /// Whether the stage runs.
    pub enabled: bool,
    /// Blocked domains.
    pub domains: Vec<String>,
    /// Files of blocked domains.
    pub domain_files: Vec<PathBuf>,
    /// Blocked URLs.
    pub urls: Vec<String>,
    /// Files of blocked URLs.
    pub url_files: Vec<PathBuf>,
    /// Words that block a URL.
    pub words: Vec<String>,
    /// Files of such words.
    pub word_files: Vec<PathBuf>,
    /// Words of which several block a URL.
    pub soft_words: Vec<String>,
    /// Files of such words.
    pub soft_word_files: Vec<PathBuf>,
    /// How many soft words block; 2 if 0.
    pub soft_threshold: usize,
    /// Parts of words that block a URL, separators left out.
    pub subwords: Vec<String>,
    /// Files of such parts.
    pub subword_files: Vec<PathBuf>,
    /// Drops documents without an address.
    pub required: bool,
}

impl UrlConfig {
    /// All files, whose content belongs to a run's identity.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.domain_files, &self.url_files, &self.word_files, &self.soft_word_files, &self.subword_files]
            .into_iter()
            .flatten()
    }
}

/// The stage.
pub struct Url {
    domains: HashSet<String>,
    urls: HashSet<String>,
    words: HashSet<String>,
    soft_words: HashSet<String>,
    soft_threshold: usize,
    subwords: Option<AhoCorasick>,
    required: bool,
}

impl Url {
    /// Reads the lists.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn new(c: &UrlConfig) -> Result<Self> {
        let list = |given: &[String], files: &[PathBuf], tidy: fn(&str) -> String| {
            let mut all: HashSet<String> = given.iter().map(|e| tidy(e)).collect();
            for path in files {
                all.extend(entries(path)?.iter().map(|e| tidy(e)));
            }
            all.remove("");
            anyhow::Ok(all)
        };
        let subwords = list(&c.subwords, &c.subword_files, squeeze)?;
        let mut patterns: Vec<&String> = subwords.iter().collect();
        patterns.sort();
        Ok(Self {
            domains: list(&c.domains, &c.domain_files, |e| host(e).to_lowercase())?,
            urls: list(&c.urls, &c.url_files, |e| e.trim_end_matches('/').to_string())?,
            words: list(&c.words, &c.word_files, squeeze)?,
            soft_words: list(&c.soft_words, &c.soft_word_files, squeeze)?,
            soft_threshold: if c.soft_threshold == 0 { 2 } else { c.soft_threshold },
            subwords: if patterns.is_empty() { None } else { Some(AhoCorasick::new(patterns)?) },
            required: c.required,
        })
    }
}

/// The entries of a list file.
///
/// # Errors
/// If it cannot be read.
pub(super) fn entries(path: &std::path::Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the list {}\nhint: one entry per line", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    Ok(lines.map(String::from).collect())
}

/// The host of a URL, without user, port and a leading `www.`.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let rest = rest.split_once(':').map_or(rest, |(host, _)| host);
    rest.strip_prefix("www.").unwrap_or(rest).trim_end_matches('.')
}

/// Letters and digits only, in lower case.
fn squeeze(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

impl Stage for Url {
    fn name(&self) -> &'static str {
        "url"
    }

    fn judge(&self, candidate: &mut Candidate, sheet: &mut Sheet) {
        let url = candidate.url;
        if url.is_empty() {
            if self.required {
                sheet.over("no_url", 1.0, 0.0);
            }
            return;
        }
        let host = host(url).to_lowercase();
        let parents = std::iter::successors(Some(host.as_str()), |h| h.split_once('.').map(|(_, rest)| rest));
        let blocked = parents.into_iter().any(|domain| self.domains.contains(domain));
        if sheet.over("domain", f64::from(u8::from(blocked)), 0.0) {
            return;
        }
        let listed = self.urls.contains(url.trim_end_matches('/'));
        if sheet.over("url", f64::from(u8::from(listed)), 0.0) {
            return;
        }
        let lower = url.to_lowercase();
        let words: HashSet<&str> =
            lower.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
        let count = |list: &HashSet<String>| words.iter().filter(|w| list.contains(**w)).count() as f64;
        if sheet.over("word", count(&self.words), 0.0)
            || sheet.over("soft_words", count(&self.soft_words), self.soft_threshold as f64 - 1.0)
        {
            return;
        }
        if let Some(subwords) = &self.subwords {
            let found = subwords.find_iter(&squeeze(url)).count();
            sheet.over("subword", found as f64, 0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::verdict;
    use super::*;

    #[test]
    fn lists_block_by_domain_url_and_words() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("domains.txt");
        std::fs::write(&file, "# adverts\nbad.example\nwww.other.example\n").unwrap();
        let config = UrlConfig {
            domain_files: vec![file],
            urls: vec!["http://good.example/bad/".into()],
            words: vec!["casino".into()],
            soft_words: vec!["bet".into(), "poker".into(), "win".into()],
            subwords: vec!["freexxx".into()],
            ..UrlConfig::default()
        };
        let stage = Url::new(&config).unwrap();
        let check = |url: &str, expect: Option<&str>| {
            let got = verdict(&stage, &mut Candidate::new("text", "").at(url)).map(|r| r.rule);
            assert_eq!(got.as_deref(), expect, "{url}");
        };
        check("https://bad.example/x", Some("domain"));
        check("https://a.b.bad.example:80/x", Some("domain"));
        check("https://notbad.example/", None);
        check("http://other.example", Some("domain"));
        check("http://good.example/bad", Some("url"));
        check("http://good.example/best-CASINO-games", Some("word"));
        check("http://good.example/casinos", None);
        check("http://good.example/bet/win", Some("soft_words"));
        check("http://good.example/bet", None);
        check("http://good.example/free-xxx", Some("subword"));
        check("", None);
    }
}
