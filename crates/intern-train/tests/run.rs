//! Whole small runs: learning, accumulation, resuming, threads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use intern_format::metrics;
use intern_format::provenance::hash_path;
use intern_format::shards::{DType, ShardWriter};
use intern_kernels::rng::Rng;
use intern_tokenizer::Tokenizer;
use intern_tokenizer::train::{BpeConfig, train_bpe};
use intern_train::TrainConfig;
use intern_train::forecast::Forecast;
use intern_train::pretrain::{Options, Summary, run, run_with};
use serde_json::{Value, json};

/// A tokenizer and the shards `train` and `valid` of sentences with some structure.
fn prepare(dir: &Path) -> Tokenizer {
    let mut rng = Rng::new(1, 0);
    let mut sentence = || {
        let (a, b) = (rng.below(30), rng.below(30));
        format!("If you have {a} apples and get {b} more, you have {} apples.", a + b)
    };
    let sentences: Vec<String> = (0..300).map(|_| sentence()).collect();
    let config = BpeConfig { special_tokens: vec!["<s>".into(), "</s>".into()], ..BpeConfig::new(300) };
    let tokenizer = train_bpe(&config, &mut sentences.iter().cloned()).unwrap();
    tokenizer.save(&dir.join("tokenizer")).unwrap();
    for (name, part) in [("train", &sentences[30..]), ("valid", &sentences[..30])] {
        let mut writer = ShardWriter::create(&dir.join(name), DType::U16).unwrap();
        for text in part {
            let mut ids = tokenizer.encode(text, false).unwrap();
            ids.extend(tokenizer.token_to_id("</s>"));
            writer.push(&ids).unwrap();
        }
        writer.finish().unwrap();
    }
    tokenizer
}

fn config(dir: &Path, patch: Value) -> TrainConfig {
    let mut config = json!({
        "steps": 30, "batch_size": 8, "seed": 5, "save_every": 7, "eval_every": 10,
        "tokenizer": dir.join("tokenizer"),
        "model": {"architecture": "internlm2", "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2},
        "data": {"train": dir.join("train"), "valid": dir.join("valid"), "seq_len": 32},
        "optimizer": {"lr": 0.01}, "schedule": {"warmup_steps": 3},
    });
    config.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
    serde_json::from_value(config).unwrap()
}

/// A run that ends after an update, as if interrupted.
fn run_until(config: &TrainConfig, out: &Path, stop_after: Option<u64>) -> anyhow::Result<Summary> {
    run_with(config, out, &Options { stop_after, ..Options::default() })
}

fn without_times(out: &Path) -> Vec<Value> {
    let rows = metrics::read(out).unwrap();
    let kept = rows.into_iter().map(|mut row| {
        let varies = ["time", "tokens_per_second", "sent_bytes", "memory_mb"];
        row.retain(|k, _| !varies.contains(&k.as_str()) && !k.starts_with("seconds_"));
        Value::Object(row)
    });
    kept.collect()
}

#[test]
fn a_run_learns_and_leaves_a_whole_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = prepare(dir.path());
    let out = dir.path().join("out");
    let config = config(dir.path(), json!({}));
    let summary = run(&config, &out).unwrap();
    let (first, last) = (summary.first_valid_loss.unwrap(), summary.valid_loss.unwrap());
    assert!((first - (tokenizer.vocab_size() as f64).ln()).abs() < 0.5, "{first}");
    assert!(last < first - 1.5 && summary.train_loss < first - 1.5, "{summary:?}");

    let saved = Tokenizer::from_path(&out.join("checkpoint")).unwrap();
    assert_eq!(saved.vocab_size(), tokenizer.vocab_size());
    for name in ["config.json", "generation_config.json"] {
        let value: Value = intern_format::atomic::read_json(&out.join("checkpoint").join(name)).unwrap();
        assert_eq!(value["eos_token_id"], json!(tokenizer.eos_id().unwrap()), "{name}");
    }
    let rows = without_times(&out);
    assert_eq!(
        rows.iter().map(|r| r["step"].as_u64().unwrap()).collect::<Vec<_>>(),
        (0..=30).collect::<Vec<_>>()
    );
    let evaluated: Vec<u64> =
        rows.iter().filter(|r| r.get("valid_loss").is_some()).map(|r| r["step"].as_u64().unwrap()).collect();
    assert_eq!(evaluated, [0, 10, 20, 30]);

    // Done is done; another seed starts over.
    let again = run(&config, &out).unwrap();
    assert_eq!((again.tokens, again.checkpoint), (summary.tokens, summary.checkpoint.clone()));
    assert_eq!(without_times(&out).len(), 31);
    let other = TrainConfig { seed: 6, ..config };
    assert_ne!(run(&other, &out).unwrap().train_loss, summary.train_loss);
    assert_eq!(without_times(&out).len(), 31);
}

