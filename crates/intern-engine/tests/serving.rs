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
            ("guessing", EngineConfig { prompt_lookup: 3, ..base.clone() }),
            (
                "guessing in small steps",
                EngineConfig { prompt_lookup: 5, max_batch_tokens: 9, ..base.clone() },
            ),
            ("without prefixes", EngineConfig { prefix_cache: false, ..base.clone() }),
        ] {
            let engine = Engine::load(dir.path(), None, &config).unwrap();
            assert_eq!(together(&engine), alone, "{arch:?}: {what}");
            assert_eq!(together(&engine), alone, "{arch:?}: {what}, again");
            let hits = engine.stats().prefix_hit_tokens;
            assert_eq!(hits > 0, config.prefix_cache, "{what}: {hits} tokens were read before");
            let guesses = engine.stats().draft_tokens;
            assert_eq!(guesses > 0, config.prompt_lookup > 0, "{what}: {:?}", engine.stats());
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
    let encode = |text: &str| engine.tokenizer().encode(text, true).unwrap();
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
    let events: Vec<Event> = engine.submit(request).into_iter().filter(|e| *e != Event::Ping).collect();
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

#[test]
fn a_conversation_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    save(&config(Architecture::Qwen3), dir.path(), DType::F32);
    let off = EngineConfig { prefix_cache: false, ..engine_config() };
    let (engine, fresh) = (load(dir.path()), Engine::load(dir.path(), None, &off).unwrap());
    let mut conversation = prompt(50, 1);
    for turn in 0..4 {
        let request = EngineRequest::new(conversation.clone(), greedy(20));
        let events: Vec<Event> = engine.submit(request).into_iter().collect();
        let Some(&Event::Done { cached_tokens, .. }) = events.last() else { panic!("{events:?}") };
        // All full blocks of 16, up to the last token of the answer before.
        let known = if turn == 0 { 0 } else { (conversation.len() - 11) / 16 * 16 };
        assert_eq!(cached_tokens, known, "turn {turn} of {} tokens", conversation.len());
        let answer = generate(&engine, &conversation, greedy(20));
        assert_eq!(answer, generate(&fresh, &conversation, greedy(20)), "turn {turn}");
        conversation.extend(answer);
        conversation.extend(prompt(10, turn));
    }
}

#[test]
fn a_prefix_under_dynamic_rope_is_shared_only_where_the_keys_are_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(Architecture::InternLm2);
    config.max_position_embeddings = 32;
    config.rope_scaling = intern_model::RopeScaling::Dynamic { factor: 2.0 };
    save(&config, dir.path(), DType::F32);
    let with = |prefix_cache| {
        let config = EngineConfig { max_context: Some(128), prefix_cache, ..engine_config() };
        Engine::load(dir.path(), None, &config).unwrap()
    };
    let (engine, fresh) = (with(true), with(false));
    let text = prompt(90, 3);
    for len in [20, 30, 40, 60, 60, 90, 25] {
        let want = generate(&fresh, &text[..len], greedy(15));
        assert_eq!(generate(&engine, &text[..len], greedy(15)), want, "{len} tokens");
    }
    assert!(engine.stats().prefix_hit_tokens > 0);
}

#[test]
fn guesses_save_steps_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    save(&config(Architecture::InternLm2), dir.path(), DType::F32);
    let engine = load(dir.path());
    // A reward for repetition makes even a random model repeat itself.
    let cold = Sampling { frequency_penalty: -0.5, ..greedy(120) };
    let warm = Sampling { temperature: 0.4, top_p: 0.8, seed: 3, ..cold.clone() };
    for sampling in [cold, warm] {
        let run = |guesses| {
            let before = engine.stats();
            let request = EngineRequest {
                guesses: Some(guesses),
                ..EngineRequest::new(prompt(40, 1), sampling.clone())
            };
            let tokens = collect(engine.submit(request)).unwrap();
            let after = engine.stats();
            (tokens, after.steps - before.steps, after.accepted_tokens - before.accepted_tokens)
        };
        let ((plain, steps, none), (guessed, fewer, right)) = (run(0), run(4));
        assert_eq!(plain, guessed);
        assert_eq!(none, 0);
        assert!(right == 0 || fewer < steps, "{fewer} steps with {right} right guesses, {steps} without");
        assert!(sampling.temperature > 0.0 || right > 20, "{right} right guesses");
    }
}

