"""Makes simplified.txt from OpenCC's TSCharacters.txt and TSPhrases.txt (Apache-2.0, BYVoid
and others; in the PyPI package opencc-python-reimplemented 0.1.7).

  python make_simplified.py TSCharacters.txt TSPhrases.txt > simplified.txt

One line of characters, each followed by its simplified form; then a line per phrase that is
not simplified character by character.
"""
import sys

sys.stdout.reconfigure(encoding="utf-8")
read = lambda p: [l.rstrip("\n").split("\t") for l in open(p, encoding="utf-8") if "\t" in l]
characters = {a: b.split(" ")[0] for a, b in read(sys.argv[1])}
print("".join(a + b for a, b in sorted(characters.items()) if a != b and len(a) == len(b) == 1))
for a, b in sorted(read(sys.argv[2])):
    b = b.split(" ")[0]
    if "".join(characters.get(c, c) for c in a) != b:
        print(a + "\t" + b)
