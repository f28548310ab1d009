//! Talking with a model in a terminal.
//!
//! Works with any [`LanguageModel`], local or remote. On a terminal, lines are edited
//! and remembered by rustyline, thoughts are dim, and ctrl-C ends the answer, not the
//! program ([`interrupt`]); from a pipe, each line is one message, answers go to standard
//! output and nothing else does.

mod interrupt;
mod screen;

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use intern_format::conversation::{Conversation, Message, write_jsonl};
use intern_lm::{ChatRequest, FinishReason, LanguageModel, Sampling};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde::{Deserialize, Serialize};

use interrupt::Interrupt;
use screen::Screen;

const HELP: &str = "\
/reset          forget the conversation (the system message stays)
/system TEXT    set the system message (without TEXT: remove it) and begin anew
/save FILE      write the conversation as JSONL
/help           this
/quit           end (so does ctrl-D)
A line ending in \\ goes on in the next one; \"\"\" begins and ends a message of several lines.
Ctrl-C stops an answer.";

/// How to talk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChatConfig {
    /// What the model is told before everything else.
    pub system: Option<String>,
    /// How answers are generated.
    pub sampling: Sampling,
    /// Where typed lines are remembered between sessions.
    pub history: Option<PathBuf>,
}

/// Talks until the input ends or `/quit`.
///
/// # Errors
/// If standard input or output fail. A failing model is reported, and the talk goes on
/// (from a pipe it ends).
pub fn run(model: &dyn LanguageModel, config: &ChatConfig) -> Result<()> {
    let stdin = std::io::stdin();
    let mut stdout = std::io::stdout();
    if stdin.is_terminal() && stdout.is_terminal() {
        println!("{} · /help for commands", model.name());
        let mut editor = DefaultEditor::new().context("preparing the terminal")?;
        if let Some(history) = &config.history {
            let _ = editor.load_history(history);
        }
        let mut talk = Talk::new(model, config, true);
        talk.interrupt = Some(Interrupt::on_ctrl_c()?);
        let mut lines = Terminal(&mut editor);
        let result = talk.run(&mut || lines.next(), &mut stdout);
        if let Some(history) = &config.history {
            let _ = editor.save_history(history);
        }
        return result;
    }
    let mut lines = stdin.lock().lines();
    Talk::new(model, config, false)
        .run(&mut || lines.next().transpose().context("reading standard input"), &mut stdout)
}

/// Lines typed in a terminal.
struct Terminal<'a>(&'a mut DefaultEditor);

impl Terminal<'_> {
    fn next(&mut self) -> Result<Option<String>> {
        loop {
            match self.0.readline(screen::PROMPT) {
                Ok(line) => {
                    let _ = self.0.add_history_entry(&line);
                    return Ok(Some(line));
                }
                // Ctrl-C drops the line being typed, as in a shell.
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(None),
                Err(error) => return Err(error).context("reading the terminal"),
            }
        }
    }
}

/// A conversation under way.
struct Talk<'a> {
    model: &'a dyn LanguageModel,
    sampling: &'a Sampling,
    system: Option<String>,
    messages: Vec<Message>,
    interactive: bool,
    /// Answers may be stopped.
    interrupt: Option<Interrupt>,
}

impl<'a> Talk<'a> {
    fn new(model: &'a dyn LanguageModel, config: &'a ChatConfig, interactive: bool) -> Self {
        let mut talk = Self {
            model,
            sampling: &config.sampling,
            system: config.system.clone(),
            messages: Vec::new(),
            interactive,
            interrupt: None,
        };
        talk.reset();
        talk
    }

    fn reset(&mut self) {
        self.messages = self.system.iter().map(|text| Message::new("system", text)).collect();
    }

    fn run(&mut self, next: &mut dyn FnMut() -> Result<Option<String>>, out: &mut dyn Write) -> Result<()> {
        while let Some(line) = next()? {
            let mut text = line;
            while let Some(begun) = text.strip_suffix('\\') {
                let Some(more) = next()? else { break };
                text = format!("{begun}\n{more}");
            }
            if let Some(begun) = text.trim().strip_prefix(QUOTES) {
                text = quoted(begun, next)?;
            }
            let text = text.trim();
            match text.split_once(char::is_whitespace).map_or((text, ""), |(word, rest)| (word, rest.trim()))
            {
                ("", _) => {}
                ("/quit" | "/exit", _) => break,
                ("/help", _) => self.say(HELP),
                ("/reset", _) => {
                    self.reset();
                    self.say("the conversation begins anew");
                }
                ("/system", system) => {
                    self.system = (!system.is_empty()).then(|| system.to_string());
                    self.reset();
                    self.say("the conversation begins anew");
                }
                ("/save", file) => match self.save(file) {
                    Ok(()) => self.say(&format!("saved as {file}")),
                    Err(error) => self.say(&format!("not saved: {error:#}")),
                },
                (word, _) if word.starts_with('/') && !word[1..].contains('/') => {
                    self.say(&format!("no command {word}\n{HELP}"));
                }
                _ => self.answer(text, out)?,
            }
        }
        Ok(())
    }

