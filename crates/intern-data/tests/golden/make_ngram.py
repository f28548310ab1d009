"""Makes ngram.arpa and ngram.json: a small trigram model and KenLM's own scores of sentences.

  python make_ngram.py        needs: kenlm

The model's probabilities are counts of the sentences below with absolute discounting; what
matters is only that KenLM reads it.
"""
import collections, json, math
from pathlib import Path

import kenlm

TEXT = """the cat sat on the mat
the dog sat on the log
a cat and a dog ran to the mat
the cat ran to the dog and sat
on the mat a dog sat
猫 坐 在 垫子 上
狗 坐 在 木头 上""".splitlines()
SCORED = TEXT[:2] + ["the", "the cat", "cat the", "a bird sat on the mat", "mat mat mat", "猫 坐 在 木头 上", "the cat sat on the mat and ran", ""]
DISCOUNT = 0.4

counts = [collections.Counter() for _ in range(3)]
for line in TEXT:
    words = ["<s>", *line.split(), "</s>"]
    for n in range(3):
        counts[n].update(tuple(words[i:i + n + 1]) for i in range(len(words) - n))
total = sum(c for g, c in counts[0].items() if g != ("<s>",))
after = [collections.defaultdict(list) for _ in range(3)]
for n in (1, 2):
    for gram, c in counts[n].items():
        after[n][gram[:-1]].append(c)


def probability(gram):
    n = len(gram) - 1
    if n == 0:
        return (counts[0][gram] - DISCOUNT) / total
    all_after = sum(after[n][gram[:-1]])
    return (counts[n][gram] - DISCOUNT) / all_after


here = Path(__file__).parent
with open(here / "ngram.arpa", "w", encoding="utf-8") as out:
    print("\\data\\", file=out)
    for n in range(3):
        print(f"ngram {n + 1}={len(counts[n]) + (n == 0)}", file=out)
    for n in range(3):
        print(f"\n\\{n + 1}-grams:", file=out)
        if n == 0:
            print("-2.5\t<unk>", file=out)
        for gram in sorted(counts[n]):
            p = -99 if gram == ("<s>",) else math.log10(probability(gram))
            line = f"{p:.6f}\t{' '.join(gram)}"
            if n < 2 and gram in after[n + 1]:
                kept = after[n + 1][gram]
                line += f"\t{math.log10(DISCOUNT * len(kept) / sum(kept)):.6f}"
            print(line, file=out)
    print("\n\\end\\", file=out)

model = kenlm.Model(str(here / "ngram.arpa"))
scores = [{"text": t, "log10": model.score(t, bos=True, eos=True)} for t in SCORED]
(here / "ngram.json").write_text(json.dumps(scores, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
