//! The server over real sockets, with tiny models.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use intern_format::conversation::Message;
use intern_lm::remote::Remote;
use intern_lm::{ChatRequest, FinishReason, GenerateRequest, LanguageModel, Prompt, Sampling, ScoreRequest};
use intern_serve::api::{ApiConfig, start};
use serde_json::{Value, json};
use support::{CONTEXT, ask, chain_model, get, post, post_raw, random_model, serve, serve_with, stream};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

fn add_tool() -> Value {
    json!([{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}])
}

#[test]
fn the_small_routes_answer() {
    let server = serve(chain_model());
    assert_eq!(get(&server, "/health"), (200, json!({"status": "ok"})));
    let (_, models) = get(&server, "/v1/models");
    assert_eq!(models["object"], "list");
    assert_eq!(models["data"][0]["id"], "chain");
    assert_eq!(models["data"][0]["max_model_len"], CONTEXT);
    assert_eq!(get(&server, "/v1/models/chain").1["object"], "model");
    assert_eq!(get(&server, "/v1/models/other").0, 404);
    assert_eq!(get(&server, "/v1/nothing").1["error"]["code"], "unknown_url");
    assert_eq!(get(&server, CHAT).1["error"]["code"], "method_not_allowed");
    server.stop().unwrap();
}

