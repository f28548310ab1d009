//! Bytes to text: byte-order mark, what was declared, what the bytes look like; repairs counted.
//!
//! Valid UTF-8 with non-ASCII characters is taken for UTF-8 whatever was declared, since
//! other encodings practically never form it by chance. Otherwise the declared encoding
//! is tried first and chardetng's guess second, and the one with fewer undecodable
//! places wins. UTF-8 that was decoded as windows-1252 and encoded again is undone,
//! line by line.

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{Encoding, UTF_8, UTF_16BE, UTF_16LE, WINDOWS_1252, X_USER_DEFINED};

/// Text and how it was won.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The text; undecodable places are left out.
    pub text: String,
    /// Name of the encoding, e.g. `UTF-8`, `gb18030`.
    pub encoding: &'static str,
    /// Undecodable places left out.
    pub errors: usize,
    /// Lines in which double encoding was undone.
    pub mended_lines: usize,
}

/// Bytes in which a `<meta charset>` is looked for.
const META_WINDOW: usize = 2048;

/// Decodes `bytes`. `header` is the charset of an HTTP header; `html` looks for a `<meta>` too.
#[must_use]
pub fn decode(bytes: &[u8], header: Option<&str>, html: bool) -> Decoded {
    if let Some((encoding, skip)) = Encoding::for_bom(bytes) {
        return mend(decode_with(encoding, &bytes[skip..]));
    }
    let declared = header
        .and_then(|label| Encoding::for_label(label.trim_matches(['"', '\'', ' ']).as_bytes()))
        .or_else(|| html.then(|| meta_charset(bytes)).flatten());
    let utf8 = std::str::from_utf8(bytes).ok();
    if let Some(text) = utf8
        && (!text.is_ascii() || declared.is_none_or(Encoding::is_ascii_compatible))
    {
        return mend(Decoded { text: text.to_string(), encoding: UTF_8.name(), errors: 0, mended_lines: 0 });
    }
    let first = declared.map(|e| decode_with(e, bytes));
    if let Some(done) = &first
        && done.errors == 0
    {
        return mend(first.expect("just seen"));
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Allow);
    detector.feed(bytes, true);
    let guess = detector.guess(None, Utf8Detection::Allow);
    let second = decode_with(guess, bytes);
    // A few bad bytes in long UTF-8 are damage, not another encoding.
    let damaged = decode_with(UTF_8, bytes);
    let mostly_utf8 = damaged.errors > 0 && multibyte(&damaged.text) >= 4 * damaged.errors;
    let best = match first {
        Some(first) if first.errors <= second.errors => first,
        _ => second,
    };
    mend(if mostly_utf8 { damaged } else { best })
}

fn multibyte(text: &str) -> usize {
    text.chars().filter(|c| !c.is_ascii()).count()
}

fn decode_with(encoding: &'static Encoding, bytes: &[u8]) -> Decoded {
    let mut decoder = encoding.new_decoder_without_bom_handling();
    let capacity =
        decoder.max_utf8_buffer_length_without_replacement(bytes.len()).unwrap_or(bytes.len() * 3 + 16);
    let mut text = String::with_capacity(capacity);
    let (mut rest, mut errors) = (bytes, 0);
    loop {
        let (result, read) = decoder.decode_to_string_without_replacement(rest, &mut text, true);
        rest = &rest[read..];
        match result {
            encoding_rs::DecoderResult::InputEmpty => break,
            encoding_rs::DecoderResult::Malformed(..) => errors += 1,
            encoding_rs::DecoderResult::OutputFull => text.reserve(rest.len() * 3 + 16),
        }
    }
    Decoded { text, encoding: encoding.name(), errors, mended_lines: 0 }
}

/// The charset a page declares in `<meta charset=…>`, `<meta … content="…charset=…">` or `<?xml encoding=…?>`.
fn meta_charset(bytes: &[u8]) -> Option<&'static Encoding> {
    let head = &bytes[..bytes.len().min(META_WINDOW)];
    let head: String = head.iter().map(|&b| b.to_ascii_lowercase() as char).collect();
    for (key, tag) in [("charset", "<meta"), ("encoding", "<?xml")] {
        let mut from = 0;
        while let Some(at) = head[from..].find(key) {
            let at = from + at;
            from = at + key.len();
            let value = head[from..].trim_start();
            let inside = head[..at].rfind('<').is_some_and(|open| head[open..].starts_with(tag));
            let Some(value) = value.strip_prefix('=').filter(|_| inside) else { continue };
            let value = value.trim_start().trim_start_matches(['"', '\'']);
            let label: String = value
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | ':' | '.'))
                .collect();
            if let Some(encoding) = Encoding::for_label(label.as_bytes()) {
                // The bytes were read as ASCII, so a declared UTF-16 cannot be true.
                let wide = encoding == UTF_16LE || encoding == UTF_16BE;
                return Some(if wide || encoding == X_USER_DEFINED { UTF_8 } else { encoding });
            }
        }
    }
    None
}

