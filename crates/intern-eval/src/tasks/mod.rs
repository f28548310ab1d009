//! Tasks: a YAML file and its documents, turned into requests to a model.
//!
//! [`yaml`] reads the file, [`spec`] checks its fields, [`data`] reads the documents,
//! [`template`] and [`prompt`] write the text. What comes of the responses is decided in
//! [`crate::metrics`].

pub mod data;
pub mod group;
pub mod prompt;
pub mod spec;
pub mod template;
pub mod yaml;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use intern_lm::{GenerateRequest, ScoreRequest};
use serde_json::Value;

use prompt::{Prompt, Shots};
use spec::{OutputType, TaskSpec};
use template::{Doc, Templates};
use yaml::YamlFile;

use crate::config::EvalConfig;
use crate::python;

/// A task ready to be asked.
pub struct Task {
    /// Its description.
    pub spec: TaskSpec,
    /// The documents to score.
    pub docs: Vec<Doc>,
    /// How many there were before `limit`.
    pub total_docs: usize,
    /// Solved examples before each question.
    pub num_fewshot: usize,
    /// Every file the task was read from.
    pub sources: Vec<PathBuf>,
    pool: Vec<Doc>,
    templates: Templates,
    per_choice: bool,
    many_targets: bool,
    seed: u64,
}

/// What the model is asked about one document.
#[derive(Clone, Debug, PartialEq)]
pub enum Requests {
    /// Log-likelihoods.
    Score(Vec<ScoreRequest>),
    /// Text.
    Generate(Box<GenerateRequest>),
}

/// What is right for one document.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Indices of right choices; `None` where the file points past the choices.
    Choice(Vec<Option<usize>>),
    /// Right answers.
    Text(Vec<String>),
}

impl Task {
    /// Reads the task's documents.
    ///
    /// # Errors
    /// Names the file and field or line that does not fit.
    pub fn load(file: &YamlFile, config: &EvalConfig) -> Result<Self> {
        let spec = TaskSpec::new(file)?;
        let Some(split) = spec.test_split.clone().or_else(|| spec.validation_split.clone()) else {
            bail!("{}: neither `test_split` nor `validation_split` is there", spec.path.display());
        };
        // A task that says 0 itself is never given examples.
        let num_fewshot = match (spec.num_fewshot, config.num_fewshot) {
            (Some(0), _) => 0,
            (_, Some(n)) => n,
            (own, None) => own.unwrap_or(0),
        };
        let default =
            spec.training_split.as_ref().or(spec.validation_split.as_ref()).or(spec.test_split.as_ref());
        let pool_split = match (&spec.fewshot.split, &spec.fewshot.samples) {
            (Some(split), _) => Some(split),
            (None, Some(_)) => None,
            (None, None) => default,
        };
        let pool_split = pool_split.filter(|_| num_fewshot > 0);
        let mut wanted = vec![split.as_str()];
        wanted.extend(pool_split.map(String::as_str).filter(|s| *s != split));
        let mut dataset = data::load(&spec, &wanted)?;
        let pool = match pool_split {
            Some(name) => dataset.splits[name].clone(),
            None => spec.fewshot.samples.clone().unwrap_or_default(),
        };
        let mut docs = dataset.splits.remove(&split).unwrap_or_default();
        let total_docs = docs.len();
        docs.truncate(config.limit.unwrap_or(total_docs));
        let mut sources = file.sources.clone();
        sources.extend(dataset.files);
        let mut task = Self {
            spec,
            docs,
            total_docs,
            num_fewshot,
            sources,
            pool,
            templates: Templates::default(),
            per_choice: false,
            many_targets: false,
            seed: config.seed,
        };
        let Some(first) = task.docs.first() else {
            bail!("{}: `limit` leaves no documents", task.spec.path.display());
        };
        // The first document decides the task's shape, as in lm-evaluation-harness.
        let place = || format!("{}, document 0", task.spec.path.display());
        let has_choices = !task.spec.doc_to_choice.is_null();
        let text = task.templates.text(&task.spec.doc_to_text, first, has_choices).with_context(place)?;
        let target =
            task.templates.target(&task.spec.doc_to_target, first, has_choices).with_context(place)?;
        task.per_choice = has_choices && text.is_number();
        task.many_targets = target.is_array();
        Ok(task)
    }

    /// The requests of every document, in order.
    ///
    /// # Errors
    /// Names the document and field that cannot be rendered.
    pub fn requests(&self) -> Result<Vec<Requests>> {
        let mut shots = Shots::new(&self.pool, self.spec.fewshot.sampler, self.seed);
        let mut all = Vec::with_capacity(self.docs.len());
        for (i, doc) in self.docs.iter().enumerate() {
            let requests = self.requests_for(doc, &mut shots);
            all.push(requests.with_context(|| format!("{}, document {i}", self.spec.path.display()))?);
        }
        Ok(all)
    }

