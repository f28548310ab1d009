//! Adapters by name over HTTP.

mod support;

use std::path::PathBuf;

use intern_engine::{Engine, EngineConfig};
use intern_format::adapter::{self, AdapterConfig};
use intern_format::checkpoint::DType;
use intern_format::safetensors::NamedTensor;
use intern_kernels::rng::Rng;
use intern_model::weights::tensor_shapes;
use serde_json::json;
use support::{ask, get, post, random_model, serve_with, stream};

/// A random adapter for every matrix in the random model's layers.
fn random_adapter(name: &str, seed: u64) -> PathBuf {
    let model = random_model();
    let dir = model.with_file_name(name);
    let base = Engine::load(model, None, &EngineConfig::default()).unwrap();
    let mut rng = Rng::new(seed, 0);
    let mut tensors: Vec<NamedTensor> = Vec::new();
    for (tensor, shape) in tensor_shapes(base.config()) {
        let Some(module) = tensor.strip_suffix(".weight").filter(|m| m.contains(".w")) else { continue };
        for (which, shape) in [("lora_A", [4, shape[1]]), ("lora_B", [shape[0], 4])] {
            let values = (0..shape[0] * shape[1]).map(|_| (0.3 * rng.normal()) as f32);
            let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
            let name = format!("base_model.model.{module}.{which}.weight");
            tensors.push((name, DType::F32, shape.to_vec(), bytes.into()));
        }
    }
    adapter::save(&dir, &AdapterConfig::lora(4, 8.0, vec![], None), &tensors).unwrap();
    dir
}

#[test]
fn a_name_chooses_an_adapter() {
    let adapters = [("left", random_adapter("left", 1)), ("right", random_adapter("right", 2))];
    let server = serve_with(random_model(), |config| {
        config.engine.adapters = adapters.clone().map(|(name, dir)| (name.to_owned(), dir)).into();
    });
    let (_, list) = get(&server, "/v1/models");
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["random", "left", "right"]);
    assert_eq!(get(&server, "/v1/models/left").1["id"], "left");
    let (status, error) = post(&server, "/v1/completions", &json!({"model": "up", "prompt": " one"}));
    assert_eq!((status, &error["error"]["code"]), (404, &json!("model_not_found")));
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("use `random`, `left`, `right`"), "{message}");

    // Each as if it were merged, all at once.
    let body = |model: &str| {
        json!({"model": model, "prompt": " one two three", "max_tokens": 12, "ignore_eos": true, "temperature": 0,
               "return_token_ids": true})
    };
    let merged = |dir: Option<&PathBuf>| {
        let server = serve_with(random_model(), |config| config.adapter = dir.cloned());
        ask(&server, "/v1/completions", &body("random"))["choices"][0]["token_ids"].clone()
    };
    let want = [merged(None), merged(Some(&adapters[0].1)), merged(Some(&adapters[1].1))];
    assert!(want[0] != want[1] && want[1] != want[2]);
    std::thread::scope(|scope| {
        for (name, want) in ["random", "left", "right"].iter().zip(&want).cycle().take(9) {
            let server = &server;
            scope.spawn(move || {
                let answer = ask(server, "/v1/completions", &body(name));
                assert_eq!((&answer["model"], &answer["choices"][0]["token_ids"]), (&json!(name), want));
            });
        }
    });

    // Every kind of answer names who gave it.
    let user = json!([{"role": "user", "content": " one"}]);
    let chat = json!({"model": "left", "messages": user, "max_tokens": 3});
    assert_eq!(ask(&server, "/v1/chat/completions", &chat)["model"], "left");
    let events = stream(&server, "/v1/chat/completions", &chat);
    assert!(events.iter().all(|event| event["model"] == "left"));
    assert_eq!(ask(&server, "/v1/messages", &chat)["model"], "left");
    let response = json!({"model": "right", "input": " one", "max_output_tokens": 16});
    assert_eq!(ask(&server, "/v1/responses", &response)["model"], "right");
    let embed = |model: &str| ask(&server, "/v1/embeddings", &json!({"model": model, "input": " one"}));
    assert_eq!(embed("right")["model"], "right");
    assert_ne!(embed("right")["data"], embed("random")["data"]);
}
