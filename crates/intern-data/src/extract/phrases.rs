//! Short texts that stand inside an article but are not of it, in the languages of the web:
//! pointers to other articles, credits of pictures, calls to share or subscribe.
//!
//! Only beginnings of short blocks are looked at, so that prose that mentions the same
//! words stays.

use std::sync::LazyLock;

use regex::Regex;

/// Longest block that can be a pointer, in characters.
const MAX_CHARS: usize = 140;

static POINTER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"(?i)^\W*(?:",
        // Other articles.
        r"(?:read|see) (?:also|more|next)\b|related(?: (?:articles?|posts?|stories|topics?|links?|news|content))?\s*:?$|",
        r"more (?:on|from|about) [^.]{0,40}$|you (?:may|might) also (?:like|be interested)|recommended (?:for you|reading)|",
        r"lesen sie (?:auch|hier|mehr)|auch interessant|mehr zum thema|weiterlesen|das könnte (?:sie|dich|dir|ihnen)|",
        r"weitere (?:artikel|informationen|beiträge|meldungen|infos|themen)\b[^.]{0,40}$|empfohlene (?:artikel|beiträge)|",
        r"(?:à )?lire (?:aussi|également|la suite)|sur le même sujet|voir aussi|",
        r"(?:lea|vea|lee|mira) también|te puede interesar|le puede interesar|más información|noticias relacionadas|",
        r"leia (?:também|mais)|veja (?:também|mais)|leggi anche|potrebbe interessarti|",
        r"czytaj (?:też|także|więcej|również)|zobacz (?:też|także|również)|przeczytaj (?:też|także)|",
        r"lees (?:ook|meer|verder)|les også|läs (?:också|även|mer)|læs også|lue myös|",
        r"читайте? (?:также|далее)|смотрите также|по теме\s*:|читайте також|",
        r"相关(?:阅读|文章|新闻|链接|推荐)|延伸阅读|推荐阅读|更多(?:内容|新闻|精彩)|関連記事|あわせて読みたい|관련 ?기사|",
        // Credits.
        r"(?:photos?|photo credit|image(?: credit)?|picture|foto(?:s)?|bild(?:er)?|grafik|illustration|crédit photo)\s*(?:by\b|:|©|\()|",
        r"©|\(c\) ?\d{4}|copyright\b|all rights reserved|alle rechte vorbehalten|tous droits réservés|todos los derechos reservados|版权所有|",
        // Sharing and subscribing.
        r"share (?:this|on|via|with)\b|(?:artikel|beitrag|seite) (?:teilen|drucken|empfehlen)|teilen(?: sie)?(?: auf| via| mit)?\s*:?$|",
        r"partager (?:sur|cet)|compart(?:ir|e) (?:en|esto|este)|condividi|udostępnij|поделиться|分享到|",
        r"(?:subscribe|sign up|register) (?:to|for|now|here|today)\b|jetzt (?:abonnieren|anmelden|registrieren)|",
        r"abonn(?:ieren sie|ez-vous)|suscríbete|hazte miembro|newsletter\b|follow us\b|folgen sie uns|",
        r"leave a (?:comment|reply)|(?:no|\d+) comments?$|kommentar(?:e)?(?: schreiben| hinterlassen| verfassen)?\s*:?$|",
        r"(?:filed|posted) (?:under|in)\b|tags?\s*:|schlagw(?:o|ö)rt(?:er|e)?\s*:|kategorien?\s*:|标签[:：]|",
        r"(?:zum|nach) (?:seitenanfang|oben)$|back to top$|skip to (?:content|main)|advertisement$|anzeige$|werbung$|publicité$|publicidad$",
        r")",
    ))
    .expect("a valid pattern")
});

/// Whether a block of this text points away from the article.
#[must_use]
pub fn is_pointer(text: &str) -> bool {
    // Bytes bound characters, which spares counting long blocks.
    text.len() <= 4 * MAX_CHARS && text.chars().count() <= MAX_CHARS && POINTER.is_match(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_known_in_many_languages() {
        for text in [
            "Lesen Sie auch: Das neue Buch",
            "» Read more",
            "Foto: Jemand",
            "Czytaj też",
            "相关阅读：旧文",
            "VEA TAMBIÉN: Otra noticia",
            "Share this article",
        ] {
            assert!(is_pointer(text), "{text}");
        }
        for text in [
            "Photos were taken of the bridge.",
            "Lesen Sie das Buch.",
            "We share a home.",
            "Tag eins begann.",
        ] {
            assert!(!is_pointer(text), "{text}");
        }
    }
}
