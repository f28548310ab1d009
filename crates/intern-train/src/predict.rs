//! How fast a run would be on devices one does not have: `intern train run --dry-run --device NAME`.
//!
//! A model of what bounds it, with few and stated assumptions. An update takes
//!
//! - the operations at [`Device::efficiency`] of the peak, more by the pipeline's idle share;
//! - the bytes of sums and weights over the slower of two links: between the devices of a node, and
//!   out of a node, which all its devices share; less what overlaps with the last backward pass;
//! - a latency for each hop between nodes of each bucket that goes around;
//! - activations between tensor and context ranks over the link between devices;
//! - the update's reads and writes at the memory's bandwidth.
//!
//! With the scheme of InternEvo (two-byte sums and weights, moments shared within a node, sums
//! overlapped) it gives InternEvo's published figures for its 7B model within 6 %, from 8 to 1,024
//! devices (see the tests). Ours has exact sums of eight bytes, f32 weights and no overlap yet.

use serde::Serialize;

use crate::forecast::Forecast;

/// What a device can do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Device {
    /// Its name.
    pub name: &'static str,
    /// Operations per second of its matrix units on bf16.
    pub peak: f64,
    /// The share of the peak that forward and backward passes reach.
    pub efficiency: f64,
    /// Bytes of its memory.
    pub memory: u64,
    /// Bytes per second of its memory.
    pub memory_speed: f64,
    /// Devices of a node.
    pub per_node: usize,
    /// Bytes per second between devices of a node, as collectives reach them.
    pub link: f64,
    /// Bytes per second out of a node, as collectives reach them.
    pub network: f64,
    /// Seconds of a hop between nodes.
    pub latency: f64,
}

/// The devices whose figures are known. Peaks, memory and links are the makers'; the efficiency of
/// the A100 is what InternEvo reaches on one node, the network that of its cluster (4 × 100 Gb/s).
pub const DEVICES: [Device; 2] = [
    Device {
        name: "a100-80g",
        peak: 312e12,
        efficiency: 0.60,
        memory: 80 << 30,
        memory_speed: 2.0e12,
        per_node: 8,
        link: 230e9,
        network: 0.85 * 50e9,
        latency: 30e-6,
    },
    Device {
        name: "h100-80g",
        peak: 989e12,
        efficiency: 0.45,
        memory: 80 << 30,
        memory_speed: 3.35e12,
        per_node: 8,
        link: 370e9,
        network: 0.85 * 400e9,
        latency: 20e-6,
    },
];

/// Bytes that go around at once.
const BUCKET: f64 = 512e6;

/// How sums and weights are exchanged.
#[derive(Clone, Copy, Debug)]
struct Scheme {
    /// Bytes of a sum.
    sum: f64,
    /// Bytes of a new weight that is given to all.
    weight: f64,
    /// Ranks among which the moments are shared, at most; sums go to all of the others besides.
    share: usize,
    /// Sequences after whose last backward pass the sums could not start earlier; 0 for no overlap.
    overlap: usize,
}

/// What it would be like.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// What it would run on.
    pub device: Device,
    /// Whether a rank fits.
    pub fits: bool,
    /// Seconds of an update.
    pub seconds: f64,
    /// Of these, computing.
    pub compute: f64,
    /// Of these, exchanging sums and weights.
    pub exchange: f64,
    /// Of these, exchanging activations.
    pub activations: f64,
    /// Of these, updating.
    pub update: f64,
    /// Tokens per second and device.
    pub tokens_per_second: f64,
    /// Share of the peak, counting each operation once.
    pub utilization: f64,
    /// Hours of the whole run.
    pub hours: f64,
    /// What InternEvo published for the same model, device and number of devices.
    pub internevo: Option<f64>,
}

impl Prediction {
    /// Of the run `forecast` on `device`s.
    #[must_use]
    pub fn new(forecast: &Forecast, device: Device) -> Self {
        let ranks = forecast.mesh.data * forecast.mesh.context;
        let scheme = Scheme { sum: 8.0, weight: 4.0, share: ranks, overlap: 0 };
        Self::with(forecast, device, scheme)
    }

