//! Answers within a grammar, from a model that knows nothing.

mod support;

use std::path::{Path, PathBuf};

use candle_core::DType;
use intern_engine::{Engine, EngineRequest, Event};
use intern_format::conversation::Message;
use intern_lm::{ChatRequest, FinishReason, Grammar, LanguageModel, Sampling, ToolChoice};
use intern_model::Architecture;
use serde_json::{Value, json};
use support::*;

struct Answer {
    text: String,
    tokens: Vec<u32>,
    finish: FinishReason,
    steps: u64,
}

fn ask(engine: &Engine, grammar: Grammar, sampling: Sampling) -> Result<Answer, String> {
    let before = engine.stats().steps;
    let sampling = Sampling { grammar: Some(grammar), ..sampling };
    let mut answer = Answer { text: String::new(), tokens: vec![], finish: FinishReason::Length, steps: 0 };
    for event in engine.submit(EngineRequest::new(prompt(10, 1), sampling)) {
        match event {
            Event::Token { id, text, .. } => {
                answer.tokens.push(id);
                answer.text += &text;
            }
            Event::Done { text, finish, .. } => {
                answer.text += &text;
                answer.finish = finish;
            }
            Event::Error(message) => return Err(message),
            Event::Expired => return Err("expired".into()),
            Event::Ping | Event::Prefill { .. } => {}
        }
    }
    answer.steps = engine.stats().steps - before;
    Ok(answer)
}

fn warm(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, seed, max_tokens: 220, ..Sampling::default() }
}

fn engine() -> (tempfile::TempDir, Engine) {
    let dir = tempfile::tempdir().unwrap();
    save(&config(Architecture::InternLm2), dir.path(), DType::F32);
    let engine = load(dir.path());
    (dir, engine)
}

/// llama.cpp's copies of real chat templates.
fn template(name: &str) -> Option<String> {
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/assets");
    let assets = std::env::var_os("INTERN_ASSETS").map_or(assets, PathBuf::from);
    std::fs::read_to_string(assets.join("serve/chat-templates-llamacpp").join(format!("{name}.jinja"))).ok()
}

#[test]
fn a_chosen_tool_is_called_in_every_format() {
    let schema = json!({
        "type": "object",
        "properties": {
            "n": { "type": "integer", "minimum": 0, "maximum": 99 },
            "unit": { "enum": ["m", "km"] },
            "tags": { "type": "array", "items": { "type": "boolean" }, "minItems": 1, "maxItems": 2 },
            "note": { "type": "string", "minLength": 1, "maxLength": 9 },
            "code": { "type": "string", "pattern": "^[A-Z]{2}[0-9]+$", "maxLength": 6 }
        },
        "required": ["n", "unit", "tags", "code"],
        "additionalProperties": false
    });
    let tool = |name: &str| json!({ "type": "function", "function": { "name": name, "description": "d", "parameters": schema } });
    let dir = tempfile::tempdir().unwrap();
    let mut shape = config(Architecture::InternLm2);
    shape.max_position_embeddings = 4096;
    save(&shape, dir.path(), DType::F32);
    let internlm2 = intern_tokenizer::internlm2::CHAT_TEMPLATE.to_owned();
    for (name, template) in [
        ("InternLM2", Some(internlm2)),
        ("Qwen2.5", template("Qwen-Qwen2.5-7B-Instruct")),
        ("Qwen3", template("Qwen-Qwen3-0.6B")),
        ("Hermes 3", template("NousResearch-Hermes-3-Llama-3.1-8B-tool_use")),
        ("Llama 3.1", template("meta-llama-Llama-3.1-8B-Instruct")),
        ("Llama 3.3", template("meta-llama-Llama-3.3-70B-Instruct")),
        ("Mistral Nemo", template("mistralai-Mistral-Nemo-Instruct-2407")),
        ("Mistral Small", template("Mistral-Small-3.2-24B-Instruct-2506")),
        ("Qwen3-Coder", template("Qwen3-Coder")),
        ("GLM", template("GLM-4.6")),
    ] {
        let Some(template) = template else {
            println!("skipped: no template of {name}");
            continue;
        };
        let thinks = intern_lm::reasoning::thinks(&template);
        tokenizer().with_chat_template(template).save(dir.path()).unwrap();
        let engine = load(dir.path());
        let mut called = 0;
        for seed in 0..6 {
            let choice = match seed % 2 {
                0 => ToolChoice::Required,
                _ => ToolChoice::Named("second".into()),
            };
            let request = ChatRequest {
                messages: vec![Message::new("user", "how far?")],
                tools: vec![tool("first"), tool("second")],
                single_call: true,
                sampling: Sampling { max_tokens: 1500, ..warm(seed) },
                tool_choice: choice.clone(),
                template: [("enable_thinking".to_owned(), json!(false))].into_iter().collect(),
                ..ChatRequest::default()
            };
            let response = engine.chat(&request, &mut |_, _| {}).unwrap();
            let calls = &response.message.tool_calls;
            if response.finish == FinishReason::Length {
                assert!(thinks, "{name}: {response:?}"); // a random thought has no end
                continue;
            }
            assert_eq!((response.finish, calls.len()), (FinishReason::ToolCalls, 1), "{name}: {response:?}");
            let function = &calls[0].function;
            assert!(jsonschema::is_valid(&schema, &function.arguments), "{name}: {function:?}");
            let fits = match choice {
                ToolChoice::Named(name) => function.name == name,
                _ => ["first", "second"].contains(&function.name.as_str()),
            };
            assert!(fits, "{name}: {function:?}");
            called += 1;
        }
        println!("{name}: {called} of 6 called a tool");
        assert!(called > 0, "{name}");
        let batch = ChatRequest {
            messages: vec![Message::new("user", "how far?")],
            tool_choice: ToolChoice::Named("third".into()),
            tools: vec![tool("first")],
            ..ChatRequest::default()
        };
        let error = engine.chat_batch(&[batch]).unwrap_err().to_string();
        assert!(error.contains("the tool third must be called"), "{error}");
    }
}

