//! `intern data images`: golden hashes and directions, and whole runs over small collections.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use image::{ImageFormat, RgbImage};
use intern_data::images::clip::{self, Clip};
use intern_data::images::{self, ImageRules, ImagesConfig, look};
use serde_json::{Value, json};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images")
}

fn expected() -> Value {
    serde_json::from_slice(&fs::read(golden().join("expected.json")).unwrap()).unwrap()
}

fn config(value: Value) -> ImagesConfig {
    serde_json::from_value(value).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

/// A picture of its own for every `seed`, as a file.
fn picture(seed: u32, width: u32, format: ImageFormat) -> Vec<u8> {
    let mut rng = intern_kernels::rng::Rng::new(3, u64::from(seed));
    let k: [f64; 6] = std::array::from_fn(|_| rng.unit() * 12.0);
    let height = width * 3 / 4;
    let image = RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (f64::from(x) / f64::from(width), f64::from(y) / f64::from(height));
        let v = |a: f64, b: f64| (127.0 + 120.0 * (a * x + b * y + a * b * x * y).sin()) as u8;
        image::Rgb([v(k[0], k[1]), v(k[2], k[3]), v(k[4], k[5])])
    });
    let mut out = Cursor::new(Vec::new());
    image.write_to(&mut out, format).unwrap();
    out.into_inner()
}

/// Name → bytes of the members of a run's shards.
fn members(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut shards: Vec<_> = fs::read_dir(out.join("shards")).unwrap().map(|e| e.unwrap().path()).collect();
    shards.sort();
    for shard in shards {
        let mut archive = tar::Archive::new(fs::File::open(&shard).unwrap());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            assert!(all.insert(name, bytes).is_none());
        }
    }
    all
}

fn dropped(out: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(out.join("dropped.jsonl")).unwrap();
    let line = |l: &str| {
        let v: Value = serde_json::from_str(l).unwrap();
        (v["id"].as_str().unwrap().to_string(), v["rule"].as_str().unwrap().to_string())
    };
    text.lines().map(line).collect()
}

#[test]
fn hashes_are_those_of_imagehash() {
    for (name, expected) in expected()["images"].as_object().unwrap() {
        let (picture, _) = look(&fs::read(golden().join(name)).unwrap(), &ImageRules::default());
        assert_eq!(picture.drop, None, "{name}");
        assert_eq!(json!([picture.width, picture.height]), expected["size"], "{name}");
        let bits = |hex: &str| u64::from_str_radix(hex, 16).unwrap();
        let apart = (bits(&picture.phash) ^ bits(expected["phash"].as_str().unwrap())).count_ones();
        // JPEG and WebP decoders round differently.
        assert!(apart <= if name.ends_with("png") { 0 } else { 2 }, "{name}: {apart} bits");
    }
}

#[test]
fn directions_are_those_of_transformers() {
    let (clip, expected) = (Clip::open(&golden().join("clip")).unwrap(), expected());
    for (text, theirs) in
        expected["texts"].as_array().unwrap().iter().zip(expected["directions"].as_array().unwrap())
    {
        let ours = clip.text(text.as_str().unwrap()).unwrap();
        for (a, b) in ours.iter().zip(floats(theirs)) {
            assert!((a - b).abs() < 1e-5, "{text}: {a}, {b}");
        }
    }
    for (name, theirs) in expected["images"].as_object().unwrap() {
        let image = image::open(golden().join(name)).unwrap();
        let cosine = clip::similarity(&clip.image(&image), &floats(&theirs["direction"]));
        assert!(cosine > 0.9995, "{name}: {cosine}");
    }
}

