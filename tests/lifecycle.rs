//! A miniature life of a model, from pages to agent, through `intern run`.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{hashes, intern, ok, stderr};

const RECIPE: &str = "tests/miniature.toml";

/// Files that may differ between equal runs: times, logs, locks, resumable state.
const VARYING: &[&str] = &[
    "metrics.jsonl",
    "tfevents",
    "run.json",
    ".lock",
    "report.html",
    "provenance.json",
    "trainer/",
    "journal",
];

#[track_caller]
fn run(out: &Path) -> serde_json::Value {
    let text = ok(&["run", RECIPE, "--out", out.to_str().expect("a plain path"), "--json"]);
    serde_json::from_str(&text).expect("--json prints JSON")
}

#[test]
fn from_pages_to_agent_and_again_for_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let out = dir.path().join("mini");
    let first = run(&out);
    let steps = first["steps"].as_array().expect("a list of steps");
    assert!(steps.iter().all(|s| s["skipped"] == false));
    for file in [
        "clean/report.html",
        "tokenizer/tokenizer.json",
        "tokens/train.bin",
        "base/checkpoint/model.safetensors",
        "tuned/checkpoint/config.json",
        "lora/adapter/adapter_model.safetensors",
        "q4_0/model.gguf",
        "eval-tuned/results.json",
        "agent-tuned/events.jsonl",
        "report.html",
    ] {
        assert!(out.join(file).exists(), "{file} is missing");
    }
    let report = std::fs::read_to_string(out.join("report.html")).expect("the report can be read");
    for part in ["Scores", "Cleaning", "Loss: base", "Steps", "viewport"] {
        assert!(report.contains(part), "the report lacks {part}");
    }
    assert!(!report.contains("src=\"http") && !report.contains("<script"), "the report is self-contained");

    let plot = dir.path().join("plot.svg");
    let runs = [out.join("base"), out.join("lora")].map(|run| run.to_string_lossy().into_owned());
    let table = ok(&["train", "plot", &runs[0], &runs[1], "--out", plot.to_str().expect("a plain path")]);
    assert!(table.contains("base") && table.contains("lora"), "{table}");
    let picture = std::fs::read_to_string(plot).expect("the plot is written");
    assert!(picture.starts_with("<svg") && picture.contains("grad_norm"), "{picture}");

    let before = hashes(&out, &[".lock"]);
    let start = Instant::now();
    let second = run(&out);
    let steps = second["steps"].as_array().expect("a list of steps");
    assert!(steps.iter().all(|s| s["skipped"] == true), "{second}");
    assert!(start.elapsed() < Duration::from_secs(20), "nothing to do took {:?}", start.elapsed());
    assert_eq!(before, hashes(&out, &[".lock"]), "a second run changed files");
}

#[test]
fn killed_again_and_again_it_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // Under one name in turn, since some outputs name their inputs.
    let (straight, killed) = (dir.path().join("straight"), dir.path().join("run"));
    run(&killed);
    std::fs::rename(&killed, &straight).expect("the finished run can be renamed");
    for milliseconds in [150, 400, 900, 1500] {
        let mut child = intern(&["run", RECIPE, "--out", killed.to_str().expect("a plain path")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().expect("SIGKILL is sent");
        child.wait().expect("the child ends");
    }
    run(&killed);
    let (a, b) = (hashes(&straight, VARYING), hashes(&killed, VARYING));
    let differing: Vec<&String> =
        a.iter().filter(|(name, hash)| b.get(*name) != Some(hash)).map(|(n, _)| n).collect();
    assert!(differing.is_empty(), "differ: {differing:?}");
}

#[test]
fn the_plan_says_what_would_run() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let out = dir.path().join("plan");
    let text = ok(&["run", RECIPE, "--out", out.to_str().expect("a plain path"), "--plan"]);
    assert!(text.contains("lessons") && text.contains("run, after lessons"), "{text}");
    assert!(!out.join("lessons").exists());
}

#[test]
fn an_unknown_setting_of_a_step_names_the_nearest() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let out = dir.path().join("x");
    let output =
        intern(&["run", RECIPE, "--out", out.to_str().expect("a plain path"), "--set", "lessons.pagse=3"])
            .output()
            .expect("the binary starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("did you mean `pages`?"), "{}", stderr(&output));
}

#[test]
fn a_training_step_is_measured_as_the_peer_prints_it() {
    let text = ok(&["train", "bench", "--shape", "quickstart", "--dtype", "bf16", "--steps", "2", "--json"]);
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect();
    assert_eq!(lines.len(), 2);
    for key in ["step", "loss", "wall_s", "cpu_s", "peak_mb"] {
        assert!(lines[1][key].as_f64().is_some(), "{key} in {}", lines[1]);
    }
    assert!(lines[1]["loss"].as_f64() < Some(9.0), "{}", lines[1]);
}

