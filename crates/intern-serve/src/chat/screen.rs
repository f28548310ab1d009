//! Colours of the terminal chat: thoughts and asides are dim, errors red.

use std::io::Write;

use intern_lm::reasoning::{Thought, ThoughtSplitter};

/// Before the line being typed.
pub(super) const PROMPT: &str = "› ";

const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// Whether colours are wanted (<https://no-color.org>).
fn coloured() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// Words of the program, beside the answers.
pub(super) fn aside(text: &str) {
    if coloured() { eprintln!("{DIM}{text}{PLAIN}") } else { eprintln!("{text}") }
}

/// What went wrong.
pub(super) fn error(text: &str) {
    if coloured() { eprintln!("{RED}error: {text}{PLAIN}") } else { eprintln!("error: {text}") }
}

/// Shows one answer while it comes.
pub(super) struct Screen<'a> {
    out: &'a mut dyn Write,
    /// Tells thoughts apart, where there are colours to show it.
    thoughts: Option<ThoughtSplitter>,
    is_dim: bool,
}

impl<'a> Screen<'a> {
    /// On a terminal thoughts are dim; elsewhere the text stays as it is.
    pub fn new(out: &'a mut dyn Write, interactive: bool) -> Self {
        let thoughts = (interactive && coloured()).then(|| ThoughtSplitter::new(false));
        Self { out, thoughts, is_dim: false }
    }

    /// Shows the next piece.
    pub fn show(&mut self, piece: &str) -> std::io::Result<()> {
        match &mut self.thoughts {
            None => self.out.write_all(piece.as_bytes())?,
            Some(splitter) => {
                let pieces = splitter.push(piece);
                self.write(pieces)?;
            }
        }
        self.out.flush()
    }

    /// Shows what was held back.
    pub fn end(mut self) -> std::io::Result<()> {
        let rest = self.thoughts.take().map(ThoughtSplitter::finish).unwrap_or_default();
        self.write(rest)?;
        if self.is_dim {
            self.out.write_all(PLAIN.as_bytes())?;
        }
        self.out.flush()
    }

    fn write(&mut self, pieces: Vec<Thought>) -> std::io::Result<()> {
        for piece in pieces {
            let (dim, text) = match &piece {
                Thought::Thinking(text) => (true, text),
                Thought::Answer(text) => (false, text),
            };
            if dim && !self.is_dim {
                write!(self.out, "{DIM}")?;
            } else if !dim && self.is_dim {
                write!(self.out, "{PLAIN}\n\n")?;
            }
            self.is_dim = dim;
            self.out.write_all(text.as_bytes())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_are_dim_on_a_terminal() {
        let shown = |interactive: bool| {
            let mut out = Vec::new();
            let mut screen = Screen::new(&mut out, interactive);
            for piece in ["<thi", "nk>hm", "</think>\nYes"] {
                screen.show(piece).unwrap();
            }
            screen.end().unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown(false), "<think>hm</think>\nYes");
        if coloured() {
            assert_eq!(shown(true), "\x1b[2mhm\x1b[0m\n\nYes");
        }
    }
}
