//! Runs the binary and looks at what it says.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The workspace's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace exists")
}

/// `intern ARGS` in the workspace's root, without any of the caller's settings.
pub fn intern(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_intern"));
    command.args(args).current_dir(root()).env_remove("RUST_LOG").env_remove("OPENAI_API_KEY");
    command
}

/// Runs `intern ARGS`, which must succeed; returns standard output.
#[track_caller]
pub fn ok(args: &[&str]) -> String {
    let output = intern(args).output().expect("the binary starts");
    assert!(output.status.success(), "intern {}\n{}", args.join(" "), stderr(&output));
    String::from_utf8(output.stdout).expect("output is UTF-8")
}

/// What a command wrote to standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every file under `dir` with its bytes' hash, by name, except those `skip` names.
pub fn hashes(dir: &Path, skip: &[&str]) -> std::collections::BTreeMap<String, String> {
    let mut found = std::collections::BTreeMap::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(&at).expect("the directory can be listed") {
            let path = entry.expect("the entry can be read").path();
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).expect("it lies below").display().to_string();
            if !skip.iter().any(|s| name.contains(s)) {
                let bytes = std::fs::read(&path).expect("the file can be read");
                found.insert(name, blake3::hash(&bytes).to_hex().to_string());
            }
        }
    }
    found
}
