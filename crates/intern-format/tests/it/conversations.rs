//! Every shape of conversation, by example and on the asset files.

use std::path::Path;

use intern_format::conversation::{self, Conversation, Message, Preference};
use serde_json::{Value, json};

use crate::asset;

fn open_text(name: &str, content: &str) -> intern_format::Result<Vec<Conversation>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    conversation::open(&path)
}

/// The one record reads as this OpenAI conversation.
#[track_caller]
fn check(record: Value, expect: Value) {
    let got = open_text("a.jsonl", &record.to_string()).unwrap();
    assert_eq!(serde_json::to_value(&got[0]).unwrap(), expect);
    // Written and read again it stays the same.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    assert_eq!(conversation::write_jsonl(&path, &got).unwrap(), 1);
    assert_eq!(conversation::open(&path).unwrap(), got);
}

#[track_caller]
fn fails(record: &str, expect: &str) {
    let text = open_text("a.jsonl", &format!("\n{record}")).unwrap_err().to_string();
    assert!(text.contains("a.jsonl: line 2") && text.contains(expect), "{text}");
}

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn call(id: &str, name: &str, arguments: Value) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

#[test]
fn openai() {
    let plain = json!({"messages": [turn("user", "a"), turn("assistant", "b")]});
    check(plain.clone(), plain.clone());
    check(plain["messages"].clone(), plain);
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    let full = json!({
        "messages": [
            {"role": "user", "content": "q", "name": "ann"},
            {"role": "assistant", "content": "", "tool_calls": [call("1", "f", json!({"x": 1}))], "reasoning_content": "hm"},
            {"role": "tool", "content": "2", "tool_call_id": "1"},
        ],
        "tools": [tool],
    });
    check(full.clone(), full.clone());
    // The wire form: nulls, arguments and tools as text, content in parts.
    let mut wire = full.clone();
    wire["messages"][0]["content"] = json!([{"type": "text", "text": "q"}]);
    wire["messages"][1]["content"] = Value::Null;
    wire["messages"][1]["refusal"] = Value::Null;
    wire["messages"][1]["tool_calls"][0]["function"]["arguments"] = "{\"x\": 1}".into();
    wire["messages"][2]["content"] = json!(["2", {"type": "text", "value": ""}]);
    wire["messages"][2]["tool_calls"] = Value::Null;
    wire["tools"] = full["tools"].to_string().into();
    check(wire, full);
    // The older single call, and bare tool declarations.
    check(
        json!({
            "tools": [{"name": "f", "parameters": {}}],
            "messages": [
                {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": ""}},
                {"role": "function", "name": "f", "content": "r"},
            ],
        }),
        json!({
            "messages": [
                {"role": "assistant", "content": "", "tool_calls": [call("call00001", "f", json!({}))]},
                {"role": "tool", "content": "r", "name": "f", "tool_call_id": "call00001"},
            ],
            "tools": [tool],
        }),
    );
    // LLaMA-Factory's typed parts.
    check(
        json!({"messages": [
            {"role": "assistant", "content": [
                {"type": "reasoning", "value": "hm"},
                {"type": "text", "value": "t"},
                {"type": "tool_call", "value": "{\"name\": \"f\", \"arguments\": {}}"},
            ]},
        ]}),
        json!({"messages": [{"role": "assistant", "content": "t",
            "tool_calls": [call("call00001", "f", json!({}))], "reasoning_content": "hm"}]}),
    );
}

#[test]
fn sharegpt() {
    check(
        json!({
            "id": "x",
            "system": "s",
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": "[{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"name\": \"g\", \"arguments\": {}}]"},
                {"from": "observation", "value": {"r": 1}},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "done"},
            ],
            "tools": "[{\"name\": \"f\"}]",
        }),
        json!({
            "messages": [
                turn("system", "s"),
                turn("user", "q"),
                {"role": "assistant", "content": "", "tool_calls": [
                    call("call00001", "f", json!({"a": 1})), call("call00002", "g", json!({}))]},
                {"role": "tool", "content": "{\"r\":1}", "tool_call_id": "call00001"},
                {"role": "tool", "content": "2", "tool_call_id": "call00002"},
                turn("assistant", "done"),
            ],
            "tools": [{"type": "function", "function": {"name": "f"}}],
        }),
    );
}

