//! Generates docs/cli.md from the program's own help and docs/config.md from its config structs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Hidden commands that print a document, and where it is kept.
const DOCUMENTS: [(&str, &str); 2] = [("help-markdown", "docs/cli.md"), ("help-config", "docs/config.md")];

/// Writes the documents, or with `check` fails if one is not up to date.
pub fn run(root: &Path, check: bool) -> Result<()> {
    for (command, name) in DOCUMENTS {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let output = Command::new(cargo)
            .args(["run", "--quiet", "--package", "intern", "--", command])
            .current_dir(root)
            .output()
            .context("running intern")?;
        if !output.status.success() {
            bail!("intern {command}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let fresh = String::from_utf8(output.stdout)?;
        let path = root.join(name);
        if !check {
            std::fs::write(&path, fresh).with_context(|| path.display().to_string())?;
        } else if std::fs::read_to_string(&path).unwrap_or_default() != fresh {
            bail!("{name} is out of date\nhint: run cargo xtask docs and commit the result");
        }
    }
    Ok(())
}
