//! Finds the final answer in what the model said last, and compares it with the key.

/// The answer in `text`: what follows the last `marker`, or without one the last number.
///
/// Numbers come back plain: ASCII digits, no thousands separators.
#[must_use]
pub fn extract(text: &str, marker: Option<&str>) -> Option<String> {
    let text = match marker {
        Some(marker) => &text[text.rfind(marker)? + marker.len()..],
        None => text,
    };
    if let Some(number) = last_number(text) {
        return Some(number);
    }
    let line = text.trim().lines().next_back()?.trim().trim_end_matches(['.', '。', '!', '！']);
    (!line.is_empty()).then(|| line.to_string())
}

/// Whether `found` is the answer `expected`: equal numbers, or equal text apart from case.
#[must_use]
pub fn matches(found: &str, expected: &str) -> bool {
    let expected = key(expected);
    match (parse(found), parse(&expected)) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-6 * b.abs().max(1.0),
        _ => found.trim().to_lowercase() == expected.to_lowercase(),
    }
}

/// The answer part of a key: GSM8K keeps it after `####`.
fn key(expected: &str) -> String {
    let answer = expected.rsplit_once("####").map_or(expected, |(_, answer)| answer);
    answer.trim().to_string()
}

fn parse(text: &str) -> Option<f64> {
    let plain: String = text.trim().trim_start_matches('$').chars().filter(|c| *c != ',').collect();
    plain.parse::<f64>().ok().filter(|n| n.is_finite())
}

/// The last decimal number: an optional minus sign, digits with thousands separators, a fraction.
fn last_number(text: &str) -> Option<String> {
    let chars: Vec<char> = text.chars().map(ascii_digit).collect();
    let digit = |i: usize| chars.get(i).is_some_and(char::is_ascii_digit);
    let mut last = None;
    let mut i = 0;
    while i < chars.len() {
        if !digit(i) {
            i += 1;
            continue;
        }
        // A minus sign counts unless it joins two numbers, as in `3-2`.
        let signed = i > 0
            && matches!(chars[i - 1], '-' | '−')
            && !(i > 1 && (chars[i - 2].is_alphanumeric() || chars[i - 2] == ')'));
        let mut number = String::from(if signed { "-" } else { "" });
        let mut fraction = false;
        while i < chars.len() {
            match chars[i] {
                c if c.is_ascii_digit() => number.push(c),
                ',' if !fraction && thousands(&chars, i) => {}
                '.' if !fraction && digit(i + 1) => {
                    fraction = true;
                    number.push('.');
                }
                _ => break,
            }
            i += 1;
        }
        last = Some(number);
    }
    last
}

/// Whether the comma at `i` is followed by exactly three digits.
fn thousands(chars: &[char], i: usize) -> bool {
    let run = chars[i + 1..].iter().take_while(|c| c.is_ascii_digit()).count();
    run == 3
}

/// Full-width digits, as Chinese text has them, become ASCII.
fn ascii_digit(c: char) -> char {
    match c {
        '０'..='９' => char::from(b'0' + (u32::from(c) - u32::from('０')) as u8),
        _ => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(extract(text, None).as_deref(), Some(expected), "{text}");
    }

    #[test]
    fn the_last_number_counts() {
        check("There are 12 apples and 30 pears, 42 together.", "42");
        check("The total is 1,234.50 dollars.", "1234.50");
        check("It is -5.", "-5");
        check("It is −5 degrees", "-5");
        check("We get 7-2", "2");
        check("一共有４２个苹果。", "42");
        check("1,2,3", "3");
        check("Version 1.2.3", "3");
        check("The capital is Paris.", "The capital is Paris");
        assert_eq!(extract("  ", None), None);
    }

    #[test]
    fn a_marker_narrows_it_down() {
        assert_eq!(
            extract("Answer: 3. I added 1 and 2. Answer: 4 apples", Some("Answer:")).as_deref(),
            Some("4")
        );
        assert_eq!(extract("It is 4", Some("Answer:")), None);
        assert_eq!(extract("Answer: Paris.", Some("Answer:")).as_deref(), Some("Paris"));
    }

    #[test]
    fn numbers_compare_by_value() {
        assert!(matches("42", "42.0"));
        assert!(matches("1234", "1,234"));
        assert!(matches("18", "She sells 9 * 2 = 18.\n#### 18"));
        assert!(!matches("43", "42"));
        assert!(matches("paris", "Paris"));
        assert!(!matches("nan", "42"));
    }
}
