//! Hugging Face chat templates: Jinja as `transformers` runs it, by minijinja.
//!
//! What `transformers` sets and we reproduce: `trim_blocks` and `lstrip_blocks`, loop
//! controls, `raise_exception`, `strftime_now`, its own `tojson`, `{% generation %}`
//! blocks, and Python's way of printing values and its string methods.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use intern_format::conversation::Message;
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde_json::Map;

use super::{filters, generation, methods, python, strftime};

/// A compiled chat template together with the token names it may print.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: Arc<str>,
    compiled: Result<Arc<Environment<'static>>, Arc<str>>,
    tokens: Map<String, serde_json::Value>, // bos_token, eos_token, …
    has_generation: bool,
    clock: Option<i64>, // seconds since 1970 that `strftime_now` prints; None = now
}

const NAME: &str = "chat_template";

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// Names the line on which the template does not parse.
    pub fn new(source: &str) -> Result<Self> {
        let template = Self::lazily(source.to_string());
        template.environment()?;
        Ok(template)
    }

    /// Compiles a template, keeping its error for the first rendering.
    pub(crate) fn lazily(source: String) -> Self {
        let (prepared, has_generation) = generation::mark(&source);
        let compiled = environment(prepared).map(Arc::new).map_err(|e| describe(&e).into());
        Self { source: source.into(), compiled, tokens: Map::new(), has_generation, clock: None }
    }

    /// Names special tokens for the template (`bos_token`, `eos_token`, …).
    #[must_use]
    pub fn with_tokens<'a>(mut self, tokens: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        self.tokens.extend(tokens.into_iter().map(|(name, token)| (name.to_string(), token.into())));
        self
    }

    /// Fixes the time that `strftime_now` prints, in seconds since 1970 (UTC), so that
    /// rendering is reproducible. Otherwise it is the present, in UTC.
    #[must_use]
    pub fn with_clock(mut self, seconds: i64) -> Self {
        self.clock = Some(seconds);
        self
    }

    /// The template as written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template marks what the assistant writes with `{% generation %}`.
    #[must_use]
    pub fn has_generation(&self) -> bool {
        self.has_generation
    }

    /// Renders a conversation. `tools` are declarations in OpenAI's form; `extra`
    /// adds variables (`enable_thinking`, `documents`, …).
    ///
    /// # Errors
    /// Reports what the template refuses (`raise_exception`) and where it fails.
    pub fn render(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        add_generation_prompt: bool,
        extra: &Map<String, serde_json::Value>,
    ) -> Result<String> {
        self.render_context(&context(messages, tools, add_generation_prompt, extra)?)
    }

    /// Renders with exactly these variables (besides the token names).
    ///
    /// # Errors
    /// As [`render`](Self::render).
    pub fn render_context(&self, context: &Map<String, serde_json::Value>) -> Result<String> {
        self.render_marked(context, "", "")
    }

    /// Renders with the byte ranges that `{% generation %}` blocks produced.
    pub(crate) fn render_with_spans(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
    ) -> Result<(String, Vec<(usize, usize)>)> {
        let context = context(messages, tools, false, &Map::new())?;
        let (open, close) = generation::unused_markers(&context)?;
        let marked = self.render_marked(&context, &open.to_string(), &close.to_string())?;
        Ok(generation::strip(&marked, open, close))
    }

    fn render_marked(
        &self,
        context: &Map<String, serde_json::Value>,
        open: &str,
        close: &str,
    ) -> Result<String> {
        let env = self.environment()?;
        let mut variables: Vec<(String, Value)> = Vec::with_capacity(context.len() + self.tokens.len() + 3);
        variables.extend(self.tokens.iter().map(|(k, v)| (k.clone(), python::to_value(v))));
        variables.extend(context.iter().map(|(k, v)| (k.clone(), python::to_value(v))));
        variables.push((generation::OPEN.to_string(), open.into()));
        variables.push((generation::CLOSE.to_string(), close.into()));
        let clock = self.clock;
        let now = move |format: String| strftime::format(&format, clock.unwrap_or_else(strftime::now));
        variables.push(("strftime_now".to_string(), Value::from_function(now)));
        let template = env.get_template(NAME).map_err(|e| anyhow!("chat template: {}", describe(&e)))?;
        template.render(Value::from_pairs(variables)).map_err(|e| {
            anyhow!("chat template: {}\nhint: the template decides which messages it accepts", describe(&e))
        })
    }

    fn environment(&self) -> Result<&Environment<'static>> {
        match &self.compiled {
            Ok(env) => Ok(env),
            Err(why) => Err(anyhow!(
                "chat template does not parse: {why}\nhint: expected Jinja as Hugging Face chat templates use it"
            )),
        }
    }
}

/// The variables `transformers` gives a template.
fn context(
    messages: &[Message],
    tools: &[serde_json::Value],
    add_generation_prompt: bool,
    extra: &Map<String, serde_json::Value>,
) -> Result<Map<String, serde_json::Value>> {
    let mut context = Map::new();
    context.insert("messages".into(), serde_json::to_value(messages)?);
    let tools = if tools.is_empty() { serde_json::Value::Null } else { tools.into() };
    context.insert("tools".into(), tools);
    context.insert("documents".into(), serde_json::Value::Null);
    context.insert("add_generation_prompt".into(), add_generation_prompt.into());
    context.extend(extra.iter().map(|(k, v)| (k.clone(), v.clone())));
    Ok(context)
}

/// Jinja set up as `transformers` does.
fn environment(source: String) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_formatter(|out, _, value| out.write_str(&python::str(value)).map_err(Error::from));
    env.set_unknown_method_callback(methods::call);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_filter("tojson", filters::to_json);
    env.add_filter("string", filters::string);
    env.add_filter("indent", filters::indent);
    env.add_filter("int", filters::int);
    env.add_filter("float", filters::float);
    env.add_test("iterable", filters::is_iterable);
    env.add_template_owned(NAME, source)?;
    Ok(env)
}

/// An error with the line of the template it happened on.
fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    match error.line() {
        Some(line) => format!("{what} (template line {line})"),
        None => what,
    }
}
