//! Reads a block of calls character by character, so that arguments stream.
//!
//! Knows the envelopes only (`{"name": …, "arguments": {…}}` and Mistral's
//! `name[ARGS]{…}`); what is inside the arguments passes through as the model writes it.

use super::{END_TOKENS, ToolFormat};

/// What became clear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// A call begins.
    Begin(String),
    /// More of its arguments' JSON text.
    Arguments(String),
}

/// Which value of a call's object is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Name,
    Arguments,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Between calls; the string is the beginning of a marker, or of a Mistral call's name.
    Between(String),
    /// Inside a call's object, before a key.
    Key,
    /// Inside a key.
    InKey(String),
    Colon(Role),
    BeforeValue(Role),
    Value(Role, JsonValue),
    AfterValue,
    Failed,
}

/// A JSON value on its way: just enough to see where it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct JsonValue {
    text: String,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl JsonValue {
    /// Takes a character of a container or string; true when it is the last.
    fn take(&mut self, c: char) -> bool {
        self.text.push(c);
        match c {
            _ if self.escaped => self.escaped = false,
            '\\' if self.in_string => self.escaped = true,
            '"' => {
                self.in_string = !self.in_string;
                return !self.in_string && self.depth == 0;
            }
            _ if self.in_string => {}
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }

    /// Whether it is a number or a word, which ends only where something else begins.
    fn is_bare(&self) -> bool {
        !self.text.starts_with(['{', '[', '"'])
    }
}

/// The state of one block.
#[derive(Debug)]
pub(super) struct Scan {
    format: ToolFormat,
    state: State,
    name: Option<String>,
    /// `Begin` is out.
    begun: bool,
    /// Arguments are known, or passed on.
    has_arguments: bool,
    /// Arguments that wait for the name, or for the end of this piece of text.
    arguments: String,
    /// The call is Mistral's `name[ARGS]{…}`, which ends with its arguments.
    is_bare_call: bool,
    in_array: bool,
    /// Bytes taken.
    position: usize,
    /// Bytes up to here are complete calls or were passed on.
    pub told: usize,
    calls: usize,
}

impl Scan {
    pub fn new(format: ToolFormat) -> Self {
        Self {
            format,
            state: State::Between(String::new()),
            name: None,
            begun: false,
            has_arguments: false,
            arguments: String::new(),
            is_bare_call: false,
            in_array: false,
            position: 0,
            told: 0,
            calls: 0,
        }
    }

    /// Takes more of the block.
    pub fn push(&mut self, text: &str, out: &mut Vec<Seen>) {
        for c in text.chars() {
            if self.state == State::Failed {
                break;
            }
            self.take(c, out);
            self.position += c.len_utf8();
            if self.begun && self.state != State::Failed {
                self.told = self.position;
            }
        }
        self.flush(out);
    }

    /// Whether anything of the block was passed on.
    pub fn has_told(&self) -> bool {
        self.calls > 0
    }

    /// Whether the block broke off or went wrong behind [`told`](Self::told), so that its rest is text.
    pub fn is_broken(&self) -> bool {
        match &self.state {
            State::Between(begun) => !begun.is_empty() && !END_TOKENS.contains(&begun.as_str()),
            State::Failed => true,
            // Arguments that break off were passed on.
            _ => !self.begun,
        }
    }

    fn take(&mut self, c: char, out: &mut Vec<Seen>) {
        let space = c.is_ascii_whitespace();
        self.state = match std::mem::replace(&mut self.state, State::Failed) {
            State::Between(begun) => self.between(begun, c, out),
            State::Key => match c {
                '"' => State::InKey("\"".into()),
                '}' => self.end_call(out),
                _ if space || c == ',' => State::Key,
                _ => State::Failed,
            },
            State::InKey(mut key) => {
                let ends = c == '"' && !key.ends_with('\\');
                key.push(c);
                match (ends, key.as_str()) {
                    (false, _) => State::InKey(key),
                    (true, "\"name\"") => State::Colon(Role::Name),
                    (true, "\"parameters\"" | "\"arguments\"") => State::Colon(Role::Arguments),
                    _ => State::Colon(Role::Other),
                }
            }
            State::Colon(role) => match c {
                ':' => State::BeforeValue(role),
                _ if space => State::Colon(role),
                _ => State::Failed,
            },
            State::BeforeValue(role) if space => State::BeforeValue(role),
            State::BeforeValue(role) => {
                if role == Role::Arguments && self.has_arguments {
                    State::Failed // twice
                } else {
                    if role == Role::Arguments && self.name.is_some() && c == '{' {
                        self.begin(out);
                    }
                    self.value(role, JsonValue::default(), c, out)
                }
            }
            State::Value(role, value) => self.value(role, value, c, out),
            State::AfterValue => match c {
                ',' => State::Key,
                '}' => self.end_call(out),
                _ if space => State::AfterValue,
                _ => State::Failed,
            },
            State::Failed => State::Failed,
        };
    }

    fn between(&mut self, mut begun: String, c: char, out: &mut Vec<Seen>) -> State {
        let mistral = self.format == ToolFormat::Mistral;
        if begun.is_empty() {
            return match c {
                '{' => State::Key,
                '[' if !mistral && !self.in_array => {
                    self.in_array = true;
                    State::Between(begun)
                }
                ']' if self.in_array => {
                    self.in_array = false;
                    State::Between(begun)
                }
                ';' | ',' => State::Between(begun),
                _ if c.is_whitespace() => State::Between(begun),
                '<' | '[' => State::Between(c.into()),
                _ if mistral => State::Between(c.into()),
                _ => State::Failed,
            };
        }
        if begun == "[" && c != 'T' {
            // An array, after all.
            self.in_array = true;
            return self.between(String::new(), c, out);
        }
        begun.push(c);
        let markers = || END_TOKENS.iter().chain(self.format.starts());
        if markers().any(|m| *m == begun) {
            return State::Between(String::new());
        }
        if begun.starts_with(['<', '[']) {
            let is_marker = markers().any(|m| m.starts_with(begun.as_str()));
            return if is_marker { State::Between(begun) } else { State::Failed };
        }
        if c != '{' {
            return State::Between(begun);
        }
        // Mistral: the name, perhaps a call id, `[ARGS]`, and now the arguments.
        let name = begun.split(['[', '{']).next().unwrap_or_default().trim();
        if name.is_empty() {
            return State::Failed;
        }
        self.name = Some(name.to_string());
        self.is_bare_call = true;
        self.begin(out);
        self.value(Role::Arguments, JsonValue::default(), c, out)
    }

    fn value(&mut self, role: Role, mut value: JsonValue, c: char, out: &mut Vec<Seen>) -> State {
        let streams =
            role == Role::Arguments && (value.text.starts_with('{') || (value.text.is_empty() && c == '{'));
        if !value.text.is_empty() && value.is_bare() {
            if !matches!(c, ',' | '}') && !c.is_ascii_whitespace() {
                value.text.push(c);
                return State::Value(role, value);
            }
            if !self.end_value(role, &value.text, out) {
                return State::Failed;
            }
            return match c {
                ',' => State::Key,
                '}' => self.end_call(out),
                _ => State::AfterValue,
            };
        }
        let ends = value.take(c);
        if streams {
            self.arguments.push(c);
            // Only where it begins matters from here on.
            value.text.truncate(1);
            self.has_arguments = true;
        }
        if !ends {
            return State::Value(role, value);
        }
        if !streams && !self.end_value(role, &value.text, out) {
            return State::Failed;
        }
        if self.is_bare_call { self.end_call(out) } else { State::AfterValue }
    }

    /// A value that was not passed on as it came; false if it makes no sense.
    fn end_value(&mut self, role: Role, text: &str, out: &mut Vec<Seen>) -> bool {
        let Ok(value) = serde_json::from_str::<serde_json::Value>(text) else { return false };
        match (role, value) {
            (Role::Name, serde_json::Value::String(name)) if !name.is_empty() && self.name.is_none() => {
                self.name = Some(name);
                if self.has_arguments {
                    self.begin(out);
                }
                true
            }
            (Role::Name, _) => false,
            (Role::Other, _) => true,
            (Role::Arguments, serde_json::Value::Null) => true,
            (Role::Arguments, serde_json::Value::String(inner)) => {
                let is_object = serde_json::from_str::<serde_json::Map<_, _>>(&inner).is_ok();
                self.arguments.push_str(&inner);
                self.has_arguments = true;
                if self.name.is_some() {
                    self.begin(out);
                }
                is_object
            }
            (Role::Arguments, _) => false,
        }
    }

    fn begin(&mut self, out: &mut Vec<Seen>) {
        if !self.begun
            && let Some(name) = &self.name
        {
            self.begun = true;
            self.calls += 1;
            out.push(Seen::Begin(name.clone()));
        }
    }

    fn end_call(&mut self, out: &mut Vec<Seen>) -> State {
        if self.name.is_none() {
            return State::Failed;
        }
        self.begin(out);
        if !self.has_arguments {
            self.arguments.push_str("{}");
        }
        self.flush(out);
        self.told = self.position + 1;
        (self.name, self.begun, self.has_arguments, self.is_bare_call) = (None, false, false, false);
        State::Between(String::new())
    }

    /// Passes on the arguments so far.
    fn flush(&mut self, out: &mut Vec<Seen>) {
        if self.begun && !self.arguments.is_empty() {
            out.push(Seen::Arguments(std::mem::take(&mut self.arguments)));
        }
    }
}
