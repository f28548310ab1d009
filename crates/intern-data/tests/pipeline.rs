//! Whole runs on small corpora: what is kept, why the rest is not, and that neither
//! threads nor interruptions change a byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use intern_data::images::{self, ImagesConfig};
use intern_data::mix::{self, MixConfig};
use intern_data::pipeline::{self, RecipeConfig, Share};
use intern_data::{tokenize, tokenizer};
use intern_format::document::{self, Document};
use serde_json::{Value, json};

/// A page of `words` with menus around, in UTF-8.
fn page(title: &str, text: &str) -> String {
    format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>{title} | Site</title></head><body>\
         <nav><ul><li><a href=/>Home</a><li><a href=/x>Products</a></ul></nav>\
         <div class=cookie-banner>We use cookies. <button>OK</button></div>\
         <article><h1>{title}</h1>{text}</article>\
         <footer>Copyright Site, all rights reserved</footer></body></html>"
    )
}

/// Distinct English prose, seeded by `n`.
fn prose(n: usize, sentences: usize) -> String {
    let nouns = "river teacher garden machine letter winter mountain friend story market bridge forest doctor island \
                 window village captain harvest lantern journey painter kitchen valley soldier orchard harbour meadow";
    let verbs =
        "follows remembers builds crosses paints answers repairs carries watches forgets explains protects";
    let frames = [
        "The A V the B near a C.",
        "Every A that V its B will also need the C.",
        "In those years a A V one B and no C.",
        "It is said that the A V both the B and the C.",
        "When a A V the B, there is hardly a C left to see.",
        "My A never V the B without the C.",
        "Perhaps some A V this B for the sake of that C.",
        "Long after the C was gone, a A still V the B.",
    ];
    let mut rng = intern_kernels::rng::Rng::new(7, n as u64);
    (0..sentences)
        .map(|_| {
            let noun: Vec<&str> = nouns.split_whitespace().collect();
            let verb: Vec<&str> = verbs.split_whitespace().collect();
            let words: Vec<&str> = rng.pick(&frames).split(' ').collect();
            let words: Vec<String> = words
                .into_iter()
                .map(|w| match w.trim_end_matches([',', '.']) {
                    "A" | "B" | "C" => w.replacen(['A', 'B', 'C'], rng.pick::<&str>(&noun), 1),
                    "V" => rng.pick::<&str>(&verb).to_string(),
                    _ => w.to_string(),
                })
                .collect();
            words.join(" ") + " "
        })
        .collect()
}

