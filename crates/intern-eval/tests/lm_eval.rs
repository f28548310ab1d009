//! The same tasks as lm-evaluation-harness, prompt for prompt and score for score.
//!
//! `golden/make_lm_eval.py` ran lm-eval 0.4.13 with a model that answers by a hash of the
//! prompt; its twin is below. Killed runs and errors are tested on the same tasks.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Result, bail};
use intern_eval::{EvalConfig, run};
use intern_lm::{
    ChatRequest, ChatResponse, Completion, FinishReason, GenerateRequest, LanguageModel, Prompt, Score,
    ScoreRequest, Sink, Usage,
};
use serde_json::Value;

/// Answers by a hash; fails for good after `allowed` calls.
struct Hash {
    calls: AtomicUsize,
    allowed: usize,
}

impl Hash {
    fn new(allowed: usize) -> Self {
        Self { calls: AtomicUsize::new(0), allowed }
    }

    fn count(&self) -> Result<()> {
        if self.calls.fetch_add(1, Ordering::Relaxed) >= self.allowed {
            bail!("the server has gone away");
        }
        Ok(())
    }
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

impl LanguageModel for Hash {
    fn name(&self) -> &str {
        "hash"
    }
    fn max_context(&self) -> Option<usize> {
        None
    }
    fn generate(&self, requests: &[GenerateRequest], _: Sink) -> Result<Vec<Completion>> {
        self.count()?;
        let answer = |request: &GenerateRequest| {
            let Prompt::Text(context) = &request.prompt else { panic!("prompts are text") };
            let n = (hash(context) >> 20) % 6;
            // As a server that does not know stop strings.
            let text = format!("City {}, {n} so The answer is {n}.\n#### {n}\nQuestion: more", n % 4);
            let usage = Usage::default();
            Completion { text, tokens: Vec::new(), finish: FinishReason::Stop, usage, logprobs: None }
        };
        Ok(requests.iter().map(answer).collect())
    }
    fn score(&self, requests: &[ScoreRequest]) -> Result<Vec<Score>> {
        self.count()?;
        let answer = |request: &ScoreRequest| match request {
            ScoreRequest::Continuation { context, continuation } => {
                let h = hash(&format!("{context}\0{continuation}"));
                let logprob = -(((h >> 8) % 100_000) as f64) / 4000.0;
                Score { logprob, is_greedy: (h >> 32).is_multiple_of(4), num_tokens: 1 }
            }
            ScoreRequest::Rolling { text } => {
                let logprob = -(((hash(text) >> 8) % 100_000) as f64) / 1000.0;
                Score { logprob, is_greedy: false, num_tokens: 1 }
            }
        };
        Ok(requests.iter().map(answer).collect())
    }
    fn chat(&self, _: &ChatRequest, _: Sink) -> Result<ChatResponse> {
        bail!("not asked")
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn config() -> EvalConfig {
    EvalConfig { tasks: vec![golden("tasks")], bootstrap_iters: 3000, batch: 5, ..EvalConfig::default() }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[track_caller]
fn close(ours: &Value, theirs: &Value, what: &str) {
    match (ours.as_f64(), theirs.as_f64()) {
        (Some(a), Some(b)) => assert!((a - b).abs() <= 1e-12 * b.abs().max(1e-3), "{what}: {a} and not {b}"),
        _ => assert_eq!(ours, theirs, "{what}"),
    }
}

#[test]
fn results_are_those_of_lm_eval() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let summary = run(&config(), &Hash::new(usize::MAX), &out).unwrap();
    let theirs = json(&golden("lm_eval.json"));
    let ours = json(&out.join("results.json"));
    assert_eq!(summary.0, ours);
    for (task, scores) in theirs["results"].as_object().unwrap() {
        for (key, value) in scores.as_object().unwrap() {
            if key != "name" && key != "sample_count" {
                close(&ours["results"][task][key], value, &format!("{task} {key}"));
            }
        }
    }
    assert_eq!(ours["results"].as_object().unwrap().len(), theirs["results"].as_object().unwrap().len());
    for part in ["n-shot", "n-samples", "versions"] {
        for (task, value) in theirs[part].as_object().unwrap() {
            // Versions of tasks without one differ in form.
            if part != "versions" || value.is_number() {
                let ours = &ours[part][task];
                assert!(
                    ours == value || ours.as_f64().map(|v| v.to_string()) == value.as_str().map(String::from),
                    "{part} {task}: {ours} {value}"
                );
            }
        }
    }
    for (task, value) in theirs["higher_is_better"].as_object().unwrap() {
        if !task.ends_with("_group") {
            assert_eq!(&ours["higher_is_better"][task], value, "{task}");
        }
    }
}

#[test]
fn prompts_and_scores_of_every_document_are_those_of_lm_eval() {
    let dir = tempfile::tempdir().unwrap();
    run(&config(), &Hash::new(usize::MAX), dir.path()).unwrap();
    let text = std::fs::read_to_string(dir.path().join("samples.jsonl")).unwrap();
    let ours: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let theirs = json(&golden("lm_eval.json"));
    let mut compared = 0;
    for (task, samples) in theirs["samples"].as_object().unwrap() {
        for sample in samples.as_array().unwrap() {
            let at = format!("{task} {} {}", sample["doc_id"], sample["filter"]);
            let found = ours.iter().find(|o| {
                o["task"] == task.as_str()
                    && o["doc_id"] == sample["doc_id"]
                    && o["filter"] == sample["filter"]
            });
            let found = found.unwrap_or_else(|| panic!("{at} is missing"));
            for (i, arguments) in sample["arguments"].as_array().unwrap().iter().enumerate() {
                for (j, argument) in arguments.as_array().unwrap().iter().enumerate() {
                    if argument.is_string() {
                        assert_eq!(
                            &found["arguments"][format!("gen_args_{i}")][format!("arg_{j}")],
                            argument,
                            "{at}"
                        );
                    }
                }
            }
            for (key, value) in sample.as_object().unwrap() {
                match (key.as_str(), value) {
                    ("doc_id" | "filter" | "arguments", _) => {}
                    // A rolling score is a bare number there.
                    ("filtered_resps", Value::Array(v)) if v[0].is_number() => {
                        close(&found[key][0][0], &v[0], &at)
                    }
                    (_, Value::Array(pair)) if key.contains("per") => {
                        close(&found[key][0], &pair[0], &at);
                        close(&found[key][1], &pair[1], &at);
                    }
                    _ => close(&found[key], value, &format!("{at} {key}")),
                }
            }
            compared += 1;
        }
    }
    assert_eq!(compared, ours.len());
}

#[test]
fn an_interrupted_run_continues_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let model = Hash::new(usize::MAX);
    run(&config(), &model, &whole).unwrap();
    let needed = model.calls.into_inner();
    let mut asked = 0;
    loop {
        let model = Hash::new(4);
        let result = run(&config(), &model, &parts);
        asked += model.calls.into_inner().min(4);
        match result {
            Ok(_) => break,
            Err(error) => assert!(format!("{error:#}").contains("gone away"), "{error:#}"),
        }
        assert!(asked <= needed);
    }
    assert_eq!(asked, needed, "a continued run asks nothing twice");
    let names = |dir: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&whole), ["provenance.json", "results.json", "samples.jsonl"]);
    assert_eq!(names(&whole), names(&parts));
    for name in names(&whole) {
        assert_eq!(
            std::fs::read(whole.join(&name)).unwrap(),
            std::fs::read(parts.join(&name)).unwrap(),
            "{name:?}"
        );
    }
    // Finished: nothing is asked. Another limit: everything is.
    run(&config(), &Hash::new(0), &parts).unwrap();
    let fewer = EvalConfig { limit: Some(2), ..config() };
    let summary = run(&fewer, &Hash::new(usize::MAX), &parts).unwrap();
    assert_eq!(summary.0["n-samples"]["sums"]["effective"], 2);
    assert!(summary.table().contains("exact_match"));
}