    /// Asks the model and prints its answer as it comes.
    fn answer(&mut self, text: &str, out: &mut dyn Write) -> Result<()> {
        self.messages.push(Message::new("user", text));
        let request = ChatRequest {
            messages: self.messages.clone(),
            sampling: self.sampling.clone(),
            ..ChatRequest::default()
        };
        let begin = Instant::now();
        let (mut first, mut broken) = (None, None);
        let mut screen = Screen::new(out, self.interactive);
        let mut heard = String::new();
        let mut listen = |piece: &str| {
            first.get_or_insert_with(|| begin.elapsed());
            heard.push_str(piece);
            if let Err(error) = screen.show(piece) {
                broken.get_or_insert(error);
            }
        };
        let answer = match &self.interrupt {
            None => Some(self.model.chat(&request, &mut |_, piece| listen(piece))),
            Some(interrupt) => interrupt.stoppable(|check| {
                self.model.chat(&request, &mut |_, piece| {
                    check();
                    listen(piece);
                })
            }),
        };
        if let Some(error) = broken.or(screen.end().err()) {
            return Err(error).context("writing the answer");
        }
        let answer = match answer {
            Some(Ok(answer)) => answer,
            None => {
                // What was said stays part of the conversation.
                writeln!(out)?;
                self.say("stopped");
                self.messages.push(Message::new("assistant", heard));
                return Ok(());
            }
            Some(Err(error)) if self.interactive => {
                self.messages.pop();
                screen::error(&format!("{error:#}"));
                return Ok(());
            }
            Some(Err(error)) => return Err(error),
        };
        for call in &answer.message.tool_calls {
            write!(out, "[{} {}]", call.function.name, call.function.arguments)?;
        }
        writeln!(out)?;
        out.flush()?;
        let total = begin.elapsed();
        let tokens = answer.usage.completion_tokens;
        let first = first.unwrap_or(total);
        let mut stats = format!("{tokens} tokens, first after {:.2} s", first.as_secs_f64());
        let rest = (total - first).as_secs_f64();
        if tokens > 1 && rest > 0.0 {
            stats.push_str(&format!(", then {:.1} tok/s", (tokens - 1) as f64 / rest));
        }
        if answer.finish == FinishReason::Length {
            stats.push_str(", cut off at the length limit");
        }
        self.say(&stats);
        self.messages.push(answer.message);
        Ok(())
    }

    fn save(&self, file: &str) -> Result<()> {
        anyhow::ensure!(!file.is_empty(), "no file named\nhint: /save FILE");
        let conversation = Conversation { messages: self.messages.clone(), tools: Vec::new() };
        write_jsonl(Path::new(file), [&conversation])?;
        Ok(())
    }

    /// Words of the program, not of the model: dim, and beside the answers.
    fn say(&self, text: &str) {
        if self.interactive {
            screen::aside(text);
        } else {
            eprintln!("{text}");
        }
    }
}

/// Begins and ends a message of several lines.
const QUOTES: &str = "\"\"\"";

/// The rest of a message that began with [`QUOTES`] and `begun`.
fn quoted(begun: &str, next: &mut dyn FnMut() -> Result<Option<String>>) -> Result<String> {
    let mut text = begun.to_string();
    while !text.trim_end().ends_with(QUOTES) {
        let Some(line) = next()? else { return Ok(text) };
        text.push('\n');
        text.push_str(&line);
    }
    text.truncate(text.trim_end().len() - QUOTES.len());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use intern_lm::{ChatResponse, Completion, GenerateRequest, Score, ScoreRequest, Sink, Usage};

    /// Answers with the roles and texts it was sent.
    struct Mirror;

    impl LanguageModel for Mirror {
        fn name(&self) -> &str {
            "mirror"
        }
        fn max_context(&self) -> Option<usize> {
            None
        }
        fn generate(&self, _: &[GenerateRequest], _: Sink) -> Result<Vec<Completion>> {
            unreachable!()
        }
        fn score(&self, _: &[ScoreRequest]) -> Result<Vec<Score>> {
            unreachable!()
        }
        fn chat(&self, request: &ChatRequest, sink: Sink) -> Result<ChatResponse> {
            let seen: Vec<String> =
                request.messages.iter().map(|m| format!("{}:{}", m.role, m.content.len())).collect();
            let text = seen.join(" ");
            for piece in text.split_inclusive(' ') {
                sink(0, piece);
            }
            let usage = Usage { prompt_tokens: 1, completion_tokens: seen.len() };
            Ok(ChatResponse { message: Message::new("assistant", text), finish: FinishReason::Stop, usage })
        }
    }

    #[track_caller]
    fn check(system: Option<&str>, typed: &str, printed: &str) {
        let config = ChatConfig { system: system.map(Into::into), ..ChatConfig::default() };
        let mut lines = typed.lines().map(str::to_string);
        let mut out = Vec::new();
        Talk::new(&Mirror, &config, false).run(&mut || Ok(lines.next()), &mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), printed);
    }

    #[test]
    fn turns_add_up() {
        check(None, "hi\n\nhello", "user:2\nuser:2 assistant:6 user:5\n");
        check(Some("be kind"), "hi", "system:7 user:2\n");
        check(None, "a\\\nb\\", "user:4\n");
        check(None, "\"\"\"a\n\nb\"\"\"\nc", "user:4\nuser:4 assistant:6 user:1\n");
        check(None, "\"\"\"one\"\"\"", "user:3\n");
        check(None, "/etc/passwd is a file", "user:21\n");
    }

    #[test]
    fn commands_steer() {
        check(None, "hi\n/reset\nhi\n/quit\nhi", "user:2\nuser:2\n");
        check(Some("x"), "/system be brief\nhi\n/system\nhi\n/nonsense\n/help", "system:8 user:2\nuser:2\n");
    }

    #[test]
    fn a_conversation_is_saved() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("talk.jsonl");
        check(None, &format!("hi\n/save\n/save {}", file.display()), "user:2\n");
        let saved = intern_format::conversation::open(&file).unwrap();
        assert_eq!(saved[0].messages.len(), 2);
        assert_eq!(saved[0].messages[1].content, "user:2");
    }
}
