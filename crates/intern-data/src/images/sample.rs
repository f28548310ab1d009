//! Pictures with their texts, from files, WebDataset shards and interleaved documents.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::source::Paths;
use crate::source::files::{self, FileRef};

/// Endings of files that are pictures.
pub const ENDINGS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"];
/// Page files one unit of work holds.
const FILES_PER_UNIT: usize = 1000;

/// What a source of pictures is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Picture files; `x.txt` and `x.json` beside `x.jpg` are its caption and what is known of it.
    Files,
    /// Tar files whose members of one name and several endings are one sample.
    Webdataset,
    /// JSON lines of documents: `texts` and `images` of equal length, one of each place `null`
    /// (OBELICS), or `text_list` and `image_info` with `matched_text_index` (MMC4). Images are paths
    /// from the file's directory, or `data:` addresses.
    Interleaved,
}

/// One `[[source]]` of pictures.
#[derive(Clone, Debug, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// Name in ids and reports; the kind's name if not given.
    #[serde(default)]
    pub name: String,
    /// What the files are.
    pub kind: Kind,
    /// A file, a directory, or a pattern with `*`, `?` and `**`; also a list of them.
    pub path: Paths,
}

impl SourceConfig {
    /// The name, or the kind's.
    #[must_use]
    pub fn label(&self) -> String {
        match (self.name.as_str(), self.kind) {
            ("", Kind::Files) => "files".into(),
            ("", Kind::Webdataset) => "webdataset".into(),
            ("", Kind::Interleaved) => "interleaved".into(),
            (name, _) => name.into(),
        }
    }
}

/// Files that are read in one go: a shard, a file of documents, or some pictures.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Begins the ids of its samples.
    pub label: String,
    /// What the files are.
    pub kind: Kind,
    /// One, or several pictures.
    pub files: Vec<FileRef>,
}

/// A picture as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// Its ending in a shard: `jpg`; in an interleaved document it has its place before it: `3.jpg`.
    pub ending: String,
    /// The file; empty if it is missing.
    pub bytes: Vec<u8>,
}

/// Members of a sample in a shard: ending and bytes.
pub type Members = Vec<(String, Vec<u8>)>;

/// Pictures and texts that belong together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Unique in the run: source, file and name.
    pub id: String,
    /// The pictures; one of a pair, any number of a document.
    pub images: Vec<Image>,
    /// A document: its texts and the places of its pictures (numbers in `images`), in order.
    pub parts: Option<Vec<Part>>,
    /// A pair's text.
    pub caption: Option<String>,
    /// What else is known, as JSON.
    pub meta: Map<String, Value>,
    /// Members of other kinds: ending and bytes.
    pub others: Members,
}

/// A place of an interleaved document.
#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// A text.
    Text(String),
    /// The picture of this number.
    Image(usize),
}

impl Part {
    /// The text, if it is one.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Image(_) => None,
        }
    }
}

/// The units of all sources, in order.
///
/// # Errors
/// If a path is missing or holds nothing that fits.
pub fn units(sources: &[SourceConfig]) -> Result<Vec<Unit>> {
    let mut all = Vec::new();
    for source in sources {
        let label = source.label();
        let endings: Vec<String> = match source.kind {
            Kind::Files => ENDINGS.iter().map(|e| format!(".{e}")).collect(),
            Kind::Webdataset => vec![".tar".into()],
            Kind::Interleaved => [".jsonl", ".jsonl.gz", ".jsonl.zst"].map(String::from).into(),
        };
        let endings: Vec<&str> = endings.iter().map(String::as_str).collect();
        ensure!(
            !source.path.as_slice().is_empty(),
            "source {label}: no path\nhint: add path = \"…\" to this [[source]]"
        );
        for path in source.path.as_slice() {
            let found = files::list(path, &endings).with_context(|| format!("source {label}"))?;
            let size = if source.kind == Kind::Files { FILES_PER_UNIT } else { 1 };
            let part = found.chunks(size).map(|f| Unit {
                label: label.clone(),
                kind: source.kind,
                files: f.to_vec(),
            });
            all.extend(part);
        }
    }
    Ok(all)
}

/// Takes a sample, or what was wrong with one, and says whether more are wanted.
pub type Each<'a> = dyn FnMut(Result<Sample>) -> Result<ControlFlow<()>> + 'a;

impl Unit {
    /// Gives the samples of the unit in order. A damaged archive gives what comes before the damage.
    ///
    /// # Errors
    /// If a file cannot be opened, or as `each`.
    pub fn read(&self, each: &mut Each) -> Result<()> {
        match self.kind {
            Kind::Files => {
                for file in &self.files {
                    if each(read_file(&self.label, file))?.is_break() {
                        break;
                    }
                }
                Ok(())
            }
            Kind::Webdataset => read_shard(&self.label, &self.files[0], each),
            Kind::Interleaved => read_documents(&self.label, &self.files[0], each),
        }
    }
}

