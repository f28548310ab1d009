//! `intern train bench` without the rest of the program, for work on the kernels:
//! `cargo run --release -p intern-train --example step_time -- SHAPE [STEPS] [RECOMPUTE]`.

use anyhow::{Context, Result};
use intern_train::bench::Bench;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let shape = args.next().unwrap_or_else(|| "quickstart".into());
    let mut bench = Bench::named(&shape).context("no such shape\nhint: quickstart or peer")?;
    if let Some(steps) = args.next() {
        bench.steps = steps.parse().context("STEPS is a number")?;
    }
    if let Some(share) = args.next() {
        bench.recompute = share.parse().context("RECOMPUTE is a number")?;
    }
    bench.run(|line| println!("{}", serde_json::to_string(line).unwrap_or_default()))
}
