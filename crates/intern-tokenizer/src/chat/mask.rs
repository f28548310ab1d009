//! Which tokens of a conversation are trained on.
//!
//! With `{% generation %}` in the template, what those blocks print. Otherwise by
//! prefix difference: the conversation up to an assistant's turn (with the generation
//! prompt) is rendered, and again with the turn; the turn is what came on top. A turn
//! that a later message makes the template render otherwise (stripped reasoning, say)
//! is not what the model would write, so it is context only.

use anyhow::{Context, Result, anyhow, bail};
use intern_format::conversation::{Conversation, Message};
use serde_json::{Map, Value};

use super::ChatTemplate;
use crate::tokenizer::Tokenizer;

/// A conversation as tokens, with the mask of those trained on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatTokens {
    /// Token ids of the whole conversation.
    pub ids: Vec<u32>,
    /// `mask[i]`: whether `ids[i]` is something the assistant wrote.
    pub mask: Vec<bool>,
}

impl ChatTokens {
    /// How many tokens are trained on.
    #[must_use]
    pub fn num_trained(&self) -> usize {
        self.mask.iter().filter(|&&m| m).count()
    }

    /// Whether some trained token ends a turn. Where none does, the model never learns
    /// to stop; tuning should refuse such data.
    #[must_use]
    pub fn has_supervised_end(&self, tokenizer: &Tokenizer) -> bool {
        let ends = tokenizer.end_ids();
        self.ids.iter().zip(&self.mask).any(|(id, &trained)| trained && ends.contains(id))
    }
}

impl Tokenizer {
    /// Renders messages by the chat template and encodes the result, which carries its
    /// own BOS where the template prints one.
    ///
    /// # Errors
    /// Fails without a chat template and when the template refuses the messages.
    pub fn encode_chat(
        &self,
        messages: &[Message],
        tools: &[Value],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        let text = self.template()?.render(messages, tools, add_generation_prompt, &Map::new())?;
        self.encode(&text, false)
    }

    /// Encodes a conversation for training, with the mask of what the assistant wrote.
    ///
    /// # Errors
    /// As [`encode_chat`](Self::encode_chat); also when nothing would be trained on.
    pub fn encode_conversation(&self, conversation: &Conversation) -> Result<ChatTokens> {
        let template = self.template()?;
        let (text, spans) = if template.has_generation() {
            template.render_with_spans(&conversation.messages, &conversation.tools)?
        } else {
            by_prefix_difference(template, &conversation.messages, &conversation.tools)?
        };
        let (ids, offsets) = self.encode_with_offsets(&text)?;
        let mut mask = vec![false; ids.len()];
        for (m, &(start, end)) in mask.iter_mut().zip(&offsets) {
            // A token that begins before the assistant's turn was not chosen by it.
            *m = start < end && spans.iter().any(|&(s, e)| s <= start && start < e);
        }
        let tokens = ChatTokens { ids, mask };
        if tokens.num_trained() == 0 {
            bail!(
                "nothing to train on\nhint: the conversation needs an assistant message with text or a tool call"
            );
        }
        Ok(tokens)
    }

    fn template(&self) -> Result<&ChatTemplate> {
        self.chat_template().ok_or_else(|| {
            anyhow!("the tokenizer has no chat template\nhint: add `chat_template` to tokenizer_config.json")
        })
    }
}

/// The rendered conversation and the byte ranges of the assistant's turns.
fn by_prefix_difference(
    template: &ChatTemplate,
    messages: &[Message],
    tools: &[Value],
) -> Result<(String, Vec<(usize, usize)>)> {
    let none = Map::new();
    let whole = template.render(messages, tools, false, &none)?;
    let mut spans = Vec::new();
    for (i, _) in messages.iter().enumerate().filter(|(_, m)| m.role == "assistant") {
        // Some templates refuse a conversation cut off here; then the turn is context.
        let Ok(before) = template.render(&messages[..i], tools, true, &none) else { continue };
        let upto = template
            .render(&messages[..=i], tools, false, &none)
            .with_context(|| format!("rendering the conversation up to message {i}"))?;
        if whole.starts_with(&before) && whole.starts_with(&upto) && before.len() < upto.len() {
            // Whitespace after the turn belongs to the format, not to the assistant.
            let written = &upto[before.len()..];
            let written = if written.trim_end().ends_with('>') { written.trim_end() } else { written };
            spans.push((before.len(), before.len() + written.len()));
        }
    }
    Ok((whole, spans))
}
