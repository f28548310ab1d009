//! Character classes and special words that English tokenization and the filters rest on,
//! read once from `tables.txt` (made from spaCy and datatrove by `make_tables.py`).

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::hash::{HashedMap, hash64};

/// Flags of a character; a character has several.
pub type Flags = u16;

/// Letters (Unicode category L).
pub const LETTER: Flags = 1;
/// Punctuation (category P).
pub const PUNCT: Flags = 1 << 1;
/// Marks without width (category Mn).
pub const MARK: Flags = 1 << 2;
/// Decimal digits (category Nd).
pub const DIGIT: Flags = 1 << 3;
/// Becomes a space when texts are simplified for comparison.
pub const SIMPLIFIED: Flags = 1 << 4;
/// Makes no word.
pub const SYMBOL: Flags = 1 << 5;
/// Ends a line of prose.
pub const TERMINAL: Flags = 1 << 6;
/// Ends a sentence.
pub const SENTENCE_END: Flags = 1 << 7;
/// Letters as spaCy's infix rules take them.
pub const ALPHA: Flags = 1 << 8;
/// Its lower-case and uncased letters.
pub const LOWER: Flags = 1 << 9;
/// Its upper-case and uncased letters.
pub const UPPER: Flags = 1 << 10;
/// Pictures and other symbols.
pub const ICON: Flags = 1 << 11;
/// Punctuation and quotes that are cut off both ends of a word.
pub const EDGE: Flags = 1 << 12;
/// Quotes.
pub const QUOTE: Flags = 1 << 13;
/// May stand before a period that is cut off.
pub const BEFORE_PERIOD: Flags = 1 << 14;

const NAMES: [&str; 15] = [
    "letter",
    "punct_category",
    "mark",
    "digit",
    "simplified",
    "symbol",
    "terminal",
    "sentence_end",
    "alpha",
    "lower",
    "upper",
    "icon",
    "edge",
    "quote",
    "before_period",
];

/// The tables.
pub struct Tables {
    flags: Vec<Flags>,
    /// Currency signs, single characters and `US$`.
    pub currency: Vec<&'static str>,
    /// Units that are cut off a number.
    pub units: Vec<&'static str>,
    /// Hash of a special word → lengths of its pieces, bytes.
    pub special: HashedMap<Vec<u8>>,
    /// One bit per value of a hash's last bits: set for those that a special word has.
    filter: Vec<u64>,
    /// Longest special word, bytes.
    pub longest_special: usize,
    /// Strings of the special words.
    pub specials: Vec<String>,
}

/// Bits of the filter before the table of special words: 4 KB, one in twenty set.
const FILTER_BITS: usize = 1 << 15;

impl Tables {
    /// `false` if no special word has this hash; most words end here.
    #[must_use]
    pub fn may_be_special(&self, hash: u64) -> bool {
        let bit = hash as usize % FILTER_BITS;
        self.filter[bit / 64] >> (bit % 64) & 1 == 1
    }
}

/// The only instance.
pub static TABLES: LazyLock<Tables> = LazyLock::new(read);

/// The flags of `c`.
#[must_use]
pub fn flags(c: char) -> Flags {
    TABLES.flags[c as usize]
}

/// Whether `c` has any of `wanted`.
#[must_use]
pub fn is(c: char, wanted: Flags) -> bool {
    flags(c) & wanted != 0
}

/// Whitespace as Python's `str.isspace` takes it, which adds the ASCII separators.
#[must_use]
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn read() -> Tables {
    let mut tables = Tables {
        flags: vec![0; 0x11_0000],
        currency: Vec::new(),
        units: Vec::new(),
        special: HashedMap::default(),
        filter: vec![0; FILTER_BITS / 64],
        longest_special: 0,
        specials: Vec::new(),
    };
    let mut lists: HashMap<&str, Vec<&'static str>> = HashMap::new();
    // Fields hold no raw line ends: the script escapes them.
    for line in include_str!("tables.txt").split('\n') {
        let mut fields = line.split('\t');
        match (fields.next(), fields.next()) {
            (Some("class"), Some(name)) => {
                let bit = NAMES.iter().position(|n| *n == name).expect("a known class");
                for range in fields.next().unwrap_or_default().split_whitespace() {
                    let (from, to) = range.split_once('-').unwrap_or((range, range));
                    let parse = |x| usize::from_str_radix(x, 16).expect("a hexadecimal number");
                    tables.flags[parse(from)..=parse(to)].iter_mut().for_each(|f| *f |= 1 << bit);
                }
            }
            (Some("list"), Some(name)) => drop(lists.insert(name, fields.collect())),
            (Some("rule"), Some(string)) => {
                let string = unescape(string);
                let pieces = fields.map(|p| unescape(p).len() as u8).collect();
                tables.longest_special = tables.longest_special.max(string.len());
                let hash = hash64(string.as_bytes());
                let bit = hash as usize % FILTER_BITS;
                tables.filter[bit / 64] |= 1 << (bit % 64);
                tables.special.insert(hash, pieces);
                tables.specials.push(string);
            }
            _ => {}
        }
    }
    tables.currency = lists.remove("currency").expect("currency in the tables");
    tables.units = lists.remove("unit").expect("units in the tables");
    tables
}

fn unescape(text: &str) -> String {
    serde_json::from_str(&format!("\"{text}\"")).expect("the script escapes as JSON does")
}
