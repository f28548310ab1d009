//! `intern data gap`: compares what a corpus is about with what it should be about, and
//! says what to add.
//!
//! A topic is known by example documents. Each document goes to the topic whose terms speak
//! for it most, or to none; shares are of characters. The proposal keeps all there is and
//! adds what each topic lacks of its target.

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::hash::HashedMap;
use crate::terms::{self, Terms};

/// Configuration of `intern data gap`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GapConfig {
    /// The corpus.
    pub documents: Vec<PathBuf>,
    /// The topics.
    pub topic: Vec<TopicConfig>,
    /// Documents whose best topic scores lower belong to none.
    pub min_score: f64,
}

/// One `[[topic]]`.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TopicConfig {
    /// Its name.
    pub name: String,
    /// Example documents.
    pub examples: Vec<PathBuf>,
    /// Wanted share of the characters, 0–1.
    pub target: f64,
}

/// What the corpus is about.
#[derive(Clone, Debug, Serialize)]
pub struct Gap {
    /// Documents read.
    pub documents: u64,
    /// Characters read.
    pub characters: u64,
    /// The topics, then `other`.
    pub topics: Vec<Topic>,
}

/// One topic's part.
#[derive(Clone, Debug, Serialize)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Documents about it.
    pub documents: u64,
    /// Characters in them.
    pub characters: u64,
    /// Their share, 0–1.
    pub share: f64,
    /// The wanted share; none for `other`.
    pub target: Option<f64>,
    /// Characters to add, so that all targets hold without taking anything away.
    pub add: u64,
}

/// Compares.
///
/// # Errors
/// If the configuration makes no sense or documents are missing.
pub fn run(config: &GapConfig) -> Result<Gap> {
    let wanted: f64 = config.topic.iter().map(|t| t.target).sum();
    if config.topic.len() < 2
        || !(0.0..=1.0 + 1e-9).contains(&wanted)
        || config.topic.iter().any(|t| t.target < 0.0)
    {
        bail!(
            "gap: at least two topics, with targets from 0 to 1 that sum to at most 1\nhint: add [[topic]] with name, \
             examples and target"
        );
    }
    let examples: Vec<Terms> = config.topic.iter().map(|t| Terms::of(&t.examples)).collect::<Result<_>>()?;
    let general = Terms::of(&config.documents)?;
    let weights: Vec<HashedMap<f32>> = examples.iter().map(|e| e.against(&general)).collect();
    let mut counts = vec![(0u64, 0u64); config.topic.len() + 1];
    terms::each_document(&config.documents, |_, d| {
        let (terms, _) = terms::count(&d.text);
        let scores = weights.iter().map(|w| terms::score(&terms, w));
        let best = scores.enumerate().max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)));
        let topic = best.filter(|b| b.1 > config.min_score).map_or(config.topic.len(), |b| b.0);
        counts[topic].0 += 1;
        counts[topic].1 += d.text.chars().count() as u64;
        Ok(())
    })?;
    let characters: u64 = counts.iter().map(|c| c.1).sum();
    let rest = counts[config.topic.len()].1 as f64;
    // The least size at which no topic, nor the rest, exceeds its share.
    let size = config
        .topic
        .iter()
        .zip(&counts)
        .filter(|(t, _)| t.target > 0.0)
        .map(|(t, c)| c.1 as f64 / t.target)
        .fold(if wanted < 1.0 - 1e-9 { rest / (1.0 - wanted) } else { 0.0 }, f64::max);
    let topic = |name: &str, (documents, characters_here): (u64, u64), target: Option<f64>| Topic {
        name: name.to_string(),
        documents,
        characters: characters_here,
        share: characters_here as f64 / characters.max(1) as f64,
        target,
        add: target.map_or(0, |t| (t * size - characters_here as f64).max(0.0).round() as u64),
    };
    let mut topics: Vec<Topic> =
        config.topic.iter().zip(&counts).map(|(t, c)| topic(&t.name, *c, Some(t.target))).collect();
    topics.push(topic("other", counts[config.topic.len()], None));
    Ok(Gap { documents: general.documents, characters, topics })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_missing_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, texts: &[&str], times: usize| {
            let path = dir.path().join(name);
            let lines: String = (0..times)
                .flat_map(|i| {
                    texts.iter().map(move |t| {
                        json!({"id": format!("{t}{i}"), "text": t.repeat(12)}).to_string() + "\n"
                    })
                })
                .collect();
            std::fs::write(&path, lines).unwrap();
            vec![path]
        };
        let maths = "the proof of this theorem about primes and integrals ";
        let code = "the function returns a pointer and the compiler prints warnings ";
        let life = "the cook went on holiday with her cat and a good book ";
        let config = GapConfig {
            documents: write("corpus.jsonl", &[maths, code, code, life], 10),
            topic: vec![
                TopicConfig { name: "maths".into(), examples: write("m.jsonl", &[maths], 3), target: 0.5 },
                TopicConfig { name: "code".into(), examples: write("c.jsonl", &[code], 3), target: 0.2 },
            ],
            min_score: 0.2,
        };
        let gap = run(&config).unwrap();
        let documents: Vec<u64> = gap.topics.iter().map(|t| t.documents).collect();
        assert_eq!(documents, [10, 20, 10], "{gap:?}");
        // Code fills a fifth only when there is five times as much of everything.
        let (code, maths) = (&gap.topics[1], &gap.topics[0]);
        assert_eq!(code.add, 0);
        assert_eq!(maths.add, (code.characters as f64 / 0.2 * 0.5) as u64 - maths.characters);
    }
}
