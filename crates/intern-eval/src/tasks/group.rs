//! Groups: a file that names tasks and may average their scores.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::spec::nearest;
use super::yaml::YamlFile;

/// A group with the files of its tasks.
#[derive(Clone, Debug)]
pub struct Group {
    /// `group`.
    pub name: String,
    /// `group_alias`, or the name.
    pub alias: String,
    /// Names of its tasks and groups, in order.
    pub members: Vec<String>,
    /// Averages over all tasks below.
    pub averages: Vec<Average>,
    /// `metadata.version`.
    pub version: Value,
    /// The file's fields.
    pub config: Map<String, Value>,
}

/// One entry of `aggregate_metric_list`.
#[derive(Clone, Debug, PartialEq)]
pub struct Average {
    /// The metric averaged.
    pub metric: String,
    /// Of these filters; all if empty.
    pub filters: Vec<String>,
    /// Whether larger tasks count more.
    pub weight_by_size: bool,
}

/// What a list of paths stands for.
#[derive(Debug, Default)]
pub struct Collection {
    /// Task files, in order, each once.
    pub tasks: Vec<YamlFile>,
    /// Groups; a group stands after the groups in it.
    pub groups: Vec<Group>,
}

const FIELDS: &[&str] = &["group", "group_alias", "task", "aggregate_metric_list", "metadata", "tag"];

/// Reads task files, group files and directories of task files.
///
/// # Errors
/// If a file is missing or wrong, or two tasks have one name.
pub fn collect(paths: &[PathBuf]) -> Result<Collection> {
    let mut found = Collection::default();
    for path in paths {
        if path.is_dir() {
            let files = yaml_files(path)?;
            if files.is_empty() {
                bail!("{}: there are no .yaml files in it", path.display());
            }
            for file in files {
                let file = YamlFile::read(&file)?;
                // Files that are only included have no name.
                if file.fields.contains_key("task") || file.fields.contains_key("group") {
                    found.add(file, &mut Vec::new())?;
                }
            }
        } else {
            found.add(YamlFile::read(path)?, &mut Vec::new())?;
        }
    }
    Ok(found)
}

fn yaml_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    let mut files: Vec<PathBuf> = entries.map(|e| Ok(e?.path())).collect::<Result<_>>()?;
    files.retain(|p| p.extension().is_some_and(|e| e == "yaml" || e == "yml"));
    files.sort();
    Ok(files)
}

impl Collection {
    /// Adds a task or group; returns its name.
    fn add(&mut self, file: YamlFile, above: &mut Vec<String>) -> Result<String> {
        if file.fields.get("task").is_some_and(Value::is_string) && !file.fields.contains_key("group") {
            let name = file.fields["task"].as_str().unwrap_or_default().to_string();
            match self.tasks.iter().find(|t| t.fields["task"] == name.as_str()) {
                None => self.tasks.push(file),
                Some(same) if same.path == file.path => {}
                Some(other) => bail!(
                    "{} and {} both define the task `{name}`\nhint: give one of them another name",
                    other.path.display(),
                    file.path.display()
                ),
            }
            return Ok(name);
        }
        let Some(Value::String(name)) = file.fields.get("group") else {
            bail!("{}: neither a `task` nor a `group` is named", file.path.display());
        };
        let name = name.clone();
        if above.contains(&name) {
            bail!("{}: the group `{name}` contains itself", file.path.display());
        }
        if let Some(field) = file.fields.keys().find(|f| !FIELDS.contains(&f.as_str())) {
            bail!("{}: unknown field of a group\nhint: {}", file.place(field), nearest(field, FIELDS));
        }
        above.push(name.clone());
        let members = match &file.fields.get("task") {
            Some(Value::Array(members)) => members.clone(),
            Some(Value::String(one)) => vec![one.as_str().into()],
            _ => bail!("{}: a group needs a list `task`", file.path.display()),
        };
        let mut names = Vec::new();
        for member in &members {
            names.push(self.member(&file, member, above).with_context(|| format!("in group {name}"))?);
        }
        above.pop();
        if self.groups.iter().any(|g| g.name == name) {
            return Ok(name);
        }
        let metadata = file.fields.get("metadata").cloned().unwrap_or_default();
        self.groups.push(Group {
            alias: file.fields.get("group_alias").and_then(Value::as_str).unwrap_or(&name).to_string(),
            members: names,
            averages: averages(&file)?,
            version: metadata.get("version").cloned().unwrap_or_else(|| "N/A".into()),
            config: file.fields,
            name: name.clone(),
        });
        Ok(name)
    }

    fn member(&mut self, group: &YamlFile, member: &Value, above: &mut Vec<String>) -> Result<String> {
        match member {
            Value::String(name) => {
                let file = sibling(group, name)?;
                self.add(file, above)
            }
            Value::Object(fields) => {
                let name = fields.get("task").and_then(Value::as_str).map(str::to_string);
                let name =
                    name.with_context(|| format!("{}: an entry without a name", group.place("task")))?;
                // An existing task with other settings, or a task of its own.
                let file = match sibling(group, &name) {
                    Ok(file) => file.with(fields),
                    Err(_) => YamlFile::inline(group, fields.clone()),
                };
                self.add(file, above)
            }
            _ => bail!("{}: expected names of tasks", group.place("task")),
        }
    }
}

/// The file of a group's member: a path, `NAME.yaml`, or whichever file beside it defines NAME.
fn sibling(group: &YamlFile, name: &str) -> Result<YamlFile> {
    let dir = group.path.parent().unwrap_or(Path::new(""));
    for candidate in [dir.join(name), dir.join(format!("{name}.yaml"))] {
        if candidate.is_file() {
            return YamlFile::read(&candidate);
        }
    }
    let here = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    for path in yaml_files(here)? {
        // A file that cannot be read is somebody else's concern until it is asked for.
        if let Ok(file) = YamlFile::read(&path)
            && (file.fields.get("task").is_some_and(|t| t == name)
                || file.fields.get("group").is_some_and(|g| g == name))
        {
            return Ok(file);
        }
    }
    bail!("{}: no file beside it defines `{name}`", group.place("task"))
}

fn averages(file: &YamlFile) -> Result<Vec<Average>> {
    let entries = match file.fields.get("aggregate_metric_list") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(entries)) => entries.clone(),
        Some(one) => vec![one.clone()],
    };
    let place = || file.place("aggregate_metric_list");
    let mut averages = Vec::new();
    for entry in entries {
        let metric = entry["metric"].as_str().with_context(|| format!("{}: `metric` is missing", place()))?;
        if entry.get("aggregation").is_some_and(|a| a != "mean") {
            bail!("{}: groups can only take the mean", place());
        }
        let filters = match &entry["filter_list"] {
            Value::String(one) => vec![one.clone()],
            Value::Array(many) => many.iter().filter_map(Value::as_str).map(str::to_string).collect(),
            _ => Vec::new(),
        };
        let weight_by_size = entry["weight_by_size"].as_bool().unwrap_or(true);
        averages.push(Average { metric: metric.to_string(), filters, weight_by_size });
    }
    Ok(averages)
}
