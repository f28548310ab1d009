//! `intern serve bench`: how fast a model is served.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use intern_engine::EngineConfig;
use intern_serve::bench::steps::{self, StepsConfig};
use toml::Table;

/// Arguments of `intern serve bench`.
#[derive(Args)]
#[command(after_help = "Examples:
  intern serve bench --model tiny.gguf
  intern serve bench --model tiny.gguf --prefill 512 --decode 32 --streams 1,4,8 --threads 2 --repeat 3 --json")]
pub struct BenchArgs {
    /// Checkpoint directory or GGUF file, run in this process.
    #[arg(long)]
    model: PathBuf,
    /// Tokens of the prompt whose reading is timed.
    #[arg(long, default_value_t = 512)]
    prefill: usize,
    /// Tokens each stream generates.
    #[arg(long, default_value_t = 32)]
    decode: usize,
    /// Numbers of streams decoded together.
    #[arg(long, value_delimiter = ',', default_value = "1,4,8")]
    streams: Vec<usize>,
    /// Times everything is measured; the table shows medians.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Seeds the random prompts.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads to compute with; 0 uses all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Overrides a setting of the engine: key=value. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print one JSON line per measurement.
    #[arg(long)]
    json: bool,
}

/// Runs the measurement.
pub fn run(args: BenchArgs) -> Result<()> {
    intern_progress::set_silent(args.json);
    let engine: EngineConfig = crate::config::resolve(Table::new(), &args.sets, "--set")?;
    let config = StepsConfig {
        model: args.model,
        prefill: args.prefill,
        decode: args.decode,
        streams: args.streams,
        repeat: args.repeat,
        seed: args.seed,
        engine: EngineConfig { threads: args.threads, ..engine },
    };
    let all = steps::run(&config, &mut |measured| {
        if args.json {
            println!("{}", serde_json::to_string(measured).unwrap_or_default());
        }
    })?;
    if !args.json {
        println!("{}", steps::table(&all));
    }
    Ok(())
}
