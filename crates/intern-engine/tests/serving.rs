//! What a request gets does not depend on what runs beside it.

mod support;

use std::time::{Duration, Instant};

use candle_core::DType;
use intern_engine::{Engine, EngineConfig, EngineRequest, Event};
use intern_lm::{FinishReason, GenerateRequest, LanguageModel, Prompt, Sampling, ScoreRequest};
use intern_model::Architecture;
use support::*;

fn requests() -> Vec<(Vec<u32>, Sampling)> {
    (0..10)
        .map(|i| {
            let warm = Sampling {
                temperature: 0.9,
                top_k: 20,
                top_p: 0.9,
                repetition_penalty: 1.1,
                seed: i,
                ..greedy(24)
            };
            (prompt(3 + 11 * i as usize, i), if i % 2 == 0 { greedy(24) } else { warm })
        })
        .collect()
}

/// Tokens of every request, all submitted at once.
fn together(engine: &Engine) -> Vec<Vec<u32>> {
    let submit = |(tokens, sampling)| engine.submit(EngineRequest::new(tokens, sampling));
    let receivers: Vec<_> = requests().into_iter().map(submit).collect();
    receivers.into_iter().map(|r| collect(r).unwrap()).collect()
}

#[test]
fn tokens_are_the_same_alone_batched_chunked_preempted_and_on_any_thread_count() {
    for arch in [Architecture::InternLm2, Architecture::Mistral] {
        let dir = tempfile::tempdir().unwrap();
        save(&config(arch), dir.path(), DType::F32);
        let engine = load(dir.path());
        let alone: Vec<_> = requests().iter().map(|(t, s)| generate(&engine, t, s.clone())).collect();
        assert!(alone.iter().all(|t| t.len() == 24));
        let base = engine_config();
        for (what, config) in [
            ("batched", base.clone()),
            ("chunked", EngineConfig { max_batch_tokens: 8, ..base.clone() }),
            ("one thread", EngineConfig { threads: 1, ..base.clone() }),
            ("two at a time", EngineConfig { max_num_seqs: 2, ..base.clone() }),
        ] {
            let engine = Engine::load(dir.path(), None, &config).unwrap();
            assert_eq!(together(&engine), alone, "{arch:?}: {what}");
            assert_eq!(
                engine.stats().free_blocks,
                engine.stats().num_blocks,
                "{what}: every block came back"
            );
        }
    }
}

#[test]
fn preemption_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(Architecture::InternLm2);
    (config.head_dim, config.num_heads, config.num_kv_heads, config.hidden_size) = (128, 4, 4, 512);
    save(&config, dir.path(), DType::F32);
    let engine = load(dir.path());
    let alone: Vec<_> = requests().iter().map(|(t, s)| generate(&engine, t, s.clone())).collect();
    // 12 KB per position: 2 MiB hold 170 positions, the ten requests want 765.
    let small = EngineConfig { kv_memory_mb: 2, max_num_seqs: 10, ..engine_config() };
    let engine = Engine::load(dir.path(), None, &small).unwrap();
    assert_eq!(together(&engine), alone);
    assert!(engine.stats().preemptions > 0, "{:?}", engine.stats());
}

