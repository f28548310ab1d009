//! Developer tasks.
//!
//! `cargo xtask ci` is the README's test command: formatting, tidiness, lints and every
//! test; whether docs/cli.md is up to date is one of the tests. `cargo xtask ci --full` adds the slow suites.

mod docs;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: cargo xtask <task>
  ci [--full]     what must pass before work lands (--full: also the slow suites)
  tidy            layers, file headers, file sizes, features, licences
  docs [--check]  regenerate docs/cli.md from the program's help (--check: only compare)
  golden [NAME]   list (or run) the scripts that made the golden files
  bench           every benchmark";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().any(|a| a == name);
    let result = match args.first().map(String::as_str) {
        Some("ci") => ci(flag("--full")),
        Some("tidy") => tidy::run(&root()),
        Some("docs") => docs::run(&root(), flag("--check")),
        Some("golden") => golden(args.get(1).map(String::as_str)),
        Some("bench") => cargo(&["bench", "--package", "intern-benches"], &[]),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}

/// The workspace's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_path_buf()
}

fn ci(full: bool) -> Result<()> {
    let slow: &[(&str, &str)] = if full { &[("RUN_SLOW_TESTS", "1")] } else { &[] };
    step("format", || cargo(&["fmt", "--all", "--check"], &[]))?;
    step("tidy", || tidy::run(&root()))?;
    // With an MPI library at hand, its ranks are tested too.
    let features: &[&str] = match Command::new("mpicc").arg("--version").output() {
        Ok(found) if found.status.success() => &["--features", "intern/s3,intern/mpi"],
        _ => {
            eprintln!("no mpicc: ranks under mpirun are not tested");
            &["--features", "intern/s3"]
        }
    };
    step("lints", || {
        let (lint, deny) = (["clippy", "--workspace", "--all-targets", "--quiet"], ["--", "-D", "warnings"]);
        cargo(&[&lint[..], features, &deny[..]].concat(), &[])
    })?;
    step("tests", || {
        cargo(&[&["nextest", "run", "--workspace", "--no-fail-fast"][..], features].concat(), slow)
    })
}

fn step(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("── {name}");
    let start = Instant::now();
    run().with_context(|| format!("{name} failed"))?;
    eprintln!("── {name}: ok ({:.0} s)", start.elapsed().as_secs_f64());
    Ok(())
}

/// Runs cargo in the workspace's root.
fn cargo(args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let status = Command::new(cargo).args(args).envs(env.iter().copied()).current_dir(root()).status()?;
    if !status.success() {
        bail!("cargo {} ended with {status}", args.join(" "));
    }
    Ok(())
}

/// Golden files carry the Python script that made them; this finds or runs the scripts.
fn golden(name: Option<&str>) -> Result<()> {
    let mut scripts = Vec::new();
    find(&root().join("crates"), &mut scripts)?;
    scripts.sort();
    for script in &scripts {
        let shown = script.strip_prefix(root()).unwrap_or(script).display().to_string();
        match name {
            None => println!("{shown}"),
            Some(name) if shown.contains(name) => {
                println!("python {shown}");
                let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
                let status = Command::new(python).arg(script).current_dir(root()).status()?;
                if !status.success() {
                    bail!("{shown} ended with {status}");
                }
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn find(dir: &Path, scripts: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, scripts)?;
        } else if path.extension().is_some_and(|e| e == "py") {
            scripts.push(path);
        }
    }
    Ok(())
}