/// Undoes UTF-8 that was read as windows-1252 and encoded as UTF-8 again (`Ã©` → `é`).
fn mend(mut decoded: Decoded) -> Decoded {
    let suspicious =
        |line: &str| line.contains(['Ã', 'Â', 'â', 'ä', 'å', 'æ', 'ç', 'è', 'é']) && !line.is_ascii();
    if !decoded.text.lines().any(suspicious) {
        return decoded;
    }
    let mut out = String::with_capacity(decoded.text.len());
    for line in decoded.text.split_inclusive('\n') {
        match suspicious(line).then(|| undo(line)).flatten() {
            Some(better) => {
                decoded.mended_lines += 1;
                out.push_str(&better);
            }
            None => out.push_str(line),
        }
    }
    decoded.text = out;
    decoded
}

/// The line's characters as windows-1252 bytes, if those are valid UTF-8.
fn undo(line: &str) -> Option<String> {
    let (bytes, _, unmappable) = WINDOWS_1252.encode(line);
    if unmappable {
        return None;
    }
    let text = String::from_utf8(bytes.into_owned()).ok()?;
    (!text.is_ascii()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use encoding_rs::{BIG5, GB18030, SHIFT_JIS};
    use proptest::prelude::*;

    #[track_caller]
    fn check(bytes: &[u8], header: Option<&str>, text: &str, encoding: &str, errors: usize) {
        let d = decode(bytes, header, true);
        assert_eq!((d.text.as_str(), d.encoding, d.errors), (text, encoding, errors));
    }

    #[test]
    fn marks_headers_metas_and_guesses() {
        check("\u{feff}é".as_bytes(), Some("gbk"), "é", "UTF-8", 0);
        check(&[0xff, 0xfe, 0x2d, 0x4e], None, "中", "UTF-16LE", 0);
        check(&[0xe9], Some("ISO-8859-1"), "é", "windows-1252", 0);
        let page = "<meta charset=\"gb2312\"><p>小明有三个苹果。</p>";
        check(&GB18030.encode(page).0, None, page, "GBK", 0);
        let page = "<meta http-equiv='Content-Type' content='text/html; charset=Shift_JIS'>日本語です。";
        check(&SHIFT_JIS.encode(page).0, None, page, "Shift_JIS", 0);
        let page = "<p>問題：小明有三個蘋果，又買了兩個，他現在一共有幾個蘋果？我們計算一下就知道了。</p>";
        check(&BIG5.encode(page).0, None, page, "Big5", 0);
        let page = "<p>问题：小明有三个苹果，又买了两个，他现在一共有几个苹果？我们计算一下就知道了。</p>";
        check(&GB18030.encode(page).0, None, page, "GBK", 0);
    }

    #[test]
    fn wrong_declarations_lose_to_the_bytes() {
        check("苹果和梨".as_bytes(), Some("iso-8859-1"), "苹果和梨", "UTF-8", 0);
        let page = "<meta charset=utf-8><p>问题：小明有三个苹果，又买了两个，他现在一共有几个苹果？</p>";
        check(&GB18030.encode(page).0, None, page, "GBK", 0);
        check(b"<meta charset=utf-16>plain", None, "<meta charset=utf-16>plain", "UTF-8", 0);
    }

    #[test]
    fn damage_in_utf8_is_left_out_and_counted() {
        let mut bytes = "小明有三个苹果，又买了两个。".as_bytes().to_vec();
        bytes.extend([0xe4, 0xbd]);
        bytes.extend("好".as_bytes());
        let d = decode(&bytes, None, true);
        assert_eq!((d.text.as_str(), d.encoding), ("小明有三个苹果，又买了两个。好", "UTF-8"));
        assert!(d.errors > 0);
    }

    #[test]
    fn double_encoding_is_undone() {
        let twice: String =
            "Où est le café ?".bytes().map(|b| WINDOWS_1252.decode(&[b]).0.into_owned()).collect();
        let text = format!("plain é line\n{twice}\n");
        let d = decode(text.as_bytes(), None, false);
        assert_eq!((d.text.as_str(), d.mended_lines), ("plain é line\nOù est le café ?\n", 1));
    }

    proptest! {
        #[test]
        fn any_bytes_decode(bytes in proptest::collection::vec(any::<u8>(), 0..300), html: bool) {
            let _ = decode(&bytes, None, html);
        }

        #[test]
        fn utf8_stays(text in "[a-zа-я一-十 \n]{0,80}") {
            prop_assert_eq!(decode(text.as_bytes(), None, false).text, text);
        }
    }
}