#[test]
fn a_smaller_model_guesses_and_changes_nothing() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    save(&config(Architecture::InternLm2), dir.path(), DType::F32);
    save(&config(Architecture::Llama), other.path(), DType::F32);
    let engine = load(dir.path());
    let alone: Vec<_> = requests().iter().map(|(t, s)| generate(&engine, t, s.clone())).collect();
    let with = |draft: &std::path::Path, base: EngineConfig| {
        let config = EngineConfig { draft_model: Some(draft.to_path_buf()), ..base };
        Engine::load(dir.path(), None, &config).unwrap()
    };
    for (what, draft, base) in [
        ("another model", other.path(), engine_config()),
        ("itself", dir.path(), engine_config()),
        ("itself, chunked", dir.path(), EngineConfig { max_batch_tokens: 9, ..engine_config() }),
    ] {
        let engine = with(draft, base);
        for again in 0..2 {
            assert_eq!(together(&engine), alone, "{what}, {again}");
        }
        assert!(engine.stats().draft_tokens > 0, "{what}: {:?}", engine.stats());
    }
    // A model that guesses itself is always right.
    let engine = with(dir.path(), engine_config());
    assert_eq!(generate(&engine, &prompt(30, 1), greedy(40)).len(), 40);
    let stats = engine.stats();
    assert_eq!(stats.accepted_tokens, stats.draft_tokens, "{stats:?}");
    assert!(stats.steps < 20, "{stats:?}");
    let mut short = config(Architecture::Llama);
    short.vocab_size -= 1;
    save(&short, other.path(), DType::F32);
    let config = EngineConfig { draft_model: Some(other.path().to_path_buf()), ..engine_config() };
    let error = format!("{:#}", Engine::load(dir.path(), None, &config).err().unwrap());
    assert!(error.contains("another vocabulary"), "{error}");
}

#[test]
fn a_deadline_ends_a_request_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    save(&config(Architecture::InternLm2), dir.path(), DType::F32);
    let one = EngineConfig { max_num_seqs: 1, ..engine_config() };
    let engine = Engine::load(dir.path(), None, &one).unwrap();
    let long = || Sampling { frequency_penalty: 0.01, ..greedy(200) };
    let running = engine.submit(EngineRequest::new(prompt(50, 1), long()));
    let deadline = Some(Instant::now());
    let waiting = EngineRequest { deadline, ..EngineRequest::new(prompt(50, 2), long()) };
    assert_eq!(collect(engine.submit(waiting)).unwrap_err(), "expired");
    assert_eq!(collect(running).unwrap().len(), 200);
    let deadline = Some(Instant::now() + Duration::from_millis(30));
    let late: Vec<_> = (0..20)
        .map(|i| engine.submit(EngineRequest { deadline, ..EngineRequest::new(prompt(50, i), long()) }))
        .collect();
    let ends: Vec<_> = late.into_iter().map(collect).collect();
    assert!(ends.iter().any(|e| e.as_ref().is_err_and(|m| m == "expired")), "{ends:?}");
    let stats = engine.stats();
    assert_eq!(stats.free_blocks, stats.num_blocks);
}

#[test]
fn a_request_that_waits_is_cancelled_at_once() {
    let dir = tempfile::tempdir().unwrap();
    save(&config(Architecture::InternLm2), dir.path(), DType::F32);
    let one = EngineConfig { max_num_seqs: 1, ..engine_config() };
    let engine = Engine::load(dir.path(), None, &one).unwrap();
    let busy: Vec<_> =
        (0..8).map(|i| engine.submit(EngineRequest::new(prompt(50, i), greedy(200)))).collect();
    let waiting = engine.submit(EngineRequest::new(prompt(50, 9), greedy(200)));
    busy[0].recv().unwrap();
    drop(waiting);
    let total: usize = busy.into_iter().map(|r| collect(r).unwrap().len()).sum();
    assert_eq!(total, 1600);
    assert_eq!(generate(&engine, &[1], greedy(1)).len(), 1);
    assert_eq!(engine.stats().prompt_tokens, 8 * 50 + 1, "its prompt was never read");
}

