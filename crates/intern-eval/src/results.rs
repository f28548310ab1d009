//! `results.json`, in lm-evaluation-harness's field names, and the table on the terminal.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::config::EvalConfig;
use crate::metrics::Item;
use crate::tasks::Task;
use crate::tasks::group::Group;

/// The contents of `results.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Summary(pub Value);

/// The items of one metric under one filter.
pub struct Column {
    /// The metric's position in the task's list.
    pub metric: usize,
    /// The filter's name.
    pub filter: String,
    /// One per document.
    pub items: Vec<Item>,
}

/// Puts together the results of all tasks and groups.
#[must_use]
pub fn summarize(
    config: &EvalConfig,
    model: &str,
    tasks: &[(Task, Vec<Column>)],
    groups: &[Group],
) -> Summary {
    let mut results: Map<String, Value> = Map::new();
    let (mut configs, mut versions, mut shots) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let (mut better, mut samples) = (BTreeMap::new(), Map::new());
    for (task, columns) in tasks {
        let name = &task.spec.name;
        results.insert(name.clone(), scores(config, task, columns));
        let mut fields = task.spec.config.clone();
        fields.insert("num_fewshot".into(), task.num_fewshot.into());
        configs.insert(name.clone(), Value::Object(fields));
        versions.insert(name.clone(), task.spec.version.clone());
        shots.insert(name.clone(), json!(task.num_fewshot));
        let directions: Map<String, Value> =
            task.spec.metrics.iter().map(|m| (m.name.clone(), m.higher_is_better.into())).collect();
        better.insert(name.clone(), Value::Object(directions));
        samples.insert(name.clone(), json!({"original": task.total_docs, "effective": task.docs.len()}));
    }
    let (mut averages, mut subtasks) = (Map::new(), Map::new());
    for group in groups {
        let score = average(group, groups, &results);
        results.insert(group.name.clone(), score.clone());
        if !group.averages.is_empty() {
            averages.insert(group.name.clone(), score);
        }
        subtasks.insert(group.name.clone(), json!(group.members));
        versions.insert(group.name.clone(), group.version.clone());
    }
    let mut all = json!({ "results": results });
    if !averages.is_empty() {
        all["groups"] = Value::Object(averages);
    }
    all["group_subtasks"] = Value::Object(subtasks);
    all["configs"] = json!(configs);
    all["versions"] = json!(versions);
    all["n-shot"] = json!(shots);
    all["higher_is_better"] = json!(better);
    all["n-samples"] = Value::Object(samples);
    all["config"] = json!({
        "model": model,
        "limit": config.limit,
        "bootstrap_iters": config.bootstrap_iters,
        "fewshot_seed": config.seed,
    });
    Summary(all)
}

fn scores(config: &EvalConfig, task: &Task, columns: &[Column]) -> Value {
    let mut out = Map::new();
    out.insert("alias".into(), task.spec.alias.clone().into());
    out.insert("sample_len".into(), task.docs.len().into());
    for column in columns {
        let metric = &task.spec.metrics[column.metric];
        let key = |part: &str| format!("{}{part},{}", metric.name, column.filter);
        out.insert(key(""), number(metric.aggregation.apply(&column.items)));
        let stderr = metric.aggregation.stderr(&column.items, config.bootstrap_iters);
        out.insert(key("_stderr"), stderr.map_or("N/A".into(), number));
    }
    Value::Object(out)
}

/// JSON has no infinities; a score that is none is text.
fn number(x: f64) -> Value {
    serde_json::Number::from_f64(x).map_or_else(|| crate::python::float(x).into(), Value::Number)
}

