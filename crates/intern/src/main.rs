//! The `intern` command.

fn main() {}
