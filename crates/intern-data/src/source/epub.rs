//! EPUB 2 and 3: the text of a book in reading order, as its package file lists it.
//!
//! A book is a ZIP archive of XHTML files; `META-INF/container.xml` names the package file,
//! whose spine names the chapters. DRM is not undone: an encrypted book gives an error.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use regex::Regex;

use super::zip::Archive;
use crate::extract::{ExtractConfig, Format, extract};

/// A book.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    /// Its title.
    pub title: String,
    /// Its author; the first of several.
    pub author: String,
    /// Its language, as declared.
    pub lang: String,
    /// The text of all chapters.
    pub text: String,
}

/// Reads a book; chapters together up to `max_bytes` bytes.
///
/// # Errors
/// If it is no EPUB, damaged or encrypted.
pub fn read(bytes: &[u8], format: Format, max_bytes: usize) -> Result<Book> {
    let zip = Archive::open(bytes)?;
    if zip.contains("META-INF/encryption.xml") && zip.contains("META-INF/rights.xml") {
        bail!("the book is encrypted");
    }
    let container = entry(&zip, "META-INF/container.xml", max_bytes)?;
    let package_path =
        attribute(&container, "rootfile", "full-path").context("container.xml names no package")?;
    let package = entry(&zip, &package_path, max_bytes)?;
    let base = package_path.rsplit_once('/').map_or("", |(dir, _)| dir);

    let mut files = HashMap::new();
    for tag in tags(&package, "item") {
        if let (Some(id), Some(href)) = (value(&tag, "id"), value(&tag, "href")) {
            files.insert(id, href);
        }
    }
    let config = ExtractConfig { main_content: false, format, ..ExtractConfig::default() };
    let mut text = String::new();
    for tag in tags(&package, "itemref") {
        let Some(href) = value(&tag, "idref").and_then(|id| files.get(&id).cloned()) else { continue };
        let path = resolve(base, &href);
        // A missing chapter does not cost the book.
        let Ok(chapter) = entry(&zip, &path, max_bytes.saturating_sub(text.len())) else { continue };
        let chapter = extract(&chapter, &config).text;
        if !chapter.is_empty() {
            if !text.is_empty() {
                text.push_str("\n\n");
            }
            text.push_str(&chapter);
        }
    }
    Ok(Book {
        title: element(&package, "dc:title"),
        author: element(&package, "dc:creator"),
        lang: element(&package, "dc:language"),
        text,
    })
}

fn entry(zip: &Archive, name: &str, max: usize) -> Result<String> {
    Ok(String::from_utf8_lossy(&zip.read(name, max)?).into_owned())
}

/// The attributes of every element `name`, with or without prefix. Package files are
/// machine-made, so that patterns do.
fn tags(xml: &str, name: &str) -> Vec<String> {
    let pattern = Regex::new(&format!(r"<(?:\w+:)?{name}\s([^>]*)>")).expect("a valid pattern");
    pattern.captures_iter(xml).map(|c| c[1].to_string()).collect()
}