/// Averages over all tasks below a group.
fn average(group: &Group, groups: &[Group], results: &Map<String, Value>) -> Value {
    let mut out = Map::new();
    out.insert("alias".into(), group.alias.clone().into());
    if group.averages.is_empty() {
        return Value::Object(out);
    }
    let tasks = leaves(group, groups);
    let scores: Vec<&Value> = tasks.iter().filter_map(|t| results.get(t)).collect();
    let len = |score: &Value| score["sample_len"].as_u64().unwrap_or(0) as f64;
    out.insert("sample_len".into(), json!(scores.iter().map(|s| len(s) as u64).sum::<u64>()));
    for wanted in &group.averages {
        let mut filters = wanted.filters.clone();
        if filters.is_empty() {
            let prefix = format!("{},", wanted.metric);
            for score in &scores {
                let keys = score.as_object().into_iter().flatten().map(|(k, _)| k);
                filters.extend(keys.filter_map(|k| k.strip_prefix(&prefix).map(str::to_string)));
            }
            filters.sort();
            filters.dedup();
        }
        for filter in filters {
            let key = format!("{},{filter}", wanted.metric);
            let stderr_key = format!("{}_stderr,{filter}", wanted.metric);
            let with: Vec<&&Value> = scores.iter().filter(|s| s[&key].is_number()).collect();
            if with.is_empty() {
                continue;
            }
            let sizes: Vec<f64> = with.iter().map(|s| len(s)).collect();
            let weights: Vec<f64> =
                sizes.iter().map(|n| if wanted.weight_by_size { *n } else { 1.0 }).collect();
            let values = with.iter().map(|s| s[&key].as_f64().unwrap_or(f64::NAN));
            let mean = values.zip(&weights).map(|(v, w)| v * w).sum::<f64>() / weights.iter().sum::<f64>();
            let stderrs: Option<Vec<f64>> = with.iter().map(|s| s[&stderr_key].as_f64()).collect();
            let stderr = stderrs.map(|e| match wanted.weight_by_size {
                true => pooled(&e, &sizes),
                false => e.iter().map(|x| x * x).sum::<f64>().sqrt() / e.len() as f64,
            });
            out.insert(key, number(mean));
            out.insert(stderr_key, stderr.map_or("N/A".into(), number));
        }
    }
    Value::Object(out)
}

/// Standard error of the mean of all documents, from each task's (pooled variance).
fn pooled(stderrs: &[f64], sizes: &[f64]) -> f64 {
    let total: f64 = sizes.iter().sum();
    let spread: f64 = stderrs.iter().zip(sizes).map(|(e, n)| (n - 1.0) * e * e * n).sum();
    (spread / (total - sizes.len() as f64) / total).sqrt()
}

/// Names of the tasks below a group.
fn leaves(group: &Group, groups: &[Group]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for member in &group.members {
        let below = match groups.iter().find(|g| g.name == *member) {
            Some(group) => leaves(group, groups),
            None => vec![member.clone()],
        };
        for task in below {
            if !out.contains(&task) {
                out.push(task);
            }
        }
    }
    out
}

impl Summary {
    /// A table for the terminal: one line per task, metric and filter.
    #[must_use]
    pub fn table(&self) -> String {
        let header = ["task", "shots", "filter", "metric", "", "score", "stderr"].map(String::from);
        let mut rows = vec![header];
        for (task, scores) in self.0["results"].as_object().into_iter().flatten() {
            let mut label = scores["alias"].as_str().unwrap_or(task).to_string();
            let mut shots = self.0["n-shot"][task].as_u64().map_or(String::new(), |n| n.to_string());
            for (key, value) in scores.as_object().into_iter().flatten() {
                let Some((metric, filter)) = key.split_once(',') else { continue };
                if metric.ends_with("_stderr") {
                    continue;
                }
                let arrow = match self.0["higher_is_better"][task][metric].as_bool() {
                    Some(true) => "↑",
                    Some(false) => "↓",
                    None => "",
                };
                let show = |v: &Value| v.as_f64().map(|x| format!("{x:.4}"));
                let score = show(value).unwrap_or_else(|| value.as_str().unwrap_or_default().to_string());
                let stderr = show(&scores[format!("{metric}_stderr,{filter}")])
                    .map_or(String::new(), |e| format!("± {e}"));
                let name = std::mem::take(&mut label);
                rows.push([
                    name,
                    std::mem::take(&mut shots),
                    filter.into(),
                    metric.into(),
                    arrow.into(),
                    score,
                    stderr,
                ]);
            }
        }
        let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..7).map(width).collect();
        let line = |row: &[String; 7]| {
            let cells: Vec<String> = row
                .iter()
                .enumerate()
                .map(|(i, cell)| {
                    let pad = " ".repeat(widths[i] - cell.chars().count());
                    if i == 5 { format!("{pad}{cell}") } else { format!("{cell}{pad}") }
                })
                .collect();
            cells.join("  ").trim_end().to_string()
        };
        rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}
