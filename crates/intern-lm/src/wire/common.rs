//! What the requests of chat and plain completions have in common: read leniently, checked strictly.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::grammar;
use crate::request::{Dry, Sampling};

/// Most alternatives per token that `logprobs` may ask for.
pub const MAX_LOGPROBS: usize = 20;

/// A request that cannot be served as asked; becomes status 400.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong, for the user.
    pub message: String,
    /// The parameter at fault.
    pub param: Option<String>,
    /// OpenAI's machine-readable code, if it has one.
    pub code: Option<&'static str>,
}

impl Invalid {
    /// An error about one parameter.
    #[must_use]
    pub fn new(param: &str, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param.to_string()), code: None }
    }

    /// The same with a code.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// For what OpenAI's API has and this server has not.
    #[must_use]
    pub fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::new(param, message).code("unsupported_value")
    }
}

/// One string or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// Just one.
    One(String),
    /// A list.
    Many(Vec<String>),
}

impl OneOrMany {
    /// As a list.
    #[must_use]
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(s) => vec![s],
            Self::Many(v) => v,
        }
    }
}

/// `stream_options`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamOptions {
    /// Send one more chunk with the usage at the end.
    #[serde(deserialize_with = "super::null_as_default")]
    pub include_usage: bool,
}

/// What chat and plain completions have in common.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Common {
    /// The model's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// 0 is greedy; 1 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Keep the likeliest; 0 or −1 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<i64>,
    /// Smallest share of the likeliest token's probability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Locally typical sampling; 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub typical_p: Option<f32>,
    /// 1 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// Against tokens already generated, from −2 to 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// The same, by how often they were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// DRY's strength (llama.cpp's name, as the three below); 0 is off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_multiplier: Option<f32>,
    /// DRY's growth with the repetition's length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_base: Option<f32>,
    /// Repetitions shorter than this are free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_allowed_length: Option<i64>,
    /// Texts behind which a repetition begins anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_sequence_breakers: Option<Vec<String>>,
    /// Token ids (as strings) and what to add to their logits, from −100 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_bias: Option<Value>,
    /// Same request and seed, same tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Most tokens to generate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<i64>,
    /// Where to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<OneOrMany>,
    /// Token ids at which to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_token_ids: Option<Vec<u32>>,
    /// Answers per prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n: Option<i64>,
    /// Answer as server-sent events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Options of the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// `text`, `json_object` or `json_schema`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_format: Option<Value>,
    /// A JSON schema the answer must satisfy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guided_json: Option<Value>,
    /// A regular expression the answer must match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guided_regex: Option<Value>,
    /// The texts the answer may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guided_choice: Option<Value>,
    /// A grammar of the answer, in llguidance's dialect of Lark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guided_grammar: Option<Value>,
    /// The same four as `json`, `regex`, `choice` and `grammar` in one object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub structured_outputs: Option<Value>,
    /// Go on past the end-of-text token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_eos: Option<bool>,
    /// False keeps special tokens in the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skip_special_tokens: Option<bool>,
    /// Add `token_ids` to each choice (and `prompt_token_ids`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub return_token_ids: Option<bool>,
}

