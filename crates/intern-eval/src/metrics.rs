//! From responses to scores: lm-evaluation-harness's formulas.
//!
//! A document gives one [`Item`] per metric; an aggregation makes a score of all items.
//! `acc_norm` divides by characters, `acc_bytes` by bytes; ties go to the first choice.

use anyhow::{Context, Result, bail};
use fancy_regex::Regex;
use intern_lm::Score;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::filters::regexes;
use crate::python;
use crate::rng::PythonRandom;
use crate::tasks::Target;
use crate::tasks::spec::OutputType;

/// One entry of `metric_list`.
#[derive(Clone, Debug)]
pub struct MetricSpec {
    /// `acc`, `exact_match`, ….
    pub name: String,
    /// How items become a score.
    pub aggregation: Aggregation,
    /// Which direction is good.
    pub higher_is_better: bool,
    exact: ExactMatch,
}

/// How the items of all documents become one score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// Arithmetic mean.
    Mean,
    /// The upper median.
    Median,
    /// `exp(-mean)`.
    Perplexity,
    /// `exp(-Σa / Σb)`.
    WeightedPerplexity,
    /// `-Σa / Σb / ln 2`.
    BitsPerByte,
}

/// What one document contributes to one metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Item {
    /// A number.
    One(f64),
    /// A log-likelihood and the length it is spread over.
    Weighted(f64, f64),
}

impl Item {
    /// As `samples.jsonl` shows it.
    #[must_use]
    pub fn value(self) -> Value {
        match self {
            Self::One(x) => json!(x),
            Self::Weighted(a, b) => json!([a, b as u64]),
        }
    }

    fn number(self) -> f64 {
        match self {
            Self::One(x) => x,
            Self::Weighted(a, b) => a / b,
        }
    }
}

/// How text is made comparable before `exact_match` compares it.
#[derive(Clone, Debug, Default)]
struct ExactMatch {
    ignore: Vec<Regex>,
    ignore_case: bool,
    ignore_punctuation: bool,
    ignore_numbers: bool,
}

impl Aggregation {
    const ALL: [(&'static str, Self); 5] = [
        ("mean", Self::Mean),
        ("median", Self::Median),
        ("perplexity", Self::Perplexity),
        ("weighted_perplexity", Self::WeightedPerplexity),
        ("bits_per_byte", Self::BitsPerByte),
    ];

    /// The score.
    #[must_use]
    pub fn apply(self, items: &[Item]) -> f64 {
        match self {
            Self::Mean => mean(items),
            Self::Median => {
                let mut sorted: Vec<f64> = items.iter().map(|i| i.number()).collect();
                sorted.sort_by(f64::total_cmp);
                sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
            }
            Self::Perplexity => (-mean(items)).exp(),
            Self::WeightedPerplexity => (-weighted_mean(items)).exp(),
            Self::BitsPerByte => -weighted_mean(items) / std::f64::consts::LN_2,
        }
    }

    /// The standard error: by formula for the mean, by bootstrap for what has none, else nothing.
    #[must_use]
    pub fn stderr(self, items: &[Item], bootstrap_iters: usize) -> Option<f64> {
        if items.len() < 2 || bootstrap_iters == 0 {
            return None;
        }
        match self {
            Self::Mean => {
                let numbers: Vec<f64> = items.iter().map(|i| i.number()).collect();
                Some(sample_stddev(&numbers) / (items.len() as f64).sqrt())
            }
            Self::Median | Self::Perplexity => Some(self.bootstrap(items, bootstrap_iters)),
            Self::WeightedPerplexity | Self::BitsPerByte => None,
        }
    }

    /// Standard deviation over resamplings, in chunks of 1000 seeded 0, 1, 2, …: the same
    /// draws as lm-evaluation-harness makes, whatever the number of threads.
    fn bootstrap(self, items: &[Item], iters: usize) -> f64 {
        let chunk = iters.min(1000);
        let scores: Vec<f64> = (0..iters / chunk)
            .into_par_iter()
            .flat_map_iter(|seed| {
                let mut rng = PythonRandom::new(seed as u64);
                let mut drawn = Vec::with_capacity(items.len());
                (0..chunk)
                    .map(|_| {
                        drawn.clear();
                        drawn.extend((0..items.len()).map(|_| items[rng.choice(items.len())]));
                        self.apply(&drawn)
                    })
                    .collect::<Vec<_>>()
            })
            .collect();
        sample_stddev(&scores)
    }
}

fn mean(items: &[Item]) -> f64 {
    items.iter().map(|i| i.number()).sum::<f64>() / items.len() as f64
}

fn weighted_mean(items: &[Item]) -> f64 {
    let (mut a, mut b) = (0.0, 0.0);
    for item in items {
        match *item {
            Item::Weighted(x, y) => {
                a += x;
                b += y;
            }
            Item::One(x) => {
                a += x;
                b += 1.0;
            }
        }
    }
    a / b
}

fn sample_stddev(numbers: &[f64]) -> f64 {
    let mu = numbers.iter().sum::<f64>() / numbers.len() as f64;
    let sum: f64 = numbers.iter().map(|x| (x - mu).powi(2)).sum();
    (sum / (numbers.len() - 1) as f64).sqrt()
}

/// Metrics each output type can give, the default ones first (before `|`), with direction.
fn known(output_type: OutputType) -> (&'static [&'static str], &'static [&'static str]) {
    match output_type {
        OutputType::MultipleChoice => {
            (&["acc", "acc_norm"], &["acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"])
        }
        OutputType::Loglikelihood => (&["perplexity", "acc"], &["perplexity", "acc"]),
        OutputType::LoglikelihoodRolling => {
            let all = &["word_perplexity", "byte_perplexity", "bits_per_byte"];
            (all, all)
        }
        OutputType::GenerateUntil => (&["exact_match"], &["exact_match"]),
    }
}