/// Pages good and bad, in several kinds of files; returns the recipe.
fn corpus(dir: &Path) -> RecipeConfig {
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let mut gold = String::new();
    for i in 0..40 {
        let text = prose(i, 12);
        write(
            &format!("pages/p{i:02}.html"),
            page(&format!("Page number {i}"), &format!("<p>{text}</p>")).as_bytes(),
        );
        let line = json!({"path": format!("pages/p{i:02}.html"), "text": format!("Page number {i}\n\n{}", text.trim()), "kind": "plain"});
        gold.push_str(&format!("{line}\n"));
    }
    // An exact copy with other boilerplate, and a near copy.
    write("pages/x-exact.html", page("Page number 3", &format!("<div>{}</div>", prose(3, 12))).as_bytes());
    let near = prose(5, 12) + "This sentence was added to the copy.";
    write("pages/x-near.html", page("Page number 5", &format!("<p>{near}</p>")).as_bytes());
    write("pages/x-short.html", page("Short", "<p>Too short.</p>").as_bytes());
    write("pages/x-same.html", page("Lines", &"<p>The same line again.</p>".repeat(30)).as_bytes());
    write("pages/x-empty.html", b"<html><body><script>x()</script></body></html>");
    let german = "Der Lehrer geht jeden Morgen durch den alten Garten und erzählt den Kindern eine lange Geschichte. \
                  Danach schreibt er einen Brief an seinen Freund in der Stadt, der ihm nie geantwortet hat.";
    write("pages/x-german.html", page("Garten", &format!("<p>{german}</p>")).as_bytes());
    let chinese = "小明每天早上都会去学校旁边的公园里散步，他喜欢看那里的花和树，也喜欢和老人们聊天。有一天他在公园里遇到了一位画家，\
                   画家正在画一棵很老的树。小明问他为什么要画这棵树，画家说因为它见过很多人的故事。从那以后，小明也开始学画画。";
    let gbk = encoding_rs::GBK
        .encode(&page("公园", &format!("<p>{chinese}</p>")).replace("<meta charset=utf-8>", ""))
        .0
        .into_owned();
    write("pages/x-gbk.html", &gbk);
    // UTF-8 beyond repair: after each clause a byte that no character holds.
    let mut broken = Vec::new();
    for c in page("公园", &format!("<p>{chinese}</p>")).chars() {
        broken.extend(c.to_string().bytes());
        if "，。".contains(c) {
            broken.push(0xff);
        }
    }
    write("pages/x-broken.html", &broken);
    write("text/a.txt", prose(100, 10).as_bytes());
    let lines: String =
        (200..210).map(|i| json!({"id": format!("j{i}"), "text": prose(i, 9)}).to_string() + "\n").collect();
    write("lines.jsonl", format!("{{broken\n{lines}").as_bytes());
    let http = |body: &str, status: u16, kind: &str| {
        let http = format!("HTTP/1.1 {status} OK\r\nContent-Type: {kind}\r\n\r\n{body}");
        format!(
            "WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://site/{status}\r\nContent-Length: {}\r\n\r\n{http}\r\n\r\n",
            http.len()
        )
    };
    let html = page("From an archive", &format!("<p>{}</p>", prose(300, 12)));
    let warc = http(&html, 200, "text/html")
        + "garbage\r\n"
        + &http(&html, 404, "text/html")
        + &http("GIF", 200, "image/gif");
    write("crawl.warc", warc.as_bytes());
    write("gold.jsonl", gold.as_bytes());

    let at = |p: &str| dir.join(p).display().to_string();
    let config = json!({
        "source": [
            {"kind": "html", "path": at("pages")},
            {"kind": "text", "path": at("text")},
            {"kind": "jsonl", "path": at("lines.jsonl"), "limit": 8},
            {"kind": "warc", "path": at("crawl.warc")},
        ],
        "language": {"keep": ["en", "zh"]},
        "length": {"min_chars": 60},
        "output": {"shard_pages": 7},
        "gold": at("gold.jsonl"),
    });
    serde_json::from_value(config).unwrap()
}

fn documents(dir: &Path) -> BTreeMap<String, Document> {
    document::open(dir).unwrap().map(|d| d.unwrap()).map(|d| (d.id.clone(), d)).collect()
}

/// Every file below `dir` with its bytes.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(
                files(&path).into_iter().map(|(p, b)| (PathBuf::from(path.file_name().unwrap()).join(p), b)),
            );
        } else {
            all.insert(path.file_name().unwrap().into(), fs::read(&path).unwrap());
        }
    }
    all
}

#[track_caller]
fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (files(a), files(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        assert!(bytes == &b[name], "{} differs", name.display());
    }
}

