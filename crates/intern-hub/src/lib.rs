//! Fetches models from Hugging Face and ModelScope, and data sets from these and OpenDataLab, once.
//!
//! A model is named by an address ([`Address`]); its files are listed ([`listing`](mod@listing)),
//! those that inference needs are downloaded ([`download`]) into the directory of one immutable
//! state of the repository, and the path is handed out. What is there already is not fetched
//! again; what broke off goes on where it stopped; every file is checked against the hub's
//! checksum before it gets its name. Knows nothing about what is inside a file.
//!
//! ```text
//! CACHE/huggingface/ORG--NAME/COMMIT/config.json, …
//! CACHE/huggingface/ORG--NAME/refs/main        the commit a branch stood at
//! ```

mod dataset;
mod download;
mod listing;
mod remote;

pub use dataset::{Dataset, DatasetFile, list_dataset};
pub use remote::{Input, cache_dir, fetch_inputs, is_remote};

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use intern_format::atomic::write_atomic;
use intern_progress::Progress;

use download::Client;
use listing::{Listing, RemoteFile};

/// A hub and its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// <https://huggingface.co>, or a mirror of it.
    HuggingFace,
    /// <https://modelscope.cn>.
    ModelScope,
    /// <https://opendatalab.com>, served by OpenXLab; data sets only.
    OpenDataLab,
}

impl Site {
    const ALL: [Self; 3] = [Self::HuggingFace, Self::ModelScope, Self::OpenDataLab];

    /// How its addresses begin.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::HuggingFace => "hf:",
            Self::ModelScope => "modelscope:",
            Self::OpenDataLab => "opendatalab:",
        }
    }
}

/// A model or data set at a hub: `hf:ORG/NAME[/FILE][@REVISION]` or `modelscope:…`; data sets also
/// `opendatalab:…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Where.
    pub site: Site,
    /// `ORG/NAME`.
    pub repository: String,
    /// One file of it, such as a GGUF file; else all that a checkpoint needs.
    pub file: Option<String>,
    /// Branch, tag or commit; the site's main branch if absent.
    pub revision: Option<String>,
}

impl Address {
    /// Reads an address; `None` for text that does not begin with a hub's name.
    ///
    /// # Errors
    /// If what follows the name is no repository.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let found = Site::ALL.into_iter().find_map(|site| Some((text.strip_prefix(site.prefix())?, site)));
        let Some((rest, site)) = found else {
            return Ok(None);
        };
        let (path, revision) = match rest.split_once('@') {
            Some((path, revision)) => (path, Some(revision.to_owned())),
            None => (rest, None),
        };
        let parts: Vec<&str> = path.split('/').collect();
        let is_name = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        ensure!(
            parts.len() >= 2
                && parts.iter().all(|p| is_name(p))
                && revision.as_deref().is_none_or(|r| !r.is_empty()),
            "{text} is no address at a hub\n\
             hint: hf:ORG/NAME, hf:ORG/NAME/FILE.gguf or hf:ORG/NAME@REVISION, and the same with modelscope:"
        );
        let file = (parts.len() > 2).then(|| parts[2..].join("/"));
        Ok(Some(Self { site, repository: parts[..2].join("/"), file, revision }))
    }
}

/// Where to look and where to keep.
#[derive(Clone, Debug)]
pub struct HubConfig {
    /// Directory of what was fetched.
    pub cache: PathBuf,
    /// Base URL of Hugging Face or a mirror.
    pub hf_endpoint: String,
    /// Token for gated and private repositories there.
    pub hf_token: Option<String>,
    /// Base URL of ModelScope.
    pub modelscope_endpoint: String,
    /// Token for private repositories there.
    pub modelscope_token: Option<String>,
    /// Base URL of OpenXLab, which serves OpenDataLab.
    pub opendatalab_endpoint: String,
    /// Token for downloads there.
    pub opendatalab_token: Option<String>,
}

impl HubConfig {
    /// The public hubs, without tokens.
    #[must_use]
    pub fn new(cache: &Path) -> Self {
        Self {
            cache: cache.to_path_buf(),
            hf_endpoint: "https://huggingface.co".into(),
            hf_token: None,
            modelscope_endpoint: "https://modelscope.cn".into(),
            modelscope_token: None,
            opendatalab_endpoint: "https://openxlab.org.cn".into(),
            opendatalab_token: None,
        }
    }

    fn client(&self, site: Site) -> Client {
        match site {
            Site::HuggingFace => Client::new(&self.hf_endpoint, bearer(&self.hf_token)),
            Site::ModelScope => Client::new(&self.modelscope_endpoint, bearer(&self.modelscope_token)),
            Site::OpenDataLab => Client::new(&self.opendatalab_endpoint, self.opendatalab_token.clone()),
        }
    }
}

fn bearer(token: &Option<String>) -> Option<String> {
    token.as_ref().map(|token| format!("Bearer {token}"))
}