fn read_file(label: &str, file: &FileRef) -> Result<Sample> {
    let bytes = fs::read(&file.path).with_context(|| format!("cannot read {}", file.path.display()))?;
    let (_, ending) = file.name.rsplit_once('.').unwrap_or_default();
    let mut sample = Sample { id: format!("{label}/{}", file.name), ..Sample::default() };
    sample.images.push(Image { ending: ending.to_lowercase(), bytes });
    let beside = |ending: &str| fs::read(file.path.with_extension(ending)).ok();
    sample.add_texts(beside("txt"), beside("json"))?;
    Ok(sample)
}

impl Sample {
    /// Takes the caption from a text file, or from the JSON's `caption` or `text`; a JSON with
    /// `texts` and `images` makes it a document.
    fn add_texts(&mut self, text: Option<Vec<u8>>, meta: Option<Vec<u8>>) -> Result<()> {
        if let Some(meta) = meta {
            match serde_json::from_slice(&meta).with_context(|| format!("{}: its JSON", self.id))? {
                Value::Object(map) => self.meta = map,
                other => _ = self.meta.insert("json".into(), other),
            }
        }
        if let Some(text) = text {
            self.caption = Some(String::from_utf8_lossy(&text).trim().to_string());
        } else if let Some(text) = ["caption", "text"].iter().find_map(|k| self.meta.get(*k)?.as_str()) {
            self.caption = Some(text.trim().to_string());
        }
        if self.meta.contains_key("texts") && self.meta.contains_key("images") {
            let images = std::mem::take(&mut self.images);
            let of_name = |name: &str| images.iter().find(|i| i.ending == name).map(|i| i.bytes.clone());
            self.read_document(|name| Ok(of_name(name).unwrap_or_default()))?;
        }
        Ok(())
    }

    /// Takes texts and pictures out of `meta`; `fetch` gives a picture by its name.
    fn read_document(&mut self, fetch: impl Fn(&str) -> Result<Vec<u8>>) -> Result<()> {
        let take = |meta: &mut Map<String, Value>, key: &str| match meta.shift_remove(key) {
            Some(Value::Array(list)) => Ok(list),
            Some(_) => bail!("{key} is no list"),
            None => {
                bail!("there is no {key}\nhint: documents have texts and images, or text_list and image_info")
            }
        };
        let meta = &mut self.meta;
        let mut places: Vec<Place> = Vec::new();
        if meta.contains_key("text_list") {
            let texts = take(meta, "text_list")?;
            let mut images = take(meta, "image_info")?;
            let at = |image: &Value| image.get("matched_text_index").and_then(Value::as_u64).unwrap_or(0);
            images.sort_by_key(at);
            let mut images = images.into_iter().peekable();
            for (i, text) in texts.iter().enumerate() {
                while let Some(image) = images.next_if(|image| at(image) <= i as u64) {
                    let name = ["image_name", "raw_url"].iter().find_map(|k| image.get(*k)?.as_str());
                    places.push(Place::Image(name.context("an image has no image_name")?.into()));
                }
                places.push(Place::Text(text.as_str().context("a text is no string")?.into()));
            }
        } else {
            let (texts, images) = (take(meta, "texts")?, take(meta, "images")?);
            ensure!(texts.len() == images.len(), "{} texts for {} images", texts.len(), images.len());
            for (text, image) in texts.iter().zip(&images) {
                match (text, image) {
                    (Value::String(text), Value::Null) => places.push(Place::Text(text.clone())),
                    (Value::Null, Value::String(name)) => places.push(Place::Image(name.clone())),
                    (Value::Null, Value::Null) => {}
                    _ => bail!("each place has a text or an image, the other null"),
                }
            }
        }
        let mut parts = Vec::new();
        for place in places {
            match place {
                Place::Text(text) => parts.push(Part::Text(text)),
                Place::Image(name) => {
                    parts.push(Part::Image(self.images.len()));
                    self.images.push(Image { ending: ending_of(&name), bytes: fetch(&name)? });
                }
            }
        }
        self.parts = Some(parts);
        Ok(())
    }

    /// The text that belongs to picture `i`: the caption, or a document's texts right before and after.
    #[must_use]
    pub fn texts_of(&self, i: usize) -> Vec<&str> {
        let Some(parts) = &self.parts else { return self.caption.iter().map(String::as_str).collect() };
        let Some(at) = parts.iter().position(|p| *p == Part::Image(i)) else { return Vec::new() };
        let beside = [at.checked_sub(1).and_then(|i| parts.get(i)), parts.get(at + 1)];
        beside.into_iter().flatten().filter_map(Part::text).collect()
    }