#[test]
fn the_number_of_examples_can_be_set() {
    let dir = tempfile::tempdir().unwrap();
    let config = EvalConfig { num_fewshot: Some(1), ..config() };
    let summary = run(&config, &Hash::new(usize::MAX), dir.path()).unwrap();
    assert_eq!(summary.0["n-shot"]["sums"], 1);
    assert_eq!(summary.0["n-shot"]["animals_member"], 0, "0 in the file is final");
}

#[test]
fn errors_name_file_and_field() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("d.jsonl"), "{\"q\": \"a\", \"c\": [\"x\", \"y\"], \"g\": 0}\n").unwrap();
    let good = "task: t\ndataset_path: json\ndataset_kwargs: {data_files: {test: d.jsonl}}\ntest_split: test\n\
                output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: c\ndoc_to_target: g\n";
    let path = dir.path().join("t.yaml");
    let attempt = |yaml: &str| {
        std::fs::write(&path, yaml).unwrap();
        let config = EvalConfig { tasks: vec![path.clone()], ..EvalConfig::default() };
        run(&config, &Hash::new(usize::MAX), &dir.path().join("out"))
    };
    attempt(good).unwrap();
    let fails = |yaml: String, expected: &[&str]| {
        let error = format!("{:#}", attempt(&yaml).err().unwrap_or_else(|| panic!("{yaml}")));
        for part in expected {
            assert!(error.contains(part), "{error}\nlacks {part}");
        }
    };
    fails(
        format!("{good}doc_to_txt: q\n"),
        &["t.yaml, line 9, field `doc_to_txt`", "did you mean `doc_to_text`?"],
    );
    fails(format!("{good}process_docs: !function u.f\n"), &["field `process_docs`", "!function", "hint:"]);
    fails(format!("{good}process_results: x\n"), &["not supported", "hint: use metric_list"]);
    fails(format!("{good}repeats: 5\n"), &["field `repeats`: only 1"]);
    fails(format!("{good}num_fewshot: many\n"), &["line 9, field `num_fewshot`"]);
    fails(format!("{good}metric_list:\n  - metric: bleu\n"), &["`bleu`", "they give acc, acc_norm"]);
    fails(
        good.replace("dataset_path: json", "dataset_path: allenai/ai2_arc"),
        &["would have to be downloaded", "hint:"],
    );
    fails(good.replace("d.jsonl", "none.jsonl"), &["none.jsonl is not there"]);
    fails(good.replace("test_split: test", "test_split: dev"), &["no split `dev`", "data_files has test"]);
    fails(
        good.replace("doc_to_text: q", "doc_to_text: \"{{question}}\""),
        &["document 0", "the columns are q, c, g"],
    );
    fails(good.replace("multiple_choice", "multiple_chioce"), &["no output type `multiple_chioce`"]);
    fails(format!("{good}num_fewshot: 3\n"), &["document 0", "3 examples are wanted"]);
    std::fs::write(dir.path().join("d.jsonl"), "{\"q\": \"a\", \"c\": [\"x\"], \"g\": 0}\n{broken\n")
        .unwrap();
    fails(good.to_string(), &["d.jsonl", "line 2"]);
}

#[test]
fn the_example_configs_run() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("configs/eval/example.toml")).unwrap();
    let mut config: EvalConfig = toml::from_str(&text).unwrap();
    for task in &mut config.tasks {
        *task = root.join(&task);
    }
    let dir = tempfile::tempdir().unwrap();
    let summary = run(&config, &Hash::new(usize::MAX), dir.path()).unwrap();
    assert_eq!(summary.0["n-samples"]["mental_arithmetic"]["effective"], 50);
    let gsm8k = intern_eval::tasks::yaml::YamlFile::read(&root.join("configs/eval/gsm8k.yaml")).unwrap();
    assert_eq!(intern_eval::tasks::spec::TaskSpec::new(&gsm8k).unwrap().filters.len(), 2);
}