#[test]
fn a_checkpoint_can_be_the_start() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let end = run(&config(dir.path(), json!({})), &first).unwrap();
    let model = json!({"init_from": first.join("checkpoint")});
    let again =
        run(&config(dir.path(), json!({"model": model, "steps": 5, "tokenizer": null})), &second).unwrap();
    let difference = (again.first_valid_loss.unwrap() - end.valid_loss.unwrap()).abs();
    assert!(difference < 1e-6, "{difference}");
}

#[test]
fn the_same_bits_however_the_work_is_shared_out() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let mut first = None;
    let cases = [
        (8, 1, json!({})),
        (8, 2, json!({"zero": 0})),
        (1, 3, json!({})),
        (2, 2, json!({"zero": 0})),
        (8, 2, json!({"data": 2})),
        (2, 1, json!({"data": 2, "zero": 0})),
        (1, 2, json!({"data": 4})),
        (8, 4, json!({"data": 3, "zero": 0})),
        (8, 2, json!({"pipeline": 2})),
        (8, 1, json!({"pipeline": 4, "zero": 0})),
        (4, 2, json!({"pipeline": 2, "data": 2})),
        (8, 2, json!({"pipeline": 2, "interleave": 2, "data": 2})),
        (8, 2, json!({"zero": 3})),
        (2, 2, json!({"zero": 3, "data": 2})),
        (3, 1, json!({"zero": 3, "data": 3})),
    ];
    for (i, (micro_batch, threads, parallel)) in cases.into_iter().enumerate() {
        let out = dir.path().join("out");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let case = format!("{micro_batch} at once, {threads} threads, {parallel}");
        let patch = json!({
            "steps": 6, "micro_batch": micro_batch, "recompute": 0.5 * (i % 3) as f64, "parallel": parallel,
            "model": {"hidden_size": 32, "num_layers": 5, "num_heads": 4, "num_kv_heads": 2},
        });
        pool.install(|| run(&config(dir.path(), patch), &out)).unwrap();
        let hashes = ["checkpoint", "trainer"].map(|part| hash_path(&out.join(part)).unwrap());
        let rows = without_times(&out);
        let (expect, expect_rows) = first.get_or_insert_with(|| (hashes.clone(), rows.clone()));
        assert_eq!(expect, &hashes, "{case}");
        assert_eq!(expect_rows, &rows);
        std::fs::remove_dir_all(&out).unwrap();
    }
}

/// Muon, moments in 8 bits, averages and groups, stopped and going on under another grid.
#[test]
fn every_optimizer_gives_the_same_bits_on_any_grid() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let group = json!([{"match": "*.norm.weight", "lr": 2.0}]);
    for optimizer in [
        json!({"kind": "muon", "lr": 0.01, "ema": 0.9, "group": group}),
        json!({"moments": "8bit", "lr": 0.01, "ema": 0.9}),
    ] {
        let on = |parallel: Value, more: Value| {
            let mut patch = json!({
                "steps": 8, "save_every": 2, "keep_every": 4, "parallel": parallel, "optimizer": optimizer,
                "model": {"hidden_size": 64, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "mup_base": 32},
            });
            patch.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            config(dir.path(), patch)
        };
        let straight = dir.path().join("straight");
        let summary = run(&on(json!({}), json!({})), &straight).unwrap();
        assert!(summary.valid_loss.unwrap() < summary.first_valid_loss.unwrap() - 0.5, "{summary:?}");
        let moved = dir.path().join("moved");
        for (stop, parallel, more) in [
            (Some(3), json!({"data": 3}), json!({"save_async": true})),
            (Some(4), json!({"data": 2, "zero": 3}), json!({"save_async": true})),
            (Some(5), json!({"pipeline": 3, "data": 2, "zero": 0}), json!({})),
            (None, json!({"pipeline": 3, "data": 2}), json!({"save_async": true})),
        ] {
            assert_eq!(run_until(&on(parallel, more), &moved, stop).is_ok(), stop.is_none());
        }
        for part in ["checkpoint", "checkpoint-ema", "trainer"] {
            assert_eq!(
                hash_path(&moved.join(part)).unwrap(),
                hash_path(&straight.join(part)).unwrap(),
                "{part}"
            );
        }
        assert_ne!(
            hash_path(&straight.join("checkpoint/model.safetensors")).unwrap(),
            hash_path(&straight.join("checkpoint-ema/model.safetensors")).unwrap()
        );
        let kept: Vec<_> = [4, 6, 8].map(|n| straight.join(format!("trainer/step-{n}")).is_dir()).into();
        assert_eq!(kept, [true, false, true]);
        [straight, moved].iter().for_each(|out| std::fs::remove_dir_all(out).unwrap());
    }
}