#[test]
fn a_bad_parameter_is_found_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    save(&config(Architecture::InternLm2), dir.path(), DType::F32);
    let engine = load(dir.path());
    for (sampling, message) in [
        (Sampling { typical_p: 0.0, ..greedy(1) }, "typical_p is 0"),
        (Sampling { frequency_penalty: f32::NAN, ..greedy(1) }, "frequency_penalty is NaN"),
        (Sampling { logit_bias: [(999, 1.0)].into(), ..greedy(1) }, "token id 999"),
        (Sampling { logit_bias: [(9, 101.0)].into(), ..greedy(1) }, "logit_bias is 101"),
        (
            Sampling { dry: Some(intern_lm::Dry { base: 0.5, ..Default::default() }), ..greedy(1) },
            "dry.base is 0.5",
        ),
    ] {
        let error = engine.check(&EngineRequest::new(vec![1], sampling)).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    let all = Sampling {
        temperature: 0.8,
        typical_p: 0.9,
        presence_penalty: 0.5,
        frequency_penalty: 0.5,
        dry: Some(intern_lm::Dry::default()),
        logit_bias: [(70, 3.0), (71, -100.0)].into(),
        seed: 5,
        ..greedy(40)
    };
    let alone = generate(&engine, &prompt(20, 4), all.clone());
    let receivers: Vec<_> = (0..4)
        .map(|i| {
            engine.submit(EngineRequest::new(prompt(20, 4 + i), Sampling { seed: 5 + i, ..all.clone() }))
        })
        .collect();
    assert_eq!(receivers.into_iter().map(|r| collect(r).unwrap()).next().unwrap(), alone);
    assert!(!alone.contains(&71));
}

#[test]
fn a_storm_of_requests_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(Architecture::InternLm2);
    (config.head_dim, config.num_heads, config.num_kv_heads, config.hidden_size) = (128, 4, 4, 512);
    save(&config, dir.path(), DType::F32);
    // Little memory: sequences preempt each other; every step checks the blocks.
    let small = EngineConfig { kv_memory_mb: 2, max_num_seqs: 6, prompt_lookup: 3, ..engine_config() };
    let engine = Engine::load(dir.path(), None, &small).unwrap();
    let mut rng = intern_kernels::rng::Rng::new(5, 5);
    let mut kept = Vec::new();
    for i in 0..60 {
        let same_start = prompt(20, i % 4);
        let tokens = [same_start, prompt(rng.range(1, 40) as usize, i)].concat();
        let grammar = (i % 5 == 0).then(|| intern_lm::Grammar::Regex("[a-z ]{5,30}".into()));
        let sampling = Sampling {
            temperature: if i % 2 == 0 { 0.0 } else { 0.8 },
            grammar,
            seed: i,
            ..greedy(rng.range(1, 40) as usize)
        };
        let late = (i % 7 == 0).then(|| Instant::now() + Duration::from_millis(rng.range(0, 200)));
        let receiver =
            engine.submit(EngineRequest { deadline: late, ..EngineRequest::new(tokens, sampling) });
        match rng.range(0, 3) {
            0 => drop(receiver),                        // the client is gone at once,
            1 => drop(receiver.recv()),                 // or after a first word,
            _ => kept.push((late.is_some(), receiver)), // or stays
        }
    }
    for (may_expire, receiver) in kept {
        match collect(receiver) {
            Ok(tokens) => assert!(!tokens.is_empty()),
            Err(message) => assert!(may_expire && message == "expired", "{message}"),
        }
    }
    let start = Instant::now();
    while engine.stats().running + engine.stats().waiting > 0 {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", engine.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    let stats = engine.stats();
    assert_eq!(stats.free_blocks, stats.num_blocks);
    assert!(stats.prefix_hit_tokens > 0, "{stats:?}");
}
