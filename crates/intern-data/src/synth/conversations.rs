//! Tuning conversations: problems solved with the calculator, and small talk
//! that needs no tool, so that calling it is the model's choice.

use std::collections::HashSet;

use intern_format::conversation::{Conversation, FunctionCall, Message, ToolCall};
use intern_kernels::rng::Rng;
use serde_json::{Value, json};

use super::problems::Language;
use super::{STREAM_CONVERSATIONS, SynthConfig, training_problem};

/// The system message of every conversation; the agent's config uses the same words.
pub const SYSTEM_PROMPT: &str = "You are a helpful assistant.";

/// The calculator as declared to the model, in OpenAI's form. `intern-agent` declares
/// its calculator with the same words; a test holds the two together.
#[must_use]
pub fn calculator_declaration() -> Value {
    json!({
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Computes an arithmetic expression.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string", "description": "For example 3 + 4 * 2"}},
                "required": ["expression"]
            }
        }
    })
}

/// The training conversations of `config`; no problem in `taken` occurs.
pub fn training(config: &SynthConfig, taken: &HashSet<String>) -> Vec<Conversation> {
    let mut rng = Rng::new(config.seed, STREAM_CONVERSATIONS);
    (0..config.conversations)
        .map(|i| {
            let language = Language::ALL[i % Language::ALL.len()];
            if rng.chance(config.no_tool) {
                small_talk(language, &mut rng)
            } else {
                solved(language, taken, &mut rng)
            }
        })
        .collect()
}

/// Question, calculator call, its result, and the answer's sentence.
fn solved(language: Language, taken: &HashSet<String>, rng: &mut Rng) -> Conversation {
    let p = training_problem(language, taken, rng);
    let call = ToolCall {
        id: "call_0".into(),
        kind: "function".into(),
        function: FunctionCall { name: "calculator".into(), arguments: json!({"expression": p.expression}) },
    };
    let mut asks = Message::new("assistant", "");
    asks.tool_calls.push(call);
    let mut result = Message::new("tool", p.answer.to_string());
    result.name = Some("calculator".into());
    result.tool_call_id = Some("call_0".into());
    Conversation {
        messages: vec![
            Message::new("system", SYSTEM_PROMPT),
            Message::new("user", p.question),
            asks,
            result,
            Message::new("assistant", p.sentence),
        ],
        tools: vec![calculator_declaration()],
    }
}

fn small_talk(language: Language, rng: &mut Rng) -> Conversation {
    let (question, answer) = *rng.pick(match language {
        Language::English => ENGLISH,
        Language::Chinese => CHINESE,
    });
    Conversation {
        messages: vec![
            Message::new("system", SYSTEM_PROMPT),
            Message::new("user", question),
            Message::new("assistant", answer),
        ],
        tools: vec![calculator_declaration()],
    }
}

const ENGLISH: &[(&str, &str)] = &[
    ("Hello!", "Hello! Ask me a word problem."),
    ("Hi there.", "Hello! Ask me a word problem."),
    ("Who are you?", "I am a small model that solves word problems."),
    ("What can you do?", "I solve word problems with a calculator."),
    ("When do we add?", "We add to find how many there are together."),
    ("When do we subtract?", "We subtract to find what is left."),
    ("When do we multiply?", "We multiply when there are equal groups."),
    ("When do we divide?", "We divide to share equally."),
    ("Thank you.", "You are welcome."),
    ("Goodbye.", "Goodbye!"),
];

const CHINESE: &[(&str, &str)] = &[
    ("你好！", "你好！请给我一道应用题。"),
    ("您好。", "你好！请给我一道应用题。"),
    ("你是谁？", "我是一个会解应用题的小模型。"),
    ("你会做什么？", "我用计算器解应用题。"),
    ("什么时候用加法？", "求一共有多少用加法。"),
    ("什么时候用减法？", "求还剩多少用减法。"),
    ("什么时候用乘法？", "每份一样多时用乘法。"),
    ("什么时候用除法？", "平均分用除法。"),
    ("谢谢。", "不客气。"),
    ("再见。", "再见！"),
];
