//! `report.html`: a recipe's outcome on one self-contained page that reads well on a phone.
//!
//! Everything comes from the files the steps wrote: the funnel of `data run`, the
//! `metrics.jsonl` of training, the `results.json` of evaluations and agent runs, and
//! one transcript from `events.jsonl`. No scripts, no outside resources.

pub mod chart;
mod sections;

use std::path::Path;

use anyhow::Result;
use intern_format::atomic::write_atomic;

use crate::lifecycle::{Recipe, State};

/// Writes the report of `recipe` to `path`.
pub fn write(recipe: &Recipe, path: &Path) -> Result<()> {
    let state = State::load(&recipe.out)?;
    let mut body = format!("<h1>{}</h1>\n<p>{}</p>\n", escape(&recipe.title), escape(&recipe.about));
    body.push_str(&sections::scores(recipe)?);
    body.push_str(&sections::transcript(recipe)?);
    body.push_str(&sections::funnels(recipe)?);
    body.push_str(&sections::losses(recipe)?);
    body.push_str(&sections::steps(recipe, &state));
    let page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escape(&recipe.title)
    );
    write_atomic(path, page.as_bytes())?;
    Ok(())
}

/// Makes text safe inside HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "\
:root { --ink: #1b1f24; --soft: #667; --line: #d9dde3; --paper: #fff; --a: #2563a8; --b: #c2571a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa3ad; --line: #3a414a; --paper: #15181c; --a: #6aa9ee; --b: #f0935a; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 46rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.note { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.bar { display: grid; grid-template-columns: 9rem 1fr; gap: .6rem; align-items: center; margin: .25rem 0; }
.bar span { font-size: .9rem; } .bar i { display: block; height: 1.3rem; background: var(--a); border-radius: 3px;
  min-width: 2px; } .bar b { font-weight: 400; font-size: .85rem; color: var(--soft); }
.turn { border-left: 3px solid var(--line); padding: .1rem .8rem; margin: .6rem 0; }
.turn b { color: var(--soft); font-size: .85rem; font-weight: 600; } .turn.tool { border-color: var(--b); }
.turn.assistant { border-color: var(--a); }
.turn pre { margin: .1rem 0; white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.45 ui-monospace, monospace; }
";
