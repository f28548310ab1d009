//! `intern train`: pretraining, its benchmark, and conversion between checkpoint layouts.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum};
use intern_format::atomic::AtomicDir;
use intern_model::convert;
use intern_progress::{clock, human};
use intern_train::bench::Bench;
use intern_train::config::{Kind, MomentType, Precision};
use intern_train::forecast::{Forecast, Memory, Traffic};
use intern_train::predict::{DEVICES, Prediction};
use intern_train::pretrain::{self, Options, Preview, Summary};
use intern_train::{TrainConfig, job};

/// Arguments of `intern train`.
#[derive(Args)]
pub struct TrainArgs {
    #[command(subcommand)]
    command: TrainCommand,
}

#[derive(Subcommand)]
enum TrainCommand {
    /// Trains a new model, or trains one further, on token shards.
    ///
    /// Writes OUT/checkpoint (a Hugging Face directory), OUT/trainer (to continue from), and
    /// OUT/metrics.jsonl with TensorBoard events. Killed at any moment, the same command goes on
    /// and ends with the same bytes.
    Run(RunArgs),
    /// Measures training steps on random tokens: time, memory, tokens per second.
    ///
    /// The model is that of `torch_train_bench.py`: a Llama of 32 million parameters, 4 sequences of
    /// 512 tokens, AdamW.
    Bench(BenchArgs),
    /// Rewrites a checkpoint in another layout, with the same weights.
    Convert(ConvertArgs),
    /// Draws the curves of one run, or of several over each other, as an SVG file.
    Plot(super::train_plot::PlotArgs),
}

#[derive(Args)]
#[command(after_help = "Examples:
  intern train run configs/train/tiny-internlm2.toml --out runs/tiny
  intern train run configs/train/tiny-internlm2.toml --out runs/fast --set steps=200 --set optimizer.lr=2e-3
  intern train run configs/train/tiny-internlm2.toml --out runs/tiny --resume
  intern train run configs/train/tiny-internlm2.toml --out runs/tiny --set parallel.pipeline=2
  mpirun -n 4 intern train run configs/train/tiny-internlm2.toml --out runs/tiny --set parallel.tensor=2
  intern train run configs/train/internlm2-7b.toml --out runs/7b --dry-run --device a100-80g
  tensorboard --logdir runs/tiny")]
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
    /// Only tell what the run would take: the grid of ranks, parameters, work, memory of a rank,
    /// traffic. Writes nothing.
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// With --dry-run: also tell how fast it would be on devices of this kind.
    #[arg(long, requires = "dry_run", value_parser = PossibleValuesParser::new(DEVICES.map(|d| d.name)))]
    device: Option<String>,
    /// Write what the steps spent their time on, as a trace for chrome://tracing or ui.perfetto.dev.
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    profile: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  intern train bench
  intern train bench --dtype bf16 --steps 6 --json
  intern train bench --recompute 1 --shape quickstart
  intern train bench --optimizer muon")]