#[test]
fn pages_are_cleaned_and_every_loss_has_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let config = corpus(dir.path());
    let out = dir.path().join("out");
    let summary = pipeline::run(&config, &out).unwrap();

    let dropped = documents(&out.join("dropped"));
    let rule = |id: &str| {
        let d = &dropped[id];
        format!("{}/{}", d.meta["reason"].as_str().unwrap(), d.meta["rule"].as_str().unwrap())
    };
    assert_eq!(rule("html/x-exact.html"), "exact/same_text");
    assert_eq!(dropped["html/x-exact.html"].meta["duplicate_of"], "html/p03.html");
    assert_eq!(rule("html/x-near.html"), "minhash/similar_text");
    assert_eq!(dropped["html/x-near.html"].meta["duplicate_of"], "html/p05.html");
    assert_eq!(rule("html/x-short.html"), "length/min_chars");
    assert_eq!(rule("html/x-same.html"), "repetition/dup_para_frac");
    assert_eq!(rule("html/x-empty.html"), "extract/no_text");
    assert_eq!(rule("html/x-german.html"), "language/language_de");
    assert_eq!(rule("html/x-broken.html"), "encoding/max_errors");

    let kept = documents(&out.join("documents"));
    assert_eq!(kept.len() as u64, summary.documents);
    assert_eq!(summary.pages, kept.len() as u64 + dropped.len() as u64);
    assert_eq!(summary.broken, 2, "a broken line and garbage in the archive");
    let p3 = &kept["html/p03.html"];
    assert_eq!(p3.text, format!("Page number 3\n\n{}", prose(3, 12).trim()));
    assert_eq!((p3.lang.as_str(), p3.meta["title"].as_str()), ("en", Some("Page number 3")));
    assert!(kept["html/x-gbk.html"].text.contains("小明问他为什么要画这棵树"));
    assert_eq!(kept["html/x-gbk.html"].lang, "zh");
    assert!(kept.contains_key("text/a.txt") && kept.contains_key("j200") && !kept.contains_key("j208"));
    assert_eq!(kept["warc/crawl.warc#1"].url, "http://site/200");
    assert_eq!(summary.gold_f1, Some(1.0));

    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    let funnel = report["funnel"].as_array().unwrap();
    assert_eq!(funnel.first().unwrap()["documents"], summary.pages);
    assert_eq!(funnel.last().unwrap()["documents"], summary.documents);
    assert_eq!(report["gold"]["groups"][0]["kept"], 40);
    let html = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(html.contains("<svg") && !html.contains("http://") && !html.contains("<script"));
    assert!(out.join("provenance.json").is_file() && !out.join(".tmp-work").exists());

    let again = pipeline::run(&config, &out).unwrap();
    assert!(again.up_to_date && again.documents == summary.documents);
    let other = RecipeConfig { gold: None, ..config };
    assert!(!pipeline::run(&other, &out).unwrap().up_to_date);
}

#[test]
fn threads_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = corpus(dir.path());
    for threads in [1, 2, 8] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| pipeline::run(&config, &dir.path().join(format!("out{threads}"))).unwrap());
    }
    assert_same(&dir.path().join("out1"), &dir.path().join("out2"));
    assert_same(&dir.path().join("out1"), &dir.path().join("out8"));
}

/// Runs in a child of the tests that kill; does nothing otherwise.
#[test]
fn child() {
    let Ok(dir) = std::env::var("INTERN_DATA_CHILD") else { return };
    work(Path::new(&dir), "killed");
}

/// Does what `dir` holds a configuration for, into `dir/out`.
fn work(dir: &Path, out: &str) {
    let read = |name: &str| fs::read(dir.join(name)).ok();
    if let Some(config) = read("recipe.json") {
        let config: RecipeConfig = serde_json::from_slice(&config).unwrap();
        pipeline::run(&config, &dir.join(out)).unwrap();
    } else if let Some(config) = read("images.json") {
        let config: ImagesConfig = serde_json::from_slice(&config).unwrap();
        images::run(&config, &dir.join(out)).unwrap();
    } else {
        let config: MixConfig = serde_json::from_slice(&read("mix.json").unwrap()).unwrap();
        mix::run(&config, &dir.join(out)).unwrap();
    }
}

/// Does the work of `dir` in a child with so many threads, killed after `limit`; whether it ended before.
fn start(dir: &Path, threads: usize, limit: Duration) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--test-threads=1"])
        .env("INTERN_DATA_CHILD", dir)
        .env("RAYON_NUM_THREADS", threads.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while begin.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "the child failed");
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    false
}

/// Does the work of `dir` once in peace and then with `kills` kills at random moments, on 1, 2
/// and 8 threads in turn, starting over whenever a run comes through. Outputs must be equal.
fn kill(dir: &Path, kills: usize) {
    work(dir, "whole");
    let begin = Instant::now();
    assert!(start(dir, 2, Duration::MAX));
    let length = begin.elapsed();
    let mut rng = intern_kernels::rng::Rng::new(11, 0);
    let (mut killed, mut whole) = (0, 0);
    loop {
        let limit = if killed < kills { length.mul_f64(rng.unit()) } else { Duration::MAX };
        if start(dir, [1, 2, 8][(killed + whole) % 3], limit) {
            whole += 1;
            assert_same(&dir.join("whole"), &dir.join("killed"));
            fs::remove_dir_all(dir.join("killed")).unwrap();
            if killed == kills {
                break;
            }
        } else {
            killed += 1;
        }
    }
    println!("{killed} kills, {whole} runs came through, {:.0} s", begin.elapsed().as_secs_f64());
}

