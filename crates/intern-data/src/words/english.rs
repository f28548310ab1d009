//! English words as spaCy's rule tokenizer (`spacy.blank("en")`) splits them, so that
//! filters made with it (datatrove's, FineWeb's) decide alike here.
//!
//! A run without whitespace is a special word (`don't`, `e.g.`, `:-)`), or affixes are cut
//! off both ends until one is left; a URL stays whole, anything else is cut at infixes.
//! At last, neighbouring pieces that make up a special word are put together again. One
//! liberty: pieces with a space between are not looked at there, since spaCy undoes such
//! matches anyway.

use std::sync::LazyLock;

use regex::Regex;

use super::chars::{
    ALPHA, BEFORE_PERIOD, EDGE, ICON, LOWER, PUNCT, QUOTE, SENTENCE_END, TABLES, Tables, UPPER, flags, is,
    is_space,
};
use crate::hash::{HashedMap, combine, hash64};

/// A token's place in the text: byte offsets.
pub type Span = (u32, u32);

/// Splits `text`; runs of whitespace other than a single leading space are tokens too.
#[must_use]
pub fn tokenize(text: &str) -> Vec<Span> {
    let mut out = Splitter { text, spans: Vec::with_capacity(text.len() / 4), mergeable: Vec::new() };
    let mut start = 0;
    let mut in_space = text.chars().next().is_some_and(is_space);
    for (at, c) in text.char_indices() {
        if is_space(c) != in_space {
            out.run(start, at);
            // One space only separates; more whitespace after it is a token.
            start = if c == ' ' { at + 1 } else { at };
            in_space = !in_space;
        }
    }
    out.run(start, text.len());
    out.merge_specials();
    out.spans
}

/// Number of sentences, as spaCy's sentencizer counts them (at least one).
#[must_use]
pub fn count_sentences(text: &str) -> usize {
    1 + sentence_starts(text).count()
}

/// Byte offsets of the sentences after the first, as spaCy's sentencizer finds them.
pub fn sentence_starts(text: &str) -> impl Iterator<Item = usize> {
    let mut after_end = false;
    tokenize(text).into_iter().filter_map(move |(from, to)| {
        let token = &text[from as usize..to as usize];
        let mut chars = token.chars();
        let first = chars.next().unwrap_or(' ');
        let ends = chars.next().is_none() && is(first, SENTENCE_END);
        if ends {
            after_end = true;
        } else if after_end && !token.chars().all(|c| is(c, PUNCT)) {
            after_end = false;
            return Some(from as usize);
        }
        None
    })
}

struct Splitter<'a> {
    text: &'a str,
    spans: Vec<Span>,
    /// First and one past the last token of runs that were split and may hold special words.
    mergeable: Vec<(usize, usize)>,
}

