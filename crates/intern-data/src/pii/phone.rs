//! Phone numbers: international, North American and Chinese by their form, others where
//! grouping or a word nearby tells that the digits are dialled.

use std::sync::LazyLock;

use regex::Regex;

/// Characters before a number in which a word may tell what it is.
const CUE_CHARS: usize = 28;

const CUES: [&str; 24] = [
    "phone",
    "tel",
    "mobile",
    "fax",
    "desk",
    "cell",
    "call",
    "dial",
    "whatsapp",
    "sms",
    "office",
    "hotline",
    "contact",
    "answering at",
    "messages to",
    "电话",
    "手机",
    "座机",
    "热线",
    "传真",
    "联系方式",
    "拨打",
    "致电",
    "微信",
];

/// Calls `add` with every number's place.
pub fn find(text: &str, add: &mut impl FnMut(usize, usize)) {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r"(?i)(?:\+|00)?\(?[0-9]{1,5}\)?(?:[ .\-/\u{2010}-\u{2013}]?\(?[0-9]{1,11}\)?){0,6}(?: ?(?:x|ext\.? ?|转)[0-9]{1,6})?",
        )
        .expect("a valid pattern")
    });
    for m in NUMBER.find_iter(text) {
        let before = text[..m.start()].chars().next_back();
        if before.is_some_and(|c| {
            c.is_ascii_alphanumeric()
                || matches!(c, '.' | ',' | '_' | '$' | '€' | '£' | '/' | '=' | '-' | '[')
        }) {
            continue;
        }
        let number = m.as_str().trim_end_matches([' ', '.', '-', '/', '(']);
        let end = m.start() + number.len();
        let mut after = text[end..].chars();
        let next = after.next();
        let goes_on = next.is_some_and(|c| c.is_ascii_alphabetic() || matches!(c, '%' | '_' | ':' | '°'))
            || (matches!(next, Some('.' | ',' | '-' | '/'))
                && after.next().is_some_and(|c| c.is_ascii_digit()));
        if !goes_on && is_phone(number, &text[..m.start()], &text[end..]) {
            add(m.start(), end);
        }
    }
}

fn is_phone(number: &str, before: &str, after: &str) -> bool {
    static CHINESE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^(?:(?:\+|00)?86[ -]?)?(?:1[3-9][0-9](?:[0-9]{8}|[ -][0-9]{4}[ -][0-9]{4})|0[1-9][0-9]{1,2}[ -][2-8][0-9]{6,7}(?:(?:x|ext|转|-)[0-9]{1,6})?|[48]00-?[0-9]{3}-?[0-9]{4})$")
            .expect("a valid pattern")
    });
    static AMERICAN: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?i)^(?:(?:\+|00)?1[ .-]?)?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[0-9]{3}[ .-][0-9]{4}(?: ?(?:x|ext\.? ?)[0-9]{1,6})?$")
            .expect("a valid pattern")
    });
    let balanced = number.matches('(').count() == number.matches(')').count();
    let main = number.split(['x', 'X', 'e', 'E', '转']).next().unwrap_or(number);
    let digits = main.bytes().filter(u8::is_ascii_digit).count();
    if !balanced || !(7..=15).contains(&digits) {
        return false;
    }
    if CHINESE.is_match(number) || AMERICAN.is_match(number) {
        return true;
    }
    let groups = main.split(|c: char| !c.is_ascii_digit()).filter(|g| !g.is_empty()).count();
    if number.starts_with('+') && digits >= 8 {
        return true;
    }
    if (number.starts_with("00") || number.starts_with("(0")) && digits >= 9 && groups >= 2 {
        return true;
    }
    is_cued(before, after) && !looks_like_date(main)
}

/// Whether a word close by says that a number is dialled.
fn is_cued(before: &str, after: &str) -> bool {
    let mut start = before.len();
    for (i, _) in before.char_indices().rev().take(CUE_CHARS) {
        start = i;
    }
    let near = before[start..].to_lowercase();
    let near_after: String = after.chars().take(9).collect::<String>().to_lowercase();
    CUES.iter().any(|cue| near.contains(cue))
        || ["office", "fax", "mobile", "cell", "home"]
            .iter()
            .any(|cue| near_after.trim_start_matches([' ', '-', '(', '\\', ',']).starts_with(cue))
}

/// `2020-10-12`, `12/10/2020`.
fn looks_like_date(number: &str) -> bool {
    let groups: Vec<&str> = number.split(['-', '/', '.']).collect();
    let year = |g: &str| g.len() == 4 && (g.starts_with("19") || g.starts_with("20"));
    groups.len() == 3 && (year(groups[0]) || year(groups[2])) && groups.iter().all(|g| g.len() <= 4)
}
