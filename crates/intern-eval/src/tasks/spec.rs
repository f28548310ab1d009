//! The fields of a task, checked: what is unknown or cannot be honoured is refused by name.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use intern_lm::Sampling;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::yaml::YamlFile;
use crate::filters::Pipeline;
use crate::metrics::MetricSpec;

/// What the model is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputType {
    /// The likeliest of some continuations.
    MultipleChoice,
    /// One continuation's log-likelihood.
    Loglikelihood,
    /// The log-likelihood of a whole text.
    LoglikelihoodRolling,
    /// Text.
    GenerateUntil,
}

impl OutputType {
    /// The name in task files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MultipleChoice => "multiple_choice",
            Self::Loglikelihood => "loglikelihood",
            Self::LoglikelihoodRolling => "loglikelihood_rolling",
            Self::GenerateUntil => "generate_until",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::MultipleChoice, Self::Loglikelihood, Self::LoglikelihoodRolling, Self::GenerateUntil]
            .into_iter()
            .find(|t| t.name() == name)
    }
}

/// How solved examples are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampler {
    /// `random.Random(seed).sample`, the state moving on from document to document.
    Random,
    /// The first ones.
    FirstN,
}

/// How solved examples are written; what a task does not say here is as in the question.
#[derive(Clone, Debug)]
pub struct FewshotSpec {
    /// Which are taken.
    pub sampler: Sampler,
    /// From which split.
    pub split: Option<String>,
    /// Or from the file itself.
    pub samples: Option<Vec<Map<String, Value>>>,
    /// Question.
    pub doc_to_text: Value,
    /// Answer.
    pub doc_to_target: Value,
    /// Choices.
    pub doc_to_choice: Value,
    /// Beginning of the answer.
    pub gen_prefix: Option<String>,
    /// Between question and answer.
    pub target_delimiter: String,
    /// After each example.
    pub fewshot_delimiter: String,
}

/// A task as its file describes it.
pub struct TaskSpec {
    /// `task`.
    pub name: String,
    /// `task_alias`, or the name.
    pub alias: String,
    /// `output_type`.
    pub output_type: OutputType,
    /// `dataset_path`: `json` or `csv`.
    pub dataset_path: String,
    /// `dataset_kwargs`.
    pub dataset_kwargs: Map<String, Value>,
    /// `training_split`.
    pub training_split: Option<String>,
    /// `validation_split`.
    pub validation_split: Option<String>,
    /// `test_split`.
    pub test_split: Option<String>,
    /// Question: a column, a template or an index.
    pub doc_to_text: Value,
    /// Answer.
    pub doc_to_target: Value,
    /// Choices; null if there are none.
    pub doc_to_choice: Value,
    /// Text before everything.
    pub description: String,
    /// Beginning of the answer.
    pub gen_prefix: Option<String>,
    /// Between question and answer.
    pub target_delimiter: String,
    /// Solved examples.
    pub fewshot: FewshotSpec,
    /// How many of them; `None` leaves it to the run.
    pub num_fewshot: Option<usize>,
    /// Scores.
    pub metrics: Vec<MetricSpec>,
    /// What is cut out of a response.
    pub filters: Vec<Pipeline>,
    /// How text is generated.
    pub sampling: Sampling,
    /// `metadata.version`.
    pub version: Value,
    /// The fields as written, with defaults filled in.
    pub config: Map<String, Value>,
    /// The task file.
    pub path: PathBuf,
}

const KNOWN: &[&str] = &[
    "task",
    "task_alias",
    "tag",
    "dataset_path",
    "dataset_name",
    "dataset_kwargs",
    "training_split",
    "validation_split",
    "test_split",
    "fewshot_split",
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "description",
    "target_delimiter",
    "fewshot_delimiter",
    "fewshot_config",
    "num_fewshot",
    "metric_list",
    "output_type",
    "generation_kwargs",
    "repeats",
    "filter_list",
    "should_decontaminate",
    "doc_to_decontamination_query",
    "gen_prefix",
    "unsafe_code",
    "metadata",
];

