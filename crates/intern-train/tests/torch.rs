//! A whole run beside PyTorch's: the same first gradients, and the same losses, gradient norms and
//! rates, update for update.

use std::path::Path;

use candle_core::{DType, Device};
use intern_format::checkpoint::SafetensorsFile;
use intern_model::backprop::{Backprop, Settings, Workspace};
use intern_model::{Batch, Transformer};
use intern_train::config::PlanArgs;
use intern_train::params::{Gradients, Params};
use intern_train::timer::Timer;
use intern_train::{Job, OptimizerConfig, Plan, ScheduleConfig, Trainer};
use serde_json::{Value, json};

fn batch(pass: &Value) -> Batch {
    let rows: Vec<Vec<u32>> = serde_json::from_value(pass["rows"].clone()).unwrap();
    let mask = serde_json::from_value(pass["mask"].clone()).unwrap();
    Batch { mask, ..Batch::next_token(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>()) }
}

#[test]
fn losses_equal_those_of_torch() {
    let golden_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/run");
    let golden: Value = intern_format::atomic::read_json(&golden_dir.join("run.json")).unwrap();
    let steps = golden["steps"].as_array().unwrap();
    let optimizer: OptimizerConfig = serde_json::from_value(golden["optimizer"].clone()).unwrap();
    let warmup_steps = golden["warmup_steps"].as_u64().unwrap();
    let schedule = ScheduleConfig { warmup_steps, min_lr_ratio: 0.0, ..ScheduleConfig::default() };
    let plan = Plan::new(&PlanArgs {
        steps: steps.len() as u64,
        batch_size: 4,
        micro_batch: Some(2),
        eval_every: None,
        save_every: None,
        keep_last: 1,
        optimizer: &optimizer,
        schedule: &schedule,
    })
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let job = Job::new("test", &json!({}), &[], dir.path()).unwrap();
    let model = Transformer::load(&golden_dir, DType::F32, &Device::Cpu).unwrap();
    let params = Params::new(model.trainable_vars(), &OptimizerConfig::default()).unwrap();
    let mut trainer = Trainer::new(&model, params, &plan, &job).unwrap();
    for (i, step) in steps.iter().enumerate() {
        let batches: Vec<Batch> = step["passes"].as_array().unwrap().iter().map(batch).collect();
        let stats = trainer.step(&batches, &mut Timer::new()).unwrap();
        let check = |what: &str, ours: f64, relative: f64| {
            let theirs = step[what].as_f64().unwrap();
            assert!((ours - theirs).abs() <= relative * theirs, "update {i}: {what} {ours}, not {theirs}");
        };
        check("lr", stats.lr, 1e-12);
        check("loss", stats.loss, 1e-4);
        check("grad_norm", stats.grad_norm, 1e-3);
    }
}

#[test]
fn first_gradients_equal_those_of_torch_in_f64() {
    let golden_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/run");
    let golden: Value = intern_format::atomic::read_json(&golden_dir.join("run.json")).unwrap();
    let exact = SafetensorsFile::open(&golden_dir.join("gradients.safetensors")).unwrap();
    let model = Transformer::load(&golden_dir, DType::F32, &Device::Cpu).unwrap();
    let params = Params::new(model.trainable_vars(), &OptimizerConfig::default()).unwrap();
    let mut gradients = Gradients::new(&params);
    let passes: Vec<Batch> = golden["steps"][0]["passes"].as_array().unwrap().iter().map(batch).collect();
    let count: usize = passes.iter().map(Batch::num_targets).sum();
    gradients.sums.begin(passes.iter().map(|b| b.b * b.t).sum());
    let backprop = Backprop::new(&model, Settings::default());
    let mut work = Workspace::default();
    for pass in &passes {
        for row in 0..pass.b {
            backprop.gradients(pass, row, &mut work, &gradients).unwrap();
        }
    }
    let unit = f64::from(gradients.sums.unit()) / count as f64;
    for param in params.list() {
        let ours = &gradients.sums.sums()[param.offset..param.end()];
        let theirs = exact.tensor(&param.name).unwrap().to_f32();
        let pairs = ours.iter().zip(&theirs).map(|(a, b)| (*a as f64 * unit, f64::from(*b)));
        let (mut error, mut size) = (0.0, 0.0);
        for (a, b) in pairs {
            error += (a - b).powi(2);
            size += b * b;
        }
        let relative = (error / size).sqrt();
        assert!(size > 0.0 && relative <= 1e-5, "{}: gradient is off by {relative:e}", param.name);
    }
}
