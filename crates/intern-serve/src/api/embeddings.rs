//! `POST /v1/embeddings`: one vector per text, the mean of the model's final hidden states.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use intern_lm::Sampling;
use intern_lm::wire::{EmbeddingRequest, Invalid};
use serde_json::{Value, json};

use super::app::App;
use super::body::{Incoming, off_thread};
use super::completions::tokenize;
use super::error::ApiError;
use super::generate::{self, Flow, Job, Update};

/// Most texts of one request.
const MAX_TEXTS: usize = 2048;

pub(super) async fn handle(
    State(app): State<Arc<App>>,
    Incoming { body, deadline }: Incoming<EmbeddingRequest>,
) -> Result<Json<Value>, ApiError> {
    let served = app.check_model(body.model.as_deref())?;
    body.check_unknown()?;
    let is_base64 = match body.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            let message = format!("encoding_format is {other}, expected float or base64");
            return Err(Invalid::new("encoding_format", message).into());
        }
    };
    let size = app.engine.config().hidden_size;
    if let Some(asked) = body.dimensions.filter(|&d| d != size as i64) {
        let message = format!("dimensions is {asked}, but this model's vectors have {size}");
        return Err(Invalid::unsupported("dimensions", message).into());
    }
    let input = body.input.ok_or_else(|| Invalid::new("input", "input is missing"))?;
    off_thread(move |is_gone| {
        let texts = tokenize(app.engine.tokenizer(), input, true, "input")?;
        if texts.is_empty() || texts.len() > MAX_TEXTS {
            let message = format!("input has {} texts; between 1 and {MAX_TEXTS} are possible", texts.len());
            return Err(Invalid::new("input", message).into());
        }
        let _ticket = app.gate.enter(texts.len(), &app.metrics)?;
        let mut jobs = Vec::with_capacity(texts.len());
        for (tokens, _) in texts {
            let mut sampling = Sampling { max_tokens: 0, ..Sampling::default() };
            generate::fit(&app, &tokens, &mut sampling, "input")?;
            let (tokens, adapter) = (Arc::new(tokens), served.adapter.clone());
            jobs.push(Job { tokens, sampling, embed: true, deadline, adapter, ..Job::default() });
        }
        let mut data = vec![Value::Null; jobs.len()];
        let mut prompt_tokens = 0;
        generate::run(&app, jobs, is_gone, |index, update| {
            match update {
                Update::Embedding(vector) => {
                    let embedding = if is_base64 { base64(&vector).into() } else { json!(vector) };
                    data[index] = json!({ "object": "embedding", "index": index, "embedding": embedding });
                }
                Update::Done { usage, .. } => prompt_tokens += usage.prompt_tokens,
                Update::Piece { .. } | Update::Prompt(_) => {}
            }
            Flow::Go
        })?;
        let usage = json!({ "prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens });
        Ok(Json(json!({ "object": "list", "data": data, "model": served.name, "usage": usage })))
    })
    .await
}

/// The bytes of little-endian f32 in base64 (RFC 4648).
fn base64(vector: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..three.len()].copy_from_slice(three);
        let bits = u32::from(group[0]) << 16 | u32::from(group[1]) << 8 | u32::from(group[2]);
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63];
            out.push(if i > three.len() { '=' } else { digit.into() });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_padded() {
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(base64(&[1.0, -2.5, 0.0]), "AACAPwAAIMAAAAAA");
        assert_eq!(base64(&[]), "");
    }
}
