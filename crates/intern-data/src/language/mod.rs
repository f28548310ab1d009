//! The built-in language identification: naive Bayes over letters and runs of two and three
//! letters within words (Cavnar and Trenkle, 1994, with lingua's frequencies).
//!
//! `model.bin.zst` is made by `make_model.py`: magic `INLANG01`, number of languages `u32`,
//! two bytes of code each, number of n-grams `u32`, per n-gram three characters (`u32`, 0
//! behind the end) sorted, per n-gram its number of weights (`u8`), then all languages
//! (`u8`), then all weights (`u8`); little endian, in zstd. What a language has no weight
//! for counts as very rare in it. Bosnian, Malay and Nynorsk are too close to Croatian,
//! Indonesian and Bokmål, and named as these.

use std::cell::RefCell;
use std::sync::LazyLock;

use crate::words::chars::{LETTER, is};

/// A model's answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guess {
    /// ISO 639-1 code.
    pub code: &'static str,
    /// How far it is ahead of the others, 0–1.
    pub confidence: f64,
}

/// Weights per unit of log probability, as the script has it.
const SCALE: f64 = 40.0;
/// Sharpness of the confidence: so that on sentences it is as often right as it says.
const SHARPNESS: f64 = 14.0;
/// Letters of the Latin alphabet and "none".
const BASE: usize = 27;

/// The languages and their n-grams.
pub struct Model {
    codes: Vec<&'static str>,
    /// Weights of n-grams of `a`–`z` by place, see `latin`; and of the others by slot.
    latin: Vec<Weights>,
    slots: Vec<(u64, Weights)>,
    languages: Vec<u8>,
    weights: Vec<u8>,
}

/// Where an n-gram's weights are: first and number.
#[derive(Clone, Copy, Default)]
struct Weights(u32, u8);

/// The only instance.
pub static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let bytes = zstd::decode_all(&include_bytes!("model.bin.zst")[..]).expect("the model is a zstd file");
    Model::read(&bytes)
});

impl Model {
    fn read(bytes: &[u8]) -> Self {
        let mut rest = bytes;
        let mut take = |n: usize| {
            let (head, tail) = rest.split_at(n);
            rest = tail;
            head
        };
        let number = |b: &[u8]| u32::from_le_bytes(b.try_into().expect("4 bytes"));
        assert_eq!(take(8), b"INLANG01", "the model's magic");
        let n = number(take(4)) as usize;
        let codes = take(2 * n).chunks(2).map(|c| &*String::from_utf8_lossy(c).into_owned().leak()).collect();
        let n = number(take(4)) as usize;
        let grams = take(12 * n);
        let counts = take(n);
        let total = counts.iter().map(|c| usize::from(*c)).sum();
        let (languages, weights) = (take(total).to_vec(), take(total).to_vec());
        let mut model = Self {
            codes,
            latin: vec![Weights::default(); BASE * BASE * BASE],
            slots: vec![(0, Weights::default()); (4 * n).next_power_of_two()],
            languages,
            weights,
        };
        let mut first = 0;
        for (gram, count) in grams.chunks(12).zip(counts) {
            let chars: Vec<u32> = gram.chunks(4).map(number).collect();
            let chars = [chars[0], chars[1], chars[2]];
            let found = Weights(first, *count);
            match latin(chars) {
                Some(place) => model.latin[place] = found,
                None => {
                    let key = key(chars);
                    let slot = model.slot(key);
                    model.slots[slot] = (key, found);
                }
            }
            first += u32::from(*count);
        }
        model
    }

    /// Codes of the languages it knows.
    #[must_use]
    pub fn codes(&self) -> &[&'static str] {
        &self.codes
    }

    fn slot(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut i = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & mask;
        while self.slots[i].0 != 0 && self.slots[i].0 != key {
            i = (i + 1) & mask;
        }
        i
    }

