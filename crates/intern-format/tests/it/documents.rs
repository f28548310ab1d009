//! Documents: shapes, round trips in every container, errors.

use std::path::Path;

use intern_format::document::{self, Document, DocumentWriter};
use serde_json::json;

fn read(path: &Path) -> intern_format::Result<Vec<Document>> {
    document::open(path)?.collect()
}

#[track_caller]
fn check(name: &str, content: &str, expect: &[Document]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    assert_eq!(read(&path).unwrap(), expect);
}

#[track_caller]
fn fails(name: &str, content: &str, expect: &str) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    let text = read(&path).unwrap_err().to_string();
    assert!(text.contains(expect) && text.contains(name), "{text}");
}

fn document(id: &str, text: &str, meta: serde_json::Value) -> Document {
    Document { meta: meta.as_object().unwrap().clone(), ..Document::new(id, text) }
}

#[test]
fn shapes_of_the_field() {
    // Ours.
    let full = Document {
        id: "x".into(),
        text: "t".into(),
        source: "s".into(),
        url: "u".into(),
        lang: "en".into(),
        meta: json!({"k": [1]}).as_object().unwrap().clone(),
    };
    check("a.jsonl", &serde_json::to_string(&full).unwrap(), &[full]);
    // datatrove, with what it has no field for in `metadata`.
    let mut expect = document("0", "t", json!({"date": "2024", "extra": 1}));
    (expect.url, expect.lang) = ("u".into(), "zh".into());
    check(
        "a.jsonl",
        r#"{"text":"t","id":"0","metadata":{"url":"u","language":"zh","date":"2024"},"extra":1,"none":null}"#,
        &[expect],
    );
    // Plain data sets: numbers as ids, no ids, other names, null texts, several values in one file.
    check(
        "a.jsonl",
        "{\"text\":\"a\",\"id\":7}\n\n{\"content\":\"b\"}\n{\"text\":null}\n",
        &[
            document("7", "a", json!({})),
            document("a.jsonl/3", "b", json!({})),
            document("a.jsonl/4", "", json!({})),
        ],
    );
    check(
        "a.json",
        "[{\"text\":\"a\"},\n{\"text\":\"b\"}]",
        &[document("a.json/1", "a", json!({})), document("a.json/2", "b", json!({}))],
    );
}

#[test]
fn errors_name_file_and_line() {
    fails(
        "a.jsonl",
        "{\"text\":\"a\"}\n{\"txt\":\"b\",\"n\":1}\n",
        "line 2: expected a field `text`, found fields txt, n\nhint:",
    );
    fails(
        "a.jsonl",
        "{\"text\":\"a\"}\n{\"text\":",
        "line 2, column 8: expected valid JSON, found EOF while parsing a value",
    );
    fails("a.jsonl", "{\"text\":[1]}", "line 1: expected a string in field `text`, found [1]");
    fails("a.jsonl", "3", "line 1: expected a JSON object with a `text` field, found 3");
    fails("a.parquet", "PAR1 but not really", "footer: expected a Parquet file");
    fails("a.csv", "", "extension of `a.csv` is not supported\nhint: documents are files named");
    let dir = tempfile::tempdir().unwrap();
    let text = read(dir.path()).unwrap_err().to_string();
    assert!(text.contains("missing documents\nhint:"), "{text}");
    assert!(read(&dir.path().join("none.jsonl")).unwrap_err().to_string().contains("hint: check the path"));
    assert!(DocumentWriter::create(&dir.path().join("a.csv")).is_err());
}

#[test]
fn an_error_ends_its_file_and_not_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl.zst");
    let whole = zstd::encode_all(&b"{\"text\":\"a\"}\n"[..], 1).unwrap();
    let mut bytes = whole.clone();
    bytes.extend(&whole[..whole.len() - 2]);
    std::fs::write(&path, bytes).unwrap();
    let items: Vec<_> = document::open(&path).unwrap().collect();
    assert_eq!(items.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false]);
    assert!(items[1].as_ref().unwrap_err().to_string().contains("expected a whole zstd stream"));
}

#[test]
fn every_container_round_trips_and_is_reproducible() {
    let documents: Vec<Document> = (0..300)
        .map(|i| Document {
            id: format!("d{i}"),
            text: format!("text {i} naïve 书生\n\u{0}\"\\").repeat(i % 5),
            source: "test".into(),
            url: if i % 2 == 0 { String::new() } else { format!("https://example.org/{i}") },
            lang: "zh".into(),
            meta: json!({"n": i, "nested": {"a": [null, 1.5]}}).as_object().unwrap().clone(),
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.jsonl", "b.jsonl.gz", "c.jsonl.zst", "d.parquet"] {
        let path = dir.path().join(name);
        let mut versions = Vec::new();
        for _ in 0..2 {
            let mut writer = DocumentWriter::create(&path).unwrap();
            documents.iter().for_each(|d| writer.write(d).unwrap());
            assert_eq!(writer.count(), 300);
            assert_eq!(writer.finish().unwrap(), 300);
            versions.push(std::fs::read(&path).unwrap());
        }
        assert_eq!(versions[0], versions[1], "{name}");
        assert_eq!(read(&path).unwrap(), documents, "{name}");
    }
    // The directory reads as its files in name order; reports beside them are no documents.
    std::fs::write(dir.path().join("provenance.json"), "{}").unwrap();
    std::fs::write(dir.path().join("notes.txt"), "x").unwrap();
    assert_eq!(read(dir.path()).unwrap(), vec![documents; 4].concat());
    // A writer that is dropped leaves nothing.
    drop(DocumentWriter::create(&dir.path().join("e.parquet")).unwrap());
    assert_eq!(document::files(dir.path()).unwrap().len(), 4);
}

#[test]
fn parquet_of_several_row_groups_and_of_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    for count in [0, 10_000, 25_001] {
        let mut writer = DocumentWriter::create(&path).unwrap();
        for i in 0..count {
            writer.write(&Document::new(i.to_string(), "x")).unwrap();
        }
        assert_eq!(writer.finish().unwrap(), count);
        let ids: Vec<String> = read(&path).unwrap().into_iter().map(|d| d.id).collect();
        assert_eq!(ids, (0..count).map(|i| i.to_string()).collect::<Vec<_>>());
    }
}
