//! `intern data`: raw pages → documents → tokenizer and token shards.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};
use intern_data::pipeline::{self, Share};
use intern_data::show::{self, ShowConfig};
use intern_data::synth::{self, SynthConfig};
use intern_data::tokenize;
use intern_data::tokenizer;
use intern_progress::human;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Arguments of `intern data`.
#[derive(Args)]
pub struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Subcommand)]
enum DataCommand {
    /// Cleans raw pages: extraction, language, length, repetition, quality, duplicates.
    ///
    /// Writes OUT/documents and OUT/dropped (JSON lines), OUT/report.json and OUT/report.html.
    /// Killed at any moment, the same command goes on and ends with the same bytes.
    #[command(after_help = "Examples:
  intern data run configs/rust-docs.toml --out runs/rust-docs
  intern data run configs/data/crawl.toml --out runs/crawl --set dedup.minhash.threshold=0.8
  intern data run configs/data/crawl.toml --out runs/crawl --shard 2/8   # one of eight jobs; then without
  intern data show runs/rust-docs --dropped")]
    Run(RunArgs),
    /// Fetches a data set from Hugging Face, ModelScope or OpenDataLab.
    ///
    /// Broken downloads go on where they stopped, files are checked against the hub's checksums, and
    /// what is there whole is not fetched again. HF_TOKEN, MODELSCOPE_API_TOKEN and OPENXLAB_TOKEN
    /// open what is private; HF_ENDPOINT, MODELSCOPE_ENDPOINT and OPENXLAB_ENDPOINT name mirrors.
    #[command(after_help = "Examples:
  intern data get hf:allenai/c4 --list
  intern data get hf:allenai/c4 --include 'en/c4-validation*' --out runs/c4
  intern data get modelscope:ORG/NAME@v1.0 --include '**/*.parquet' --exclude '**/test*' --out runs/set
  intern data get opendatalab:OpenDataLab/NAME/raw --out runs/raw")]
    Get(super::data_get::GetArgs),
    /// Trains a byte-level BPE tokenizer on documents.
    #[command(after_help = "Examples:
  intern data tokenizer configs/data/tokenizer.toml --out runs/tokenizer
  intern data tokenizer configs/data/tokenizer.toml --out runs/small --set vocab_size=4096")]
    Tokenizer(JobArgs),
    /// Turns documents into Megatron token shards, train and valid.
    #[command(after_help = "Examples:
  intern data tokenize configs/data/tokenize.toml --out runs/tokens
  intern data tokenize configs/data/tokenize.toml --out runs/tokens --set valid_fraction=0.01")]
    Tokenize(JobArgs),
    /// Makes lessons with known answers: web pages, conversations, held-out problems.
    #[command(after_help = "Examples:
  intern data synth configs/data/synth.toml --out runs/lessons
  intern data synth --out runs/lessons --set seed=2 --set pages=100")]
    Synth(SynthArgs),
    /// Prints documents.
    #[command(after_help = "Examples:
  intern data show runs/rust-docs -n 3
  intern data show runs/rust-docs --dropped --id rust-docs/std/index.html
  intern data show runs/tokens/train --tokenizer runs/tokenizer")]
    Show(ShowArgs),
    /// Prints the verdicts of the Gopher, C4 and FineWeb filters on a JSONL file, in datatrove's words.
    ///
    /// One JSON line per filter and document: id, filter, keep, reason, and the text where the
    /// filter changed it. Times go to standard error.
    #[command(after_help = "Examples:
  intern data verdicts documents.jsonl > verdicts.jsonl
  intern data verdicts documents.jsonl --words whitespace")]
    Verdicts(super::data_compare::VerdictsArgs),
    /// Prints the main text of web pages.
    #[command(after_help = "Examples:
  intern data extract page.html
  intern data extract pages/ --mode recall --json > texts.jsonl
  intern data extract 'crawl/**/*.html' --mode precision --markdown
  intern data extract pages/ --interleaved > pages/documents.jsonl   # with pictures, for data images
  intern data extract CC-MAIN.warc.gz --interleaved > documents.jsonl   # their addresses")]
    Extract(super::data_compare::ExtractArgs),
    /// Tells why a run kept or dropped a document: every value, every limit, the copy kept instead.
    #[command(after_help = "Examples:
  intern data why runs/crawl crawl/CC-MAIN.warc.gz#17
  intern data why runs/rust-docs rust-docs/std/index.html --json")]
    Why(super::data_tools::WhyArgs),
    /// Compares what two recipes made of the same pages.
    #[command(after_help = "Examples:
  intern data diff runs/crawl runs/crawl-strict
  intern data diff runs/a runs/b --json")]
    Diff(super::data_tools::DiffArgs),
    /// Finds personal data: e-mail, IP, phone, identity numbers, cards, accounts, keys.
    ///
    /// Prints one JSON line per document: id and found (kind, start, end in characters, text).
    #[command(after_help = "Examples:
  intern data pii documents.jsonl
  intern data pii documents.jsonl --mask > masked.jsonl")]
    Pii(super::data_tools::PiiArgs),
    /// Finds the documents of a corpus that are most like good ones, by BM25 and a classifier trained in place.
    #[command(after_help = "Examples:
  intern data seek runs/crawl --seed good.jsonl --top 1000 --out runs/found
  intern data show runs/found -n 10")]
    Seek(super::data_tools::SeekArgs),
    /// Compares what a corpus is about with what it should be, and says what to add.
    #[command(after_help = "Examples:
  intern data gap configs/data/gap.toml
  intern data gap configs/data/gap.toml --set min_score=0.3 --json")]
    Gap(super::data_tools::GapArgs),
    /// Mixes corpora by weights or epochs and shuffles them, larger than memory.
    #[command(after_help = "Examples:
  intern data mix configs/data/mix.toml --out runs/mix
  intern data mix configs/data/mix.toml --out runs/mix --set seed=2 --set characters=1000000000")]
    Mix(JobArgs),
    /// Checks pictures and their texts, takes out copies, and writes WebDataset shards.
    ///
    /// Reads picture files, WebDataset tar files and interleaved documents. Writes OUT/shards,
    /// OUT/dropped.jsonl (why each sample is left out), OUT/report.json and OUT/report.html with
    /// pictures of each rule. Killed at any moment, the same command goes on.
    #[command(after_help = "Examples:
  intern data images configs/data/images.toml --out runs/images
  intern data images configs/data/images.toml --out runs/images --set dedup.max_distance=8
  intern data images configs/data/images.toml --out runs/images --set clip.model=models/clip --set clip.min_similarity=0.28")]
    Images(JobArgs),
    /// Takes metadata, key frames and subtitles out of videos, with an installed ffmpeg.
    ///
    /// Writes OUT/shards, WebDataset tar files of interleaved documents (frames, and between them what
    /// is said by the subtitles beside the file), and OUT/dropped.jsonl. `intern data images` takes
    /// them from there: checks, near copies, CLIP.
    #[command(after_help = "Examples:
  intern data video configs/data/video.toml --out runs/video
  intern data video configs/data/video.toml --out runs/video --set frames=every --set seconds=5")]
    Video(JobArgs),
    /// Trains and applies text classifiers in fastText's format.
    Classifier(super::data_tools::ClassifierArgs),
    /// Writes MinHash signatures and the documents to remove, in datatrove's files.
    #[command(after_help = "Examples:
  intern data signatures documents.jsonl --out runs/signatures
  intern data signatures documents.jsonl --out runs/signatures --bands 14 --rows 9")]
    Signatures(super::data_tools::SignaturesArgs),
}

