//! The recipes of `configs/data`, and what stages, deduplication and the tools around a run
//! make of small corpora.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use intern_data::ngram_model::NgramModel;
use intern_data::pipeline::{self, RecipeConfig};
use intern_data::{classifier, diff, signatures, why};
use intern_format::document::{self, Document};
use serde_json::{Value, json};

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/data")
}

fn assets() -> Option<PathBuf> {
    let set = std::env::var_os("INTERN_ASSETS").map(PathBuf::from);
    let path = set.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/assets"));
    if !path.is_dir() {
        eprintln!("skipped: no assets at {}", path.display());
        return None;
    }
    Some(path)
}

/// A preset over the given files.
fn preset(name: &str, source: Value) -> RecipeConfig {
    let text = fs::read_to_string(configs().join(name)).unwrap();
    let mut config: RecipeConfig = toml::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
    config.source = serde_json::from_value(source).unwrap();
    config
}

fn write(path: &Path, documents: &[Value]) {
    fs::write(path, documents.iter().map(|d| d.to_string() + "\n").collect::<String>()).unwrap();
}

fn read(dir: &Path) -> BTreeMap<String, Document> {
    if !dir.is_dir() || document::files(dir).unwrap().is_empty() {
        return BTreeMap::new();
    }
    document::open(dir).unwrap().map(|d| d.unwrap()).map(|d| (d.id.clone(), d)).collect()
}

fn rules(out: &Path) -> BTreeMap<String, String> {
    let name =
        |d: &Document| format!("{}/{}", d.meta["reason"].as_str().unwrap(), d.meta["rule"].as_str().unwrap());
    read(&out.join("dropped")).iter().map(|(id, d)| (id.clone(), name(d))).collect()
}