/// Fields that lm-evaluation-harness knows and we cannot honour.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("process_docs", "prepare the documents beforehand"),
    ("process_results", "use metric_list and filter_list"),
    ("custom_dataset", "write the documents to a JSONL file"),
    ("doc_to_image", "only text is evaluated"),
    ("doc_to_audio", "only text is evaluated"),
    ("use_prompt", "write the prompt as doc_to_text"),
    ("class", "only tasks that are pure YAML are run"),
    ("task_list", "write one file per task, with `include`"),
];

impl TaskSpec {
    /// Checks the fields of one file.
    ///
    /// # Errors
    /// Names file, line and field of what does not fit.
    pub fn new(file: &YamlFile) -> Result<Self> {
        for field in file.fields.keys() {
            if let Some((_, hint)) = UNSUPPORTED.iter().find(|(name, _)| name == field) {
                bail!("{}: this field is not supported\nhint: {hint}", file.place(field));
            }
            if !KNOWN.contains(&field.as_str()) {
                bail!("{}: unknown field\nhint: {}", file.place(field), nearest(field, KNOWN));
            }
        }
        let read = Reader(file);
        let name: String = read.needed("task")?;
        let output_type: Option<String> = read.get("output_type")?;
        let output_type = match output_type {
            None => OutputType::GenerateUntil,
            Some(name) => OutputType::parse(&name).with_context(|| {
                format!(
                    "{}: there is no output type `{name}`\nhint: multiple_choice, loglikelihood, \
                     loglikelihood_rolling or generate_until",
                    file.place("output_type")
                )
            })?,
        };
        if read.get::<u64>("repeats")?.is_some_and(|n| n != 1) {
            bail!("{}: only 1 is supported", file.place("repeats"));
        }
        if read.get::<bool>("unsafe_code")? == Some(true) {
            bail!("{}: code written by a model is not run", file.place("unsafe_code"));
        }
        let dataset_path: String = read.needed("dataset_path")?;
        if !["json", "csv"].contains(&dataset_path.as_str()) {
            bail!(
                "{}: `{dataset_path}` would have to be downloaded\nhint: use dataset_path: json (or csv) with \
                 dataset_kwargs.data_files naming local files",
                file.place("dataset_path")
            );
        }
        let target_delimiter = read.get("target_delimiter")?.unwrap_or_else(|| " ".to_string());
        let fewshot_delimiter = read.get("fewshot_delimiter")?.unwrap_or_else(|| "\n\n".to_string());
        let doc_to_text = template(file, "doc_to_text")?;
        let doc_to_target = template(file, "doc_to_target")?;
        let doc_to_choice = file.fields.get("doc_to_choice").cloned().unwrap_or_default();
        if output_type == OutputType::MultipleChoice && doc_to_choice.is_null() {
            bail!("{}: multiple_choice needs `doc_to_choice`", file.path.display());
        }
        let gen_prefix: Option<String> = read.get("gen_prefix")?;
        let defaults = FewshotSpec {
            sampler: Sampler::Random,
            split: read.get("fewshot_split")?,
            samples: None,
            doc_to_text: doc_to_text.clone(),
            doc_to_target: doc_to_target.clone(),
            doc_to_choice: doc_to_choice.clone(),
            gen_prefix: gen_prefix.clone(),
            target_delimiter: target_delimiter.clone(),
            fewshot_delimiter: fewshot_delimiter.clone(),
        };
        let metadata: Map<String, Value> = read.get("metadata")?.unwrap_or_default();
        let (sampling, generation_kwargs) = generation(file, output_type, &fewshot_delimiter)?;
        let mut spec = Self {
            alias: read.get("task_alias")?.unwrap_or_else(|| name.clone()),
            name,
            output_type,
            dataset_path,
            dataset_kwargs: read.get("dataset_kwargs")?.unwrap_or_default(),
            training_split: read.get("training_split")?,
            validation_split: read.get("validation_split")?,
            test_split: read.get("test_split")?,
            doc_to_text,
            doc_to_target,
            doc_to_choice,
            description: read.get("description")?.unwrap_or_default(),
            gen_prefix,
            target_delimiter,
            fewshot: fewshot(file, defaults)?,
            num_fewshot: read.get("num_fewshot")?,
            metrics: metrics(file, output_type)?,
            filters: filters(file)?,
            sampling,
            version: metadata.get("version").cloned().unwrap_or_else(|| "Yaml".into()),
            config: Map::new(),
            path: file.path.clone(),
        };
        spec.config = spec.dump(file, generation_kwargs);
        Ok(spec)
    }

