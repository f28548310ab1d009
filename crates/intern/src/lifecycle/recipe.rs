//! A recipe: named steps whose settings may point into earlier steps' directories.
//!
//! In any string, `{name}` stands for the directory of the step `name`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use toml::{Table, Value};

use super::State;
use super::steps::COMMANDS;

/// A recipe as it stands in its file.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RecipeFile {
    /// What it makes, for the report.
    title: String,
    /// Where the steps write; `--out` overrides it.
    out: PathBuf,
    /// A sentence or two, for the report.
    #[serde(default)]
    about: String,
    /// What is done, in this order.
    step: Vec<StepFile>,
}

/// One call of a command. In any string, `{name}` is the directory of the earlier step `name`.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct StepFile {
    /// Unique; the step writes to a directory of this name.
    name: String,
    /// The command, as in `data run`.
    run: String,
    /// The command's keys, as in its section here.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    config: Table,
    /// Files outside the recipe that the step depends on; it runs again when they change.
    #[serde(default)]
    inputs: Vec<PathBuf>,
}

/// A validated recipe.
pub struct Recipe {
    /// The file it came from.
    pub path: PathBuf,
    /// What it makes, for the report.
    pub title: String,
    /// A sentence or two, for the report.
    pub about: String,
    /// Each step writes to a directory of its name in here.
    pub out: PathBuf,
    /// In the order they run.
    pub steps: Vec<Step>,
}

/// One step of a recipe.
pub struct Step {
    /// Unique within the recipe.
    pub name: String,
    /// What runs, e.g. `data synth`.
    pub command: String,
    /// Its settings, placeholders filled in.
    pub config: Table,
    /// Earlier steps it reads.
    pub reads: Vec<String>,
    /// Files outside the recipe that it reads.
    pub inputs: Vec<PathBuf>,
}

impl Recipe {
    /// Reads and checks the recipe at `path`.
    pub fn load(path: &Path, out: Option<PathBuf>, sets: &[String]) -> Result<Self> {
        let mut table: Table = crate::config::load(path, &[])?;
        for set in sets {
            set_in_step(&mut table, set, path)?;
        }
        let file: RecipeFile = crate::config::resolve(table, &[], &path.display().to_string())?;
        let mut recipe = Self {
            path: path.to_path_buf(),
            title: file.title,
            about: file.about,
            out: out.unwrap_or(file.out),
            steps: Vec::new(),
        };
        for step in file.step {
            let step = recipe.resolve(step)?;
            recipe.steps.push(step);
        }
        Ok(recipe)
    }

    /// The step called `name`.
    pub fn step(&self, name: &str) -> Option<&Step> {
        self.steps.iter().find(|s| s.name == name)
    }

    /// Where `step` writes.
    pub fn dir(&self, step: &Step) -> PathBuf {
        self.out.join(&step.name)
    }

    fn resolve(&self, step: StepFile) -> Result<Step> {
        let at = format!("{}: step `{}`", self.path.display(), step.name);
        if step.name.is_empty() || !step.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)) {
            bail!("{at}: a step's name is letters, digits, - and _");
        }
        if self.step(&step.name).is_some() {
            bail!("{at}: there are two steps of this name");
        }
        if !COMMANDS.contains(&step.run.as_str()) {
            bail!("{at}: `run = \"{}\"` is not a command\nhint: one of {}", step.run, COMMANDS.join(", "));
        }
        let mut reads = Vec::new();
        let config = self
            .fill(Value::Table(step.config), &mut reads)
            .with_context(|| at.clone())?
            .as_table()
            .cloned()
            .unwrap_or_default();
        Ok(Step { name: step.name, command: step.run, config, reads, inputs: step.inputs })
    }

    /// Replaces `{name}` in every string, noting which steps were named.
    fn fill(&self, value: Value, reads: &mut Vec<String>) -> Result<Value> {
        Ok(match value {
            Value::String(text) => Value::String(self.fill_text(&text, reads)?),
            Value::Array(items) => {
                Value::Array(items.into_iter().map(|v| self.fill(v, reads)).collect::<Result<_>>()?)
            }
            Value::Table(table) => Value::Table(
                table.into_iter().map(|(k, v)| Ok((k, self.fill(v, reads)?))).collect::<Result<_>>()?,
            ),
            other => other,
        })
    }

    fn fill_text(&self, text: &str, reads: &mut Vec<String>) -> Result<String> {
        let Some((before, rest)) = text.split_once('{') else { return Ok(text.to_string()) };
        let Some((name, after)) = rest.split_once('}') else { return Ok(text.to_string()) };
        let Some(step) = self.step(name) else {
            bail!(
                "\"{text}\" names `{name}`, which is no earlier step\nhint: a step can only read steps above it"
            );
        };
        if !reads.contains(&step.name) {
            reads.push(step.name.clone());
        }
        Ok(format!("{before}{}{}", self.dir(step).display(), self.fill_text(after, reads)?))
    }
}

