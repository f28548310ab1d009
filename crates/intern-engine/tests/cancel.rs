//! Who leaves while a step is computed leaves it, and changes nothing for the others.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use candle_core::DType;
use intern_engine::{Engine, EngineConfig, EngineRequest, Event};
use intern_model::{Architecture, ModelConfig};
use support::*;

/// Tokens of a prompt that is read in one step of half a second or more.
const LONG: usize = 1200;

fn slow_engine(dir: &Path, change: impl FnOnce(&mut EngineConfig)) -> Engine {
    let mut config =
        EngineConfig { max_batch_tokens: 2048, max_step_ms: 0, max_num_seqs: 4, ..engine_config() };
    change(&mut config);
    Engine::load(dir, None, &config).unwrap()
}

fn save_slow_model(dir: &Path) {
    let mut config = ModelConfig::small(Architecture::InternLm2, VOCAB, 512, 8, 8, 4);
    config.max_position_embeddings = 2048;
    config.eos_token_ids = vec![2];
    save_spread(&config, dir, DType::F32, 0.04);
}

/// Submits a long prompt whose listener leaves, when asked in the middle of a step, once `go` is
/// set; the returned flag says that it was asked.
fn submit_leaver(engine: &Engine, seed: u64, go: &Arc<AtomicBool>) -> Arc<AtomicBool> {
    let (go, asked) = (go.clone(), Arc::new(AtomicBool::new(false)));
    let seen = asked.clone();
    let listener = move |event| {
        assert_eq!(event, Event::Ping, "the step was too short");
        seen.store(true, SeqCst);
        !go.load(SeqCst)
    };
    engine.submit_to(EngineRequest::new(prompt(LONG, seed), greedy(4)), Box::new(listener));
    asked
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    start.elapsed()
}

#[test]
fn a_step_goes_on_without_who_left() {
    let dir = tempfile::tempdir().unwrap();
    save_slow_model(dir.path());
    let plain = slow_engine(dir.path(), |config| config.prefix_cache = false);
    let short = [prompt(40, 1), prompt(7, 2)];
    let alone: Vec<_> = short.iter().map(|p| generate(&plain, p, greedy(12))).collect();
    let start = Instant::now();
    let long_alone = generate(&plain, &prompt(LONG, 3), greedy(1));
    let whole = start.elapsed();
    drop(plain);

    let engine = slow_engine(dir.path(), |_| {});
    let is_idle = || engine.stats().running + engine.stats().waiting == 0;
    // Alone in its step.
    let go = Arc::new(AtomicBool::new(false));
    let asked = submit_leaver(&engine, 3, &go);
    wait_until("the step never asked", || asked.load(SeqCst));
    go.store(true, SeqCst);
    let out = wait_until("it stays", is_idle);
    println!("out of a step after {out:?}; the whole step takes {whole:?}");
    assert_eq!(engine.stats().prompt_tokens, 0, "the prompt was not read to its end");

    // While one blocks the engine, three more arrive and share the next step; one leaves it.
    let (go_first, go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let asked = submit_leaver(&engine, 4, &go_first);
    wait_until("the step never asked", || asked.load(SeqCst));
    submit_leaver(&engine, 3, &go);
    let stay = short.clone().map(|p| engine.submit(EngineRequest::new(p, greedy(12))));
    go_first.store(true, SeqCst);
    assert_eq!(stay.map(|r| collect(r).unwrap()).to_vec(), alone);
    let stats = engine.stats();
    assert_eq!((stats.prompt_tokens, stats.prefix_hit_tokens), (47, 0), "{stats:?}");

    // In the middle of a step, too, a deadline ends a request.
    let deadline = Some(Instant::now() + Duration::from_millis(50));
    let late = EngineRequest { deadline, ..EngineRequest::new(prompt(LONG, 3), greedy(1)) };
    assert_eq!(collect(engine.submit(late)).unwrap_err(), "expired");
    wait_until("it stays", is_idle);
    assert_eq!(engine.stats().prompt_tokens, 47);

    // What the leavers wrote into the cache is nobody's prefix.
    assert_eq!(generate(&engine, &prompt(LONG, 3), greedy(1)), long_alone);
    let stats = engine.stats();
    assert_eq!((stats.prefix_hit_tokens, stats.free_blocks), (0, stats.num_blocks));
}

/// The bar: 100 ms, in the middle of a step of 512 tokens of a model of InternLM2-1.8B's shape
/// (`INTERN_BENCH_MODEL`, a GGUF file).
#[test]
fn a_large_model_is_left_within_100_ms() {
    let Some(path) = std::env::var_os("INTERN_BENCH_MODEL") else {
        println!("skipped: INTERN_BENCH_MODEL is not set");
        return;
    };
    let engine = Engine::load(Path::new(&path), None, &EngineConfig::default()).unwrap();
    let prompt = |seed| prompt(512, seed);
    let start = Instant::now();
    generate(&engine, &prompt(1), greedy(1));
    println!("512 tokens take {:?}", start.elapsed());
    let mut times: Vec<Duration> = (0..20)
        .map(|i| {
            let events = engine.submit(EngineRequest::new(prompt(2 + i), greedy(4)));
            assert_eq!(events.recv().unwrap(), Event::Ping);
            std::thread::sleep(Duration::from_millis(37 * i % 200));
            drop(events);
            let stats = || engine.stats();
            wait_until("it stays", || stats().running == 0 && stats().free_blocks == stats().num_blocks)
        })
        .collect();
    times.sort_unstable();
    println!("out after {:?} in the median, {:?} at most", times[10], times[19]);
    assert!(times[19] < Duration::from_millis(100), "{times:?}");
}