#[test]
fn text_follows_regular_expressions_and_grammars() {
    let (_dir, engine) = engine();
    for seed in 0..8 {
        let regex = Grammar::Regex("(yes|no), [0-9]{3}".into());
        let answer = ask(&engine, regex, warm(seed)).unwrap();
        assert_eq!(answer.finish, FinishReason::Stop);
        let (word, number) = answer.text.split_once(", ").unwrap();
        assert!(
            matches!(word, "yes" | "no") && number.len() == 3 && number.parse::<u32>().is_ok(),
            "{}",
            answer.text
        );
        let lark = Grammar::Lark("start: \"the \" (\"cat\" | \"dog\") \" sat\"".into());
        let answer = ask(&engine, lark, warm(seed)).unwrap();
        assert!(matches!(answer.text.as_str(), "the cat sat" | "the dog sat"), "{}", answer.text);
    }
    let object = ask(&engine, Grammar::JsonObject, warm(3)).unwrap();
    assert!(object.text.starts_with('{'), "{}", object.text);
}

#[test]
fn what_must_come_is_not_computed() {
    let (_dir, engine) = engine();
    let schema = json!({
        "type": "object",
        "properties": { "the cat sat on the mat": { "enum": ["and the dog", "sat on the cat"] } },
        "required": ["the cat sat on the mat"],
        "additionalProperties": false
    });
    let answer =
        ask(&engine, Grammar::JsonSchema(schema.clone()), Sampling { max_tokens: 200, ..greedy(200) })
            .unwrap();
    assert_eq!(answer.finish, FinishReason::Stop);
    assert!(jsonschema::is_valid(&schema, &serde_json::from_str(&answer.text).unwrap()), "{}", answer.text);
    assert!(
        answer.steps * 3 < answer.tokens.len() as u64,
        "{} steps, {} tokens",
        answer.steps,
        answer.tokens.len()
    );
    // A text without any choice.
    let answer = ask(&engine, Grammar::Regex("the cat sat on the mat".into()), warm(0)).unwrap();
    assert_eq!((answer.text.as_str(), answer.finish), ("the cat sat on the mat", FinishReason::Stop));
    assert!(answer.steps <= 3, "{}", answer.steps);
    // A bound on the answer holds for forced tokens too.
    let cut = Sampling { max_tokens: 3, ..warm(0) };
    let answer = ask(&engine, Grammar::Regex("the cat sat on the mat".into()), cut).unwrap();
    assert_eq!((answer.tokens.len(), answer.finish), (3, FinishReason::Length));
}

#[test]
fn every_token_has_a_log_probability_and_a_forced_one_is_certain() {
    let (_dir, engine) = engine();
    let grammar = Some(Grammar::Regex("the cat sat on the (mat|dog) and".into()));
    let sampling = Sampling { grammar, logprobs: Some(2), ..warm(1) };
    let mut logprobs = Vec::new();
    for event in engine.submit(EngineRequest::new(prompt(10, 1), sampling)) {
        if let Event::Token { id, logprob, .. } = event {
            let logprob = logprob.expect("asked for");
            assert_eq!(logprob.id, id);
            logprobs.push(logprob.logprob);
        }
    }
    let certain = logprobs.iter().filter(|&&p| p == 0.0).count();
    assert!(certain >= 4 && certain < logprobs.len(), "{logprobs:?}");
}

#[test]
fn grammars_work_alone_batched_and_with_guesses() {
    let (_dir, engine) = engine();
    let schema = json!({
        "type": "array", "minItems": 4, "maxItems": 8,
        "items": { "type": "object", "properties": { "a": { "type": "boolean" }, "b": { "enum": ["cat", "dog"] } },
                   "required": ["a", "b"], "additionalProperties": false }
    });
    let request = |seed: u64, guesses| EngineRequest {
        guesses: Some(guesses),
        ..EngineRequest::new(
            prompt(20, 2),
            Sampling { grammar: Some(Grammar::JsonSchema(schema.clone())), ..warm(seed) },
        )
    };
    let alone: Vec<_> = (0..6).map(|i| collect(engine.submit(request(i, 0))).unwrap()).collect();
    let before = engine.stats();
    for guesses in [0, 3] {
        let receivers: Vec<_> = (0..6).map(|i| engine.submit(request(i, guesses))).collect();
        let together: Vec<_> = receivers.into_iter().map(|r| collect(r).unwrap()).collect();
        assert_eq!(together, alone, "{guesses} guesses");
    }
    assert!(engine.stats().draft_tokens > before.draft_tokens);
    for tokens in alone {
        let text = engine.tokenizer().decode(&tokens, true).unwrap();
        assert!(jsonschema::is_valid(&schema, &serde_json::from_str(&text).unwrap()), "{text}");
    }
}