impl MetricSpec {
    /// The metrics of tasks that name none.
    #[must_use]
    pub fn defaults(output_type: OutputType) -> Vec<Self> {
        known(output_type).0.iter().map(|name| Self::plain(name)).collect()
    }

    fn plain(name: &str) -> Self {
        let (aggregation, higher_is_better) = match name {
            "perplexity" => (Aggregation::Perplexity, false),
            "word_perplexity" | "byte_perplexity" => (Aggregation::WeightedPerplexity, false),
            "bits_per_byte" => (Aggregation::BitsPerByte, false),
            _ => (Aggregation::Mean, true),
        };
        Self { name: name.to_string(), aggregation, higher_is_better, exact: ExactMatch::default() }
    }

    /// Reads one entry of `metric_list`.
    ///
    /// # Errors
    /// Names the metric, aggregation or option we do not have.
    pub fn parse(entry: &Value, output_type: OutputType) -> Result<Self> {
        let name = entry["metric"].as_str().context("every entry needs a `metric`")?;
        let possible = known(output_type).1;
        if !possible.contains(&name) {
            bail!(
                "{} tasks do not give the metric `{name}`\nhint: they give {}",
                output_type.name(),
                possible.join(", ")
            );
        }
        let mut spec = Self::plain(name);
        for (option, value) in entry.as_object().into_iter().flatten() {
            let flag = || value.as_bool().with_context(|| format!("`{option}` must be true or false"));
            match option.as_str() {
                "metric" => {}
                "aggregation" => {
                    let wanted = value.as_str().unwrap_or_default();
                    let found = Aggregation::ALL.iter().find(|(n, _)| *n == wanted);
                    let names: Vec<&str> = Aggregation::ALL.iter().map(|(n, _)| *n).collect();
                    spec.aggregation = found
                        .with_context(|| {
                            format!("there is no aggregation `{wanted}`\nhint: {}", names.join(", "))
                        })?
                        .1;
                }
                "higher_is_better" => spec.higher_is_better = flag()?,
                "ignore_case" if name == "exact_match" => spec.exact.ignore_case = flag()?,
                "ignore_punctuation" if name == "exact_match" => spec.exact.ignore_punctuation = flag()?,
                "ignore_numbers" if name == "exact_match" => spec.exact.ignore_numbers = flag()?,
                "regexes_to_ignore" if name == "exact_match" => {
                    spec.exact.ignore = match value {
                        Value::Null => Vec::new(),
                        list => regexes(Some(list))?,
                    };
                }
                other => bail!("the metric `{name}` has no option `{other}`"),
            }
        }
        Ok(spec)
    }
}

