//! What several fuzz targets do with bytes.

use std::path::PathBuf;

use intern_data::extract::{ExtractConfig, Format, Mode, extract};
use intern_data::source::files::FileRef;
use intern_data::source::{self, Item, Shard, SourceConfig, encoding};

/// Extracts a page in every mode and format.
pub fn page(bytes: &[u8], charset: Option<&str>) {
    let html = encoding::decode(bytes, charset, true).text;
    for mode in [Mode::Precision, Mode::Balanced, Mode::Recall] {
        let format = if mode == Mode::Recall { Format::Markdown } else { Format::Text };
        let _ = extract(&html, &ExtractConfig { mode, format, ..ExtractConfig::default() });
    }
    let _ = extract(&html, &ExtractConfig { main_content: false, ..ExtractConfig::default() });
}

/// Reads `bytes` to the end as a source's file of this kind and name.
pub fn items(kind: &str, name: &str, bytes: &[u8]) -> Vec<Item> {
    let dir = std::env::temp_dir().join(format!("intern-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a temporary directory");
    let path: PathBuf = dir.join(name);
    std::fs::write(&path, bytes).expect("a temporary file");
    let config: SourceConfig =
        serde_json::from_value(serde_json::json!({"kind": kind, "path": path})).expect("a source");
    let shard = Shard { source: 0, files: vec![FileRef { path, name: name.to_owned() }] };
    source::open(&config, &shard, 1 << 16).map(Iterator::collect).unwrap_or_default()
}

/// Reads `bytes` as a WebDataset shard.
pub fn shard(bytes: &[u8]) {
    let path = std::env::temp_dir().join(format!("intern-fuzz-{}.tar", std::process::id()));
    std::fs::write(&path, bytes).expect("a temporary file");
    let source = serde_json::json!([{"kind": "webdataset", "path": path}]);
    let sources: Vec<_> = serde_json::from_value(source).expect("a source");
    for unit in intern_data::images::sample::units(&sources).expect("a file") {
        let _ = unit.read(&mut |sample| {
            let _ = sample.map(|s| s.members(&serde_json::Map::new()));
            Ok(std::ops::ControlFlow::Continue(()))
        });
    }
}