impl Splitter<'_> {
    fn push(&mut self, from: usize, to: usize) {
        self.spans.push((from as u32, to as u32));
    }

    /// A run of non-space (or of whitespace) characters.
    fn run(&mut self, from: usize, to: usize) {
        if from >= to {
            return;
        }
        let tables = &*TABLES;
        let run = &self.text[from..to];
        if let Some(pieces) = special(tables, run) {
            self.push_pieces(from, pieces);
            return;
        }
        if run.bytes().all(|b| b.is_ascii_alphabetic()) {
            self.push(from, to);
            return;
        }
        let first = self.spans.len();
        self.split(from, to, |s| special(tables, s));
        if self.spans.len() > first + 1 {
            self.mergeable.push((first, self.spans.len()));
        }
    }

    fn push_pieces(&mut self, from: usize, pieces: &[u8]) {
        let mut at = from;
        for &length in pieces {
            self.push(at, at + length as usize);
            at += length as usize;
        }
    }

    /// Cuts affixes off both ends until what is left is special to `special`, or has none.
    fn split(&mut self, mut from: usize, mut to: usize, special: impl Fn(&str) -> Option<&'static [u8]>) {
        let tables = &*TABLES;
        let mut suffixes: Vec<Span> = Vec::new();
        let mut last = usize::MAX;
        while from < to && to - from != last {
            let s = &self.text[from..to];
            if special(s).is_some() {
                break;
            }
            last = s.len();
            let prefix = find_prefix(tables, s);
            if prefix > 0 && prefix < s.len() && special(&s[prefix..]).is_some() {
                self.push(from, from + prefix);
                from += prefix;
                break;
            }
            let suffix = find_suffix(tables, &s[prefix..]);
            if suffix > 0 && suffix < s.len() && special(&s[..s.len() - suffix]).is_some() {
                suffixes.push(((to - suffix) as u32, to as u32));
                to -= suffix;
                break;
            }
            if prefix > 0 {
                self.push(from, from + prefix);
                from += prefix;
            }
            if suffix > 0 {
                suffixes.push(((to - suffix) as u32, to as u32));
                to -= suffix;
            }
        }
        if from < to {
            let s = &self.text[from..to];
            if let Some(pieces) = special(s) {
                self.push_pieces(from, pieces);
            } else if s.contains('.') && is_url(s) {
                self.push(from, to);
            } else {
                self.infixes(from, to);
            }
        }
        self.spans.extend(suffixes.into_iter().rev());
    }

    fn infixes(&mut self, from: usize, to: usize) {
        let s = &self.text[from..to];
        let mut start = 0;
        let mut at = 0;
        let mut before: Option<char> = None;
        while let Some(c) = s[at..].chars().next() {
            let length = infix_at(before, c, &s[at..]);
            if length == 0 {
                before = Some(c);
                at += c.len_utf8();
                continue;
            }
            let end = at + length;
            // An infix at the very beginning stays with what follows.
            if at > 0 {
                if at > start {
                    self.push(from + start, from + at);
                }
                self.push(from + at, from + end);
                start = end;
            }
            before = s[at..end].chars().next_back();
            at = end;
        }
        if start < s.len() {
            self.push(from + start, to);
        }
    }

    /// Puts pieces together that make up a special word with affixes, longest first.
    fn merge_specials(&mut self) {
        if self.mergeable.is_empty() {
            return;
        }
        let patterns = &*PATTERNS;
        let mut found: Vec<(usize, usize)> = Vec::new();
        let mut hashes = Vec::new();
        for &(first, end) in &self.mergeable {
            hashes.clear();
            hashes.extend(
                self.spans[first..end]
                    .iter()
                    .map(|&(a, b)| hash64(&self.text.as_bytes()[a as usize..b as usize])),
            );
            for i in 0..hashes.len() {
                let Some(lengths) = patterns.first.get(&hashes[i]) else { continue };
                for &n in lengths.iter().filter(|&&n| i + n <= hashes.len()) {
                    if patterns.all.contains_key(&combine(&hashes[i..i + n])) {
                        found.push((first + i, n));
                    }
                }
            }
        }
        if found.is_empty() {
            return;
        }
        found.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut taken = std::collections::HashSet::new();
        let mut chosen: HashedMap<usize> = HashedMap::default();
        for (start, n) in found {
            if !taken.contains(&start) && !taken.contains(&(start + n - 1)) {
                chosen.insert(start as u64, n);
            }
            taken.extend(start..start + n);
        }
        let old = std::mem::take(&mut self.spans);
        let mut i = 0;
        while i < old.len() {
            let n = chosen.get(&(i as u64)).copied().unwrap_or(1);
            let (from, to) = (old[i].0 as usize, old[i + n - 1].1 as usize);
            match special(&TABLES, &self.text[from..to]) {
                Some(pieces) if n > 1 => self.push_pieces(from, pieces),
                _ => self.spans.extend(&old[i..i + n]),
            }
            i += n;
        }
    }
}

