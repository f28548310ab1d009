//! Word problems: wording templates in two languages, filled with names, things
//! and numbers, each with its expression and answer.

use intern_kernels::rng::Rng;

/// The languages lessons are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// English.
    English,
    /// Chinese, simplified.
    Chinese,
}

impl Language {
    /// Every language, in the order they alternate.
    pub const ALL: [Self; 2] = [Self::English, Self::Chinese];

    /// ISO 639-1 code.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::English => "en",
            Self::Chinese => "zh",
        }
    }
}

/// A word problem with its solution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Language of the wording.
    pub language: Language,
    /// `add`, `sub`, `mul`, `div`, or two of them: `add-sub`, `mul-sub`, `mul-add`.
    pub kind: &'static str,
    /// The question.
    pub question: String,
    /// What to compute, e.g. `37 + 12`.
    pub expression: String,
    /// Its value.
    pub answer: u64,
    /// The full sentence that answers the question.
    pub sentence: String,
}

impl Problem {
    /// A problem in `language` with random wording and numbers.
    pub fn random(language: Language, rng: &mut Rng) -> Self {
        let templates = match language {
            Language::English => ENGLISH,
            Language::Chinese => CHINESE,
        };
        Self::fill(language, rng.pick(templates), rng)
    }

    /// Identifies the problem for the held-out split: its kind and numbers.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}:{}", self.language.code(), self.expression)
    }

    fn fill(language: Language, template: &Template, rng: &mut Rng) -> Self {
        let (a, b, c, expression, answer) = numbers(template.kind, rng);
        let (names, things) = match language {
            Language::English => (ENGLISH_NAMES, ENGLISH_THINGS),
            Language::Chinese => (CHINESE_NAMES, CHINESE_THINGS),
        };
        let name = *rng.pick(names);
        let other = loop {
            let other = *rng.pick(names);
            if other != name {
                break other;
            }
        };
        let thing = *rng.pick(things);
        let write = |text: &str| {
            text.replace("{n}", name)
                .replace("{m}", other)
                .replace("{t}", thing)
                .replace("{a}", &a.to_string())
                .replace("{b}", &b.to_string())
                .replace("{c}", &c.to_string())
                .replace("{r}", &answer.to_string())
        };
        Self {
            language,
            kind: template.kind,
            question: write(template.question),
            expression,
            answer,
            sentence: write(template.answer),
        }
    }
}

/// Draws the numbers of a problem: `a, b, c`, its expression and its value.
fn numbers(kind: &str, rng: &mut Rng) -> (u64, u64, u64, String, u64) {
    match kind {
        "add" => {
            let (a, b) = (rng.range(12, 999), rng.range(12, 999));
            (a, b, 0, format!("{a} + {b}"), a + b)
        }
        "sub" => {
            let b = rng.range(11, 899);
            let a = b + rng.range(11, 999 - b);
            (a, b, 0, format!("{a} - {b}"), a - b)
        }
        "mul" => {
            let (a, b) = (rng.range(12, 99), rng.range(3, 49));
            (a, b, 0, format!("{a} * {b}"), a * b)
        }
        "div" => {
            let (b, r) = (rng.range(3, 25), rng.range(4, 60));
            (b * r, b, 0, format!("{} / {b}", b * r), r)
        }
        "add-sub" => {
            let (a, b) = (rng.range(30, 500), rng.range(12, 400));
            let c = rng.range(11, a + b - 11);
            (a, b, c, format!("{a} + {b} - {c}"), a + b - c)
        }
        "mul-sub" => {
            let (a, b) = (rng.range(5, 60), rng.range(5, 30));
            let c = rng.range(3, a * b - 3);
            (a, b, c, format!("{a} * {b} - {c}"), a * b - c)
        }
        "mul-add" => {
            let (a, b, c) = (rng.range(12, 400), rng.range(3, 30), rng.range(5, 40));
            (a, b, c, format!("{a} + {b} * {c}"), a + b * c)
        }
        other => unreachable!("no such kind of problem: {other}"),
    }
}