/// The items of a document whose choices were scored.
#[must_use]
pub fn choose(
    metrics: &[MetricSpec],
    scores: &[Score],
    choices: &[String],
    gold: &[Option<usize>],
) -> Vec<Item> {
    let conditional: Vec<f64> = scores.iter().take(choices.len()).map(|s| s.logprob).collect();
    let unconditional: Vec<f64> = scores.iter().skip(choices.len()).map(|s| s.logprob).collect();
    let right = |scaled: Vec<f64>| {
        let best = argmax(&scaled);
        f64::from(u8::from(gold.contains(&Some(best))))
    };
    let per = |length: &dyn Fn(&String) -> usize| {
        conditional.iter().zip(choices).map(|(ll, c)| ll / length(c) as f64).collect::<Vec<_>>()
    };
    let item = |metric: &MetricSpec| match metric.name.as_str() {
        "acc" => right(conditional.clone()),
        "acc_norm" => right(per(&|c| c.chars().count())),
        "acc_bytes" => right(per(&|c| c.len())),
        "acc_mutual_info" => right(conditional.iter().zip(&unconditional).map(|(a, b)| a - b).collect()),
        _ => {
            let greedy = gold.iter().flatten().any(|&i| scores.get(i).is_some_and(|s| s.is_greedy));
            f64::from(u8::from(greedy))
        }
    };
    metrics.iter().map(|m| Item::One(item(m))).collect()
}

/// Like NumPy's: the first of equals, and a NaN beats everything.
fn argmax(values: &[f64]) -> usize {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if values[best].is_nan() {
            return best;
        }
        if value.is_nan() || *value > values[best] {
            best = i;
        }
    }
    best
}

/// The items of a document whose answer's likelihood was asked.
#[must_use]
pub fn likelihood(metrics: &[MetricSpec], score: Score) -> Vec<Item> {
    let item = |m: &MetricSpec| match m.name.as_str() {
        "acc" => f64::from(u8::from(score.is_greedy)),
        _ => score.logprob,
    };
    metrics.iter().map(|m| Item::One(item(m))).collect()
}

/// The items of a text scored as a whole.
#[must_use]
pub fn rolling(metrics: &[MetricSpec], score: Score, text: &str) -> Vec<Item> {
    let length = |m: &MetricSpec| match m.name.as_str() {
        "word_perplexity" => python::count_words(text),
        _ => text.len(),
    };
    metrics.iter().map(|m| Item::Weighted(score.logprob, length(m) as f64)).collect()
}

/// The items of a document that was answered with text.
///
/// # Errors
/// If a regular expression runs away.
pub fn generated(metrics: &[MetricSpec], answer: &Value, target: &Target) -> Result<Vec<Item>> {
    let Target::Text(golds) = target else { bail!("a generated answer is compared with text") };
    let answer = python::text(answer);
    metrics
        .iter()
        .map(|metric| {
            let answer = metric.exact.normalize(&answer)?;
            let mut right = false;
            for gold in golds {
                right |= metric.exact.normalize(gold)? == answer;
            }
            Ok(Item::One(f64::from(u8::from(right))))
        })
        .collect()
}