#[test]
fn what_is_not_supported_is_refused() {
    let (_dir, engine) = engine();
    for (grammar, message) in [
        (Grammar::Regex("(".into()), "grammar"),
        (Grammar::Lark("start: nothing".into()), "nothing"),
        (Grammar::JsonSchema(json!(3)), "a JSON schema is an object, not 3"),
        (Grammar::JsonSchema(json!(false)), "not supported"),
        (Grammar::JsonSchema(json!({ "$ref": "http://127.0.0.1:1/x.json" })), "x.json"),
        (Grammar::JsonSchema(json!({ "x-guidance": { "lenient": true } })), "x-guidance"),
    ] {
        let sampling = Sampling { grammar: Some(grammar.clone()), ..greedy(5) };
        let error = engine.check(&EngineRequest::new(vec![1], sampling)).unwrap_err();
        assert!(format!("{error:#}").contains(message), "{grammar:?}: {error:#}");
        assert!(ask(&engine, grammar, greedy(5)).is_err());
    }
}

/// Every schema of JSON-Schema-Test-Suite: refused, or answered with what validates.
#[test]
fn every_supported_schema_of_the_test_suite_is_kept() {
    let archive = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/assets/serve/json-schema-test-suite.tar.xz");
    if !archive.exists() {
        println!("skipped: the assets are not there");
        return;
    }
    let suite = tempfile::tempdir().unwrap();
    let status = std::process::Command::new("tar").arg("xf").arg(&archive).current_dir(suite.path()).status();
    assert!(status.unwrap().success());
    let (_dir, engine) = engine();
    let (mut kept, mut cut, mut refused, mut supported, mut huge) = (0, 0, 0, 0, 0);
    let mut wrong = Vec::new();
    for (file, draft, group) in schemas(suite.path()) {
        let schema = &group["schema"];
        let name = format!("{file}: {}", group["description"]);
        let grammar = Grammar::JsonSchema(schema.clone());
        let sampling = Sampling { grammar: Some(grammar.clone()), ..greedy(1) };
        if engine.check(&EngineRequest::new(vec![1], sampling)).is_err() {
            refused += 1;
            continue;
        }
        let Ok(validator) =
            jsonschema::options().with_draft(draft).should_validate_formats(true).build(schema)
        else {
            println!("no validator for {name}");
            continue;
        };
        supported += 1;
        for seed in 0..3 {
            match ask(&engine, grammar.clone(), Sampling { max_tokens: 200, ..warm(seed) }) {
                Err(message) => wrong.push(format!("{name}: broken off: {message}")),
                Ok(answer) if answer.finish == FinishReason::Length => cut += 1,
                Ok(answer) => match serde_json::from_str::<Value>(&answer.text) {
                    Ok(value) if validator.is_valid(&value) => kept += 1,
                    // JSON has such numbers; the parser and the validator here have not.
                    _ if has_huge_number(&answer.text) => huge += 1,
                    _ => wrong.push(format!("{name}: {schema} allowed {}", answer.text)),
                },
            }
        }
    }
    println!(
        "{supported} schemas supported, {refused} refused; answers: {kept} valid, {cut} cut, \
         {huge} with a number beyond f64, {} wrong",
        wrong.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(kept > 1000);
}

/// Whether a number has more digits than f64 keeps, or a three-digit exponent.
fn has_huge_number(text: &str) -> bool {
    let runs = text.split(|c: char| !c.is_ascii_digit());
    let longest = runs.map(str::len).max().unwrap_or(0);
    let exponent = text.match_indices(['e', 'E']).any(|(at, _)| {
        let digits = text[at + 1..].trim_start_matches(['+', '-']);
        digits.chars().take_while(char::is_ascii_digit).count() > 2
    });
    longest > 15 || exponent
}

fn schemas(suite: &std::path::Path) -> Vec<(String, jsonschema::Draft, Value)> {
    let mut all = Vec::new();
    for (name, draft) in [
        ("draft4", jsonschema::Draft::Draft4),
        ("draft6", jsonschema::Draft::Draft6),
        ("draft7", jsonschema::Draft::Draft7),
        ("draft2019-09", jsonschema::Draft::Draft201909),
        ("draft2020-12", jsonschema::Draft::Draft202012),
    ] {
        let mut folders = vec![suite.join("tests").join(name)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let groups: Vec<Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                let file = path.strip_prefix(suite).unwrap().display().to_string();
                all.extend(groups.into_iter().map(|group| (file.clone(), draft, group)));
            }
        }
    }
    all
}
