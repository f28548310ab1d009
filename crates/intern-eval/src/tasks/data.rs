//! Local data sets: JSON, JSON lines and CSV files as `datasets.load_dataset` sees them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use intern_format::records;
use serde_json::{Map, Number, Value};

use super::spec::TaskSpec;
use super::template::Doc;

/// The splits of a data set, and the files they came from.
#[derive(Debug, Default)]
pub struct Dataset {
    /// Split → its documents; every document has every column.
    pub splits: BTreeMap<String, Vec<Doc>>,
    /// Every file read, for provenance.
    pub files: Vec<PathBuf>,
}

/// CSV cells pandas takes for "no value".
const MISSING: &[&str] = &[
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A",
    "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
];

/// Reads the splits `wanted` of a task's data.
///
/// # Errors
/// If a file is missing or wrong, or a wanted split is not there.
pub fn load(spec: &TaskSpec, wanted: &[&str]) -> Result<Dataset> {
    let place = || format!("{}, field `dataset_kwargs`", spec.path.display());
    let mut options = Options::default();
    let mut data_files = BTreeMap::new();
    for (name, value) in &spec.dataset_kwargs {
        match (name.as_str(), value) {
            ("data_files", files) => data_files = splits(files).with_context(place)?,
            ("data_dir", Value::String(dir)) => options.dir = Some(PathBuf::from(dir)),
            ("field", Value::String(field)) => options.field = Some(field.clone()),
            ("delimiter" | "sep", Value::String(s)) if s.len() == 1 => options.delimiter = s.as_bytes()[0],
            ("column_names" | "names", Value::Array(names)) => {
                options.columns = Some(names.iter().filter_map(Value::as_str).map(str::to_string).collect());
            }
            ("trust_remote_code", _) => {}
            (other, _) => bail!(
                "{}: `{other}` is not supported\nhint: data_files, data_dir, field (json), delimiter and column_names (csv)",
                place()
            ),
        }
    }
    if data_files.is_empty() {
        bail!("{}: `data_files` is missing\nhint: data_files: {{test: problems.jsonl}}", place());
    }
    let mut dataset = Dataset::default();
    for split in wanted {
        let Some(files) = data_files.get(*split) else {
            let known: Vec<&str> = data_files.keys().map(String::as_str).collect();
            bail!("{}: there is no split `{split}`\nhint: data_files has {}", place(), known.join(", "));
        };
        let mut docs = Vec::new();
        for name in files {
            let path = locate(name, options.dir.as_deref(), &spec.path)?;
            match spec.dataset_path.as_str() {
                "csv" => read_csv(&path, &options, &mut docs)?,
                _ => read_json(&path, &options, &mut docs)?,
            }
            if !dataset.files.contains(&path) {
                dataset.files.push(path);
            }
        }
        if docs.is_empty() {
            bail!("{}: the split `{split}` has no documents", place());
        }
        fill_columns(&mut docs);
        dataset.splits.insert((*split).to_string(), docs);
    }
    Ok(dataset)
}

struct Options {
    dir: Option<PathBuf>,
    field: Option<String>,
    delimiter: u8,
    columns: Option<Vec<String>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { dir: None, field: None, delimiter: b',', columns: None }
    }
}

/// `data_files` as split → files; a bare file or list is the split `train`.
fn splits(files: &Value) -> Result<BTreeMap<String, Vec<String>>> {
    let list = |value: &Value| -> Result<Vec<String>> {
        match value {
            Value::String(name) => Ok(vec![name.clone()]),
            Value::Array(names) => names
                .iter()
                .map(|n| n.as_str().map(str::to_string).context("`data_files` must name files"))
                .collect(),
            _ => bail!("`data_files` must name files"),
        }
    };
    match files {
        Value::Object(map) => map.iter().map(|(split, value)| Ok((split.clone(), list(value)?))).collect(),
        other => Ok(BTreeMap::from([("train".to_string(), list(other)?)])),
    }
}

/// Looks beside the task file, then in the current directory.
fn locate(name: &str, dir: Option<&Path>, task: &Path) -> Result<PathBuf> {
    let relative = dir.map_or_else(|| PathBuf::from(name), |d| d.join(name));
    let beside = task.parent().unwrap_or(Path::new("")).join(&relative);
    for path in [&beside, &relative] {
        if path.is_file() {
            return Ok(path.clone());
        }
    }
    bail!(
        "{}: the data file {} is not there\nhint: paths are relative to the task file or to the current directory",
        task.display(),
        relative.display()
    )
}

fn read_json(path: &Path, options: &Options, docs: &mut Vec<Doc>) -> Result<()> {
    for record in records::open(path)? {
        let record = record?;
        let value: Value = record.parse(path)?;
        let bad = || format!("{}, line {}: expected an object per document", path.display(), record.line);
        match &options.field {
            None => match value {
                Value::Object(doc) => docs.push(doc),
                _ => bail!(bad()),
            },
            Some(field) => {
                let Some(Value::Array(items)) = value.get(field) else {
                    bail!("{}: there is no list `{field}` in it", path.display());
                };
                for item in items {
                    docs.push(item.as_object().cloned().with_context(bad)?);
                }
            }
        }
    }
    Ok(())
}