#[test]
fn sequences_grow_sources_are_told_apart_and_samples_are_written() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let patch = |parallel: Value| {
        json!({
            "steps": 9, "save_every": 2, "eval_every": 4, "parallel": parallel,
            "samples": {"prompts": ["If you have", ""], "every": 3, "tokens": 6},
            "data": {
                "train": dir.path().join("train"), "seq_len": 32, "curriculum": {"start": 8, "every": 3},
                "valid": {"a": dir.path().join("valid"), "b": dir.path().join("train")},
            },
        })
    };
    let (straight, stopped) = (dir.path().join("straight"), dir.path().join("stopped"));
    run(&config(dir.path(), patch(json!({}))), &straight).unwrap();
    for row in without_times(&straight).iter().filter(|r| r["step"].as_u64().unwrap() % 4 == 0) {
        let of = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name} in {row}"));
        let (a, b, all) = (of("valid_loss.a"), of("valid_loss.b"), of("valid_loss"));
        assert!(a != b && (a.min(b)..a.max(b)).contains(&all), "{row}");
    }
    let samples = std::fs::read_to_string(straight.join("samples.jsonl")).unwrap();
    let steps: Vec<u64> = samples
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, [3, 3, 6, 6, 9, 9]);
    // Stopped between a sample and the next, and gone on by two ranks.
    assert!(run_until(&config(dir.path(), patch(json!({}))), &stopped, Some(7)).is_err());
    run(&config(dir.path(), patch(json!({"data": 2}))), &stopped).unwrap();
    assert_eq!(std::fs::read_to_string(stopped.join("samples.jsonl")).unwrap(), samples);
    assert_eq!(without_times(&stopped), without_times(&straight));
    for part in ["checkpoint", "trainer"] {
        assert_eq!(
            hash_path(&stopped.join(part)).unwrap(),
            hash_path(&straight.join(part)).unwrap(),
            "{part}"
        );
    }
    let error = run(&config(dir.path(), patch(json!({"pipeline": 2}))), &stopped).unwrap_err().to_string();
    assert!(error.contains("samples.prompts needs the whole model"), "{error}");
}

#[test]
fn ranks_send_no_more_than_the_forecast_says() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    for parallel in [
        json!({"data": 2}),
        json!({"data": 4}),
        json!({"data": 2, "zero": 0}),
        json!({"data": 2, "zero": 3}),
        json!({"data": 4, "zero": 3}),
        json!({"pipeline": 2}),
        json!({"pipeline": 2, "interleave": 2, "data": 2}),
        json!({"tensor": 2}),
        json!({"context": 2}),
        json!({"context": 2, "tensor": 2, "data": 2}),
    ] {
        let out = dir.path().join("out");
        let model = json!({"hidden_size": 64, "num_layers": 5, "num_heads": 4, "num_kv_heads": 2});
        for recompute in [0.0, 1.0] {
            let patch = json!({"steps": 3, "parallel": parallel, "model": model, "eval_every": 0, "recompute": recompute});
            let config = config(dir.path(), patch);
            let forecast = Forecast::new(&config).unwrap().sent_per_step.total as f64;
            run(&config, &out).unwrap();
            for row in metrics::read(&out).unwrap().iter().filter_map(|r| r.get("sent_bytes")?.as_f64()) {
                assert!(
                    row <= forecast && row > 0.7 * forecast,
                    "{parallel}: sent {row}, forecast {forecast}"
                );
            }
            std::fs::remove_dir_all(&out).unwrap();
        }
    }
}

