//! Conversations as text and tokens: Hugging Face chat templates and training masks.

mod filters;
mod generation;
mod mask;
mod methods;
mod python;
mod strftime;
mod template;

pub use mask::ChatTokens;
pub use template::ChatTemplate;