    /// The fields as lm-evaluation-harness reports them.
    fn dump(&self, file: &YamlFile, generation_kwargs: Option<Value>) -> Map<String, Value> {
        let mut config = file.fields.clone();
        let mut default = |name: &str, value: Value| {
            config.entry(name.to_string()).or_insert(value);
        };
        default("output_type", self.output_type.name().into());
        default("description", "".into());
        default("target_delimiter", self.target_delimiter.clone().into());
        default("fewshot_delimiter", "\n\n".into());
        default("repeats", 1.into());
        default("should_decontaminate", false.into());
        if let Some(kwargs) = generation_kwargs {
            config.insert("generation_kwargs".into(), kwargs);
        }
        config
    }
}

/// Reads typed fields, and says where one is wrong.
struct Reader<'a>(&'a YamlFile);

impl Reader<'_> {
    fn get<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>> {
        match self.0.fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|e| anyhow::anyhow!("{}: {e}", self.0.place(field))),
        }
    }

    fn needed<T: DeserializeOwned>(&self, field: &str) -> Result<T> {
        self.get(field)?.with_context(|| format!("{}: the field `{field}` is missing", self.0.path.display()))
    }
}

fn template(file: &YamlFile, field: &str) -> Result<Value> {
    match file.fields.get(field) {
        Some(Value::Null) | None => bail!("{}: the field `{field}` is missing", file.path.display()),
        Some(value @ (Value::String(_) | Value::Number(_))) => Ok(value.clone()),
        Some(value @ Value::Array(_)) if field == "doc_to_target" => Ok(value.clone()),
        Some(_) => bail!("{}: expected a column, a template or an index", file.place(field)),
    }
}

fn fewshot(file: &YamlFile, mut spec: FewshotSpec) -> Result<FewshotSpec> {
    let place = || file.place("fewshot_config");
    let config = match file.fields.get("fewshot_config") {
        None | Some(Value::Null) => return Ok(spec),
        Some(Value::Object(config)) => config,
        Some(_) => bail!("{}: expected fields like `sampler: first_n`", place()),
    };
    for (name, value) in config {
        let text = || match value {
            Value::String(s) => Ok(s.clone()),
            _ => bail!("{}: `{name}` must be text", place()),
        };
        match name.as_str() {
            "sampler" => {
                spec.sampler = match text()?.as_str() {
                    "default" => Sampler::Random,
                    "first_n" => Sampler::FirstN,
                    other => bail!("{}: there is no sampler `{other}`\nhint: default or first_n", place()),
                }
            }
            "split" => spec.split = Some(text()?),
            "doc_to_text" => spec.doc_to_text = value.clone(),
            "doc_to_target" => spec.doc_to_target = value.clone(),
            "doc_to_choice" => spec.doc_to_choice = value.clone(),
            "gen_prefix" => spec.gen_prefix = Some(text()?),
            "target_delimiter" => spec.target_delimiter = text()?,
            "fewshot_delimiter" => spec.fewshot_delimiter = text()?,
            "samples" => {
                let samples =
                    value.as_array().with_context(|| format!("{}: `samples` must be a list", place()))?;
                let objects = samples.iter().map(|s| s.as_object().cloned()).collect::<Option<Vec<_>>>();
                spec.samples =
                    Some(objects.with_context(|| format!("{}: every sample must have fields", place()))?);
            }
            other => bail!(
                "{}: `{other}` is not supported\nhint: sampler, split, samples, doc_to_text, doc_to_target, \
                 doc_to_choice, gen_prefix, target_delimiter, fewshot_delimiter",
                place()
            ),
        }
    }
    Ok(spec)
}

