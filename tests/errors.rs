//! What the program says when something is wrong: message, hint, exit code.

use crate::support::{intern, stderr};

/// Runs `args`; they must fail with `code`, and say each of `words`.
#[track_caller]
fn check(args: &[&str], code: i32, words: &[&str]) {
    let output = intern(args).output().expect("the binary starts");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "intern {}\n{said}", args.join(" "));
    for word in words {
        assert!(said.contains(word), "intern {}: no `{word}` in:\n{said}", args.join(" "));
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// A directory with one file in it.
fn with_file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).expect("the file can be written");
    let shown = path.display().to_string();
    (dir, shown)
}

#[test]
fn a_missing_recipe() {
    check(&["run", "no/such.toml"], 1, &["error:", "no/such.toml", "hint:"]);
}

#[test]
fn an_unknown_subcommand_is_a_usage_error() {
    check(&["dta"], 2, &["dta", "data"]);
}

#[test]
fn a_checkpoint_that_is_none() {
    let (dir, _) = with_file("x.txt", b"x");
    let out = dir.path().join("o.gguf").display().to_string();
    let model = dir.path().display().to_string();
    check(&["serve", "quantize", &model, "--type", "q4_0", "--out", &out], 1, &["error:", &model, "hint:"]);
    assert!(!std::path::Path::new(&out).exists());
}

#[test]
fn a_gguf_that_is_none() {
    let (dir, path) = with_file("x.gguf", b"not a model at all, but long enough to look at");
    let out = dir.path().join("l.safetensors").display().to_string();
    check(&["serve", "logits", &path, "--tokens", "1,2", "--out", &out], 1, &["error:", "x.gguf"]);
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let (_dir, path) = with_file("r.toml", b"[dedupe]\n");
    check(
        &["data", "run", &path, "--out", "runs/never"],
        1,
        &["r.toml", "`dedupe`", "did you mean `dedup`?"],
    );
}

#[test]
fn an_empty_corpus() {
    let (dir, documents) = with_file("d.jsonl", b"");
    let config = dir.path().join("t.toml");
    std::fs::write(&config, format!("documents = [{documents:?}]\nvocab_size = 300\n")).expect("written");
    let out = dir.path().join("out").display().to_string();
    let config = config.display().to_string();
    check(&["data", "tokenizer", &config, "--out", &out], 1, &["error:", "hint:"]);
}

#[test]
fn a_broken_line_is_named() {
    let (dir, documents) = with_file("d.jsonl", b"{\"id\":\"a\",\"text\":\"x\"}\n{broken\n");
    let config = dir.path().join("t.toml");
    std::fs::write(&config, format!("documents = [{documents:?}]\nvocab_size = 300\n")).expect("written");
    let out = dir.path().join("out").display().to_string();
    let config = config.display().to_string();
    check(&["data", "tokenizer", &config, "--out", &out], 1, &["d.jsonl", "line 2"]);
}

#[test]
fn bad_utf8_in_a_config() {
    let (_dir, path) = with_file("r.toml", b"title = \"\xff\"\n");
    check(&["run", &path], 1, &["error:", "r.toml"]);
}
