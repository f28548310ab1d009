//! The `intern` command: arguments, logging and dispatch. All work is in the crates below.

mod cmd;
mod config;
mod lifecycle;
mod model;
mod report;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use intern_train::interrupt;

/// The whole life of a language model in one tool.
///
/// Stages meet on disk: each subcommand reads directories in documented formats and
/// writes one. `intern run` chains them and skips what is already up to date.
#[derive(Parser)]
#[command(name = "intern", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// More log lines (-v info, -vv debug); RUST_LOG is honoured too.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

const EXAMPLES: &str = "Examples:
  intern run configs/quickstart.toml
  intern data run configs/rust-docs.toml --out runs/rust-docs
  intern train run configs/train/tiny-internlm2.toml --out runs/tiny
  intern serve quantize runs/tiny/checkpoint --type q4_0 --out tiny.gguf
  intern serve chat tiny.gguf";

#[derive(Subcommand)]
enum Command {
    /// Raw pages to a cleaned corpus, a tokenizer and token shards.
    Data(cmd::data::DataArgs),
    /// Pretraining, and conversion between checkpoint layouts.
    Train(cmd::train::TrainArgs),
    /// Fine-tuning on conversations: full or LoRA.
    Tune(cmd::tune::TuneArgs),
    /// Quantize, chat, and serve over HTTP.
    Serve(cmd::serve::ServeArgs),
    /// Score a model on tasks.
    Eval(cmd::eval::EvalArgs),
    /// Let a model use tools.
    Agent(cmd::agent::AgentArgs),
    /// A whole recipe of steps, skipping those already up to date.
    Run(cmd::run::RunArgs),
    /// Every command with its flags, as Markdown.
    #[command(hide = true)]
    HelpMarkdown,
    /// Every key of every config file, as Markdown.
    #[command(hide = true)]
    HelpConfig,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging(cli.verbose);
    // The server and the chat handle signals themselves.
    if !matches!(cli.command, Command::Serve(_)) {
        interrupt::install();
    }
    let result = match cli.command {
        Command::Data(args) => cmd::data::run(args),
        Command::Train(args) => cmd::train::run(args),
        Command::Tune(args) => cmd::tune::run(args),
        Command::Serve(args) => cmd::serve::run(args),
        Command::Eval(args) => cmd::eval::run(args),
        Command::Agent(args) => cmd::agent::run(args),
        Command::Run(args) => cmd::run::run(args),
        Command::HelpMarkdown => cmd::help::print(),
        Command::HelpConfig => cmd::config_docs::print(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{}", explain(&error));
            ExitCode::from(interrupt::exit_code().unwrap_or(1))
        }
    }
}

fn start_logging(verbose: u8) {
    let level = ["warn", "info", "debug"][usize::from(verbose.min(2))];
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Formats an error for a person: what failed, its causes, and hints last.
fn explain(error: &anyhow::Error) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut hints: Vec<String> = Vec::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let (hint, message): (Vec<&str>, Vec<&str>) = text.lines().partition(|l| l.starts_with("hint:"));
        let message = message.join("\n");
        // Some errors repeat their source in their own text; say it once.
        if !lines.iter().any(|l| l.contains(&message)) {
            lines.push(message);
        }
        for hint in hint {
            if !hints.iter().any(|h| h == hint) {
                hints.push(hint.to_string());
            }
        }
    }
    let mut out = format!("error: {}\n", lines.join("\n  because: "));
    for hint in hints {
        out.push_str(&hint);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn hints_come_last_and_once() {
        let error = anyhow::anyhow!("no such file\nhint: check the path").context("reading a.toml");
        assert_eq!(explain(&error), "error: reading a.toml\n  because: no such file\nhint: check the path\n");
    }
}
