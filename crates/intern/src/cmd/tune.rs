//! `intern tune`: fine-tuning on conversations, and merging adapters.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use intern_progress::human;
use intern_tune::{Summary, TuneConfig};

use super::train::{must_continue, print_losses, print_rate};

/// Arguments of `intern tune`.
#[derive(Args)]
pub struct TuneArgs {
    #[command(subcommand)]
    command: TuneCommand,
}

#[derive(Subcommand)]
enum TuneCommand {
    /// Supervised fine-tuning: all weights, or LoRA where the config has a [lora] table.
    ///
    /// Shows a sample with its trained tokens marked, then trains. Writes OUT/checkpoint or
    /// OUT/adapter (PEFT), OUT/trainer (to continue from) and OUT/metrics.jsonl.
    Run(RunArgs),
    /// Reads the data and shows what would be trained on, without training.
    Check(CheckArgs),
    /// Writes a base checkpoint with an adapter merged in.
    Merge(MergeArgs),
}

#[derive(Args)]
#[command(after_help = "Examples:
  intern tune run configs/tune/tiny-full.toml --out runs/tuned
  intern tune run configs/tune/tiny-lora.toml --out runs/lora --set lora.r=16
  intern tune run configs/tune/tiny-full.toml --out runs/tuned --set model=runs/other/checkpoint")]
struct RunArgs {
    /// The run.
    config: PathBuf,
    /// Where it writes.
    #[arg(long)]
    out: PathBuf,
    /// Overrides a setting. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Only continue: fail where OUT holds no saved state of this very run, instead of starting one.
    #[arg(long)]
    resume: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  intern tune check configs/tune/tiny-lora.toml
  intern tune check configs/tune/tiny-lora.toml --set data.train=my.jsonl")]
struct CheckArgs {
    /// The run.
    config: PathBuf,
    /// Overrides a setting. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
}

#[derive(Args)]
#[command(after_help = "Examples:
  intern tune merge runs/tiny/checkpoint runs/lora/adapter --out runs/merged")]
struct MergeArgs {
    /// The checkpoint the adapter was trained on.
    base: PathBuf,
    /// The adapter, a PEFT directory.
    adapter: PathBuf,
    /// The new checkpoint directory.
    #[arg(long)]
    out: PathBuf,
}

/// Runs `intern tune`.
pub fn run(args: TuneArgs) -> Result<()> {
    match args.command {
        TuneCommand::Run(args) => tune(&args),
        TuneCommand::Check(args) => {
            let config: TuneConfig = crate::config::load(&args.config, &args.sets)?;
            let colour = std::io::stdout().is_terminal();
            println!("{}", intern_tune::prepare(&config)?.describe(colour)?);
            Ok(())
        }
        TuneCommand::Merge(args) => {
            intern_tune::merge(&args.base, &args.adapter, &args.out)?;
            println!("checkpoint     {}", args.out.display());
            Ok(())
        }
    }
}

fn tune(args: &RunArgs) -> Result<()> {
    intern_progress::set_silent(args.json);
    let config: TuneConfig = crate::config::load(&args.config, &args.sets)?;
    let job = intern_tune::job(&config, &args.out)?;
    if args.resume {
        must_continue(&job)?;
    }
    let summary = match job.finished()? {
        Some(summary) => summary,
        None => {
            let prepared = intern_tune::prepare(&config)?;
            if !args.json {
                eprintln!("{}", prepared.describe(std::io::stderr().is_terminal())?);
            }
            prepared.train(&args.out)?
        }
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print_summary(&summary);
    }
    Ok(())
}

fn print_summary(s: &Summary) {
    println!("conversations  {} ({} left out)", s.data.conversations, s.data.dropped + s.data.untrained);
    println!("steps          {}", s.steps);
    println!("tokens         {}", human(s.tokens as f64));
    println!(
        "parameters     {} of {} trained",
        human(s.trained_parameters as f64),
        human(s.parameters as f64)
    );
    print_losses(s.train_loss, s.first_valid_loss, s.valid_loss);
    print_rate(s.tokens, s.tokens_per_second);
    if let Some(adapter) = &s.adapter {
        println!("adapter        {}", adapter.display());
    }
    if let Some(checkpoint) = &s.checkpoint {
        println!("checkpoint     {}", checkpoint.display());
    }
}
