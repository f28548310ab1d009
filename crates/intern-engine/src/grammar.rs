//! Answers of a given form: JSON schemas, regular expressions and Lark grammars, by llguidance.
//!
//! A grammar is compiled once, on the thread that submits the request, and copied for every
//! request that uses it. [`Constraint`] follows one answer: it tells which tokens may come
//! next, and which must. Fails closed: what cannot be expressed is refused, and an error while
//! generating ends the request.

use std::collections::VecDeque;
use std::sync::{Mutex, OnceLock};

use anyhow::{Context, Result, anyhow, ensure};
use intern_lm::Grammar;
use intern_tokenizer::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{
    InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv,
};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

/// Compiled grammars kept for the next request.
const CACHED: usize = 64;

/// Compiles grammars for one tokenizer.
pub(crate) struct Grammars {
    tokenizer: Tokenizer,
    end_ids: Vec<u32>,
    /// Made at the first use: it takes as long as reading the vocabulary.
    factory: OnceLock<Result<ParserFactory, String>>,
    compiled: Mutex<VecDeque<(Grammar, Matcher)>>,
}

impl Grammars {
    /// `end_ids` may end an answer where the grammar allows an end.
    pub fn new(tokenizer: &Tokenizer, end_ids: &[u32]) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            end_ids: end_ids.to_vec(),
            factory: OnceLock::new(),
            compiled: Mutex::default(),
        }
    }

    /// The constraint of one request; its answer may also end with one of `stop_ids`.
    ///
    /// Fails for a grammar that is malformed, cannot be satisfied, or uses what is not supported.
    pub fn constraint(&self, grammar: &Grammar, stop_ids: &[u32]) -> Result<Constraint> {
        let mut ends = self.end_ids.clone();
        ends.extend(stop_ids);
        let kept = || self.compiled.lock().expect("no code panics while holding this lock");
        let known = kept().iter().find(|(g, _)| g == grammar).map(|(_, matcher)| matcher.deep_clone());
        if let Some(matcher) = known {
            return Ok(Constraint { matcher, ends });
        }
        let factory = self.factory.get_or_init(|| self.factory().map_err(|e| format!("{e:#}")));
        let factory = factory.as_ref().map_err(|e| anyhow!(e.clone()))?;
        let parser = factory.create_parser(top_level(grammar)?);
        let mut matcher = Matcher::new(parser);
        // The first mask finds grammars that nothing satisfies, and warms what clones share.
        matcher.compute_mask_or_eos().map_err(|e| {
            anyhow!(
                "the grammar is not supported: {e:#}\nhint: simplify it, or leave it out and check the answer"
            )
        })?;
        let mut kept = kept();
        kept.truncate(CACHED - 1);
        kept.push_front((grammar.clone(), matcher.deep_clone()));
        Ok(Constraint { matcher, ends })
    }

    fn factory(&self) -> Result<ParserFactory> {
        let env: TokEnv = std::sync::Arc::new(Vocabulary::new(&self.tokenizer, &self.end_ids)?);
        let caps = InferenceCapabilities { ff_tokens: true, ..Default::default() };
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&env, caps, &slices)?;
        factory.quiet();
        // Error messages must not carry the text of answers into logs.
        factory.limits_mut().verbose_errors = false;
        Ok(factory)
    }
}