    /// The members of a shard that hold this sample: ending and bytes. `name` begins their names.
    #[must_use]
    pub fn members(&self, known: &Map<String, Value>) -> Members {
        let mut members = Vec::new();
        let mut meta = self.meta.clone();
        meta.extend(known.clone());
        if let Some(parts) = &self.parts {
            let image = |part: &Part| match part {
                Part::Image(i) => json!(format!("{i}.{}", self.images[*i].ending)),
                Part::Text(_) => Value::Null,
            };
            let text = |part: &Part| match part {
                Part::Text(text) => json!(text),
                Part::Image(_) => Value::Null,
            };
            meta.insert("texts".into(), parts.iter().map(text).collect());
            meta.insert("images".into(), parts.iter().map(image).collect());
        }
        for (i, image) in self.images.iter().enumerate() {
            let place = if self.parts.is_some() { format!("{i}.") } else { String::new() };
            members.push((format!("{place}{}", image.ending), image.bytes.clone()));
        }
        if let Some(caption) = &self.caption {
            members.push(("txt".into(), caption.clone().into_bytes()));
        }
        members.push(("json".into(), Value::Object(meta).to_string().into_bytes()));
        members.extend(self.others.iter().cloned());
        members
    }

    /// Keeps only the pictures `keep` says; a document loses their places too.
    pub fn retain_images(&mut self, keep: impl Fn(usize) -> bool) {
        let mut numbers = vec![None; self.images.len()];
        let mut kept = Vec::new();
        for (i, image) in std::mem::take(&mut self.images).into_iter().enumerate() {
            if keep(i) {
                numbers[i] = Some(kept.len());
                kept.push(image);
            }
        }
        self.images = kept;
        if let Some(parts) = &mut self.parts {
            parts.retain_mut(|part| match part {
                Part::Text(_) => true,
                Part::Image(i) => numbers[*i].inspect(|n| *i = *n).is_some(),
            });
        }
    }
}

enum Place {
    Text(String),
    Image(String),
}

fn ending_of(name: &str) -> String {
    if let Some(kind) = name.strip_prefix("data:image/") {
        return kind.split([';', ',']).next().unwrap_or_default().replace("jpeg", "jpg");
    }
    let name = name.split(['?', '#']).next().unwrap_or_default().to_lowercase();
    match name.rsplit_once('.') {
        Some((_, ending)) if ENDINGS.contains(&ending) => ending.into(),
        _ => "jpg".into(),
    }
}

/// The picture an interleaved document names: a `data:` address or a path from `dir`.
fn fetch(dir: &Path, name: &str) -> Result<Vec<u8>> {
    if let Some(rest) = name.strip_prefix("data:") {
        let (_, data) = rest.split_once(";base64,").context("a data: address without base64")?;
        return base64::engine::general_purpose::STANDARD.decode(data).context("a data: address");
    }
    // What is not there counts as missing, not as damage of the document.
    Ok(fs::read(dir.join(name)).unwrap_or_default())
}

fn read_documents(label: &str, file: &FileRef, each: &mut Each) -> Result<()> {
    let FileRef { path, name } = file;
    let dir = path.parent().unwrap_or(Path::new(""));
    let input = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let input: Box<dyn Read + Send> = match path.extension().and_then(|e| e.to_str()) {
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(input)),
        Some("zst") => Box::new(zstd::Decoder::new(input).context("starting zstd")?),
        _ => Box::new(input),
    };
    for (i, line) in BufReader::with_capacity(1 << 16, input).lines().enumerate() {
        let damaged = line.is_err();
        let read = || {
            let mut sample = Sample { meta: serde_json::from_str(&line?)?, ..Sample::default() };
            let id = sample.meta.get("id").and_then(Value::as_str);
            sample.id = format!("{label}/{name}/{}", id.map_or_else(|| (i + 1).to_string(), String::from));
            sample.read_document(|name| fetch(dir, name))?;
            anyhow::Ok(sample)
        };
        let sample = read().with_context(|| format!("{} line {}", path.display(), i + 1));
        // Nothing readable follows damaged compression.
        if each(sample)?.is_break() || damaged {
            break;
        }
    }
    Ok(())
}