#[derive(Args)]
struct RunArgs {
    #[command(flatten)]
    job: JobArgs,
    /// Only clean every Nth shard of the input, beginning with the Ith, beside other such processes
    /// with the same OUT (a job array). When all have ended, the command without it completes the run.
    #[arg(long, value_name = "I/N", value_parser = Share::parse)]
    shard: Option<Share>,
}

#[derive(Args)]
pub struct JobArgs {
    /// The configuration, one TOML file for one complete run.
    config: PathBuf,
    /// Directory to write.
    #[arg(long)]
    pub out: PathBuf,
    /// Overrides a setting. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct SynthArgs {
    /// The configuration; all settings have defaults.
    config: Option<PathBuf>,
    /// Directory to write.
    #[arg(long)]
    out: PathBuf,
    /// Overrides a setting. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ShowArgs {
    /// A document file, a directory of them, the directory of a run, or a token shard.
    path: PathBuf,
    /// How many.
    #[arg(short, long, default_value_t = 5)]
    n: usize,
    /// Only this document; documents of a shard are numbered from 0.
    #[arg(long)]
    id: Option<String>,
    /// The dropped documents of a run, with their reasons.
    #[arg(long)]
    dropped: bool,
    /// Decodes a token shard with this tokenizer.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Print JSON lines.
    #[arg(long)]
    json: bool,
}

