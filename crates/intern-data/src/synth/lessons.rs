//! The text of lessons: worked problems and short explanations.

use std::collections::HashSet;

use intern_kernels::rng::Rng;

use super::problems::Language;
use super::training_problem;

/// A page's worth of lessons: its title, then one paragraph per lesson.
pub fn document(
    language: Language,
    n: usize,
    taken: &HashSet<String>,
    rng: &mut Rng,
) -> (String, Vec<String>) {
    let title = match language {
        Language::English => format!("{}: lesson {}", rng.pick(ENGLISH_TITLES), rng.range(1, 400)),
        Language::Chinese => format!("{}：第{}课", rng.pick(CHINESE_TITLES), rng.range(1, 400)),
    };
    let paragraphs = (0..n).map(|_| lesson(language, taken, rng)).collect();
    (title, paragraphs)
}

const ENGLISH_TITLES: &[&str] = &[
    "Word problems",
    "Arithmetic for everyone",
    "Numbers in daily life",
    "Practice with numbers",
    "Solving step by step",
];
const CHINESE_TITLES: &[&str] = &["应用题", "生活中的数学", "数字练习", "一步一步解题", "小学算术"];

fn lesson(language: Language, taken: &HashSet<String>, rng: &mut Rng) -> String {
    match rng.below(10) {
        0..7 => worked(language, taken, rng),
        7 => digits(language, rng),
        8 => compare(language, rng),
        _ => explanation(language, rng),
    }
}

/// A question, what to compute, and the answer's sentence.
fn worked(language: Language, taken: &HashSet<String>, rng: &mut Rng) -> String {
    let p = training_problem(language, taken, rng);
    match language {
        Language::English => format!(
            "Question: {}\nAnswer: We compute {} = {}. {}",
            p.question, p.expression, p.answer, p.sentence
        ),
        Language::Chinese => {
            format!("问题：{}\n回答：我们计算 {} = {}。{}", p.question, p.expression, p.answer, p.sentence)
        }
    }
}

fn digits(language: Language, rng: &mut Rng) -> String {
    let n = rng.range(100, 9999);
    let spelled: Vec<String> = n.to_string().chars().map(String::from).collect();
    match language {
        Language::English => format!(
            "The number {n} has {} digits: {}. After {n} comes {}, and before it stands {}.",
            spelled.len(),
            spelled.join(", "),
            n + 1,
            n - 1
        ),
        Language::Chinese => format!(
            "数字{n}有{}位：{}。{n}后面是{}，前面是{}。",
            spelled.len(),
            spelled.join("、"),
            n + 1,
            n - 1
        ),
    }
}

fn compare(language: Language, rng: &mut Rng) -> String {
    let a = rng.range(10, 999);
    let b = a + rng.range(1, 500);
    match language {
        Language::English => {
            format!("{a} is less than {b}, and {b} is greater than {a}. We write {a} < {b} and {b} > {a}.")
        }
        Language::Chinese => format!("{a}比{b}小，{b}比{a}大。我们写作 {a} < {b}，{b} > {a}。"),
    }
}

fn explanation(language: Language, rng: &mut Rng) -> String {
    let (a, b) = (rng.range(2, 99), rng.range(2, 99));
    match (language, rng.below(4)) {
        (Language::English, 0) => format!(
            "To find how many there are together, we add. The sum of {a} and {b} is written {a} + {b} and equals {}.",
            a + b
        ),
        (Language::English, 1) => format!(
            "To find what is left, we subtract. If {b} is taken from {}, we write {} - {b} and {a} is left.",
            a + b,
            a + b
        ),
        (Language::English, 2) => format!(
            "Equal groups are multiplied. {a} groups of {b} are written {a} * {b} and make {}.",
            a * b
        ),
        (Language::English, _) => format!(
            "Sharing equally is division. {} shared among {b} is written {} / {b} and gives {a} each.",
            a * b,
            a * b
        ),
        (Language::Chinese, 0) => format!("求一共有多少用加法。{a}与{b}的和写作 {a} + {b}，等于{}。", a + b),
        (Language::Chinese, 1) => {
            format!("求还剩多少用减法。从{}里拿走{b}，写作 {} - {b}，还剩{a}。", a + b, a + b)
        }
        (Language::Chinese, 2) => {
            format!("每份一样多时用乘法。{a}份，每份{b}，写作 {a} * {b}，一共{}。", a * b)
        }
        (Language::Chinese, _) => {
            format!("平均分用除法。把{}平均分成{b}份，写作 {} / {b}，每份{a}。", a * b, a * b)
        }
    }
}