#[test]
fn text_becomes_tokens_and_text_again() {
    let server = serve(chain_model());
    let tokens = ask(&server, "/tokenize", &json!({"prompt": " one two 数字", "add_special_tokens": false}));
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    let text = ask(&server, "/detokenize", &json!({"tokens": tokens["tokens"]}));
    assert_eq!(text["prompt"], " one two 数字");
    let chat = ask(&server, "/tokenize", &json!({"messages": user("hi")}));
    let text = ask(&server, "/detokenize", &json!({"tokens": chat["tokens"]}));
    assert_eq!(text["prompt"], "<s><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(post(&server, "/tokenize", &json!({})).0, 400);
    assert_eq!(post(&server, "/detokenize", &json!({"tokens": [99_999]})).0, 400);
}

#[test]
fn completions_have_every_shape() {
    let server = serve(chain_model());
    let greedy = |mut body: Value| {
        body["temperature"] = 0.into();
        ask(&server, COMPLETIONS, &body)
    };
    let answer = greedy(json!({"model": "chain", "prompt": " one two", "max_tokens": 3, "n": 2}));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["choices"][0]["text"], " three four five");
    assert_eq!(answer["choices"][1]["text"], " three four five");
    assert_eq!(answer["choices"][1]["index"], 1);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["choices"][0]["logprobs"], Value::Null);
    let prompt_tokens = answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 6);
    assert_eq!(answer["usage"]["total_tokens"], prompt_tokens + 6);

    // Stop strings are left out; default length is 16.
    let answer = greedy(json!({"prompt": " six", "stop": [" nine", "x"]}));
    assert_eq!(answer["choices"][0]["text"], " seven eight");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let answer = greedy(json!({"prompt": " six"}));
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    // The context's end is a length limit like any other.
    let answer = greedy(json!({"prompt": " six", "max_tokens": 10 * CONTEXT}));
    assert_eq!(answer["usage"]["total_tokens"], CONTEXT);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");

    // Token ids, and a batch of them.
    let ids = greedy(json!({"prompt": " four", "max_tokens": 1, "return_token_ids": true}));
    let prompt = ids["choices"][0]["prompt_token_ids"].clone();
    assert_eq!(ids["choices"][0]["token_ids"].as_array().unwrap().len(), 1);
    let again = greedy(json!({"prompt": prompt, "max_tokens": 1}));
    assert_eq!(again["choices"][0]["text"], " five");
    let batch = greedy(json!({"prompt": [prompt, prompt], "max_tokens": 2}));
    assert_eq!(batch["choices"][1]["text"], " five six");
    let batch = greedy(json!({"prompt": [" four", " one"], "max_tokens": 2, "n": 2}));
    let texts: Vec<&str> =
        batch["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts, [" five six", " five six", " two three", " two three"]);

    // Echo with log-probabilities, with and without new tokens.
    for max_tokens in [0, 2] {
        let answer =
            greedy(json!({"prompt": " one two", "echo": true, "logprobs": 1, "max_tokens": max_tokens}));
        let choice = &answer["choices"][0];
        assert_eq!(choice["text"], if max_tokens == 0 { " one two" } else { " one two three four" });
        let logprobs = &choice["logprobs"];
        let tokens: Vec<&str> =
            logprobs["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        let skip = tokens.iter().position(|t| *t == " one").unwrap();
        let all = [" one", " two", " three", " four"];
        assert_eq!(tokens[skip..], all[..2 + max_tokens]);
        assert_eq!(logprobs["token_logprobs"][0], Value::Null);
        assert_eq!(logprobs["top_logprobs"][0], Value::Null);
        let offsets: Vec<u64> =
            logprobs["text_offset"].as_array().unwrap().iter().map(|o| o.as_u64().unwrap()).collect();
        assert_eq!(offsets[skip..], [0, 4, 8, 14][..2 + max_tokens]);
        for i in skip + 1..tokens.len() {
            let logprob = logprobs["token_logprobs"][i].as_f64().unwrap();
            assert!((-5.0..=0.0).contains(&logprob), "{logprob}");
            assert_eq!(logprobs["top_logprobs"][i][tokens[i]], logprob);
        }
    }
    let answer = greedy(json!({"prompt": "数字", "echo": true, "logprobs": 0, "max_tokens": 0}));
    assert_eq!(answer["choices"][0]["text"], "数字");
}

#[test]
fn streams_say_what_whole_answers_say() {
    let server = serve(random_model());
    for temperature in [0.0, 1.0] {
        let body = json!({"prompt": [" one two", "Calculating"], "max_tokens": 24, "temperature": temperature, "seed": 5,
            "logprobs": 2, "echo": true, "return_token_ids": true, "n": 2, "ignore_eos": true});
        let whole = ask(&server, COMPLETIONS, &body);
        let mut with_usage = body.clone();
        with_usage["stream_options"] = json!({"include_usage": true});
        let mut events = stream(&server, COMPLETIONS, &with_usage);
        let last = events.pop().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"], whole["usage"]);
        for (i, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
            let parts: Vec<&Value> =
                events.iter().map(|e| &e["choices"][0]).filter(|c| c["index"] == i).collect();
            let text: String = parts.iter().map(|p| p["text"].as_str().unwrap()).collect();
            assert_eq!(text, choice["text"].as_str().unwrap());
            let joined = |pointer: &str| -> Vec<&Value> {
                parts.iter().filter_map(|p| p.pointer(pointer)?.as_array()).flatten().collect()
            };
            for pointer in
                ["/token_ids", "/logprobs/tokens", "/logprobs/text_offset", "/logprobs/top_logprobs"]
            {
                let expected: Vec<&Value> =
                    choice.pointer(pointer).unwrap().as_array().unwrap().iter().collect();
                assert_eq!(joined(pointer), expected, "{pointer}");
            }
            assert!(parts.len() > 10, "only {} parts", parts.len());
            assert_eq!(parts.last().unwrap()["finish_reason"], choice["finish_reason"]);
        }
        if temperature > 0.0 {
            assert_ne!(whole["choices"][0]["text"], whole["choices"][1]["text"]);
        }

        let body = json!({"messages": user("one"), "max_tokens": 24, "temperature": temperature, "seed": 5,
            "logprobs": true, "top_logprobs": 1, "ignore_eos": true});
        let whole = ask(&server, CHAT, &body);
        let events = stream(&server, CHAT, &body);
        assert_eq!(whole["object"], "chat.completion");
        assert!(events.iter().all(|e| e["object"] == "chat.completion.chunk" && e["id"] == events[0]["id"]));
        assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        let text: String =
            events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap());
        let logprobs: Vec<&Value> = events
            .iter()
            .filter_map(|e| e.pointer("/choices/0/logprobs/content")?.as_array())
            .flatten()
            .collect();
        let expected: Vec<&Value> =
            whole["choices"][0]["logprobs"]["content"].as_array().unwrap().iter().collect();
        assert_eq!(logprobs, expected);
        assert_eq!(
            events.last().unwrap()["choices"][0]["finish_reason"],
            whole["choices"][0]["finish_reason"]
        );
    }
    // Without a seed, sampled answers differ.
    let body = json!({"prompt": " one", "max_tokens": 16});
    assert_ne!(
        ask(&server, COMPLETIONS, &body)["choices"][0]["text"],
        ask(&server, COMPLETIONS, &body)["choices"][0]["text"]
    );
}

