//! The same log-likelihoods as lm-evaluation-harness with a real model, document by document.
//!
//! The golden comes from `crates/intern-eval/tests/golden/make_lm_eval_model.py`, the model
//! (stories260K) from the assets; where they are missing the test passes without looking.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{ok, root};

#[test]
fn log_likelihoods_are_those_of_lm_eval() {
    let stories = root().join("../shared/assets/models/stories260K");
    if !stories.exists() {
        eprintln!("no assets: nothing compared");
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (weights, tokenizer) = (stories.join("checkpoint_v1.bin"), stories.join("tok512.model"));
    let (weights, tokenizer) = (weights.display().to_string(), tokenizer.display().to_string());
    ok(&["train", "convert", &weights, "--tokenizer", &tokenizer, "--to", "llama", "--out", &path("model")]);
    let golden = root().join("crates/intern-eval/tests/golden");
    let tasks = golden.join("tasks").display().to_string();
    ok(&["eval", "run", &tasks, "--model", &path("model"), "--out", &path("eval")]);

    let text = std::fs::read_to_string(golden.join("lm_eval_stories260K.json")).expect("the golden");
    let theirs: Value = serde_json::from_str(&text).expect("JSON");
    let samples = std::fs::read_to_string(dir.path().join("eval/samples.jsonl")).expect("our samples");
    let mut ours: BTreeMap<(String, u64), Value> = BTreeMap::new();
    for line in samples.lines() {
        let row: Value = serde_json::from_str(line).expect("JSON");
        let task = row["task"].as_str().expect("a name").to_owned();
        ours.insert((task, row["doc_id"].as_u64().expect("a number")), row);
    }
    let (mut compared, mut worst) = (0, 0.0f64);
    for (task, documents) in theirs["samples"].as_object().expect("tasks") {
        for (doc_id, responses) in documents.as_array().expect("documents").iter().enumerate() {
            // Where `transformers` has other tokens than SentencePiece.
            if responses.is_null() {
                continue;
            }
            let found = &ours[&(task.clone(), doc_id as u64)]["resps"];
            for (i, response) in responses.as_array().expect("responses").iter().enumerate() {
                // A rolling score is a bare number there.
                let our_pair = &found[i][0];
                let (us, us_greedy) = our_pair
                    .as_f64()
                    .map_or((our_pair[0].as_f64(), &our_pair[1]), |x| (Some(x), &Value::Null));
                let (us, them) = (us.expect("a number"), response[0].as_f64().expect("a number"));
                assert!(
                    (us - them).abs() <= 1e-4 + 1e-6 * them.abs(),
                    "{task} {doc_id}: {us}, lm_eval {them}"
                );
                assert!(response[1].is_null() || *us_greedy == response[1], "{task} {doc_id} {i}");
                worst = worst.max((us - them).abs());
                compared += 1;
            }
        }
    }
    println!("{compared} log-likelihoods, worst difference {worst:.1e}");
    assert!(compared > 100, "{compared}");
}
