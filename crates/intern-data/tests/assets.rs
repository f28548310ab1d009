//! Against real data: archives as warcio counts them, and main content as trafilatura's
//! own evaluation counts it. Skipped, with a printed reason, where the assets are absent.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use intern_data::extract::{ExtractConfig, extract};
use intern_data::language::MODEL;
use intern_data::source::encoding::decode;
use intern_data::source::warc::Reader;
use serde::Deserialize;

fn assets() -> Option<PathBuf> {
    let root = std::env::var_os("INTERN_ASSETS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/assets")),
        PathBuf::from,
    );
    if root.is_dir() {
        return Some(root);
    }
    println!("skipped: no assets at {}", root.display());
    None
}

#[derive(Deserialize)]
struct Counts {
    records: u64,
    types: BTreeMap<String, u64>,
    error: Option<String>,
}

#[test]
fn archives_hold_the_records_warcio_finds() {
    let Some(assets) = assets() else { return };
    let golden: BTreeMap<String, Counts> =
        serde_json::from_str(include_str!("golden/warc_counts.json")).unwrap();
    let mut wrong = Vec::new();
    for (name, expect) in golden {
        let path = assets.join("data/warc").join(&name);
        let mut reader = Reader::new(BufReader::new(File::open(&path).unwrap()), 1 << 24).unwrap();
        let mut types: BTreeMap<String, u64> = BTreeMap::new();
        for record in reader.by_ref() {
            *types.entry(record.kind).or_default() += 1;
        }
        let mut wanted = expect.types;
        // ARC's version block is what WARC calls `warcinfo`.
        if let Some(n) = wanted.remove("arc_header") {
            *wanted.entry("warcinfo".into()).or_default() += n;
        }
        let found: u64 = types.values().sum();
        let fits = if expect.error.is_some() { found >= expect.records } else { types == wanted };
        if !fits {
            wrong.push(format!("{name}: {types:?}, warcio {wanted:?}; given up: {:?}", reader.broken()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[derive(Deserialize)]
struct Page {
    file: String,
    with: Vec<String>,
    without: Vec<String>,
}

#[test]
fn main_content_is_found() {
    if std::env::var_os("RUN_SLOW_TESTS").is_none() {
        println!("skipped: set RUN_SLOW_TESTS");
        return;
    }
    let Some(assets) = assets() else { return };
    let dir = tempfile::tempdir().unwrap();
    let archive = assets.join("data/trafilatura-eval.tar.xz");
    let unpacked = Command::new("tar").arg("xJf").arg(&archive).arg("-C").arg(dir.path()).status();
    if !unpacked.is_ok_and(|s| s.success()) {
        println!("skipped: tar cannot unpack {}", archive.display());
        return;
    }
    let (f1, pages, seconds) = score(dir.path());
    println!("F1 {f1:.4} on {pages} pages, {:.0} pages/s on one core", pages as f64 / seconds);
    assert_eq!(pages, 884);
    assert!(f1 >= 0.89, "F1 {f1:.4}");
}

/// Counts segments as trafilatura's evaluation does: F1, pages, seconds spent on decoding and extraction.
fn score(dir: &Path) -> (f64, usize, f64) {
    let pages: BTreeMap<String, Page> =
        serde_json::from_slice(&fs::read(dir.join("evaldata.json")).unwrap()).unwrap();
    let config = ExtractConfig::default();
    let (mut hit, mut missed, mut wrong) = (0.0, 0.0, 0.0);
    let (mut count, mut seconds) = (0, 0.0);
    for page in pages.values() {
        let Ok(bytes) = fs::read(dir.join("eval").join(&page.file)) else { continue };
        let start = Instant::now();
        let text = extract(&decode(&bytes, None, true).text, &config).text;
        seconds += start.elapsed().as_secs_f64();
        count += 1;
        for segment in &page.with {
            if text.contains(segment.as_str()) { hit += 1.0 } else { missed += 1.0 }
        }
        wrong += page.without.iter().filter(|s| text.contains(s.as_str())).count() as f64;
    }
    let (precision, recall) = (hit / (hit + wrong), hit / (hit + missed));
    (2.0 * precision * recall / (precision + recall), count, seconds)
}

/// lingua's test sentences (not those its frequencies were counted in), the languages the model
/// tells apart. Bosnian counts as Croatian, Malay as Indonesian, Nynorsk as Bokmål.
#[test]
fn languages_of_sentences_are_named() {
    let Some(assets) = assets() else { return };
    let dir = tempfile::tempdir().unwrap();
    let archive = assets.join("data/langid/lingua-testdata.tar.xz");
    let unpacked =
        Command::new("tar").arg("xJf").arg(&archive).arg("-C").arg(dir.path()).arg("sentences").status();
    if !unpacked.is_ok_and(|s| s.success()) {
        println!("skipped: tar cannot unpack {}", archive.display());
        return;
    }
    let mut shares: Vec<(f64, String)> = Vec::new();
    for file in fs::read_dir(dir.path().join("sentences")).unwrap() {
        let path = file.unwrap().path();
        let code = path.file_stem().unwrap().to_string_lossy().into_owned();
        if !MODEL.codes().contains(&code.as_str()) {
            println!("{code} is not told apart");
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let (mut right, mut n) = (0, 0);
        for line in text.lines().filter(|l| !l.trim().is_empty()) {
            right += usize::from(MODEL.identify(line, None).is_some_and(|g| g.code == code));
            n += 1;
        }
        shares.push((right as f64 / n as f64, code));
    }
    shares.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mean = shares.iter().map(|s| s.0).sum::<f64>() / shares.len() as f64;
    let worst: Vec<String> =
        shares.iter().take(12).map(|(s, code)| format!("{code} {:.1}", 100.0 * s)).collect();
    println!("mean {:.2} % of {} languages; least: {}", 100.0 * mean, shares.len(), worst.join(", "));
    let of = |wanted: &str| shares.iter().find(|(_, code)| code == wanted).map_or(0.0, |s| s.0);
    println!("zh {:.2} %, en {:.2} %", 100.0 * of("zh"), 100.0 * of("en"));
    assert!(mean >= 0.97 && of("zh") >= 0.99, "mean {mean}, zh {}", of("zh"));
}
