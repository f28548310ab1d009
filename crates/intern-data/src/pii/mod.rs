//! Finds personal data in English and Chinese text: e-mail, IP addresses, phone numbers,
//! identity numbers, bank accounts and cards, keys and tokens.
//!
//! Whatever carries a checksum is checked (`numbers`), so that few plain numbers are taken
//! for identities. Phone numbers in bare digits count only where a word nearby (phone, fax,
//! 电话) says so. Masks are such that they are not found again.

mod numbers;
mod phone;

use std::io::Write;
use std::path::Path;
use std::sync::LazyLock;

use anyhow::Result;
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::corpus;

/// A kind of personal data.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Keys, tokens and passwords.
    Key,
    /// E-mail addresses.
    Email,
    /// Identity numbers: Chinese (18 digits with checksum), US social security.
    Id,
    /// Payment cards (Luhn).
    Card,
    /// Bank accounts (IBAN, mod 97).
    Iban,
    /// IPv4 and IPv6 addresses of the public network.
    Ip,
    /// Phone numbers.
    Phone,
}

impl Kind {
    /// All kinds; where two overlap, the earlier one holds.
    pub const ALL: [Self; 7] =
        [Self::Key, Self::Email, Self::Id, Self::Card, Self::Iban, Self::Ip, Self::Phone];

    /// Its name in configuration, statistics and masks.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Email => "email",
            Self::Id => "id",
            Self::Card => "card",
            Self::Iban => "iban",
            Self::Ip => "ip",
            Self::Phone => "phone",
        }
    }

    /// What stands in its place.
    #[must_use]
    pub fn mask(self) -> &'static str {
        match self {
            Self::Key => "[KEY]",
            Self::Email => "[EMAIL]",
            Self::Id => "[ID]",
            Self::Card => "[CARD]",
            Self::Iban => "[IBAN]",
            Self::Ip => "[IP]",
            Self::Phone => "[PHONE]",
        }
    }
}

/// A finding: byte offsets in the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub kind: Kind,
    /// Where it begins.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

/// Finds data of the given kinds, in order and without overlaps.
#[must_use]
pub fn find(text: &str, kinds: &[Kind]) -> Vec<Found> {
    let mut all: Vec<Found> = Vec::new();
    let mut kinds = kinds.to_vec();
    kinds.sort();
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    for kind in kinds {
        let mut add = |start: usize, end: usize| {
            if all.iter().all(|f| end <= f.start || f.end <= start) {
                all.push(Found { kind, start, end });
            }
        };
        match kind {
            Kind::Key => keys(text, &mut add),
            Kind::Email if text.contains('@') => emails(text, &mut add),
            Kind::Id if digits >= 9 => numbers::ids(text, &mut add),
            Kind::Card if digits >= 12 => numbers::cards(text, &mut add),
            Kind::Iban if digits >= 10 => numbers::ibans(text, &mut add),
            Kind::Ip => ips(text, &mut add),
            Kind::Phone if digits >= 7 => phone::find(text, &mut add),
            _ => {}
        }
    }
    all.sort_by_key(|f| f.start);
    all
}

/// The text with every finding replaced by its mask.
#[must_use]
pub fn mask(text: &str, found: &[Found]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for f in found {
        out.push_str(&text[at..f.start]);
        out.push_str(f.kind.mask());
        at = f.end;
    }
    out.push_str(&text[at..]);
    out
}

/// Writes a JSON line per document of `file` to `out`: id and findings with their place in
/// characters, or the masked document.
///
/// # Errors
/// If the documents cannot be read or `out` refuses.
pub fn report(file: &Path, masked: bool, out: &mut impl Write) -> Result<()> {
    for file in corpus::files(&[file.to_path_buf()])? {
        for document in corpus::read(&file)? {
            let mut document = document?;
            let found = find(&document.text, &Kind::ALL);
            if masked {
                document.text = mask(&document.text, &found);
                writeln!(out, "{}", serde_json::to_string(&document)?)?;
                continue;
            }
            let place = |at: usize| document.text[..at].chars().count();
            let found: Vec<_> = found
                .iter()
                .map(|f| {
                    let text = &document.text[f.start..f.end];
                    json!({"kind": f.kind, "start": place(f.start), "end": place(f.end), "text": text})
                })
                .collect();
            writeln!(out, "{}", json!({"id": document.id, "found": found}))?;
        }
    }
    Ok(())
}