/// Members of a tar file, put together by the name before the first dot of the last part.
fn read_shard(label: &str, file: &FileRef, each: &mut Each) -> Result<()> {
    let input = File::open(&file.path).with_context(|| format!("cannot open {}", file.path.display()))?;
    let id = format!("{label}/{}", file.name);
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 16, input));
    let damaged = |e: std::io::Error| anyhow!("{} is damaged: {e}", file.path.display());
    let mut group: Option<(String, Members)> = None;
    for entry in archive.entries().map_err(damaged)? {
        let member = entry.and_then(|mut entry| {
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let mut bytes = Vec::new();
            if entry.header().entry_type().is_file() {
                entry.read_to_end(&mut bytes)?;
                if (bytes.len() as u64) < entry.size() {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            Ok((entry.header().entry_type().is_file(), name, bytes))
        });
        let (name, bytes) = match member {
            Ok((true, name, bytes)) => (name, bytes),
            Ok((false, ..)) => continue,
            Err(e) => {
                // The sample that was being read may lack members.
                return each(Err(damaged(e))).map(drop);
            }
        };
        let base = name.rfind('/').map_or(0, |at| at + 1);
        let Some(dot) = name[base..].find('.') else { continue };
        let (key, ending) = (&name[..base + dot], name[base + dot + 1..].to_lowercase());
        if group.as_ref().is_none_or(|(k, _)| k != key) {
            if let Some((key, members)) = group.take()
                && each(from_members(format!("{id}/{key}"), members))?.is_break()
            {
                return Ok(());
            }
            group = Some((key.to_string(), Vec::new()));
        }
        if let Some((_, members)) = &mut group {
            members.push((ending, bytes));
        }
    }
    if let Some((key, members)) = group {
        return each(from_members(format!("{id}/{key}"), members)).map(drop);
    }
    Ok(())
}

fn from_members(id: String, members: Members) -> Result<Sample> {
    let mut sample = Sample { id, ..Sample::default() };
    let (mut text, mut meta) = (None, None);
    for (ending, bytes) in members {
        let numbered = ending
            .split_once('.')
            .is_some_and(|(n, kind)| n.bytes().all(|b| b.is_ascii_digit()) && ENDINGS.contains(&kind));
        match ending.as_str() {
            "txt" | "caption" => text = Some(bytes),
            "json" => meta = Some(bytes),
            // `seg.png` and its like are no pictures to look at.
            e if numbered || ENDINGS.contains(&e) => sample.images.push(Image { ending, bytes }),
            _ => sample.others.push((ending, bytes)),
        }
    }
    sample.add_texts(text, meta)?;
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(unit: &Unit) -> Vec<Result<Sample>> {
        let mut all = Vec::new();
        unit.read(&mut |sample| {
            all.push(sample);
            Ok(ControlFlow::Continue(()))
        })
        .unwrap();
        all
    }

    #[test]
    fn documents_of_both_kinds_are_read_and_written_back() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.png"), "A").unwrap();
        let lines = [
            json!({"id": "o", "lang": "en", "texts": ["one", null, "two", null],
                "images": [null, "a.png", null, "data:image/jpeg;base64,Qg=="]}),
            json!({"text_list": ["one", "two"], "image_info": [
                {"image_name": "missing.webp", "matched_text_index": 1},
                {"image_name": "a.png", "matched_text_index": 0}]}),
            json!({"texts": ["one"], "images": []}),
        ];
        let path = dir.path().join("documents.jsonl");
        fs::write(&path, lines.map(|l| l.to_string()).join("\n")).unwrap();
        let paths = Paths::One(path);
        let source = SourceConfig { name: String::new(), kind: Kind::Interleaved, path: paths };
        let samples = read(&units(&[source]).unwrap()[0]);
        let first = samples[0].as_ref().unwrap();
        assert_eq!(first.id, "interleaved/documents.jsonl/o");
        assert_eq!(first.images[1], Image { ending: "jpg".into(), bytes: b"B".to_vec() });
        assert_eq!((first.texts_of(0), first.texts_of(1)), (vec!["one", "two"], vec!["two"]));
        let second = samples[1].as_ref().unwrap();
        assert_eq!(
            second.parts.as_ref().unwrap()[..],
            [Part::Image(0), Part::Text("one".into()), Part::Image(1), Part::Text("two".into())]
        );
        assert_eq!((second.images[0].bytes.len(), second.images[1].bytes.len()), (1, 0));
        let error = format!("{:#}", samples[2].as_ref().unwrap_err());
        assert!(error.contains("line 3") && error.contains("1 texts for 0 images"), "{error}");

        let mut kept = first.clone();
        kept.retain_images(|i| i == 1);
        let members = kept.members(&Map::new());
        assert_eq!(members[0], ("0.jpg".into(), b"B".to_vec()));
        let again = from_members("x".into(), members).unwrap();
        assert_eq!((again.parts, again.images.len()), (kept.parts.clone(), 1));
        assert_eq!(again.meta["lang"], "en");
    }
}
