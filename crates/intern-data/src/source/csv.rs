//! Comma- and tab-separated values: a document per row, its text in column `text` (or
//! `content`), id, url, lang and source in columns so named, the rest in `meta`.

use std::io::Read;

use anyhow::{Context, Result, bail};
use intern_format::document::Document;
use serde_json::{Map, Value};

use super::files::FileRef;
use super::{Body, Item, Items, Raw};

/// The rows of a file.
///
/// # Errors
/// If it cannot be opened or has no column for the text.
pub fn items(label: String, file: &FileRef) -> Result<Items> {
    let FileRef { path, name } = file.clone();
    let input = std::fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let tabs = path.extension().is_some_and(|e| e == "tsv");
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(if tabs { b'\t' } else { b',' })
        .flexible(true)
        .from_reader(Box::new(input) as Box<dyn Read + Send>);
    let head: Vec<String> = reader
        .byte_headers()
        .context("reading the first row")?
        .iter()
        .map(|h| String::from_utf8_lossy(h).trim_start_matches('\u{feff}').to_string())
        .collect();
    let Some(text) = head.iter().position(|h| matches!(h.as_str(), "text" | "content")) else {
        bail!(
            "{}: no column `text`; the first row is {}\nhint: name the column that holds the text `text`",
            path.display(),
            head.join(", ")
        );
    };
    let mut number = 0u64;
    Ok(Box::new(reader.into_byte_records().map(move |row| {
        let row = match row {
            Ok(row) => row,
            Err(e) => return Item::Broken(format!("{}: {e}", path.display())),
        };
        number += 1;
        let mut d = Document { id: format!("{label}/{name}/{number}"), ..Document::default() };
        let mut meta = Map::new();
        for (i, field) in row.iter().enumerate() {
            let value = String::from_utf8_lossy(field).into_owned();
            let column = head.get(i).map_or("", String::as_str);
            match column {
                _ if i == text => d.text = value,
                "id" if !value.is_empty() => d.id = value,
                "url" => d.url = value,
                "lang" | "language" => d.lang = value,
                "source" => d.source = value,
                "" | "id" => {}
                column => drop(meta.insert(column.to_string(), Value::String(value))),
            }
        }
        let (id, url) = (d.id.clone(), d.url.clone());
        Item::Page(Raw { id, url, path: path.clone(), body: Body::Document(Box::new(d)), meta })
    })))
}
