//! Hugging Face checkpoint directories: `config.json`, `generation_config.json`, and
//! weights in one safetensors file or in shards with an index.
//!
//! The only interface between training and everything after it. Tokenizer files live
//! in the same directory but belong to `intern-tokenizer`.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::atomic::{AtomicDir, read_json, write_json};
pub use crate::safetensors::{
    DType, NamedTensor, SafetensorsFile, TensorSpec, TensorView, save_safetensors, write_safetensors,
};
use crate::safetensors::{missing_tensor, specs_of};
use crate::{Error, Result};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Bytes per shard that `transformers` uses by default (5 GB).
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// An open checkpoint; weights stay mapped until it is dropped.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: Value,
    generation_config: Value,
    files: Vec<SafetensorsFile>,
    /// Tensor name → index into `files`.
    tensors: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// Opens a directory, reads its configuration and maps its weights.
    ///
    /// [`Error::Missing`] when there is no `config.json` or no safetensors weights.
    pub fn open(dir: &Path) -> Result<Self> {
        let config = read_config(dir)?;
        let generation = dir.join(GENERATION_CONFIG);
        let generation_config =
            if generation.is_file() { read_json(&generation)? } else { Value::Object(Default::default()) };
        let (files, tensors) = open_weights(dir)?;
        Ok(Self { dir: dir.to_path_buf(), config, generation_config, files, tensors })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `config.json`, an object.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// `generation_config.json`, an empty object where the file is absent.
    #[must_use]
    pub fn generation_config(&self) -> &Value {
        &self.generation_config
    }

    /// Tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether a tensor is there.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Takes what was read so far out of memory; tensors are read again when looked at.
    pub fn release(&self) {
        self.files.iter().for_each(SafetensorsFile::release);
    }

    /// One tensor, borrowed from the map.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        match self.tensors.get(name) {
            Some(&file) => self.files[file].tensor(name),
            None => Err(missing_tensor(&self.dir, name, self.names())),
        }
    }
}

/// Reads only `config.json`.
pub fn read_config(dir: &Path) -> Result<Value> {
    let path = dir.join(CONFIG);
    if !path.is_file() {
        if let Err(e) = fs::metadata(dir) {
            return Err(Error::io(dir, e));
        }
        let hint = if dir.is_file() {
            "give the directory that holds config.json, not a file in it"
        } else if dir.join("adapter_config.json").is_file() {
            "this is an adapter; give the base model's directory and pass this one as the adapter"
        } else {
            "a checkpoint is a directory with config.json and model.safetensors"
        };
        return Err(Error::missing(dir, CONFIG).with_hint(hint));
    }
    let config: Value = read_json(&path)?;
    if !config.is_object() {
        return Err(Error::corrupt(path, "line 1", "a JSON object", kind(&config)));
    }
    Ok(config)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn open_weights(dir: &Path) -> Result<(Vec<SafetensorsFile>, BTreeMap<String, usize>)> {
    let index = dir.join(INDEX);
    if index.is_file() {
        return open_sharded(dir, &index);
    }
    let single = dir.join(SINGLE);
    if single.is_file() {
        let file = SafetensorsFile::open(&single)?;
        let tensors = file.names().map(|name| (name.to_string(), 0)).collect();
        return Ok((vec![file], tensors));
    }
    for old in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
        if dir.join(old).is_file() {
            let hint = "open it once in transformers and save it with safe_serialization=True";
            return Err(Error::unsupported(dir.join(old), "a pickled checkpoint").with_hint(hint));
        }
    }
    Err(Error::missing(dir, SINGLE).with_hint("weights are model.safetensors, or shards with an index"))
}

/// `model.safetensors.index.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    #[serde(default)]
    metadata: serde_json::Map<String, Value>,
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Distinct shard names, each checked to be a plain file name.
    fn shards(&self, path: &Path) -> Result<Vec<String>> {
        let shards: HashSet<&String> = self.weight_map.values().collect();
        let mut shards: Vec<String> = shards.into_iter().cloned().collect();
        shards.sort();
        for shard in &shards {
            let mut parts = Path::new(shard).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(Error::corrupt(
                    path,
                    "weight_map",
                    "names of files beside it",
                    format!("`{shard}`"),
                ));
            }
        }
        Ok(shards)
    }
}

/// Checks the text of an index as [`Checkpoint::open`] does; the number of shards. For fuzzing.
pub fn check_index(bytes: &[u8]) -> Result<usize> {
    let path = Path::new("(bytes)");
    let index: Index = serde_json::from_slice(bytes).map_err(|e| crate::atomic::json_error(path, &e, 1))?;
    Ok(index.shards(path)?.len())
}

