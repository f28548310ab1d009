//! What a run leaves behind: saved states, put together from the ranks, and the sequences of an
//! update that went wrong.

use std::borrow::Cow;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use intern_format::atomic::AtomicFile;
use intern_model::{Batch, Part, weights};
use serde_json::json;

use super::{Share, Trainer};
use crate::mesh::Shape;
use crate::params::Param;
use crate::state::{self, Saved};

impl Trainer<'_> {
    /// Saves the state after the current step; all ranks call it.
    pub(super) fn save(&self) -> Result<()> {
        let moments = self.moments()?;
        let [mean, square] = [&moments[0], &moments[1]];
        let values = |p: &Param| -> Result<[Cow<[f32]>; 3]> {
            let range = p.offset..p.end();
            Ok([Cow::Owned(p.to_vec()?), Cow::Borrowed(&mean[range.clone()]), Cow::Borrowed(&square[range])])
        };
        let tensors = if self.mesh.shape.pipeline * self.mesh.shape.tensor == 1 {
            let saved = |p: &Param| {
                Ok(Saved { name: p.name.clone(), shape: p.piece.shape.clone(), values: values(p)? })
            };
            self.params.list().iter().map(saved).collect::<Result<_>>()?
        } else {
            self.collect(values)?
        };
        if self.mesh.world.rank() == 0 {
            state::save(&self.trainer_dir, &self.state, &tensors)?;
            if self.saves() {
                state::prune(&self.trainer_dir, self.plan.keep_last, |step| self.is_regular(step))?;
            }
        }
        Ok(())
    }

    /// Both moments of this rank's parameters, flat, from the ranks that share them.
    fn moments(&self) -> Result<[Cow<'_, [f32]>; 2]> {
        if let [Share { optimizer, .. }] = &self.shares[..]
            && optimizer.range().len() == self.params.num_elements()
        {
            return Ok([Cow::Borrowed(&optimizer.mean), Cow::Borrowed(&optimizer.square)]);
        }
        let mut whole = [(); 2].map(|()| vec![0.0; self.params.num_elements()]);
        for Share { ranks, cuts, optimizer } in &self.shares {
            let (from, to) = (cuts[0], cuts[ranks.size()]);
            let within: Vec<usize> = cuts.iter().map(|c| c - from).collect();
            for (whole, own) in whole.iter_mut().zip([&optimizer.mean, &optimizer.square]) {
                whole[optimizer.range()].copy_from_slice(own);
                if self.plan.zero {
                    ranks.all_gather(&mut whole[from..to], &within)?;
                }
            }
        }
        Ok(whole.map(Cow::Owned))
    }

    /// On rank 0 every tensor of the model, put together from the ranks that hold parts of it.
    fn collect<'b>(&self, values: impl Fn(&Param) -> Result<[Cow<'b, [f32]>; 3]>) -> Result<Vec<Saved<'b>>> {
        const TAG: u16 = u16::MAX;
        let (mesh, layers) = (self.mesh, self.whole.num_layers);
        let Shape { pipeline, interleave, data, context, tensor } = mesh.shape;
        let mut tensors = Vec::new();
        for (name, shape) in weights::tensor_shapes(&self.whole) {
            let mut whole = [(); 3].map(|()| Vec::new());
            for (p, t) in (0..pipeline).flat_map(|p| (0..tensor).map(move |t| (p, t))) {
                let part = Part::of_pipeline(layers, p, pipeline, interleave, t, tensor);
                let Some(piece) = part.piece(&self.whole, &name) else { continue };
                if piece.cut.is_none() && t > 0 {
                    continue;
                }
                let from = p * data * context * tensor + t;
                let held = match self.params.list().iter().find(|param| param.name == name) {
                    Some(param) if mesh.world.rank() == from => Some(values(param)?),
                    _ => None,
                };
                if mesh.world.rank() == 0 {
                    for (i, whole) in whole.iter_mut().enumerate() {
                        whole.resize(shape.iter().product(), 0.0);
                        match &held {
                            Some(held) => piece.put(&held[i], whole),
                            None => {
                                let mut held = vec![0.0; piece.held_shape().iter().product()];
                                mesh.world.recv(from, TAG, &mut held)?;
                                piece.put(&held, whole);
                            }
                        }
                    }
                } else if let Some(held) = held {
                    held.iter().try_for_each(|values| mesh.world.send(0, TAG, values))?;
                }
            }
            tensors.push(Saved { name, shape, values: whole.map(Cow::Owned) });
        }
        Ok(tensors)
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