#[test]
fn shards_of_webdataset_are_checked_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let run = |more: Value| {
        let mut value =
            json!({"source": [{"name": "s", "kind": "webdataset", "path": golden().join("shard.tar")}]});
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let out = dir.path().join(blake3::hash(value.to_string().as_bytes()).to_hex().as_str());
        (images::run(&config(value), &out).unwrap(), out)
    };
    // disc-small.jpg is a copy of disc.png, and gray.jpg of stripes.webp.
    let (summary, out) = run(json!({}));
    assert_eq!((summary.samples, summary.images, summary.kept), (5, 5, 3), "{summary:?}");
    let copies = ["s/shard.tar/a/0001", "s/shard.tar/a/0004"].map(|id| (id.into(), "copy".into()));
    assert_eq!(dropped(&out), copies.into());
    let all = members(&out);
    assert_eq!(all["000000000.png"], fs::read(golden().join("disc.png")).unwrap());
    assert_eq!(all["000000001.cls"], b"2");
    let meta: Value = serde_json::from_slice(&all["000000001.json"]).unwrap();
    assert_eq!((&meta["id"], &meta["width"]), (&json!("s/shard.tar/a/0002"), &json!(120)));
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("of s/shard.tar/a/0000") && page.matches("data:image/jpeg").count() == 5);

    let (summary, out) = run(json!({"dedup": {"perceptual": false}, "image": {"formats": ["jpeg"]}}));
    assert_eq!((summary.kept, summary.dropped["format"]), (2, 3));
    let all = members(&out);
    let meta: Value = serde_json::from_slice(&all["000000000.json"]).unwrap();
    assert_eq!(meta["license"], "cc0");
    assert_eq!(all["000000000.seg.png"], b"no picture");

    let clip = json!({"model": golden().join("clip"), "min_similarity": 0.05});
    let (summary, _) = run(json!({"clip": clip, "caption": {"min_words": 2}}));
    assert_eq!(summary.dropped["caption_words"], 1);
    assert!(summary.kept + summary.dropped["similarity"] < 5, "{summary:?}");
    let (_, out) = run(json!({"clip": {"model": golden().join("clip"), "min_similarity": -1.0}}));
    let meta: Value = serde_json::from_slice(&members(&out)["000000000.json"]).unwrap();
    assert!(meta["similarity"].as_f64().unwrap().abs() <= 1.0);
}

/// A collection with everything that can be wrong, and its configuration.
fn collection(dir: &Path) -> ImagesConfig {
    let at = |name: &str| dir.join(name);
    fs::create_dir_all(at("files")).unwrap();
    for i in 0..40 {
        let format = [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP][i as usize % 3];
        let ending = ["jpg", "png", "webp"][i as usize % 3];
        fs::write(at(&format!("files/{i:02}.{ending}")), picture(i, 64 + i, format)).unwrap();
        fs::write(at(&format!("files/{i:02}.txt")), format!("picture number {i}")).unwrap();
    }
    fs::write(at("files/90.jpg"), picture(3, 150, ImageFormat::Jpeg)).unwrap(); // larger than its copy
    fs::write(at("files/91.png"), picture(4, 68, ImageFormat::Png)).unwrap();
    fs::write(at("files/92.png"), &picture(50, 64, ImageFormat::Png)[..900]).unwrap();
    fs::write(at("files/93.jpg"), "no picture").unwrap();
    let data = |seed| {
        let bytes = picture(seed, 80, ImageFormat::Png);
        format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(bytes))
    };
    let mut lines = String::new();
    for i in 0..30 {
        // The first is a logo, the last in this document twice.
        let images = json!([data(777), null, data(100 + i), null, data(100 + i), null]);
        let texts = json!([null, "before", null, "between", null, "after"]);
        lines += &json!({"id": i, "texts": texts, "images": images}).to_string();
        lines += "\n";
    }
    fs::write(at("pages.jsonl"), lines + "{\"texts\": 1}\nno json\n").unwrap();
    config(json!({
        "source": [
            {"kind": "files", "path": at("files")},
            {"kind": "interleaved", "path": at("pages.jsonl")},
        ],
        "output": {"shard_samples": 20},
    }))
}