/// English prose of `n` paragraphs, different for every `seed`.
fn prose(seed: usize, n: usize) -> String {
    let words = [
        "river", "teacher", "garden", "machine", "letter", "winter", "mountain", "friend", "story", "market",
        "bridge", "forest", "doctor", "island", "window", "village", "captain", "harvest", "lantern",
        "journey",
    ];
    let mut rng = intern_kernels::rng::Rng::new(11, seed as u64);
    let mut word = || *rng.pick(&words);
    (0..n)
        .map(|_| {
            (0..4)
                .map(|_| {
                    format!(
                        "The {} that we have seen from the {} belongs to a {} and with it to the {} of that {}.",
                        word(), word(), word(), word(), word()
                    )
                })
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn every_preset_runs_on_a_real_crawl() {
    let Some(assets) = assets() else { return };
    let dir = tempfile::tempdir().unwrap();
    let crawl = json!([{"kind": "warc", "path": assets.join("data/warc/aut/warc/example.warc.gz")}]);
    for name in ["fineweb.toml", "c4.toml", "internlm2.toml", "wanjuan-cc.toml", "crawl.toml"] {
        let out = dir.path().join(name);
        let config = preset(name, crawl.clone());
        let summary = pipeline::run(&config, &out).unwrap();
        assert!(summary.pages > 100 && summary.documents < summary.pages, "{name}: {summary:?}");
        let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
        let funnel = report["funnel"].as_array().unwrap();
        let dropped: u64 = funnel.iter().map(|s| s["dropped"].as_u64().unwrap()).sum();
        assert_eq!(dropped, summary.dropped, "{name}: every loss is in the funnel");
    }
    let c4 = json!([{"kind": "jsonl", "path": assets.join("data/corpora/c4-wiki-demo/c4_demo.jsonl")}]);
    let out = dir.path().join("gopher");
    let summary = pipeline::run(&preset("gopher.toml", c4), &out).unwrap();
    assert_eq!((summary.pages, summary.documents > 150), (300, true), "{summary:?}");
}

#[test]
fn each_stage_drops_and_changes_what_it_should() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let question = "How many bridges over the river did the captain count on his long journey from the island \
                    to the market in the winter of that year?";
    let link = "Write to jane@example.org or call +41 44 668 18 00 today.";
    write(
        &at("docs.jsonl"),
        &[
            json!({"id": "plain", "text": prose(1, 3)}),
            json!({"id": "blocked", "text": prose(2, 3), "url": "http://a.bad.example/x"}),
            json!({"id": "url1", "text": prose(3, 3), "url": "http://good.example/x"}),
            json!({"id": "url2", "text": prose(4, 3), "url": "http://good.example/x/#top"}),
            json!({"id": "rude", "text": format!("{}\nDarn it all!", prose(5, 3))}),
            json!({"id": "test", "text": format!("{}\n{question} The answer is twelve.", prose(6, 2))}),
            json!({"id": "pii", "text": format!("{}\n{link}", prose(7, 3))}),
            json!({"id": "lines", "text": format!("Read more\n{}\n3 likes", prose(8, 3))}),
            json!({"id": "shared", "text": format!("{}\n{}", prose(1, 1), prose(9, 3))}),
            json!({"id": "code", "text": format!("{}\nfn main() {{}} is what they have written.", prose(10, 3))}),
        ],
    );
    fs::write(at("rude.txt"), "darn\n").unwrap();
    write(&at("quiz.jsonl"), &[json!({"id": 7, "question": question, "answer": "twelve"})]);
    let config: RecipeConfig = serde_json::from_value(json!({
        "source": [{"kind": "jsonl", "path": at("docs.jsonl")}],
        "words": "english",
        "order": ["url", "lines"],
        "url": {"enabled": true, "domains": ["bad.example"]},
        "lines": {"enabled": true, "max_removed": 0.5},
        "c4": {"enabled": true, "terminal_punctuation": false},
        "badwords": {"enabled": true, "files": [at("rude.txt")]},
        "decontaminate": {"enabled": true, "benchmark": [{"path": at("quiz.jsonl"), "answer": "answer"}]},
        "score": {"enabled": true},
        "pii": {"enabled": true},
        "repetition": {"enabled": false},
        "dedup": {"url": {"enabled": true}, "lines": {"enabled": true}, "minhash": {"enabled": false}},
    }))
    .unwrap();
    let out = at("out");
    pipeline::run(&config, &out).unwrap();
    let expect: BTreeMap<String, String> = [
        ("blocked", "url/domain"),
        ("url2", "same_url/same_url"),
        ("rude", "badwords/max_per_thousand"),
        ("test", "decontaminate/quiz"),
        ("code", "c4/curly_bracket"),
    ]
    .map(|(id, rule)| (id.to_string(), rule.to_string()))
    .into();
    assert_eq!(rules(&out), expect);
    let kept = read(&out.join("documents"));
    assert!(kept["pii"].text.ends_with("Write to [EMAIL] or call [PHONE] today."), "{}", kept["pii"].text);
    assert_eq!(kept["lines"].text, prose(8, 3));
    assert_eq!(kept["shared"].text, prose(9, 3), "a line that another document has goes");
    assert!(kept["plain"].meta["quality_score"].as_f64().unwrap() > 0.5);
    assert_eq!(read(&out.join("dropped"))["test"].meta["duplicate_of"], "quiz/7");
    let report = fs::read_to_string(out.join("report.json")).unwrap();
    for edit in ["pii/email", "lines/button", "same_lines/removed"] {
        assert!(report.contains(edit), "{edit}");
    }

    let answer = why::explain(&out, "test").unwrap();
    assert!(!answer.kept && answer.measures.iter().any(|m| m.stage == "score" && m.ok), "{answer:?}");
    assert!(answer.measures.iter().any(|m| m.stage == "decontaminate" && !m.ok));
    let answer = why::explain(&out, "url2").unwrap();
    assert_eq!(answer.partner.as_ref().map(|d| d.id.as_str()), Some("url1"));
    assert!(why::pretty(&answer).contains("copy of url1"));
    assert_eq!(why::explain(&out, "url1").unwrap().copies, ["url2"]);
    assert!(format!("{:#}", why::explain(&out, "nobody").unwrap_err()).contains("hint:"));

    let looser = RecipeConfig { badwords: Default::default(), ..config };
    let other = at("other");
    pipeline::run(&looser, &other).unwrap();
    let changes = diff::compare(&out, &other).unwrap();
    assert_eq!(changes.moves.len(), 1, "{changes:?}");
    assert_eq!(
        (changes.moves[0].from.as_str(), changes.moves[0].to.as_str()),
        ("badwords/max_per_thousand", "kept")
    );
    assert_eq!((changes.moves[0].ids.as_slice(), changes.changed), (["rude".to_string()].as_slice(), 0));
}

#[test]
fn the_best_copy_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("docs.jsonl");
    let good = prose(1, 4);
    let bad = good.replace(". ", " ## ").replace('.', " ##");
    write(&path, &[json!({"id": "bad", "text": bad}), json!({"id": "good", "text": good})]);
    let config: RecipeConfig = serde_json::from_value(json!({
        "source": [{"kind": "jsonl", "path": path}],
        "score": {"enabled": true}, "repetition": {"enabled": false}, "quality": {"enabled": false},
        "dedup": {"exact": {"keep": "best"}, "minhash": {"keep": "best"}},
    }))
    .unwrap();
    let out = dir.path().join("out");
    pipeline::run(&config, &out).unwrap();
    assert_eq!(read(&out.join("documents")).keys().collect::<Vec<_>>(), ["good"]);
}

#[test]
fn a_run_goes_on_within_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("docs.jsonl");
    let documents: Vec<Value> =
        (0..50).map(|i| json!({"id": format!("d{i}"), "text": prose(i, 2)})).collect();
    write(&path, &documents);
    let config: RecipeConfig = serde_json::from_value(json!({
        "source": [{"kind": "jsonl", "path": path, "limit": 45}], "output": {"shard_pages": 8},
        "repetition": {"enabled": false},
    }))
    .unwrap();
    let out = dir.path().join("out");
    let summary = pipeline::run(&config, &out).unwrap();
    assert_eq!(summary.pages, 45);
    let names: Vec<_> = document::files(&out.join("documents")).unwrap();
    assert_eq!(names.len(), 6, "{names:?}");
    let order: Vec<String> = document::open(&out.join("documents")).unwrap().map(|d| d.unwrap().id).collect();
    assert_eq!(order, (0..45).map(|i| format!("d{i}")).collect::<Vec<_>>());
}

