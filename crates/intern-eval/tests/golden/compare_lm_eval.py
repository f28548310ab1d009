"""Runs lm-evaluation-harness on a checkpoint and compares it, document by document, with `intern eval run`.

    intern eval run TASKS_DIR --model CHECKPOINT --limit 50 --out OURS
    pip install lm_eval==0.4.13
    python compare_lm_eval.py CHECKPOINT TASKS_DIR OURS --limit 50

Log-likelihoods must agree to 1e-6 |ll| + 1e-4; decisions must be equal wherever the two best
choices are further apart than 2e-4; generated text must be equal.
"""

import argparse
import json
import os
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("tasks")
parser.add_argument("ours")
parser.add_argument("--limit", type=int)
args = parser.parse_args()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LMEVAL_DISABLE_MULTIPROC"] = os.environ["DISABLE_MULTIPROC"] = "1"

from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

ours = {}
with open(os.path.join(args.ours, "samples.jsonl"), encoding="utf-8") as f:
    for line in f:
        row = json.loads(line)
        ours[row["task"], row["doc_id"], row["filter"]] = row
with open(os.path.join(args.ours, "results.json"), encoding="utf-8") as f:
    our_results = json.load(f)["results"]

tasks = sorted({task for task, _, _ in ours})
model, tasks_dir = os.path.abspath(args.model), os.path.abspath(args.tasks)
# The command line resolves data files beside the task file too; lm-eval only from here.
os.chdir(tasks_dir)
start = time.time()
theirs = simple_evaluate(
    model="hf", model_args=f"pretrained={model},dtype=float32", device="cpu", batch_size=1, tasks=tasks,
    task_manager=TaskManager(include_path=tasks_dir, include_defaults=False), limit=args.limit, log_samples=True)
print(f"lm_eval: {time.time() - start:.1f} s")

# `transformers` keeps double spaces where SentencePiece does not: other tokens, another question.
different = lambda text: False  # noqa: E731
if os.path.exists(os.path.join(model, "tokenizer.model")):
    import sentencepiece
    from transformers import AutoTokenizer

    spm = sentencepiece.SentencePieceProcessor(os.path.join(model, "tokenizer.model"))
    hf = AutoTokenizer.from_pretrained(model)
    different = lambda text: hf.encode(text, add_special_tokens=False) != spm.encode(text)  # noqa: E731

wrong = 0
for task, samples in theirs["samples"].items():
    worst, largest, docs, decisions, texts, left_out = 0.0, 0.0, 0, 0, 0, 0
    for s in samples:
        o = ours[task, s["doc_id"], s["filter"]]
        if any(different("".join(t for t in a if isinstance(t, str))) for a in s["arguments"]):
            left_out += 1
            continue
        docs += 1
        if isinstance(s["resps"][0][0], str):
            texts += o["resps"][0][0] != s["resps"][0][0]
            continue
        def pair(r):
            return r if isinstance(r, (list, tuple)) else (r, False)
        them = [pair(r[0]) for r in s["resps"]]
        us = [pair(r[0]) for r in o["resps"]]
        for (a, greedy_a), (b, greedy_b) in zip(us, them, strict=True):
            worst = max(worst, abs(a - b) / (1e-6 * abs(b) + 1e-4))
            largest = max(largest, abs(a - b))
        top = sorted((ll for ll, _ in them), reverse=True)
        clear = len(top) < 2 or top[0] - top[1] > 2e-4
        for m in s["metrics"]:
            if m in ("acc", "acc_norm", "exact_match") and clear:
                decisions += o[m] != s[m]
    print(f"{task}: {docs} docs ({left_out} left out), worst |Δll| {largest:.1e}, {worst:.3f} of the tolerance, {decisions} decisions and {texts} texts differ")
    wrong += (worst > 1) + decisions + texts
    for key, value in theirs["results"][task].items():
        if isinstance(value, float):
            got = our_results[task][key]
            print(f"   {key:32} {got:.10g}  lm_eval {value:.10g}")
sys.exit(wrong > 0)
