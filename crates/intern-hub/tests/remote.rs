//! Inputs from a web server and from S3, both on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use intern_hub::fetch_inputs;

/// Files by their path, and the requests for contents: path and range.
#[derive(Default)]
struct Store {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    got: Mutex<Vec<(String, String)>>,
    is_down: AtomicBool,
}

impl Store {
    fn send(&self, path: &str, headers: &HeaderMap) -> Response {
        if self.is_down.load(SeqCst) {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let Some(bytes) = self.files.lock().unwrap().get(path).cloned() else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let etag = format!("\"{}-{}\"", bytes.len(), bytes[0]);
        let range = headers.get("range").and_then(|v| v.to_str().ok()).unwrap_or_default().to_string();
        self.got.lock().unwrap().push((path.into(), range.clone()));
        let modified = ("last-modified", "Wed, 25 Nov 2026 10:00:00 GMT".to_string());
        let Some((from, to)) = range.strip_prefix("bytes=").and_then(|r| r.split_once('-')) else {
            return ([("etag", etag), modified], bytes).into_response();
        };
        let from: usize = from.parse().unwrap();
        let to = to.parse().map_or(bytes.len(), |to: usize| bytes.len().min(to + 1));
        let shown = ("content-range", format!("bytes {from}-{}/{}", to - 1, bytes.len()));
        (StatusCode::PARTIAL_CONTENT, [("etag", etag), modified, shown], bytes[from..to].to_vec())
            .into_response()
    }
}

async fn web(State(store): State<Arc<Store>>, Path(path): Path<String>, headers: HeaderMap) -> Response {
    store.send(&path, &headers)
}

/// ListObjectsV2.
async fn listing(State(store): State<Arc<Store>>, Query(query): Query<BTreeMap<String, String>>) -> Response {
    let prefix = query.get("prefix").cloned().unwrap_or_default();
    let mut body = String::from("<ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated>");
    for (key, bytes) in store.files.lock().unwrap().iter().filter(|(k, _)| k.starts_with(&prefix)) {
        body += &format!(
            "<Contents><Key>{key}</Key><LastModified>2026-11-25T10:00:00.000Z</LastModified><ETag>\"{}-{}\"</ETag>\
             <Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>",
            bytes.len(),
            bytes[0],
            bytes.len()
        );
    }
    ([("content-type", "application/xml")], body + "</ListBucketResult>").into_response()
}

/// Runs the server; its address.
fn serve(store: &Arc<Store>) -> String {
    let routes = Router::new()
        .route("/bucket", get(listing))
        .route("/bucket/{*path}", get(web))
        .route("/web/{*path}", get(web))
        .with_state(store.clone());
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            send.send(listener.local_addr().unwrap()).unwrap();
            axum::serve(listener, routes).await.unwrap();
        });
    });
    format!("http://{}", receive.recv().unwrap())
}

fn put(store: &Store, path: &str, bytes: &[u8]) {
    store.files.lock().unwrap().insert(path.into(), bytes.to_vec());
}

fn gets(store: &Store) -> Vec<(String, String)> {
    std::mem::take(&mut *store.got.lock().unwrap())
}