#[test]
fn kills_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = corpus(dir.path());
    fs::write(dir.path().join("recipe.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    kill(dir.path(), 8);
}

/// All that needs the whole corpus at once, in files that end within segments; mixtures and pictures.
#[test]
fn two_hundred_kills_change_nothing() {
    if std::env::var_os("RUN_SLOW_TESTS").is_none() {
        println!("skipped: set RUN_SLOW_TESTS");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let shared = prose(1, 3);
    for file in 0..3 {
        let lines: String = (0..430)
            .map(|i| {
                let n = 1000 * file + i;
                let own = prose(if i % 9 == 0 { i } else { n }, 8 + i % 5);
                let text = if i % 7 == 0 { format!("{own}\n\n{shared}") } else { own };
                json!({"id": format!("d{n}"), "text": text}).to_string() + "\n"
            })
            .collect();
        fs::write(at(&format!("{file}.jsonl")), lines).unwrap();
    }
    let paths: Vec<_> = (0..3).map(|file| at(&format!("{file}.jsonl"))).collect();
    let mut config = every_deduplication();
    config["source"] = json!([{"kind": "jsonl", "path": paths}]);
    config["output"] = json!({"shard_pages": 100});
    fs::create_dir(at("run")).unwrap();
    fs::write(at("run/recipe.json"), config.to_string()).unwrap();
    kill(&at("run"), 200);

    let config = json!({
        "source": [{"name": "a", "documents": paths[..2], "epochs": 2.5}, {"name": "b", "documents": paths[2..]}],
        "bucket_mb": 1,
    });
    fs::create_dir(at("mix")).unwrap();
    fs::write(at("mix/mix.json"), config.to_string()).unwrap();
    kill(&at("mix"), 60);

    let shard = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images/shard.tar");
    let config = json!({"source": [{"kind": "webdataset", "path": shard}], "output": {"shard_samples": 1}});
    fs::create_dir(at("images")).unwrap();
    fs::write(at("images/images.json"), config.to_string()).unwrap();
    kill(&at("images"), 60);
}

/// A recipe without sources that compares documents in all ways there are.
fn every_deduplication() -> Value {
    json!({
        "dedup": {
            "url": {"enabled": true},
            "paragraphs": {"enabled": true},
            "lines": {"enabled": true},
            "sentences": {"enabled": true},
            "ngrams": {"enabled": true, "threshold": 0.5},
            "substrings": {"enabled": true, "min_chars": 40},
        },
    })
}

#[test]
fn what_a_late_kill_leaves_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let config = corpus(dir.path());
    let out = dir.path().join("out");
    pipeline::run(&config, &out).unwrap();
    let whole = files(&out);
    // Killed between its last record and the end of its work.
    fs::create_dir(out.join(".tmp-work")).unwrap();
    fs::write(out.join(".tmp-work/identity.json"), "{}").unwrap();
    fs::write(out.join(".tmp-prepare"), "").unwrap();
    assert!(pipeline::run(&config, &out).unwrap().up_to_date);
    assert_eq!(whole.keys().collect::<Vec<_>>(), files(&out).keys().collect::<Vec<_>>());
}

#[test]
fn a_stopped_run_continues_from_its_markers() {
    let dir = tempfile::tempdir().unwrap();
    let config = corpus(dir.path());
    let (whole, half) = (dir.path().join("whole"), dir.path().join("half"));
    pipeline::run(&config, &whole).unwrap();
    // A file that disappears in the middle stops the run there.
    let victim = dir.path().join("pages/p30.html");
    let bytes = fs::read(&victim).unwrap();
    fs::remove_file(&victim).unwrap();
    fs::create_dir(&victim).unwrap();
    assert!(pipeline::run(&config, &half).is_ok(), "a directory of that name is no page");
    fs::remove_dir(&victim).unwrap();
    fs::write(&victim, bytes).unwrap();
    pipeline::run(&config, &half).unwrap();
    assert_same(&whole, &half);
}

/// Processes that each clean a share, one of them stopped and begun again, and then the run.
#[test]
fn a_job_array_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = corpus(dir.path());
    let (alone, shared) = (dir.path().join("alone"), dir.path().join("shared"));
    let refused = pipeline::run_share(&config, &shared, Share::parse("1/3").unwrap()).unwrap_err();
    assert!(refused.to_string().contains("source jsonl has a limit"), "{refused}");
    config.source.iter_mut().for_each(|source| source.limit = 0);
    let expect = pipeline::run(&config, &alone).unwrap();
    let share = |text: &str| Share::parse(text).unwrap();
    let mut pages = 0;
    std::thread::scope(|scope| {
        let jobs = ["1/3", "2/3", "3/3"].map(|text| {
            let (config, shared) = (&config, &shared);
            scope.spawn(move || pipeline::run_share(config, shared, share(text)).unwrap())
        });
        pages += jobs.into_iter().map(|job| job.join().unwrap().pages).sum::<u64>();
    });
    assert_eq!(pages, expect.pages);
    // A share that is there already, or cut otherwise, costs nothing.
    assert_eq!(pipeline::run_share(&config, &shared, share("1/2")).unwrap().cleaned, 0);
    let last = pipeline::run(&config, &shared).unwrap();
    assert_eq!((last.pages, last.pages_per_second), (expect.pages, 0.0));
    assert_same(&alone, &shared);
    for wrong in ["0/3", "4/3", "3", "a/b", "1/0"] {
        assert!(Share::parse(wrong).unwrap_err().contains("e.g. 2/8"), "{wrong}");
    }
}

