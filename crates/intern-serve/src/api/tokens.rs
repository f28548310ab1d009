//! `POST /tokenize` and `/detokenize` and `GET /tokenizer_info`, with vLLM's bodies: text or
//! messages to ids, and back, and what clients need to do the rest themselves.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use intern_lm::wire::{DetokenizeRequest, Invalid, TokenizeRequest, TokenizeResponse, read_messages};
use serde_json::{Value, json};

use super::app::App;
use super::body::{Incoming, off_thread};
use super::error::ApiError;

pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    Incoming { body, .. }: Incoming<TokenizeRequest>,
) -> Result<Json<TokenizeResponse>, ApiError> {
    app.check_model(body.model.as_deref())?;
    off_thread(move |_| {
        let tokenizer = app.engine.tokenizer();
        let (param, tokens) = match (&body.prompt, &body.messages) {
            (Some(text), None) => ("prompt", tokenizer.encode(text, body.add_special_tokens.unwrap_or(true))),
            (None, Some(messages)) => {
                let tools = body.tools.as_deref().unwrap_or_default();
                let begins = body.add_generation_prompt.unwrap_or(true);
                ("messages", tokenizer.encode_chat(&read_messages(messages)?, tools, begins))
            }
            _ => return Err(Invalid::new("prompt", "give either prompt or messages").into()),
        };
        let tokens =
            tokens.map_err(|e| Invalid::new(param, format!("{param} cannot be tokenized: {e:#}")))?;
        let max_model_len = app.engine.context_length();
        Ok(Json(TokenizeResponse { count: tokens.len(), max_model_len, tokens }))
    })
    .await
}

/// The chat template and the tokens' names (lm-evaluation-harness reads them).
pub(super) async fn info(State(app): State<Arc<App>>) -> Json<Value> {
    let tokenizer = app.engine.tokenizer();
    let name = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id));
    Json(json!({
        "tokenizer_class": "intern",
        "bos_token": name(tokenizer.bos_id()),
        "eos_token": name(tokenizer.eos_id()),
        "pad_token": name(tokenizer.pad_id()),
        "unk_token": name(tokenizer.unk_id()),
        "add_bos_token": tokenizer.adds_bos(),
        "vocab_size": tokenizer.vocab_size(),
        "model_max_length": app.engine.context_length(),
        "chat_template": tokenizer.chat_template().map(|t| t.source()),
    }))
}

pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    Incoming { body, .. }: Incoming<DetokenizeRequest>,
) -> Result<Json<Value>, ApiError> {
    app.check_model(body.model.as_deref())?;
    off_thread(move |_| {
        let vocab = app.engine.tokenizer().vocab_size();
        if let Some(bad) = body.tokens.iter().find(|&&id| id as usize >= vocab) {
            let message = format!("tokens holds the id {bad}, but the vocabulary has {vocab} tokens");
            return Err(Invalid::new("tokens", message).into());
        }
        let text = app.engine.tokenizer().decode(&body.tokens, false);
        let text =
            text.map_err(|e| Invalid::new("tokens", format!("the tokens cannot be decoded: {e:#}")))?;
        Ok(Json(json!({ "prompt": text })))
    })
    .await
}