    fn requests_for(&self, doc: &Doc, shots: &mut Shots) -> Result<Requests> {
        let spec = &self.spec;
        if spec.output_type == OutputType::LoglikelihoodRolling {
            return Ok(Requests::Score(vec![ScoreRequest::Rolling { text: self.target_text(doc)? }]));
        }
        let prompt = prompt::build(spec, &self.templates, doc, self.num_fewshot, shots, self.per_choice)?;
        let one =
            |context: String, continuation: String| ScoreRequest::Continuation { context, continuation };
        Ok(match (spec.output_type, prompt) {
            (OutputType::GenerateUntil, Prompt::One(context)) => {
                let sampling = spec.sampling.clone();
                let prompt = intern_lm::Prompt::Text(context);
                Requests::Generate(Box::new(GenerateRequest { prompt, sampling }))
            }
            (OutputType::Loglikelihood, Prompt::One(context)) => {
                Requests::Score(vec![one(context, self.target_text(doc)?)])
            }
            (OutputType::MultipleChoice, Prompt::PerChoice(contexts)) => {
                let continuation = format!("{}{}", spec.target_delimiter, self.target_text(doc)?);
                Requests::Score(contexts.into_iter().map(|c| one(c, continuation.clone())).collect())
            }
            (OutputType::MultipleChoice, Prompt::One(context)) => {
                let choices = self.choices(doc)?;
                let with = |c: &String| format!("{}{c}", spec.target_delimiter);
                let mut requests: Vec<ScoreRequest> =
                    choices.iter().map(|c| one(context.clone(), with(c))).collect();
                if spec.metrics.iter().any(|m| m.name == "acc_mutual_info") {
                    requests.extend(choices.iter().map(|c| one(String::new(), with(c))));
                }
                Requests::Score(requests)
            }
            (_, Prompt::PerChoice(_)) => {
                bail!("an index as doc_to_text only makes sense for multiple_choice")
            }
            (OutputType::LoglikelihoodRolling, _) => unreachable!("answered above"),
        })
    }

    /// The choices of a document; none for tasks without.
    ///
    /// # Errors
    /// If `doc_to_choice` gives no list of text.
    pub fn choices(&self, doc: &Doc) -> Result<Vec<String>> {
        if self.spec.doc_to_choice.is_null() {
            return Ok(Vec::new());
        }
        self.templates.choices(&self.spec.doc_to_choice, doc).context("doc_to_choice")
    }

    /// `doc_to_target` as it stands, for `samples.jsonl`.
    ///
    /// # Errors
    /// If it cannot be rendered.
    pub fn raw_target(&self, doc: &Doc) -> Result<Value> {
        let has_choices = !self.spec.doc_to_choice.is_null();
        self.templates.target(&self.spec.doc_to_target, doc, has_choices).context("doc_to_target")
    }

    /// `doc_to_target` as the text to score.
    ///
    /// # Errors
    /// If it is not text.
    pub fn target_text(&self, doc: &Doc) -> Result<String> {
        match self.raw_target(doc)? {
            Value::String(text) => Ok(text),
            other => bail!("doc_to_target must give text here, not {}", python::repr(&other)),
        }
    }

    /// What is right for a document.
    ///
    /// # Errors
    /// If a field cannot be rendered, or an index points past the choices where text is generated.
    pub fn target(&self, doc: &Doc) -> Result<Target> {
        let spec = &self.spec;
        let choices = self.choices(doc)?;
        let gold = if self.per_choice {
            self.templates.text(&spec.doc_to_text, doc, true)?
        } else {
            self.raw_target(doc)?
        };
        if spec.output_type == OutputType::MultipleChoice {
            let find = |value: &Value| match value {
                Value::String(text) => choices.iter().position(|c| c == text),
                other => prompt::index(other).filter(|i| *i < choices.len()),
            };
            return Ok(Target::Choice(match &gold {
                Value::Array(golds) => golds.iter().map(find).collect(),
                one => vec![find(one)],
            }));
        }
        if !choices.is_empty() {
            let gold = prompt::index(&gold).and_then(|i| choices.get(i)).cloned();
            let missing = || format!("doc_to_target must be an index below {}", choices.len());
            return Ok(Target::Text(vec![gold.with_context(missing)?]));
        }
        Ok(Target::Text(match gold {
            Value::Array(golds) if self.many_targets => golds.iter().map(python::text).collect(),
            one => vec![python::text(&one)],
        }))
    }
}
