//! Checks the shape of the tree against docs/architecture.md.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The level of every crate; a crate depends only on lower levels.
const LEVELS: &[(&str, u32)] = &[
    ("intern-progress", 0),
    ("intern-format", 0),
    ("intern-kernels", 0),
    ("intern-comm", 0),
    ("intern-hub", 1),
    ("intern-tokenizer", 1),
    ("intern-lm", 1),
    ("intern-model", 1),
    ("intern-engine", 2),
    ("intern-train", 2),
    ("intern-data", 3),
    ("intern-tune", 3),
    ("intern-serve", 3),
    ("intern-agent", 3),
    ("intern-eval", 4),
    ("intern", 5),
];

/// Where features may be asked for.
const FEATURES_IN: &[&str] = &[
    "crates/intern-kernels/",
    "crates/intern-comm/",
    "crates/intern-model/src/device.rs",
    "crates/intern-hub/src/remote.rs",
    "crates/intern-hub/tests/remote.rs",
];

/// No file is longer.
const MAX_LINES: usize = 800;

/// Licences that may not be linked into the binary.
const FORBIDDEN_LICENCES: &[&str] = &["GPL", "SSPL", "BUSL", "CC-BY-NC"];

/// Runs every check and lists all that it finds.
pub fn run(root: &Path) -> Result<()> {
    let metadata = metadata(root)?;
    let mut found = Vec::new();
    layers(&metadata, &mut found)?;
    licences(&metadata, &mut found)?;
    for path in tracked(root)? {
        let full = root.join(&path);
        if full.is_file() {
            source(&path, &full, &mut found)?;
        }
    }
    if !found.is_empty() {
        bail!("{} to tidy up:\n  {}", found.len(), found.join("\n  "));
    }
    Ok(())
}

fn metadata(root: &Path) -> Result<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root)
        .output()?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Files git tracks or would track.
fn tracked(root: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("running git")?;
    Ok(String::from_utf8(output.stdout)?.lines().map(PathBuf::from).collect())
}

fn array<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn layers(metadata: &Value, found: &mut Vec<String>) -> Result<()> {
    let level = |name: &str| LEVELS.iter().find(|(n, _)| *n == name).map(|(_, l)| *l);
    for package in array(metadata, "packages") {
        let name = package["name"].as_str().unwrap_or_default();
        let manifest = package["manifest_path"].as_str().unwrap_or_default();
        if !package["source"].is_null() || !manifest.contains("/crates/") {
            continue;
        }
        let Some(own) = level(name) else {
            found.push(format!("{name} has no level in xtask/src/tidy.rs"));
            continue;
        };
        for dependency in array(package, "dependencies").filter(|d| d["kind"].is_null()) {
            let other = dependency["name"].as_str().unwrap_or_default();
            if let Some(below) = level(other)
                && below >= own
            {
                found.push(format!("{name} (level {own}) depends on {other} (level {below})"));
            }
        }
    }
    Ok(())
}

fn licences(metadata: &Value, found: &mut Vec<String>) -> Result<()> {
    for package in array(metadata, "packages") {
        let licence = package["license"].as_str().unwrap_or_default();
        // "A OR B" lets us choose; every choice must be forbidden to object.
        let forbidden = |l: &str| FORBIDDEN_LICENCES.iter().any(|f| l.contains(f));
        if !licence.is_empty() && licence.split(" OR ").all(forbidden) {
            found.push(format!("{}: licence {licence}", package["name"].as_str().unwrap_or_default()));
        }
    }
    Ok(())
}

fn source(path: &Path, full: &Path, found: &mut Vec<String>) -> Result<()> {
    let name = path.display().to_string();
    let Ok(text) = std::fs::read_to_string(full) else { return Ok(()) };
    // Assembled so that this file does not find itself.
    for machine in [["/wo", "rk/"].concat(), ["/ro", "ot/"].concat()] {
        if text.contains(&machine) {
            found.push(format!("{name}: names a path of one machine ({machine})"));
        }
    }
    if path.extension().is_none_or(|e| e != "rs") {
        return Ok(());
    }
    if !text.starts_with("//!") {
        found.push(format!("{name}: does not open with //!"));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        found.push(format!("{name}: {lines} lines, more than {MAX_LINES}"));
    }
    let feature = ["cfg(fea", "ture"].concat();
    if text.contains(&feature) && !FEATURES_IN.iter().any(|p| name.starts_with(p)) {
        found.push(format!("{name}: {feature}) does not belong here"));
    }
    Ok(())
}
