#!/usr/bin/env python3
"""Writes tables.txt: what English tokenization must know to split like spaCy's `en` rules (MIT licence,
explosion.ai), and the character classes of datatrove's filters (Apache-2.0, Hugging Face).
usage: make_tables.py > tables.txt        needs: spacy datatrove

Lines: `class NAME ranges…` (hexadecimal code points), `rule STRING pieces…` (tab-separated, JSON-escaped).
"""
import json
import re
import sys
import unicodedata

import spacy
from datatrove.utils.text import PUNCTUATION, PUNCTUATION_SET, TERMINAL_PUNCTUATION
from spacy.lang import char_classes as c
from spacy.pipeline import Sentencizer


def ranges(test):
    out, start = [], None
    for x in range(0x110001):
        hit = x < 0x110000 and not 0xD800 <= x < 0xE000 and test(chr(x))
        if hit and start is None:
            start = x
        if not hit and start is not None:
            out.append(f"{start:x}" if start == x - 1 else f"{start:x}-{x - 1:x}")
            start = None
    return " ".join(out)


def one_of(char_class):
    return re.compile(f"[{char_class}]").match


single = {p.replace("\\", "") for p in c.LIST_PUNCT + c.LIST_QUOTES if len(p.replace("\\", "")) == 1}
classes = {
    "letter": lambda x: unicodedata.category(x)[0] == "L",
    "punct_category": lambda x: unicodedata.category(x)[0] == "P",
    "mark": lambda x: unicodedata.category(x) == "Mn",
    "digit": lambda x: unicodedata.category(x) == "Nd",
    "simplified": lambda x: x in PUNCTUATION,
    "symbol": lambda x: x in PUNCTUATION_SET,
    "terminal": lambda x: x in TERMINAL_PUNCTUATION,
    "sentence_end": lambda x: x in Sentencizer.default_punct_chars,
    "alpha": one_of(c.ALPHA),
    "lower": one_of(c.ALPHA_LOWER),
    "upper": one_of(c.ALPHA_UPPER),
    "icon": one_of(c.ICONS),
    "edge": lambda x: x in single,
    "quote": one_of(c.CONCAT_QUOTES),
    "before_period": one_of(r"0-9" + c.ALPHA_LOWER + r"%²\-\+" + c.PUNCT + "(?:" + c.CONCAT_QUOTES + ")"),
}
for name, test in classes.items():
    print("class", name, ranges(test), sep="\t")
print("list", "currency", *[p.replace("\\", "") for p in c.LIST_CURRENCY], sep="\t")
print("list", "unit", *c.UNITS.split("|"), sep="\t")
for string, rule in sorted(spacy.blank("en").tokenizer.rules.items()):
    pieces = [next(iter(token.values())) for token in rule]
    print("rule", *[json.dumps(p, ensure_ascii=False)[1:-1] for p in [string, *pieces]], sep="\t")
