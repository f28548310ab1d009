//! How the ranks of a run are arranged: a grid of pipeline × data × context × tensor ranks.
//!
//! Neighbours in the tensor group are neighbours in number, then come context, data and pipeline,
//! so that those who talk most sit closest (as Megatron-LM orders them; Narayanan et al., 2021).

use anyhow::{Result, ensure};
use intern_comm::Comm;
use intern_model::backprop::Split;
use intern_model::part::Part;
use serde::Serialize;

use crate::config::ParallelConfig;

/// The sizes of the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Stages' ranks.
    pub pipeline: usize,
    /// Stages of each pipeline rank.
    pub interleave: usize,
    /// Ranks with different sequences.
    pub data: usize,
    /// Ranks with different tokens of the same sequences.
    pub context: usize,
    /// Ranks with slices of the same layers.
    pub tensor: usize,
}

impl Shape {
    /// One rank.
    pub const ALONE: Self = Self { pipeline: 1, interleave: 1, data: 1, context: 1, tensor: 1 };

    /// The grid that `config` asks for over `world` ranks; where these are not given, over as many
    /// as it asks for.
    ///
    /// # Errors
    /// If the sizes do not multiply to `world`, or are none.
    pub fn resolve(config: &ParallelConfig, world: Option<usize>) -> Result<Self> {
        let size = |name: &str, n: Option<usize>| {
            ensure!(n != Some(0), "parallel.{name} is 0, expected at least 1");
            Ok(n.unwrap_or(1))
        };
        let pipeline = size("pipeline", config.pipeline)?;
        let interleave = size("interleave", config.interleave)?;
        let (context, tensor) = (size("context", config.context)?, size("tensor", config.tensor)?);
        let asked = size("data", config.data)?;
        ensure!(
            interleave == 1 || pipeline > 1,
            "parallel.interleave is {interleave} without a pipeline\nhint: set parallel.pipeline to 2 or more"
        );
        let others = pipeline * context * tensor;
        let data = match (config.data, world) {
            (None, Some(world)) => {
                ensure!(
                    world.is_multiple_of(others),
                    "the launcher started {world} processes, which pipeline {pipeline} × context {context} × \
                     tensor {tensor} = {others} ranks do not divide\nhint: start a multiple of {others}"
                );
                world / others
            }
            _ => asked,
        };
        let shape = Self { pipeline, interleave, data, context, tensor };
        ensure!(
            world.is_none_or(|world| world == shape.size()),
            "[parallel] asks for {} ranks (pipeline {pipeline} × data {data} × context {context} × tensor \
             {tensor}), but the launcher started {} processes\nhint: leave parallel.data out",
            shape.size(),
            world.unwrap_or(0)
        );
        Ok(shape)
    }

    /// Ranks of the grid.
    #[must_use]
    pub fn size(&self) -> usize {
        self.pipeline * self.data * self.context * self.tensor
    }
}

/// A rank's place in the grid, and the groups it is in.
pub struct Mesh<'a> {
    /// All ranks.
    pub world: &'a Comm,
    /// The grid.
    pub shape: Shape,
    /// This rank's coordinates: pipeline, data, context, tensor.
    pub place: [usize; 4],
    /// The ranks that hold the other stages for the same sequences, in the order of the stages.
    pub pipeline: Comm,
    /// The ranks with the same weights: those of all data and context ranks.
    pub replicas: Comm,
    /// As `replicas`, with the tensor group: the ranks with the same weights that are not cut.
    pub stage: Comm,
}

impl<'a> Mesh<'a> {
    /// This rank's place in a grid of the ranks of `world`.
    ///
    /// # Panics
    /// If the grid has another number of ranks.
    #[must_use]
    pub fn new(world: &'a Comm, shape: Shape) -> Self {
        assert_eq!(world.size(), shape.size(), "one rank for each place");
        let place = place_of(&shape, world.rank());
        let group = |same: [bool; 4]| world.group(&members(&shape, place, same));
        Self {
            world,
            shape,
            place,
            pipeline: group([false, true, true, true]),
            replicas: group([true, false, false, true]),
            stage: group([true, false, false, false]),
        }
    }

    /// This rank's data coordinate.
    #[must_use]
    pub fn data_rank(&self) -> usize {
        self.place[1]
    }

    /// The groups in which a sequence is worked on.
    #[must_use]
    pub fn split(&self) -> Split {
        let group = |same: [bool; 4]| self.world.group(&members(&self.shape, self.place, same));
        Split { tensor: group([true, true, true, false]), context: group([true, true, false, true]) }
    }

    /// What this rank holds of a model with `num_layers` layers.
    #[must_use]
    pub fn part(&self, num_layers: usize) -> Part {
        let Shape { pipeline, interleave, tensor, .. } = self.shape;
        Part::of_pipeline(num_layers, self.place[0], pipeline, interleave, self.place[3], tensor)
    }

    /// Whether this rank is the first of those with the same weights.
    #[must_use]
    pub fn speaks(&self) -> bool {
        self.place[1] == 0 && self.place[2] == 0
    }
}

/// The coordinates of rank `rank`.
fn place_of(shape: &Shape, rank: usize) -> [usize; 4] {
    let Shape { data, context, tensor, .. } = *shape;
    [
        rank / (tensor * context * data),
        rank / (tensor * context) % data,
        rank / tensor % context,
        rank % tensor,
    ]
}

/// The ranks whose coordinates are those of `place` wherever `same` says so.
fn members(shape: &Shape, place: [usize; 4], same: [bool; 4]) -> Vec<usize> {
    let agrees = |rank: &usize| {
        let other = place_of(shape, *rank);
        (0..4).all(|i| !same[i] || other[i] == place[i])
    };
    (0..shape.size()).filter(agrees).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(sizes: [Option<usize>; 5]) -> ParallelConfig {
        let [data, pipeline, interleave, context, tensor] = sizes;
        ParallelConfig { data, pipeline, interleave, context, tensor, zero: None }
    }

    #[test]
    fn the_grid_fills_the_ranks() {
        let asked = config([None, Some(2), None, None, Some(2)]);
        assert_eq!(Shape::resolve(&asked, Some(8)).unwrap().data, 2);
        assert_eq!(Shape::resolve(&asked, None).unwrap().size(), 4);
        let error = |sizes, world| Shape::resolve(&config(sizes), world).unwrap_err().to_string();
        assert!(error([None, Some(3), None, None, None], Some(4)).contains("a multiple of 3"));
        assert!(error([Some(2), Some(3), None, None, None], Some(4)).contains("asks for 6 ranks"));
        assert!(error([Some(0), None, None, None, None], None).contains("parallel.data is 0"));
        assert!(error([None, None, Some(2), None, None], None).contains("without a pipeline"));
    }

    #[test]
    fn groups_agree_on_everything_else() {
        let shape = Shape { pipeline: 2, interleave: 1, data: 3, context: 2, tensor: 2 };
        for comm in intern_comm::threads::group(shape.size()) {
            let mesh = Mesh::new(&comm, shape);
            let [p, d, c, t] = mesh.place;
            assert_eq!(((p * 3 + d) * 2 + c) * 2 + t, comm.rank());
            let split = mesh.split();
            assert_eq!((mesh.pipeline.rank(), mesh.pipeline.size()), (p, 2));
            assert_eq!((split.tensor.rank(), split.context.rank()), (t, c));
            assert_eq!((mesh.replicas.rank(), mesh.replicas.size()), (d * 2 + c, 6));
            assert_eq!((mesh.stage.rank(), mesh.stage.size()), ((d * 2 + c) * 2 + t, 12));
        }
    }
}