#[test]
fn scores_are_log_probabilities_of_the_logits() {
    let dir = tempfile::tempdir().unwrap();
    save(&config(Architecture::Qwen2), dir.path(), DType::F32);
    let engine = load(dir.path());
    let (context, continuation) = ("the cat sat on  ", "the mat 一只猫");
    let got = engine
        .score(&[ScoreRequest::Continuation { context: context.into(), continuation: continuation.into() }])
        .unwrap()[0];
    let encode = |text: &str| engine.tokenizer().encode(text, false).unwrap();
    let whole = encode("the cat sat on  the mat 一只猫");
    let split = encode("the cat sat on").len();
    let logits = engine.logits(&whole).unwrap();
    let mut want = (0.0f64, true);
    for i in split..whole.len() {
        let row = &logits[(i - 1) * VOCAB..i * VOCAB];
        let total = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
        want.0 += f64::from(row[whole[i] as usize]) - total;
        want.1 &= row.iter().all(|&x| x <= row[whole[i] as usize]);
    }
    assert_eq!(got.num_tokens, whole.len() - split);
    assert!((got.logprob - want.0).abs() < 1e-4 && got.is_greedy == want.1, "{got:?} {want:?}");

    // Rolling text over a short context: the sum over windows, each token once.
    let short = EngineConfig { max_context: Some(16), ..engine_config() };
    let short = Engine::load(dir.path(), None, &short).unwrap();
    let text = "the dog sat on the cat and the cat sat on the mat ".repeat(3);
    let got = short.score(&[ScoreRequest::Rolling { text: text.clone() }]).unwrap()[0];
    let tokens = encode(&text);
    assert!(tokens.len() > 32);
    assert_eq!(got.num_tokens, tokens.len());
    // A full window reads 16 tokens and scores 16: one more than fits is never read.
    let prefix = engine.tokenizer().bos_id().unwrap();
    let first = engine.logits(&[&[prefix], &tokens[..15]].concat()).unwrap();
    let lp = |logits: &[f32], i: usize, id: u32| {
        let row = &logits[i * VOCAB..(i + 1) * VOCAB];
        f64::from(row[id as usize]) - row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln()
    };
    let first_window: f64 = (0..16).map(|i| lp(&first, i, tokens[i])).sum();
    let one = short.score(&[ScoreRequest::Continuation { context: String::new(), continuation: text }]);
    assert!(one.unwrap_err().to_string().contains("the context is 16"));
    assert!(got.logprob < first_window, "the other windows count too");
    // Scoring many at once gives the same numbers as one by one.
    let many: Vec<ScoreRequest> = (1..9)
        .map(|n| ScoreRequest::Continuation { context: "the cat".into(), continuation: " sat on".repeat(n) })
        .collect();
    let batched = engine.score(&many).unwrap();
    for (request, score) in many.iter().zip(&batched) {
        assert_eq!(engine.score(std::slice::from_ref(request)).unwrap()[0], *score);
    }
}

#[test]
fn stop_strings_end_the_text_and_are_never_streamed() {
    let dir = tempfile::tempdir().unwrap();
    save(&config(Architecture::InternLm2), dir.path(), DType::F32);
    let engine = load(dir.path());
    let run = |stop: Vec<String>| {
        let sampling = Sampling { stop, keep_special: true, ..greedy(60) };
        let request = GenerateRequest { prompt: Prompt::Text("the cat".into()), sampling };
        let mut streamed = String::new();
        let answer = engine.generate(&[request], &mut |_, text| streamed.push_str(text)).unwrap().remove(0);
        assert_eq!(streamed, answer.text);
        answer
    };
    let free = run(vec![]);
    assert_eq!((free.finish, free.usage.completion_tokens), (FinishReason::Length, 60));
    let chars: Vec<char> = free.text.chars().collect();
    assert!(chars.len() > 30, "{:?}", free.text);
    let stop: String = chars[15..22].iter().collect();
    let at = free.text.find(&stop).unwrap();
    let stopped = run(vec!["never there".into(), stop]);
    assert_eq!((stopped.text.as_str(), stopped.finish), (&free.text[..at], FinishReason::Stop));
    assert!(stopped.usage.completion_tokens < 60);
}

#[test]
fn answers_end_at_eos_unless_told_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(Architecture::InternLm2);
    save(&config, dir.path(), DType::F32);
    let tokens = prompt(5, 3);
    let free = generate(&load(dir.path()), &tokens, greedy(20));
    // Declare a token of the middle the end, and look again.
    let end = free[8];
    let first = free.iter().position(|&t| t == end).unwrap();
    config.eos_token_ids = vec![5, end];
    save(&config, dir.path(), DType::F32);
    let engine = load(dir.path());
    assert_eq!(engine.eos_ids(), [5, end]);
    let heeding = generate(&engine, &tokens, Sampling { ignore_eos: false, ..greedy(20) });
    assert_eq!(heeding, free[..=first]);
    assert_eq!(generate(&engine, &tokens, greedy(20)), free);
}

