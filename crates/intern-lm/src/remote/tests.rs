//! The client against a tiny server that answers from a script.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::request::{Sampling, ToolChoice};

/// What the server saw: path, headers, body.
type Seen = Arc<Mutex<Vec<(String, String, Value)>>>;

/// Serves `answer(path, body) -> (status, headers, body)` on a free port; returns its URL.
fn serve(
    answer: impl Fn(&str, &Value) -> (u16, &'static str, String) + Send + Sync + 'static,
) -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Seen::default();
    let (answer, log) = (Arc::new(answer), seen.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (answer, log) = (answer.clone(), log.clone());
            std::thread::spawn(move || handle(stream, &*answer, &log));
        }
    });
    (url, seen)
}

fn handle(mut stream: TcpStream, answer: &dyn Fn(&str, &Value) -> (u16, &'static str, String), log: &Seen) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let path = line.split(' ').nth(1).unwrap_or_default().to_string();
    let (mut headers, mut length) = (String::new(), 0);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        if header.trim().is_empty() {
            break;
        }
        let lower = header.to_lowercase();
        if let Some(n) = lower.strip_prefix("content-length:") {
            length = n.trim().parse().unwrap();
        }
        headers.push_str(&lower);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    log.lock().unwrap().push((path.clone(), headers, body.clone()));
    let (status, headers, text) = answer(&path, &body);
    let kind = if text.starts_with("data:") || text.starts_with(':') {
        "text/event-stream"
    } else {
        "application/json"
    };
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    )
    .unwrap();
}

fn models() -> (u16, &'static str, String) {
    let card = json!({"id": "tiny", "object": "model", "owned_by": "somebody", "max_model_len": 99});
    (200, "", json!({"object": "list", "data": [card]}).to_string())
}

fn sse(events: &[Value]) -> (u16, &'static str, String) {
    let mut text = String::from(": hello\r\n\r\n");
    for event in events {
        text.push_str(&format!("data: {event}\r\n\r\n"));
    }
    (200, "", text + "data: [DONE]\n\n")
}

fn connect(url: &str) -> Remote {
    let mut remote = Remote::new(url, None, Some("secret".into())).unwrap();
    remote.client.wait = Duration::from_millis(5);
    remote
}

fn delta(delta: Value, finish: Value) -> Value {
    json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
}

#[test]
fn chat_streams_text_and_joins_calls() {
    let (url, seen) = serve(|path, _| match path {
        "/v1/models" => models(),
        "/v1/chat/completions" => sse(&[
            delta(json!({"role": "assistant", "content": ""}), Value::Null),
            delta(json!({"content": "Let "}), Value::Null),
            delta(json!({"content": "me"}), Value::Null),
            delta(
                json!({"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
                Value::Null,
            ),
            delta(json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"x\""}}]}), Value::Null),
            delta(
                json!({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}),
                json!("tool_calls"),
            ),
            json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}}),
        ]),
        other => panic!("{other}"),
    });
    let remote = connect(&url);
    assert_eq!((remote.name(), remote.max_context()), ("tiny", Some(99)));
    let request = ChatRequest {
        messages: vec![Message::new("user", "hi")],
        tools: vec![json!({"type": "function", "function": {"name": "f"}})],
        tool_choice: ToolChoice::Auto,
        raw: true,
        ..ChatRequest::default()
    };
    let mut streamed = String::new();
    let answer = remote.chat(&request, &mut |_, text| streamed.push_str(text)).unwrap();
    assert_eq!(streamed, "Let me");
    assert_eq!(answer.message.content, "Let me");
    assert_eq!(answer.message.tool_calls[0].id, "c1");
    assert_eq!(answer.message.tool_calls[0].function.arguments, json!({"x": 1}));
    assert_eq!(answer.finish, FinishReason::ToolCalls);
    assert_eq!(answer.usage, Usage { prompt_tokens: 5, completion_tokens: 7 });
    let seen = seen.lock().unwrap();
    let (_, headers, body) = &seen[1];
    assert!(headers.contains("authorization: bearer secret"), "{headers}");
    assert_eq!(body["skip_special_tokens"], false);
    assert_eq!(body["stream"], true);
    assert_eq!(body["parse_tools"], Value::Null);
}

