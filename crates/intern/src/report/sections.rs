//! The parts of the report, each from the files one kind of step writes.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::chart::{From, Series, lines};
use super::escape;
use crate::lifecycle::{Recipe, State, Step};

fn of<'a>(recipe: &'a Recipe, command: &'a str) -> impl Iterator<Item = &'a Step> {
    recipe.steps.iter().filter(move |s| s.command == command)
}

fn json(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(intern_format::atomic::read_json(path)?))
}

fn json_lines(path: &Path) -> Result<Vec<Value>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    text.lines()
        .map(|l| serde_json::from_str(l).with_context(|| format!("reading {}", path.display())))
        .collect()
}

/// A table of every metric of every evaluation and agent run.
pub fn scores(recipe: &Recipe) -> Result<String> {
    let mut rows = String::new();
    for step in of(recipe, "agent run") {
        let Some(results) = json(&recipe.dir(step).join("results.json"))? else { continue };
        let (correct, total) =
            (results["correct"].as_u64().unwrap_or(0), results["total"].as_u64().unwrap_or(0));
        if total > 0 {
            let share = 100.0 * correct as f64 / total as f64;
            row(
                &mut rows,
                &step.name,
                "agent: problems solved",
                &format!("{share:.1} % ({correct} of {total})"),
            );
        }
    }
    for step in of(recipe, "eval run") {
        let Some(results) = json(&recipe.dir(step).join("results.json"))? else { continue };
        for (task, metrics) in results["results"].as_object().into_iter().flatten() {
            for (metric, value) in metrics.as_object().into_iter().flatten() {
                let Some(value) = value.as_f64().filter(|_| !metric.contains("stderr")) else { continue };
                let (name, filter) = metric.split_once(',').unwrap_or((metric, "none"));
                if name == "samples" || name == "sample_len" {
                    continue;
                }
                let stderr = metrics[format!("{name}_stderr,{filter}")].as_f64();
                let shown = match stderr {
                    Some(e) if e > 0.0 => format!("{value:.3} ± {e:.3}"),
                    _ => format!("{value:.3}"),
                };
                row(&mut rows, &step.name, &format!("{task}: {name}"), &shown);
            }
        }
    }
    if rows.is_empty() {
        return Ok(String::new());
    }
    Ok(format!(
        "<h2>Scores</h2>\n<div class=\"scroll\"><table>\n<tr><th>step</th><th>measure</th><th class=\"n\">score</th></tr>\n\
         {rows}</table></div>\n"
    ))
}

fn row(rows: &mut String, step: &str, measure: &str, score: &str) {
    let _ = writeln!(
        rows,
        "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td></tr>",
        escape(step),
        escape(measure),
        escape(score)
    );
}

/// The funnel of every `data run`.
pub fn funnels(recipe: &Recipe) -> Result<String> {
    let mut out = String::new();
    for step in of(recipe, "data run") {
        let Some(report) = json(&recipe.dir(step).join("report.json"))? else { continue };
        let _ = writeln!(out, "<h2>Cleaning: {}</h2>", escape(&step.name));
        let stages = report["funnel"].as_array().cloned().unwrap_or_default();
        let first = stages.first().and_then(|s| s["documents"].as_f64()).unwrap_or(0.0).max(1.0);
        for stage in &stages {
            let left = stage["documents"].as_f64().unwrap_or(0.0);
            let _ = writeln!(
                out,
                "<div class=\"bar\"><span>{}</span><div><i style=\"width:{:.2}%\"></i><b>{left:.0} ({:.1} %)</b></div></div>",
                escape(stage["stage"].as_str().unwrap_or("?")),
                100.0 * left / first,
                100.0 * left / first
            );
        }
        for note in report["notes"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let _ = writeln!(out, "<p class=\"note\">{}</p>", escape(note));
        }
        let page = format!("{}/report.html", step.name);
        let _ = writeln!(out, "<p class=\"note\"><a href=\"{page}\">Every rule, with samples</a></p>");
    }
    Ok(out)
}

/// The loss curves of every training step.
pub fn losses(recipe: &Recipe) -> Result<String> {
    let mut out = String::new();
    for step in recipe.steps.iter().filter(|s| s.command == "train run" || s.command == "tune run") {
        let metrics = json_lines(&recipe.dir(step).join("metrics.jsonl"))?;
        let series = |key: &str, name: &str, colour| {
            let points =
                metrics.iter().filter_map(|m| Some((m["step"].as_f64()?, m[key].as_f64()?))).collect();
            Series::new(name, colour, points)
        };
        let all: Vec<Series> = [series("loss", "training loss", 0), series("valid_loss", "held-out loss", 1)]
            .into_iter()
            .filter(|s| !s.points.is_empty())
            .collect();
        let chart = lines(&all, "step", From::Zero);
        if !chart.is_empty() {
            let _ = writeln!(out, "<h2>Loss: {}</h2>\n{chart}", escape(&step.name));
        }
        let held: Vec<(f64, f64)> = series("valid_loss", "", 1).points;
        if let (Some(first), Some(last)) = (held.first(), held.last()) {
            let _ = writeln!(
                out,
                "<p class=\"note\">Held-out loss {:.3} at step {:.0}, {:.3} at step {:.0}.</p>",
                first.1, first.0, last.1, last.0
            );
        }
    }
    Ok(out)
}

/// One solved problem of the best agent run, turn by turn.
pub fn transcript(recipe: &Recipe) -> Result<String> {
    let mut best: Option<(f64, &Step)> = None;
    for step in of(recipe, "agent run") {
        let Some(results) = json(&recipe.dir(step).join("results.json"))? else { continue };
        let accuracy = results["accuracy"].as_f64().unwrap_or(0.0);
        if best.is_none_or(|(b, _)| accuracy > b) {
            best = Some((accuracy, step));
        }
    }
    let Some((_, step)) = best else { return Ok(String::new()) };
    let events = json_lines(&recipe.dir(step).join("events.jsonl"))?;
    let Some(problem) =
        events.iter().find(|e| e["correct"].as_bool() == Some(true)).map(|e| e["problem"].clone())
    else {
        return Ok(String::new());
    };
    let mut out = format!("<h2>An agent at work: {}</h2>\n", escape(&step.name));
    for event in events.iter().filter(|e| e["problem"] == problem) {
        let (who, text) = match event["type"].as_str() {
            Some("question") => ("user", event["content"].as_str()),
            Some("assistant") => ("assistant", event["content"].as_str()),
            Some("tool_call") => ("assistant calls", event["call"].as_str()),
            Some("tool_result") => ("tool", event["content"].as_str()),
            _ => continue,
        };
        let Some(text) = text.filter(|t| !t.trim().is_empty()) else { continue };
        let class = who.split(' ').next().unwrap_or(who);
        let _ = writeln!(out, "<div class=\"turn {class}\"><b>{who}</b><pre>{}</pre></div>", escape(text));
    }
    Ok(out)
}

/// What ran, and for how long.
pub fn steps(recipe: &Recipe, state: &State) -> String {
    let mut out = String::from(
        "<h2>Steps</h2>\n<div class=\"scroll\"><table>\n<tr><th>step</th><th>command</th><th class=\"n\">seconds</th></tr>\n",
    );
    for step in &recipe.steps {
        let seconds = state.seconds(&step.name).map_or("–".to_string(), |s| format!("{s:.1}"));
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>intern {}</td><td class=\"n\">{seconds}</td></tr>",
            escape(&step.name),
            escape(&step.command)
        );
    }
    out.push_str("</table></div>\n");
    out
}
