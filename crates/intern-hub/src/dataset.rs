//! Data sets: their files are listed, chosen and downloaded to a directory of the user's.
//!
//! The protocols are those of the hubs' own clients: Hugging Face's of models under another path,
//! ModelScope's tree in pages, OpenXLab's listing with a cursor and its redirecting downloads.

use std::path::Path;

use anyhow::{Context, Result, bail};
use intern_progress::Progress;
use serde::{Deserialize, Serialize};

use crate::download::Client;
use crate::listing::{self, Answer, Entry, Kind, Listing, RemoteFile, Tree, escape};
use crate::{Address, HubConfig, Site};

/// Entries of a page of a listing.
const PAGE: usize = 100;
/// Pages before a listing is given up: a hub that never ends one.
const MAX_PAGES: usize = 100_000;

/// A data set as it stands at a hub.
pub struct Dataset {
    address: Address,
    revision: String,
    client: Client,
    listing: Listing,
    /// The hub's number for it, where downloads need one.
    number: Option<u64>,
}

/// A file of a data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DatasetFile {
    /// In the data set, with slashes.
    pub path: String,
    /// Bytes.
    pub size: u64,
}

/// Asks a hub what a data set holds.
///
/// # Errors
/// If the hub cannot be reached, has no such data set or denies it.
pub fn list_dataset(address: &Address, config: &HubConfig) -> Result<Dataset> {
    let client = config.client(address.site);
    let revision = address.revision.clone().unwrap_or_else(|| listing::main_branch(address.site).to_owned());
    let mut number = None;
    let listing = match address.site {
        Site::HuggingFace => {
            listing::list_hugging_face(&client, Kind::Dataset, &address.repository, &revision)?
        }
        Site::ModelScope => list_model_scope(&client, &address.repository, &revision)?,
        Site::OpenDataLab => {
            if revision != "main" {
                bail!("OpenDataLab keeps one state of a data set\nhint: leave out @{revision}");
            }
            let (listing, id) = list_open_data_lab(&client, &address.repository)?;
            number = id;
            listing
        }
    };
    let listing = listing::checked(listing, address)?;
    Ok(Dataset { address: address.clone(), revision, client, listing, number })
}

impl Dataset {
    /// Names this very state: a commit, or a hash of what is listed.
    #[must_use]
    pub fn state(&self) -> &str {
        &self.listing.commit
    }

    /// Its files, or the one the address names.
    #[must_use]
    pub fn files(&self) -> Vec<DatasetFile> {
        let named = |file: &&RemoteFile| {
            self.address.file.as_ref().is_none_or(|name| {
                file.path == *name
                    || file.path.strip_prefix(name.as_str()).is_some_and(|r| r.starts_with('/'))
            })
        };
        let files = self.listing.files.iter().filter(named);
        files.map(|f| DatasetFile { path: f.path.clone(), size: f.size }).collect()
    }

    /// Downloads `files` into `out`, as far as they are not there whole.
    ///
    /// # Errors
    /// If a download fails for good or does not match its checksum.
    pub fn fetch(&self, files: &[DatasetFile], out: &Path) -> Result<()> {
        let progress = Progress::new(&self.address.repository, files.iter().map(|f| f.size).sum(), "B");
        for wanted in files {
            let path = out.join(&wanted.path);
            // A file has its name only when it is whole.
            if std::fs::metadata(&path).is_ok_and(|m| m.len() == wanted.size) {
                progress.inc(wanted.size);
                continue;
            }
            let file = self.listing.files.iter().find(|f| f.path == wanted.path);
            let file = file.with_context(|| format!("the data set has no file {}", wanted.path))?;
            self.client.fetch(&self.url(&file.path), file, &path, &progress)?;
        }
        progress.finish();
        Ok(())
    }

    fn url(&self, path: &str) -> String {
        let repository = &self.address.repository;
        match self.address.site {
            Site::HuggingFace => {
                format!("/datasets/{repository}/resolve/{}/{}", self.listing.commit, escape(path))
            }
            Site::ModelScope => format!(
                "/api/v1/datasets/{repository}/repo?Source=SDK&Revision={}&View=False&FilePath={}",
                escape(&self.revision),
                escape(path).replace('/', "%2F")
            ),
            Site::OpenDataLab => {
                format!("/datasets/resolve/{}/main/{}", self.number.unwrap_or_default(), escape(path))
            }
        }
    }
}

fn list_model_scope(client: &Client, repository: &str, revision: &str) -> Result<Listing> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct About {
        id: u64,
    }
    let about: About =
        client.json::<Answer<_>>(&format!("/api/v1/datasets/{repository}"))?.data(repository)?;
    let mut files = Vec::new();
    for page in 1..=MAX_PAGES {
        let url = format!(
            "/api/v1/datasets/{}/repo/tree?Revision={}&Root=%2F&Recursive=True&PageNumber={page}&PageSize={PAGE}",
            about.id,
            escape(revision)
        );
        let tree: Tree = client.json::<Answer<_>>(&url)?.data(repository)?;
        let entries = tree.files.len();
        files.extend(tree.files.into_iter().filter_map(Entry::file));
        if entries < PAGE {
            break;
        }
    }
    Ok(Listing::named_by_files(files))
}

/// The listing, and the hub's number of the data set.
fn list_open_data_lab(client: &Client, repository: &str) -> Result<(Listing, Option<u64>)> {
    #[derive(Deserialize)]
    struct Answer {
        data: Page,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Page {
        #[serde(default)]
        list: Option<Vec<Entry>>,
        #[serde(default)]
        has_next: bool,
        #[serde(default)]
        after: Option<String>,
    }
    #[derive(Deserialize)]
    struct Entry {
        path: String,
        #[serde(default)]
        size: u64,
        #[serde(default)]
        sha256: String,
        dataset_id: u64,
        #[serde(default, rename = "type")]
        kind: String,
    }
    let name = repository.replace('/', ",");
    let (mut files, mut number, mut after) = (Vec::new(), None, None::<String>);
    for _ in 0..MAX_PAGES {
        let cursor = after.map(|a| format!("&after={}", escape(&a).replace('/', "%2F"))).unwrap_or_default();
        let url = format!(
            "/datasets/api/v2/datasets/{name}/r/main?recursive=true&needContent=true&limit=500{cursor}"
        );
        let page = client.json::<Answer>(&url)?.data;
        for entry in page.list.unwrap_or_default() {
            number = number.or(Some(entry.dataset_id));
            let path = entry.path.trim_start_matches('/');
            if entry.kind != "dir" && !path.is_empty() && !path.ends_with('/') {
                files.push(RemoteFile::with_sha256(path.to_owned(), entry.size, &entry.sha256));
            }
        }
        after = page.after.filter(|_| page.has_next);
        if after.is_none() {
            break;
        }
    }
    Ok((Listing::named_by_files(files), number))
}
