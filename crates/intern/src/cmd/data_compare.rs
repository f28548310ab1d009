//! `intern data verdicts` and `intern data extract`: one step of the pipeline on its own,
//! printed, for comparing with other tools.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use intern_data::extract::{self, ExtractConfig, Extracted, Format, Found, Mode, Part};
use intern_data::verdicts;
use intern_data::words::Splitter;
use serde_json::{Value, json};

#[derive(Args)]
pub struct VerdictsArgs {
    /// JSON lines with `id` and `text`.
    file: PathBuf,
    /// How words are found.
    #[arg(long, value_enum, default_value = "default")]
    words: WordsArg,
}

#[derive(Clone, Copy, ValueEnum)]
enum WordsArg {
    /// Whitespace only.
    Whitespace,
    /// spaCy's English rules, as datatrove uses them by default.
    Default,
}

#[derive(Args)]
pub struct ExtractArgs {
    /// HTML files and WARC archives, directories of them, or patterns.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// What to do with text that may or may not be main text.
    #[arg(long, value_enum, default_value = "balanced")]
    mode: ModeArg,
    /// Writes Markdown instead of plain text.
    #[arg(long)]
    markdown: bool,
    /// Print one JSON line per page: path, title, author, date, language, url, text.
    #[arg(long)]
    json: bool,
    /// Print one JSON line per page with its pictures where they stand: besides the above, texts and
    /// images of equal length, null in one where the other has something. `data images` reads it.
    #[arg(long)]
    interleaved: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeArg {
    /// Leave it out.
    Precision,
    /// Decide by what is likely.
    Balanced,
    /// Keep it.
    Recall,
}

/// Runs `intern data verdicts`.
///
/// # Errors
/// If the file is unreadable or standard output closed.
pub fn verdicts(args: &VerdictsArgs) -> Result<()> {
    let words = match args.words {
        WordsArg::Whitespace => Splitter::Whitespace,
        WordsArg::Default => Splitter::English,
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let timings = verdicts::run(&args.file, words, &mut out)?;
    out.flush()?;
    for timing in timings {
        eprintln!("{}", serde_json::to_string(&timing)?);
    }
    Ok(())
}

/// Runs `intern data extract`.
///
/// # Errors
/// If a path is missing, a page unreadable or standard output closed.
pub fn extract(args: &ExtractArgs) -> Result<()> {
    let config = ExtractConfig {
        mode: match args.mode {
            ModeArg::Precision => Mode::Precision,
            ModeArg::Balanced => Mode::Balanced,
            ModeArg::Recall => Mode::Recall,
        },
        format: if args.markdown { Format::Markdown } else { Format::Text },
        ..ExtractConfig::default()
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let line = |found: &Found, page: &Extracted| {
        let url = if found.url.is_empty() { &page.canonical } else { &found.url };
        json!({
            "path": found.path, "title": page.title, "author": page.author, "date": page.date, "lang": page.lang,
            "url": url, "encoding": found.encoding, "truncated": page.truncated,
        })
    };
    if args.interleaved {
        let extract = |html: &str, url: &str| extract::interleave(html, url, &config);
        extract::files(&args.paths, extract, |found, (page, parts)| {
            let mut line = line(&found, &page);
            let of = |part: &Part| match part {
                Part::Text(text) => (json!(text), Value::Null),
                Part::Image(address) => (Value::Null, json!(address)),
            };
            let (texts, images): (Vec<Value>, Vec<Value>) = parts.iter().map(of).unzip();
            (line["texts"], line["images"]) = (texts.into(), images.into());
            Ok(writeln!(out, "{line}")?)
        })?;
        return Ok(out.flush()?);
    }
    extract::files(
        &args.paths,
        |html, _| extract::extract(html, &config),
        |found, page| {
            if !args.json {
                return Ok(writeln!(out, "{}", page.text)?);
            }
            let mut line = line(&found, &page);
            line["text"] = page.text.into();
            Ok(writeln!(out, "{line}")?)
        },
    )?;
    Ok(out.flush()?)
}