struct BenchArgs {
    /// Type of the operands of matrix products and of kept activations.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: BenchType,
    /// Steps to make.
    #[arg(long, default_value_t = 6)]
    steps: u64,
    /// Share of the layers whose activations are computed twice instead of kept.
    #[arg(long, default_value_t = 0.0)]
    recompute: f64,
    /// The model and its batch.
    #[arg(long, value_enum, default_value = "peer")]
    shape: Shape,
    /// What makes the updates.
    #[arg(long, value_enum, default_value = "adamw")]
    optimizer: BenchOptimizer,
    /// One JSON line per step.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BenchType {
    F32,
    Bf16,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BenchOptimizer {
    Adamw,
    /// AdamW with moments in 8 bits.
    #[value(name = "adamw-8bit")]
    Adamw8bit,
    Muon,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// 32 million parameters, 4 x 512 tokens.
    Peer,
    /// 1 million parameters, 16 x 256 tokens.
    Quickstart,
}

#[derive(Args)]
#[command(after_help = "Examples:
  intern train convert runs/tiny/checkpoint --to llama --out runs/tiny-llama
  intern train convert runs/tiny-llama --to internlm2 --out runs/tiny-again
  intern train convert stories260K.bin --tokenizer tok512.bin --to llama --out runs/stories260K")]
struct ConvertArgs {
    /// A checkpoint directory, or a llama2.c `.bin` file.
    input: PathBuf,
    /// The layout to write.
    #[arg(long)]
    to: Layout,
    /// The new checkpoint directory.
    #[arg(long)]
    out: PathBuf,
    /// With a llama2.c file: its tokenizer.
    #[arg(long)]
    tokenizer: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Layout {
    /// Separate projections, as `LlamaForCausalLM` reads them.
    Llama,
    /// Fused `wqkv`, as InternLM2 stores them.
    Internlm2,
}

/// Runs `intern train`.
pub fn run(args: TrainArgs) -> Result<()> {
    match args.command {
        TrainCommand::Run(args) => train(&args),
        TrainCommand::Bench(args) => bench(&args),
        TrainCommand::Convert(args) => convert_layout(&args),
        TrainCommand::Plot(args) => super::train_plot::run(&args),
    }
}

fn train(args: &RunArgs) -> Result<()> {
    intern_progress::set_silent(args.json);
    let config: TrainConfig = crate::config::load(&args.config, &args.sets)?;
    if args.dry_run {
        let forecast = Forecast::new(&config)?;
        let device = DEVICES.into_iter().find(|d| Some(d.name) == args.device.as_deref());
        let first = pretrain::preview(&config)?;
        return dry_run(&forecast, device.map(|d| Prediction::new(&forecast, d)), first, args.json);
    }
    if args.resume {
        must_continue(&pretrain::job(&config, &args.out)?)?;
    }
    let options = Options { profile: args.profile.clone(), ..Options::default() };
    let summary = pretrain::run_with(&config, &args.out, &options)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        print_summary(&summary);
    }
    Ok(())
}

fn bench(args: &BenchArgs) -> Result<()> {
    if !(0.0..=1.0).contains(&args.recompute) {
        bail!("--recompute is {}, expected 0 to 1\nhint: it is a share of the layers", args.recompute);
    }
    let precision = match args.dtype {
        BenchType::F32 => Precision::F32,
        BenchType::Bf16 => Precision::Bf16,
    };
    let shape = match args.shape {
        Shape::Peer => Bench::peer(),
        Shape::Quickstart => Bench::quickstart(),
    };
    let mut optimizer = shape.optimizer.clone();
    match args.optimizer {
        BenchOptimizer::Adamw => {}
        BenchOptimizer::Adamw8bit => optimizer.moments = MomentType::Bits8,
        BenchOptimizer::Muon => optimizer.kind = Kind::Muon,
    }
    let bench = Bench { steps: args.steps, recompute: args.recompute, precision, optimizer, ..shape };
    bench.run(|line| match serde_json::to_string(line) {
        Ok(line) if args.json => println!("{line}"),
        _ => println!(
            "step {:<3} loss {:.4}  {:.2} s ({:.2} s of CPU)  {} tok/s  peak {} MB",
            line.step,
            line.loss,
            line.wall_s,
            line.cpu_s,
            human(line.tokens_per_second),
            line.peak_mb
        ),
    })
}

fn dry_run(
    forecast: &Forecast,
    prediction: Option<Prediction>,
    first: Option<Preview>,
    json: bool,
) -> Result<()> {
    if json {
        let mut value = serde_json::to_value(forecast)?;
        value["first_sequence"] = serde_json::to_value(first)?;
        if let Some(prediction) = prediction {
            value["prediction"] = serde_json::to_value(prediction)?;
        }
        println!("{}", serde_json::to_string_pretty(&value)?);
        return Ok(());
    }
    let f = forecast;
    println!("parameters     {}", human(f.parameters as f64));
    println!("steps          {} of {} sequences of {} tokens", f.steps, f.batch_size, f.seq_len);
    println!("tokens         {}", human(f.tokens as f64));
    println!("work           {:.2e} FLOP", f.flops_per_token * f.tokens as f64);
    let m = &f.mesh;
    let zero = match (f.zero && m.data * m.context > 1, f.shard_weights) {
        (true, true) => "; weights, gradients and moments are shared out (ZeRO-3)",
        (true, false) => "; moments are shared out (ZeRO-1)",
        (false, _) => "",
    };
    println!(
        "ranks          {} = pipeline {} × data {} × context {} × tensor {}{zero}",
        f.ranks, m.pipeline, m.data, m.context, m.tensor
    );
    println!("of a rank      {} sequences a step, {} at once", f.sequences_per_rank, f.lanes);
    if m.pipeline > 1 {
        println!("pipeline       {} stages a rank, idle {:.1} %", m.interleave, 100.0 * f.idle);
    }
    let Memory { weights, gradients, moments, activations, saving, program, total } = f.memory;
    println!("memory of a rank, at most");
    for (name, n) in [
        ("weights", weights),
        ("gradient sums", gradients),
        ("moments", moments),
        ("activations", activations),
        ("saving", saving),
        ("program", program),
        ("total", total),
    ] {
        println!("  {name:<15}{:>10}", bytes(n));
    }
    let Traffic { sums, weights, tensor, context, pipeline, total } = f.sent_per_step;
    println!("sent by a rank per step, at most");
    let parts = [
        ("gradient sums", sums),
        ("weights", weights),
        ("tensor", tensor),
        ("context", context),
        ("pipeline", pipeline),
    ];
    for (name, n) in parts.into_iter().filter(|(_, n)| *n > 0).chain([("total", total)]) {
        println!("  {name:<15}{:>10}", bytes(n));
    }
    if let Some(p) = prediction {
        print_prediction(&p, f.memory.total - f.memory.saving);
    }
    match first {
        None => println!("first sequence the tokenizer or the tokens are not there yet"),
        Some(first) => print_preview(&first),
    }
    Ok(())
}

/// The first sequence: documents apart, each with the tokens that have a target.
fn print_preview(first: &Preview) {
    const MOST: usize = 240;
    println!("first sequence {} tokens, {} targets count", first.tokens, first.targets);
    for d in first.documents.iter().take(4) {
        let mut text: String = d.text.chars().take(MOST).collect();
        if text.len() < d.text.len() {
            text.push('…');
        }
        println!(
            "  {} of {} tokens │ {}",
            d.targets,
            d.tokens,
            text.replace('\n', "\n                   │ ")
        );
    }
    if first.documents.len() > 4 {
        println!("  and {} documents more", first.documents.len() - 4);
    }
}

fn print_prediction(p: &Prediction, need: u64) {
    let d = &p.device;
    println!(
        "on {} ({:.0} TFLOP/s at {:.0} %, {} a node, {:.0} GB/s between them, {:.1} GB/s out of a node)",
        d.name,
        d.peak / 1e12,
        100.0 * d.efficiency,
        d.per_node,
        d.link / 1e9,
        d.network / 1e9
    );
    if !p.fits {
        println!(
            "  does not fit   {} of {}; raise parallel.pipeline or parallel.tensor",
            bytes(need),
            bytes(d.memory)
        );
    }
    println!(
        "  a step         {:.2} s: compute {:.2}, sums and weights {:.2}, activations {:.2}, update {:.2}",
        p.seconds, p.compute, p.exchange, p.activations, p.update
    );
    let internevo = p.internevo.map(|n| format!(" (InternEvo published {n:.0})")).unwrap_or_default();
    println!("  tokens/s       {:.0} a device{internevo}", p.tokens_per_second);
    println!("  utilization    {:.1} % of the peak", 100.0 * p.utilization);
    println!("  time           {:.1} hours", p.hours);
}

/// Bytes in a unit that fits.
fn bytes(n: u64) -> String {
    let n = n as f64;
    let gb = f64::from(1 << 30);
    if n >= 10.0 * gb { format!("{:.1} GB", n / gb) } else { format!("{:.1} MB", n / f64::from(1 << 20)) }
}

/// `--resume`: refuses to start from nothing.
pub fn must_continue(job: &job::Job) -> Result<()> {
    if job.finished::<serde_json::Value>()?.is_none() && !job.can_continue()? {
        bail!(
            "{} holds no saved state of this run\nhint: settings and data must be those it was begun with; \
             leave out --resume to start it",
            job.out().display()
        );
    }
    Ok(())
}

fn print_summary(s: &Summary) {
    println!("steps          {}", s.steps);
    println!("tokens         {}", human(s.tokens as f64));
    println!("parameters     {}", human(s.parameters as f64));
    print_losses(s.train_loss, s.first_valid_loss, s.valid_loss);
    print_rate(s.tokens, s.tokens_per_second);
    println!("checkpoint     {}", s.checkpoint.display());
}

/// Losses of a run, one a line.
pub fn print_losses(train: f64, first_valid: Option<f64>, valid: Option<f64>) {
    println!("train loss     {train:.4}");
    if let (Some(first), Some(last)) = (first_valid, valid) {
        println!("valid loss     {last:.4} (before: {first:.4})");
    }
}

/// Speed of a run, if this process made any steps.
pub fn print_rate(tokens: u64, tokens_per_second: f64) {
    if tokens_per_second > 0.0 {
        let time = std::time::Duration::from_secs_f64(tokens as f64 / tokens_per_second);
        println!("tokens/s       {} ({})", human(tokens_per_second), clock(time));
    }
}

fn convert_layout(args: &ConvertArgs) -> Result<()> {
    let input = args.input.as_path();
    let new = AtomicDir::create(&args.out)?;
    let out = new.path();
    if input.is_file() {
        if args.to != Layout::Llama {
            bail!("a llama2.c file becomes the llama layout\nhint: use --to llama, then convert again");
        }
        convert::llama2c_to_hf(input, args.tokenizer.as_deref(), out)?;
    } else if args.tokenizer.is_some() {
        bail!("--tokenizer goes with a llama2.c file\nhint: a checkpoint directory brings its own tokenizer");
    } else {
        match args.to {
            Layout::Llama => convert::internlm2_to_llama(input, out)?,
            Layout::Internlm2 => convert::llama_to_internlm2(input, out)?,
        }
    }
    new.commit()?;
    println!("checkpoint     {}", args.out.display());
    Ok(())
}