impl Step {
    /// The earlier steps this one reads.
    pub fn dependencies<'a>(&self, recipe: &'a Recipe) -> Vec<&'a Step> {
        self.reads.iter().filter_map(|name| recipe.step(name)).collect()
    }

    /// Hashes everything the step's result depends on.
    pub fn key(&self, recipe: &Recipe, state: &mut State) -> Result<String> {
        let mut reads = BTreeMap::new();
        for dependency in self.dependencies(recipe) {
            let dir = recipe.dir(dependency);
            let hash = state.content(&dependency.name, &dir).with_context(|| {
                format!(
                    "step {} reads {}, which has not run\nhint: run the recipe without --only first",
                    self.name,
                    dir.display()
                )
            })?;
            reads.insert(dependency.name.clone(), hash);
        }
        for input in &self.inputs {
            reads.insert(input.display().to_string(), intern_format::provenance::hash_path(input)?);
        }
        // The toolchain's pages are named by their path, which names the toolchain.
        if self.config.to_string().contains("rustc-docs") {
            let root = intern_data::rustc_docs().map(|p| p.display().to_string());
            reads.insert("rustc-docs".into(), root.unwrap_or_default());
        }
        let all = serde_json::json!({
            "command": self.command,
            "config": self.config,
            "version": env!("CARGO_PKG_VERSION"),
            "reads": reads,
        });
        Ok(blake3::hash(all.to_string().as_bytes()).to_hex().to_string())
    }
}

/// Applies `STEP.key=value` to the step's settings.
fn set_in_step(table: &mut Table, set: &str, path: &Path) -> Result<()> {
    let Some((name, rest)) = set.split_once('.').filter(|(_, rest)| rest.contains('=')) else {
        bail!("--set {set}: expected STEP.key=value\nhint: for example --set pretrain.steps=100");
    };
    let steps = table.get_mut("step").and_then(Value::as_array_mut);
    let step = steps
        .into_iter()
        .flatten()
        .filter_map(Value::as_table_mut)
        .find(|s| s.get("name").and_then(Value::as_str) == Some(name));
    let Some(step) = step else {
        bail!("--set {set}: {} has no step `{name}`", path.display());
    };
    let config = step.entry("config").or_insert_with(|| Value::Table(Table::new()));
    let Value::Table(config) = config else {
        bail!("{}: config of step `{name}` is not a table", path.display())
    };
    crate::config::apply(config, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<Recipe> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.toml");
        std::fs::write(&path, text).unwrap();
        Recipe::load(&path, None, &["b.seed=7".into()])
    }

    #[test]
    fn placeholders_name_earlier_steps() {
        let recipe = check(
            "title='t'\nout='o'\n[[step]]\nname='a'\nrun='data synth'\n\
             [[step]]\nname='b'\nrun='data synth'\nconfig={x=['{a}/pages']}\n",
        )
        .unwrap();
        assert_eq!(recipe.steps[1].config["x"][0].as_str(), Some("o/a/pages"));
        assert_eq!(recipe.steps[1].config["seed"].as_integer(), Some(7));
        assert_eq!(recipe.steps[1].reads, ["a"]);
    }

    #[test]
    fn a_step_cannot_read_a_later_one() {
        let error = check(
            "title='t'\nout='o'\n[[step]]\nname='b'\nrun='data synth'\nconfig={x='{a}'}\n\
             [[step]]\nname='a'\nrun='data synth'\n",
        )
        .err()
        .unwrap();
        assert!(format!("{error:#}").contains("no earlier step"), "{error:#}");
    }
}