#[test]
fn tools_are_called() {
    let server = serve(chain_model());
    let mut body = json!({"messages": user("1 + 1"), "tools": add_tool(), "temperature": 0});
    let whole = ask(&server, CHAT, &body);
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["content"], "Calculating");
    let function = json!({"name": "add", "arguments": "{\"x\":1}"});
    assert_eq!(
        choice["message"]["tool_calls"],
        json!([{"id": "call_0", "type": "function", "function": function}])
    );
    assert_eq!(choice["finish_reason"], "tool_calls");

    let events = stream(&server, CHAT, &body);
    let deltas: Vec<&Value> = events.iter().map(|e| &e["choices"][0]["delta"]).collect();
    let content: String = deltas.iter().filter_map(|d| d["content"].as_str()).collect();
    assert_eq!(content, "Calculating");
    let calls: Vec<&Value> = deltas.iter().filter_map(|d| d["tool_calls"].get(0)).collect();
    let name = json!({"name": "add", "arguments": ""});
    assert_eq!(*calls[0], json!({"index": 0, "id": "call_0", "type": "function", "function": name}));
    let arguments: String = calls.iter().filter_map(|c| c["function"]["arguments"].as_str()).collect();
    assert_eq!(arguments, "{\"x\":1}");
    assert!(calls.len() > 2, "arguments come in pieces: {calls:?}");
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");

    // The next turn's ids go on; the call in the history is rendered by the template.
    body["messages"] = json!([{"role": "user", "content": "1 + 1"}, choice["message"],
        {"role": "tool", "tool_call_id": "call_0", "content": "2"}]);
    let next = ask(&server, CHAT, &body);
    assert_eq!(next["choices"][0]["message"]["tool_calls"][0]["id"], "call_1");
    assert!(next["usage"]["prompt_tokens"].as_u64() > whole["usage"]["prompt_tokens"].as_u64());

    // Hidden tools: no parsing, and special tokens are skipped as usual.
    body["tool_choice"] = "none".into();
    let none = ask(&server, CHAT, &body);
    assert_eq!(none["choices"][0]["message"]["tool_calls"], Value::Null);
    assert_eq!(none["choices"][0]["message"]["content"], format!("Calculating{}", support::CALL));
    assert_eq!(none["choices"][0]["finish_reason"], "stop");
}

#[test]
fn errors_are_openai_errors() {
    let server = serve(chain_model());
    let check = |path: &str, body: Value, status: u16, param: Value, code: Value, words: &str| {
        let (got, answer) = post(&server, path, &body);
        let error = &answer["error"];
        assert_eq!((got, &error["param"], &error["code"]), (status, &param, &code), "{body} → {answer}");
        assert!(error["message"].as_str().unwrap().contains(words), "{answer}");
        assert_eq!(error["type"], "invalid_request_error");
    };
    let unsupported = json!("unsupported_value");
    let null = Value::Null;
    check(
        CHAT,
        json!({"messages": user("x"), "frequency": 1}),
        400,
        json!("frequency"),
        unsupported.clone(),
        "not known",
    );
    check(
        CHAT,
        json!({"model": "gpt-9", "messages": user("x")}),
        404,
        json!("model"),
        json!("model_not_found"),
        "hint: use `chain`",
    );
    check(CHAT, json!([1]), 400, null.clone(), null.clone(), "must be a JSON object");
    check(CHAT, json!({}), 400, json!("messages"), null.clone(), "messages is empty");
    check(CHAT, json!({"messages": "hi"}), 400, json!("messages"), null.clone(), "messages: invalid type");
    check(
        CHAT,
        json!({"messages": user("x"), "temperature": "hot"}),
        400,
        json!("temperature"),
        null.clone(),
        "temperature: invalid type",
    );
    check(
        CHAT,
        json!({"messages": user("x"), "tool_choice": "required"}),
        400,
        json!("tool_choice"),
        null.clone(),
        "there are no tools",
    );
    check(
        CHAT,
        json!({"messages": user("x"), "response_format": {"type": "xml"}}),
        400,
        json!("response_format.type"),
        unsupported.clone(),
        "not supported",
    );
    check(
        CHAT,
        json!({"messages": user("x"), "tools": [{"type": "function"}]}),
        400,
        json!("tools[0].function.name"),
        null.clone(),
        "has no function name",
    );
    check(CHAT, json!({"messages": user("x"), "n": 0}), 400, json!("n"), null.clone(), "between 1 and 128");
    check(
        CHAT,
        json!({"messages": user(&"one ".repeat(CONTEXT))}),
        400,
        json!("messages"),
        json!("context_length_exceeded"),
        "the context length of 256 is exceeded",
    );
    check(
        COMPLETIONS,
        json!({"prompt": vec![5; CONTEXT]}),
        400,
        json!("prompt"),
        json!("context_length_exceeded"),
        "hint: shorten prompt",
    );
    check(COMPLETIONS, json!({}), 400, json!("prompt"), null.clone(), "prompt is missing");
    check(COMPLETIONS, json!({"prompt": []}), 400, json!("prompt"), null.clone(), "0 continuations");
    check(COMPLETIONS, json!({"prompt": {"a": 1}}), 400, json!("prompt"), null.clone(), "prompt: ");
    check(COMPLETIONS, json!({"prompt": [99_999]}), 400, json!("prompt"), null.clone(), "token id 99999");
    check(
        COMPLETIONS,
        json!({"prompt": "x", "suffix": "y"}),
        400,
        json!("suffix"),
        unsupported.clone(),
        "suffix is not supported",
    );
    check(
        COMPLETIONS,
        json!({"prompt": "x", "best_of": 3}),
        400,
        json!("best_of"),
        unsupported,
        "hint: use n",
    );
    check(
        COMPLETIONS,
        json!({"prompt": "x", "logprobs": 50}),
        400,
        json!("logprobs"),
        null,
        "between 0 and 20",
    );
    let (status, answer) = post_raw(&server, CHAT, None, b"{\"messages\": [");
    assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("invalid_json")));
    // Still there.
    assert_eq!(get(&server, "/health").0, 200);
}

