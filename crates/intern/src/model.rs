//! Opens the model a command names: a checkpoint directory, a GGUF file, an address at a hub, or
//! the URL of a server.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use intern_engine::{Engine, EngineConfig};
use intern_hub::{Address, HubConfig};
use intern_lm::LanguageModel;
use intern_lm::remote::Remote;
use toml::{Table, Value};

/// Opens `model`; `adapter` is merged into local weights. A URL may name one of a server's
/// models after `#`: `https://host/v1#name`.
pub fn open(model: &str, adapter: Option<&Path>, engine: &EngineConfig) -> Result<Box<dyn LanguageModel>> {
    if model.starts_with("http://") || model.starts_with("https://") {
        if adapter.is_some() {
            bail!("an adapter can only be loaded into a local model, and {model} is a URL");
        }
        let key = std::env::var("OPENAI_API_KEY").ok();
        let (url, name) = match model.split_once('#') {
            Some((url, name)) => (url, Some(name.to_string())),
            None => (model, None),
        };
        return Ok(Box::new(Remote::new(url, name, key)?));
    }
    Ok(Box::new(Engine::load(&local(Path::new(model))?, adapter, engine)?))
}

fn address(model: &Path) -> Result<Option<Address>> {
    Ok(model.to_str().map(Address::parse).transpose()?.flatten())
}

/// The name of a model at a hub, without its owner's; `None` for paths.
pub fn hub_name(model: &Path) -> Result<Option<String>> {
    let name = |address: Address| address.repository.split('/').next_back().map(str::to_owned);
    Ok(address(model)?.and_then(name))
}

/// The path of a model on this machine: fetched first where `model` is an address at a hub.
///
/// `HF_ENDPOINT`, `HF_TOKEN`, `MODELSCOPE_ENDPOINT` and `MODELSCOPE_API_TOKEN` are the hubs' own
/// variables; models are kept below `INTERN_CACHE`, else the user's cache directory.
pub fn local(model: &Path) -> Result<PathBuf> {
    match address(model)? {
        None => Ok(model.to_path_buf()),
        Some(address) => intern_hub::fetch(&address, &hub_config()?),
    }
}

/// The hubs as the environment describes them.
pub fn hub_config() -> Result<HubConfig> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mut config = HubConfig::new(&intern_hub::cache_dir()?.join("hub"));
    config.hf_token = variable("HF_TOKEN");
    config.modelscope_token = variable("MODELSCOPE_API_TOKEN");
    if let Some(endpoint) = variable("HF_ENDPOINT") {
        config.hf_endpoint = endpoint;
    }
    if let Some(endpoint) = variable("MODELSCOPE_ENDPOINT") {
        config.modelscope_endpoint = endpoint;
    }
    config.opendatalab_token = variable("OPENXLAB_TOKEN");
    if let Some(endpoint) = variable("OPENXLAB_ENDPOINT") {
        config.opendatalab_endpoint = endpoint;
    }
    Ok(config)
}

/// Takes `model`, `adapter` and `engine` out of a step's settings and opens the model.
pub fn from_config(config: &mut Table, origin: &str) -> Result<Box<dyn LanguageModel>> {
    let Some(Value::String(model)) = config.remove("model") else {
        bail!("{origin}: `model` is missing\nhint: a checkpoint directory, a .gguf file or an http URL");
    };
    let adapter = match config.remove("adapter") {
        Some(Value::String(path)) => Some(path),
        _ => None,
    };
    let engine = match config.remove("engine") {
        Some(Value::Table(table)) => crate::config::resolve(table, &[], origin)?,
        _ => EngineConfig::default(),
    };
    open(&model, adapter.as_deref().map(Path::new), &engine)
}

/// Content hash of the model and adapter that `config` names, so that results of other weights
/// under the same name are not continued; `None` for a URL.
pub fn fingerprint(config: &Table) -> Result<Option<String>> {
    let mut hashes = Vec::new();
    for key in ["model", "adapter"] {
        if let Some(Value::String(path)) = config.get(key)
            && Path::new(path).exists()
        {
            hashes.push(intern_format::provenance::hash_path(Path::new(path))?);
        }
    }
    Ok((!hashes.is_empty()).then(|| hashes.join(" ")))
}