/// One wording. `{n}`, `{m}` are names, `{t}` a thing, `{a}`, `{b}`, `{c}` numbers, `{r}` the result.
struct Template {
    kind: &'static str,
    question: &'static str,
    answer: &'static str,
}

const fn t(kind: &'static str, question: &'static str, answer: &'static str) -> Template {
    Template { kind, question, answer }
}

const ENGLISH_NAMES: &[&str] = &[
    "Tom", "Anna", "Ben", "Maria", "Omar", "Lucy", "Sam", "Nina", "Paul", "Julia", "Leo", "Rosa", "Jack",
    "Emma", "David", "Sofia",
];

const ENGLISH_THINGS: &[&str] = &[
    "apples", "books", "stamps", "marbles", "pencils", "stickers", "oranges", "shells", "cards", "coins",
    "tickets", "buttons", "flowers", "stones", "cookies", "balls",
];

const CHINESE_NAMES: &[&str] = &[
    "小明", "小红", "小华", "小丽", "小刚", "小芳", "小军", "小梅", "李雷", "王芳", "张伟", "刘洋", "陈静",
    "赵敏",
];

const CHINESE_THINGS: &[&str] = &[
    "个苹果",
    "本书",
    "张邮票",
    "颗弹珠",
    "支铅笔",
    "张贴纸",
    "个橙子",
    "个贝壳",
    "张卡片",
    "枚硬币",
    "朵花",
    "块石头",
    "块饼干",
    "个气球",
];

const ENGLISH: &[Template] = &[
    t("add", "{n} has {a} {t}. {n} buys {b} more. How many {t} does {n} have now?", "{n} has {r} {t} now."),
    t(
        "add",
        "There are {a} {t} in one box and {b} {t} in another box. How many {t} are there altogether?",
        "There are {r} {t} altogether.",
    ),
    t(
        "add",
        "{n} read {a} pages on Monday and {b} pages on Tuesday. How many pages did {n} read in total?",
        "{n} read {r} pages in total.",
    ),
    t(
        "add",
        "A shop sold {a} {t} in the morning and {b} in the afternoon. How many {t} did it sell that day?",
        "The shop sold {r} {t} that day.",
    ),
    t(
        "add",
        "{n} has {a} {t} and {m} has {b}. How many {t} do they have together?",
        "Together they have {r} {t}.",
    ),
    t(
        "sub",
        "{n} had {a} {t} and gave {b} of them to {m}. How many {t} does {n} have left?",
        "{n} has {r} {t} left.",
    ),
    t("sub", "There were {a} {t} in a shop. {b} of them were sold. How many {t} remain?", "{r} {t} remain."),
    t("sub", "{n} needs {a} {t} and has {b}. How many more {t} does {n} need?", "{n} needs {r} more {t}."),
    t(
        "sub",
        "A book has {a} pages. {n} has read {b} pages. How many pages are left to read?",
        "There are {r} pages left to read.",
    ),
    t("sub", "{n} has {a} {t}. {m} has {b} {t} fewer. How many {t} does {m} have?", "{m} has {r} {t}."),
    t(
        "mul",
        "There are {a} boxes with {b} {t} in each box. How many {t} are there in all?",
        "There are {r} {t} in all.",
    ),
    t(
        "mul",
        "{n} saves {a} coins every day for {b} days. How many coins does {n} save?",
        "{n} saves {r} coins.",
    ),
    t("mul", "One ticket costs {a} dollars. How much do {b} tickets cost?", "The tickets cost {r} dollars."),
    t(
        "mul",
        "A garden has {a} rows of {b} flowers. How many flowers does it have?",
        "The garden has {r} flowers.",
    ),
    t(
        "div",
        "{a} {t} are shared equally among {b} children. How many {t} does each child get?",
        "Each child gets {r} {t}.",
    ),
    t(
        "div",
        "{n} packs {a} {t} into {b} equal bags. How many {t} are in each bag?",
        "There are {r} {t} in each bag.",
    ),
    t(
        "div",
        "A road of {a} metres is built in {b} equal days of work. How many metres are built each day?",
        "{r} metres are built each day.",
    ),
    t(
        "add-sub",
        "{n} has {a} {t}, finds {b} more and gives {c} to {m}. How many {t} does {n} have now?",
        "{n} has {r} {t} now.",
    ),
    t(
        "add-sub",
        "A bus carries {a} people. {b} people get on and {c} get off. How many people are on the bus?",
        "There are {r} people on the bus.",
    ),
    t(
        "mul-sub",
        "{n} buys {a} bags of {b} {t} each and loses {c} of them. How many {t} are left?",
        "{r} {t} are left.",
    ),
    t(
        "mul-add",
        "{n} has {a} {t} and gets {b} boxes with {c} {t} each. How many {t} does {n} have then?",
        "{n} has {r} {t} then.",
    ),
];

