//! What the program says when something is wrong: message, hint, exit code.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{hashes, intern, ok, root, stderr};

/// Runs `args`; they must fail with `code`, and say each of `words`.
#[track_caller]
fn check(args: &[&str], code: i32, words: &[&str]) {
    let output = intern(args).output().expect("the binary starts");
    check_output(&output, code, words, &args.join(" "));
}

#[track_caller]
fn check_output(output: &Output, code: i32, words: &[&str], what: &str) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(code), "intern {what}\n{said}");
    for word in words {
        assert!(said.contains(word), "intern {what}: no `{word}` in:\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
}

/// A directory with one file in it.
fn with_file(name: &str, bytes: &[u8]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).expect("the file can be written");
    let shown = path.display().to_string();
    (dir, shown)
}

#[test]
fn a_missing_recipe() {
    check(&["run", "no/such.toml"], 1, &["error:", "no/such.toml", "hint:"]);
}

#[test]
fn an_unknown_subcommand_is_a_usage_error() {
    check(&["dta"], 2, &["dta", "data"]);
}

#[test]
fn a_checkpoint_that_is_none() {
    let (dir, _) = with_file("x.txt", b"x");
    let out = dir.path().join("o.gguf").display().to_string();
    let model = dir.path().display().to_string();
    check(&["serve", "quantize", &model, "--type", "q4_0", "--out", &out], 1, &["error:", &model, "hint:"]);
    assert!(!std::path::Path::new(&out).exists());
}

#[test]
fn a_hub_out_of_reach() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let out = dir.path().join("l.safetensors").display().to_string();
    let args = ["serve", "logits", "hf:org/name", "--tokens", "1,2", "--out", &out];
    let output = intern(&args)
        .env("HF_ENDPOINT", "http://127.0.0.1:1")
        .env("INTERN_CACHE", dir.path())
        .output()
        .expect("the binary starts");
    let words = ["error:", "http://127.0.0.1:1/api/models/org/name", "hint: check the connection"];
    check_output(&output, 1, &words, "without a hub");
    let args = ["serve", "logits", "hf:name", "--tokens", "1,2", "--out", &out];
    check(&args, 1, &["hf:name is no address", "hint: hf:ORG/NAME"]);
}

#[test]
fn two_adapters_to_merge() {
    let args = ["serve", "api", "model.gguf", "--adapter", "one", "--adapter", "two"];
    check(&args, 1, &["error:", "two adapters", "hint:", "--adapter NAME=DIR"]);
}

#[test]
fn a_gguf_that_is_none() {
    let (dir, path) = with_file("x.gguf", b"not a model at all, but long enough to look at");
    let out = dir.path().join("l.safetensors").display().to_string();
    check(&["serve", "logits", &path, "--tokens", "1,2", "--out", &out], 1, &["error:", "x.gguf"]);
}

#[test]
fn an_unknown_key_names_the_nearest() {
    let (_dir, path) = with_file("r.toml", b"[dedupe]\n");
    check(
        &["data", "run", &path, "--out", "runs/never"],
        1,
        &["r.toml", "`dedupe`", "did you mean `dedup`?"],
    );
}

#[test]
fn an_empty_corpus() {
    let (dir, documents) = with_file("d.jsonl", b"");
    let config = dir.path().join("t.toml");
    std::fs::write(&config, format!("documents = [{documents:?}]\nvocab_size = 300\n")).expect("written");
    let out = dir.path().join("out").display().to_string();
    let config = config.display().to_string();
    check(&["data", "tokenizer", &config, "--out", &out], 1, &["error:", "hint:"]);
}

#[test]
fn a_broken_line_is_named() {
    let (dir, documents) = with_file("d.jsonl", b"{\"id\":\"a\",\"text\":\"x\"}\n{broken\n");
    let config = dir.path().join("t.toml");
    std::fs::write(&config, format!("documents = [{documents:?}]\nvocab_size = 300\n")).expect("written");
    let out = dir.path().join("out").display().to_string();
    let config = config.display().to_string();
    check(&["data", "tokenizer", &config, "--out", &out], 1, &["d.jsonl", "line 2"]);
}

#[test]
fn bad_utf8_in_a_config() {
    let (_dir, path) = with_file("r.toml", b"title = \"\xff\"\n");
    check(&["run", &path], 1, &["error:", "r.toml"]);
}

