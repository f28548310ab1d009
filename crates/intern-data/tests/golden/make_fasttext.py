#!/usr/bin/env python3
"""Writes fasttext/*.bin, *.ftz and fasttext/predictions.json: tiny classifiers of the reference fastText with
each loss, and what it predicts.
usage: make_fasttext.py        needs: fasttext-wheel numpy<2 or fasttext-numpy2-wheel
"""
import json
import tempfile
from pathlib import Path

import fasttext

here = Path(__file__).parent / "fasttext"
here.mkdir(exist_ok=True)
english = "the cat sat on the mat|a dog and a cat are here|we have seen the river and the bridge|it is what it is".split("|")
german = "die Katze sitzt auf der Matte|ein Hund und eine Katze sind hier|wir haben den Fluss und die Brücke gesehen".split("|")
chinese = "猫 坐 在 垫子 上|我们 看见 了 河 和 桥|这 是 一 只 狗".split("|")
train = [f"__label__{label} {line}" for label, lines in (("en", english), ("de", german), ("zh", chinese)) for line in lines]
texts = ["the dog and the bridge", "der Hund und die Brücke", "一 只 猫", "cat Katze 猫", "unknownword", "a", "Fluss  river\t河"]
with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False, encoding="utf-8") as f:
    f.write("\n".join(train * 20) + "\n")
result = {"texts": texts, "models": {}}
for loss in ("softmax", "hs", "ova"):
    for attempt in range(200):  # this wheel starts from uninitialized memory now and then and meets NaN
        try:
            model = fasttext.train_supervised(f.name, dim=4, epoch=5, lr=0.1, minn=2, maxn=3, bucket=2000,
                                              wordNgrams=2, loss=loss, thread=1, verbose=0)
            break
        except RuntimeError:
            continue
    model.save_model(str(here / f"{loss}.bin"))
    if loss == "softmax":
        model.quantize(input=f.name, retrain=False, dsub=2)
        model.save_model(str(here / "softmax.ftz"))
    for name in [f"{loss}.bin"] + (["softmax.ftz"] if loss == "softmax" else []):
        loaded = fasttext.load_model(str(here / name))
        result["models"][name] = [
            {label.removeprefix("__label__"): float(p) for p, label in loaded.f.predict(t + "\n", 3, 0.0, "strict")}
            for t in texts]
json.dump(result, open(here / "predictions.json", "w"), ensure_ascii=False, indent=1)
