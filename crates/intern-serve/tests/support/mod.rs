//! Tiny models on disk, a server on a free port, and a client that looks at bytes.

#![allow(dead_code)]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use intern_model::Transformer;
use intern_model::config::{Architecture, ModelConfig};
use intern_serve::api::{ApiConfig, Running, start};
use intern_tokenizer::Tokenizer;
use intern_tokenizer::internlm2::CHAT_TEMPLATE;
use intern_tokenizer::train::{BpeConfig, train_bpe};
use serde_json::Value;

/// What the chain model says after the text so far: each of these leads to the next.
const COUNTING: [&str; 10] =
    [" one", " two", " three", " four", " five", " six", " seven", " eight", " nine", " ten"];

/// A call without repeated tokens, so that a chain can write it.
pub const CALL: &str = r#"{"name":"add","parameters":{"x":1}}"#;

/// Longest prompt plus completion of the models here.
pub const CONTEXT: usize = 256;

fn tokenizer() -> Tokenizer {
    let counting = COUNTING.concat();
    let mut texts =
        (0..20).flat_map(|_| [counting.clone(), CALL.to_string(), "Calculating 数字".to_string()]);
    let config = BpeConfig::new(420);
    train_bpe(&config, &mut texts).unwrap().with_chat_template(CHAT_TEMPLATE.to_string())
}

fn config(tokenizer: &Tokenizer) -> ModelConfig {
    let vocab = tokenizer.vocab_size();
    let mut config = ModelConfig::small(Architecture::InternLm2, vocab, 64, 2, 4, 2);
    config.max_position_embeddings = CONTEXT;
    config.bos_token_id = tokenizer.bos_id();
    config.eos_token_ids = tokenizer.end_ids();
    config
}

fn save(name: &str, model: &Transformer, tokenizer: &Tokenizer) -> PathBuf {
    let dir = root().join(name);
    model.save(&dir, DType::F32).unwrap();
    tokenizer.save(&dir).unwrap();
    dir
}

/// Removed by nobody: the tests of one process share it, and it is small.
fn root() -> &'static Path {
    static ROOT: OnceLock<tempfile::TempDir> = OnceLock::new();
    ROOT.get_or_init(|| tempfile::Builder::new().prefix("intern-serve").tempdir().unwrap()).path()
}

/// A model with random weights.
pub fn random_model() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let tokenizer = tokenizer();
        save("random", &Transformer::init(&config(&tokenizer), 1, &Device::Cpu).unwrap(), &tokenizer)
    })
}

/// A model in which every token has one successor: it counts from one to ten and starts
/// over; asked as an assistant, it says "Calculating", calls `add`, and ends.
pub fn chain_model() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let tokenizer = tokenizer();
        let config = config(&tokenizer);
        let model = Transformer::init(&config, 1, &Device::Cpu).unwrap();
        let one = |text: &str| {
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(ids.len(), 1, "{text:?} must be one token");
            ids[0]
        };
        let mut next: Vec<(u32, u32)> = Vec::new();
        for i in 0..COUNTING.len() {
            next.push((one(COUNTING[i]), one(COUNTING[(i + 1) % COUNTING.len()])));
        }
        let mut answer = vec![one("\n")];
        answer.extend(tokenizer.encode("Calculating", false).unwrap());
        answer.extend(tokenizer.encode("<|action_start|><|plugin|>", false).unwrap());
        answer.extend(tokenizer.encode(CALL, false).unwrap());
        answer.extend(tokenizer.encode("<|action_end|><|im_end|>", false).unwrap());
        next.extend(answer.windows(2).map(|w| (w[0], w[1])));
        let mut froms: Vec<u32> = next.iter().map(|n| n.0).collect();
        froms.sort_unstable();
        froms.dedup();
        assert_eq!(froms.len(), next.len(), "a token has two successors");

        let (v, d) = (config.vocab_size, config.hidden_size);
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let embedding: Vec<f32> = (0..v * d).map(|_| random()).collect();
        let mut head = vec![0.0; v * d];
        for (from, to) in next {
            let (from, to) = (from as usize * d, to as usize * d);
            let row: Vec<f32> = embedding[from..from + d].to_vec();
            head[to..to + d].copy_from_slice(&row);
        }
        for (name, var) in model.named_vars() {
            let zeros = || Tensor::zeros(var.shape(), DType::F32, &Device::Cpu).unwrap();
            let matrix = |values: &[f32]| Tensor::from_vec(values.to_vec(), (v, d), &Device::Cpu).unwrap();
            match name.as_str() {
                "model.tok_embeddings.weight" => var.set(&matrix(&embedding)).unwrap(),
                "output.weight" => var.set(&matrix(&head)).unwrap(),
                // Layers add nothing: the last token alone decides.
                n if n.ends_with("wo.weight") || n.ends_with("w2.weight") => var.set(&zeros()).unwrap(),
                _ => {}
            }
        }
        save("chain", &model, &tokenizer)
    })
}

