//! Several ranks give the tokens, and the logits bit for bit, of one.

mod support;

use candle_core::DType;
use intern_engine::quantize::{self, QuantType, QuantizeConfig};
use intern_engine::{Engine, EngineConfig, EngineRequest, Event};
use intern_lm::Sampling;
use intern_model::{Architecture, ModelConfig};
use support::*;

/// Logits of a prompt that is read in several steps, and what follows three prompts at once.
fn answers(engine: &Engine) -> (Vec<f32>, Vec<Vec<u32>>) {
    let request = EngineRequest {
        prompt_logits: true,
        ..EngineRequest::new(prompt(100, 1), Sampling { max_tokens: 0, ..Sampling::default() })
    };
    let logits = engine.submit(request).into_iter().find_map(|event| match event {
        Event::Done { logits, .. } => Some(logits),
        Event::Error(message) => panic!("{message}"),
        _ => None,
    });
    let waiting: Vec<_> = [(5, 2), (40, 3), (1, 4)]
        .map(|(len, seed)| engine.submit(EngineRequest::new(prompt(len, seed), greedy(20))))
        .into_iter()
        .collect();
    (logits.unwrap(), waiting.into_iter().map(|events| collect(events).unwrap()).collect())
}

fn on_ranks(tensor_parallel: usize) -> EngineConfig {
    EngineConfig { tensor_parallel, ..engine_config() }
}

#[test]
fn ranks_share_every_family() {
    for arch in [
        Architecture::InternLm2,
        Architecture::InternLm3,
        Architecture::Llama,
        Architecture::Mistral,
        Architecture::Qwen2,
        Architecture::Qwen3,
    ] {
        let dir = tempfile::tempdir().unwrap();
        save(&config(arch), dir.path(), DType::F32);
        let one = answers(&Engine::load(dir.path(), None, &on_ranks(1)).unwrap());
        let two = answers(&Engine::load(dir.path(), None, &on_ranks(2)).unwrap());
        assert!(one == two, "{arch:?}");
    }
}

#[test]
fn ranks_share_quantized_weights_and_a_wide_model() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing but the heads is a multiple of four.
    let config = ModelConfig {
        intermediate_size: 288,
        max_position_embeddings: 256,
        ..ModelConfig::small(Architecture::InternLm2, VOCAB, 256, 2, 8, 4)
    };
    save_spread(&config, dir.path(), DType::F32, 0.05);
    let file = dir.path().join("model.gguf");
    quantize::run(&QuantizeConfig::new(dir.path(), QuantType::Q4_0), &file).unwrap();
    let one = answers(&Engine::load(&file, None, &on_ranks(1)).unwrap());
    for ranks in [2, 4] {
        assert!(one == answers(&Engine::load(&file, None, &on_ranks(ranks)).unwrap()), "{ranks} ranks");
    }
}

#[test]
fn guesses_are_checked_by_all_ranks() {
    let dir = tempfile::tempdir().unwrap();
    save(&config(Architecture::Llama), dir.path(), DType::F32);
    let one = answers(&Engine::load(dir.path(), None, &on_ranks(1)).unwrap());
    let guessing = EngineConfig { draft_model: Some(dir.path().to_owned()), ..on_ranks(2) };
    assert_eq!(one.1, answers(&Engine::load(dir.path(), None, &guessing).unwrap()).1);
}

#[test]
fn what_cannot_be_shared_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    save(&config(Architecture::Llama), dir.path(), DType::F32);
    let error = Engine::load(dir.path(), None, &on_ranks(3)).map(drop).unwrap_err();
    assert!(format!("{error:#}").contains("2 key/value heads cannot be shared by 3 ranks"), "{error:#}");
}
