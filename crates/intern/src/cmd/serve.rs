//! `intern serve`: quantize a model, talk with it, serve it over HTTP, measure it, dump its logits.

mod bench;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use intern_engine::{EngineConfig, KvType};
use intern_lm::Sampling;
use intern_serve::api::ApiConfig;
use intern_serve::chat::ChatConfig;
use intern_serve::logits::LogitsConfig;
use intern_serve::quantize::{QuantType, QuantizeConfig};
use intern_serve::{api, chat, logits, quantize};
use toml::{Table, Value};

/// Arguments of `intern serve`.
#[derive(Args)]
#[command(after_help = "Examples:
  intern serve quantize runs/tiny/checkpoint --type q4_0 --out tiny.gguf
  intern serve chat tiny.gguf
  intern serve api tiny.gguf --port 8000
  intern serve bench --model tiny.gguf --threads 2
  intern serve logits tiny.gguf --tokens 1,2,3 --out logits.safetensors")]
pub struct ServeArgs {
    #[command(subcommand)]
    command: ServeCommand,
}

#[derive(Subcommand)]
enum ServeCommand {
    /// Write a checkpoint as a GGUF file with fewer bits per weight.
    Quantize(QuantizeArgs),
    /// Talk with a model in the terminal; from a pipe, one message per line.
    Chat(ChatArgs),
    /// Serve a model over HTTP as OpenAI's and Anthropic's APIs.
    Api(ApiArgs),
    /// Measure how fast a model reads prompts and generates.
    Bench(bench::BenchArgs),
    /// Write the logits of every position, for comparison with other implementations.
    Logits(LogitsArgs),
}

#[derive(Args)]
#[command(after_help = "Examples:
  intern serve quantize runs/tiny/checkpoint --type q8_0 --out tiny-q8.gguf
  intern serve quantize runs/tiny/checkpoint --type q4_k_m --out tiny-q4km.gguf --json
  intern serve quantize runs/tiny/checkpoint --type q4_0 --imatrix text.txt --scale --out tiny-q4.gguf
  intern serve quantize tiny-f16.gguf --type q5_k_m --text heldout.txt --out tiny-q5km.gguf
  intern serve quantize hf:internlm/internlm2-chat-1_8b --type q4_0 --out internlm2.gguf