/// Serves `model` on a free port.
pub fn serve(model: &Path) -> Running {
    serve_with(model, |_| {})
}

pub fn serve_with(model: &Path, change: impl FnOnce(&mut ApiConfig)) -> Running {
    let mut config = ApiConfig { port: 0, ..ApiConfig::new(model) };
    config.engine.threads = 1;
    change(&mut config);
    start(&config).unwrap()
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(Duration::from_secs(60)))
        .build()
        .into()
}

/// `GET`; status and JSON.
pub fn get(server: &Running, path: &str) -> (u16, Value) {
    let mut response = agent().get(format!("{}{path}", server.url())).call().unwrap();
    (response.status().as_u16(), response.body_mut().read_json().unwrap_or_default())
}

/// `DELETE`; status and JSON.
pub fn delete(server: &Running, path: &str) -> (u16, Value) {
    let mut response = agent().delete(format!("{}{path}", server.url())).call().unwrap();
    (response.status().as_u16(), response.body_mut().read_json().unwrap_or_default())
}

/// `POST` with `stream` where events have names; the events, whose types must be their names.
#[track_caller]
pub fn stream_named(server: &Running, path: &str, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = true.into();
    let mut response = agent()
        .post(format!("{}{path}", server.url()))
        .send(&serde_json::to_vec(&body).unwrap()[..])
        .unwrap();
    let text = response.body_mut().read_to_string().unwrap();
    assert_eq!(response.status().as_u16(), 200, "{text}");
    let event = |block: &str| {
        let name = block.lines().find_map(|l| l.strip_prefix("event: ")).unwrap();
        let data = block.lines().find_map(|l| l.strip_prefix("data: ")).unwrap();
        let event: Value = serde_json::from_str(data).unwrap();
        assert_eq!(event["type"], name);
        event
    };
    text.split("\n\n").filter(|b| b.contains("data:")).map(event).collect()
}

/// `GET`; the text.
#[track_caller]
pub fn get_text(server: &Running, path: &str) -> String {
    let mut response = agent().get(format!("{}{path}", server.url())).call().unwrap();
    assert_eq!(response.status().as_u16(), 200);
    response.body_mut().read_to_string().unwrap()
}

/// Sends bytes as they are and reads to the end.
pub fn exchange(server: &Running, request: &str) -> String {
    let mut socket = std::net::TcpStream::connect(server.addr()).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

/// `POST` of raw bytes; status and JSON.
pub fn post_raw(server: &Running, path: &str, key: Option<&str>, body: &[u8]) -> (u16, Value) {
    let mut request = agent().post(format!("{}{path}", server.url()));
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let mut response = request.send(body).unwrap();
    (response.status().as_u16(), response.body_mut().read_json().unwrap_or_default())
}

/// `POST` of JSON; status and JSON.
pub fn post(server: &Running, path: &str, body: &Value) -> (u16, Value) {
    post_raw(server, path, None, &serde_json::to_vec(body).unwrap())
}

/// `POST` that must succeed.
#[track_caller]
pub fn ask(server: &Running, path: &str, body: &Value) -> Value {
    let (status, answer) = post(server, path, body);
    assert_eq!(status, 200, "{answer}");
    answer
}

/// `POST` with `stream`; the events, after checking the frame around them.
#[track_caller]
pub fn stream(server: &Running, path: &str, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = true.into();
    let response = agent()
        .post(format!("{}{path}", server.url()))
        .send(&serde_json::to_vec(&body).unwrap()[..])
        .unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut events: Vec<String> = Vec::new();
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line.unwrap();
        match line.strip_prefix("data: ") {
            Some(data) => events.push(data.to_string()),
            None => assert!(line.is_empty() || line.starts_with(':'), "{line}"),
        }
    }
    assert_eq!(events.pop().as_deref(), Some("[DONE]"));
    events.iter().map(|e| serde_json::from_str(e).unwrap()).collect()
}
