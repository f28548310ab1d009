//! Traditional Chinese → simplified: phrases that go their own way first, the longest at
//! each place, then character by character, by OpenCC's tables (`make_simplified.py`).

use std::collections::HashMap;
use std::sync::LazyLock;

struct Tables {
    characters: HashMap<char, char>,
    /// First character → phrases and their simplified forms, longest first.
    phrases: HashMap<char, Vec<(&'static str, &'static str)>>,
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let mut lines = include_str!("simplified.txt").lines();
    let pairs: Vec<char> = lines.next().unwrap_or_default().chars().collect();
    let mut phrases: HashMap<char, Vec<_>> = HashMap::new();
    for (from, to) in lines.filter_map(|line| line.split_once('\t')) {
        phrases.entry(from.chars().next().expect("a phrase")).or_default().push((from, to));
    }
    phrases.values_mut().for_each(|list| list.sort_by_key(|p| std::cmp::Reverse(p.0.len())));
    Tables { characters: pairs.chunks_exact(2).map(|p| (p[0], p[1])).collect(), phrases }
});

/// The text in simplified characters, and how many characters changed.
#[must_use]
pub fn to_simplified(text: &str) -> (String, usize) {
    let tables = &*TABLES;
    let mut out = String::with_capacity(text.len());
    let mut changed = 0;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let phrases = tables.phrases.get(&c).map_or(&[][..], Vec::as_slice);
        if let Some((from, to)) = phrases.iter().find(|(from, _)| rest.starts_with(from)) {
            changed += from.chars().zip(to.chars()).filter(|(a, b)| a != b).count();
            out.push_str(to);
            rest = &rest[from.len()..];
            continue;
        }
        let simple = tables.characters.get(&c).copied().unwrap_or(c);
        changed += usize::from(simple != c);
        out.push(simple);
        rest = &rest[c.len_utf8()..];
    }
    (out, changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As OpenCC's `t2s` gives them.
    #[test]
    fn texts_are_simplified() {
        let check = |text: &str, expect: &str| assert_eq!(to_simplified(text).0, expect);
        check("漢字簡化方案於一九五六年公佈。", "汉字简化方案于一九五六年公布。");
        check("她的頭髮很長，發現了這裡的麵包。", "她的头发很长，发现了这里的面包。");
        check("乾隆皇帝乾杯", "乾隆皇帝干杯");
        check("简体字 stays", "简体字 stays");
        assert_eq!(to_simplified("頭髮ab").1, 2);
    }
}
