//! What surrounds the answers: queue, deadlines, metrics, TLS, CORS, embeddings.

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{ask, get, post, random_model, serve, serve_with};

const COMPLETIONS: &str = "/v1/completions";

fn long() -> Value {
    json!({"prompt": " one", "max_tokens": 200, "n": 100, "ignore_eos": true})
}

#[test]
fn a_full_queue_refuses_and_health_does_not_wait() {
    let server = serve_with(random_model(), |config| {
        config.engine.max_num_seqs = 1;
        config.max_queue = 1;
    });
    std::thread::scope(|scope| {
        scope.spawn(|| post(&server, COMPLETIONS, &long()));
        let running = "\nvllm:num_requests_running{model_name=\"random\"} 1\n";
        while !support::get_text(&server, "/metrics").contains(running) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (status, error) = post(&server, COMPLETIONS, &json!({"prompt": " one"}));
        assert_eq!((status, &error["error"]["code"]), (429, &json!("queue_full")));
        assert_eq!(error["error"]["type"], "rate_limit_error");
        let text = support::get_text(&server, "/metrics");
        assert!(text.contains("\nintern_requests_refused_total{model_name=\"random\"} 1\n"), "{text}");
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let begin = Instant::now();
            assert_eq!(get(&server, "/health").0, 200);
            slowest = slowest.max(begin.elapsed());
        }
        assert!(slowest < Duration::from_millis(500), "{slowest:?}");
    });
    // Everyone has left.
    ask(&server, COMPLETIONS, &json!({"prompt": " one", "max_tokens": 1}));
}

#[test]
fn who_hangs_up_is_out_at_once() {
    let server = serve(random_model());
    let body = json!({"prompt": " one", "max_tokens": 200, "n": 100, "ignore_eos": true, "stream": true})
        .to_string();
    let request =
        format!("POST {COMPLETIONS} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let running = || {
        let text = support::get_text(&server, "/metrics");
        let line = text.lines().find(|l| l.starts_with("intern_requests_running")).unwrap();
        line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()
    };
    let mut socket = std::net::TcpStream::connect(server.addr()).unwrap();
    std::io::Write::write_all(&mut socket, request.as_bytes()).unwrap();
    while running() == 0.0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(socket);
    let begin = Instant::now();
    while running() > 0.0 {
        assert!(begin.elapsed() < Duration::from_secs(2), "still running");
        std::thread::sleep(Duration::from_millis(5));
    }
    println!("cancelled after {:?}", begin.elapsed());
}

#[test]
fn a_deadline_ends_a_request() {
    let server = serve_with(random_model(), |config| config.max_request_seconds = Some(0.05));
    let (status, error) = post(&server, COMPLETIONS, &long());
    assert_eq!((status, &error["error"]["code"]), (504, &json!("deadline_exceeded")));
    ask(&server, COMPLETIONS, &json!({"prompt": " one", "max_tokens": 1}));
}

#[test]
fn metrics_count_what_was_served() {
    let server = serve(random_model());
    ask(&server, COMPLETIONS, &json!({"prompt": " one two three", "max_tokens": 5, "ignore_eos": true}));
    let text = support::get_text(&server, "/metrics");
    for line in [
        "intern_generation_tokens_total{model_name=\"random\"} 5",
        "vllm:generation_tokens_total{model_name=\"random\"} 5",
        "vllm:request_success_total{model_name=\"random\",finished_reason=\"length\"} 1",
        "vllm:time_to_first_token_seconds_count{model_name=\"random\"} 1",
        "vllm:inter_token_latency_seconds_count{model_name=\"random\"} 4",
        "vllm:e2e_request_latency_seconds_bucket{model_name=\"random\",le=\"+Inf\"} 1",
        "vllm:num_requests_waiting{model_name=\"random\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    // Prometheus wants every series declared once.
    let mut kinds: Vec<&str> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
    let all = kinds.len();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds.len(), all);
}

