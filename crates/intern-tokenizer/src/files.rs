//! Tokenizers on disk: which file of which format a path means, the settings beside
//! it (`tokenizer_config.json`), and saving so that `transformers` loads the result.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value, json};

use crate::tokenizer::{Special, Tokenizer, library_error};
use crate::{sentencepiece, spm, tiktoken};

impl Tokenizer {
    /// Reads a tokenizer: a checkpoint directory, or a `tokenizer.json`, SentencePiece
    /// `.model`, `.tiktoken` or `.gguf` file. Settings and chat template are taken from
    /// `tokenizer_config.json` and `chat_template.jinja` in the same directory.
    ///
    /// # Errors
    /// Names the file and what was expected when there is none, when it is of no known
    /// format, or when it is damaged.
    pub fn from_path(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { find_in(path)? } else { path.to_path_buf() };
        if !file.exists() {
            bail!(
                "{}: no such file or directory\nhint: give a checkpoint directory, a tokenizer.json, \
                 a SentencePiece .model or a .tiktoken file",
                file.display()
            );
        }
        let config = Settings::beside(&file)?;
        let tokenizer =
            read(&file, &config).with_context(|| format!("{}: cannot read the tokenizer", file.display()))?;
        Ok(match config.template {
            Some(source) => tokenizer.with_chat_template(source),
            None => tokenizer,
        })
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` (chat template included)
    /// into a directory, for us and for `transformers`.
    ///
    /// # Errors
    /// Fails when the directory cannot be written.
    pub fn save(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("{}: cannot create", dir.display()))?;
        let mut text = self.library().to_string(true).map_err(library_error)?;
        text.push('\n');
        write(&dir.join("tokenizer.json"), &text)?;
        if let Some(model) = self.model_file() {
            intern_format::atomic::write_atomic(&dir.join("tokenizer.model"), model)?;
        }
        let mut text = serde_json::to_string_pretty(&self.settings())?;
        text.push('\n');
        write(&dir.join("tokenizer_config.json"), &text)
    }

    /// `tokenizer_config.json` as we write it.
    fn settings(&self) -> Value {
        let mut config = self.config().clone();
        // The class must be the generic one: a named class may rebuild the pipeline.
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        config.entry("clean_up_tokenization_spaces").or_insert(json!(false));
        let special = self.special();
        let roles = [
            ("bos_token", &special.bos),
            ("eos_token", &special.eos),
            ("pad_token", &special.pad),
            ("unk_token", &special.unk),
        ];
        for (name, token) in roles {
            match token {
                Some(token) => config.insert(name.into(), json!(token)),
                None => config.shift_remove(name),
            };
        }
        config.insert("add_bos_token".into(), json!(self.adds_bos()));
        for stale in ["auto_map", "vocab_file", "tokenizer_file", "use_fast", "legacy", "sp_model_kwargs"] {
            config.shift_remove(stale);
        }
        let mut added: Vec<_> = self.library().get_added_tokens_decoder().into_iter().collect();
        added.sort_unstable_by_key(|(id, _)| *id);
        let added: Map<String, Value> = added
            .into_iter()
            .map(|(id, t)| {
                let flags = json!({"content": t.content, "lstrip": t.lstrip, "normalized": t.normalized,
                    "rstrip": t.rstrip, "single_word": t.single_word, "special": t.special});
                (id.to_string(), flags)
            })
            .collect();
        config.insert("added_tokens_decoder".into(), Value::Object(added));
        match self.chat_template() {
            Some(template) => config.insert("chat_template".into(), json!(template.source())),
            None => config.shift_remove("chat_template"),
        };
        Value::Object(config)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    intern_format::atomic::write_atomic(path, text.as_bytes())
        .with_context(|| format!("{}: cannot write", path.display()))
}

/// The tokenizer file of a checkpoint directory.
fn find_in(dir: &Path) -> Result<PathBuf> {
    for name in ["tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"] {
        let file = dir.join(name);
        if file.is_file() {
            return Ok(file);
        }
    }
    let mut others: Vec<PathBuf> = std::fs::read_dir(dir)
        .with_context(|| format!("{}: cannot list", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| matches!(extension(path), "tiktoken" | "model"))
        .collect();
    others.sort();
    others.into_iter().next().ok_or_else(|| {
        anyhow!(
            "{}: no tokenizer here\nhint: a checkpoint directory holds tokenizer.json or tokenizer.model; \
             `intern data tokenizer` trains one",
            dir.display()
        )
    })
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default()
}

/// Reads a file by what it holds; the name only decides where contents cannot.
fn read(file: &Path, settings: &Settings) -> Result<Tokenizer> {
    if extension(file) == "gguf" {
        return Tokenizer::from_gguf(&intern_format::gguf::Gguf::open(file)?);
    }
    let bytes = std::fs::read(file)?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let first = bytes.iter().find(|b| !b.is_ascii_whitespace());
    if extension(file) == "json" || first == Some(&b'{') {
        let library = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| {
            anyhow!(
                "not a tokenizer.json: {error}\nhint: expected the JSON that Hugging Face `tokenizers` writes"
            )
        })?;
        let special = settings.special(|token| library.token_to_id(token).is_some());
        let tokenizer = Tokenizer::new(library, special, settings.config.clone())?;
        let sibling = file.with_file_name("tokenizer.model");
        return match std::fs::read(sibling)
            .ok()
            .and_then(|b| Some((sentencepiece::Model::parse(&b).ok()?, b)))
        {
            Some((model, bytes)) => spm::attach(tokenizer, model, bytes, settings),
            None => Ok(tokenizer),
        };
    }
    if extension(file) == "tiktoken" || tiktoken::looks_like_ranks(&bytes) {
        return tiktoken::read(&name, &bytes, settings);
    }
    match sentencepiece::Model::parse(&bytes) {
        Ok(model) => spm::tokenizer(model, Some(bytes), settings),
        Err(error) if name.contains(".model") => Err(error),
        Err(_) => bail!(
            "neither a tokenizer.json, a SentencePiece model nor tiktoken ranks\n\
             hint: the format is told by the contents and by .json, .model, .tiktoken, .gguf"
        ),
    }
}

/// What stands beside a tokenizer file.
#[derive(Default)]
pub(crate) struct Settings {
    pub(crate) config: Map<String, Value>,
    template: Option<String>,
}

impl Settings {
    fn beside(file: &Path) -> Result<Self> {
        let dir = file.parent().unwrap_or(Path::new("."));
        let path = dir.join("tokenizer_config.json");
        let config: Map<String, Value> = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!("{}: not a JSON object\nhint: fix or remove the file", path.display())
            })?,
            Err(_) => Map::new(),
        };
        let template = match std::fs::read_to_string(dir.join("chat_template.jinja")) {
            Ok(source) => Some(source),
            Err(_) => config.get("chat_template").and_then(default_template),
        };
        Ok(Self { config, template })
    }

    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        self.config.get(name)?.as_bool()
    }

    /// The roles the settings name, where they name any.
    pub(crate) fn special(&self, known: impl Fn(&str) -> bool) -> Option<Special> {
        let role = |name: &str| match self.config.get(name)? {
            Value::String(token) => Some(token.clone()),
            Value::Object(token) => Some(token.get("content")?.as_str()?.to_string()),
            _ => None,
        };
        let role = |name: &str| role(name).filter(|token| known(token));
        let special = Special {
            bos: role("bos_token"),
            eos: role("eos_token"),
            pad: role("pad_token"),
            unk: role("unk_token"),
        };
        (special != Special::default()).then_some(special)
    }
}

/// `chat_template` is one template or a list of named ones.
fn default_template(value: &Value) -> Option<String> {
    match value {
        Value::String(source) => Some(source.clone()),
        Value::Array(list) => {
            let named = |name: &str| list.iter().find(|t| t["name"] == name);
            let chosen = named("default").or_else(|| list.first())?;
            Some(chosen["template"].as_str()?.to_string())
        }
        _ => None,
    }
}