impl ExactMatch {
    fn normalize(&self, text: &str) -> Result<String> {
        let mut text = text.to_string();
        for regex in &self.ignore {
            text = regex.try_replacen(&text, 0, "").context("regexes_to_ignore")?.into_owned();
        }
        if self.ignore_case {
            text = text.to_lowercase();
        }
        if self.ignore_punctuation {
            text.retain(|c| !c.is_ascii_punctuation());
        }
        if self.ignore_numbers {
            text.retain(|c| !c.is_ascii_digit());
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(logprob: f64) -> Score {
        Score { logprob, is_greedy: logprob > -1.0, num_tokens: 1 }
    }

    fn metrics(names: &[&str]) -> Vec<MetricSpec> {
        names.iter().map(|n| MetricSpec::plain(n)).collect()
    }

    #[test]
    fn choices_are_compared_by_likelihood_per_what() {
        let choices: Vec<String> = ["aaaa", "b", "中"].map(String::from).to_vec();
        let scores: Vec<Score> = [-4.0, -2.0, -3.0, -3.9, -0.5, -2.0].map(score).to_vec();
        let all = metrics(&["acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"]);
        let check = |gold: Option<usize>, expected: [f64; 5]| {
            let items = choose(&all, &scores, &choices, &[gold]);
            assert_eq!(items, expected.map(Item::One), "{gold:?}");
        };
        // Likelihood: b; per character: aaaa (-1); per byte: aaaa and 中 tie at -1, the first wins.
        check(Some(0), [0.0, 1.0, 1.0, 1.0, 0.0]);
        check(Some(1), [1.0, 0.0, 0.0, 0.0, 0.0]);
        check(None, [0.0; 5]);
        assert_eq!(choose(&all[..1], &scores, &choices, &[Some(0), Some(1)]), [Item::One(1.0)]);
    }

    #[test]
    fn aggregations_follow_their_formulas() {
        let items = [1.0, 0.0, 1.0, 1.0].map(Item::One);
        assert_eq!(Aggregation::Mean.apply(&items), 0.75);
        assert!((Aggregation::Mean.stderr(&items, 1).unwrap() - 0.25).abs() < 1e-15);
        assert_eq!(Aggregation::Mean.stderr(&items[..1], 1), None);
        let weighted = [Item::Weighted(-10.0, 4.0), Item::Weighted(-2.0, 4.0)];
        assert!((Aggregation::WeightedPerplexity.apply(&weighted) - 1.5f64.exp()).abs() < 1e-15);
        assert!((Aggregation::BitsPerByte.apply(&weighted) - 1.5 / std::f64::consts::LN_2).abs() < 1e-15);
        assert_eq!(Aggregation::Median.apply(&items[..2]), 1.0);
    }

    #[test]
    fn the_bootstrap_draws_what_lm_eval_draws() {
        // bootstrap_stderr(perplexity, [-1, -2.5, -0.25, -3], iters=2000) of lm-eval 0.4.13.
        let items = [-1.0, -2.5, -0.25, -3.0].map(Item::One);
        let stderr = Aggregation::Perplexity.stderr(&items, 2000).unwrap();
        assert!((stderr - 3.6026736099222574).abs() < 1e-12, "{stderr}");
    }

    #[test]
    fn exact_match_ignores_what_it_is_told_to() {
        let entry = json!({"metric": "exact_match", "ignore_case": true, "ignore_punctuation": true, "regexes_to_ignore": [",", r"\$"]});
        let metric = MetricSpec::parse(&entry, OutputType::GenerateUntil).unwrap();
        let check = |answer: &str, gold: &str, expected: f64| {
            let items =
                generated(std::slice::from_ref(&metric), &answer.into(), &Target::Text(vec![gold.into()]));
            assert_eq!(items.unwrap(), [Item::One(expected)], "{answer}");
        };
        check("$1,234.", "1234", 1.0);
        check("The Answer!", "the answer", 1.0);
        check("the answer ", "the answer", 0.0);
        let parse =
            |entry: Value| format!("{:#}", MetricSpec::parse(&entry, OutputType::GenerateUntil).unwrap_err());
        assert!(
            parse(json!({"metric": "bleu"})).contains("generate_until tasks do not give the metric `bleu`")
        );
        assert!(
            parse(json!({"metric": "exact_match", "aggregation": "max"})).contains("no aggregation `max`")
        );
        assert!(
            parse(json!({"metric": "exact_match", "hf_evaluate": true})).contains("no option `hf_evaluate`")
        );
    }
}
