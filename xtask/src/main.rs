//! Developer tasks: `cargo xtask ci|tidy|docs|golden|bench`.

fn main() {}
