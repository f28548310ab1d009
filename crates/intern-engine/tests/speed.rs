//! How fast the engine is, printed; run with `RUN_SLOW_TESTS=1 … --no-capture`.

mod support;

use std::time::Instant;

use candle_core::{DType, Device};
use intern_engine::quantize::{self, QuantType, QuantizeConfig};
use intern_engine::{Engine, EngineConfig, EngineRequest};
use intern_model::{Architecture, ModelConfig, Transformer};
use support::*;

#[test]
fn tokens_per_second() {
    if std::env::var_os("RUN_SLOW_TESTS").is_none() {
        println!("skipped: RUN_SLOW_TESTS is not set");
        return;
    }
    for (name, hidden, layers, heads) in [("tiny", 128, 4, 4), ("small", 384, 8, 8)] {
        let dir = tempfile::tempdir().unwrap();
        let mut config = ModelConfig::small(Architecture::InternLm2, 2048, hidden, layers, heads, heads / 2);
        config.max_position_embeddings = 1024;
        Transformer::init(&config, 1, &Device::Cpu).unwrap().save(dir.path(), DType::F32).unwrap();
        tokenizer().save(dir.path()).unwrap();
        let parameters = config.num_parameters() as f64;
        let mut models = vec![("f32".to_owned(), dir.path().to_path_buf())];
        for quant in [QuantType::Q8_0, QuantType::Q4_0] {
            let file = dir.path().join(format!("{quant}.gguf"));
            let run = QuantizeConfig::new(dir.path(), quant);
            quantize::run(&run, &file).unwrap();
            models.push((quant.to_string(), file));
        }
        for (ty, path) in models {
            let engine =
                Engine::load(&path, None, &EngineConfig { threads: 2, ..EngineConfig::default() }).unwrap();
            let start = Instant::now();
            generate(&engine, &prompt(512, 1), greedy(1));
            let prefill = 512.0 / start.elapsed().as_secs_f64();
            println!("{name} ({:.1} M) {ty}: prefill {prefill:.0} tok/s", parameters / 1e6);
            for streams in [1, 4, 16, 32] {
                let start = Instant::now();
                let submit = |i| engine.submit(EngineRequest::new(prompt(8, i), greedy(64)));
                let receivers: Vec<_> = (0..streams).map(submit).collect();
                let tokens: usize = receivers.into_iter().map(|r| collect(r).unwrap().len()).sum();
                let rate = tokens as f64 / start.elapsed().as_secs_f64();
                println!(
                    "{name} {ty}: {streams:2} streams {rate:7.0} tok/s, {:.1} GMAC/s",
                    rate * parameters / 1e9
                );
            }
        }
    }
}