#[test]
fn a_body_has_a_limit_and_a_key_opens() {
    let server = serve_with(chain_model(), |config| {
        config.api_key = Some("open sesame".into());
        config.served_name = Some("org/counter".into());
        config.max_body_mb = 1;
    });
    let body =
        json!({"model": "org/counter", "prompt": " one", "max_tokens": 1, "temperature": 0}).to_string();
    for key in [None, Some("open"), Some("open sesamE")] {
        let (status, answer) = post_raw(&server, COMPLETIONS, key, body.as_bytes());
        assert_eq!((status, answer["error"]["code"].as_str()), (401, Some("invalid_api_key")));
    }
    let (status, answer) = post_raw(&server, COMPLETIONS, Some("open sesame"), body.as_bytes());
    assert_eq!((status, answer["choices"][0]["text"].as_str()), (200, Some(" two")));
    let long = vec![b' '; (1 << 20) + 1];
    assert_eq!(post_raw(&server, CHAT, Some("open sesame"), &long).0, 413);
    assert_eq!(get(&server, "/health").0, 200);
    assert_eq!(get(&server, "/v1/models").0, 401);
    let error = Remote::new(&server.url(), None, None).err().unwrap().to_string();
    assert!(error.contains("hint:"), "{error}");
    let remote = Remote::new(&server.url(), None, Some("open sesame".into())).unwrap();
    assert_eq!(remote.name(), "org/counter");
}

#[test]
fn many_ask_at_once() {
    let server = serve(random_model());
    let bodies: Vec<Value> = (0..8)
        .map(|i| json!({"prompt": " one two three".repeat(i + 1), "max_tokens": 12, "temperature": 0}))
        .collect();
    let alone: Vec<Value> = bodies.iter().map(|b| ask(&server, COMPLETIONS, b)["choices"].clone()).collect();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            bodies.iter().map(|b| scope.spawn(|| ask(&server, COMPLETIONS, b)["choices"].clone())).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(alone, together);
}

#[test]
fn the_client_and_the_server_agree() {
    let server = serve(chain_model());
    let remote = Remote::new(&server.url(), None, None).unwrap();
    assert_eq!((remote.name(), remote.max_context()), ("chain", Some(CONTEXT)));
    let request = |prompt: &str| GenerateRequest {
        prompt: Prompt::Text(prompt.into()),
        sampling: Sampling { max_tokens: 3, logprobs: Some(1), ..Sampling::default() },
    };
    let mut streamed = String::new();
    let one = remote.generate(&[request(" one")], &mut |_, text| streamed.push_str(text)).unwrap();
    assert_eq!((one[0].text.as_str(), streamed.as_str()), (" two three four", " two three four"));
    let two = remote.generate(&[request(" one"), request(" five")], &mut |_, _| {}).unwrap();
    assert_eq!(two[0], one[0]);
    assert_eq!(two[1].text, " six seven eight");
    assert_eq!(two[1].tokens.len(), 3);
    assert_eq!(two[1].logprobs.as_ref().unwrap()[0].token, " six");

    let chat = ChatRequest {
        messages: vec![Message::new("user", "1 + 1")],
        tools: vec![add_tool()[0].clone()],
        ..ChatRequest::default()
    };
    let streamed = remote.chat(&chat, &mut |_, _| {}).unwrap();
    assert_eq!(streamed.message.tool_calls[0].function.arguments, json!({"x": 1}));
    assert_eq!(streamed.finish, FinishReason::ToolCalls);
    let whole = remote.chat_batch(&[chat.clone(), ChatRequest { raw: true, ..chat }]).unwrap();
    assert_eq!(whole[0], streamed);
    let raw = format!("Calculating<|action_start|><|plugin|>{}<|action_end|>", support::CALL);
    assert_eq!(whole[1].message.content.trim_end_matches("<|im_end|>"), raw);
    assert!(whole[1].message.tool_calls.is_empty());
}

