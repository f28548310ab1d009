//! Tool calls in a model's own text format, to and from OpenAI's form.
