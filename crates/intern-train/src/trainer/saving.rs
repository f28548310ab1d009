//! What a run leaves behind: saved states, put together from the ranks, and the sequences of an
//! update that went wrong.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use intern_format::atomic::AtomicFile;
use intern_model::{Batch, Part, weights};
use serde_json::json;

use super::{Share, Trainer};
use crate::mesh::Shape;
use crate::optimizer::slots;
use crate::params::Param;
use crate::state::{self, Entry, Values};

impl Trainer<'_> {
    /// Saves the state after the current step; all ranks call it.
    ///
    /// One tensor after the other goes from the ranks that hold it to rank 0 and to the disk, or with
    /// `save_async` to a thread that writes while training goes on.
    pub(super) fn save(&mut self) -> Result<()> {
        self.finish_saving()?;
        let entries = self.entries();
        if self.mesh.world.rank() > 0 {
            // In the order in which rank 0 asks.
            for entry in state::in_order(&entries) {
                self.collect(entry)?;
            }
            return Ok(());
        }
        let (dir, saved) = (self.trainer_dir.clone(), self.state.clone());
        let regular = self.saves();
        let (keep_last, plan) = (self.plan.keep_last, self.plan.clone());
        let prune = move |dir: &std::path::Path| match regular {
            true => state::prune(dir, keep_last, |step| plan.is_regular(step), |step| plan.is_kept(step)),
            false => Ok(()),
        };
        if !self.plan.save_async {
            state::save(&dir, &saved, &entries, |entry| Ok(self.collect(entry)?.unwrap_or_default()))?;
            return prune(&dir);
        }
        let mut values = std::collections::HashMap::new();
        for entry in state::in_order(&entries) {
            values.insert(entry.key(), self.collect(entry)?.unwrap_or_default());
        }
        self.saving = Some(std::thread::spawn(move || {
            state::save(&dir, &saved, &entries, |entry| Ok(values.remove(&entry.key()).unwrap_or_default()))?;
            prune(&dir)
        }));
        Ok(())
    }

    /// Waits until what is being saved is saved.
    pub(super) fn finish_saving(&mut self) -> Result<()> {
        match self.saving.take() {
            Some(thread) => thread.join().map_err(|_| anyhow::anyhow!("the thread that saves died"))?,
            None => Ok(()),
        }
    }

    /// Everything a state holds.
    fn entries(&self) -> Vec<Entry> {
        let tensors: Vec<(String, Vec<usize>)> = if self.is_cut() {
            weights::tensor_shapes(&self.whole)
        } else {
            self.params.list().iter().map(|p| (p.name.clone(), p.piece.shape.clone())).collect()
        };
        let of_tensor = |(name, shape): (String, Vec<usize>)| {
            let slots = slots(&self.plan.optimizer, &name, shape.len()).into_iter().map(Some);
            let entry = move |slot| Entry { slot, name: name.clone(), shape: shape.clone() };
            std::iter::once(None).chain(slots).map(entry).collect::<Vec<_>>()
        };
        tensors.into_iter().flat_map(of_tensor).collect()
    }

    fn is_cut(&self) -> bool {
        self.mesh.shape.pipeline * self.mesh.shape.tensor > 1
    }

    /// On rank 0 the whole of one tensor, put together from the ranks that hold parts of it; all ranks
    /// ask for the same one.
    fn collect(&self, entry: &Entry) -> Result<Option<Values>> {
        const TAG: u16 = u16::MAX;
        const TAKEN: u16 = u16::MAX - 1;
        let mesh = self.mesh;
        let number = self.params.list().iter().position(|p| p.name == entry.name);
        let held = number.map(|n| self.held(n, &self.params.list()[n], entry.slot)).transpose()?;
        if !self.is_cut() {
            return Ok(held.filter(|_| mesh.world.rank() == 0));
        }
        let Shape { pipeline, interleave, data, context, tensor } = mesh.shape;
        let mut whole = Vec::new();
        for (p, t) in (0..pipeline).flat_map(|p| (0..tensor).map(move |t| (p, t))) {
            let part = Part::of_pipeline(self.whole.num_layers, p, pipeline, interleave, t, tensor);
            let Some(piece) = part.piece(&self.whole, &entry.name) else { continue };
            if piece.cut.is_none() && t > 0 {
                continue;
            }
            let from = p * data * context * tensor + t;
            if mesh.world.rank() == 0 {
                whole.resize(entry.shape.iter().product(), 0.0);
                if from == 0 {
                    piece.put(held.as_deref().unwrap_or_default(), &mut whole);
                } else {
                    let mut held = vec![0.0; piece.held_shape().iter().product()];
                    mesh.world.recv(from, TAG, &mut held)?;
                    mesh.world.send(from, TAKEN, &[1.0f32])?;
                    piece.put(&held, &mut whole);
                }
            } else if let Some(held) = held.as_ref().filter(|_| mesh.world.rank() == from) {
                mesh.world.send(0, TAG, held)?;
                // Sends do not wait: without this, all of them would lie in memory at once.
                mesh.world.recv(0, TAKEN, &mut [0.0f32])?;
            }
        }
        Ok((mesh.world.rank() == 0).then_some(whole))
    }

    /// What this rank and those with the same weights hold of a parameter: its weights or a slot.
    fn held(&self, number: usize, param: &Param, slot: Option<&str>) -> Result<Values> {
        if slot.is_none() && self.sharded.is_none() {
            return param.to_vec();
        }
        let mut whole = vec![0.0; param.len];
        for Share { ranks, cuts, optimizer } in &self.shares {
            if cuts[0] >= param.end() || param.offset >= cuts[ranks.size()] {
                continue;
            }
            let own = optimizer.range();
            match slot {
                Some(slot) => optimizer.read(number, slot, &mut whole),
                None => {
                    let clamped =
                        [own.start, own.end].map(|c| c.clamp(param.offset, param.end()) - param.offset);
                    param.update(|p| whole[clamped[0]..clamped[1]].copy_from_slice(p))?;
                }
            }
            if self.plan.zero && ranks.size() > 1 {
                let own: Vec<usize> =
                    cuts.iter().map(|c| c.clamp(&param.offset, &param.end()) - param.offset).collect();
                ranks.all_gather(&mut whole, &own)?;
            }
        }
        Ok(whole)
    }

    /// Writes this rank's sequences of an update that diverged, with their losses, and tells where.
    /// Ranks that work on the same sequences leave it to one of them.
    pub(super) fn write_diverged(&self, rows: &[(&Batch, usize)], losses: &[f64]) -> Result<Option<PathBuf>> {
        let [stage, data, context, tensor] = self.mesh.place;
        if stage + 1 != self.mesh.shape.pipeline || context + tensor > 0 {
            return Ok(None);
        }
        let step = self.state.step + 1;
        let dir = self.out.join("diverged");
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let path = dir.join(format!("step-{step}-data-{data}.jsonl"));
        let mut out = AtomicFile::create(&path)?;
        for ((batch, row), loss) in rows.iter().zip(losses) {
            let of_row = row * batch.t..(row + 1) * batch.t;
            let line = json!({
                "step": step,
                // JSON has no number for what is none.
                "loss": loss.is_finite().then_some(loss),
                "tokens": &batch.tokens[of_row.clone()],
                "targets": &batch.targets[of_row.clone()],
                "mask": batch.mask[of_row].iter().map(|m| u8::from(*m)).collect::<Vec<_>>(),
                "documents": &batch.doc_starts[*row],
            });
            writeln!(out, "{line}").with_context(|| path.display().to_string())?;
        }
        out.commit()?;
        Ok(Some(path))
    }
}