/// Ranks that share a layer or a sequence add in another order, and agree as closely as that allows.
#[test]
fn nearly_the_same_where_layers_and_sequences_are_shared() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    for architecture in ["internlm2", "qwen3", "qwen2"] {
        let losses = |parallel: Value| -> Vec<f64> {
            let out = dir.path().join("out");
            let patch = json!({
                "steps": 50, "parallel": parallel, "optimizer": {"lr": 1e-3}, "eval_every": 0,
                "model": {"architecture": architecture, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2},
            });
            run(&config(dir.path(), patch), &out).unwrap();
            let rows = metrics::read(&out).unwrap();
            std::fs::remove_dir_all(&out).unwrap();
            rows.iter().filter_map(|r| r.get("loss")?.as_f64()).collect()
        };
        let alone = losses(json!({}));
        for parallel in [
            json!({"tensor": 2}),
            json!({"tensor": 2, "pipeline": 2, "data": 2}),
            json!({"tensor": 2, "data": 2, "zero": 0}),
            json!({"context": 2}),
            json!({"context": 3, "pipeline": 2}),
            json!({"context": 2, "tensor": 2}),
        ] {
            let shared = losses(parallel.clone());
            assert_eq!(shared.len(), 50);
            for (step, (a, b)) in alone.iter().zip(&shared).enumerate() {
                assert!((a - b).abs() < 1e-5 * a, "{architecture} {parallel}, step {step}: {a} and {b}");
            }
        }
    }
}

#[test]
fn a_run_continues_on_another_number_of_ranks() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let (straight, moved) = (dir.path().join("straight"), dir.path().join("moved"));
    let on = |ranks: usize, zero: usize| {
        let parallel = match ranks {
            4 => json!({"pipeline": 2, "data": 2, "zero": zero}),
            ranks => json!({"data": ranks, "zero": zero}),
        };
        let rampup = json!({"start": 2, "increment": 3, "every": 2});
        config(dir.path(), json!({"steps": 12, "parallel": parallel, "batch_rampup": rampup}))
    };
    run(&on(1, 1), &straight).unwrap();
    for (ranks, zero, stop) in [(2, 1, 3), (4, 0, 4), (1, 1, 9)] {
        let error = run_until(&on(ranks, zero), &moved, Some(stop)).unwrap_err().to_string();
        assert!(error.contains(&format!("stopped at step {stop} of 12")), "{error}");
    }
    run(&on(3, 1), &moved).unwrap();
    assert_eq!(without_times(&moved), without_times(&straight));
    for part in ["checkpoint", "trainer"] {
        assert_eq!(hash_path(&moved.join(part)).unwrap(), hash_path(&straight.join(part)).unwrap(), "{part}");
    }
}

#[test]
fn a_stopped_run_ends_as_if_it_had_not_been() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let (straight, stopped) = (dir.path().join("straight"), dir.path().join("stopped"));
    let config = config(dir.path(), json!({}));
    let summary = run(&config, &straight).unwrap();
    for stop in [1, 7, 12, 29] {
        let error = run_until(&config, &stopped, Some(stop)).unwrap_err().to_string();
        assert!(error.contains(&format!("stopped at step {stop} of 30")), "{error}");
    }
    // As if killed after step 29 was logged but before it was saved.
    std::fs::remove_dir_all(stopped.join("trainer/step-29")).unwrap();
    let resumed = run(&config, &stopped).unwrap();
    assert_eq!(without_times(&stopped), without_times(&straight));
    assert_eq!(resumed.valid_loss, summary.valid_loss);
    assert_eq!(resumed.train_loss, summary.train_loss);
    for part in ["checkpoint", "trainer"] {
        let hash = |out: &PathBuf| hash_path(&out.join(part)).unwrap();
        assert_eq!(hash(&stopped), hash(&straight), "{part}");
    }
}

#[test]
fn a_diverging_run_names_the_step() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let wild = json!({"optimizer": {"lr": 1e30}, "schedule": {}});
    let error = format!("{:#}", run(&config(dir.path(), wild), &dir.path().join("out")).unwrap_err());
    assert!(error.contains("of step ") && error.contains("hint: lower optimizer.lr"), "{error}");
    // The sequences of the step are there to be looked at.
    let written = std::fs::read_dir(dir.path().join("out/diverged")).unwrap().next().unwrap().unwrap().path();
    assert!(error.contains(&written.display().to_string()), "{error}");
    let lines = std::fs::read_to_string(written).unwrap();
    let rows: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((rows.len(), rows[0]["tokens"].as_array().unwrap().len()), (8, 32));
}