An address at a hub is hf:ORG/NAME, with a file or a revision hf:ORG/NAME/FILE.gguf@REVISION, or the
same with modelscope:. HF_TOKEN and HF_ENDPOINT are honoured; files are kept in INTERN_CACHE.")]
struct QuantizeArgs {
    /// Checkpoint directory (AWQ and GPTQ ones too), a GGUF file of F32, F16 or BF16, or an address
    /// at a hub.
    model: PathBuf,
    /// Weight type: f16, q8_0, q6_k, q5_k_m, q4_k_m or q4_0.
    #[arg(long = "type", value_name = "TYPE")]
    quant: QuantType,
    /// The GGUF file to write.
    #[arg(long)]
    out: PathBuf,
    /// The model's name in the file [default: the directory's].
    #[arg(long)]
    name: Option<String>,
    /// Calibration text: rounding errors go where its activations are small.
    #[arg(long, value_name = "TEXT")]
    imatrix: Option<PathBuf>,
    /// Tokens of the calibration text that are used.
    #[arg(long, value_name = "N", default_value_t = 16_384, requires = "imatrix")]
    imatrix_tokens: usize,
    /// Also scale columns by their activations before rounding (AWQ).
    #[arg(long, requires = "imatrix")]
    scale: bool,
    /// Compare the perplexity of this text before and after.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  intern serve chat tiny.gguf --system 'You are a patient teacher.'
  intern serve chat http://127.0.0.1:8000/v1
  echo 'What is 2 + 3?' | intern serve chat runs/tiny/checkpoint --temperature 0")]
struct ChatArgs {
    /// Checkpoint directory, GGUF file, an address at a hub such as hf:ORG/NAME, or the URL of an
    /// OpenAI-compatible server.
    model: String,
    /// PEFT adapter merged into local weights.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// What the model is told first.
    #[arg(long)]
    system: Option<String>,
    /// 0 always takes the likeliest token.
    #[arg(long, default_value_t = 0.7)]
    temperature: f32,
    /// Choose among the likeliest tokens with this much probability together.
    #[arg(long, default_value_t = 0.95)]
    top_p: f32,
    /// Same seed and messages, same answers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Longest answer in tokens.
    #[arg(long, default_value_t = 512)]
    max_tokens: usize,
    /// Threads to compute with; 0 uses all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// How keys and values are kept: f32, f16 or int8 [default: f16; f32 for f32 weights].
    #[arg(long, value_name = "TYPE")]
    kv_type: Option<KvType>,
    /// Ranks that share the model, each on its part of the threads.
    #[arg(long, value_name = "RANKS", default_value_t = 1)]
    tensor_parallel: usize,
}

#[derive(Args)]
#[command(after_help = "Examples:
  intern serve api tiny.gguf --port 8000
  intern serve api tiny.gguf --adapter terse=runs/terse/adapter --adapter kind=runs/kind/adapter
  intern serve api --config configs/serve/api.toml --set engine.max_num_seqs=8
  mpirun -n 2 intern serve api tiny.gguf      (built with --features mpi)
  curl http://127.0.0.1:8000/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}'

API keys may also come from the environment: INTERN_API_KEY=ONE,ANOTHER.
Open / in a browser to chat; /openapi.json describes every route.")]
struct ApiArgs {
    /// Checkpoint directory, GGUF file, or an address at a hub such as hf:ORG/NAME (may be left out
    /// if the config names it).
    model: Option<PathBuf>,
    /// A TOML file with the server's settings; the flags override it.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Overrides a setting: key=value. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// PEFT adapter: DIR is merged into the weights, NAME=DIR is served beside them to requests
    /// whose model is NAME. May be repeated with names.
    #[arg(long = "adapter", value_name = "[NAME=]DIR")]
    adapters: Vec<String>,
    /// Address to listen on; 0.0.0.0 for every network interface [default: 127.0.0.1].
    #[arg(long)]
    host: Option<String>,
    /// Port to listen on; 0 takes a free one [default: 8000].
    #[arg(long)]
    port: Option<u16>,
    /// The model's name in requests [default: its file or directory name].
    #[arg(long, value_name = "NAME")]
    served_name: Option<String>,
    /// Key that clients must send. May be repeated; each is as good as the other.
    #[arg(long = "api-key", value_name = "KEY")]
    api_keys: Vec<String>,
    /// PEM file with a certificate chain: speak HTTPS (with --tls-key).
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's key.
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Threads to compute with; 0 uses all cores.
    #[arg(long)]
    threads: Option<usize>,
    /// How keys and values are kept: f32, f16 or int8 [default: f16; f32 for f32 weights].
    #[arg(long, value_name = "TYPE")]
    kv_type: Option<KvType>,
    /// Ranks that share the model, each on its part of the threads.
    #[arg(long, value_name = "RANKS")]
    tensor_parallel: Option<usize>,
}

#[derive(Args)]
#[command(after_help = "Examples:
  intern serve logits runs/tiny/checkpoint --tokens 1,2,3 --out a.safetensors
  intern serve logits tiny.gguf --tokens 1,2,3 --out b.safetensors --json")]
struct LogitsArgs {
    /// Checkpoint directory or GGUF file.
    model: PathBuf,
    /// PEFT adapter merged into the weights.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Token ids, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    tokens: Vec<u32>,
    /// The safetensors file to write.
    #[arg(long)]
    out: PathBuf,
    /// Threads to compute with; 0 uses all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// How keys and values are kept: f32, f16 or int8 [default: f16; f32 for f32 weights].
    #[arg(long, value_name = "TYPE")]
    kv_type: Option<KvType>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs one of the commands; on all ranks but the first, computes along.
pub fn run(args: ServeArgs) -> Result<()> {
    if intern_comm::launched_rank().is_some_and(|rank| rank > 0) {
        return follow(args.command);
    }
    match args.command {
        ServeCommand::Quantize(args) => run_quantize(args),
        ServeCommand::Chat(args) => run_chat(args),
        ServeCommand::Api(args) => api::serve(&api_config(args)?),
        ServeCommand::Bench(args) => bench::run(args),
        ServeCommand::Logits(args) => run_logits(args),
    }
}

/// A share of what rank 0 does.
fn follow(command: ServeCommand) -> Result<()> {
    let (model, adapter, engine) = match command {
        ServeCommand::Chat(args) => {
            let engine = chat_engine(&args);
            (crate::model::local(args.model.as_ref())?, args.adapter, engine)
        }
        ServeCommand::Api(args) => {
            let config = api_config(args)?;
            (config.model, config.adapter, config.engine)
        }
        ServeCommand::Bench(args) => args.share()?,
        ServeCommand::Quantize(_) | ServeCommand::Logits(_) => {
            anyhow::bail!(
                "this command does not compute on several ranks\nhint: start it without an MPI launcher"
            )
        }
    };
    let comm = intern_comm::world()?.context("the launcher's job has gone")?;
    intern_engine::follow(&model, adapter.as_deref(), &engine, comm)
}

fn run_quantize(args: QuantizeArgs) -> Result<()> {
    intern_train::interrupt::install();
    intern_progress::set_silent(args.json);
    let config = QuantizeConfig {
        name: args.name.or(crate::model::hub_name(&args.model)?),
        imatrix: args.imatrix,
        imatrix_tokens: args.imatrix_tokens,
        scale: args.scale,
        ..QuantizeConfig::new(crate::model::local(&args.model)?, args.quant)
    };
    let summary = quantize::run(&config, &args.out)?;
    let perplexity = match &args.text {
        Some(text) => Some(quantize::compare(&config.model, &args.out, text)?),
        None => None,
    };
    if args.json {
        let mut result = serde_json::to_value(&summary)?;
        if let Some(perplexity) = perplexity {
            result["perplexity"] = serde_json::to_value(perplexity)?;
        }
        println!("{}", serde_json::to_string_pretty(&result)?);
    } else {
        println!("{}", quantize::table(&summary, perplexity));
    }
    Ok(())
}

fn run_chat(args: ChatArgs) -> Result<()> {
    let model = crate::model::open(&args.model, args.adapter.as_deref(), &chat_engine(&args))?;
    let sampling = Sampling {
        temperature: args.temperature,
        top_p: args.top_p,
        seed: args.seed,
        max_tokens: args.max_tokens,
        ..Sampling::default()
    };
    let history = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".intern_history"));
    chat::run(model.as_ref(), &ChatConfig { system: args.system, sampling, history })
}

