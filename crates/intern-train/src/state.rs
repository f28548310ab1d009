//! What a run needs to continue exactly: parameters, moments and the number of updates made.
//!
//! `trainer/step-N/` holds `model.safetensors` and `optimizer.safetensors` (`mean.*`, `square.*`,
//! `average.*`, as far as the optimizer has them), both f32, and `state.json`. A directory appears whole or not at all, so the
//! newest one is always usable, whenever the process died.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use intern_format::atomic::{self, AtomicDir};
use intern_format::safetensors::{self, DType, SafetensorsFile, TensorSpec};
use intern_model::part::Piece;
use serde::{Deserialize, Serialize};

use crate::guard::Guard;
use crate::optimizer::Optimizer;
use crate::params::Params;

const VERSION: u32 = 1;

/// `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Version of this layout.
    pub version: u32,
    /// Updates made.
    pub step: u64,
    /// Tokens read.
    pub tokens: u64,
    /// What the guard has seen.
    #[serde(default, skip_serializing_if = "Guard::is_empty")]
    pub guard: Guard,
    /// Hash of the settings and inputs the run depends on.
    pub fingerprint: String,
}

impl State {
    /// The state before the first update.
    #[must_use]
    pub fn start(fingerprint: &str) -> Self {
        Self {
            version: VERSION,
            step: 0,
            tokens: 0,
            guard: Guard::default(),
            fingerprint: fingerprint.to_string(),
        }
    }
}

/// Saved states, as `(step, directory)` in ascending order.
pub fn list(trainer: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(trainer) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(intern_format::Error::io(trainer, e).into()),
    };
    for entry in entries {
        let path = entry?.path();
        let step = path.file_name().and_then(|n| n.to_str()?.strip_prefix("step-")?.parse().ok());
        if let Some(step) = step {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The newest saved state of the run `fingerprint`, if there is one.
pub fn newest(trainer: &Path, fingerprint: &str) -> Result<Option<(State, PathBuf)>> {
    let Some((_, dir)) = list(trainer)?.pop() else { return Ok(None) };
    let state: State = atomic::read_json(&dir.join("state.json"))?;
    ensure!(
        state.version == VERSION,
        "{}: version {}, expected {VERSION}\nhint: it was written by another version of intern; remove {} to \
         start over",
        dir.display(),
        state.version,
        trainer.display()
    );
    Ok((state.fingerprint == fingerprint).then_some((state, dir)))
}

/// The elements of a tensor.
pub type Values = Vec<f32>;

/// A whole tensor that is saved: weights, or one of the optimizer's slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `mean`, `square`, `average`; weights have none.
    pub slot: Option<&'static str>,
    /// The parameter's name in checkpoints.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Entry {
    /// Its name in the file.
    #[must_use]
    pub fn key(&self) -> String {
        match self.slot {
            Some(slot) => format!("{slot}.{}", self.name),
            None => self.name.clone(),
        }
    }
}

/// The order in which [`save`] asks for entries: weights first, then slots, by name.
#[must_use]
pub fn in_order(entries: &[Entry]) -> Vec<&Entry> {
    let mut all: Vec<&Entry> = entries.iter().collect();
    all.sort_by_key(|e| (e.slot.is_some(), e.key()));
    all
}

/// Writes `trainer/step-N`: whole tensors, whoever had which part of them, one after the other as
/// `values` gives them, in the order of [`in_order`].
///
/// Nothing tells how many ranks there were, so any number can go on.
pub fn save(
    trainer: &Path,
    state: &State,
    entries: &[Entry],
    mut values: impl FnMut(&Entry) -> Result<Values>,
) -> Result<()> {
    let target = trainer.join(format!("step-{}", state.step));
    let dir = AtomicDir::create(&target)?;
    for (file, of_optimizer) in [("model.safetensors", false), ("optimizer.safetensors", true)] {
        let entries: Vec<&Entry> =
            in_order(entries).into_iter().filter(|e| e.slot.is_some() == of_optimizer).collect();
        let spec = |e: &&Entry| TensorSpec { name: e.key(), dtype: DType::F32, shape: e.shape.clone() };
        let specs: Vec<TensorSpec> = entries.iter().map(spec).collect();
        safetensors::write_safetensors(&dir.path().join(file), &specs, &BTreeMap::new(), |i, out| {
            let values = values(entries[i]).map_err(std::io::Error::other)?;
            out.write_all(&to_bytes(&values))
        })?;
    }
    atomic::write_json(&dir.path().join("state.json"), state)?;
    dir.commit().with_context(|| format!("saving step {}", state.step))
}

/// Reads this rank's part of the parameters, and what `optimizers` have of their slots, back from `dir`,
/// a directory [`save`] wrote.
pub fn restore<'a>(
    dir: &Path,
    params: &Params,
    optimizers: impl IntoIterator<Item = &'a mut Optimizer>,
) -> Result<()> {
    let weights = SafetensorsFile::open(&dir.join("model.safetensors"))?;
    let slots = SafetensorsFile::open(&dir.join("optimizer.safetensors"))?;
    let read = |file: &SafetensorsFile, name: &str, piece: &Piece| -> Result<Values> {
        let values = file.tensor(name)?.to_f32();
        let len = piece.shape.iter().product::<usize>();
        ensure!(
            values.len() == len,
            "{}: {name} has {} elements, expected {len}",
            file.path().display(),
            values.len()
        );
        Ok(if piece.cut.is_some() { piece.take(&values) } else { values })
    };
    for param in params.list() {
        let values = read(&weights, &param.name, &param.piece)?;
        param.update(|p| p.copy_from_slice(&values))?;
    }
    for optimizer in optimizers {
        optimizer.write(|slot, number| {
            let param = &params.list()[number];
            read(&slots, &format!("{slot}.{}", param.name), &param.piece)
        })?;
    }
    Ok(())
}

