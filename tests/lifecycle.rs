//! A miniature life of a model, from pages to agent, through `intern run`.