#[test]
fn embeddings_have_length_one() {
    let server = serve(random_model());
    let body = json!({"model": "random", "input": [" one two", " three", " one two"]});
    let answer = ask(&server, "/v1/embeddings", &body);
    let vector = |i: usize| -> Vec<f64> {
        let list = answer["data"][i]["embedding"].as_array().unwrap();
        list.iter().map(|x| x.as_f64().unwrap()).collect()
    };
    assert_eq!((answer["object"].as_str(), answer["data"][1]["index"].as_u64()), (Some("list"), Some(1)));
    assert_eq!(vector(0).len(), 64);
    assert_eq!(vector(0), vector(2));
    assert_ne!(vector(0), vector(1));
    assert!((vector(1).iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-5);
    assert_eq!(answer["usage"]["prompt_tokens"], answer["usage"]["total_tokens"]);
    let one = ask(&server, "/v1/embeddings", &json!({"input": " three", "encoding_format": "base64"}));
    assert_eq!(one["data"][0]["embedding"].as_str().unwrap().len(), (64_usize * 4).div_ceil(3) * 4);
    for (body, param) in [
        (json!({}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": "x", "dimensions": 5}), "dimensions"),
        (json!({"input": "x", "encoding_format": "hex"}), "encoding_format"),
        (json!({"input": "x", "truncate": true}), "truncate"),
    ] {
        let (status, error) = post(&server, "/v1/embeddings", &body);
        assert_eq!((status, error["error"]["param"].as_str()), (400, Some(param)), "{error}");
    }
}

#[test]
fn several_keys_open_and_scripts_of_allowed_pages_may_ask() {
    let server = serve_with(random_model(), |config| {
        config.api_keys = vec!["one".into(), "two".into()];
        config.cors_origins = vec!["https://example.org".into()];
    });
    let body = br#"{"prompt": " one", "max_tokens": 1}"#;
    for (key, status) in [(None, 401), (Some("three"), 401), (Some("one"), 200), (Some("two"), 200)] {
        assert_eq!(support::post_raw(&server, COMPLETIONS, key, body).0, status, "{key:?}");
    }
    let allowed = |origin: &str| {
        let head = support::exchange(
            &server,
            &format!(
                "OPTIONS {COMPLETIONS} HTTP/1.1\r\nhost: x\r\norigin: {origin}\r\n\
                 access-control-request-method: POST\r\naccess-control-request-headers: authorization\r\n\
                 connection: close\r\n\r\n"
            ),
        );
        head.to_lowercase().contains(&format!("access-control-allow-origin: {origin}"))
    };
    assert!(allowed("https://example.org"));
    assert!(!allowed("https://evil.example"));
    let open = serve(random_model());
    let head = support::exchange(
        &open,
        "GET /health HTTP/1.1\r\nhost: x\r\norigin: https://example.org\r\nconnection: close\r\n\r\n",
    );
    assert!(!head.to_lowercase().contains("access-control"), "{head}");
}

#[test]
fn penalties_and_bias_are_honoured() {
    let server = serve(support::chain_model());
    let greedy = |extra: Value| {
        let mut body =
            json!({"prompt": " one", "max_tokens": 12, "temperature": 0, "return_token_ids": true});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let answer = ask(&server, COMPLETIONS, &body);
        (
            answer["choices"][0]["text"].as_str().unwrap().to_string(),
            answer["choices"][0]["token_ids"][1].clone(),
        )
    };
    let (text, three) = greedy(json!({}));
    assert_eq!(text, " two three four five six seven eight nine ten one two three");
    let (banned, _) = greedy(json!({"logit_bias": {three.to_string(): -100}}));
    assert!(!banned.contains("three"), "{banned}");
    let (stopped, _) = greedy(json!({"stop_token_ids": [three]}));
    assert_eq!(stopped, " two");
    let (penalized, _) =
        greedy(json!({"presence_penalty": 2, "frequency_penalty": 2, "repetition_penalty": 50}));
    assert_ne!(penalized, text);
}

#[test]
fn https_is_spoken() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, include_str!("tls/cert.pem")).unwrap();
    std::fs::write(&key, include_str!("tls/key.pem")).unwrap();
    let server = serve_with(random_model(), |config| {
        config.tls_cert = Some(cert.clone());
        config.tls_key = Some(key.clone());
    });
    assert!(server.url().starts_with("https://"));
    let tls = ureq::tls::TlsConfig::builder().disable_verification(true).build();
    let agent: ureq::Agent = ureq::Agent::config_builder().tls_config(tls).proxy(None).build().into();
    let answer = agent.get(format!("{}/health", server.url())).call().unwrap().body_mut().read_to_string();
    assert_eq!(answer.unwrap(), "{\"status\":\"ok\"}");
    server.stop().unwrap();
    let mut config = intern_serve::api::ApiConfig::new(random_model());
    (config.port, config.tls_cert, config.tls_key) = (0, Some(key.clone()), Some(key));
    let error = intern_serve::api::start(&config).err().unwrap().to_string();
    assert!(error.contains("key.pem") && error.contains("hint: tls_cert"), "{error}");
}