/// Keeps the last `keep` states among those `regular` accepts and those that are `kept` for good, and
/// removes every other one; so a finished run's files do not tell how often it was interrupted.
pub fn prune(
    trainer: &Path,
    keep: usize,
    regular: impl Fn(u64) -> bool,
    kept_for_good: impl Fn(u64) -> bool,
) -> Result<()> {
    let mut kept = 0;
    for (step, dir) in list(trainer)?.into_iter().rev() {
        if regular(step) && kept < keep {
            kept += 1;
        } else if !kept_for_good(step) {
            discard(&dir)?;
        }
    }
    Ok(())
}

/// Removes a directory so that a kill in between never leaves half of it under its name.
pub fn discard(dir: &Path) -> Result<()> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let aside = dir.with_file_name(format!("{}old-{name}", atomic::TEMP_PREFIX));
    let removing = || format!("removing {}", dir.display());
    if aside.exists() {
        fs::remove_dir_all(&aside).with_context(removing)?;
    }
    fs::rename(dir, &aside).with_context(removing)?;
    fs::remove_dir_all(&aside).with_context(removing)
}

/// The little-endian bytes of f32 values; borrowed where the machine already stores them so.
fn to_bytes(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OptimizerConfig;
    use candle_core::{Device, Var};

    fn run(value: f32) -> (Params, Optimizer) {
        let var = Var::from_vec(vec![value, 2.0], (1, 2), &Device::Cpu).unwrap();
        let config = OptimizerConfig::default();
        let params = Params::new(vec![("w".into(), var)], &config).unwrap();
        let mut optimizer = Optimizer::new(&config, 1.0, &params, 0..2).unwrap();
        let of_slot =
            |slot: &str, _| Ok(if slot == "mean" { vec![0.0, value * 3.0] } else { vec![value * 5.0, 0.0] });
        optimizer.write(of_slot).unwrap();
        (params, optimizer)
    }

    fn write(dir: &Path, step: u64, params: &Params, optimizer: &Optimizer) {
        let entry = |slot| Entry { slot, name: "w".into(), shape: vec![1, 2] };
        let entries = [entry(Some("square")), entry(None), entry(Some("mean"))];
        let values = |e: &Entry| match e.slot {
            None => params.list()[0].to_vec(),
            Some(slot) => {
                let mut whole = vec![0.0; 2];
                optimizer.read(0, slot, &mut whole);
                Ok(whole)
            }
        };
        save(dir, &State { step, ..State::start("x") }, &entries, values).unwrap();
    }

    #[test]
    fn a_saved_state_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (params, optimizer) = run(7.5);
        [5, 10].into_iter().for_each(|step| write(dir.path(), step, &params, &optimizer));
        assert!(newest(dir.path(), "other").unwrap().is_none());
        let (state, path) = newest(dir.path(), "x").unwrap().unwrap();
        assert_eq!(state.step, 10);
        let (params, mut optimizer) = run(0.0);
        restore(&path, &params, [&mut optimizer]).unwrap();
        assert_eq!(params.list()[0].to_vec().unwrap(), [7.5, 2.0]);
        for (slot, expect) in [("mean", [0.0, 22.5]), ("square", [37.5, 0.0])] {
            let mut whole = vec![0.0; 2];
            optimizer.read(0, slot, &mut whole);
            assert_eq!(whole, expect);
        }
    }

    #[test]
    fn pruning_forgets_interruptions() {
        let dir = tempfile::tempdir().unwrap();
        let (params, optimizer) = run(1.0);
        [5, 10, 13, 20, 30, 31].into_iter().for_each(|step| write(dir.path(), step, &params, &optimizer));
        prune(dir.path(), 2, |step| step % 5 == 0, |step| step == 5).unwrap();
        assert_eq!(list(dir.path()).unwrap().iter().map(|s| s.0).collect::<Vec<_>>(), [5, 20, 30]);
    }
}