/// A guard that skips much makes the same run on one rank and on several, interrupted and not.
#[test]
fn what_the_guard_skips_depends_on_the_values_alone() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let patch = |parallel: Value| {
        let guard = json!({"z": 0.1, "warmup": 3, "window": 8, "patience": 100});
        config(
            dir.path(),
            json!({"steps": 40, "guard": guard, "parallel": parallel, "optimizer": {"lr": 0.05}}),
        )
    };
    let (straight, moved) = (dir.path().join("straight"), dir.path().join("moved"));
    run(&patch(json!({})), &straight).unwrap();
    let skipped = without_times(&straight).iter().filter(|row| row.get("skipped").is_some()).count();
    assert!((1..30).contains(&skipped), "{skipped}");
    let trace = dir.path().join("trace.json");
    let options = Options { stop_after: Some(11), profile: Some(trace.clone()) };
    run_with(&patch(json!({"data": 2})), &moved, &options).unwrap_err();
    let events: Value = intern_format::atomic::read_json(&trace).unwrap();
    assert!(events["traceEvents"].as_array().unwrap().len() >= 11 * 4);
    run(&patch(json!({"pipeline": 2})), &moved).unwrap();
    assert_eq!(without_times(&moved), without_times(&straight));
    for part in ["checkpoint", "trainer"] {
        assert_eq!(hash_path(&moved.join(part)).unwrap(), hash_path(&straight.join(part)).unwrap(), "{part}");
    }
}

#[test]
fn what_another_command_wrote_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let out = dir.path().join("out");
    run(&config(dir.path(), json!({"steps": 1, "schedule": {}})), &out).unwrap();
    let refused = |patch: Value| {
        let error = format!("{:#}", run(&config(dir.path(), patch), &out).unwrap_err());
        assert!(error.contains("hint: choose another output directory"), "{error}");
        assert!(out.join("checkpoint/config.json").exists());
    };
    refused(json!({"model": {"init_from": out.join("checkpoint")}}));
    std::fs::rename(out.join("trainer"), dir.path().join("elsewhere")).unwrap();
    std::fs::remove_file(out.join("provenance.json")).unwrap();
    refused(json!({}));
    let other = intern_format::provenance::Provenance { command: "data run".into(), ..Default::default() };
    intern_format::provenance::write(&out, &other).unwrap();
    refused(json!({}));
}

/// Not a test of its own: the process that [`killed_at_any_moment_it_ends_the_same_on_any_ranks`] kills.
#[test]
fn child() {
    let Ok(dir) = std::env::var("INTERN_TRAIN_CHILD") else { return };
    let dir = PathBuf::from(dir);
    let patch = std::env::var("INTERN_TRAIN_PATCH").unwrap();
    run(&config(&dir, serde_json::from_str(&patch).unwrap()), &dir.join("killed")).unwrap();
}

/// The command that runs [`child`] on `dir`.
fn child_command(dir: &Path, patch: &Value) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture"]).stdout(Stdio::null()).stderr(Stdio::piped());
    command.env("INTERN_TRAIN_CHILD", dir).env("INTERN_TRAIN_PATCH", patch.to_string());
    command
}

#[test]
#[cfg(unix)]
fn asked_to_stop_it_saves_first() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let child = child_command(dir.path(), &json!({"steps": 1_000_000})).spawn().unwrap();
    let started = || metrics::read(&dir.path().join("killed")).is_ok_and(|rows| rows.len() > 2);
    while !started() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("stopped at step") && error.contains("the same command continues"), "{error}");
    let saved = intern_train::state::list(&dir.path().join("killed/trainer")).unwrap();
    let rows = metrics::read(&dir.path().join("killed")).unwrap();
    assert_eq!(rows.last().unwrap()["step"], json!(saved.last().unwrap().0));
}

#[test]
fn killed_at_any_moment_it_ends_the_same_on_any_ranks() {
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let straight = dir.path().join("straight");
    let patch = json!({"steps": 60, "save_every": 3});
    run(&config(dir.path(), patch.clone()), &straight).unwrap();
    let mut rng = Rng::new(u64::from(std::process::id()), 1);
    let killed = dir.path().join("killed");
    let mut kills = 0;
    while !killed.join("provenance.json").exists() {
        let mut patch = patch.clone();
        patch["parallel"] = json!({"data": 1 + kills % 3, "zero": kills % 2});
        let mut child = child_command(dir.path(), &patch).stderr(Stdio::null()).spawn().unwrap();
        if kills < 20 {
            std::thread::sleep(Duration::from_millis(rng.range(20, 400)));
            child.kill().unwrap();
            kills += 1;
            child.wait().unwrap();
        } else {
            assert!(child.wait().unwrap().success());
        }
    }
    assert_eq!(without_times(&killed), without_times(&straight));
    let hashes = |out: &Path| {
        let of = |part: &str| (part.to_string(), hash_path(&out.join(part)).unwrap());
        ["checkpoint", "trainer"].iter().map(|p| of(p)).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(hashes(&killed), hashes(&straight));
}
