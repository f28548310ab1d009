//! Task files as plain values: includes resolved, Python hooks refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use crate::python;

/// A task file's fields, with the file and line each came from.
#[derive(Clone, Debug)]
pub struct YamlFile {
    /// The file itself.
    pub path: PathBuf,
    /// Top-level fields; the file's own win over included ones.
    pub fields: Map<String, Value>,
    /// Every file read, for provenance.
    pub sources: Vec<PathBuf>,
    origin: BTreeMap<String, (PathBuf, usize)>,
}

impl YamlFile {
    /// Reads `path` and what it includes.
    ///
    /// # Errors
    /// If a file is missing, is not a YAML mapping, includes itself, or uses `!function`.
    pub fn read(path: &Path) -> Result<Self> {
        read(path, &mut Vec::new())
    }

    /// The same file with some fields replaced, as a group does for its tasks.
    #[must_use]
    pub fn with(&self, overrides: &Map<String, Value>) -> Self {
        let mut file = self.clone();
        file.fields.extend(overrides.clone());
        file
    }

    /// A file that exists only inside `parent`: an inline task of a group.
    #[must_use]
    pub fn inline(parent: &Self, fields: Map<String, Value>) -> Self {
        Self { path: parent.path.clone(), fields, sources: parent.sources.clone(), origin: BTreeMap::new() }
    }

    /// Where `field` was written, for messages: `tasks/a.yaml, line 3, field doc_to_text`.
    #[must_use]
    pub fn place(&self, field: &str) -> String {
        match self.origin.get(field) {
            Some((path, line)) => format!("{}, line {line}, field `{field}`", path.display()),
            None => format!("{}, field `{field}`", self.path.display()),
        }
    }
}

fn read(path: &Path, above: &mut Vec<PathBuf>) -> Result<YamlFile> {
    let shown = path.display();
    let real = path
        .canonicalize()
        .with_context(|| format!("cannot read the task file {shown}\nhint: examples are in configs/eval/"))?;
    if above.contains(&real) {
        bail!("{shown} includes itself, by way of {}", above[above.len() - 1].display());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {shown}"))?;
    let yaml: serde_norway::Value =
        serde_norway::from_str(&text).map_err(|e| anyhow::anyhow!("{shown} is not valid YAML: {e}"))?;
    let mut file = YamlFile {
        path: path.to_path_buf(),
        fields: Map::new(),
        sources: Vec::new(),
        origin: BTreeMap::new(),
    };
    let serde_norway::Value::Mapping(mapping) = yaml else {
        bail!("{shown}: expected fields like `task: name`\nhint: examples are in configs/eval/");
    };
    let mut own = Map::new();
    for (key, value) in mapping {
        let serde_norway::Value::String(key) = key else {
            bail!(
                "{shown}: field names must be text, found {}",
                python::text(&plain(key, &shown.to_string())?)
            );
        };
        let line = line_of(&text, &key);
        let place = format!("{shown}, line {line}, field `{key}`");
        own.insert(key.clone(), plain(value, &place)?);
        file.origin.insert(key, (path.to_path_buf(), line));
    }
    let include = own.remove("include").unwrap_or_default();
    let names: Vec<&str> = match &include {
        Value::Null => Vec::new(),
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => bail!("{}: expected a file name or a list of them", file.place("include")),
    };
    above.push(real);
    for name in names {
        let base = path.parent().unwrap_or(Path::new("")).join(name);
        let base = read(&base, above).with_context(|| file.place("include"))?;
        file.fields.extend(base.fields);
        file.sources.extend(base.sources);
        for (field, origin) in base.origin {
            if !own.contains_key(&field) {
                file.origin.insert(field, origin);
            }
        }
    }
    above.pop();
    file.fields.extend(own);
    file.sources.push(path.to_path_buf());
    Ok(file)
}

/// The line a top-level field begins on.
fn line_of(text: &str, field: &str) -> usize {
    let begins = |line: &str| {
        let line = line.trim_start_matches(['"', '\'']);
        line.strip_prefix(field)
            .is_some_and(|rest| rest.trim_start_matches(['"', '\'', ' ']).starts_with(':'))
    };
    text.lines().position(begins).map_or(1, |i| i + 1)
}

/// YAML as JSON; keys become text, tags are refused.
fn plain(value: serde_norway::Value, place: &str) -> Result<Value> {
    use serde_norway::Value as Yaml;
    Ok(match value {
        Yaml::Null => Value::Null,
        Yaml::Bool(b) => b.into(),
        Yaml::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(i), _, _) => i.into(),
            (_, Some(u), _) => u.into(),
            (_, _, x) => x.and_then(serde_json::Number::from_f64).map_or(Value::Null, Value::Number),
        },
        Yaml::String(s) => s.into(),
        Yaml::Sequence(items) => {
            items.into_iter().map(|v| plain(v, place)).collect::<Result<Vec<_>>>()?.into()
        }
        Yaml::Mapping(mapping) => {
            let mut map = Map::new();
            for (key, value) in mapping {
                map.insert(python::text(&plain(key, place)?), plain(value, place)?);
            }
            Value::Object(map)
        }
        Yaml::Tagged(tagged) if tagged.tag == "function" => bail!(
            "{place}: Python functions (!function) are not run\nhint: prepare the documents beforehand, \
             and write a Jinja template such as \"{{{{question}}}}\" here"
        ),
        Yaml::Tagged(tagged) => bail!("{place}: the YAML tag {} is not supported", tagged.tag),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn includes_merge_and_keep_their_places() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            "base.yaml",
            "# shared\noutput_type: multiple_choice\ntest_split: test\nmetadata:\n  version: 1.0\n",
        );
        write("a.yaml", "include: base.yaml\ntask: a\ntest_split: validation\n");
        let file = YamlFile::read(&dir.path().join("a.yaml")).unwrap();
        assert_eq!(file.fields["test_split"], "validation");
        assert_eq!(file.fields["metadata"]["version"], 1.0);
        assert!(file.place("output_type").ends_with("base.yaml, line 2, field `output_type`"));
        assert!(file.place("test_split").ends_with("a.yaml, line 3, field `test_split`"));
        assert_eq!(file.sources.len(), 2);

        let fails = |text: &str, expected: &str| {
            write("bad.yaml", text);
            let error = format!("{:#}", YamlFile::read(&dir.path().join("bad.yaml")).unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        fails("include: bad.yaml\n", "includes itself");
        fails("include: none.yaml\n", "cannot read the task file");
        fails("- a\n", "expected fields");
        fails("task: [\n", "not valid YAML");
        fails(
            "task: a\nprocess_docs: !function utils.clean\n",
            "line 2, field `process_docs`: Python functions",
        );
        fails("task: a\nmetric_list:\n  - metric: !function m.f\n", "field `metric_list`: Python functions");
    }
}
