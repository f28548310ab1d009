//! Responses and messages over real sockets; `tests/interop` drives them with the official clients.

mod support;

use serde_json::{Value, json};
use support::{ask, chain_model, delete, get, post, post_raw, serve, serve_with, stream_named};

const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";

fn tool() -> Value {
    json!([{"type": "function", "name": "add", "parameters": {"type": "object", "properties": {}}}])
}

#[test]
fn a_response_has_items_and_is_remembered() {
    let server = serve(chain_model());
    let body = json!({"input": "1 + 1", "tools": tool(), "temperature": 0, "metadata": {"k": "v"}});
    let whole = ask(&server, RESPONSES, &body);
    assert_eq!((whole["object"].as_str(), whole["status"].as_str()), (Some("response"), Some("completed")));
    let kinds: Vec<&str> =
        whole["output"].as_array().unwrap().iter().map(|i| i["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["message", "function_call"]);
    assert_eq!(whole["output"][0]["content"][0]["text"], "Calculating");
    assert_eq!(whole["output"][1]["arguments"], "{\"x\":1}");
    assert_eq!(whole["metadata"]["k"], "v");

    let id = whole["id"].as_str().unwrap();
    assert_eq!(get(&server, &format!("{RESPONSES}/{id}")), (200, whole.clone()));
    let (_, items) = get(&server, &format!("{RESPONSES}/{id}/input_items"));
    assert_eq!(items["data"][0]["content"][0]["text"], "1 + 1");
    let output =
        json!([{"type": "function_call_output", "call_id": whole["output"][1]["call_id"], "output": "2"}]);
    let next = json!({"previous_response_id": id, "input": output, "tools": tool(), "temperature": 0});
    let again = ask(&server, RESPONSES, &next);
    assert_eq!(again["output"][1]["call_id"], "call_1");
    let counted = ask(&server, "/v1/responses/input_tokens", &next);
    assert_eq!(counted["input_tokens"], again["usage"]["input_tokens"]);
    assert_eq!(delete(&server, &format!("{RESPONSES}/{id}")).1["deleted"], true);
    assert_eq!(get(&server, &format!("{RESPONSES}/{id}")).0, 404);
    let (status, error) = post(&server, RESPONSES, &next);
    assert_eq!((status, error["error"]["param"].as_str()), (400, Some("previous_response_id")));
    let hidden = ask(&server, RESPONSES, &json!({"input": "x", "store": false, "max_output_tokens": 1}));
    assert_eq!(hidden["status"], "incomplete");
    assert_eq!(hidden["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(get(&server, &format!("{RESPONSES}/{}", hidden["id"].as_str().unwrap())).0, 404);
}

#[test]
fn a_streamed_response_builds_the_same() {
    let server = serve(chain_model());
    let body = json!({"input": "1 + 1", "tools": tool(), "temperature": 0, "store": false,
        "include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let whole = ask(&server, RESPONSES, &body);
    let events = stream_named(&server, RESPONSES, &body);
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i);
    }
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds[..4],
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added"
        ]
    );
    let joined = |kind: &str| -> String {
        events.iter().filter(|e| e["type"] == kind).map(|e| e["delta"].as_str().unwrap()).collect()
    };
    assert_eq!(joined("response.output_text.delta"), "Calculating");
    assert_eq!(joined("response.function_call_arguments.delta"), "{\"x\":1}");
    let last = &events.last().unwrap()["response"];
    assert_eq!(events.last().unwrap()["type"], "response.completed");
    assert_eq!(last["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
    assert_eq!(last["output"][0]["content"], whole["output"][0]["content"]);
    assert!(whole["output"][0]["content"][0]["logprobs"][0]["top_logprobs"].is_array(), "{whole}");
}

#[test]
fn messages_have_blocks() {
    let server = serve_with(chain_model(), |config| config.api_key = Some("k".into()));
    let asked = |body: &Value| post_raw(&server, MESSAGES, Some("k"), body.to_string().as_bytes());
    let tools = json!([{"name": "add", "input_schema": {"type": "object", "properties": {}}}]);
    let body = json!({"model": "chain", "max_tokens": 60, "temperature": 0, "tools": tools,
        "messages": [{"role": "user", "content": "1 + 1"}]});
    let (status, answer) = asked(&body);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["content"][0], json!({"type": "text", "text": "Calculating"}));
    assert_eq!(
        answer["content"][1],
        json!({"type": "tool_use", "id": "call_0", "name": "add", "input": {"x": 1}})
    );
    assert_eq!((answer["stop_reason"].as_str(), &answer["stop_sequence"]), (Some("tool_use"), &Value::Null));

    let mut plain = body.clone();
    plain.as_object_mut().unwrap().remove("tools");
    plain["stop_sequences"] = json!(["zzz", "ating"]);
    let (_, stopped) = asked(&plain);
    assert_eq!(stopped["content"][0]["text"], "Calcul");
    assert_eq!(
        (stopped["stop_reason"].as_str(), stopped["stop_sequence"].as_str()),
        (Some("stop_sequence"), Some("ating"))
    );
    plain["max_tokens"] = 1.into();
    plain["stop_sequences"] = json!([]);
    assert_eq!(asked(&plain).1["stop_reason"], "max_tokens");

    let counted = post_raw(&server, "/v1/messages/count_tokens", Some("k"), body.to_string().as_bytes()).1;
    assert_eq!(
        counted["input_tokens"],
        answer["usage"]["input_tokens"].as_u64().unwrap()
            + answer["usage"]["cache_read_input_tokens"].as_u64().unwrap()
    );

    let (status, error) = post(&server, MESSAGES, &body);
    assert_eq!(
        (status, error["type"].as_str(), error["error"]["type"].as_str()),
        (401, Some("error"), Some("authentication_error"))
    );
    let (status, error) = asked(&json!({"max_tokens": 5, "messages": []}));
    assert_eq!((status, error["error"]["type"].as_str()), (400, Some("invalid_request_error")), "{error}");
}

#[test]
fn streamed_messages_build_the_same() {
    let server = serve(chain_model());
    let tools = json!([{"name": "add", "input_schema": {"type": "object", "properties": {}}}]);
    let body = json!({"max_tokens": 60, "temperature": 0, "tools": tools, "messages": [{"role": "user", "content": "1 + 1"}]});
    let events = stream_named(&server, MESSAGES, &body);
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..3], ["message_start", "ping", "content_block_start"]);
    assert_eq!(kinds[kinds.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let text: String = events.iter().filter_map(|e| e["delta"]["text"].as_str()).collect();
    let input: String = events.iter().filter_map(|e| e["delta"]["partial_json"].as_str()).collect();
    assert_eq!((text.as_str(), input.as_str()), ("Calculating", "{\"x\":1}"));
    assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], "tool_use");
}
