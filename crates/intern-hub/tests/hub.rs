//! Fetching from a server on this machine that speaks both hubs' protocols.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as Route, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use intern_hub::{Address, HubConfig, fetch, list_dataset};

/// What the server holds and what it saw.
#[derive(Default)]
struct Hub {
    files: BTreeMap<&'static str, Vec<u8>>,
    /// Bytes after which a download of weights breaks off, for its first attempts.
    breaks: Mutex<Vec<usize>>,
    /// Offsets that downloads of weights began at.
    starts: Mutex<Vec<u64>>,
    downloads: AtomicUsize,
    /// Requests to the storage that carried the hub's token.
    leaked: AtomicUsize,
    needs_token: AtomicBool,
    is_wrong: AtomicBool,
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn hex(algorithm: &'static ring::digest::Algorithm, bytes: &[u8]) -> String {
    ring::digest::digest(algorithm, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn is_allowed(hub: &Hub, headers: &HeaderMap) -> bool {
    !hub.needs_token.load(SeqCst) || headers.get("authorization").is_some_and(|v| v == "Bearer secret")
}

async fn hf_listing(
    State(hub): State<Arc<Hub>>,
    Route((_, _, revision)): Route<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    if !is_allowed(&hub, &headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if !["main", COMMIT].contains(&revision.as_str()) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let entries: Vec<String> = hub
        .files
        .iter()
        .map(|(name, bytes)| {
            let size = bytes.len();
            if name.ends_with(".safetensors") {
                let sum = hex(&ring::digest::SHA256, bytes);
                format!(r#"{{"rfilename":"{name}","size":{size},"lfs":{{"sha256":"{sum}","size":{size},"pointerSize":1}}}}"#)
            } else {
                let blob = [format!("blob {size}\0").as_bytes(), bytes].concat();
                let sum = hex(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &blob);
                format!(r#"{{"rfilename":"{name}","size":{size},"blobId":"{sum}"}}"#)
            }
        })
        .collect();
    format!(r#"{{"sha":"{COMMIT}","siblings":[{}]}}"#, entries.join(",")).into_response()
}

/// Weights lie in a storage of their own, as at the real hub.
async fn hf_file(
    State(hub): State<Arc<Hub>>,
    Route((_, _, _, path)): Route<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    if !is_allowed(&hub, &headers) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if path.ends_with(".safetensors") {
        return Redirect::temporary(&format!("/storage/{path}")).into_response();
    }
    send(&hub, &path, &headers)
}

async fn storage(State(hub): State<Arc<Hub>>, Route(path): Route<String>, headers: HeaderMap) -> Response {
    hub.leaked.fetch_add(usize::from(headers.contains_key("authorization")), SeqCst);
    send(&hub, &path, &headers)
}

fn send(hub: &Hub, path: &str, headers: &HeaderMap) -> Response {
    let Some(bytes) = hub.files.get(path) else { return StatusCode::NOT_FOUND.into_response() };
    hub.downloads.fetch_add(1, SeqCst);
    let from = headers
        .get("range")
        .and_then(|v| v.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let start = from.unwrap_or(0);
    let mut rest = bytes[start as usize..].to_vec();
    if hub.is_wrong.load(SeqCst) {
        rest[0] ^= 1;
    }
    let mut cut = None;
    if path.ends_with(".safetensors") {
        hub.starts.lock().unwrap().push(start);
        cut = hub.breaks.lock().unwrap().pop();
    }
    let status = if from.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let length = rest.len();
    let body = match cut {
        None => Body::from(rest),
        Some(cut) => {
            // Some bytes, then the connection breaks.
            rest.truncate(cut);
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                let _ = sender.send(Ok(rest)).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                let _ = sender.send(Err(std::io::Error::other("broken"))).await;
            });
            Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receiver))
        }
    };
    (status, [("content-length", length.to_string())], body).into_response()
}

async fn ms_listing(State(hub): State<Arc<Hub>>, Query(query): Query<BTreeMap<String, String>>) -> String {
    assert_eq!((query["Revision"].as_str(), query["Recursive"].as_str()), ("master", "true"));
    let entry = |(name, bytes): (&&str, &Vec<u8>)| {
        let sum = hex(&ring::digest::SHA256, bytes);
        format!(r#"{{"Path":"{name}","Type":"blob","Size":{},"Sha256":"{sum}"}}"#, bytes.len())
    };
    let entries: Vec<String> = hub.files.iter().map(entry).collect();
    format!(r#"{{"Code":200,"Data":{{"Files":[{},{{"Path":"sub","Type":"tree"}}]}}}}"#, entries.join(","))
}

async fn ms_file(
    State(hub): State<Arc<Hub>>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    send(&hub, &query["FilePath"], &headers)
}

async fn ms_dataset() -> &'static str {
    r#"{"Code":200,"Data":{"Id":77,"Type":1}}"#
}

/// A hundred entries on the first page, the files on the second.
async fn ms_tree(State(hub): State<Arc<Hub>>, Query(query): Query<BTreeMap<String, String>>) -> String {
    assert_eq!((query["Revision"].as_str(), query["Root"].as_str()), ("master", "/"));
    let entries: Vec<String> = match query["PageNumber"].as_str() {
        "1" => (0..100).map(|i| format!(r#"{{"Path":"d{i}","Type":"tree"}}"#)).collect(),
        _ => hub
            .files
            .iter()
            .map(|(name, bytes)| {
                let sum = hex(&ring::digest::SHA256, bytes);
                format!(r#"{{"Path":"{name}","Type":"blob","Size":{},"Sha256":"{sum}"}}"#, bytes.len())
            })
            .collect(),
    };
    format!(r#"{{"Code":200,"Data":{{"Files":[{}]}}}}"#, entries.join(","))
}

async fn odl_listing(State(hub): State<Arc<Hub>>, Query(query): Query<BTreeMap<String, String>>) -> String {
    let (first, rest): (Vec<_>, Vec<_>) = hub.files.iter().partition(|(name, _)| name.starts_with('c'));
    let files = if query.contains_key("after") { rest } else { first };
    let entry = |(name, bytes): &(&&str, &Vec<u8>)| {
        let sum = hex(&ring::digest::SHA256, bytes);
        format!(r#"{{"path":"/{name}","size":{},"sha256":"{sum}","dataset_id":5}}"#, bytes.len())
    };
    let entries: Vec<String> = files.iter().map(entry).collect();
    let next = if query.contains_key("after") { "" } else { r#","hasNext":true,"after":"c""# };
    format!(r#"{{"data":{{"hasMediaFile":true,"list":[{}]{next}}}}}"#, entries.join(","))
}

/// Downloads need the token, as it is.
async fn odl_file(State(hub): State<Arc<Hub>>, Route(path): Route<String>, headers: HeaderMap) -> Response {
    if headers.get("authorization").is_none_or(|v| v != "jwt") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    assert!(hub.files.contains_key(path.as_str()));
    Redirect::temporary(&format!("/storage/{path}")).into_response()
}

/// A server with a model, and a configuration that leads to it.
fn serve(cache: &Path) -> (Arc<Hub>, HubConfig) {
    let files = [
        ("config.json", b"{\"model_type\": \"llama\"}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("model.safetensors", (0..300_000u32).map(|i| (i * 7 % 251) as u8).collect()),
        ("pytorch_model.bin", vec![1; 10]),
        ("q/tiny.gguf", b"GGUF".to_vec()),
        ("README.md", b"# model".to_vec()),
    ];
    let hub = Arc::new(Hub { files: files.into(), ..Hub::default() });
    let router = Router::new()
        .route("/api/models/{org}/{name}/revision/{revision}", get(hf_listing))
        .route("/{org}/{name}/resolve/{commit}/{*path}", get(hf_file))
        .route("/storage/{*path}", get(storage))
        .route("/api/v1/models/{org}/{name}/repo/files", get(ms_listing))
        .route("/api/v1/models/{org}/{name}/repo", get(ms_file))
        .route("/api/datasets/{org}/{name}/revision/{revision}", get(hf_listing))
        .route("/datasets/{org}/{name}/resolve/{commit}/{*path}", get(hf_file))
        .route("/api/v1/datasets/{org}/{name}", get(ms_dataset))
        .route("/api/v1/datasets/77/repo/tree", get(ms_tree))
        .route("/api/v1/datasets/{org}/{name}/repo", get(ms_file))
        .route("/datasets/api/v2/datasets/org,name/r/main", get(odl_listing))
        .route("/datasets/resolve/5/main/{*path}", get(odl_file))
        .with_state(hub.clone());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
    });
    let config = HubConfig {
        hf_endpoint: endpoint.clone(),
        modelscope_endpoint: endpoint.clone(),
        opendatalab_endpoint: endpoint,
        ..HubConfig::new(cache)
    };
    (hub, config)
}

fn address(text: &str) -> Address {
    Address::parse(text).unwrap().unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn data_sets_come_from_every_hub() {
    intern_progress::set_silent(true);
    for prefix in ["hf", "modelscope", "opendatalab"] {
        let cache = tempfile::tempdir().unwrap();
        let (hub, mut config) = serve(cache.path());
        config.opendatalab_token = Some("jwt".into());
        let out = cache.path().join("out");
        let dataset = list_dataset(&address(&format!("{prefix}:org/name")), &config).unwrap();
        let files = dataset.files();
        assert_eq!(
            files.iter().map(|f| f.size).sum::<u64>(),
            hub.files.values().map(|b| b.len() as u64).sum::<u64>()
        );
        // The connection breaks twice; what arrived stays.
        *hub.breaks.lock().unwrap() = vec![5000, 100_000];
        dataset.fetch(&files, &out).unwrap();
        for (name, bytes) in &hub.files {
            assert!(std::fs::read(out.join(name)).unwrap() == *bytes, "{prefix}: {name}");
        }
        assert!(hub.starts.lock().unwrap().contains(&105_000) || prefix != "hf");
        let before = hub.downloads.load(SeqCst);
        dataset.fetch(&files, &out).unwrap();
        assert_eq!(hub.downloads.load(SeqCst), before, "{prefix}: nothing is fetched twice");

        let part = list_dataset(&address(&format!("{prefix}:org/name/q")), &config).unwrap().files();
        assert_eq!(part.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["q/tiny.gguf"]);
        hub.is_wrong.store(true, SeqCst);
        std::fs::remove_file(out.join("config.json")).unwrap();
        let error = format!("{:#}", dataset.fetch(&files, &out).unwrap_err());
        assert!(error.contains("config.json") && error.contains("checksum"), "{error}");
        assert!(!out.join("config.json").exists());
    }
    let cache = tempfile::tempdir().unwrap();
    let (_, config) = serve(cache.path());
    let dataset = list_dataset(&address("opendatalab:org/name"), &config).unwrap();
    let error = format!("{:#}", dataset.fetch(&dataset.files(), cache.path()).unwrap_err());
    assert!(error.contains("OPENXLAB_TOKEN"), "{error}");
    let error = fetch(&address("opendatalab:org/name"), &config).unwrap_err().to_string();
    assert!(error.contains("data sets, not models"), "{error}");
}

#[test]
fn a_checkpoint_is_fetched_once_and_whole() {
    intern_progress::set_silent(true);
    let cache = tempfile::tempdir().unwrap();
    for (text, commit) in [("hf:org/name", Some(COMMIT)), ("modelscope:org/name", None)] {
        let (hub, config) = serve(cache.path());
        let dir = fetch(&address(text), &config).unwrap();
        assert!(commit.is_none_or(|commit| dir.ends_with(commit)), "{}", dir.display());
        assert_eq!(names(&dir), ["config.json", "model.safetensors", "tokenizer.json"]);
        for name in names(&dir) {
            assert_eq!(std::fs::read(dir.join(&name)).unwrap(), hub.files[name.as_str()], "{name}");
        }
        assert_eq!(hub.downloads.load(SeqCst), 3);
        assert_eq!(fetch(&address(text), &config).unwrap(), dir);
        assert_eq!(hub.downloads.load(SeqCst), 3, "nothing again");
        // One file.
        let file = fetch(&address(&format!("{text}/q/tiny.gguf")), &config).unwrap();
        assert_eq!(std::fs::read(file).unwrap(), b"GGUF");
        // The hub is gone.
        let nowhere = "http://127.0.0.1:1".to_owned();
        let offline = HubConfig { hf_endpoint: nowhere.clone(), modelscope_endpoint: nowhere, ..config };
        assert_eq!(fetch(&address(text), &offline).unwrap(), dir);
        let error = format!("{:#}", fetch(&address(&format!("{text}@v2")), &offline).unwrap_err());
        assert!(error.contains("hint: check the connection"), "{error}");
    }
}

#[test]
fn a_download_goes_on_where_it_broke_off() {
    intern_progress::set_silent(true);
    let cache = tempfile::tempdir().unwrap();
    let (hub, config) = serve(cache.path());
    *hub.breaks.lock().unwrap() = vec![50_000, 100_000];
    let dir = fetch(&address(&format!("hf:org/name@{COMMIT}")), &config).unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), hub.files["model.safetensors"]);
    let starts = hub.starts.lock().unwrap().clone();
    assert_eq!(starts, [0, 100_000, 150_000]);

    // Killed, and started again: the part is still there.
    std::fs::write(dir.join("model.safetensors.part"), &hub.files["model.safetensors"][..70_000]).unwrap();
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    fetch(&address("hf:org/name"), &config).unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), hub.files["model.safetensors"]);
    assert_eq!(hub.starts.lock().unwrap().last(), Some(&70_000));
}

#[test]
fn what_is_wrong_is_said() {
    intern_progress::set_silent(true);
    let cache = tempfile::tempdir().unwrap();
    let (hub, mut config) = serve(cache.path());
    let error = |text: &str, config: &HubConfig| format!("{:#}", fetch(&address(text), config).unwrap_err());
    let message = error("hf:org/name@v9", &config);
    assert!(message.contains("404") && message.contains("hint: check the name"), "{message}");
    let message = error("hf:org/name/none.gguf", &config);
    assert!(message.contains("has no file none.gguf") && message.contains("q/tiny.gguf"), "{message}");
    hub.is_wrong.store(true, SeqCst);
    let message = error("hf:org/name", &config);
    assert!(message.contains("checksum"), "{message}");
    hub.is_wrong.store(false, SeqCst);
    hub.needs_token.store(true, SeqCst);
    let message = error("hf:org/name", &config);
    assert!(message.contains("401") && message.contains("HF_TOKEN"), "{message}");
    config.hf_token = Some("secret".into());
    fetch(&address("hf:org/name"), &config).unwrap();
    assert_eq!(hub.leaked.load(SeqCst), 0, "the token stays with the hub");
}