#[test]
fn wrong_recipes_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    let check = |config: serde_json::Value, expect: &str| {
        let config: RecipeConfig = serde_json::from_value(config).unwrap();
        let error = format!("{:#}", pipeline::run(&config, &dir.path().join("out")).unwrap_err());
        assert!(error.contains(expect) && error.contains("hint:"), "{error}");
    };
    check(json!({}), "no [[source]]");
    check(json!({"source": [{"kind": "html", "path": "gone-for-good"}]}), "gone-for-good");
    check(json!({"source": [{"kind": "html"}]}), "no path");
    check(json!({"source": [{"kind": "html", "path": dir.path()}]}), "no files with .html");
    check(json!({"source": [{"kind": "html", "path": "a"}, {"kind": "html", "path": "b"}]}), "two sources");
    assert!(serde_json::from_value::<RecipeConfig>(json!({"sauce": []})).is_err());
}

#[test]
fn documents_become_a_tokenizer_and_shards() {
    let dir = tempfile::tempdir().unwrap();
    let config = corpus(dir.path());
    let out = dir.path().join("clean");
    pipeline::run(&config, &out).unwrap();
    let documents = vec![out.join("documents")];
    let settings = serde_json::from_value(json!({"documents": documents, "vocab_size": 400})).unwrap();
    let bpe = dir.path().join("bpe");
    assert_eq!(tokenizer::run(&settings, &bpe).unwrap().vocab_size, 400);
    assert!(tokenizer::run(&settings, &bpe).unwrap().up_to_date);

    let settings =
        serde_json::from_value(json!({"documents": documents, "tokenizer": bpe, "valid_fraction": 0.2}))
            .unwrap();
    let tokens = dir.path().join("tokens");
    let summary = tokenize::run(&settings, &tokens).unwrap();
    assert!(summary.valid_documents > 0);
    assert!(tokenize::run(&settings, &tokens).unwrap().up_to_date);
    let bpe = intern_tokenizer::Tokenizer::from_path(&bpe).unwrap();
    let mut texts = Vec::new();
    for split in ["train", "valid"] {
        let shard = intern_format::shards::TokenShard::open(&tokens.join(split)).unwrap();
        for i in 0..shard.num_documents() {
            let ids = shard.document(i);
            assert_eq!(ids.last(), bpe.eos_id().as_ref());
            texts.push(bpe.decode(&ids[..ids.len() - 1], false).unwrap());
        }
    }
    let mut expect: Vec<String> =
        self::documents(&out.join("documents")).into_values().map(|d| d.text).collect();
    texts.sort();
    expect.sort();
    assert_eq!(texts, expect);
}
