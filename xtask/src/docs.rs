//! Generates docs/cli.md from the program's own help.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Writes docs/cli.md, or with `check` fails if it is not up to date.
pub fn run(root: &Path, check: bool) -> Result<()> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let output = Command::new(cargo)
        .args(["run", "--quiet", "--package", "intern", "--", "help-markdown"])
        .current_dir(root)
        .output()
        .context("running intern")?;
    if !output.status.success() {
        bail!("intern help-markdown: {}", String::from_utf8_lossy(&output.stderr));
    }
    let fresh = String::from_utf8(output.stdout)?;
    let path = root.join("docs/cli.md");
    if !check {
        return Ok(std::fs::write(path, fresh)?);
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    if stored != fresh {
        bail!("docs/cli.md is out of date\nhint: run cargo xtask docs and commit the result");
    }
    Ok(())
}