#[test]
fn everything_wrong_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = collection(dir.path());
    let out = dir.path().join("out");
    let summary = images::run(&config, &out).unwrap();
    let dropped = dropped(&out);
    assert_eq!(dropped["files/03.jpg"], "copy", "90.jpg has more pixels");
    assert_eq!((dropped["files/91.png"].as_str(), dropped["files/92.png"].as_str()), ("copy", "corrupt"));
    assert_eq!((dropped["files/93.jpg"].as_str(), summary.dropped["broken"]), ("format", 2));
    assert_eq!((summary.samples, summary.kept), (44 + 32, 40 + 30), "{summary:?}");
    assert_eq!((summary.taken_out["boilerplate"], summary.taken_out["copy"]), (30, 30));
    assert_eq!(summary.shards, 4);
    let all = members(&out);
    let meta: Value = serde_json::from_slice(&all["000000040.json"]).unwrap();
    assert_eq!(meta["texts"], json!(["before", null, "between", "after"]));
    assert_eq!(meta["images"], json!([null, "0.png", null, null]));
    assert_eq!(all["000000040.0.png"], picture(100, 80, ImageFormat::Png));
    assert!(images::run(&config, &out).unwrap().up_to_date);

    // What a run wrote can be read again, and nothing is left to take out.
    let again = json!({"source": [{"kind": "webdataset", "path": out.join("shards")}]});
    let second = images::run(&self::config(again), &dir.path().join("again")).unwrap();
    assert_eq!(
        (second.samples, second.kept, second.kept_images),
        (70, 70, summary.kept_images),
        "{second:?}"
    );
}

#[test]
fn a_run_goes_on_with_the_same_bytes_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    let config = collection(dir.path());
    let (whole, half) = (dir.path().join("whole"), dir.path().join("half"));
    images::run(&config, &whole).unwrap();
    let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
    pool(1).install(|| images::run(&config, &half)).unwrap();
    let shard = |out: &Path, n: u32| fs::read(out.join(format!("shards/{n:06}.tar"))).unwrap();
    let equal = |half: &Path| {
        (0..4).for_each(|n| assert_eq!(shard(&whole, n), shard(half, n)));
        for name in ["dropped.jsonl", "report.json", "report.html", "provenance.json"] {
            assert_eq!(fs::read(whole.join(name)).unwrap(), fs::read(half.join(name)).unwrap(), "{name}");
        }
    };
    equal(&half);
    // As a kill after the second shard leaves it: the directory a file stands in the way of.
    let third = dir.path().join("third");
    fs::create_dir_all(third.join("shards/000002.tar")).unwrap();
    fs::write(third.join("shards/000002.tar/x"), "").unwrap();
    fs::create_dir_all(third.join(".tmp-work")).unwrap();
    let identity = fs::read(whole.join("provenance.json")).unwrap();
    fs::write(third.join(".tmp-work/identity.json"), identity).unwrap();
    assert!(images::run(&config, &third).is_err());
    assert!(third.join(".tmp-work/000001.jsonl").is_file() && third.join("shards/000000.tar").is_file());
    fs::remove_dir_all(third.join("shards/000002.tar")).unwrap();
    images::run(&config, &third).unwrap();
    equal(&third);
    assert!(!third.join(".tmp-work").exists());
}

#[test]
fn a_cut_shard_gives_what_comes_before() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(golden().join("shard.tar")).unwrap();
    fs::write(dir.path().join("cut.tar"), &bytes[..bytes.len() / 2]).unwrap();
    let config = config(json!({"source": [{"kind": "webdataset", "path": dir.path().join("cut.tar")}]}));
    let summary = images::run(&config, &dir.path().join("out")).unwrap();
    assert_eq!(summary.dropped["broken"], 1);
    assert!(summary.kept >= 1, "{summary:?}");
    let line = fs::read_to_string(dir.path().join("out/dropped.jsonl")).unwrap();
    assert!(line.contains("cut.tar is damaged"), "{line}");
}