#[test]
fn a_dry_run_tells_what_a_run_takes_and_writes_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let tokenizer = dir.path().join("tokenizer");
    let documents = dir.path().join("documents.jsonl");
    let document =
        serde_json::json!({"id": "1", "text": "the cat sat on the mat and the dog ran. ".repeat(50)});
    std::fs::write(&documents, format!("{document}\n")).expect("written");
    let text = |path: &Path| path.to_str().expect("a plain path").to_owned();
    let config = dir.path().join("tokenizer.toml");
    std::fs::write(&config, format!("vocab_size = 300\ndocuments = [{:?}]\n", text(&documents)))
        .expect("written");
    ok(&["data", "tokenizer", &text(&config), "--out", &text(&tokenizer)]);
    let out = text(&dir.path().join("out"));
    let set = format!("tokenizer={}", text(&tokenizer));
    let args = ["train", "run", "configs/train/tiny-internlm2.toml", "--out", &out, "--set", &set];
    let shown = ok(&[&args[..], &["--dry-run", "--set", "parallel.data=2", "--json"]].concat());
    let forecast: serde_json::Value = serde_json::from_str(&shown).expect("--json prints JSON");
    assert_eq!((&forecast["ranks"], &forecast["sequences_per_rank"]), (&2.into(), &8.into()));
    let sent = forecast["sent_per_step"]["sums"].as_u64().expect("a number");
    assert!(Some(sent) >= forecast["parameters"].as_u64().map(|p| 4 * p), "{forecast}");
    assert!(ok(&[&args[..], &["--dry-run"]].concat()).contains("memory of a rank"));
    assert!(!Path::new(&out).exists());
    let seven = ["train", "run", "configs/train/internlm2-7b.toml", "--out", &out, "--dry-run"];
    let shown = ok(&[&seven[..], &["--device", "a100-80g"]].concat());
    assert!(
        shown.contains("8 = pipeline 2 × data 4") && shown.contains("InternEvo published 4078"),
        "{shown}"
    );
}

/// Processes that `mpirun` starts end with the bytes of one process.
#[test]
fn processes_under_mpirun_give_the_same_bytes() {
    if !intern_comm::HAS_MPI {
        eprintln!("skipped: built without the feature mpi");
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (tokenizer, tokens) = (dir.path().join("tokenizer"), dir.path().join("tokens"));
    let sentence = |i: usize| format!("{} cats and {} dogs are {} animals. ", i, i + 1, 2 * i + 1);
    let text: String = (0..400).map(sentence).collect();
    let documents = dir.path().join("documents.jsonl");
    std::fs::write(&documents, format!("{}\n", serde_json::json!({"id": "1", "text": text})))
        .expect("written");
    let config = dir.path().join("config.toml");
    std::fs::write(&config, format!("vocab_size = 300\ndocuments = [{documents:?}]\n")).expect("written");
    let plain = |path: &Path| path.to_str().expect("a plain path").to_owned();
    ok(&["data", "tokenizer", &plain(&config), "--out", &plain(&tokenizer)]);
    let settings = format!("documents = [{documents:?}]\ntokenizer = {tokenizer:?}\nvalid_fraction = 0.0\n");
    std::fs::write(&config, settings).expect("written");
    ok(&["data", "tokenize", &plain(&config), "--out", &plain(&tokens)]);
    std::fs::write(
        &config,
        format!(
            "steps = 6\nbatch_size = 4\nsave_every = 2\ntokenizer = {tokenizer:?}\n\
             [model]\nhidden_size = 32\nnum_layers = 4\nnum_heads = 4\nnum_kv_heads = 2\n\
             [data]\ntrain = {:?}\nseq_len = 32\n",
            tokens.join("train")
        ),
    )
    .expect("written");
    let config = plain(&config);
    let run = |name: &str, ranks: &str, sets: &[&str]| {
        let out = plain(&dir.path().join(name));
        let mut args = vec!["train", "run", &config, "--out", &out];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let alone = intern(&args);
        let mut command = std::process::Command::new("mpirun");
        command.args(["--allow-run-as-root", "--oversubscribe", "-n", ranks]).arg(alone.get_program());
        let output = command.args(args).current_dir(crate::support::root()).output().expect("mpirun starts");
        assert!(output.status.success(), "{}", crate::support::stderr(&output));
        [
            hashes(&dir.path().join(name).join("checkpoint"), &[]),
            hashes(&dir.path().join(name).join("trainer"), &[]),
        ]
    };
    let one = run("one", "1", &[]);
    assert_eq!(run("two", "2", &[]), one);
    assert_eq!(run("stages", "4", &["parallel.pipeline=2", "parallel.interleave=2"]), one);
    // Tensor ranks add in another order; they only have to get there.
    run("tensor", "4", &["parallel.tensor=2", "parallel.context=2"]);
}