/// Special words that the affix rules would split, as the pieces those make.
struct Patterns {
    /// Hash of the first piece → numbers of pieces.
    first: HashedMap<Vec<usize>>,
    /// Combined hash of all pieces.
    all: HashedMap<()>,
}

static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| {
    let mut patterns = Patterns { first: HashedMap::default(), all: HashedMap::default() };
    for word in &TABLES.specials {
        let mut pieces = Splitter { text: word, spans: Vec::new(), mergeable: Vec::new() };
        // By affixes and infixes only.
        pieces.split(0, word.len(), |_| None);
        if pieces.spans.len() < 2 {
            continue;
        }
        let hashes: Vec<u64> =
            pieces.spans.iter().map(|&(a, b)| hash64(&word.as_bytes()[a as usize..b as usize])).collect();
        let lengths = patterns.first.entry(hashes[0]).or_default();
        if !lengths.contains(&hashes.len()) {
            lengths.push(hashes.len());
        }
        patterns.all.insert(combine(&hashes), ());
    }
    patterns
});

fn special(tables: &'static Tables, s: &str) -> Option<&'static [u8]> {
    if s.len() > tables.longest_special {
        return None;
    }
    let hash = hash64(s.as_bytes());
    if !tables.may_be_special(hash) {
        return None;
    }
    tables.special.get(&hash).map(Vec::as_slice)
}

/// Bytes of the prefix to cut off, 0 if none.
fn find_prefix(tables: &Tables, s: &str) -> usize {
    let Some(c) = s.chars().next() else { return 0 };
    if c.is_ascii_alphanumeric() {
        let dollars = s.starts_with("US$").then_some(3);
        return dollars.or((s.starts_with("C$") || s.starts_with("A$")).then_some(2)).unwrap_or(0);
    }
    match c {
        '§' | '%' | '=' | '—' | '–' => c.len_utf8(),
        '+' => usize::from(!s[1..].starts_with(|n: char| n.is_ascii_digit())),
        '.' => {
            let dots = s.bytes().take_while(|b| *b == b'.').count();
            if dots >= 2 { dots } else { 0 }
        }
        '…' => c.len_utf8(),
        c if is(c, EDGE | ICON) || is_currency(tables, c) => c.len_utf8(),
        _ => 0,
    }
}

fn is_currency(tables: &Tables, c: char) -> bool {
    let mut buffer = [0; 4];
    (c == '$' || !c.is_ascii()) && tables.currency.contains(&&*c.encode_utf8(&mut buffer))
}

/// Bytes of the suffix to cut off, 0 if none: the longest that any rule finds.
fn find_suffix(tables: &Tables, s: &str) -> usize {
    let Some(c) = s.chars().next_back() else { return 0 };
    let before = s[..s.len() - c.len_utf8()].chars().next_back();
    let digit_before =
        |length: usize| s.len() > length && s.as_bytes()[s.len() - length - 1].is_ascii_digit();
    let mut best = 0;
    match c {
        '.' => {
            let dots = s.bytes().rev().take_while(|b| *b == b'.').count();
            if dots >= 2 {
                return dots;
            }
            let mut back = s[..s.len() - 1].chars().rev();
            let (first, second) = (back.next(), back.next());
            let by_one = first.is_some_and(|b| is(b, BEFORE_PERIOD));
            let by_two = matches!((first, second), (Some(a), Some(b)) if is(a, UPPER) && is(b, UPPER));
            let degrees = matches!((first, second), (Some('F' | 'f' | 'C' | 'c' | 'K' | 'k'), Some('°')));
            return usize::from(by_one || by_two || degrees);
        }
        '…' => return if before == Some('…') { 6 } else { 3 },
        '—' | '–' => return c.len_utf8(),
        '+' => return usize::from(digit_before(1)),
        's' | 'S' => match before {
            Some('\'') => best = 2,
            Some('’') => best = 4,
            _ => {}
        },
        _ => {}
    }
    if is(c, EDGE | ICON) {
        best = best.max(c.len_utf8());
    }
    if (c == '%' || c.is_alphanumeric()) && s.bytes().any(|b| b.is_ascii_digit()) {
        let unit = tables.units.iter().filter(|u| s.ends_with(**u) && digit_before(u.len())).map(|u| u.len());
        best = best.max(unit.max().unwrap_or(0));
    } else if c == '$' || !c.is_ascii() {
        let sign =
            tables.currency.iter().filter(|u| s.ends_with(**u) && digit_before(u.len())).map(|u| u.len());
        best = best.max(sign.max().unwrap_or(0));
    }
    best
}

/// Bytes of the infix that begins `rest` (whose first character is `c`), 0 if none.
fn infix_at(before: Option<char>, c: char, rest: &str) -> usize {
    if c.is_ascii_alphanumeric() {
        return 0;
    }
    let b = before.map_or(0, flags);
    let digit = before.is_some_and(|x| x.is_ascii_digit());
    let after = |n: usize| rest[n..].chars().next();
    let alpha_after = |n: usize| after(n).is_some_and(|x| is(x, ALPHA));
    match c {
        '.' => {
            let dots = rest.bytes().take_while(|x| *x == b'.').count();
            if dots >= 2 {
                return dots;
            }
            let left = b & (LOWER | QUOTE) != 0;
            return usize::from(left && after(1).is_some_and(|x| is(x, UPPER | QUOTE)));
        }
        '…' => return 3,
        '+' | '*' | '^' | '-' if digit && after(1).is_some_and(|x| x.is_ascii_digit() || x == '-') => {
            return 1;
        }
        ',' => return usize::from(b & ALPHA != 0 && alpha_after(1)),
        ':' | '<' | '>' | '=' | '/' => return usize::from((b & ALPHA != 0 || digit) && alpha_after(1)),
        _ => {}
    }
    if matches!(c, '-' | '–' | '—' | '~') && (b & ALPHA != 0 || digit) {
        let hyphen = ["-", "–", "—", "--", "---", "——", "~"]
            .iter()
            .find(|h| rest.starts_with(**h) && alpha_after(h.len()));
        return hyphen.map_or(0, |h| h.len());
    }
    if is(c, ICON) { c.len_utf8() } else { 0 }
}

/// Whether `s` is a URL or a host name by spaCy's pattern.
fn is_url(s: &str) -> bool {
    static DOMAIN: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r"^(?:[\w+\-.]{2,}://)?(?:\S+(?::\S*)?@)?(?:(?:[A-Za-z0-9\x{a1}-\x{ffff}][A-Za-z0-9\x{a1}-\x{ffff}_-]{0,62})?[A-Za-z0-9\x{a1}-\x{ffff}]\.)+([^\s.:/?#]{2,63})(?::\d{2,5})?(?:[/?#]\S*)?$",
        )
        .expect("a valid pattern")
    });
    static ADDRESS: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(
            r"^(?:[\w+\-.]{2,}://)?(?:\S+(?::\S*)?@)?((?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])(?:\.(?:1?\d{1,2}|2[0-4]\d|25[0-5])){2}\.(?:[1-9]\d?|1\d\d|2[0-4]\d|25[0-4]))(?::\d{2,5})?(?:[/?#]\S*)?$",
        )
        .expect("a valid pattern")
    });
    static PRIVATE: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^(?:(?:10|127)(?:\.\d{1,3}){3}|(?:169\.254|192\.168)(?:\.\d{1,3}){2}|172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2})")
            .expect("a valid pattern")
    });
    // Checked outside the pattern, whose class would hold a thousand ranges.
    if let Some(found) = DOMAIN.captures(s)
        && found.get(1).is_some_and(|tld| tld.as_str().chars().all(|c| is(c, LOWER)))
    {
        return true;
    }
    s.bytes().filter(|b| b.is_ascii_digit()).count() >= 4
        && ADDRESS.captures(s).is_some_and(|found| !PRIVATE.is_match(&found[1]))
}
