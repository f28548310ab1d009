"""Writes tasks/*.jsonl|csv and lm_eval.json: what lm-evaluation-harness makes of tasks/*.yaml.

    pip install lm_eval==0.4.13 && python make_lm_eval.py

The model is a hash: its numbers mean nothing, and any implementation that builds the same
prompts gets the same ones. tests/lm_eval.rs holds its twin.
"""

import csv
import json
import os
import random
import re
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
TASKS = os.path.join(HERE, "tasks")
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LMEVAL_DISABLE_MULTIPROC"] = "1"
os.environ["DISABLE_MULTIPROC"] = "1"
os.chdir(TASKS)


def write(name, rows):
    with open(name, "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")


def make_data():
    rng = random.Random(7)
    animals = ["cat", "dog", "owl", "crow", "bee", "猫头鹰", "d'Artagnan's horse", "naïve “eel”"]

    def choice(i):
        options = rng.sample(animals, 4)
        gold = rng.randrange(4)
        return {"id": i, "question": f"Which animal is number {i}?", "choices": options, "gold": gold,
                "answer": "ABCD"[gold], "nested": {"text": options, "label": list("ABCD")}}

    write("animals.train.jsonl", [choice(100 + i) for i in range(30)])
    write("animals.test.jsonl", [choice(i) for i in range(12)])
    # The same question twice, so that a drawn example may equal the question.
    twice = [choice(i) for i in range(9)]
    write("twice.jsonl", twice + twice[:4])
    write("pronouns.jsonl", [
        {"options": [f"Ann met Bea because Ann", f"Ann met Bea because Bea"], "rest": f"had {i} apples.", "gold": i % 2}
        for i in range(10)])
    write("sums.train.jsonl", [
        {"question": f"What is {a} plus {b}?", "answer": f"{a} + {b} = {a + b}.\n#### {a + b}"}
        for a, b in [(1, 2), (3, 4), (5, 6), (7, 1), (2, 2)]])
    write("sums.test.jsonl", [
        {"question": f"What is {a} plus {b}?", "answer": f"{a} + {b} = {a + b}.\n#### {a + b}"}
        for a, b in [(rng.randrange(3), rng.randrange(3)) for _ in range(14)]])
    write("capitals.jsonl", [
        {"q": f"capital {i}", "names": [f"The City {i % 4}!", f"town {i}"], "hint": "A:"} for i in range(10)])
    write("endings.jsonl", [{"context": f"Once upon a {w},", "ending": e} for w, e in
                            [("time", "there"), ("hill", "a"), ("moon", "it"), ("一天", "有"), ("day", "we")]])
    write("pages.jsonl", [{"page": p} for p in
                          ["One two  three.\n", " leading", "中文 没有 空格", "a", "tabs\tand\u3000wide\nspaces  "]])
    with open("facts.csv", "w", newline="", encoding="utf-8") as f:
        out = csv.writer(f)
        out.writerow(["passage", "claim", "label", "number"])
        for i in range(9):
            out.writerow([f"Passage {i}, with a comma", f"claim {i}", i % 3 == 0, i])


def fnv(text):
    h = 0xCBF29CE484222325
    for b in text.encode("utf-8"):
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def make_golden():
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Hash(LM):
        def loglikelihood(self, requests, disable_tqdm=False):
            hs = [fnv(r.args[0] + "\0" + r.args[1]) for r in requests]
            return [(-((h >> 8) % 100_000) / 4000.0, (h >> 32) % 4 == 0) for h in hs]

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            return [-((fnv(r.args[0]) >> 8) % 100_000) / 1000.0 for r in requests]

        def generate_until(self, requests, disable_tqdm=False):
            out = []
            for r in requests:
                context, kwargs = r.args
                n = (fnv(context) >> 20) % 6
                text = f"City {n % 4}, {n} so The answer is {n}.\n#### {n}\nQuestion: more"
                for stop in kwargs["until"]:
                    text = text.split(stop)[0]
                out.append(text)
            return out

    names = sorted(re.search(r"^(?:task|group): (\w+)", open(f).read(), re.M).group(1)
                   for f in os.listdir(".") if f.endswith(".yaml") and not f.startswith("_"))
    # Members of the group come with it.
    names = [n for n in names if n not in ("animals_member", "pronouns")]
    found = simple_evaluate(model=Hash(), tasks=names, task_manager=TaskManager(include_path=TASKS, include_defaults=False),
                            bootstrap_iters=3000, log_samples=True)
    samples = {}
    for task, rows in found["samples"].items():
        samples[task] = [{
            "doc_id": row["doc_id"], "filter": row["filter"], "target": row["target"],
            "arguments": [list(a) for a in row["arguments"]],
            "filtered_resps": row["filtered_resps"],
            **{m: row[m] for m in row["metrics"]},
        } for row in rows]
    keep = ["results", "groups", "n-shot", "higher_is_better", "n-samples", "versions"]
    golden = {"versions_of": {"lm_eval": "0.4.13", "python": sys.version.split()[0]},
              **{k: found[k] for k in keep}, "samples": samples}
    with open(os.path.join(HERE, "lm_eval.json"), "w", encoding="utf-8") as f:
        json.dump(golden, f, ensure_ascii=False, separators=(",", ":"), default=lambda o: o.item())
        f.write("\n")


make_data()
make_golden()