impl Common {
    /// Resolves sampling parameters; `max_tokens` is used where the request names none.
    ///
    /// # Errors
    /// For values out of range or not supported, naming the parameter.
    pub fn sampling(&self, max_tokens: usize) -> Result<Sampling, Invalid> {
        range("temperature", self.temperature, 0.0, 100.0)?;
        range("top_p", self.top_p, 0.0, 1.0)?;
        range("min_p", self.min_p, 0.0, 1.0)?;
        range("typical_p", self.typical_p, 0.0, 1.0)?;
        range("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        if let Some(p) = self.repetition_penalty.filter(|p| p.is_nan() || *p <= 0.0 || p.is_infinite()) {
            return Err(Invalid::new(
                "repetition_penalty",
                format!("repetition_penalty must be above 0, not {p}"),
            ));
        }
        if self.stream_options.is_some() && !self.stream.unwrap_or(false) {
            let message = "stream_options is only for streams\nhint: set stream to true";
            return Err(Invalid::new("stream_options", message));
        }
        let top_k = match self.top_k {
            Some(k) if k < -1 => {
                return Err(Invalid::new("top_k", format!("top_k must be at least -1, not {k}")));
            }
            k => usize::try_from(k.unwrap_or(0)).unwrap_or(0),
        };
        let max_tokens = match self.max_tokens {
            Some(m) => usize::try_from(m)
                .map_err(|_| Invalid::new("max_tokens", format!("max_tokens must be at least 0, not {m}")))?,
            None => max_tokens,
        };
        // Nothing but the likeliest token is left of a share of 0.
        let share = |p: Option<f32>| p.unwrap_or(1.0).max(f32::MIN_POSITIVE);
        Ok(Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_k,
            top_p: share(self.top_p),
            min_p: self.min_p.unwrap_or(0.0),
            typical_p: share(self.typical_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            dry: self.dry()?,
            logit_bias: self.bias()?,
            seed: self.seed.unwrap_or(0) as u64,
            max_tokens,
            stop: self.stop.clone().map(OneOrMany::into_vec).unwrap_or_default(),
            stop_ids: self.stop_token_ids.clone().unwrap_or_default(),
            grammar: grammar::read(self)?,
            ignore_eos: self.ignore_eos.unwrap_or(false),
            keep_special: !self.skip_special_tokens.unwrap_or(true),
            logprobs: None,
        })
    }

    fn dry(&self) -> Result<Option<Dry>, Invalid> {
        range("dry_multiplier", self.dry_multiplier, 0.0, 1000.0)?;
        range("dry_base", self.dry_base, 1.0, 1000.0)?;
        range("dry_allowed_length", self.dry_allowed_length.map(|n| n as f32), 0.0, 1e6)?;
        let Some(multiplier) = self.dry_multiplier.filter(|&m| m > 0.0) else { return Ok(None) };
        let usual = Dry::default();
        Ok(Some(Dry {
            multiplier,
            base: self.dry_base.unwrap_or(usual.base),
            allowed_length: self.dry_allowed_length.map_or(usual.allowed_length, |n| n as usize),
            sequence_breakers: self.dry_sequence_breakers.clone().unwrap_or(usual.sequence_breakers),
        }))
    }

    fn bias(&self) -> Result<BTreeMap<u32, f32>, Invalid> {
        let Some(bias) = self.logit_bias.as_ref().filter(|b| !b.is_null()) else {
            return Ok(BTreeMap::new());
        };
        let bad = |what: String| {
            Invalid::new(
                "logit_bias",
                format!("logit_bias {what}\nhint: {{\"token id\": number from -100 to 100}}"),
            )
        };
        let object = bias.as_object().ok_or_else(|| bad("must be an object".into()))?;
        let entry = |(id, value): (&String, &Value)| {
            let id: u32 = id.parse().map_err(|_| bad(format!("names the token {id}, expected an id")))?;
            match value.as_f64() {
                Some(value) if (-100.0..=100.0).contains(&value) => Ok((id, value as f32)),
                _ => Err(bad(format!("of token {id} is {value}"))),
            }
        };
        object.iter().map(entry).collect()
    }

    /// Answers per prompt, at least 1.
    ///
    /// # Errors
    /// If `n` is below 1 or above 128.
    pub fn n(&self) -> Result<usize, Invalid> {
        match self.n.unwrap_or(1) {
            n @ 1..=128 => Ok(n as usize),
            n => Err(Invalid::new("n", format!("n must lie between 1 and 128, not {n}"))),
        }
    }