fn top_level(grammar: &Grammar) -> Result<TopLevelGrammar> {
    let object = json!({ "type": "object" });
    let schema = match grammar {
        Grammar::Regex(regex) => return Ok(TopLevelGrammar::from_regex(regex)),
        Grammar::Lark(text) => return Ok(TopLevelGrammar::from_lark(text.clone())),
        Grammar::JsonObject => &object,
        Grammar::JsonSchema(schema) => schema,
    };
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        Value::Bool(false) => json!({ "not": {} }),
        Value::Object(_) => schema.clone(),
        other => return Err(anyhow!("a JSON schema is an object, not {other}")),
    };
    // Its options could make the library overlook what it does not support.
    ensure!(
        schema.get("x-guidance").is_none(),
        "the schema has the key x-guidance, which is not supported\nhint: leave it out"
    );
    // White space as Python's json.dumps writes it, which models know from their training:
    // most punctuation is forced then, and an answer cannot consist of white space.
    schema["x-guidance"] =
        json!({ "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": " });
    Ok(TopLevelGrammar::from_json_schema(schema))
}

/// Where one answer stands in its grammar.
pub(crate) struct Constraint {
    matcher: Matcher,
    /// Tokens that end the answer; allowed wherever the grammar allows an end.
    ends: Vec<u32>,
}

impl Constraint {
    /// Which tokens may come after each beginning of `draft`, the whole included.
    pub fn masks(&mut self, draft: &[u32]) -> Result<Vec<SimpleVob>> {
        let mut masks = Vec::with_capacity(draft.len() + 1);
        masks.push(self.mask()?);
        for &id in draft {
            self.accept(&[id])?;
            masks.push(self.mask()?);
        }
        self.matcher.rollback(draft.len()).map_err(broken)?;
        Ok(masks)
    }

    fn mask(&mut self) -> Result<SimpleVob> {
        let mut mask = self.matcher.compute_mask_or_eos().map_err(broken)?;
        if self.ends.first().is_some_and(|&id| mask.is_allowed(id)) {
            let size = mask.len();
            self.ends.iter().filter(|&&id| (id as usize) < size).for_each(|&id| mask.allow_token(id));
        }
        Ok(mask)
    }

    /// How many of `draft` the grammar allows, ends not among them.
    pub fn valid(&mut self, draft: &[u32]) -> usize {
        let end = draft.iter().position(|id| self.ends.contains(id)).unwrap_or(draft.len());
        self.matcher.validate_tokens(&draft[..end]).unwrap_or(0)
    }

    /// Follows tokens that were chosen.
    pub fn accept(&mut self, ids: &[u32]) -> Result<()> {
        self.matcher.consume_tokens(ids).map_err(broken)
    }

    /// Follows and returns the tokens that must come next.
    pub fn forced(&mut self) -> Result<Vec<u32>> {
        if self.is_complete() {
            return Ok(Vec::new());
        }
        let forced = self.matcher.consume_ff_tokens();
        match self.matcher.get_error() {
            Some(error) => Err(broken(anyhow!(error))),
            None => Ok(forced),
        }
    }

    /// Whether nothing but an end can follow.
    pub fn is_complete(&self) -> bool {
        self.matcher.is_stopped() && !self.matcher.is_error()
    }

    /// Whether this token ends the answer.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }
}

fn broken(error: anyhow::Error) -> anyhow::Error {
    anyhow!("the answer cannot go on within its grammar: {error:#}")
}

/// The tokenizer as llguidance sees it.
struct Vocabulary {
    tokenizer: Tokenizer,
    trie: TokTrie,
}

impl Vocabulary {
    fn new(tokenizer: &Tokenizer, end_ids: &[u32]) -> Result<Self> {
        let size = tokenizer.vocab_size() as u32;
        let ends: Vec<u32> = end_ids.iter().copied().filter(|&id| id < size).collect();
        let first = *ends.first().context(
            "the tokenizer has no end-of-text token, which grammars need\nhint: set eos_token in tokenizer_config.json",
        )?;
        let word = |id: u32| match tokenizer.is_special(id) {
            // llguidance marks special tokens, so that no text is taken for one.
            true => {
                let name = tokenizer.id_to_token(id).unwrap_or_default();
                [&[TokTrie::SPECIAL_TOKEN_MARKER][..], name.as_bytes()].concat()
            }
            false => tokenizer.token_bytes(id).unwrap_or_default(),
        };
        let words: Vec<Vec<u8>> = (0..size).map(word).collect();
        let trie = TokTrie::from(&TokRxInfo::new(size, first), &words).with_eos_tokens(&ends);
        Ok(Self { tokenizer: tokenizer.clone(), trie })
    }

    /// The tokens of `text` in the middle of other text, if they spell exactly that.
    fn encode(&self, text: &str) -> Option<Vec<TokenId>> {
        // Behind a letter that nothing merges with, for tokenizers that put a space in front.
        const BEFORE: &str = "\u{2}";
        let ids = self.tokenizer.encode(&format!("{BEFORE}{text}"), false).ok()?;
        let bytes = |ids: &[u32]| {
            ids.iter().flat_map(|&id| self.tokenizer.token_bytes(id).unwrap_or_default()).collect::<Vec<u8>>()
        };
        let starts_behind = |&n: &usize| bytes(&ids[..n]).ends_with(BEFORE.as_bytes());
        let start = (0..=ids.len().min(8)).find(starts_behind)?;
        (bytes(&ids[start..]) == text.as_bytes()).then(|| ids[start..].to_vec())
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, s: &[u8]) -> Vec<TokenId> {
        let text = std::str::from_utf8(s).ok();
        let ids = text.and_then(|text| self.encode(text));
        ids.filter(|ids| ids.iter().all(|&id| !self.tokenizer.is_special(id)))
            .unwrap_or_else(|| self.trie.greedy_tokenize(s))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Instant;

    use intern_kernels::rng::Rng;

    use super::*;
    use crate::text::TextStream;

    /// Walks through a grammar at random; the text, the choices and how long masks took.
    fn walk(grammars: &Grammars, grammar: &Grammar, seed: u64) -> (String, usize, usize, f64) {
        let mut constraint = grammars.constraint(grammar, &[]).unwrap();
        let mut text = TextStream::new(&grammars.tokenizer, false, &[]);
        text.keep_leading_space(&grammars.tokenizer);
        let (mut out, mut rng) = (String::new(), Rng::new(seed, 0));
        let (mut choices, mut forced, mut slowest) = (0, 0, 0.0f64);
        while choices < 300 {
            for id in constraint.forced().unwrap() {
                out += &text.push(id);
                forced += 1;
            }
            if constraint.is_complete() {
                break;
            }
            let start = Instant::now();
            let mask = constraint.masks(&[]).unwrap().remove(0);
            slowest = slowest.max(start.elapsed().as_secs_f64());
            let allowed = mask.to_list();
            // Soon enough, so that strings and numbers come to their end.
            let end = allowed.iter().copied().find(|&id| constraint.is_end(id) || (choices > 40 && id < 300));
            let id = end.unwrap_or_else(|| allowed[rng.range(0, allowed.len() as u64 - 1) as usize]);
            if constraint.is_end(id) {
                break;
            }
            constraint.accept(&[id]).unwrap();
            out += &text.push(id);
            choices += 1;
        }
        (out + &text.finish(), choices, forced, slowest)
    }

    #[test]
    fn real_vocabularies_follow_grammars() {
        let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/assets/tokenizers");
        for file in [
            "internlm/tokenizer_internlm2.model",
            "mistral/tokenizer.model.v1",
            "tiktoken/r50k_base.tiktoken",
        ] {
            let path = assets.join(file);
            if !path.exists() {
                println!("skipped: {file} is not there");
                continue;
            }
            let tokenizer = Tokenizer::from_path(&path).unwrap();
            let grammars = Grammars::new(&tokenizer, &tokenizer.end_ids());
            let regex = Grammar::Regex(" (the cat|a dog) sat, 一只猫坐在垫子上".into());
            let start = Instant::now();
            let (text, choices, forced, _) = walk(&grammars, &regex, 1);
            let first = start.elapsed().as_secs_f64();
            let parts = [" the cat", " a dog"].map(|who| format!("{who} sat, 一只猫坐在垫子上"));
            assert!(parts.contains(&text), "{file}: {text:?}");
            assert!(choices < forced, "{file}: {choices} choices, {forced} forced");
            let schema = json!({
                "type": "object",
                "properties": { "name": { "type": "string", "maxLength": 20 }, "age": { "type": "integer", "minimum": 0, "maximum": 150 },
                                "tags": { "type": "array", "items": { "enum": ["red", "green"] }, "maxItems": 3 } },
                "required": ["name", "age", "tags"], "additionalProperties": false
            });
            for seed in 0..5 {
                let start = Instant::now();
                let (text, choices, forced, slowest) =
                    walk(&grammars, &Grammar::JsonSchema(schema.clone()), seed);
                let all = start.elapsed().as_secs_f64();
                let value: Value =
                    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{file}: {text:?}: {e}"));
                assert!(jsonschema::is_valid(&schema, &value), "{file}: {text}");
                println!(
                    "{file}: {choices} chosen, {forced} forced; first use {first:.3} s, all {all:.4} s, slowest mask {:.2} ms",
                    1e3 * slowest
                );
            }
        }
    }
}
