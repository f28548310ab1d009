//! Numbers that carry a checksum: Chinese identity numbers, payment cards, IBANs; and US
//! social security numbers, which carry none but have a form of their own.

use std::sync::LazyLock;

use regex::Regex;

/// Whether the characters around `start..end` do not continue a word or number.
fn stands_alone(text: &str, start: usize, end: usize) -> bool {
    let joins = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let before = text[..start].chars().next_back();
    let mut after = text[end..].chars();
    let next = after.next();
    let continued = matches!(next, Some('.' | '-')) && after.next().is_some_and(|c| c.is_ascii_digit());
    let begun = before.is_some_and(|c| joins(c) || c == '.' || c == '-');
    !(begun || continued || next.is_some_and(joins))
}

/// Chinese identity numbers (GB 11643) and US social security numbers.
pub fn ids(text: &str, add: &mut impl FnMut(usize, usize)) {
    static CHINESE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[1-8][0-9]{16}[0-9Xx]").expect("a valid pattern"));
    static SSN: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[0-9]{3}-[0-9]{2}-[0-9]{4}").expect("a valid pattern"));
    for m in CHINESE.find_iter(text) {
        if stands_alone(text, m.start(), m.end()) && is_chinese_id(m.as_str().as_bytes()) {
            add(m.start(), m.end());
        }
    }
    for m in SSN.find_iter(text) {
        let (area, group, serial) = (&m.as_str()[..3], &m.as_str()[4..6], &m.as_str()[7..]);
        let assigned =
            area != "000" && area != "666" && !area.starts_with('9') && group != "00" && serial != "0000";
        if assigned && stands_alone(text, m.start(), m.end()) {
            add(m.start(), m.end());
        }
    }
}

/// Birthday and check character (ISO 7064, MOD 11-2) of 18 characters.
fn is_chinese_id(id: &[u8]) -> bool {
    const WEIGHTS: [u32; 17] = [7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2];
    let number =
        |range: std::ops::Range<usize>| id[range].iter().fold(0u32, |n, b| 10 * n + u32::from(b - b'0'));
    let (year, month, day) = (number(6..10), number(10..12), number(12..14));
    let sum: u32 = WEIGHTS.iter().zip(id).map(|(w, b)| w * u32::from(b - b'0')).sum();
    (1850..=2100).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && b"10X98765432"[sum as usize % 11] == id[17].to_ascii_uppercase()
}

/// Payment cards: 12 to 19 digits by the issuers' first digits, with a right Luhn digit.
pub fn cards(text: &str, add: &mut impl FnMut(usize, usize)) {
    static CARD: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"[1-6][0-9]{3}(?:[ -]?[0-9]){8,15}").expect("a valid pattern"));
    for m in CARD.find_iter(text) {
        let digits: Vec<u8> = m.as_str().bytes().filter(u8::is_ascii_digit).map(|b| b - b'0').collect();
        if stands_alone(text, m.start(), m.end())
            && is_issued(&digits)
            && luhn(&digits)
            && is_grouped(m.as_str())
        {
            add(m.start(), m.end());
        }
    }
}

/// Separators of a card stand between groups of at least four digits (Amex: 4-6-5), all alike.
fn is_grouped(card: &str) -> bool {
    let groups: Vec<&str> = card.split([' ', '-']).collect();
    let one_kind = !(card.contains(' ') && card.contains('-'));
    groups.len() == 1 || (one_kind && groups[..groups.len() - 1].iter().all(|g| g.len() >= 4 && g.len() <= 6))
}

fn is_issued(digits: &[u8]) -> bool {
    let first = |n: usize| digits[..n].iter().fold(0u32, |x, d| 10 * x + u32::from(*d));
    matches!(
        (digits.len(), first(4)),
        (13 | 16 | 19, 4000..=4999)
            | (16, 2221..=2720 | 5100..=5599)
            | (15, 3400..=3499 | 3700..=3799)
            | (14..=19, 3000..=3059 | 3095 | 3600..=3699 | 3800..=3999)
            | (15 | 16, 1800 | 2131)
            | (16..=19, 3528..=3589 | 6011 | 6440..=6599 | 6200..=6299 | 8100..=8199)
            | (16..=19, 3088 | 3096 | 3112 | 3158 | 3337..=3349 | 3500..=3527)
            | (12..=19, 5000..=5099 | 5600..=5899 | 6304 | 6390 | 6759..=6763 | 6799)
    )
}

fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, d)| {
            let d = u32::from(*d) << (i & 1);
            if d > 9 { d - 9 } else { d }
        })
        .sum();
    sum.is_multiple_of(10) && digits.iter().any(|d| *d != digits[0])
}

/// International bank account numbers (ISO 13616) with a right remainder modulo 97.
pub fn ibans(text: &str, add: &mut impl FnMut(usize, usize)) {
    static IBAN: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?i)[a-z]{2}[0-9]{2}(?: ?[a-z0-9]{4}){2,7}(?: ?[a-z0-9]{1,4})?")
            .expect("a valid pattern")
    });
    for m in IBAN.find_iter(text) {
        // The pattern may have run into the next word; the longest part that checks is taken.
        let cuts = (15..=m.as_str().len()).rev().filter(|n| m.as_str().is_char_boundary(*n));
        for end in cuts.map(|n| m.start() + n) {
            let alone = stands_alone(text, m.start(), end);
            if alone && is_iban(&text[m.start()..end]) {
                add(m.start(), end);
                break;
            }
        }
    }
}

fn is_iban(text: &str) -> bool {
    let chars: Vec<u8> = text.bytes().filter(|b| *b != b' ').map(|b| b.to_ascii_uppercase()).collect();
    if !(15..=34).contains(&chars.len()) || text.ends_with(' ') {
        return false;
    }
    let rest = chars[4..].iter().chain(&chars[..4]).fold(0u32, |r, b| match b {
        b'0'..=b'9' => (10 * r + u32::from(b - b'0')) % 97,
        _ => (100 * r + u32::from(b - b'A') + 10) % 97,
    });
    rest == 1
}
