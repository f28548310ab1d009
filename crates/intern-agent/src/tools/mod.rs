//! Tools: what the model can call, and how a call is checked and answered.
//!
//! A failed call is an answer too: its text goes back to the model, which may try
//! again. Only a fault of the machine (a missing directory at start) is an error.

pub mod calculator;
mod file;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use crate::config::{AgentConfig, ToolKind};

pub use calculator::Calculator;
pub use file::FileTool;

/// Something the model can call.
pub trait Tool: Send + Sync {
    /// The name the model uses.
    fn name(&self) -> &str;

    /// The declaration in OpenAI's form: `{"type":"function","function":{name, description, parameters}}`.
    fn declaration(&self) -> Value;

    /// Answers one call.
    ///
    /// # Errors
    /// If the call makes no sense; the text is written for the model.
    fn call(&self, arguments: &Map<String, Value>) -> Result<String>;
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// For the model.
    pub text: String,
    /// Whether the tool did what was asked.
    pub ok: bool,
}

/// The tools of one agent.
pub struct Toolbox {
    tools: Vec<Box<dyn Tool>>,
}

impl Toolbox {
    /// Builds the tools named in `config`.
    ///
    /// # Errors
    /// If the `file` tool has no usable directory.
    pub fn new(config: &AgentConfig) -> Result<Self> {
        let mut tools: Vec<Box<dyn Tool>> = Vec::new();
        for kind in &config.tools {
            tools.push(match kind {
                ToolKind::Calculator => Box::new(Calculator),
                ToolKind::File => {
                    let Some(root) = &config.file.root else {
                        bail!("the `file` tool needs a directory\nhint: set it with file.root = \"some/directory\"");
                    };
                    Box::new(FileTool::new(root, config.file.write)?)
                }
            });
        }
        Ok(Self::of(tools))
    }

    /// Takes tools as they are.
    #[must_use]
    pub fn of(tools: Vec<Box<dyn Tool>>) -> Self {
        Self { tools }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    /// Every declaration, in the config's order.
    #[must_use]
    pub fn declarations(&self) -> Vec<Value> {
        self.tools.iter().map(|t| t.declaration()).collect()
    }

    /// The names, for messages.
    #[must_use]
    pub fn names(&self) -> String {
        self.tools.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ")
    }

    /// If a call of `name` needs exactly one piece of text, the argument it goes into.
    #[must_use]
    pub fn only_text_argument(&self, name: &str) -> Option<String> {
        let declaration = self.tools.iter().find(|t| t.name() == name)?.declaration();
        let parameters = &declaration["function"]["parameters"];
        let [Value::String(argument)] = parameters["required"].as_array()?.as_slice() else { return None };
        (parameters["properties"][argument]["type"] == "string").then(|| argument.clone())
    }

    /// Runs one call.
    #[must_use]
    pub fn call(&self, name: &str, arguments: &Value) -> Outcome {
        match self.try_call(name, arguments) {
            Ok(text) => Outcome { text, ok: true },
            Err(error) => Outcome { text: format!("Error: {error:#}"), ok: false },
        }
    }

    fn try_call(&self, name: &str, arguments: &Value) -> Result<String> {
        let Some(tool) = self.tools.iter().find(|t| t.name() == name) else {
            bail!(
                "there is no tool `{name}`. Tools: {}",
                if self.is_empty() { "none".into() } else { self.names() }
            );
        };
        let Value::Object(arguments) = arguments else {
            bail!("the arguments of {name} must be a JSON object");
        };
        let declaration = tool.declaration();
        check(arguments, &declaration["function"]["parameters"])
            .with_context(|| format!("calling {name}"))?;
        tool.call(arguments)
    }
}

/// Checks names, presence and kind of `arguments` against the declaration's JSON schema.
fn check(arguments: &Map<String, Value>, parameters: &Value) -> Result<()> {
    for name in parameters["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !arguments.contains_key(name) {
            bail!("`{name}` is missing");
        }
    }
    for (name, value) in arguments {
        let Some(schema) = parameters["properties"].get(name) else {
            let known: Vec<&str> =
                parameters["properties"].as_object().into_iter().flatten().map(|(k, _)| k.as_str()).collect();
            bail!("there is no argument `{name}`; there are {}", known.join(", "));
        };
        if schema["type"] == "string" && !value.is_string() {
            bail!("`{name}` must be a string");
        }
        if let Some(choices) = schema["enum"].as_array()
            && !choices.contains(value)
        {
            bail!("`{name}` must be one of {}", Value::from(choices.clone()));
        }
    }
    Ok(())
}

/// A required text argument; [`check`] has made sure it is there.
fn text<'a>(arguments: &'a Map<String, Value>, name: &str) -> Result<&'a str> {
    arguments.get(name).and_then(Value::as_str).with_context(|| format!("`{name}` is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn toolbox() -> Toolbox {
        Toolbox::of(vec![Box::new(Calculator)])
    }

    #[test]
    fn calls_are_checked_before_they_run() {
        let check = |name: &str, arguments: Value, expected: &str| {
            let outcome = toolbox().call(name, &arguments);
            assert!(!outcome.ok);
            assert!(outcome.text.contains(expected), "{}", outcome.text);
        };
        check("calc", json!({"expression": "1"}), "there is no tool `calc`. Tools: calculator");
        check("calculator", json!("1 + 1"), "must be a JSON object");
        check("calculator", json!({}), "`expression` is missing");
        check("calculator", json!({"expression": 2}), "must be a string");
        check("calculator", json!({"expression": "1", "base": "2"}), "there is no argument `base`");
        assert_eq!(
            toolbox().call("calculator", &json!({"expression": "3 + 4 * 2"})),
            Outcome { text: "11".into(), ok: true }
        );
    }

    #[test]
    fn a_single_text_argument_is_known() {
        assert_eq!(toolbox().only_text_argument("calculator").as_deref(), Some("expression"));
        assert_eq!(toolbox().only_text_argument("nothing"), None);
    }
}