/// Fetches what `address` names, as far as it is not there; the path of its directory, or of the
/// one file.
///
/// Without a connection, a state that was fetched before under the same revision is used.
///
/// # Errors
/// If the hub cannot be reached, has no such model or denies it, or a file does not match its checksum.
pub fn fetch(address: &Address, config: &HubConfig) -> Result<PathBuf> {
    let name = match address.site {
        Site::HuggingFace => "huggingface",
        Site::ModelScope => "modelscope",
        Site::OpenDataLab => bail!(
            "{} holds data sets, not models\nhint: intern data get {}{}",
            address.site.prefix(),
            address.site.prefix(),
            address.repository
        ),
    };
    let home = config.cache.join(name).join(address.repository.replace('/', "--"));
    let client = config.client(address.site);
    let revision = address.revision.clone().unwrap_or_else(|| listing::main_branch(address.site).to_owned());
    let reference = home.join("refs").join(revision.replace('/', "--"));
    let listing = match listing::list(&client, address, &revision) {
        Ok(listing) => listing,
        Err(error) if error.is::<download::Unreachable>() => {
            let known = fs::read_to_string(&reference).ok().map(|commit| home.join(commit.trim()));
            return match known.map(|dir| place(&dir, address)).filter(|path| path.exists()) {
                Some(path) => {
                    tracing::warn!("{}; using what was fetched before", download::first_line(&error));
                    Ok(path)
                }
                None => Err(error),
            };
        }
        Err(error) => return Err(error),
    };
    let files = wanted(&listing, address)?;
    let dir = home.join(&listing.commit);
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    // Another process may be fetching the same.
    let lock = File::create(home.join("lock")).with_context(|| home.display().to_string())?;
    lock.lock().with_context(|| home.display().to_string())?;
    let progress = Progress::new(&address.repository, files.iter().map(|f| f.size).sum(), "B");
    for file in &files {
        let path = dir.join(&file.path);
        if fs::metadata(&path).is_ok_and(|m| m.len() == file.size) {
            progress.inc(file.size);
            continue;
        }
        let url = listing::url(address, &listing.commit, &revision, &file.path);
        client.fetch(&url, file, &path, &progress)?;
    }
    progress.finish();
    fs::create_dir_all(home.join("refs")).with_context(|| home.display().to_string())?;
    write_atomic(&reference, listing.commit.as_bytes())?;
    Ok(place(&dir, address))
}

fn place(dir: &Path, address: &Address) -> PathBuf {
    address.file.as_ref().map_or_else(|| dir.to_path_buf(), |file| dir.join(file))
}

/// The files to fetch: the one that is named, or weights, configurations and tokenizers.
fn wanted<'a>(listing: &'a Listing, address: &Address) -> Result<Vec<&'a RemoteFile>> {
    let repository = &address.repository;
    if let Some(name) = &address.file {
        let file = listing.files.iter().find(|f| f.path == *name);
        return Ok(vec![file.with_context(|| {
            let others: Vec<&str> = listing
                .files
                .iter()
                .map(|f| f.path.as_str())
                .filter(|p| p.ends_with(".gguf"))
                .take(20)
                .collect();
            format!("{repository} has no file {name}\nhint: its GGUF files: {}", others.join(", "))
        })?]);
    }
    let is_wanted = |file: &&RemoteFile| {
        let path = file.path.as_str();
        let ends = [".safetensors", ".json", ".model", ".tiktoken", ".jinja", ".txt"];
        !path.contains('/') && ends.iter().any(|end| path.ends_with(end))
    };
    let files: Vec<&RemoteFile> = listing.files.iter().filter(is_wanted).collect();
    ensure!(
        files.iter().any(|f| f.path == "config.json")
            && files.iter().any(|f| f.path.ends_with(".safetensors")),
        "{repository} has no config.json with safetensors beside it\n\
         hint: name one file of a repository of GGUF files: ORG/NAME/FILE.gguf"
    );
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_paths() {
        let parse = |text: &str| Address::parse(text).unwrap();
        assert_eq!(parse("runs/tiny/checkpoint"), None);
        assert_eq!(parse("org/name"), None);
        let address = parse("hf:org/name-7b").unwrap();
        assert_eq!(
            (address.repository.as_str(), &address.file, &address.revision),
            ("org/name-7b", &None, &None)
        );
        let address = parse("modelscope:org/name/part/q4.gguf@v1.0").unwrap();
        assert_eq!(address.site, Site::ModelScope);
        assert_eq!(address.file.as_deref(), Some("part/q4.gguf"));
        assert_eq!(address.revision.as_deref(), Some("v1.0"));
        for bad in ["hf:name", "hf:org/", "hf:org/../name", "hf:org/name@", "hf:org/na me", "hf:/etc/passwd"]
        {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }
}
