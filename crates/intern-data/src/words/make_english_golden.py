#!/usr/bin/env python3
"""Writes english_golden.jsonl: texts, their words and number of sentences by spaCy's blank English pipeline.
usage: make_english_golden.py ASSETS > english_golden.jsonl        needs: spacy
"""
import json
import random
import sys

import spacy

nlp = spacy.blank("en")
nlp.add_pipe("sentencizer")
texts = [
    "I can't won't don't, it's 5km away (about 3.1 miles).  Really?!",
    "e.g. the U.S. Dr.Smith's cat—and dog's... ate $5.00, US$10 or 20€!",
    "See http://www.example.com/a?b=c, mail me@example.org; 10.0.0.1 or 8.8.8.8:80.",
    "well-known state-of-the-art 1-2 a/b and/or C++ :-) :) x:) (:",
    "“Quoted,” he said. ‘Yes’ … no…… ok.. 20°C. 30+ 5% 100%",
    "Line one.\n\nLine  two\tthree\u00a0four\n   \n end.",
    "你好，世界。这是一个测试！Is it? Да, конечно... Это 5кг.",
    "I'mma gonna y'all'd've she'd've o'clock ma'am 'em 'tis a.m. 9a.m. 10p.m.",
    "(((nested))) [[x]] {y} <z> #tag @user *bold* _it_ ~x~ a~b a--b a---b",
    "F.B.I. N.A.S.A. i.e. vs. p.m., Mr. Mrs. Jr., St.Louis foo.Bar foo.bar foo.co",
    "3,000 a,b A,B 1:30 x=y <a> 1+1=2 2*3 4^5 6-7 8--9 10-a b-11",
]
rng = random.Random(1)
for path in ("data/corpora/c4-wiki-demo/c4_demo.jsonl",):
    lines = [json.loads(line)["text"] for line in open(f"{sys.argv[1]}/{path}", encoding="utf-8")]
    texts += [t[i : i + 400] for t in rng.sample(lines, 40) for i in [rng.randrange(max(1, len(t) - 400))]]
for text in texts:
    doc = nlp(text)
    words = [t.text.strip() for t in doc if t.text.strip()]
    print(json.dumps({"text": text, "words": words, "sentences": len(list(doc.sents))}, ensure_ascii=False))