    /// The likeliest language of `text`, among `allowed` if given; `None` for texts without a
    /// known letter.
    #[must_use]
    pub fn identify(&self, text: &str, allowed: Option<&[&str]>) -> Option<Guess> {
        thread_local! {
            /// How often each n-gram of `a`–`z` came, all 0 between calls, and which did.
            static COUNTS: RefCell<(Vec<u16>, Vec<u16>)> = RefCell::new((vec![0; BASE * BASE * BASE], Vec::new()));
        }
        let mut scores = vec![0u64; self.codes.len()];
        let mut letters = 0u32;
        COUNTS.with_borrow_mut(|(counts, came)| {
            let mut add = |chars: [u32; 3], scores: &mut [u64]| match latin(chars) {
                Some(place) => {
                    if counts[place] == 0 {
                        came.push(place as u16);
                    }
                    counts[place] = counts[place].saturating_add(1);
                }
                None => {
                    let (found, weights) = self.slots[self.slot(key(chars))];
                    if found != 0 {
                        self.score(weights, 1, scores);
                    }
                }
            };
            // The two letters before, 0 before a word.
            let (mut second, mut third) = (0, 0);
            for c in text.chars().flat_map(char::to_lowercase) {
                if !(c.is_ascii_lowercase() || !c.is_ascii() && is(c, LETTER)) {
                    (second, third) = (0, 0);
                    continue;
                }
                let c = u32::from(c);
                letters += 1;
                add([c, 0, 0], &mut scores);
                if second != 0 {
                    add([second, c, 0], &mut scores);
                }
                if third != 0 {
                    add([third, second, c], &mut scores);
                }
                (second, third) = (c, second);
            }
            for place in came.drain(..) {
                let times = std::mem::take(&mut counts[usize::from(place)]);
                self.score(self.latin[usize::from(place)], times, &mut scores);
            }
        });
        self.choose(&scores, letters, allowed)
    }

    fn score(&self, Weights(first, count): Weights, times: u16, scores: &mut [u64]) {
        let range = first as usize..first as usize + usize::from(count);
        for (language, weight) in self.languages[range.clone()].iter().zip(&self.weights[range]) {
            scores[usize::from(*language)] += u64::from(*weight) * u64::from(times);
        }
    }

    fn choose(&self, scores: &[u64], letters: u32, allowed: Option<&[&str]>) -> Option<Guess> {
        let may = |i: &usize| allowed.is_none_or(|a| a.contains(&self.codes[*i]));
        // The first of equals.
        let best = (0..scores.len()).filter(may).rev().max_by_key(|i| scores[*i])?;
        if scores[best] == 0 {
            return None;
        }
        let unit = SHARPNESS / (SCALE * f64::from(letters.max(1)));
        let behind = |i: usize| (scores[i] as f64 - scores[best] as f64) * unit;
        let all: f64 = (0..scores.len()).filter(may).map(|i| behind(i).exp()).sum();
        Some(Guess { code: self.codes[best], confidence: 1.0 / all })
    }
}

/// The place of an n-gram of `a`–`z`.
fn latin(chars: [u32; 3]) -> Option<usize> {
    let mut place = 0;
    for c in chars {
        place = place * BASE
            + match c {
                0 => 0,
                97..=122 => c as usize - 96,
                _ => return None,
            };
    }
    Some(place)
}

/// The three characters in one number.
fn key(chars: [u32; 3]) -> u64 {
    u64::from(chars[0]) << 42 | u64::from(chars[1]) << 21 | u64::from(chars[2])
}