    /// The parameters a client sends for `sampling`; defaults of other servers stay unsaid.
    #[must_use]
    pub fn from_sampling(model: &str, sampling: &Sampling) -> Self {
        let unless = |value: f32, usual: f32| (value != usual).then_some(value);
        let bias = || sampling.logit_bias.iter().map(|(id, b)| (id.to_string(), (*b).into())).collect();
        let dry = sampling.dry.as_ref();
        let mut common = Self {
            model: Some(model.to_string()),
            temperature: Some(sampling.temperature),
            top_p: unless(sampling.top_p, 1.0),
            top_k: (sampling.top_k != 0).then_some(sampling.top_k as i64),
            min_p: unless(sampling.min_p, 0.0),
            typical_p: unless(sampling.typical_p, 1.0),
            repetition_penalty: unless(sampling.repetition_penalty, 1.0),
            presence_penalty: unless(sampling.presence_penalty, 0.0),
            frequency_penalty: unless(sampling.frequency_penalty, 0.0),
            dry_multiplier: dry.map(|d| d.multiplier),
            dry_base: dry.map(|d| d.base),
            dry_allowed_length: dry.map(|d| d.allowed_length as i64),
            dry_sequence_breakers: dry.map(|d| d.sequence_breakers.clone()),
            logit_bias: (!sampling.logit_bias.is_empty()).then(|| Value::Object(bias())),
            seed: Some((sampling.seed & i64::MAX as u64) as i64),
            max_tokens: Some(sampling.max_tokens as i64),
            stop: (!sampling.stop.is_empty()).then(|| OneOrMany::Many(sampling.stop.clone())),
            stop_token_ids: (!sampling.stop_ids.is_empty()).then(|| sampling.stop_ids.clone()),
            ignore_eos: sampling.ignore_eos.then_some(true),
            skip_special_tokens: sampling.keep_special.then_some(false),
            ..Self::default()
        };
        match &sampling.grammar {
            None => {}
            Some(crate::Grammar::JsonObject) => {
                common.response_format = Some(json!({ "type": "json_object" }));
            }
            Some(crate::Grammar::JsonSchema(schema)) => {
                let inner = json!({ "name": "answer", "schema": schema });
                common.response_format = Some(json!({ "type": "json_schema", "json_schema": inner }));
            }
            Some(crate::Grammar::Regex(regex)) => common.guided_regex = Some(regex.clone().into()),
            Some(crate::Grammar::Lark(lark)) => common.guided_grammar = Some(lark.clone().into()),
        }
        common
    }
}

/// Refuses a value outside of `low..=high`, NaN included.
pub(super) fn range(param: &str, value: Option<f32>, low: f32, high: f32) -> Result<(), Invalid> {
    match value {
        Some(v) if !(low..=high).contains(&v) => {
            Err(Invalid::new(param, format!("{param} must lie between {low} and {high}, not {v}")))
        }
        _ => Ok(()),
    }
}

/// What tells who asks, how to cache or how to bill, and changes nothing about an answer.
const HINTS: [&str; 8] = [
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "prediction",
    "verbosity",
];

/// Refuses parameters nothing reads, so that none is ignored without a word; hints and values
/// that say what is done anyway pass.
///
/// # Errors
/// Names the parameter.
pub(super) fn refuse_unknown(rest: &Map<String, Value>) -> Result<(), Invalid> {
    for (key, value) in rest {
        let says_the_usual = match key.as_str() {
            "store" | "use_beam_search" | "early_stopping" | "include_stop_str_in_output" | "background" => {
                value == &Value::Bool(false)
            }
            "spaces_between_special_tokens" => value == &Value::Bool(true),
            "length_penalty" => value.as_f64() == Some(1.0),
            "min_tokens" => value.as_f64() == Some(0.0),
            "modalities" => value == &json!(["text"]),
            "service_tier" => ["auto", "default"].iter().any(|tier| value == tier),
            "functions" => value == &json!([]),
            key => HINTS.contains(&key),
        };
        if !says_the_usual && !value.is_null() {
            let message = match key.as_str() {
                "functions" | "function_call" => {
                    format!("{key} is not supported\nhint: use tools and tool_choice")
                }
                _ => format!("{key} is not supported with this value, or not known\nhint: leave it out"),
            };
            return Err(Invalid::unsupported(key, message));
        }
    }
    Ok(())
}