/// Runs `intern data`.
///
/// # Errors
/// Whatever the subcommand fails with.
pub fn run(args: DataArgs) -> Result<()> {
    match args.command {
        DataCommand::Run(RunArgs { job: args, shard: None }) => {
            let out = args.out.clone();
            job(args, pipeline::run, |s: &pipeline::Summary| run_table(s, &out))
        }
        DataCommand::Run(RunArgs { job: args, shard: Some(share) }) => {
            let run = |config: &pipeline::RecipeConfig, out: &Path| pipeline::run_share(config, out, share);
            job(args, run, |s: &pipeline::ShareSummary| {
                vec![
                    ("shards", format!("{} of the run's {}", s.shards, s.of)),
                    ("pages", format!("{}, {} of them cleaned now", s.pages, s.cleaned)),
                    ("next", "when all processes have ended, the same command without --shard".into()),
                ]
            })
        }
        DataCommand::Get(args) => super::data_get::run(&args),
        DataCommand::Tokenizer(args) => job(args, tokenizer::run, |s: &tokenizer::Summary| {
            vec![
                ("vocabulary", format!("{} tokens", s.vocab_size)),
                (
                    "learned from",
                    format!("{} documents, {} characters", s.documents, human(s.characters as f64)),
                ),
            ]
        }),
        DataCommand::Tokenize(args) => job(args, tokenize::run, |s: &tokenize::Summary| {
            let bytes = s.bytes as f64 / (s.tokens + s.valid_tokens).max(1) as f64;
            vec![
                ("train", format!("{} documents, {} tokens", s.documents, human(s.tokens as f64))),
                (
                    "valid",
                    format!("{} documents, {} tokens", s.valid_documents, human(s.valid_tokens as f64)),
                ),
                ("bytes per token", format!("{bytes:.2}")),
            ]
        }),
        DataCommand::Synth(args) => run_synth(&args),
        DataCommand::Show(args) => run_show(args),
        DataCommand::Verdicts(args) => super::data_compare::verdicts(&args),
        DataCommand::Why(args) => super::data_tools::why(&args),
        DataCommand::Diff(args) => super::data_tools::diff(&args),
        DataCommand::Pii(args) => super::data_tools::pii(&args),
        DataCommand::Seek(args) => super::data_tools::seek(args),
        DataCommand::Gap(args) => super::data_tools::gap(&args),
        DataCommand::Mix(args) => super::data_tools::mix(args),
        DataCommand::Images(args) => super::data_tools::images(args),
        DataCommand::Video(args) => super::data_tools::video(args),
        DataCommand::Classifier(args) => super::data_tools::classifier(args),
        DataCommand::Signatures(args) => super::data_tools::signatures(&args),
        DataCommand::Extract(args) => super::data_compare::extract(&args),
    }
}

/// Loads the configuration, runs a job and prints its summary.
///
/// # Errors
/// Whatever the job fails with.
pub fn job<C: DeserializeOwned, S: Serialize, N: AsRef<str>>(
    args: JobArgs,
    run: impl FnOnce(&C, &Path) -> Result<S>,
    table: impl FnOnce(&S) -> Vec<(N, String)>,
) -> Result<()> {
    intern_progress::set_silent(args.json);
    let config: C = crate::config::load(&args.config, &args.sets)?;
    let summary = run(&config, &args.out)?;
    print(&summary, args.json, table)
}

fn run_synth(args: &SynthArgs) -> Result<()> {
    intern_progress::set_silent(args.json);
    let config: SynthConfig = match &args.config {
        Some(path) => crate::config::load(path, &args.sets)?,
        None => crate::config::resolve(toml::Table::new(), &args.sets, "data synth")?,
    };
    let summary = synth::run(&config, &args.out)?;
    print(&summary, args.json, |s| {
        vec![
            ("pages", s.pages.to_string()),
            ("conversations", s.conversations.to_string()),
            ("held-out problems", s.heldout.to_string()),
        ]
    })
}

fn run_show(args: ShowArgs) -> Result<()> {
    let config = ShowConfig {
        path: args.path,
        n: args.n,
        id: args.id,
        dropped: args.dropped,
        tokenizer: args.tokenizer,
    };
    for document in show::find(&config)? {
        if args.json {
            println!("{}", serde_json::to_string(&document)?);
        } else {
            println!("{}", show::pretty(&document));
        }
    }
    Ok(())
}

fn run_table(s: &pipeline::Summary, out: &Path) -> Vec<(&'static str, String)> {
    let share = 100.0 * s.documents as f64 / s.pages.max(1) as f64;
    let mut rows = vec![
        ("pages read", s.pages.to_string()),
        (
            "documents kept",
            format!("{} ({share:.1} %), {} characters", s.documents, human(s.characters as f64)),
        ),
        ("dropped", s.dropped.to_string()),
    ];
    if s.broken > 0 {
        rows.push(("broken records", s.broken.to_string()));
    }
    if let Some(f1) = s.gold_f1 {
        rows.push(("extraction F1", format!("{f1:.4}")));
    }
    if s.up_to_date {
        rows.push(("", "already up to date".into()));
    } else {
        rows.push(("speed", format!("{} pages/s, {:.1} s", human(s.pages_per_second.round()), s.seconds)));
    }
    rows.push(("report", out.join("report.html").display().to_string()));
    rows
}

fn print<S: Serialize, N: AsRef<str>>(
    summary: &S,
    json: bool,
    table: impl FnOnce(&S) -> Vec<(N, String)>,
) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(summary)?);
        return Ok(());
    }
    let rows = table(summary);
    let width = rows.iter().map(|(name, _)| name.as_ref().len()).max().unwrap_or(0);
    for (name, value) in rows {
        println!("{:>width$}  {value}", name.as_ref());
    }
    Ok(())
}