fn emails(text: &str, add: &mut impl FnMut(usize, usize)) {
    static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r"(?i)[a-z0-9][a-z0-9.!#$%&'*+/=?^_`{|}~-]{0,63}@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,24}",
        )
        .expect("a valid pattern")
    });
    EMAIL.find_iter(text).for_each(|m| add(m.start(), m.end()));
}

fn ips(text: &str, add: &mut impl FnMut(usize, usize)) {
    static V4: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?:\.[0-9]+)*").expect("a valid pattern"));
    static V6: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"(?i)(?:[0-9a-f]{1,4}:|::)(?:[0-9a-f]{0,4}:){1,6}[0-9a-f]{0,4}").expect("a valid pattern")
    });
    for m in V4.find_iter(text) {
        let before = text[..m.start()].chars().next_back();
        // Versions (v1.2.3.4), section numbers and parts of longer numbers are no addresses.
        let alone = !before.is_some_and(|c| c.is_alphanumeric() || c == '.' || c == '-')
            && !text[m.end()..].starts_with(|c: char| c.is_alphanumeric());
        let address: Result<std::net::Ipv4Addr, _> = m.as_str().parse();
        if let (true, Ok(a)) = (alone, address)
            && !(a.is_private()
                || a.is_loopback()
                || a.is_link_local()
                || a.is_unspecified()
                || a.is_broadcast())
            && a.octets()[0] > 0
            && a.octets()[0] < 224
            && !after_version(&text[..m.start()])
        {
            add(m.start(), m.end());
        }
    }
    if !text.contains("::") && text.matches(':').count() < 7 {
        return;
    }
    for m in V6.find_iter(text) {
        let alone = !text[..m.start()].ends_with(|c: char| c.is_alphanumeric() || c == ':')
            && !text[m.end()..].starts_with(|c: char| c.is_alphanumeric() || c == ':');
        let address: Result<std::net::Ipv6Addr, _> = m.as_str().parse();
        if let (true, Ok(a)) = (alone, address)
            && !a.is_loopback()
            && !a.is_unspecified()
            && m.as_str().bytes().filter(u8::is_ascii_hexdigit).count() >= 8
        {
            add(m.start(), m.end());
        }
    }
}

/// Whether `before` ends in a word for versions or sections.
fn after_version(before: &str) -> bool {
    let before = before.trim_end();
    let word: String = before.chars().rev().take(12).collect::<Vec<_>>().into_iter().rev().collect();
    let word = word.to_lowercase();
    ["version", "release", "section", "firmware", "build", "版本", "chapter", "v"].iter().any(|w| {
        word.ends_with(w) && !(*w == "v" && word.chars().rev().nth(1).is_some_and(char::is_alphabetic))
    })
}