#[test]
fn batches_come_back_in_order() {
    let (url, _) = serve(|path, body| match path {
        "/v1/models" => models(),
        "/v1/chat/completions" => {
            let content = format!("re {}", body["messages"][0]["content"].as_str().unwrap());
            let message =
                json!({"role": "assistant", "content": content, "tool_calls": null, "refusal": null});
            (200, "", json!({"choices": [{"message": message, "finish_reason": "length"}]}).to_string())
        }
        _ => {
            let text = format!("{}!", body["prompt"]);
            let logprobs = json!({"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.25}], "text_offset": [0]});
            let choice =
                json!({"text": text, "finish_reason": "stop", "token_ids": [3], "logprobs": logprobs});
            (
                200,
                "",
                json!({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
                    .to_string(),
            )
        }
    });
    let remote = connect(&url);
    let chats: Vec<ChatRequest> = (0..20)
        .map(|i| ChatRequest {
            messages: vec![Message::new("user", i.to_string())],
            ..ChatRequest::default()
        })
        .collect();
    for (i, answer) in remote.chat_batch(&chats).unwrap().iter().enumerate() {
        assert_eq!(answer.message.content, format!("re {i}"));
        assert_eq!(answer.finish, FinishReason::Length);
    }
    let requests: Vec<GenerateRequest> = (0..20)
        .map(|i| GenerateRequest {
            prompt: Prompt::Tokens(vec![i]),
            sampling: Sampling { logprobs: Some(1), ..Sampling::default() },
        })
        .collect();
    let mut sunk = 0;
    let answers = remote.generate(&requests, &mut |_, _| sunk += 1).unwrap();
    assert_eq!(sunk, 20);
    assert_eq!(answers[7].text, "[7]!");
    assert_eq!(answers[7].tokens, [3]);
    let logprob = &answers[7].logprobs.as_ref().unwrap()[0];
    assert_eq!((logprob.id, logprob.logprob, logprob.top[0].1.as_str()), (3, -0.5, "a"));
}

#[test]
fn one_generation_streams() {
    let (url, _) = serve(|path, _| match path {
        "/v1/models" => models(),
        _ => sse(&[
            json!({"choices": [{"text": "a", "token_ids": [1]}]}),
            json!({"choices": [{"text": "b", "token_ids": [2], "finish_reason": "length"}]}),
        ]),
    });
    let request = GenerateRequest { prompt: Prompt::Text("x".into()), sampling: Sampling::default() };
    let mut pieces = Vec::new();
    let answer = connect(&url).generate(&[request], &mut |_, text| pieces.push(text.to_string())).unwrap();
    assert_eq!(pieces, ["a", "b"]);
    assert_eq!((answer[0].text.as_str(), answer[0].tokens.as_slice()), ("ab", &[1, 2][..]));
    assert_eq!(answer[0].finish, FinishReason::Length);
}

#[test]
fn a_busy_server_is_asked_again() {
    let tries = AtomicUsize::new(0);
    let (url, _) = serve(move |path, _| {
        if path == "/v1/models" {
            return models();
        }
        match tries.fetch_add(1, Ordering::SeqCst) {
            0 => (429, "retry-after: 0\r\n", json!({"error": {"message": "busy"}}).to_string()),
            1 => (503, "", String::from("down")),
            _ => (200, "", json!({"choices": [{"message": {"content": "ok"}}]}).to_string()),
        }
    });
    let answer = connect(&url).chat_batch(&[ChatRequest::default()]).unwrap();
    assert_eq!(answer[0].message.content, "ok");
}

/// Scores by words: each word with the space before it is a token of log-probability −length.
fn echo_server(limit: usize, bos: bool) -> (String, Seen) {
    serve(move |path, body| {
        if path == "/v1/models" {
            return models();
        }
        let prompt = body["prompt"].as_str().unwrap();
        let (mut tokens, mut offsets, mut logprobs, mut top) = (vec![], vec![], vec![], vec![]);
        let mut at = 0;
        if bos {
            tokens.push("<s>".to_string());
            offsets.push(0);
            logprobs.push(Value::Null);
            top.push(Value::Null);
            at = 3;
        }
        for word in prompt.split_inclusive(|c: char| !c.is_whitespace()).fold(
            Vec::<String>::new(),
            |mut all, piece| {
                match all.last_mut() {
                    Some(last) if !piece.starts_with(char::is_whitespace) => last.push_str(piece),
                    _ => all.push(piece.to_string()),
                }
                all
            },
        ) {
            offsets.push(at);
            at += word.chars().count();
            let logprob = -(word.chars().count() as f64);
            logprobs.push(if tokens.is_empty() { Value::Null } else { logprob.into() });
            top.push(if tokens.is_empty() { Value::Null } else { json!({&word: logprob, "other": -4.5}) });
            tokens.push(word);
        }
        let count = tokens.len();
        if count > limit {
            let message = format!("the prompt has {count} tokens, the context length is {limit}");
            return (
                400,
                "",
                json!({"error": {"message": message, "code": "context_length_exceeded"}}).to_string(),
            );
        }
        if body["echo"] == true {
            // The one generated token that echo servers insist on.
            tokens.push("gen".into());
            offsets.push(at);
            logprobs.push((-100.0).into());
            top.push(json!({"gen": -100.0}));
        }
        let logprobs = json!({"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": top, "text_offset": offsets});
        let choice = json!({"text": prompt, "logprobs": logprobs, "finish_reason": "length"});
        (200, "", json!({"choices": [choice], "usage": {"prompt_tokens": count}}).to_string())
    })
}

#[track_caller]
fn check_score(
    remote: &Remote,
    context: &str,
    continuation: &str,
    logprob: f64,
    greedy: bool,
    tokens: usize,
) {
    let request = ScoreRequest::Continuation { context: context.into(), continuation: continuation.into() };
    let score = remote.score(&[request]).unwrap()[0];
    assert_eq!(
        score,
        Score { logprob, is_greedy: greedy, num_tokens: tokens },
        "{context:?} {continuation:?}"
    );
}

#[test]
fn scores_split_at_the_context() {
    for bos in [false, true] {
        let (url, _) = echo_server(1000, bos);
        let remote = connect(&url);
        check_score(&remote, "der blaue", " hut hat", -8.0, true, 2);
        check_score(&remote, "der blaue ", "hut hattee", -11.0, false, 2);
        check_score(&remote, "dér blaü", " é", -2.0, true, 1);
        // The token " blauhut" straddles the split; the context alone has two tokens, so it counts as context.
        check_score(&remote, "der blau", "hut hat", -4.0, true, 1);
        let (logprob, tokens) = if bos { (-7.0, 2) } else { (-4.0, 1) };
        check_score(&remote, "", "der hat", logprob, true, tokens);
    }
}

#[test]
fn long_text_is_scored_in_parts() {
    let (url, _) = echo_server(6, false);
    let remote = connect(&url);
    let text = "aa bb cc dd ee ff gg hh ii jj kk ll";
    let score = remote.score(&[ScoreRequest::Rolling { text: text.into() }]).unwrap()[0];
    assert_eq!(score, Score { logprob: -33.0, is_greedy: true, num_tokens: 11 });
    check_score(&remote, text, " zz", -3.0, true, 1);
}

#[test]
fn a_server_that_tokenizes_is_scored_by_tokens() {
    // One token per character; log-probability −1 each, only letters are likeliest.
    let (url, seen) = serve(|path, body| match path {
        "/v1/models" => {
            let card = json!({"id": "tiny", "owned_by": "vllm", "max_model_len": 6});
            (200, "", json!({"data": [card]}).to_string())
        }
        "/tokenize" => {
            let mut tokens: Vec<u32> = body["prompt"].as_str().unwrap().chars().map(|c| c as u32).collect();
            if body["add_special_tokens"] == true {
                tokens.insert(0, 1);
            }
            (200, "", json!({"count": tokens.len(), "tokens": tokens}).to_string())
        }
        _ => {
            let prompt = body["prompt"].as_array().unwrap();
            assert!(prompt.len() <= 5, "{prompt:?}");
            let all =
                prompt.iter().map(|id| char::from_u32(id.as_u64().unwrap() as u32).unwrap()).chain(['g']);
            let (mut logprobs, mut top) = (vec![], vec![]);
            for (i, c) in all.enumerate() {
                logprobs.push(if i == 0 { Value::Null } else { (-1.0).into() });
                let best = if c.is_alphabetic() { -1.0 } else { -0.5 };
                top.push(if i == 0 { Value::Null } else { json!({"best": best, "it": -1.0}) });
            }
            let logprobs =
                json!({"token_logprobs": logprobs, "top_logprobs": top, "tokens": [], "text_offset": []});
            (200, "", json!({"choices": [{"text": "", "logprobs": logprobs}]}).to_string())
        }
    });
    let remote = connect(&url);
    check_score(&remote, "ab", "cd", -2.0, true, 2);
    check_score(&remote, "ab ", "c", -2.0, false, 2);
    check_score(&remote, "", "cd", -2.0, true, 2);
    check_score(&remote, "abcdefgh", "ij", -2.0, true, 2);
    // The token the tokenizer adds by itself is scored like any other, as lm-evaluation-harness does.
    let score = remote.score(&[ScoreRequest::Rolling { text: "abcdefghij".into() }]).unwrap()[0];
    assert_eq!(score, Score { logprob: -11.0, is_greedy: false, num_tokens: 11 });
    let seen = seen.lock().unwrap();
    let last = &seen.iter().rfind(|(path, ..)| path == "/v1/completions").unwrap().2;
    assert_eq!(last["prompt"], json!([102, 103, 104, 105, 106]));
}

#[test]
fn errors_say_what_to_do() {
    let show = |error: anyhow::Error| format!("{error:#}");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = show(Remote::new(&format!("http://{closed}"), None, None).err().unwrap());
    assert!(error.contains("connection refused\nhint: is the server running?"), "{error}");
    let error = show(Remote::new("localhost:8000", None, None).err().unwrap());
    assert!(error.contains("hint: give one like http://"), "{error}");

    let (url, _) = serve(|_, _| (401, "", json!({"error": {"message": "bad key"}}).to_string()));
    let error = show(Remote::new(&url, Some("m".into()), None).err().unwrap());
    assert!(error.contains("answered 401: bad key\nhint: give the API key"), "{error}");

    let (url, _) = serve(|path, _| match path {
        "/v1/models" => models(),
        _ => (404, "", json!({"error": {"message": "The model `x` does not exist"}}).to_string()),
    });
    let remote = Remote::new(&url, Some("x".into()), None).unwrap();
    let error = show(remote.chat(&ChatRequest::default(), &mut |_, _| {}).unwrap_err());
    assert!(error.contains("has no model x\nhint: it serves tiny"), "{error}");

    let (url, _) = serve(|path, _| match path {
        "/v1/models" => models(),
        "/v1/completions" => (200, "", json!({"choices": [{"text": "x"}]}).to_string()),
        _ => (200, "", "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n".to_string()),
    });
    let remote = connect(&url);
    let error = show(remote.chat(&ChatRequest::default(), &mut |_, _| {}).unwrap_err());
    assert!(error.contains("the stream ended before the answer did"), "{error}");
    let error = show(remote.score(&[ScoreRequest::Rolling { text: "a b".into() }]).unwrap_err());
    assert!(error.contains("no prompt log-probabilities\nhint: scoring needs"), "{error}");
}