#[test]
fn a_file_of_a_web_server_is_fetched_once_for_each_state() {
    let store = Arc::new(Store::default());
    let (url, cache) = (serve(&store) + "/web/a/pages.jsonl.gz?x=1", tempfile::tempdir().unwrap());
    put(&store, "a/pages.jsonl.gz", b"first");
    let fetch = || fetch_inputs(&url, cache.path(), |_| false).unwrap();
    let [input] = &fetch()[..] else { panic!("one file") };
    assert_eq!((input.name.as_str(), fs::read(&input.path).unwrap()), ("pages.jsonl.gz", b"first".to_vec()));
    gets(&store);
    assert_eq!(fetch()[0], *input);
    assert_eq!(gets(&store).len(), 1, "only its header was asked for");

    // Half of another state is there, then half of this one.
    put(&store, "a/pages.jsonl.gz", b"second!");
    fs::write(input.path.with_added_extension("part"), "sec").unwrap();
    fetch();
    assert_eq!(fs::read(&input.path).unwrap(), b"second!");
    assert!(gets(&store).iter().all(|(_, range)| range.is_empty()));
    fs::rename(&input.path, input.path.with_added_extension("part")).unwrap();
    fs::write(input.path.with_added_extension("part"), "sec").unwrap();
    fetch();
    assert_eq!(fs::read(&input.path).unwrap(), b"second!");
    assert_eq!(gets(&store)[1].1, "bytes=3-");
    store.is_down.store(true, SeqCst);
    assert_eq!(fetch()[0], *input, "what is there will do");
    let error = fetch_inputs(&url.replace("pages", "none"), cache.path(), |_| true).unwrap_err().to_string();
    assert!(error.contains("503") && error.contains("hint:"), "{error}");
    store.is_down.store(false, SeqCst);

    for (address, message) in [
        (url.replace("pages", "none"), "answered 404"),
        ("http://127.0.0.1:1/x.html".into(), "127.0.0.1:1"),
        ("https://example.org/".into(), "names no file"),
    ] {
        let error = fetch_inputs(&address, cache.path(), |_| true).unwrap_err().to_string();
        assert!(error.contains(message) && error.contains("hint:"), "{error}");
    }
}

#[cfg(feature = "s3")]
#[test]
fn objects_below_a_prefix_are_fetched() {
    let store = Arc::new(Store::default());
    let (url, cache) = (serve(&store), tempfile::tempdir().unwrap());
    // SAFETY: no other thread of this test's process reads the environment now; nextest gives each its own.
    unsafe {
        std::env::set_var("AWS_ENDPOINT_URL", &url);
        std::env::set_var("AWS_ALLOW_HTTP", "true");
        std::env::set_var("AWS_ACCESS_KEY_ID", "key");
        std::env::set_var("AWS_SECRET_ACCESS_KEY", "secret");
        std::env::remove_var("AWS_SESSION_TOKEN");
    }
    let large: Vec<u8> = (0..20_000_000_u32).map(|i| (i % 251) as u8).collect();
    put(&store, "crawl/b.warc.gz", b"bb");
    put(&store, "crawl/a/a.warc.gz", &large);
    put(&store, "crawl/readme.txt", b"r");
    put(&store, "other/x.warc.gz", b"x");
    let fetch = |address: &str| fetch_inputs(address, cache.path(), |name| name.ends_with(".warc.gz"));
    let inputs = fetch("s3://bucket/crawl").unwrap();
    let names: Vec<&str> = inputs.iter().map(|i| i.name.as_str()).collect();
    assert_eq!(names, ["a/a.warc.gz", "b.warc.gz"]);
    assert_eq!(fs::read(&inputs[0].path).unwrap(), large);
    let contents = |got: Vec<(String, String)>| got.into_iter().filter(|(_, r)| !r.is_empty()).count();
    assert_eq!(contents(gets(&store)), 3, "the large one in two pieces");
    fetch("s3://bucket/crawl").unwrap();
    assert_eq!(contents(gets(&store)), 0, "all is there");
    let one = fetch("s3://bucket/crawl/readme.txt").unwrap();
    assert_eq!((one[0].name.as_str(), fs::read(&one[0].path).unwrap()), ("readme.txt", b"r".to_vec()));
    let error = fetch("s3://bucket/none").unwrap_err().to_string();
    assert!(error.contains("no fitting files"), "{error}");
}

#[cfg(not(feature = "s3"))]
#[test]
fn without_the_feature_it_says_so() {
    let error = fetch_inputs("s3://b/p", std::path::Path::new("."), |_| true).unwrap_err().to_string();
    assert!(error.contains("--features s3"), "{error}");
}
