//! `intern serve bench`: how fast a model is served.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use intern_engine::{EngineConfig, KvType};
use intern_serve::bench::load::{self, LoadConfig, Target};
use intern_serve::bench::steps::{self, StepsConfig};
use intern_serve::bench::{report, trace};
use toml::Table;

/// Arguments of `intern serve bench`.
#[derive(Args)]
#[command(after_help = "Examples:
  intern serve bench --model tiny.gguf
  intern serve bench --model tiny.gguf --prefill 512 --decode 32 --streams 1,4,8 --threads 2 --repeat 3 --json
  intern serve bench --url http://127.0.0.1:8000/v1 --requests 64 --concurrency 8 --input 128 --output 64
  intern serve bench --model tiny.gguf --threads 2 --tensor-parallel 2
  intern serve bench --model tiny.gguf --requests 100 --rate 5 --plot latency.svg
  intern serve bench --url http://127.0.0.1:8000/v1 --trace AzureLLMInferenceTrace_conv.csv --requests 200 --speed 4 --scale 0.1

Without --requests, --trace and --url, one prompt and some streams are timed by themselves.
With one of them, requests come as users send them, and what they wait for is reported.")]
pub struct BenchArgs {
    /// Checkpoint directory or GGUF file, run in this process.
    #[arg(long, required_unless_present = "url", conflicts_with = "url")]
    model: Option<PathBuf>,
    /// Base URL of an OpenAI-compatible server.
    #[arg(long)]
    url: Option<String>,
    /// The model's name on that server [default: the first one served].
    #[arg(long, requires = "url", value_name = "NAME")]
    served_name: Option<String>,
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
    /// Requests to send; of a trace, the first so many.
    #[arg(long)]
    requests: Option<usize>,
    /// Requests per second, at random times; without it, each is sent when a place is free.
    #[arg(long)]
    rate: Option<f64>,
    /// Requests under way at once [default: 8; no limit with --rate or --trace].
    #[arg(long)]
    concurrency: Option<usize>,
    /// Prompt tokens of each request.
    #[arg(long, default_value_t = 128)]
    input: usize,
    /// Tokens each request generates.
    #[arg(long, default_value_t = 64)]
    output: usize,
    /// A trace to replay: Azure's CSV or Mooncake's JSONL.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Replay the trace so many times faster.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Multiply the trace's lengths by this.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Highest token id of prompts sent to a URL.
    #[arg(long, default_value_t = 30_000)]
    vocab: usize,
    /// An SVG file for the distribution of what requests waited for.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Seeds the random prompts and arrival times.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads to compute with; 0 uses all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// How keys and values are kept: f32, f16 or int8 [default: f16; f32 for f32 weights].
    #[arg(long, value_name = "TYPE")]
    kv_type: Option<KvType>,
    /// Ranks that share the model, each on its part of the threads.
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    tensor_parallel: usize,
    /// Overrides a setting of the engine: key=value. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Print one JSON line per measurement.
    #[arg(long)]
    json: bool,
}

impl BenchArgs {
    fn engine(&self) -> Result<EngineConfig> {
        let engine: EngineConfig = crate::config::resolve(Table::new(), &self.sets, "--set")?;
        Ok(EngineConfig {
            threads: self.threads,
            kv_type: self.kv_type.or(engine.kv_type),
            tensor_parallel: self.tensor_parallel.max(engine.tensor_parallel),
            ..engine
        })
    }

    /// What another rank needs to compute along.
    pub fn share(self) -> Result<(PathBuf, Option<PathBuf>, EngineConfig)> {
        let engine = self.engine()?;
        let model = self.model.context("only a --model in this process is shared by ranks")?;
        Ok((crate::model::local(&model)?, None, engine))
    }
}

/// Runs the measurement.
pub fn run(args: BenchArgs) -> Result<()> {
    intern_progress::set_silent(args.json);
    let engine = args.engine()?;
    let args = BenchArgs { model: args.model.map(|m| crate::model::local(&m)).transpose()?, ..args };
    match &args.model {
        Some(model) if args.requests.is_none() && args.trace.is_none() => {
            run_steps(&args, model.clone(), engine)
        }
        _ => run_load(args, engine),
    }
}

fn run_steps(args: &BenchArgs, model: PathBuf, engine: EngineConfig) -> Result<()> {
    if args.plot.is_some() || args.rate.is_some() {
        bail!("--plot and --rate belong to a load of requests\nhint: add --requests N");
    }
    let config = StepsConfig {
        model,
        prefill: args.prefill,
        decode: args.decode,
        streams: args.streams.clone(),
        repeat: args.repeat,
        seed: args.seed,
        engine,
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

fn run_load(args: BenchArgs, engine: EngineConfig) -> Result<()> {
    if args.rate.is_some_and(|rate| rate.is_nan() || rate <= 0.0) {
        bail!("--rate must be above 0 requests per second");
    }
    let n = args.requests.unwrap_or(if args.trace.is_some() { usize::MAX } else { 64 });
    let (arrivals, scale) = match &args.trace {
        Some(file) => (trace::read(file, n, args.speed, args.scale)?, args.scale),
        None => (trace::uniform(n, args.input, args.output, args.rate, args.seed), 1.0),
    };
    if arrivals.is_empty() {
        bail!("no requests to send\nhint: --requests must be at least 1");
    }
    let is_open = args.rate.is_some() || args.trace.is_some();
    let target = match (args.url, args.model) {
        (Some(url), _) => {
            let api_key = std::env::var("OPENAI_API_KEY").ok().filter(|k| !k.is_empty());
            Target::Url { url, model: args.served_name, api_key }
        }
        (None, Some(model)) => Target::Local { model, engine },
        (None, None) => bail!("name a --model or a --url"),
    };
    let config = LoadConfig {
        target,
        arrivals,
        concurrency: args.concurrency.or((!is_open).then_some(8)),
        scale,
        seed: args.seed,
        vocab: args.vocab,
    };
    let report = load::run(&config)?;
    if let Some(file) = &args.plot {
        std::fs::write(file, report::plot(&report)).with_context(|| format!("writing {}", file.display()))?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    Ok(())
}
