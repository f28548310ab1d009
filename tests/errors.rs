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

#[test]
fn a_missing_recipe() {
    check(&["run", "no/such.toml"], 1, &["error:", "no/such.toml", "hint:"]);
}

#[test]
fn an_unknown_subcommand_is_a_usage_error() {
    check(&["dta"], 2, &["dta", "data"]);
}
