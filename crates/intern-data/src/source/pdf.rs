//! PDF files: the text in them, page after page, with the lines of a paragraph joined.
//!
//! A PDF holds glyphs at places, not text. The library guesses words and lines from their
//! distances; scanned pages have none. Damaged files make it panic; that is an error here.

use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Result, anyhow, bail};
use pdf_extract::{Document, Object, PlainTextOutput, decode_text_string, output_doc};

use super::epub::Book;

/// Reads a file; its text up to `max_bytes` bytes.
///
/// # Errors
/// If it is no PDF, damaged, or locked with a password.
pub fn read(bytes: &[u8], max_bytes: usize) -> Result<Book> {
    match catch_unwind(AssertUnwindSafe(|| parse(bytes, max_bytes))) {
        Ok(book) => book,
        Err(_) => bail!("the PDF is damaged"),
    }
}

fn parse(bytes: &[u8], max_bytes: usize) -> Result<Book> {
    let mut document = Document::load_mem(bytes).map_err(|e| anyhow!("no readable PDF: {e}"))?;
    if document.is_encrypted() && document.decrypt("").is_err() {
        bail!("the PDF is locked with a password");
    }
    let mut text = String::new();
    output_doc(&document, &mut PlainTextOutput::new(&mut text))
        .map_err(|e| anyhow!("reading the PDF: {e}"))?;
    let mut text = paragraphs(&text);
    if text.len() > max_bytes {
        let end = (0..=max_bytes).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text.truncate(end);
    }
    let info = |key: &[u8]| info(&document, key).unwrap_or_default();
    Ok(Book { title: info(b"Title"), author: info(b"Author"), lang: language(&document), text })
}

/// An entry of the document's information dictionary.
fn info(document: &Document, key: &[u8]) -> Option<String> {
    let object = resolved(document, document.trailer.get(b"Info").ok()?)?;
    let value = resolved(document, object.as_dict().ok()?.get(key).ok()?)?;
    Some(decode_text_string(value).ok()?.trim().to_owned())
}

/// The language the document declares, without its region.
fn language(document: &Document) -> String {
    let declared = || {
        let value = resolved(document, document.catalog().ok()?.get(b"Lang").ok()?)?;
        decode_text_string(value).ok()
    };
    declared().unwrap_or_default().split('-').next().unwrap_or_default().trim().to_lowercase()
}

fn resolved<'a>(document: &'a Document, object: &'a Object) -> Option<&'a Object> {
    document.dereference(object).ok().map(|(_, object)| object)
}

/// Joins lines to paragraphs, which blank lines part, and words that a line's end had hyphenated.
fn paragraphs(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut blank = true;
    for line in text.lines().map(str::trim) {
        if line.is_empty() {
            blank = true;
            continue;
        }
        let continues_word = !blank
            && out.ends_with('-')
            && out[..out.len() - 1].ends_with(char::is_lowercase)
            && line.starts_with(char::is_lowercase);
        if continues_word {
            out.pop();
        } else if !out.is_empty() {
            out.push_str(if blank { "\n\n" } else { " " });
        }
        // Wide gaps between words are gaps between words.
        let mut words = line.split_whitespace();
        out.push_str(words.next().unwrap_or_default());
        words.for_each(|word| {
            out.push(' ');
            out.push_str(word);
        });
        blank = false;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page of Helvetica with these lines, 14 points apart; an empty one leaves a gap.
    fn pdf(lines: &[&str]) -> Vec<u8> {
        let shown: String = lines.iter().map(|l| format!("({l}) Tj 0 -14 Td ")).collect();
        let content = format!("BT /F1 12 Tf 72 720 Td {shown} ET");
        let objects = [
            "<< /Type /Catalog /Pages 2 0 R /Lang (en-GB) >>".to_string(),
            "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".into(),
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R \
             /Resources << /Font << /F1 5 0 R >> >> >>"
                .into(),
            format!("<< /Length {} >>\nstream\n{content}\nendstream", content.len()),
            "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>".into(),
            "<< /Title (A small file) /Author (Nobody) >>".into(),
        ];
        let (mut out, mut places) = (String::from("%PDF-1.4\n"), Vec::new());
        for (i, object) in objects.iter().enumerate() {
            places.push(out.len());
            out.push_str(&format!("{} 0 obj\n{object}\nendobj\n", i + 1));
        }
        let start = out.len();
        out.push_str(&format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1));
        places.iter().for_each(|p| out.push_str(&format!("{p:010} 00000 n \n")));
        out.push_str(&format!(
            "trailer\n<< /Size {} /Root 1 0 R /Info 6 0 R >>\nstartxref\n{start}\n%%EOF\n",
            objects.len() + 1
        ));
        out.into_bytes()
    }

    #[test]
    fn text_title_author_and_language_are_read() {
        let bytes = pdf(&["The river was wide and the water was very cold in the win-", "ter of that year."]);
        let book = read(&bytes, 1 << 20).unwrap();
        assert_eq!(book.text, "The river was wide and the water was very cold in the winter of that year.");
        assert_eq!(
            (book.title.as_str(), book.author.as_str(), book.lang.as_str()),
            ("A small file", "Nobody", "en")
        );
        assert_eq!(read(&bytes, 9).unwrap().text, "The river");
    }

    #[test]
    fn damage_is_an_error() {
        let whole = pdf(&["text"]);
        assert!(read(b"%PDF-1.4 nothing else", 100).is_err());
        assert!(read(b"no PDF", 100).is_err());
        for i in (0..whole.len()).step_by(7) {
            let mut broken = whole.clone();
            broken[i] ^= 0x55;
            let _ = read(&broken, 100);
        }
    }

    #[test]
    fn lines_become_paragraphs() {
        let text = "A first line\nand its  end.\n\n\nA well-\nknown second,\nanti-\nAmerican or not.";
        assert_eq!(
            paragraphs(text),
            "A first line and its end.\n\nA wellknown second, anti- American or not."
        );
    }
}