#[test]
fn scores_are_the_same_here_and_there() {
    use intern_engine::{Engine, EngineConfig};
    let server = serve(random_model());
    let remote = Remote::new(&server.url(), None, None).unwrap();
    let engine =
        Engine::load(random_model(), None, &EngineConfig { threads: 1, ..EngineConfig::default() }).unwrap();
    let continuation = |context: &str, continuation: &str| ScoreRequest::Continuation {
        context: context.into(),
        continuation: continuation.into(),
    };
    let requests = [
        continuation(" one two", " three four"),
        continuation(" one two ", "three"),
        continuation("数字 one", " 数字"),
        continuation("", " seven eight"),
        ScoreRequest::Rolling { text: " one two three, and 数字 are numbers".into() },
    ];
    let here = engine.score(&requests).unwrap();
    let there = remote.score(&requests).unwrap();
    for ((here, there), request) in here.iter().zip(&there).zip(&requests) {
        assert!((here.logprob - there.logprob).abs() < 1e-4, "{request:?}: {here:?} {there:?}");
        assert_eq!((here.num_tokens, here.is_greedy), (there.num_tokens, there.is_greedy), "{request:?}");
    }
}

/// Sends a request and returns the socket.
fn send(server: &intern_serve::api::Running, path: &str, body: &Value) -> TcpStream {
    let mut socket = TcpStream::connect(server.addr()).unwrap();
    let body = body.to_string();
    write!(socket, "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .unwrap();
    socket
}

#[test]
fn who_hangs_up_is_forgotten() {
    // Room for one sequence only: another request is answered as soon as the first is cancelled.
    let server = serve_with(random_model(), |config| config.engine.max_num_seqs = 1);
    let long = |stream: bool| json!({"prompt": " one", "max_tokens": CONTEXT - 8, "n": 100, "ignore_eos": true, "stream": stream});
    for stream in [true, false] {
        let mut socket = send(&server, COMPLETIONS, &long(stream));
        if stream {
            let mut some = [0; 512];
            assert!(socket.read(&mut some).unwrap() > 0);
        } else {
            std::thread::sleep(Duration::from_millis(200));
        }
        drop(socket);
        let begin = Instant::now();
        ask(&server, COMPLETIONS, &json!({"prompt": " one", "max_tokens": 1}));
        assert!(begin.elapsed() < Duration::from_secs(2), "waited {:?} (stream: {stream})", begin.elapsed());
    }
}

#[test]
fn a_taken_port_is_explained() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = ApiConfig { port: taken.local_addr().unwrap().port(), ..ApiConfig::new(chain_model()) };
    let error = start(&config).err().unwrap().to_string();
    assert!(error.contains("the port is in use\nhint: "), "{error}");
    let missing = ApiConfig { port: 0, ..ApiConfig::new(std::path::Path::new("/nowhere/model")) };
    assert!(format!("{:#}", start(&missing).err().unwrap()).contains("/nowhere/model"));
}

#[test]
fn a_running_answer_may_finish() {
    let server = serve(random_model());
    let body = json!({"prompt": " one", "max_tokens": 100, "ignore_eos": true, "stream": true});
    let mut socket = send(&server, COMPLETIONS, &body);
    let mut some = [0; 64];
    assert!(socket.read(&mut some).unwrap() > 0);
    let url = server.url();
    let stopping = std::thread::spawn(move || server.stop());
    let mut rest = String::new();
    socket.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
    stopping.join().unwrap().unwrap();
    assert!(Remote::new(&url, None, None).is_err());
}
