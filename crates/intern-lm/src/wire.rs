//! The wire types of OpenAI's API, and Anthropic's messages, shared by the server and the client.
//!
//! Requests convert into [`crate::request`]'s types with errors that name the
//! parameter; one that nothing reads is refused, not ignored. Answers are built from
//! those types. Fields beyond OpenAI's own (`top_k`, `min_p`, `repetition_penalty`,
//! `guided_*`, `structured_outputs`, `stop_token_ids`, `ignore_eos`, `skip_special_tokens`,
//! `chat_template_kwargs`, `return_token_ids`) carry vLLM's names, `typical_p` and `dry_*`
//! llama.cpp's; `parse_tools` is ours.

mod answer;
mod anthropic;
mod chat;
mod common;
mod grammar;
mod messages;
mod plain;
mod responses;

use serde::{Deserialize, Deserializer};

pub use answer::{
    ChatChoice, ChatCompletion, ChatLogprobs, ChatTokenLogprob, CompletionChoice, CompletionLogprobs,
    CompletionResponse, Delta, ErrorBody, ErrorDetail, FunctionDelta, ModelCard, ModelList, PromptDetails,
    TokenizeResponse, ToolCallDelta, WireUsage, read_answer, read_finish, write_finish,
};
pub use anthropic::MessagesRequest;
pub use chat::ChatCompletionRequest;
pub(crate) use chat::tool_name;
pub use common::{Common, Invalid, MAX_LOGPROBS, OneOrMany, StreamOptions};
pub(crate) use grammar::lark_string;
pub use messages::{read_messages, write_message};
pub use plain::{CompletionRequest, DetokenizeRequest, EmbeddingRequest, TokenizeRequest, WirePrompt};
pub use responses::ResponsesRequest;

/// Reads `null` as the type's default.
fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use intern_format::conversation::Message;
    use serde_json::{Value, json};

    use super::*;
    use crate::request::{ChatRequest, Grammar, Sampling, ToolChoice};

    fn chat(body: Value) -> Result<ChatRequest, Invalid> {
        serde_json::from_value::<ChatCompletionRequest>(body).unwrap().to_request(100)
    }

    #[test]
    fn a_full_request_survives_the_wire() {
        let request = ChatRequest {
            messages: vec![
                Message::new("user", "hi"),
                serde_json::from_value(json!({"role": "assistant", "content": null, "tool_calls": [
                    {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}))
                .unwrap(),
                serde_json::from_value(json!({"role": "tool", "content": "2", "tool_call_id": "call_0"}))
                    .unwrap(),
            ],
            tools: vec![json!({"type": "function", "function": {"name": "f"}})],
            tool_choice: ToolChoice::Named("f".into()),
            single_call: true,
            template: serde_json::Map::from_iter([("enable_thinking".to_string(), json!(false))]),
            sampling: Sampling {
                temperature: 0.5,
                top_k: 3,
                top_p: 0.9,
                min_p: 0.1,
                repetition_penalty: 1.5,
                seed: 7,
                max_tokens: 9,
                stop: vec!["x".into()],
                ignore_eos: true,
                keep_special: true,
                logprobs: Some(2),
                typical_p: 0.5,
                presence_penalty: -1.0,
                frequency_penalty: 2.0,
                dry: Some(crate::Dry::default()),
                logit_bias: [(5, -100.0), (7, 0.5)].into(),
                stop_ids: vec![3],
                grammar: Some(crate::Grammar::JsonSchema(json!({"type": "object"}))),
            },
            raw: true,
        };
        let body = serde_json::to_value(ChatCompletionRequest::from_request("m", &request)).unwrap();
        assert_eq!(body["messages"][1]["tool_calls"][0]["function"]["arguments"], "{\"x\":1}");
        assert_eq!(body["messages"][1]["content"], Value::Null);
        assert_eq!(chat(body).unwrap(), request);
    }

    #[test]
    fn parameters_out_of_range_are_named() {
        let user = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
        let with = |key: &str, value: Value| {
            let mut body = json!({"messages": user, "user": "me", "store": false, "tools": [{"function": {"name": "f"}}]});
            body[key] = value;
            chat(body)
        };
        assert_eq!(with("n", json!(1)).unwrap().messages[0].content, "ab");
        assert_eq!(with("response_format", json!({"type": "text"})).unwrap().sampling.max_tokens, 100);
        assert_eq!(with("max_completion_tokens", json!(5)).unwrap().sampling.max_tokens, 5);
        for (key, value) in [
            ("temperature", json!(-1)),
            ("top_p", json!(2)),
            ("top_k", json!(-5)),
            ("max_tokens", json!(-1)),
            ("presence_penalty", json!(2.5)),
            ("logit_bias", json!({"5": 101})),
            ("logit_bias", json!({"five": 1})),
            ("response_format", json!({})),
            ("guided_regex", json!(5)),
            ("guided_choice", json!([])),
            ("tool_choice", json!("perhaps")),
            ("tool_choice", json!({"type": "function", "function": {"name": "g"}})),
            ("top_logprobs", json!(3)),
            ("stream_options", json!({"include_usage": true})),
            ("some_future_field", json!(1)),
            ("store", json!(true)),
            ("messages", json!([])),
        ] {
            let error = with(key, value).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(key), "{error:?}");
        }
        for (key, value, param) in [
            ("response_format", json!({"type": "xml"}), "response_format.type"),
            (
                "response_format",
                json!({"type": "json_schema", "json_schema": {}}),
                "response_format.json_schema.name",
            ),
            ("tools", json!([{"type": "custom"}]), "tools[0].type"),
            ("structured_outputs", json!({"xml": 1}), "structured_outputs.xml"),
        ] {
            assert_eq!(with(key, value).unwrap_err().param.as_deref(), Some(param));
        }
        assert_eq!(with("tool_choice", json!("required")).unwrap().tool_choice, ToolChoice::Required);
        let grammar = |key: &str, value| with(key, value).unwrap().sampling.grammar;
        assert_eq!(grammar("response_format", json!({"type": "json_object"})), Some(Grammar::JsonObject));
        assert_eq!(
            grammar("structured_outputs", json!({"choice": ["a", "b\""]})),
            Some(Grammar::Lark("start: \"a\" | \"b\\\"\"".into()))
        );
        let error =
            with("messages", json!([{"role": "user", "content": "a"}, {"content": "b"}])).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages[1]"), "{error:?}");
        let image = json!([{"role": "user", "content": [{"type": "image_url"}]}]);
        assert_eq!(with("messages", image).unwrap_err().param.as_deref(), Some("messages[0].content[0]"));
    }

    #[test]
    fn prompts_have_four_shapes() {
        let read = |p: Value| serde_json::from_value::<WirePrompt>(p).unwrap();
        assert_eq!(read(json!("a")), WirePrompt::Text("a".into()));
        assert_eq!(read(json!(["a", "b"])), WirePrompt::Texts(vec!["a".into(), "b".into()]));
        assert_eq!(read(json!([1, 2])), WirePrompt::Tokens(vec![1, 2]));
        assert_eq!(read(json!([[1], [2]])), WirePrompt::TokenLists(vec![vec![1], vec![2]]));
        assert!(serde_json::from_value::<WirePrompt>(json!({"a": 1})).is_err());
    }

    #[test]
    fn answers_read_with_nulls() {
        let message = read_answer(json!({"content": null, "refusal": null, "tool_calls": null})).unwrap();
        assert_eq!(message, Message::new("assistant", ""));
    }
}
