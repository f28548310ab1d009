//! What a run needs to continue exactly: parameters, moments and the number of updates made.
//!
//! `trainer/step-N/` holds `model.safetensors` and `optimizer.safetensors` (`mean.*`,
//! `square.*`), both f32, and `state.json`. A directory appears whole or not at all, so the
//! newest one is always usable, whenever the process died.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use intern_format::atomic::{self, AtomicDir};
use intern_format::safetensors::{self, DType, SafetensorsFile};
use intern_model::part::Piece;
use serde::{Deserialize, Serialize};

use crate::guard::Guard;
use crate::optimizer::AdamW;
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

/// A whole tensor as it is saved.
pub struct Saved<'a> {
    /// Its name in checkpoints.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Weights, running mean of the gradient, and of its square.
    pub values: [Cow<'a, [f32]>; 3],
}

/// Writes `trainer/step-N`: whole tensors, whoever had which part of them.
///
/// Nothing tells how many ranks there were, so any number can go on.
pub fn save(trainer: &Path, state: &State, tensors: &[Saved]) -> Result<()> {
    let target = trainer.join(format!("step-{}", state.step));
    let dir = AtomicDir::create(&target)?;
    let mut weights = Vec::with_capacity(tensors.len());
    let mut moments = Vec::with_capacity(tensors.len() * 2);
    for Saved { name, shape, values: [weight, mean, square] } in tensors {
        weights.push((name.clone(), DType::F32, shape.clone(), to_bytes(weight)));
        for (kind, values) in [("mean", mean), ("square", square)] {
            moments.push((format!("{kind}.{name}"), DType::F32, shape.clone(), to_bytes(values)));
        }
    }
    safetensors::save_safetensors(&dir.path().join("model.safetensors"), &weights, &BTreeMap::new())?;
    safetensors::save_safetensors(&dir.path().join("optimizer.safetensors"), &moments, &BTreeMap::new())?;
    atomic::write_json(&dir.path().join("state.json"), state)?;
    dir.commit().with_context(|| format!("saving step {}", state.step))
}

/// Reads this rank's part of the parameters, and the moments of the ranges that `optimizers` have,
/// back from `dir`, a directory [`save`] wrote.
pub fn restore<'a>(
    dir: &Path,
    params: &Params,
    optimizers: impl IntoIterator<Item = &'a mut AdamW>,
) -> Result<()> {
    let weights = SafetensorsFile::open(&dir.join("model.safetensors"))?;
    let moments = SafetensorsFile::open(&dir.join("optimizer.safetensors"))?;
    let read = |file: &SafetensorsFile, name: &str, piece: &Piece| -> Result<Vec<f32>> {
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
        let range = optimizer.range();
        for param in params.list() {
            let (from, to) = (param.offset.max(range.start), param.end().min(range.end));
            if from >= to {
                continue;
            }
            let within = from - param.offset..to - param.offset;
            for (kind, moment) in [("mean", &mut optimizer.mean), ("square", &mut optimizer.square)] {
                let values = read(&moments, &format!("{kind}.{}", param.name), &param.piece)?;
                moment[from - range.start..to - range.start].copy_from_slice(&values[within.clone()]);
            }
        }
    }
    Ok(())
}

/// Keeps the last `keep` states among those `regular` accepts, and removes every other
/// one; so a finished run's files do not tell how often it was interrupted.
pub fn prune(trainer: &Path, keep: usize, regular: impl Fn(u64) -> bool) -> Result<()> {
    let mut kept = 0;
    for (step, dir) in list(trainer)?.into_iter().rev() {
        if regular(step) && kept < keep {
            kept += 1;
        } else {
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

    fn run(value: f32) -> (Params, AdamW) {
        let var = Var::from_vec(vec![value, 2.0], (1, 2), &Device::Cpu).unwrap();
        let params = Params::new(vec![("w".into(), var)]).unwrap();
        let mut optimizer = AdamW::new(&OptimizerConfig::default(), 0..2);
        optimizer.mean[1] = value * 3.0;
        optimizer.square[0] = value * 5.0;
        (params, optimizer)
    }

    fn saved<'a>(params: &Params, optimizer: &'a AdamW) -> [Saved<'a>; 1] {
        let weights = Cow::Owned(params.list()[0].to_vec().unwrap());
        let [mean, square] = [&optimizer.mean, &optimizer.square].map(|m| Cow::Borrowed(m.as_slice()));
        [Saved { name: "w".into(), shape: vec![1, 2], values: [weights, mean, square] }]
    }

    #[test]
    fn a_saved_state_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (params, optimizer) = run(7.5);
        for step in [5, 10] {
            save(dir.path(), &State { step, ..State::start("x") }, &saved(&params, &optimizer)).unwrap();
        }
        assert!(newest(dir.path(), "other").unwrap().is_none());
        let (state, path) = newest(dir.path(), "x").unwrap().unwrap();
        assert_eq!(state.step, 10);
        let (params, mut optimizer) = run(0.0);
        restore(&path, &params, [&mut optimizer]).unwrap();
        assert_eq!(params.list()[0].to_vec().unwrap(), [7.5, 2.0]);
        assert_eq!((optimizer.mean, optimizer.square), (vec![0.0, 22.5], vec![37.5, 0.0]));
    }

    #[test]
    fn pruning_forgets_interruptions() {
        let dir = tempfile::tempdir().unwrap();
        let (params, optimizer) = run(1.0);
        for step in [10, 13, 20, 30, 31] {
            save(dir.path(), &State { step, ..State::start("x") }, &saved(&params, &optimizer)).unwrap();
        }
        prune(dir.path(), 2, |step| step % 10 == 0).unwrap();
        assert_eq!(list(dir.path()).unwrap().iter().map(|s| s.0).collect::<Vec<_>>(), [20, 30]);
    }
}
