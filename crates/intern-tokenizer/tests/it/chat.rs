//! Chat templates: rendered byte for byte as the reference does, masks of what the assistant wrote.

use crate::support::asset;
use intern_format::conversation::{Conversation, Message};
use intern_tokenizer::train::{BpeConfig, train_bpe};
use intern_tokenizer::{ChatTemplate, Tokenizer, internlm2};
use serde_json::{Map, Value, json};

#[test]
fn renders_all_goldens_byte_for_byte() {
    let Some(path) = asset("serve/chat-template-goldens/templates.json") else { return };
    let goldens: Map<String, Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(goldens.len(), 53);
    let mut wrong = Vec::new();
    for (name, golden) in &goldens {
        let context = golden["data"].as_object().unwrap();
        let template = ChatTemplate::new(golden["chat_template"].as_str().unwrap());
        match template.and_then(|t| t.with_clock(1_752_105_600).render_context(context)) {
            Ok(text) if text == golden["target"].as_str().unwrap() => {}
            Ok(text) => wrong.push(format!(
                "{name}:\n--- got\n{text}\n--- expected\n{}",
                golden["target"].as_str().unwrap()
            )),
            Err(error) => wrong.push(format!("{name}: {error:#}")),
        }
    }
    assert!(wrong.is_empty(), "{} of 53 differ:\n{}", wrong.len(), wrong.join("\n\n"));
}

