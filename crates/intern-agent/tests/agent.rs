//! Whole runs against a scripted model: every protocol, mistakes, and killed runs.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, bail};
use intern_agent::{AgentConfig, Protocol, ToolKind, ask, run};
use intern_format::conversation::{FunctionCall, Message, ToolCall};
use intern_lm::{
    ChatRequest, ChatResponse, Completion, FinishReason, GenerateRequest, LanguageModel, Score, ScoreRequest,
    Sink, Usage,
};
use serde_json::{Value, json};

/// A model whose next words are a function of the conversation; it fails for good after
/// `allowed` requests.
struct Scripted {
    speak: fn(&ChatRequest) -> Message,
    context: Option<usize>,
    asked: AtomicUsize,
    allowed: usize,
}

impl Scripted {
    fn new(speak: fn(&ChatRequest) -> Message) -> Self {
        Self { speak, context: None, asked: AtomicUsize::new(0), allowed: usize::MAX }
    }
}

impl LanguageModel for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }
    fn max_context(&self) -> Option<usize> {
        self.context
    }
    fn generate(&self, _: &[GenerateRequest], _: Sink) -> Result<Vec<Completion>> {
        bail!("not asked")
    }
    fn score(&self, _: &[ScoreRequest]) -> Result<Vec<Score>> {
        bail!("not asked")
    }
    fn chat(&self, request: &ChatRequest, _: Sink) -> Result<ChatResponse> {
        let length: usize = request.messages.iter().map(|m| m.content.len()).sum();
        if self.context.is_some_and(|c| length > c) {
            bail!("too long");
        }
        if self.asked.fetch_add(1, Ordering::Relaxed) >= self.allowed {
            bail!("the server has gone away");
        }
        let message = (self.speak)(request);
        let usage = Usage { prompt_tokens: length, completion_tokens: message.content.len() };
        Ok(ChatResponse { message, finish: FinishReason::Stop, usage })
    }
}

fn said(text: impl Into<String>) -> Message {
    Message::new("assistant", text)
}

/// The numbers in the question `a + b?`, and the last tool result if there is one.
fn situation(request: &ChatRequest) -> (String, Option<String>) {
    let question = request.messages.iter().find(|m| m.role == "user").unwrap().content.clone();
    let expression = question.trim_end_matches('?').to_string();
    let result = request
        .messages
        .iter()
        .rev()
        .find(|m| m.role == "tool" || m.content.starts_with("Response: "))
        .map(|m| m.content.trim_start_matches("Response: ").to_string());
    (expression, result)
}

fn internlm2(request: &ChatRequest) -> Message {
    assert!(request.raw && request.sampling.keep_special && request.tools.len() == 1);
    match situation(request) {
        (_, Some(result)) => said(format!("It is {result}.<|im_end|>")),
        (expression, None) => said(format!(
            "<|action_start|><|plugin|>\n{}<|action_end|><|im_end|>",
            json!({"name": "calculator", "parameters": {"expression": expression}})
        )),
    }
}

fn react(request: &ChatRequest) -> Message {
    assert!(request.tools.is_empty());
    match situation(request) {
        (_, Some(result)) => said(format!("Thought: I know\nFinal Answer: {result}")),
        (expression, None) => {
            said(format!("Thought: compute\nAction: calculator\nAction Input: {expression}"))
        }
    }
}

fn openai(request: &ChatRequest) -> Message {
    match situation(request) {
        (_, Some(result)) => said(format!("It is {result}.")),
        (expression, None) => {
            let mut message = said("");
            let function =
                FunctionCall { name: "calculator".into(), arguments: json!({"expression": expression}) };
            message.tool_calls.push(ToolCall { id: "call_0".into(), kind: "function".into(), function });
            message
        }
    }
}

fn config(dir: &Path, protocol: Protocol, problems: usize) -> AgentConfig {
    let path = dir.join("problems.jsonl");
    let lines: Vec<String> = (0..problems)
        .map(|i| {
            let lang = ["en", "zh"][i % 2];
            json!({"id": format!("p{i}"), "question": format!("{i} + 7?"), "answer": i + 7, "lang": lang})
                .to_string()
        })
        .collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    AgentConfig {
        protocol,
        tools: vec![ToolKind::Calculator],
        problems: Some(path),
        batch: 3,
        max_turns: 4,
        ..AgentConfig::default()
    }
}