#[test]
fn a_bad_request_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    save(&config(Architecture::InternLm2), dir.path(), DType::F32);
    let engine = load(dir.path());
    let good = engine.submit(EngineRequest::new(prompt(5, 1), greedy(30)));
    for (tokens, sampling, message) in [
        (vec![], greedy(1), "the prompt is empty"),
        (prompt(257, 1), greedy(1), "the prompt has 257 tokens, the context is 256"),
        (vec![VOCAB as u32], greedy(1), "token id 320, expected below the vocabulary size 320"),
        (vec![1], Sampling { top_p: 0.0, ..greedy(1) }, "top_p is 0, expected above 0"),
        (vec![1], Sampling { temperature: f32::NAN, ..greedy(1) }, "temperature is NaN"),
    ] {
        let error = collect(engine.submit(EngineRequest::new(tokens, sampling))).unwrap_err();
        assert!(error.contains(message), "{error}");
    }
    assert_eq!(collect(good).unwrap().len(), 30);
    // A prompt that fills the context gets the one token there is no room to read.
    let full = collect(engine.submit(EngineRequest::new(prompt(255, 1), greedy(9)))).unwrap();
    assert_eq!(full.len(), 1);
}

#[test]
fn dropping_the_receiver_cancels() {
    let dir = tempfile::tempdir().unwrap();
    save(&config(Architecture::InternLm2), dir.path(), DType::F32);
    let engine = load(dir.path());
    let receivers: Vec<_> =
        (0..20).map(|i| engine.submit(EngineRequest::new(prompt(100, i), greedy(150)))).collect();
    receivers[0].recv().unwrap();
    drop(receivers);
    assert_eq!(generate(&engine, &prompt(4, 1), greedy(4)).len(), 4);
    let start = Instant::now();
    while engine.stats().running + engine.stats().waiting > 0 {
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", engine.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    let stats = engine.stats();
    assert_eq!(stats.free_blocks, stats.num_blocks);
    assert!(stats.generated_tokens < 2000, "{stats:?}");
}

#[test]
fn events_tell_the_progress_of_a_long_prompt() {
    let dir = tempfile::tempdir().unwrap();
    save(&config(Architecture::InternLm2), dir.path(), DType::F32);
    let engine = load(dir.path());
    let sampling = Sampling { logprobs: Some(3), ..greedy(2) };
    let request =
        EngineRequest { score_from: Some(90), score_top: 2, ..EngineRequest::new(prompt(100, 1), sampling) };
    let events: Vec<Event> = engine.submit(request).into_iter().collect();
    assert_eq!(events[0], Event::Prefill { done: 64, total: 100 });
    assert_eq!(events[1], Event::Prefill { done: 100, total: 100 });
    let Event::Token { id, logprob: Some(logprob), .. } = &events[2] else { panic!("{events:?}") };
    assert_eq!((logprob.id, logprob.top.len()), (*id, 3));
    assert_eq!(logprob.top[0].0, *id, "greedy takes the likeliest");
    let Some(Event::Done { scores, usage, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(scores.len(), 10);
    assert!(scores.iter().all(|s| s.top.len() == 2 && s.logprob <= s.top[0].1));
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (100, 2));
}

#[test]
fn embeddings_have_length_one_and_do_not_depend_on_company() {
    let dir = tempfile::tempdir().unwrap();
    save(&config(Architecture::InternLm2), dir.path(), DType::F32);
    let engine = load(dir.path());
    let texts: Vec<Vec<u32>> = (0..5).map(|i| prompt(3 + 40 * i as usize, i)).collect();
    let together = engine.embed(&texts).unwrap();
    for (text, embedding) in texts.iter().zip(&together) {
        assert_eq!(embedding.len(), 64);
        assert!((embedding.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        assert_eq!(engine.embed(std::slice::from_ref(text)).unwrap()[0], *embedding);
    }
    assert!(engine.embed(&[vec![]]).unwrap_err().to_string().contains("text 0"));
}