#[test]
fn tables_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let csv = format!("id,text,topic\na,\"{}\",rivers\n,\"{}\",\n", prose(1, 2), prose(2, 2));
    fs::write(dir.path().join("docs.csv"), csv).unwrap();
    fs::write(dir.path().join("none.csv"), "id,body\n1,x\n").unwrap();
    let run = |file: &str| {
        let config = json!({"source": [{"kind": "csv", "path": dir.path().join(file)}], "repetition": {"enabled": false}});
        pipeline::run(&serde_json::from_value(config).unwrap(), &dir.path().join("out"))
    };
    run("docs.csv").unwrap();
    let kept = read(&dir.path().join("out/documents"));
    assert_eq!(kept["a"].text, prose(1, 2));
    assert_eq!(kept["a"].meta["topic"], "rivers");
    assert!(kept.contains_key("csv/docs.csv/2"), "{:?}", kept.keys());
    assert!(format!("{:#}", run("none.csv").unwrap_err()).contains("hint:"));
}

#[test]
fn a_classifier_learns_and_filters() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let spam =
        |i: usize| format!("buy cheap pills now click here offer {i} casino bonus win money fast {}", i % 7);
    let good: Vec<Value> = (0..120).map(|i| json!({"id": format!("g{i}"), "text": prose(i, 1)})).collect();
    let bad: Vec<Value> = (0..120).map(|i| json!({"id": format!("b{i}"), "text": spam(i)})).collect();
    write(&at("good.jsonl"), &good);
    write(&at("bad.jsonl"), &bad);
    let config = serde_json::from_value(json!({
        "class": [{"label": "good", "documents": [at("good.jsonl")]}, {"label": "spam", "documents": [at("bad.jsonl")]}],
        "dim": 8, "buckets": 1000,
    }))
    .unwrap();
    let summary = classifier::train(&config, &at("model")).unwrap();
    assert!(summary.held_out > 5 && summary.accuracy > 0.95, "{summary:?}");
    classifier::train(&config, &at("again")).unwrap();
    assert_eq!(fs::read(at("model/model.bin")).unwrap(), fs::read(at("again/model.bin")).unwrap());

    write(
        &at("docs.jsonl"),
        &[json!({"id": "g", "text": prose(500, 2)}), json!({"id": "s", "text": spam(500)})],
    );
    let recipe: RecipeConfig = serde_json::from_value(json!({
        "source": [{"kind": "jsonl", "path": at("docs.jsonl")}], "repetition": {"enabled": false},
        "length": {"enabled": false},
        "classifier": [{"name": "spam", "model": at("model"), "label": "spam", "max": 0.5}],
    }))
    .unwrap();
    pipeline::run(&recipe, &at("out")).unwrap();
    assert_eq!(rules(&at("out")), [("s".to_string(), "classifier/spam".to_string())].into());
    let mut wrong = recipe;
    wrong.classifier[0].label = "ham".into();
    assert!(format!("{:#}", pipeline::run(&wrong, &at("out")).unwrap_err()).contains("its labels are"));
}

