//! `intern run`: a recipe of steps, each skipped when nothing it depends on has changed.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::lifecycle;

/// Arguments of `intern run`.
#[derive(Args)]
#[command(after_help = "Examples:
  intern run configs/quickstart.toml
  intern run configs/quickstart.toml --out runs/second --set lessons.seed=2
  intern run configs/quickstart.toml --only lessons,clean
  intern run configs/quickstart.toml --plan")]
pub struct RunArgs {
    /// The recipe.
    recipe: PathBuf,
    /// Where the steps write; overrides the recipe's `out`.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Overrides a step's setting: STEP.key=value. May be repeated.
    #[arg(long = "set", value_name = "STEP.KEY=VALUE")]
    sets: Vec<String>,
    /// Only these steps (and nothing after them), separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Say what would run and why, and run nothing.
    #[arg(long)]
    plan: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the recipe.
pub fn run(args: RunArgs) -> Result<()> {
    intern_progress::set_silent(args.json);
    let recipe = lifecycle::Recipe::load(&args.recipe, args.out, &args.sets)?;
    if args.plan {
        return lifecycle::plan(&recipe);
    }
    let outcome = lifecycle::run(&recipe, &args.only, args.json)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    }
    Ok(())
}