/// `tests/golden/make_chat_templates.py` made the hashes by `transformers`.
#[test]
fn real_templates_render_as_in_transformers() {
    let contexts: Map<String, Value> = serde_json::from_str(include_str!("../golden/contexts.json")).unwrap();
    let goldens: Map<String, Value> =
        serde_json::from_str(include_str!("../golden/chat_templates.json")).unwrap();
    let mut wrong = Vec::new();
    for (file, golden) in &goldens {
        let Some(path) = asset(file) else { return };
        let source = std::fs::read_to_string(path).unwrap();
        let template =
            ChatTemplate::new(&source).unwrap_or_else(|e| panic!("{file}: {e:#}")).with_clock(1_752_105_600);
        for (name, context) in &contexts {
            let expected = golden[name].as_str().unwrap();
            match template.render_context(context.as_object().unwrap()) {
                _ if expected == "escaped" => {}
                Err(_) if expected == "refused" => {}
                // Loops over None, and text + object: Python has no such thing, we do.
                Ok(_)
                    if expected == "refused"
                        && (context["tools"].is_null() || file.contains("deepseek-r1")) => {}
                Ok(text) if blake3::hash(text.as_bytes()).to_hex()[..16] == *expected => {}
                Ok(_) => wrong.push(format!("{file} {name}: expected {expected}")),
                Err(error) => wrong.push(format!("{file} {name}: {error:#}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// A byte-level tokenizer with the special tokens of InternLM2.
fn small(template: &str) -> Tokenizer {
    let mut texts = ["How many apples? 12 + 7 = 19. The answer is nineteen.".to_string()].into_iter();
    train_bpe(&BpeConfig::new(300), &mut texts).unwrap().with_chat_template(template.to_string())
}

fn conversation() -> Conversation {
    serde_json::from_value(json!({
        "messages": [
            {"role": "system", "content": "You calculate."},
            {"role": "user", "content": "12 + 7?"},
            {"role": "assistant", "content": "Let me see.", "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "calculator", "arguments": {"expression": "12 + 7"}}}]},
            {"role": "tool", "content": "19", "tool_call_id": "1"},
            {"role": "assistant", "content": "19"},
        ],
        "tools": [{"type": "function", "function": {"name": "calculator", "description": "Counts.", "parameters": {}}}],
    }))
    .unwrap()
}

/// What the mask covers, one string a run.
fn trained_runs(tokenizer: &Tokenizer, conversation: &Conversation) -> Vec<String> {
    let tokens = tokenizer.encode_conversation(conversation).unwrap();
    assert!(tokens.has_supervised_end(tokenizer));
    tokens
        .ids
        .chunk_by_index(|i| tokens.mask[i])
        .into_iter()
        .filter(|(trained, _)| *trained)
        .map(|(_, ids)| tokenizer.decode(&ids, false).unwrap())
        .collect()
}

trait Runs {
    fn chunk_by_index(&self, key: impl Fn(usize) -> bool) -> Vec<(bool, Vec<u32>)>;
}

impl Runs for [u32] {
    fn chunk_by_index(&self, key: impl Fn(usize) -> bool) -> Vec<(bool, Vec<u32>)> {
        let mut runs: Vec<(bool, Vec<u32>)> = Vec::new();
        for (i, &id) in self.iter().enumerate() {
            match runs.last_mut() {
                Some((k, run)) if *k == key(i) => run.push(id),
                _ => runs.push((key(i), vec![id])),
            }
        }
        runs
    }
}

#[test]
fn internlm2_declares_tools_and_marks_the_assistant() {
    let tokenizer = small(internlm2::CHAT_TEMPLATE);
    let c = conversation();
    let text = tokenizer.chat_template().unwrap().render(&c.messages, &c.tools, true, &Map::new()).unwrap();
    assert_eq!(
        text,
        "<s><|im_start|>system\nYou calculate.<|im_end|>\n\
         <|im_start|>system name=<|plugin|>\n\
         [{\"name\": \"calculator\", \"description\": \"Counts.\", \"parameters\": {}}]<|im_end|>\n\
         <|im_start|>user\n12 + 7?<|im_end|>\n\
         <|im_start|>assistant\nLet me see.<|action_start|><|plugin|>\n\
         {\"name\": \"calculator\", \"parameters\": {\"expression\": \"12 + 7\"}}<|action_end|><|im_end|>\n\
         <|im_start|>environment name=<|plugin|>\n19<|im_end|>\n\
         <|im_start|>assistant\n19<|im_end|>\n\
         <|im_start|>assistant\n"
    );
    let runs = trained_runs(&tokenizer, &c);
    assert_eq!(
        runs,
        [
            "Let me see.<|action_start|><|plugin|>\n{\"name\": \"calculator\", \"parameters\": \
             {\"expression\": \"12 + 7\"}}<|action_end|><|im_end|>",
            "19<|im_end|>"
        ]
    );
    let ids = tokenizer.encode_chat(&c.messages[1..2], &[], true).unwrap();
    assert_eq!(ids[0], tokenizer.bos_id().unwrap());
    assert_eq!(
        tokenizer.decode(&ids, false).unwrap(),
        "<s><|im_start|>user\n12 + 7?<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn prefix_difference_finds_the_same_turns() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let tokenizer = small(template);
    assert_eq!(trained_runs(&tokenizer, &conversation()), ["Let me see.<|im_end|>", "19<|im_end|>"]);
}

#[test]
fn turns_the_template_rewrites_are_context() {
    // Like reasoning templates: earlier answers are printed without their thoughts.
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
                    {{ m.content if loop.last or m.role == 'user' else m.content.split('|')[1] }}<|im_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let tokenizer = small(template);
    let messages = vec![
        Message::new("user", "a"),
        Message::new("assistant", "think|b"),
        Message::new("user", "c"),
        Message::new("assistant", "think|d"),
    ];
    let conversation = Conversation { messages, tools: Vec::new() };
    assert_eq!(trained_runs(&tokenizer, &conversation), ["think|d<|im_end|>"]);
}

#[test]
fn refusals_say_what_to_do() {
    let tokenizer = small(internlm2::CHAT_TEMPLATE);
    let lonely = Conversation { messages: vec![Message::new("user", "hello")], tools: Vec::new() };
    let error = format!("{:#}", tokenizer.encode_conversation(&lonely).unwrap_err());
    assert!(error.contains("hint: the conversation needs an assistant message"), "{error}");

    let error = format!("{:#}", ChatTemplate::new("a\n{% if %}").unwrap_err());
    assert!(error.contains("line 2") && error.contains("hint:"), "{error}");

    let refusing = ChatTemplate::new("{{ raise_exception('roles must alternate') }}").unwrap();
    let error = format!("{:#}", refusing.render_context(&Map::new()).unwrap_err());
    assert!(error.contains("roles must alternate"), "{error}");
}

#[track_caller]
fn check(template: &str, expected: &str) {
    let template =
        ChatTemplate::new(template).unwrap().with_tokens([("bos_token", "<s>")]).with_clock(1_722_470_400);
    let context =
        json!({"none": null, "yes": true, "list": ["it's", 1.0], "map": {"b": 1, "a": [null]}, "s": " Hi "});
    assert_eq!(template.render_context(context.as_object().unwrap()).unwrap(), expected);
}

#[test]
fn values_and_methods_are_those_of_python() {
    check(
        "{{ bos_token }}{{ none }} {{ yes }} {{ list }} {{ map }}{{ nothing }}",
        "<s>None True [\"it's\", 1.0] {'b': 1, 'a': [None]}",
    );
    check(
        "{{ map | tojson }} {{ map | tojson(indent=2) }}",
        "{\"b\": 1, \"a\": [null]} {\n  \"b\": 1,\n  \"a\": [\n    null\n  ]\n}",
    );
    check("{{ map | tojson(separators=(',', ':'), sort_keys=true) }}", "{\"a\":[null],\"b\":1}");
    check("{% for k, v in map.items() %}{{ k }}={{ v }};{% endfor %}", "b=1;a=[None];");
    check(
        "{{ s.strip() }}|{{ s.lstrip() }}|{{ 'a.b.c'.rsplit('.', 1) }}|{{ 'abc'.removeprefix('a') }}",
        "Hi|Hi |['a.b', 'c']|bc",
    );
    check("{{ strftime_now('%d %b %Y') }}", "01 Aug 2024");
    check(
        "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
        "013",
    );
    check("  {% if yes %}\n  a\n  {% endif %}\nb\n", "  a\nb");
    check("{{ 'x' ~ yes ~ none }} {{ [yes, none] | join(',') }}", "xTrueNone True,None");
}