#[test]
fn a_wrong_shape_names_tensor_expected_and_found() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let model = dir.path().join("model");
    std::fs::create_dir(&model).expect("created");
    let golden = root().join("crates/intern-model/tests/golden/internlm2");
    std::fs::copy(golden.join("model.safetensors"), model.join("model.safetensors")).expect("copied");
    let config = std::fs::read_to_string(golden.join("config.json")).expect("a config");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    config["intermediate_size"] = 96.into();
    std::fs::write(model.join("config.json"), config.to_string()).expect("written");
    let (model, out) = (model.display().to_string(), dir.path().join("o").display().to_string());
    let words = ["error:", "feed_forward.w1.weight", "[48, 32]", "[96, 32]", "config.json", "hint:"];
    check(&["serve", "logits", &model, "--tokens", "1,2", "--out", &out], 1, &words);
    check(&["train", "convert", &model, "--to", "llama", "--out", &out], 1, &words);
    assert!(!Path::new(&out).exists());
}

#[test]
fn a_port_in_use() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("its address").port().to_string();
    // The port is asked for before any model is looked at.
    check(
        &["serve", "api", "model.gguf", "--port", &port],
        1,
        &["error:", &format!("127.0.0.1:{port}"), "the port is in use", "hint:", "--port"],
    );
}

/// `intern data synth`, large enough to be cut short.
fn lessons(out: &Path) -> Vec<String> {
    let config = root().join("configs/data/synth.toml").display().to_string();
    let words = ["data", "synth", &config, "--out", &out.display().to_string(), "--set", "pages=150"];
    words.map(str::to_string).into()
}

/// After `output` failed for want of space in `out`, the same command must end as if nothing had been.
#[track_caller]
fn continues(output: &Output, words: &[&str], args: &[String], out: &Path, untroubled: &Path) {
    check_output(output, 1, words, &args.join(" "));
    assert!(!out.join("provenance.json").exists(), "a half-written directory looks finished");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    ok(&args);
    assert_eq!(hashes(out, &["provenance.json"]), hashes(untroubled, &["provenance.json"]));
}

#[test]
fn out_of_disk() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (straight, out) = (dir.path().join("straight"), dir.path().join("out"));
    let args = lessons(&straight);
    ok(&args.iter().map(String::as_str).collect::<Vec<_>>());

    // A limit on the size of files fails the same calls as a full disk does.
    let args = lessons(&out);
    let binary = env!("CARGO_BIN_EXE_intern");
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$@\"";
    let limited = Command::new("sh").args(["-c", script, "sh", binary]).args(&args).output().expect("sh");
    continues(
        &limited,
        &["error:", "gold.jsonl", "hint:", "run the same command again"],
        &args,
        &out,
        &straight,
    );

    // A disk that is really full, where the system lets us mount one of 64 KiB.
    let small = dir.path().join("small");
    std::fs::create_dir(&small).expect("created");
    let args = lessons(&small.join("out"));
    let script = "mount -t tmpfs -o size=64k tmpfs \"$0\" || exit 77; exec \"$@\"";
    let full = Command::new("unshare")
        .args(["-rm", "sh", "-c", script])
        .arg(&small)
        .arg(binary)
        .args(&args)
        .output();
    match full {
        Ok(output) if output.status.code() == Some(1) && !stderr(&output).contains("unshare") => {
            let words = ["error:", "No space left", "hint: the disk is full", "run the same command again"];
            check_output(&output, 1, &words, "data synth on a full disk");
        }
        _ => eprintln!("no mount of our own here: a full disk was not tried"),
    }
}

/// Sends `signal` once `file` is there; what the command said.
#[track_caller]
fn interrupt(args: &[&str], file: &Path, signal: &str) -> Output {
    let child = intern(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let start = Instant::now();
    while !file.exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "{} did not appear", file.display());
        std::thread::sleep(Duration::from_millis(5));
    }
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill");
    assert!(sent.success());
    child.wait_with_output().expect("the child ends")
}

#[test]
fn an_interrupted_run_says_how_to_continue_and_does() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (straight, out) = (dir.path().join("straight"), dir.path().join("run"));
    let out_name = out.display().to_string();
    let steps = ["--only", "lessons,clean,tokenizer,tokens,base"];
    // Long enough to be caught training.
    let long = ["run", "tests/miniature.toml", "--out", &out_name, "--set", "base.steps=150"];
    let args: Vec<&str> = long.into_iter().chain(steps).collect();
    ok(&args);
    std::fs::rename(&out, &straight).expect("the finished run can be renamed");

    let early = interrupt(&args, &out.join("lessons/pages"), "-TERM");
    check_output(&early, 143, &["interrupted", "hint: run the same command again; it continues"], "run");
    let training = interrupt(&args, &out.join("base/metrics.jsonl"), "-INT");
    let words = ["error:", "stopped at step", "the state is saved", "hint: the same command continues"];
    check_output(&training, 130, &words, "run");
    ok(&args);
    let varying =
        ["metrics.jsonl", "tfevents", "run.json", ".lock", "report.html", "provenance.json", "trainer/"];
    assert_eq!(hashes(&out, &varying), hashes(&straight, &varying));
}
