//! The HTTP response inside a WARC record: status, type, charset, and the page with
//! transfer and content encodings undone. Lenient, since crawls hold everything.

use std::io::Read;

/// A response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// The status code; 0 when the status line is unreadable.
    pub status: u16,
    /// Media type in lower case, without parameters.
    pub media_type: String,
    /// `charset` parameter of the content type, if any.
    pub charset: Option<String>,
    /// The page.
    pub body: Vec<u8>,
}

/// Reads a response; bodies are kept up to `max_body` bytes after decompression.
///
/// # Errors
/// A few words, when there is no HTTP header or the content encoding cannot be undone.
pub fn parse(bytes: &[u8], max_body: usize) -> Result<Response, String> {
    if !bytes.starts_with(b"HTTP/") {
        return Err("no HTTP status line".into());
    }
    let (head, body) = split_head(bytes);
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let status =
        lines.next().and_then(|l| l.split_whitespace().nth(1)).and_then(|s| s.parse().ok()).unwrap_or(0);
    let mut response = Response { status, ..Response::default() };
    let (mut chunked, mut encodings) = (false, Vec::new());
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        match name.trim().to_ascii_lowercase().as_str() {
            "content-type" => (response.media_type, response.charset) = content_type(value),
            "transfer-encoding" => chunked = value.to_ascii_lowercase().contains("chunked"),
            "content-encoding" => encodings.extend(value.split(',').map(|e| e.trim().to_ascii_lowercase())),
            _ => {}
        }
    }
    let mut body = if chunked { dechunk(body) } else { body.to_vec() };
    for encoding in encodings.iter().rev() {
        body = decompress(&body, encoding, max_body)?;
    }
    body.truncate(max_body);
    response.body = body;
    Ok(response)
}

/// `text/html; charset=utf-8` → (`text/html`, `utf-8`).
#[must_use]
pub fn content_type(value: &str) -> (String, Option<String>) {
    let mut parts = value.split(';');
    let media_type = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
    let charset = parts
        .filter_map(|p| p.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"))
        .map(|(_, v)| v.trim().trim_matches(['"', '\'']).to_string());
    (media_type, charset)
}

fn split_head(bytes: &[u8]) -> (&[u8], &[u8]) {
    let mut i = 0;
    while let Some(at) = bytes[i..].iter().position(|&b| b == b'\n') {
        i += at + 1;
        if bytes[i..].starts_with(b"\n") {
            return (&bytes[..i], &bytes[i + 1..]);
        }
        if bytes[i..].starts_with(b"\r\n") {
            return (&bytes[..i], &bytes[i + 2..]);
        }
    }
    (bytes, &[])
}

/// Joins chunks; a body that is not chunked after all comes back as it is, a cut one as far as it goes.
fn dechunk(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some(end) = rest.iter().position(|&b| b == b'\n').filter(|e| *e < 100) {
        let line = String::from_utf8_lossy(&rest[..end]);
        let size = line.split(';').next().unwrap_or_default().trim();
        let Ok(size) = usize::from_str_radix(size, 16) else {
            return if out.is_empty() { body.to_vec() } else { out };
        };
        rest = &rest[end + 1..];
        if size == 0 {
            break;
        }
        let take = size.min(rest.len());
        out.extend_from_slice(&rest[..take]);
        rest = &rest[take..];
        rest = rest.strip_prefix(b"\r").unwrap_or(rest);
        rest = rest.strip_prefix(b"\n").unwrap_or(rest);
    }
    if out.is_empty() && !body.starts_with(b"0") { body.to_vec() } else { out }
}

fn decompress(body: &[u8], encoding: &str, max_body: usize) -> Result<Vec<u8>, String> {
    let limit = max_body as u64;
    let mut out = Vec::new();
    // A cut stream gives what it holds; only nothing at all is an error.
    let result = match encoding {
        "identity" | "" | "utf-8" | "none" => return Ok(body.to_vec()),
        "gzip" | "x-gzip" if !body.starts_with(&[0x1f, 0x8b]) => return Ok(body.to_vec()),
        "gzip" | "x-gzip" => flate2::bufread::MultiGzDecoder::new(body).take(limit).read_to_end(&mut out),
        "deflate" => {
            let zlib = flate2::bufread::ZlibDecoder::new(body).take(limit).read_to_end(&mut out);
            zlib.or_else(|_| {
                out.clear();
                flate2::bufread::DeflateDecoder::new(body).take(limit).read_to_end(&mut out)
            })
        }
        "zstd" => zstd::Decoder::new(body).and_then(|d| d.take(limit).read_to_end(&mut out)),
        other => return Err(format!("content encoding {other:?} is not supported")),
    };
    match result {
        Err(e) if out.is_empty() && !body.is_empty() => Err(format!("{encoding}: {e}")),
        _ => Ok(out),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn chunks_and_compression_are_undone() {
        let r = parse(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/HTML; Charset=\"gbk\"\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n2;x=y\r\nef\r\n0\r\n\r\n",
            100,
        )
        .unwrap();
        assert_eq!((r.status, r.media_type.as_str(), r.charset.as_deref()), (200, "text/html", Some("gbk")));
        assert_eq!(r.body, b"abcdef");

        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        e.write_all(&[b'x'; 1000]).unwrap();
        let mut bytes = b"HTTP/1.0 200 OK\nContent-Encoding: gzip\n\n".to_vec();
        bytes.extend(e.finish().unwrap());
        assert_eq!(parse(&bytes, 2000).unwrap().body.len(), 1000);
        assert_eq!(parse(&bytes, 10).unwrap().body.len(), 10);
        bytes.truncate(bytes.len() - 4);
        assert_eq!(parse(&bytes, 2000).unwrap().body.len(), 1000);
    }

    #[test]
    fn false_claims_are_ignored() {
        let r = parse(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n<p>plain",
            100,
        );
        assert_eq!(r.unwrap().body, b"<p>plain");
        assert!(parse(b"<html>", 100).is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\nx", 100).is_err());
    }
}