fn events(out: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(out.join("events.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn every_protocol_solves_problems() {
    for (protocol, speak) in [
        (Protocol::Internlm2, internlm2 as fn(&ChatRequest) -> Message),
        (Protocol::React, react),
        (Protocol::Openai, openai),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        let summary = run(&config(dir.path(), protocol, 8), &Scripted::new(speak), &out).unwrap();
        assert_eq!((summary.score.correct, summary.score.total), (8, 8), "{protocol:?}");
        assert_eq!((summary.tool_used, summary.tool_errors, summary.turns), (8, 0, 16));
        assert_eq!(summary.by_lang["zh"].correct, 4);
        let events = events(&out);
        let kinds: Vec<&str> = events[..6].iter().map(|e| e["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["question", "assistant", "tool_call", "tool_result", "assistant", "answer"]);
        assert_eq!(events[2]["gen_ai.tool.name"], "calculator");
        assert_eq!(events[2]["call"], "calculator(expression: \"0 + 7\")");
        assert_eq!(events[3]["content"], "7");
        assert_eq!(events[5]["correct"], true);
        for (i, event) in events.iter().enumerate() {
            assert_eq!(event["seq"], i);
        }
        assert!(out.join("provenance.json").exists());
    }
}

#[test]
fn mistakes_are_answered_and_counted() {
    // An unknown tool, then a call that cannot be read, then wrong arguments, then an answer.
    fn clumsy(request: &ChatRequest) -> Message {
        let call = |text: &str| said(format!("<|action_start|><|plugin|>\n{text}<|action_end|>"));
        match request.messages.iter().filter(|m| m.role == "assistant").count() {
            0 => call("{\"name\": \"abacus\", \"parameters\": {}}"),
            1 => call("{\"name\": "),
            2 => call("{\"name\": \"calculator\", \"parameters\": {\"sum\": \"1\"}}"),
            _ => {
                let heard: Vec<&str> = request
                    .messages
                    .iter()
                    .filter(|m| m.role == "tool")
                    .map(|m| m.content.as_str())
                    .collect();
                assert!(heard[0].contains("there is no tool `abacus`. Tools: calculator"), "{heard:?}");
                assert!(heard[1].contains("could not be read"), "{heard:?}");
                assert!(heard[2].contains("`expression` is missing"), "{heard:?}");
                said("7")
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let summary =
        run(&config(dir.path(), Protocol::Internlm2, 1), &Scripted::new(clumsy), &dir.path().join("out"))
            .unwrap();
    assert_eq!((summary.tool_calls, summary.tool_errors, summary.malformed), (2, 2, 1));
    assert_eq!(summary.score.correct, 1);
}

#[test]
fn an_episode_ends_at_the_turn_limit() {
    let endless = |_: &ChatRequest| said("Action: calculator\nAction Input: 1");
    let dir = tempfile::tempdir().unwrap();
    let summary =
        run(&config(dir.path(), Protocol::React, 4), &Scripted::new(endless), &dir.path().join("out"))
            .unwrap();
    assert_eq!(summary.outcomes["turn_limit"], 4);
    assert_eq!((summary.answered, summary.score.correct, summary.turns), (0, 0, 16));
}

#[test]
fn a_conversation_that_outgrows_the_model_is_not_the_end_of_the_run() {
    fn talkative(request: &ChatRequest) -> Message {
        let (expression, result) = situation(request);
        match result {
            Some(result) if expression != "1 + 7" => said(result),
            _ => said(format!(
                "{}<|action_start|><|plugin|>{{\"name\": \"calculator\", \"parameters\": {{\"expression\": \"{expression}\"}}}}",
                "so ".repeat(200)
            )),
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let model = Scripted { context: Some(1000), ..Scripted::new(talkative) };
    let summary = run(&config(dir.path(), Protocol::Internlm2, 4), &model, &dir.path().join("out")).unwrap();
    assert_eq!(summary.outcomes["context_full"], 1);
    assert_eq!((summary.score.correct, summary.score.total), (3, 4));
}

#[test]
fn an_interrupted_run_continues_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), Protocol::Internlm2, 8);
    let whole = dir.path().join("whole");
    run(&config, &Scripted::new(internlm2), &whole).unwrap();
    let parts = dir.path().join("parts");
    let mut tries = 0;
    loop {
        let model = Scripted { allowed: 7, ..Scripted::new(internlm2) };
        tries += 1;
        match run(&config, &model, &parts) {
            Ok(_) => break,
            Err(error) => assert!(error.to_string().contains("gone away"), "{error}"),
        }
        assert!(tries < 10);
    }
    assert_eq!(tries, 3);
    for name in ["events.jsonl", "results.json", "provenance.json"] {
        assert_eq!(
            std::fs::read(whole.join(name)).unwrap(),
            std::fs::read(parts.join(name)).unwrap(),
            "{name}"
        );
    }
    // A finished run asks nothing; another config starts over.
    let silent = Scripted { allowed: 0, ..Scripted::new(internlm2) };
    assert_eq!(run(&config, &silent, &parts).unwrap().score.correct, 8);
    let other = AgentConfig { limit: Some(2), ..config };
    assert_eq!(run(&other, &Scripted::new(internlm2), &parts).unwrap().problems, 2);
}

#[test]
fn one_question_shows_its_transcript() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), Protocol::React, 1);
    let mut lines = Vec::new();
    let answer =
        ask(&config, &Scripted::new(react), "20 + 22?", &mut |e| lines.extend(e.readable())).unwrap();
    assert_eq!(answer, "42");
    assert_eq!(lines[0], " question  20 + 22?");
    assert_eq!(lines[2], "    calls  calculator(expression: \"20 + 22\")");
    assert_eq!(lines[3], "     tool  42");
}

#[test]
fn errors_tell_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |config: &AgentConfig, expected: &str| {
        let error = format!("{:#}", run(config, &Scripted::new(react), &dir.path().join("out")).unwrap_err());
        assert!(error.contains(expected), "{error}");
    };
    let good = config(dir.path(), Protocol::React, 1);
    fails(&AgentConfig { problems: None, ..good.clone() }, "nothing to do");
    fails(&AgentConfig { tools: vec![ToolKind::File], ..good.clone() }, "file.root");
    fails(&AgentConfig { max_turns: 0, ..good.clone() }, "at least 1");
    let path = dir.path().join("bad.jsonl");
    std::fs::write(&path, "{\"question\": \"a\"}\n{\"questoin\": \"b\"}\n").unwrap();
    fails(&AgentConfig { problems: Some(path.clone()), ..good.clone() }, "line 2");
    std::fs::write(&path, "").unwrap();
    fails(&AgentConfig { problems: Some(path), ..good }, "no problems");
}

#[test]
fn the_example_configs_are_valid() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for name in ["calculator", "react", "notes"] {
        let text = std::fs::read_to_string(root.join(format!("configs/agent/{name}.toml"))).unwrap();
        let config: AgentConfig = toml::from_str(&text).unwrap();
        if let Some(problems) = &config.problems {
            assert_eq!(intern_agent::problems::read(&root.join(problems), None).unwrap().len(), 20);
        }
    }
}
