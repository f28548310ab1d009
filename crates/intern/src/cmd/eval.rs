//! `intern eval`: score a model on tasks.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use intern_eval::EvalConfig;
use toml::{Table, Value};

use crate::{config, model};

/// Arguments of `intern eval`.
#[derive(Args)]
pub struct EvalArgs {
    #[command(subcommand)]
    command: EvalCommand,
}

#[derive(Subcommand)]
enum EvalCommand {
    /// Scores a model on tasks in lm-evaluation-harness's YAML.
    ///
    /// Writes OUT/results.json (lm-evaluation-harness's field names) and OUT/samples.jsonl (one line
    /// per document). Killed at any moment, the same command goes on and asks nothing twice.
    Run(RunArgs),
}

#[derive(Args)]
#[command(after_help = "Examples:
  intern eval run configs/eval/arithmetic.yaml --model runs/tiny/checkpoint --out runs/tiny-eval
  intern eval run tasks/ --model tiny.gguf --limit 100 --num-fewshot 5 --out runs/eval
  intern eval run configs/eval/example.toml --model http://127.0.0.1:8000/v1 --out runs/eval --json
  intern eval run tasks/ --model https://api.openai.com/v1#gpt-4o-mini --out runs/eval

A URL's key comes from the environment as OPENAI_API_KEY.")]
struct RunArgs {
    /// Task files, directories of them, or one TOML file with the whole run.
    #[arg(required = true)]
    tasks: Vec<PathBuf>,
    /// Checkpoint directory, GGUF file, or the URL of an OpenAI-compatible server.
    #[arg(long)]
    model: Option<String>,
    /// PEFT adapter merged into local weights.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Where results go.
    #[arg(long)]
    out: PathBuf,
    /// Only the first so many documents of each task.
    #[arg(long)]
    limit: Option<usize>,
    /// Solved examples before each question.
    #[arg(long)]
    num_fewshot: Option<usize>,
    /// Overrides a setting. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print the results as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs one of the commands.
pub fn run(args: EvalArgs) -> Result<()> {
    match args.command {
        EvalCommand::Run(args) => run_tasks(args),
    }
}

fn run_tasks(args: RunArgs) -> Result<()> {
    intern_progress::set_silent(args.json);
    let is_toml = |p: &PathBuf| p.extension().is_some_and(|e| e == "toml");
    let (mut table, origin) = match args.tasks.as_slice() {
        [file] if is_toml(file) => (config::read(file)?, file.display().to_string()),
        paths if paths.iter().any(is_toml) => bail!("a TOML file is a whole run; name it alone"),
        paths => {
            let paths = paths.iter().map(|p| Value::String(p.to_string_lossy().into_owned())).collect();
            (Table::from_iter([("tasks".to_string(), Value::Array(paths))]), "the command line".to_string())
        }
    };
    let number = |n: usize| Value::Integer(n as i64);
    let flags = [
        ("model", args.model.map(Value::String)),
        ("adapter", args.adapter.map(|p| Value::String(p.to_string_lossy().into_owned()))),
        ("limit", args.limit.map(number)),
        ("num_fewshot", args.num_fewshot.map(number)),
    ];
    table.extend(flags.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))));
    for set in &args.sets {
        config::apply(&mut table, set)?;
    }
    let hash = model::fingerprint(&table)?;
    // Settings are checked before the model is loaded.
    let mut settings = table.clone();
    for key in ["model", "adapter", "engine"] {
        settings.remove(key);
    }
    let mut settings: EvalConfig = config::resolve(settings, &[], &origin)?;
    settings.model_hash = hash;
    let model = model::from_config(&mut table, &origin)?;
    let summary = intern_eval::run(&settings, model.as_ref(), &args.out)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        println!("{}", summary.table());
    }
    Ok(())
}