fn chat_engine(args: &ChatArgs) -> EngineConfig {
    EngineConfig {
        threads: args.threads,
        kv_type: args.kv_type,
        tensor_parallel: args.tensor_parallel,
        ..EngineConfig::default()
    }
}

/// The config file's settings, then the flags, then `--set`.
fn api_config(args: ApiArgs) -> Result<ApiConfig> {
    let origin = args.config.as_ref().map_or("the command line".to_string(), |p| p.display().to_string());
    let mut table = match &args.config {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| {
                format!(
                    "cannot read the config {}\nhint: a complete example is configs/serve/api.toml",
                    path.display()
                )
            })?
            .parse::<Table>()
            .with_context(|| format!("{} is not valid TOML", path.display()))?,
        None => Table::new(),
    };
    let path = |p: PathBuf| Value::String(p.to_string_lossy().into_owned());
    let mut keys = args.api_keys;
    if keys.is_empty() {
        let from_environment = std::env::var("INTERN_API_KEY").unwrap_or_default();
        keys.extend(from_environment.split(',').map(str::trim).filter(|k| !k.is_empty()).map(str::to_string));
    }
    let keys = Value::Array(keys.into_iter().map(Value::String).collect());
    let (mut adapters, mut merged) = (Table::new(), None);
    for adapter in args.adapters {
        // A name has no separators, so that a path may contain the sign.
        match adapter.split_once('=').filter(|(name, _)| !name.is_empty() && !name.contains('/')) {
            Some((name, dir)) => drop(adapters.insert(name.to_owned(), Value::String(dir.to_owned()))),
            None if merged.is_none() => merged = Some(Value::String(adapter)),
            None => anyhow::bail!(
                "two adapters cannot both be merged into the weights\n\
                 hint: give them names, to serve them beside each other: --adapter NAME=DIR"
            ),
        }
    }
    let flags = [
        ("model", args.model.map(path)),
        ("adapter", merged),
        ("host", args.host.map(Value::String)),
        ("port", args.port.map(|p| Value::Integer(p.into()))),
        ("served_name", args.served_name.map(Value::String)),
        ("api_keys", keys.as_array().is_some_and(|k| !k.is_empty()).then_some(keys)),
        ("tls_cert", args.tls_cert.map(path)),
        ("tls_key", args.tls_key.map(path)),
    ];
    for (key, value) in flags {
        if let Some(value) = value {
            table.insert(key.to_string(), value);
        }
    }
    let mut engine = Table::new();
    if let Some(threads) = args.threads {
        engine.insert("threads".into(), Value::Integer(threads as i64));
    }
    if let Some(ranks) = args.tensor_parallel {
        engine.insert("tensor_parallel".into(), Value::Integer(ranks as i64));
    }
    if let Some(kv_type) = args.kv_type {
        engine.insert("kv_type".into(), Value::try_from(kv_type)?);
    }
    if !adapters.is_empty() {
        engine.insert("adapters".into(), Value::Table(adapters));
    }
    if !engine.is_empty() {
        let whole = table.entry("engine").or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(whole) = whole {
            whole.extend(engine);
        }
    }
    if !table.contains_key("model") && !args.sets.iter().any(|s| s.starts_with("model=")) {
        anyhow::bail!("no model named\nhint: intern serve api MODEL, or `model = …` in the config");
    }
    let mut config: ApiConfig = crate::config::resolve(table, &args.sets, &origin)?;
    if let Some(name) = crate::model::hub_name(&config.model)? {
        config.model = crate::model::local(&config.model)?;
        config.served_name.get_or_insert(name);
    }
    Ok(config)
}

fn run_logits(args: LogitsArgs) -> Result<()> {
    intern_progress::set_silent(args.json);
    let engine = EngineConfig { threads: args.threads, kv_type: args.kv_type, ..EngineConfig::default() };
    let config = LogitsConfig {
        model: crate::model::local(&args.model)?,
        adapter: args.adapter,
        tokens: args.tokens,
        engine,
    };
    let summary = logits::run(&config, &args.out)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        println!("{summary}");
    }
    Ok(())
}
