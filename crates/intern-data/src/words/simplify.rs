//! Text made alike for comparison, as datatrove's `simplify_text` does before MinHash:
//! lower case, numbers as `0`, punctuation as spaces, single spaces, no diacritics.

use unicode_normalization::UnicodeNormalization;

use super::chars::{DIGIT, MARK, SIMPLIFIED, is, is_space};

/// The simplified text.
#[must_use]
pub fn simplify(text: &str) -> String {
    let lower = text.to_lowercase();
    let mut out = String::with_capacity(lower.len());
    let mut chars = lower.chars().peekable();
    // Spaces are written before the next word only, which trims both ends.
    let mut space = false;
    while let Some(c) = chars.next() {
        let c = if is(c, DIGIT) {
            skip_number(&mut chars);
            '0'
        } else {
            c
        };
        if is(c, SIMPLIFIED) || is_space(c) {
            space = true;
            continue;
        }
        if space && !out.is_empty() {
            out.push(' ');
        }
        space = false;
        out.push(c);
    }
    if out.is_ascii() {
        return out;
    }
    // Plain letters need no decomposition, and those beside them do not depend on them.
    let mut bare = String::with_capacity(out.len());
    let mut rest = out.as_str();
    while !rest.is_empty() {
        let plain = rest.bytes().position(|b| !b.is_ascii()).unwrap_or(rest.len());
        bare.push_str(&rest[..plain]);
        rest = &rest[plain..];
        let other = rest.bytes().position(|b| b.is_ascii()).unwrap_or(rest.len());
        bare.extend(rest[..other].nfd().filter(|c| !is(*c, MARK)));
        rest = &rest[other..];
    }
    bare.trim_matches(is_space).to_string()
}

/// Skips the rest of a number: digits, and one decimal separator between digits.
fn skip_number(chars: &mut std::iter::Peekable<std::str::Chars>) {
    while chars.next_if(|c| is(*c, DIGIT)).is_some() {}
    let mut ahead = chars.clone();
    let separator = ahead.next_if(|c| matches!(c, '.' | ',' | '،' | '٫' | '⎖' | '⎗' | '⎘'));
    if separator.is_some() && ahead.next_if(|c| is(*c, DIGIT)).is_some() {
        while ahead.next_if(|c| is(*c, DIGIT)).is_some() {}
        *chars = ahead;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_made_alike() {
        assert_eq!(simplify("  Hello, WORLD!\n\n3,000.5 a\u{301}é 12. x|y"), "hello world 0 0 ae 0 x y");
        assert_eq!(simplify("你好，世界。１２"), "你好 世界 0");
        assert_eq!(simplify("..."), "");
    }
}