fn read_csv(path: &Path, options: &Options, docs: &mut Vec<Doc>) -> Result<()> {
    let at = |e: csv::Error| anyhow::anyhow!("{}: {e}", path.display());
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(options.delimiter)
        .has_headers(options.columns.is_none())
        .from_reader(records::open_text(path)?);
    let names = match &options.columns {
        Some(names) => names.clone(),
        None => reader.headers().map_err(at)?.iter().map(str::to_string).collect(),
    };
    let rows: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().map_err(at)?;
    if let Some(row) = rows.iter().find(|r| r.len() != names.len()) {
        let line = row.position().map_or(0, csv::Position::line);
        bail!("{}, line {line}: expected {} columns, found {}", path.display(), names.len(), row.len());
    }
    let kinds: Vec<Kind> = (0..names.len()).map(|i| Kind::of(rows.iter().map(|r| &r[i]))).collect();
    for row in &rows {
        let cells = row.iter().zip(&kinds).map(|(cell, kind)| kind.value(cell));
        docs.push(names.iter().cloned().zip(cells).collect());
    }
    Ok(())
}

/// The type pandas infers for a column.
#[derive(Clone, Copy)]
enum Kind {
    Integer,
    Float,
    Bool,
    Text,
}

impl Kind {
    fn of<'a>(cells: impl Iterator<Item = &'a str> + Clone) -> Self {
        let missing = cells.clone().any(|c| MISSING.contains(&c));
        let mut present = cells.filter(|c| !MISSING.contains(c)).peekable();
        if present.peek().is_none() {
            return Self::Float;
        }
        let all: Vec<&str> = present.collect();
        if all.iter().all(|c| c.trim().parse::<i64>().is_ok()) {
            // A gap turns a column of integers into floats.
            return if missing { Self::Float } else { Self::Integer };
        }
        if all.iter().all(|c| c.trim().parse::<f64>().is_ok()) {
            return Self::Float;
        }
        let boolean = |c: &&&str| ["True", "False", "TRUE", "FALSE", "true", "false"].contains(*c);
        if !missing && all.iter().filter(boolean).count() == all.len() { Self::Bool } else { Self::Text }
    }

    fn value(self, cell: &str) -> Value {
        if MISSING.contains(&cell) {
            return Value::Null;
        }
        match self {
            Self::Integer => cell.trim().parse::<i64>().map_or(Value::Null, Value::from),
            Self::Float => {
                cell.trim().parse::<f64>().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number)
            }
            Self::Bool => cell.eq_ignore_ascii_case("true").into(),
            Self::Text => cell.into(),
        }
    }
}

/// Gives every document every column, in the order they first appear.
fn fill_columns(docs: &mut [Doc]) {
    let mut columns: Map<String, Value> = Map::new();
    for doc in docs.iter() {
        for name in doc.keys() {
            if !columns.contains_key(name) {
                columns.insert(name.clone(), Value::Null);
            }
        }
    }
    for doc in docs {
        if doc.len() < columns.len() {
            let mut full = columns.clone();
            full.extend(std::mem::take(doc));
            *doc = full;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn csv_columns_get_pandas_types() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        std::fs::write(&path, "q,n,x,b,gap\n\"a, b\",1,1.5,True,3\nNA,2,2,False,\n").unwrap();
        let mut docs = Vec::new();
        read_csv(&path, &Options::default(), &mut docs).unwrap();
        assert_eq!(
            Value::from(docs[0].clone()),
            json!({"q": "a, b", "n": 1, "x": 1.5, "b": true, "gap": 3.0})
        );
        assert_eq!(
            Value::from(docs[1].clone()),
            json!({"q": null, "n": 2, "x": 2.0, "b": false, "gap": null})
        );
        let named = Options { columns: Some(vec!["u".into(), "v".into()]), ..Options::default() };
        std::fs::write(&path, "x,1\ny,2\n").unwrap();
        docs.clear();
        read_csv(&path, &named, &mut docs).unwrap();
        assert_eq!(Value::from(docs[1].clone()), json!({"u": "y", "v": 2}));
        std::fs::write(&path, "x,1,z\n").unwrap();
        let error = read_csv(&path, &named, &mut docs).unwrap_err().to_string();
        assert!(error.contains("expected 2 columns, found 3"), "{error}");
    }

    #[test]
    fn every_document_has_every_column() {
        let mut docs: Vec<Doc> =
            [json!({"a": 1}), json!({"b": 2})].iter().map(|d| d.as_object().unwrap().clone()).collect();
        fill_columns(&mut docs);
        assert_eq!(Value::from(docs[1].clone()), json!({"a": null, "b": 2}));
    }
}