fn value(attributes: &str, name: &str) -> Option<String> {
    let pattern = Regex::new(&format!(r#"(?:^|\s){name}\s*=\s*["']([^"']*)["']"#)).expect("a valid pattern");
    pattern.captures(attributes).map(|c| c[1].replace("&amp;", "&"))
}

fn attribute(xml: &str, element: &str, name: &str) -> Option<String> {
    tags(xml, element).iter().find_map(|tag| value(tag, name))
}

fn element(xml: &str, name: &str) -> String {
    let pattern = Regex::new(&format!(r"(?s)<{name}[^>]*>(.*?)</{name}>")).expect("a valid pattern");
    let config = ExtractConfig { main_content: false, ..ExtractConfig::default() };
    pattern.captures(xml).map_or_else(String::new, |c| extract(&c[1], &config).text)
}

/// `href` relative to the folder `base`, with `%20` and `..` undone.
fn resolve(base: &str, href: &str) -> String {
    let mut bytes = Vec::new();
    let raw = href.split('#').next().unwrap_or(href).as_bytes();
    let mut i = 0;
    while i < raw.len() {
        let hex =
            raw.get(i + 1..i + 3).and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok());
        match (raw[i], hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                i += 3;
            }
            (byte, _) => {
                bytes.push(byte);
                i += 1;
            }
        }
    }
    let href = String::from_utf8_lossy(&bytes).into_owned();
    let mut parts: Vec<&str> = base.split('/').filter(|p| !p.is_empty()).collect();
    for part in href.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A ZIP archive with every second entry deflated.
    fn zip(entries: &[(&str, &str)]) -> Vec<u8> {
        let (mut out, mut directory) = (Vec::new(), Vec::new());
        for (i, (name, text)) in entries.iter().enumerate() {
            let mut data = text.as_bytes().to_vec();
            let method: u16 = if i % 2 == 1 { 8 } else { 0 };
            if method == 8 {
                let mut deflate = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::new(6));
                deflate.write_all(&data).unwrap();
                data = deflate.finish().unwrap();
            }
            let mut common = Vec::new();
            common.extend([20, 0, 0, 0]);
            common.extend(method.to_le_bytes());
            common.extend([0; 8]);
            common.extend((data.len() as u32).to_le_bytes());
            common.extend((text.len() as u32).to_le_bytes());
            common.extend((name.len() as u16).to_le_bytes());
            common.extend([0, 0]);
            let at = out.len() as u32;
            out.extend(b"PK\x03\x04");
            out.extend(&common);
            out.extend(name.as_bytes());
            out.extend(&data);
            directory.extend(b"PK\x01\x02\x14\x00");
            directory.extend(&common);
            directory.extend([0; 10]);
            directory.extend(at.to_le_bytes());
            directory.extend(name.as_bytes());
        }
        let (at, count) = (out.len() as u32, entries.len() as u16);
        out.extend(&directory);
        out.extend(b"PK\x05\x06\0\0\0\0");
        out.extend(count.to_le_bytes());
        out.extend(count.to_le_bytes());
        out.extend((directory.len() as u32).to_le_bytes());
        out.extend(at.to_le_bytes());
        out.extend([0, 0]);
        out
    }

    #[test]
    fn chapters_come_in_the_order_of_the_spine() {
        let mut entries = Vec::new();
        let mut add = |name: &'static str, text: &'static str| entries.push((name, text));
        add(
            "META-INF/container.xml",
            "<container><rootfiles><rootfile full-path='OEBPS/book.opf'/></rootfiles></container>",
        );
        add(
            "OEBPS/book.opf",
            "<package><metadata><dc:title>Two &amp; One</dc:title><dc:creator id='a'>Jo</dc:creator>\
             <dc:language>en</dc:language></metadata><manifest><item id='one' href='text/1.xhtml'/>\
             <item href='text/chapter%202.xhtml' id='two'/></manifest>\
             <spine><itemref idref='two'/><itemref idref='gone'/><itemref idref='one'/></spine></package>",
        );
        add("OEBPS/text/1.xhtml", "<html><body><h1>One</h1><p>First written.</p></body></html>");
        add("OEBPS/text/chapter 2.xhtml", "<html><body><p>First read.</p></body></html>");
        let bytes = zip(&entries);
        let book = read(&bytes, Format::Text, 1 << 20).unwrap();
        assert_eq!(book.text, "First read.\n\nOne\n\nFirst written.");
        assert_eq!(
            (book.title.as_str(), book.author.as_str(), book.lang.as_str()),
            ("Two & One", "Jo", "en")
        );
        assert!(read(b"no zip", Format::Text, 1 << 20).is_err());
        assert!(read(&bytes[..bytes.len() / 2], Format::Text, 1 << 20).is_err());
    }
}