fn open_sharded(dir: &Path, path: &Path) -> Result<(Vec<SafetensorsFile>, BTreeMap<String, usize>)> {
    let index: Index = read_json(path)?;
    let shards = index.shards(path)?;
    let mut files = Vec::with_capacity(shards.len());
    for shard in &shards {
        let shard_path = dir.join(shard);
        if !shard_path.is_file() {
            return Err(Error::missing(path, format!("shard `{shard}`"))
                .with_hint("the index names it but it is not in the directory; fetch it"));
        }
        files.push(SafetensorsFile::open(&shard_path)?);
    }
    let mut tensors = BTreeMap::new();
    for (name, shard) in index.weight_map {
        let file = shards.binary_search(&shard).expect("collected from the same map");
        if !files[file].contains(&name) {
            return Err(Error::missing(files[file].path(), format!("tensor `{name}`"))
                .with_hint(format!("{INDEX} says it is there; the directory mixes two checkpoints")));
        }
        tensors.insert(name, file);
    }
    Ok((files, tensors))
}

/// Saves a checkpoint whose tensors are in memory. See [`save_with`].
pub fn save(
    dir: &Path,
    config: &Value,
    generation_config: &Value,
    tensors: &[NamedTensor<'_>],
    shard_bytes: u64,
) -> Result<()> {
    let specs = specs_of(dir, tensors)?;
    save_with(dir, config, generation_config, &specs, shard_bytes, |i, out| out.write_all(&tensors[i].3))
}

/// Saves a checkpoint tensor by tensor: `fill(i, out)` writes the bytes of `specs[i]`.
///
/// One file up to `shard_bytes`, more become shards with an index. A directory that does not
/// exist yet appears whole; in one that exists each file is replaced whole, weights first,
/// and weights of an earlier save that are no longer named are removed.
pub fn save_with(
    dir: &Path,
    config: &Value,
    generation_config: &Value,
    specs: &[TensorSpec],
    shard_bytes: u64,
    mut fill: impl FnMut(usize, &mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    if dir.exists() {
        return save_into(dir, config, generation_config, specs, shard_bytes, &mut fill);
    }
    let new = AtomicDir::create(dir)?;
    save_into(new.path(), config, generation_config, specs, shard_bytes, &mut fill)?;
    new.commit()
}

fn save_into(
    dir: &Path,
    config: &Value,
    generation_config: &Value,
    specs: &[TensorSpec],
    shard_bytes: u64,
    fill: &mut impl FnMut(usize, &mut dyn Write) -> std::io::Result<()>,
) -> Result<()> {
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let shards = plan_shards(specs, shard_bytes);
    let mut kept = HashSet::new();
    let mut weight_map = BTreeMap::new();
    for (n, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => SINGLE.to_string(),
            count => format!("model-{:05}-of-{count:05}.safetensors", n + 1),
        };
        let part: Vec<TensorSpec> = shard.iter().map(|&i| specs[i].clone()).collect();
        write_safetensors(&dir.join(&name), &part, &metadata, |i, out| fill(shard[i], out))?;
        weight_map.extend(part.into_iter().map(|spec| (spec.name, name.clone())));
        kept.insert(name);
    }
    if weight_map.len() != specs.len() {
        return Err(Error::corrupt(dir, "tensors", "each name once", "a name twice"));
    }
    if shards.len() > 1 {
        let total: u64 = specs.iter().map(TensorSpec::nbytes).sum();
        let metadata = serde_json::Map::from_iter([("total_size".to_string(), total.into())]);
        write_json(&dir.join(INDEX), &Index { metadata, weight_map })?;
        kept.insert(INDEX.to_string());
    }
    write_json(&dir.join(GENERATION_CONFIG), generation_config)?;
    write_json(&dir.join(CONFIG), config)?;
    remove_stale(dir, &kept)
}

/// Fills shards in the given order; a tensor larger than a shard gets its own.
fn plan_shards(specs: &[TensorSpec], shard_bytes: u64) -> Vec<Vec<usize>> {
    let mut shards = vec![Vec::new()];
    let mut filled = 0;
    for (i, spec) in specs.iter().enumerate() {
        let last = shards.last_mut().expect("never empty");
        if !last.is_empty() && filled + spec.nbytes() > shard_bytes {
            shards.push(vec![i]);
            filled = 0;
        } else {
            last.push(i);
        }
        filled += spec.nbytes();
    }
    shards
}

/// Removes weights of an earlier save, so that the directory holds one checkpoint.
fn remove_stale(dir: &Path, kept: &HashSet<String>) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io(dir, e))? {
        let entry = entry.map_err(|e| Error::io(dir, e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let shard = name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors");
        if (name == SINGLE || name == INDEX || shard) && !kept.contains(&name) {
            fs::remove_file(entry.path()).map_err(|e| Error::io(entry.path(), e))?;
        }
    }
    Ok(())
}
