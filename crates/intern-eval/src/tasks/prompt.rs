//! Builds what the model reads: description, solved examples, the question.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::spec::{Sampler, TaskSpec};
use super::template::{Doc, Templates};
use crate::python;
use crate::rng::PythonRandom;

/// The text before the answer, or one text per choice where the choices are the contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// One context.
    One(String),
    /// A context per choice.
    PerChoice(Vec<String>),
}

/// Draws examples; its state moves on from document to document.
pub struct Shots<'a> {
    pool: &'a [Doc],
    sampler: Sampler,
    rng: PythonRandom,
}

impl<'a> Shots<'a> {
    /// Starts drawing from `pool`.
    #[must_use]
    pub fn new(pool: &'a [Doc], sampler: Sampler, seed: u64) -> Self {
        Self { pool, sampler, rng: PythonRandom::new(seed) }
    }

    /// `n` examples; never `avoid`, which is the question itself where both come from one split.
    fn draw(&mut self, n: usize, avoid: Option<&Doc>) -> Result<Vec<&'a Doc>> {
        let avoid = avoid.filter(|d| !d.is_empty());
        let other = |d: &&Doc| avoid.is_none_or(|a| *d != a);
        if self.sampler == Sampler::FirstN {
            let shots: Vec<&Doc> = self.pool.iter().filter(other).take(n).collect();
            return if shots.len() == n { Ok(shots) } else { self.too_few(n) };
        }
        // One more than needed leaves room for taking the question out.
        let drawn = n + usize::from(avoid.is_some());
        let Some(picked) = self.rng.sample(self.pool.len(), drawn) else { return self.too_few(drawn) };
        let shots: Vec<&Doc> = picked.into_iter().map(|i| &self.pool[i]).filter(other).take(n).collect();
        if shots.len() == n {
            return Ok(shots);
        }
        // The pool holds the question several times: draw again without any copy.
        let rest: Vec<&Doc> = self.pool.iter().filter(other).collect();
        match self.rng.sample(rest.len(), n) {
            Some(picked) => Ok(picked.into_iter().map(|i| rest[i]).collect()),
            None => self.too_few(n),
        }
    }

    fn too_few<T>(&self, n: usize) -> Result<T> {
        bail!("{n} examples are wanted and the few-shot split has {}", self.pool.len())
    }
}

/// The parts of one question and answer.
struct Turn<'a> {
    question: &'a str,
    answer: Option<String>,
    gen_prefix: Option<&'a str>,
    target_delimiter: &'a str,
    end: &'a str,
}

impl Turn<'_> {
    fn write(&self, out: &mut String) {
        out.push_str(self.question);
        let answer = self.answer.as_deref().filter(|a| !a.is_empty());
        match (answer, self.gen_prefix.filter(|p| !p.is_empty())) {
            (Some(answer), None) => {
                out.push_str(self.target_delimiter);
                out.push_str(answer);
                out.push_str(self.end);
            }
            (answer, Some(prefix)) => {
                if !self.question.is_empty() && apart(self.question, prefix) {
                    out.push_str(self.target_delimiter);
                }
                out.push_str(prefix);
                if let Some(answer) = answer {
                    out.push_str(if apart(prefix, answer) { " " } else { "" });
                    out.push_str(answer);
                    out.push_str(self.end);
                }
            }
            (None, None) => {}
        }
    }
}

/// Whether two pieces of text need something between them.
fn apart(left: &str, right: &str) -> bool {
    !left.ends_with(char::is_whitespace) && !right.starts_with(char::is_whitespace)
}

/// Builds the prompt for `doc`.
///
/// `per_choice` is whether `doc_to_text` is an index and the choices are contexts.
pub fn build(
    spec: &TaskSpec,
    templates: &Templates,
    doc: &Doc,
    num_fewshot: usize,
    shots: &mut Shots,
    per_choice: bool,
) -> Result<Prompt> {
    let mut context = templates.resolve(&spec.description, doc).context("description")?;
    if num_fewshot > 0 {
        let same_split = spec.fewshot.split == spec.test_split;
        for shot in shots.draw(num_fewshot, same_split.then_some(doc))? {
            example(spec, templates, shot, per_choice, &mut context).context("in a few-shot example")?;
        }
    }
    let gen_prefix = spec.gen_prefix.as_deref().map(|p| templates.resolve(p, doc)).transpose()?;
    let turn = |question: &str, delimiter: &str, out: &mut String| {
        let turn = Turn {
            question,
            answer: None,
            gen_prefix: gen_prefix.as_deref(),
            target_delimiter: delimiter,
            end: "",
        };
        turn.write(out);
    };
    if per_choice {
        let choices = templates.choices(&spec.doc_to_choice, doc)?;
        let with = |choice: &String| {
            let mut text = context.clone();
            turn(choice, "", &mut text);
            text
        };
        return Ok(Prompt::PerChoice(choices.iter().map(with).collect()));
    }
    let question =
        templates.text(&spec.doc_to_text, doc, !spec.doc_to_choice.is_null()).context("doc_to_text")?;
    turn(question_text(&question)?, &spec.target_delimiter, &mut context);
    Ok(Prompt::One(context))
}

fn question_text(question: &Value) -> Result<&str> {
    question.as_str().with_context(|| format!("doc_to_text must give text, not {}", python::repr(question)))
}

fn example(
    spec: &TaskSpec,
    templates: &Templates,
    shot: &Doc,
    per_choice: bool,
    out: &mut String,
) -> Result<()> {
    let fewshot = &spec.fewshot;
    let has_choices = !spec.doc_to_choice.is_null();
    let mut question = templates.text(&fewshot.doc_to_text, shot, has_choices).context("doc_to_text")?;
    let target = templates.target(&fewshot.doc_to_target, shot, has_choices).context("doc_to_target")?;
    let mut choices = match &fewshot.doc_to_choice {
        Value::Null => None,
        field => Some(templates.choices(field, shot).context("doc_to_choice")?),
    };
    if per_choice && let (Some(list), Some(index)) = (choices.take(), index(&question)) {
        question = list.get(index).context("doc_to_text points past the choices")?.as_str().into();
    }
    let answer = match (&choices, &target) {
        (Some(list), t) if let Some(i) = index(t) => list
            .get(i)
            .cloned()
            .with_context(|| format!("doc_to_target is {i}, and there are {} choices", list.len()))?,
        (_, Value::Array(answers)) => answers.first().and_then(Value::as_str).unwrap_or_default().to_string(),
        (_, Value::String(answer)) => answer.clone(),
        (_, other) => bail!("doc_to_target must give text, not {}", python::repr(other)),
    };
    let gen_prefix = fewshot.gen_prefix.as_deref().map(|p| templates.resolve(p, shot)).transpose()?;
    let turn = Turn {
        question: question_text(&question)?,
        answer: Some(answer),
        gen_prefix: gen_prefix.as_deref(),
        target_delimiter: &fewshot.target_delimiter,
        end: &fewshot.fewshot_delimiter,
    };
    turn.write(out);
    Ok(())
}

/// A number as an index; Python counts `False` and `True` as 0 and 1.
pub(crate) fn index(value: &Value) -> Option<usize> {
    match value {
        Value::Bool(b) => Some(usize::from(*b)),
        Value::Number(n) => n.as_u64().map(|i| i as usize),
        _ => None,
    }
}