#[test]
fn alpaca_xtuner_and_prompts() {
    let two =
        |user: &str, assistant: &str| json!({"messages": [turn("user", user), turn("assistant", assistant)]});
    check(json!({"instruction": "i", "input": "", "output": "o"}), two("i", "o"));
    check(json!({"instruction": "i", "input": "x", "response": "o"}), two("i\nx", "o"));
    check(json!({"instruction": "i", "context": "x", "response": "o"}), two("i\nx", "o"));
    check(
        json!({"instruction": "i", "output": "o", "system": "s", "history": [["a", "b"]]}),
        json!({"messages": [turn("system", "s"), turn("user", "a"), turn("assistant", "b"), turn("user", "i"), turn("assistant", "o")]}),
    );
    check(
        json!({"conversation": [{"system": "s", "input": "a", "output": "b"}, {"input": "c", "output": "d"}]}),
        json!({"messages": [turn("system", "s"), turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d")]}),
    );
    check(json!({"prompt": "p", "completion": "c"}), two("p", "c"));
    check(json!({"prompt": [turn("user", "p")], "completion": [turn("assistant", "c")]}), two("p", "c"));
    check(json!({"prompt": "p", "response": "c"}), two("p", "c"));
    check(json!({"question": "p", "answer": "c"}), two("p", "c"));
    let several = json!({"instruction": "i", "instances": [{"input": "", "output": "a"}, {"input": "x", "output": "b"}]});
    let got = open_text("a.jsonl", &several.to_string()).unwrap();
    assert_eq!(serde_json::to_value(got).unwrap(), json!([two("i", "a"), two("i\nx", "b")]));
}

#[test]
fn errors_name_line_and_place() {
    fails(
        "{\"a\": 1}",
        ": expected `messages`, `conversations`, `conversation`, `instruction` or `prompt`, found fields a\nhint:",
    );
    fails("{\"messages\": {}}", ", messages: expected a list, found {}");
    fails("{\"messages\": []}", ": expected at least one message, found none");
    fails(
        "{\"messages\": [{\"role\": \"user\"}, {\"content\": \"x\"}]}",
        ", messages[1]: expected a message with `role` and `content`, found missing field `role`",
    );
    fails("{\"messages\": [3]}", ", messages[0]: expected a message object, found 3");
    fails(
        "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image_url\"}]}]}",
        ", messages[0]: expected a message with `role` and `content`, found a content part of type `image_url`",
    );
    fails(
        "{\"conversations\": [{\"from\": \"martian\", \"value\": \"\"}]}",
        ", conversations[0]: expected from `human`",
    );
    fails(
        "{\"conversations\": [{\"from\": \"function_call\", \"value\": \"no\"}]}",
        ", conversations[0]: expected a call as JSON, found text that is not JSON",
    );
    fails(
        "{\"conversation\": [{\"toy\": 1}]}",
        ", conversation[0]: expected a turn with `input` and `output`, found {\"toy\":1}",
    );
    fails("{\"instruction\": \"\", \"tools\": \"{\"}", ", tools: expected a list of tools");
    fails("{\"instruction\": {}}", ", instruction: expected text, found {}");
    fails("not json", ", column 2: expected valid JSON");
}

#[test]
fn preferences() {
    let check = |record: Value, prompt: &[&str], chosen: &str, rejected: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, record.to_string()).unwrap();
        let got: Vec<Preference> = conversation::open_preferences(&path).unwrap();
        let texts: Vec<&str> = got[0].prompt.messages.iter().map(|m| m.content.as_str()).collect();
        assert_eq!(texts, prompt);
        assert_eq!(got[0].chosen, [Message::new("assistant", chosen)]);
        assert_eq!(got[0].rejected, [Message::new("assistant", rejected)]);
    };
    check(json!({"prompt": "p", "chosen": "c", "rejected": "r"}), &["p"], "c", "r");
    check(
        json!({"conversations": [{"from": "human", "value": "p"}], "chosen": {"from": "gpt", "value": "c"}, "rejected": {"from": "gpt", "value": "r"}}),
        &["p"],
        "c",
        "r",
    );
    let (user, a, b) = (turn("user", "p"), turn("assistant", "c"), turn("assistant", "r"));
    check(json!({"chosen": [user, a], "rejected": [user, b]}), &["p"], "c", "r");
}

/// Counts of conversations and messages in the files as other tools count them.
#[test]
fn files_of_the_field() {
    let Some(dir) = asset("tune") else { return };
    let count = |path: &str| {
        let conversations = conversation::open(&dir.join(path)).unwrap();
        (conversations.len(), conversations.iter().map(|c| c.messages.len()).sum::<usize>())
    };
    let raw = |path: &str| -> Vec<Value> {
        serde_json::from_str(&std::fs::read_to_string(dir.join(path)).unwrap()).unwrap()
    };
    for name in ["alpaca_en_demo", "alpaca_zh_demo", "identity"] {
        let path = format!("llamafactory-demo/{name}.json");
        let n = raw(&path).len();
        assert_eq!(count(&path), (n, 2 * n), "{name}");
    }
    for name in ["glaive_toolcall_en_demo", "glaive_toolcall_zh_demo"] {
        let path = format!("llamafactory-demo/{name}.json");
        let records = raw(&path);
        let turns = records.iter().map(|r| r["conversations"].as_array().unwrap().len()).sum::<usize>();
        assert_eq!(count(&path), (records.len(), turns), "{name}");
        let conversations = conversation::open(&dir.join(&path)).unwrap();
        assert!(conversations.iter().any(|c| !c.tools.is_empty()));
        let calls = conversations.iter().flat_map(|c| &c.messages).map(|m| m.tool_calls.len()).sum::<usize>();
        let answers =
            conversations.iter().flat_map(|c| &c.messages).filter(|m| m.tool_call_id.is_some()).count();
        assert!(calls > 50 && answers > 50, "{calls} calls, {answers} answers");
    }
    let lines = |path: &str| std::fs::read_to_string(dir.join(path)).unwrap().lines().count();
    for path in [
        "llamafactory-demo/v1_sft_demo.jsonl",
        "llamafactory-demo/reason_tool_use_demo_50.jsonl",
        "xtuner/tests/resource/openai_sft.jsonl",
        "xtuner/tests/resource/mllm_sft_text_example_data.jsonl",
        "xtuner/tests/resource/pretrain_example_data.jsonl",
        "dolly-hh-small/dolly_hhrlhf_train_small.jsonl",
        "belle/zh_seed_tasks.json",
        "belle/eval_set.json",
        "self-instruct/seed_tasks.jsonl",
    ] {
        let instances = std::fs::read_to_string(dir.join(path)).unwrap();
        let several =
            instances.lines().map(|line| line.matches("\"input\":").count().saturating_sub(1)).sum::<usize>();
        let several = if path.contains("seed_tasks") { several } else { 0 };
        assert_eq!(count(path).0, lines(path) + several, "{path}");
    }
    for path in [
        "fastchat-sharegpt/dummy_conversation.json",
        "gpteacher/codegen-instruct.json",
        "xtuner/examples/demo_data/multi_turn_2/data.json",
    ] {
        assert_eq!(count(path).0, raw(path).len(), "{path}");
    }
    for name in ["dpo_en_demo.json", "dpo_zh_demo.json"] {
        let path = format!("llamafactory-demo/{name}");
        assert_eq!(conversation::open_preferences(&dir.join(&path)).unwrap().len(), raw(&path).len());
    }
    let path = dir.join("llamafactory-demo/v1_dpo_demo.jsonl");
    assert_eq!(
        conversation::open_preferences(&path).unwrap().len(),
        lines("llamafactory-demo/v1_dpo_demo.jsonl")
    );
    // Images, audio and other tasks are refused by name rather than read without them.
    for (path, expect) in [
        ("llamafactory-demo/v1_multimodal_demo.jsonl", "content part of type `image_url`"),
        ("xtuner/tests/resource/qwen35_tokenize_data.jsonl", "line 13, messages[1]"),
        ("llamafactory-demo/mllm_demo.json", "images: expected text only"),
        ("dolly-hh-small/train.jsonl", "found fields choices"),
    ] {
        let text = refused(&dir.join(path));
        assert!(text.contains(": line ") && text.contains(expect), "{text}");
    }
}

fn refused(path: &Path) -> String {
    conversation::open(path).unwrap_err().to_string()
}
