"""Makes model.bin.zst, the built-in language identification.

  python make_model.py LINGUA_WHEEL UDHR_ZIP OUT [SENTENCES]

LINGUA_WHEEL: lingua_language_detector-1.3.5-py3-none-any.whl (Apache-2.0, P. M. Stahl), whose
n-gram frequencies were counted in Leipzig Wortschatz sentences (CC BY). UDHR_ZIP: nltk's
corpora/udhr2.zip (public domain), for languages that lingua has not. SENTENCES: a directory of
lingua's test sentences, to print the accuracy.

The model: of every language the letters, and the most frequent runs of two and three letters
within words, each with the logarithm of its last letter's probability given those before it,
from -6 (0) to 0 (240). Layout in the reader, mod.rs. Needs brotli and zstandard.
"""
import collections, json, math, os, re, struct, sys, zipfile

import brotli, zstandard

TOP = {1: 10**9, 2: 400, 3: 1000}
FLOOR = -6.0
SCALE = 40.0
# Too close to languages that stay: hr and sr, nb, id.
LEFT_OUT = {"bs", "nn", "ms"}
UDHR = {"jav": "jv", "nep": "ne", "uzn_latn": "uz", "tuk_latn": "tk", "aka_asante": "ak", "ydd": "yi", "amh": "am",
        "kan": "kn", "mal": "ml", "mya": "my", "khm": "km"}
# Languages with a script of their own, by its block; every letter is as likely.
BLOCKS = {"si": (0x0D80, 0x0E00), "or": (0x0B00, 0x0B80)}
WORD = re.compile(r"[^\W\d_]+")
NAMES = ["unigrams", "bigrams", "trigrams"]


def of_lingua(wheel, language):
    """n -> {n-gram: log probability of its last letter}."""
    tables = {}
    for n, name in enumerate(NAMES, 1):
        tables[n] = {}
        path = f"lingua/language-models/{language}/{name}.json.br"
        if path in wheel.namelist():
            for fraction, grams in json.loads(brotli.decompress(wheel.read(path)))["ngrams"].items():
                a, b = fraction.split("/")
                for gram in grams.split(" "):
                    tables[n][gram] = math.log(int(a) / int(b))
    return tables


def of_text(text):
    """The same, counted in a text."""
    counts = {n: collections.Counter() for n in range(1, 4)}
    for word in words(text):
        for n in counts:
            counts[n].update(word[i:i + n] for i in range(len(word) - n + 1))
    all_letters = sum(counts[1].values())
    before = lambda g: counts[len(g) - 1][g[:-1]] if len(g) > 1 else all_letters
    return {n: {g: math.log(c / before(g)) for g, c in counts[n].items()} for n in counts}


def words(text):
    return WORD.findall(text.lower())


def frequent(tables):
    """The most frequent n-grams of a language."""
    joint, chosen = {"": 0.0}, []
    for n, table in tables.items():
        joint = {g: joint[g[:-1]] + p for g, p in table.items() if g[:-1] in joint}
        chosen += sorted(joint, key=lambda g: (-joint[g], g))[:TOP[n]]
    return chosen


def main():
    wheel, udhr = zipfile.ZipFile(sys.argv[1]), zipfile.ZipFile(sys.argv[2])
    names = sorted({p.split("/")[2] for p in wheel.namelist() if p.startswith("lingua/language-models/") and p.endswith(".br")})
    languages = {l: of_lingua(wheel, l) for l in names if l not in LEFT_OUT}
    for name, code in UDHR.items():
        found = [p for p in udhr.namelist() if os.path.basename(p) == f"{name}.txt"]
        if code not in languages:
            languages[code] = of_text(udhr.read(found[0]).decode("utf-8"))
    for code, block in BLOCKS.items():
        letters = [chr(c) for c in range(*block) if chr(c).isalpha()]
        languages[code] = {1: {c: -math.log(len(letters)) for c in letters}, 2: {}, 3: {}}
    codes = sorted(languages)
    chosen = sorted({g for l in codes for g in frequent(languages[l])})
    rows = []
    for gram in chosen:
        weights = []
        for i, code in enumerate(codes):
            p = languages[code].get(len(gram), {}).get(gram)
            weight = 0 if p is None else round((p - FLOOR) * SCALE)
            if weight > 0:
                weights.append((i, weight))
        if weights:
            rows.append((gram, weights))
    out = bytearray(b"INLANG01")
    out += struct.pack("<I", len(codes)) + "".join(c.ljust(2) for c in codes).encode()
    out += struct.pack("<I", len(rows))
    for gram, _ in rows:
        out += gram.ljust(3, "\0").encode("utf-32-le")
    out += b"".join(bytes([len(w)]) for _, w in rows)
    out += bytes(i for _, w in rows for i, _ in w) + bytes(x for _, w in rows for _, x in w)
    packed = zstandard.ZstdCompressor(level=19).compress(bytes(out))
    open(sys.argv[3], "wb").write(packed)
    print(len(codes), "languages:", " ".join(codes))
    print(len(rows), "n-grams", sum(len(w) for _, w in rows), "weights", len(packed), "bytes")
    if len(sys.argv) > 4:
        check(codes, dict(rows), sys.argv[4])


def check(codes, rows, sentences):
    """Prints the share of right answers per language."""
    shares = {}
    for code in codes:
        path = os.path.join(sentences, f"{code}.txt")
        if not os.path.exists(path):
            continue
        right = n = 0
        for line in list(open(path, encoding="utf-8"))[:300]:
            scores = [0] * len(codes)
            for word in words(line):
                for k in range(1, 4):
                    for i in range(len(word) - k + 1):
                        for l, w in rows.get(word[i:i + k], ()):
                            scores[l] += w
            right += codes[max(range(len(codes)), key=scores.__getitem__)] == code
            n += 1
        shares[code] = right / n
    print("mean", sum(shares.values()) / len(shares), "of", len(shares))
    print(sorted((round(s, 3), l) for l, s in shares.items())[:16])


main()
