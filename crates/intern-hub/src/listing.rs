//! What a repository holds at a revision, in the words of each hub.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::download::Client;
use crate::{Address, Site};

/// A file at a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    /// In its repository, with slashes.
    pub path: String,
    /// Bytes.
    pub size: u64,
    pub checksum: Checksum,
}

/// What a file's bytes must give, in lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    Sha256(String),
    /// Of a file in git itself: SHA-1 over `blob SIZE\0` and the bytes.
    GitBlob(String),
    /// The hub tells none; the size has to do.
    Unknown,
}

/// What a repository is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Model,
    Dataset,
}

/// A repository's files.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    /// Names this very state.
    pub commit: String,
    pub files: Vec<RemoteFile>,
}

/// The branch that is meant where none is named.
pub(crate) fn main_branch(site: Site) -> &'static str {
    match site {
        Site::HuggingFace => "main",
        Site::ModelScope => "master",
        Site::OpenDataLab => "main",
    }
}

/// Where a file of the listed state is, below the endpoint.
pub(crate) fn url(address: &Address, commit: &str, revision: &str, path: &str) -> String {
    let repository = &address.repository;
    match address.site {
        Site::HuggingFace => format!("/{repository}/resolve/{commit}/{}", escape(path)),
        Site::OpenDataLab => unreachable!("it has no models"),
        Site::ModelScope => format!(
            "/api/v1/models/{repository}/repo?Revision={}&FilePath={}",
            escape(revision),
            escape(path).replace('/', "%2F")
        ),
    }
}

/// Percent-encodes what may not stand in a path; slashes stay.
pub(crate) fn escape(text: &str) -> String {
    let keeps = |b: u8| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b);
    text.bytes().map(|b| if keeps(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// The files of `address` at `revision`.
pub(crate) fn list(client: &Client, address: &Address, revision: &str) -> Result<Listing> {
    let listing = match address.site {
        Site::HuggingFace => list_hugging_face(client, Kind::Model, &address.repository, revision)?,
        Site::ModelScope => list_model_scope(client, &address.repository, revision)?,
        Site::OpenDataLab => unreachable!("it has no models"),
    };
    checked(listing, address)
}

/// Refuses what a hub should not say.
pub(crate) fn checked(listing: Listing, address: &Address) -> Result<Listing> {
    let is_plain = |path: &str| {
        !path.contains('\\') && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
    };
    let is_hex = listing.commit.chars().all(|c| c.is_ascii_hexdigit()) && listing.commit.len() >= 7;
    ensure!(is_hex, "{}: the hub names the commit {:?}", address.repository, listing.commit);
    if let Some(file) = listing.files.iter().find(|f| !is_plain(&f.path)) {
        bail!("{}: the hub lists the path {:?}", address.repository, file.path);
    }
    Ok(listing)
}

pub(crate) fn list_hugging_face(
    client: &Client,
    kind: Kind,
    repository: &str,
    revision: &str,
) -> Result<Listing> {
    #[derive(Deserialize)]
    struct Model {
        sha: String,
        siblings: Vec<Sibling>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Sibling {
        rfilename: String,
        size: Option<u64>,
        blob_id: Option<String>,
        lfs: Option<Lfs>,
    }
    #[derive(Deserialize)]
    struct Lfs {
        sha256: String,
        size: u64,
    }
    let kind = if kind == Kind::Model { "models" } else { "datasets" };
    let url =
        format!("/api/{kind}/{repository}/revision/{}?blobs=true", escape(revision).replace('/', "%2F"));
    let model: Model = client.json(&url)?;
    let file = |sibling: Sibling| {
        let path = sibling.rfilename;
        let (size, checksum) = match (sibling.lfs, sibling.size, sibling.blob_id) {
            (Some(lfs), ..) => (lfs.size, Checksum::Sha256(lfs.sha256)),
            (None, Some(size), Some(id)) => (size, Checksum::GitBlob(id)),
            _ => bail!("{repository}: the hub tells neither size nor checksum of {path}"),
        };
        Ok(RemoteFile { path, size, checksum })
    };
    Ok(Listing { commit: model.sha, files: model.siblings.into_iter().map(file).collect::<Result<_>>()? })
}

/// ModelScope's answer to anything.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Answer<T> {
    data: Option<T>,
    message: Option<String>,
}

impl<T> Answer<T> {
    /// What it is about, or ModelScope's reason for not saying.
    pub fn data(self, repository: &str) -> Result<T> {
        let why = self.message.unwrap_or_else(|| "the hub tells nothing".into());
        self.data.with_context(|| format!("{repository}: {why}"))
    }
}

/// ModelScope's list of files, or a page of it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Tree {
    pub files: Vec<Entry>,
}

/// A file or directory there.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Entry {
    path: String,
    #[serde(rename = "Type")]
    kind: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    sha256: String,
}

impl Entry {
    /// The file; `None` for a directory.
    pub fn file(self) -> Option<RemoteFile> {
        (self.kind == "blob").then(|| RemoteFile::with_sha256(self.path, self.size, &self.sha256))
    }
}

fn list_model_scope(client: &Client, repository: &str, revision: &str) -> Result<Listing> {
    let url = format!("/api/v1/models/{repository}/repo/files?Revision={}&Recursive=true", escape(revision));
    let tree: Tree = client.json::<Answer<_>>(&url)?.data(repository)?;
    let files: Vec<RemoteFile> = tree.files.into_iter().filter_map(Entry::file).collect();
    if let Some(file) = files.iter().find(|f| f.checksum == Checksum::Unknown) {
        bail!("{repository}: the hub tells no checksum of {}", file.path);
    }
    Ok(Listing::named_by_files(files))
}

impl RemoteFile {
    /// With the SHA-256 that a hub tells, or tells not.
    pub fn with_sha256(path: String, size: u64, sum: &str) -> Self {
        let is_sum = sum.len() == 64 && sum.chars().all(|c| c.is_ascii_hexdigit());
        let checksum = if is_sum { Checksum::Sha256(sum.to_lowercase()) } else { Checksum::Unknown };
        Self { path, size, checksum }
    }
}

impl Listing {
    /// The listing of a hub that does not name the state as a whole: its files do.
    pub fn named_by_files(files: Vec<RemoteFile>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for file in &files {
            let sum = match &file.checksum {
                Checksum::Sha256(sum) | Checksum::GitBlob(sum) => sum.clone(),
                Checksum::Unknown => file.size.to_string(),
            };
            hasher.update(format!("{}\0{sum}\0", file.path).as_bytes());
        }
        Self { commit: hasher.finalize().to_hex()[..40].to_owned(), files }
    }
}