fn keys(text: &str, add: &mut impl FnMut(usize, usize)) {
    static KNOWN: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(concat!(
            r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[A-Za-z0-9+/=\s]+-----END (?:[A-Z]+ )*PRIVATE KEY-----",
            r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
            r"|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{40,}\b|\bglpat-[A-Za-z0-9_-]{20,}\b",
            r"|\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{20,}\b|\bhf_[A-Za-z0-9]{30,}\b",
            r"|\bAIza[0-9A-Za-z_-]{35}\b|\bxox[abprs]-[0-9A-Za-z-]{10,}\b",
            r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\b",
        ))
        .expect("a valid pattern")
    });
    static NAMED: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r#"(?i)\b(?:api[_-]?key|secret(?:[_-]?key)?|access[_-]?token|auth[_-]?token|client[_-]?secret|passw(?:or)?d|pwd|密码|口令|密钥)["']?\s*[:=：＝]\s*["']?([^\s"'<>,;，。；\[\]]{8,})"#,
        )
        .expect("a valid pattern")
    });
    KNOWN.find_iter(text).for_each(|m| add(m.start(), m.end()));
    for c in NAMED.captures_iter(text) {
        let value = c.get(1).expect("the group takes part in every match");
        // Words and variables are no secrets; those mix letters and digits.
        let (digit, letter) = value
            .as_str()
            .chars()
            .fold((false, false), |(d, l), c| (d | c.is_ascii_digit(), l | c.is_ascii_alphabetic()));
        if digit && letter && !value.as_str().contains(['(', '{', '$']) {
            add(value.start(), value.end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, expect: &[(Kind, &str)]) {
        let found = find(text, &Kind::ALL);
        let got: Vec<(Kind, &str)> = found.iter().map(|f| (f.kind, &text[f.start..f.end])).collect();
        assert_eq!(got, expect, "{text:?}");
        assert_eq!(find(&mask(text, &found), &Kind::ALL), [], "masks are found again in {text:?}");
    }

    #[test]
    fn addresses_are_found_and_versions_are_not() {
        check("Write to Jane.Doe+x@mail.example.co.uk.", &[(Kind::Email, "Jane.Doe+x@mail.example.co.uk")]);
        check("请联系zhang@example.cn，谢谢", &[(Kind::Email, "zhang@example.cn")]);
        check("from 41.173.96.26 to 192.168.0.1", &[(Kind::Ip, "41.173.96.26")]);
        check(
            "6e40:4041:c617:e898:c11:40d2:c669:2eb4 blocked",
            &[(Kind::Ip, "6e40:4041:c617:e898:c11:40d2:c669:2eb4")],
        );
        check("version 41.173.96.26, v1.2.3.4, 1.2.3.4.5, std::vec::Vec, 10:20:30", &[]);
    }

    #[test]
    fn keys_are_found() {
        check("aws AKIAIOSFODNN7EXAMPLE end", &[(Kind::Key, "AKIAIOSFODNN7EXAMPLE")]);
        check("api_key = \"a1b2c3d4e5f6\"", &[(Kind::Key, "a1b2c3d4e5f6")]);
        check("密码：hunter2hunter2。", &[(Kind::Key, "hunter2hunter2")]);
        check("password: correcthorse, token: none", &[]);
    }

    #[test]
    fn numbers_are_checked() {
        check("身份证号11010519491231002X。", &[(Kind::Id, "11010519491231002X")]);
        check("身份证号110105194912310021。", &[]);
        check("His SSN is 460-89-9847.", &[(Kind::Id, "460-89-9847")]);
        check("card 4111 1111 1111 1111 and 4111111111111112", &[(Kind::Card, "4111 1111 1111 1111")]);
        check("IBAN GB82 WEST 1234 5698 7654 32, thanks", &[(Kind::Iban, "GB82 WEST 1234 5698 7654 32")]);
        check("the population was 1234567890123456 in 1850-1860", &[]);
    }

    #[test]
    fn phone_numbers_are_found_where_they_are_some() {
        check(
            "call 780-999-2181 or (602)272-9781",
            &[(Kind::Phone, "780-999-2181"), (Kind::Phone, "(602)272-9781")],
        );
        check("+41 (0)71 526 99 04", &[(Kind::Phone, "+41 (0)71 526 99 04")]);
        check(
            "手机13812345678，座机010-62781234",
            &[(Kind::Phone, "13812345678"), (Kind::Phone, "010-62781234")],
        );
        check("Phone:\n358 0594\n", &[(Kind::Phone, "358 0594")]);
        check("between 1914 and 1918, 2,000,000 of 12345678 died; 2020-10-12 10:20", &[]);
        check("ISBN 978-3-16-148410-0, pages 120-135", &[]);
    }

    proptest! {
        #[test]
        fn masked_text_has_nothing_left(text in "[a-z@.0-9+() :\\-\u{7535}\u{8bdd}]{0,60}") {
            let found = find(&text, &Kind::ALL);
            let masked = mask(&text, &found);
            let again = find(&masked, &Kind::ALL);
            prop_assert!(again.iter().all(|f| !masked[f.start..f.end].contains('[')), "{:?} → {:?}", text, masked);
        }
    }
}
