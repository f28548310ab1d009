//! `intern agent`: let a model use tools.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use intern_agent::AgentConfig;
use toml::{Table, Value};

use crate::{config, model};

/// Arguments of `intern agent`.
#[derive(Args)]
pub struct AgentArgs {
    #[command(subcommand)]
    command: AgentCommand,
}

#[derive(Subcommand)]
enum AgentCommand {
    /// Answers one question, or a file of problems, with tools.
    ///
    /// With --question the conversation is shown as it happens. With problems, OUT/events.jsonl
    /// records every step and OUT/results.json counts the right answers; killed at any moment, the
    /// same command goes on.
    Run(RunArgs),
}

#[derive(Args)]
#[command(after_help = "Examples:
  intern agent run configs/agent/calculator.toml --model tiny.gguf --question 'What is 37 + 12?'
  intern agent run configs/agent/calculator.toml --model tiny.gguf --out runs/agent
  intern agent run configs/agent/react.toml --model http://127.0.0.1:8000/v1 --out runs/react --limit 20
  intern agent run configs/agent/notes.toml --model https://api.openai.com/v1#gpt-4o-mini \\
      --set protocol=openai --question 'Which notes are there?'

A URL's key comes from the environment as OPENAI_API_KEY.")]
struct RunArgs {
    /// The agent: protocol, tools, problems.
    config: PathBuf,
    /// Checkpoint directory, GGUF file, or the URL of an OpenAI-compatible server.
    #[arg(long)]
    model: Option<String>,
    /// PEFT adapter merged into local weights.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Ask this and show the conversation.
    #[arg(long, conflicts_with_all = ["problems", "out", "limit"])]
    question: Option<String>,
    /// JSONL of {id, question, answer}.
    #[arg(long)]
    problems: Option<PathBuf>,
    /// Where the record and the results of problems go.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Only the first so many problems.
    #[arg(long)]
    limit: Option<usize>,
    /// Overrides a setting. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs one of the commands.
pub fn run(args: AgentArgs) -> Result<()> {
    match args.command {
        AgentCommand::Run(args) => run_agent(args),
    }
}

fn run_agent(args: RunArgs) -> Result<()> {
    intern_progress::set_silent(args.json);
    let origin = args.config.display().to_string();
    let mut table = config::read(&args.config)?;
    let path = |p: PathBuf| Value::String(p.to_string_lossy().into_owned());
    let flags = [
        ("model", args.model.map(Value::String)),
        ("adapter", args.adapter.map(path)),
        ("problems", args.problems.map(path)),
        ("limit", args.limit.map(|n| Value::Integer(n as i64))),
    ];
    table.extend(flags.into_iter().filter_map(|(key, value)| Some((key.to_string(), value?))));
    for set in &args.sets {
        config::apply(&mut table, set)?;
    }
    let mut settings = settings(&table, &origin)?;
    if let Some(question) = &args.question {
        let model = model::from_config(&mut table, &origin)?;
        let json = args.json;
        let answer = intern_agent::ask(&settings, model.as_ref(), question, &mut |event| {
            if let Some(line) = event.readable().filter(|_| !json) {
                println!("{line}");
            }
        })?;
        if json {
            println!("{}", serde_json::json!({ "question": question, "answer": answer }));
        }
        return Ok(());
    }
    let Some(out) = &args.out else {
        bail!("nowhere to write\nhint: --out DIR for a file of problems, or --question for one question");
    };
    settings.model_hash = model::fingerprint(&table)?;
    let model = model::from_config(&mut table, &origin)?;
    let summary = intern_agent::run(&settings, model.as_ref(), out)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        println!("{}", summary.table());
    }
    Ok(())
}

/// The agent's own settings, checked before the model is loaded.
fn settings(table: &Table, origin: &str) -> Result<AgentConfig> {
    let mut table = table.clone();
    for key in ["model", "adapter", "engine"] {
        table.remove(key);
    }
    config::resolve(table, &[], origin)
}