/// The two-letter code of a three-letter one (ISO 639-2 and 639-3, and what texts in a
/// language are usually named by); other codes are returned as they are.
#[must_use]
pub fn short(code: &str) -> &str {
    const CODES: &str = "aar aa abk ab afr af aka ak alb sq als sq amh am ara ar arb ar arg an arm hy asm as ava av \
        aym ay azb az aze az azj az bak ba bam bm baq eu bel be ben bn bis bi bod bo bos bs bre br bul bg bur my \
        cat ca ces cs cha ch che ce chi zh chv cv cmn zh cor kw cos co cre cr cym cy cze cs dan da deu de div dv \
        dut nl dzo dz ekk et ell el eng en epo eo est et eus eu ewe ee fao fo fas fa fij fj fil tl fin fi fra fr \
        fre fr fry fy ful ff gaz om geo ka ger de gla gd gle ga glg gl glv gv gre el grn gn gug gn guj gu hat ht \
        hau ha heb he her hz hin hi hmo ho hrv hr hun hu hye hy ibo ig ice is ido io iii ii iku iu ile ie ina ia \
        ind id ipk ik isl is ita it jav jv jpn ja kal kl kan kn kas ks kat ka kau kr kaz kk khk mn khm km kik ki \
        kin rw kir ky kmr ku kom kv kon kg kor ko kua kj kur ku lao lo lat la lav lv lim li lin ln lit lt ltz lb \
        lub lu lug lg lvs lv mac mk mah mh mal ml mao mi mar mr may ms mkd mk mlg mg plt mg mlt mt mon mn mri mi \
        msa ms mya my nau na nav nv nbl nr nde nd ndo ng nep ne npi ne nld nl nno nn nob nb nor no nya ny oci oc \
        oji oj ori or ory or orm om oss os pan pa pbt ps per fa pes fa pli pi pol pl por pt prs fa pus ps que qu \
        quy qu roh rm ron ro rum ro run rn rus ru sag sg san sa sin si slk sk slo sk slv sl sme se smo sm sna sn \
        snd sd som so sot st spa es sqi sq srd sc srp sr ssw ss sun su swa sw swe sv swh sw tah ty tam ta tat tt \
        tel te tgk tg tgl tl tha th tib bo tir ti ton to tsn tn tso ts tuk tk tur tr twi tw uig ug ukr uk urd ur \
        uzb uz uzn uz ven ve vie vi vol vo wel cy wln wa wol wo xho xh ydd yi yid yi yor yo yue zh zha za zho zh \
        zlm ms zsm ms zul zu";
    static PAIRS: LazyLock<std::collections::HashMap<&str, &str>> = LazyLock::new(|| {
        let words: Vec<&str> = CODES.split_whitespace().collect();
        words.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
    });
    PAIRS.get(code).copied().unwrap_or(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: &str) {
        let got = MODEL.identify(text, None).map_or("und", |g| g.code);
        assert_eq!(got, expect, "{text}");
    }

    #[test]
    fn sentences_are_named() {
        check("Mae'r gath yn eistedd ar y mat ac mae'r ci yn cysgu yn yr ardd.", "cy");
        check("The cat sits on the mat, and the dog is asleep in the garden.", "en");
        check("Le chat est assis sur le tapis et le chien dort dans le jardin.", "fr");
        check("小明有三个苹果，又买了两个。他现在有几个？", "zh");
        check("猫がマットの上に座っていて、犬は庭で寝ています。", "ja");
        check("고양이는 매트 위에 앉아 있고 개는 정원에서 자고 있다.", "ko");
        check("Кіт сидить на килимку, а пес спить у саду.", "uk");
        check("ಬೆಕ್ಕು ಚಾಪೆಯ ಮೇಲೆ ಕುಳಿತಿದೆ ಮತ್ತು ನಾಯಿ ತೋಟದಲ್ಲಿ ಮಲಗಿದೆ", "kn");
        check("12 + 30 = 42", "und");
    }

    #[test]
    fn only_allowed_languages_are_named() {
        let german = "Die Katze sitzt auf der Matte.";
        let guess = MODEL.identify(german, Some(&["en", "nl"])).unwrap();
        assert_eq!(guess.code, "nl");
        let sure = MODEL.identify(german, None).unwrap();
        assert!(sure.code == "de" && sure.confidence > 0.5 && sure.confidence <= 1.0, "{sure:?}");
    }

    #[test]
    fn codes_are_short_where_there_is_a_short_one() {
        assert_eq!(
            [short("cym"), short("cmn"), short("eng"), short("en"), short("haw")],
            ["cy", "zh", "en", "en", "haw"]
        );
        assert!(MODEL.codes().iter().all(|c| c.len() == 2 && !c.ends_with(' ')));
    }
}