const CHINESE: &[Template] = &[
    t("add", "{n}有{a}{t}，又买了{b}{t}。{n}现在一共有多少？", "{n}现在一共有{r}{t}。"),
    t("add", "第一个盒子里有{a}{t}，第二个盒子里有{b}{t}。两个盒子一共有多少？", "两个盒子一共有{r}{t}。"),
    t("add", "{n}星期一读了{a}页书，星期二读了{b}页书。{n}一共读了多少页？", "{n}一共读了{r}页。"),
    t("add", "商店上午卖出{a}{t}，下午卖出{b}{t}。这一天一共卖出多少？", "这一天一共卖出{r}{t}。"),
    t("sub", "{n}有{a}{t}，送给{m}{b}{t}。{n}还剩多少？", "{n}还剩{r}{t}。"),
    t("sub", "商店里有{a}{t}，卖掉了{b}{t}。还剩多少？", "还剩{r}{t}。"),
    t("sub", "一本书有{a}页，{n}已经读了{b}页。还有多少页没有读？", "还有{r}页没有读。"),
    t("sub", "{n}需要{a}{t}，已经有{b}{t}。{n}还需要多少？", "{n}还需要{r}{t}。"),
    t("mul", "有{a}个盒子，每个盒子里有{b}{t}。一共有多少？", "一共有{r}{t}。"),
    t("mul", "{n}每天存{a}元钱，存了{b}天。{n}一共存了多少元？", "{n}一共存了{r}元。"),
    t("mul", "一张票{a}元，买{b}张票要多少元？", "一共要{r}元。"),
    t("div", "把{a}{t}平均分给{b}个小朋友，每个小朋友分到多少？", "每个小朋友分到{r}{t}。"),
    t("div", "{n}把{a}{t}平均装进{b}个袋子，每个袋子装多少？", "每个袋子装{r}{t}。"),
    t("add-sub", "{n}有{a}{t}，又得到{b}{t}，然后送给{m}{c}{t}。{n}现在有多少？", "{n}现在有{r}{t}。"),
    t("add-sub", "公共汽车上有{a}人，上来{b}人，下去{c}人。现在车上有多少人？", "现在车上有{r}人。"),
    t("mul-sub", "{n}买了{a}袋，每袋{b}{t}，丢了{c}{t}。还剩多少？", "还剩{r}{t}。"),
    t("mul-add", "{n}有{a}{t}，又买了{b}盒，每盒{c}{t}。{n}现在一共有多少？", "{n}现在一共有{r}{t}。"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_fills_all_its_slots() {
        let mut rng = Rng::new(3, 0);
        for (language, templates) in [(Language::English, ENGLISH), (Language::Chinese, CHINESE)] {
            for template in templates {
                let p = Problem::fill(language, template, &mut rng);
                assert!(!p.question.contains('{') && !p.sentence.contains('{'), "{p:?}");
                assert!(p.sentence.contains(&p.answer.to_string()), "{p:?}");
                // Every number of the expression stands in the question.
                for number in p.expression.split(' ').filter(|s| s.parse::<u64>().is_ok()) {
                    assert!(p.question.contains(number), "{p:?}");
                }
            }
        }
    }
}