fn metrics(file: &YamlFile, output_type: OutputType) -> Result<Vec<MetricSpec>> {
    let entries = match file.fields.get("metric_list") {
        None | Some(Value::Null) => return Ok(MetricSpec::defaults(output_type)),
        Some(Value::Array(entries)) => entries,
        Some(_) => bail!("{}: expected a list of `- metric: name`", file.place("metric_list")),
    };
    entries
        .iter()
        .map(|e| MetricSpec::parse(e, output_type).with_context(|| file.place("metric_list")))
        .collect()
}

fn filters(file: &YamlFile) -> Result<Vec<Pipeline>> {
    let entries = match file.fields.get("filter_list") {
        None | Some(Value::Null) => return Ok(vec![Pipeline::take_first()]),
        Some(Value::Array(entries)) => entries,
        Some(_) => bail!("{}: expected a list of filters", file.place("filter_list")),
    };
    entries.iter().map(|e| Pipeline::parse(e).with_context(|| file.place("filter_list"))).collect()
}

/// Reads `generation_kwargs`; also gives back what lm-evaluation-harness would report for them.
fn generation(
    file: &YamlFile,
    output_type: OutputType,
    delimiter: &str,
) -> Result<(Sampling, Option<Value>)> {
    let mut sampling = Sampling { max_tokens: 256, stop: vec![delimiter.to_string()], ..Sampling::default() };
    if output_type != OutputType::GenerateUntil {
        return Ok((sampling, None));
    }
    let place = || file.place("generation_kwargs");
    let kwargs = match file.fields.get("generation_kwargs") {
        None | Some(Value::Null) => {
            let reported =
                json!({"temperature": 0.0, "do_sample": false, "max_gen_toks": 256, "until": [delimiter]});
            return Ok((sampling, Some(reported)));
        }
        Some(Value::Object(kwargs)) => kwargs,
        Some(_) => bail!("{}: expected fields like `until`", place()),
    };
    let mut do_sample = None;
    for (name, value) in kwargs {
        let number = || value.as_f64().with_context(|| format!("{}: `{name}` must be a number", place()));
        match name.as_str() {
            "until" => {
                sampling.stop = match value {
                    Value::String(s) => vec![s.clone()],
                    Value::Array(items) => items
                        .iter()
                        .map(|s| s.as_str().map(str::to_string))
                        .collect::<Option<_>>()
                        .with_context(|| format!("{}: `until` must be text or a list of text", place()))?,
                    Value::Null => Vec::new(),
                    _ => bail!("{}: `until` must be text or a list of text", place()),
                };
            }
            "max_gen_toks" | "max_new_tokens" | "max_tokens" | "max_completion_tokens" => {
                sampling.max_tokens =
                    value.as_u64().with_context(|| format!("{}: `{name}` must be a whole number", place()))?
                        as usize;
            }
            "do_sample" => {
                let flag = value.as_bool();
                do_sample =
                    Some(flag.with_context(|| format!("{}: `do_sample` must be true or false", place()))?);
            }
            "temperature" => sampling.temperature = number()? as f32,
            "top_p" => sampling.top_p = number()? as f32,
            "min_p" => sampling.min_p = number()? as f32,
            "top_k" => sampling.top_k = number()? as usize,
            "repetition_penalty" => sampling.repetition_penalty = number()? as f32,
            "num_beams" if value.as_u64() == Some(1) => {}
            other => bail!(
                "{}: `{other}` is not supported\nhint: until, max_gen_toks, do_sample, temperature, top_p, top_k, \
                 min_p, repetition_penalty",
                place()
            ),
        }
    }
    if do_sample == Some(false) {
        sampling.temperature = 0.0;
    }
    sampling.stop.retain(|s| !s.is_empty());
    let mut reported = kwargs.clone();
    reported.entry("until").or_insert_with(|| json!([delimiter]));
    Ok((sampling, Some(Value::Object(reported))))
}

/// "did you mean …" or the whole list.
pub(crate) fn nearest(name: &str, known: &[&str]) -> String {
    let best = known.iter().map(|k| (strsim::damerau_levenshtein(name, k), *k)).min();
    match best {
        Some((distance, k)) if distance <= name.len().max(k.len()) / 3 => format!("did you mean `{k}`?"),
        _ => format!("known fields: {}", known.join(", ")),
    }
}
