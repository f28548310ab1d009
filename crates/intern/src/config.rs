//! Loads one TOML file into a crate's config struct, with `--set` overrides and
//! errors that name the file, the key and the nearest known key.

use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Reads `path`, applies `sets` (`a.b=value`), and resolves it into `T`.
pub fn load<T: DeserializeOwned>(path: &Path, sets: &[String]) -> Result<T> {
    resolve(read(path)?, sets, &path.display().to_string())
}

/// Reads `path` as it stands.
pub fn read(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!("cannot read the config {}\nhint: complete examples are in configs/", path.display())
    })?;
    text.parse().with_context(|| format!("{} is not valid TOML", path.display()))
}

/// Applies `sets` to `table` and resolves it into `T`; `origin` names the file in errors.
pub fn resolve<T: DeserializeOwned>(mut table: Table, sets: &[String], origin: &str) -> Result<T> {
    for set in sets {
        apply(&mut table, set)?;
    }
    T::deserialize(Value::Table(table)).map_err(|e| explain(&e, origin))
}

/// Sets `a.b=value`; the value is read as TOML, or as a plain string if it is none.
pub fn apply(table: &mut Table, set: &str) -> Result<()> {
    let Some((key, raw)) = set.split_once('=') else {
        bail!("--set {set}: expected key=value\nhint: for example --set optimizer.lr=3e-4");
    };
    let value = format!("v = {raw}")
        .parse::<Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(raw.to_string()));
    let mut at = table;
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let entry = at.entry(part).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(next) = entry else { bail!("--set {set}: {part} is not a table") };
        at = next;
    }
    at.insert(last.to_string(), value);
    Ok(())
}

/// Turns serde's "unknown field `x`, expected one of `a`, `b`" into advice.
fn explain(error: &toml::de::Error, origin: &str) -> anyhow::Error {
    let message = error.message().to_string();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if message.starts_with("unknown field")
        && let Some((unknown, known)) = quoted.split_first()
    {
        let nearest = known
            .iter()
            .map(|k| (strsim::damerau_levenshtein(unknown, k), *k))
            .min()
            .filter(|(d, k)| *d <= k.len().max(unknown.len()) / 2)
            .map(|(_, k)| k);
        return match nearest {
            Some(k) => anyhow::anyhow!("{origin}: unknown key `{unknown}`\nhint: did you mean `{k}`?"),
            None => {
                anyhow::anyhow!("{origin}: unknown key `{unknown}`\nhint: known keys: {}", known.join(", "))
            }
        };
    }
    anyhow::anyhow!("{origin}: {message}\nhint: docs/config.md lists every key with its type")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Demo {
        learning_rate: f64,
    }

    #[test]
    fn an_unknown_key_names_the_nearest() {
        let table: Table = "learning_rte = 1.0".parse().unwrap();
        let error = resolve::<Demo>(table, &[], "run.toml").unwrap_err().to_string();
        assert!(error.contains("unknown key `learning_rte`"), "{error}");
        assert!(error.contains("did you mean `learning_rate`?"), "{error}");

        let table: Table = "learning_rate = 1.0".parse().unwrap();
        assert_eq!(resolve::<Demo>(table, &[], "run.toml").unwrap().learning_rate, 1.0);
    }

    #[test]
    fn set_overrides_a_nested_key() {
        let mut table = Table::new();
        apply(&mut table, "a.b=3e-4").unwrap();
        apply(&mut table, "a.c=text").unwrap();
        assert_eq!(table["a"]["b"].as_float(), Some(3e-4));
        assert_eq!(table["a"]["c"].as_str(), Some("text"));
        assert!(apply(&mut table, "nonsense").is_err());
    }
}