    fn with(f: &Forecast, device: Device, scheme: Scheme) -> Self {
        let mesh = f.mesh;
        let tokens = (f.batch_size * f.seq_len) as f64;
        let each = tokens / f.ranks as f64;
        let compute = each * f.flops_per_token / (device.peak * device.efficiency) / (1.0 - f.idle);
        let held = f.memory.weights as f64 / 4.0;
        // Ranks with the same weights are neighbours, but for the tensor ranks between them.
        let replicas = mesh.data * mesh.context;
        let near = (device.per_node / mesh.tensor).clamp(1, replicas);
        let nodes = replicas.div_ceil(near);
        let around = |bytes: f64, ranks: usize| bytes * (ranks as f64 - 1.0) / ranks as f64;
        // All tensor ranks of a node send through its network at once.
        let out = |bytes: f64| mesh.tensor as f64 * around(bytes, nodes) / device.network;
        let hops = |bytes: f64| (bytes / BUCKET).ceil() * (nodes as f64 - 1.0) * device.latency;
        let share = scheme.share.min(replicas);
        // Sums are scattered among those who share moments, and reduced over the others too.
        let passes = if share >= replicas { 1.0 } else { 2.0 };
        let sums = (around(scheme.sum * held, near) / device.link).max(passes * out(scheme.sum * held))
            + passes * hops(scheme.sum * held);
        let weights = if share > near {
            out(scheme.weight * held) + hops(scheme.weight * held)
        } else {
            around(scheme.weight * held, near) / device.link
        };
        let hidden = match scheme.overlap {
            0 => 0.0,
            n => 2.0 / 3.0 * compute / n as f64,
        };
        let exchange = (sums - hidden).max(0.0) + weights;
        let t = f.sent_per_step;
        let activations = (t.tensor + t.context + t.pipeline) as f64 / device.link;
        let update = 8.0 * held / device.memory_speed + 20.0 * held / share as f64 / device.memory_speed;
        let seconds = compute + exchange + activations + update;
        let tokens_per_second = each / seconds;
        Self {
            device,
            fits: f.memory.total - f.memory.saving <= device.memory,
            seconds,
            compute,
            exchange,
            activations,
            update,
            tokens_per_second,
            utilization: tokens_per_second * f.flops_per_token / device.peak,
            hours: f.steps as f64 * seconds / 3600.0,
            internevo: published(f, &device),
        }
    }
}

/// Tokens per second and device of InternEvo's 7B model on A100s, 2,048 tokens a sequence, 16,384 a
/// device and update (its documentation, "Training Performance", tp = 1, zero1 = 8).
const PUBLISHED: [(usize, f64); 8] = [
    (8, 4078.0),
    (16, 3939.0),
    (32, 3919.0),
    (64, 3944.0),
    (128, 3928.0),
    (256, 3920.0),
    (512, 3835.0),
    (1024, 3625.0),
];

fn published(f: &Forecast, device: &Device) -> Option<f64> {
    let is_7b = (7.0e9..8.0e9).contains(&(f.parameters as f64)) && f.seq_len == 2048;
    let found = PUBLISHED.iter().find(|(n, _)| *n == f.ranks && is_7b && device.name == "a100-80g");
    found.map(|(_, speed)| *speed)
}

#[cfg(test)]
mod tests {
    use intern_model::backprop::Precision;
    use intern_model::{Architecture, ModelConfig};

    use super::*;
    use crate::config::Plan;
    use crate::forecast::tests::plan;
    use crate::mesh::Shape;

    /// The model InternEvo measured, and an update of 16,384 tokens a device.
    fn seven_billion(mesh: Shape) -> Forecast {
        let model = ModelConfig::small(Architecture::InternLm2, 92544, 4096, 32, 32, 8);
        let model = ModelConfig { intermediate_size: 14336, ..model };
        let plan = Plan { precision: Precision::Bf16, ..plan(8 * mesh.size()) };
        Forecast::of(&plan, &model, 2048, mesh, 1)
    }

    #[test]
    fn the_model_gives_what_internevo_published() {
        for (devices, speed) in PUBLISHED {
            let forecast = seven_billion(Shape { data: devices, ..Shape::ALONE });
            let scheme = Scheme { sum: 2.0, weight: 2.0, share: 8, overlap: 4 };
            let ours = Prediction::with(&forecast, DEVICES[0], scheme).tokens_per_second;
            assert!((ours / speed - 1.0).abs() < 0.06, "{devices} devices: {ours:.0}, published {speed}");
        }
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let whole = Prediction::new(&seven_billion(Shape { data: 8, ..Shape::ALONE }), DEVICES[0]);
        assert!(!whole.fits, "f32 weights and eight-byte sums of 7.7 billion parameters");
        let cut = Shape { data: 4, pipeline: 2, interleave: 2, ..Shape::ALONE };
        let cut = Prediction::new(&seven_billion(cut), DEVICES[0]);
        assert!(cut.fits && cut.utilization < 0.60 && cut.tokens_per_second > 2000.0, "{cut:?}");
        assert_eq!(cut.internevo, Some(4078.0));
    }
}
