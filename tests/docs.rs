//! The generated documents are what the program says now.

use crate::support::{ok, root};

#[test]
fn the_command_reference_is_up_to_date() {
    let stored = std::fs::read_to_string(root().join("docs/cli.md")).expect("docs/cli.md can be read");
    assert!(stored == ok(&["help-markdown"]), "docs/cli.md is out of date; run cargo xtask docs");
}

#[test]
fn the_config_reference_is_up_to_date() {
    let stored = std::fs::read_to_string(root().join("docs/config.md")).expect("docs/config.md can be read");
    assert!(stored == ok(&["help-config"]), "docs/config.md is out of date; run cargo xtask docs");
}

#[test]
fn the_calculator_is_declared_alike_in_lessons_and_by_the_agent() {
    let lessons = intern_data::synth::calculator_declaration();
    let agent = intern_agent::tools::Tool::declaration(&intern_agent::tools::calculator::Calculator);
    assert_eq!(lessons, agent);
}