/// Signatures and removals that datatrove 0.10.1 makes of `golden/minhash.jsonl`.
#[test]
fn signatures_are_datatroves() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let dir = tempfile::tempdir().unwrap();
    let expect: Value = serde_json::from_slice(&fs::read(golden.join("minhash.json")).unwrap()).unwrap();
    for rows in [8usize, 9] {
        let out = dir.path().join(rows.to_string());
        signatures::run(&golden.join("minhash.jsonl"), &out, 14, rows).unwrap();
        let expect = &expect[rows.to_string()];
        for band in 0..14 {
            let bytes = fs::read(out.join(format!("bucket_{band:03}/00000.minhash.sig"))).unwrap();
            assert_eq!(
                blake3::hash(&bytes).to_hex().as_str(),
                expect["signatures"][band],
                "bucket {band} of {rows}"
            );
        }
        let removed: Vec<u32> = fs::read(out.join("000000.remove"))
            .unwrap()
            .chunks_exact(4)
            .map(|b| u32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(json!(removed), expect["removed"]);
    }
}

/// Models of the reference fastText with every loss, quantized too, and what it predicts.
/// What KenLM says of sentences, known words and others.
#[test]
fn ngram_models_score_as_kenlm() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let model = NgramModel::open(&golden.join("ngram.arpa")).unwrap();
    let expect: Vec<Value> = serde_json::from_slice(&fs::read(golden.join("ngram.json")).unwrap()).unwrap();
    for one in expect {
        let text = one["text"].as_str().unwrap();
        let (sum, _) = model.score(text.split_whitespace());
        assert!((sum - one["log10"].as_f64().unwrap()).abs() < 1e-4, "{text:?}: {sum}, not {}", one["log10"]);
    }
}

#[test]
fn fasttext_models_predict_as_the_reference() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fasttext");
    let expect: Value = serde_json::from_slice(&fs::read(dir.join("predictions.json")).unwrap()).unwrap();
    for (name, predictions) in expect["models"].as_object().unwrap() {
        let model = classifier::Classifier::open(&dir.join(name)).unwrap();
        for (text, expect) in expect["texts"].as_array().unwrap().iter().zip(predictions.as_array().unwrap())
        {
            let text = text.as_str().unwrap();
            for (label, p) in expect.as_object().unwrap() {
                let got = f64::from(model.probability(text, label));
                assert!((got - p.as_f64().unwrap()).abs() < 1e-5, "{name}: {text:?} {label}: {got} for {p}");
            }
        }
    }
    assert!(classifier::Classifier::open(&dir.join("predictions.json")).is_err());
}
