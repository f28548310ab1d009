"""Writes lm_eval_stories260K.json: lm-evaluation-harness's log-likelihoods of tasks/*.yaml under a real small model.

    intern train convert ASSETS/models/stories260K/checkpoint_v1.bin --tokenizer ASSETS/models/stories260K/tok512.model \\
        --to llama --out CHECKPOINT
    pip install lm_eval==0.4.13 && python make_lm_eval_model.py CHECKPOINT

tests/lm_eval.rs (at the workspace's root) holds ours against it. Documents that `transformers` cuts into other tokens
than SentencePiece does (it keeps double spaces) are null.
"""

import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
model = os.path.abspath(sys.argv[1])
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LMEVAL_DISABLE_MULTIPROC"] = os.environ["DISABLE_MULTIPROC"] = "1"
os.chdir(os.path.join(HERE, "tasks"))

import sentencepiece  # noqa: E402
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

NAMES = ["animals_letters", "animals_random", "endings", "facts", "pages", "pronouns"]
found = simple_evaluate(
    model="hf", model_args=f"pretrained={model},dtype=float32", device="cpu", batch_size=1, tasks=NAMES,
    task_manager=TaskManager(include_path=".", include_defaults=False), log_samples=True, bootstrap_iters=0)


spm = sentencepiece.SentencePieceProcessor(os.path.join(model, "tokenizer.model"))
hf = AutoTokenizer.from_pretrained(model)


def numbers(response):
    return response if isinstance(response, (list, tuple)) else [response, None]


def row_of(row):
    texts = ["".join(a for a in arguments if isinstance(a, str)) for arguments in row["arguments"]]
    if any(hf.encode(t, add_special_tokens=False) != spm.encode(t) for t in texts):
        return None
    return [numbers(r[0]) for r in row["resps"]]


golden = {
    "samples": {task: [row_of(row) for row in sorted(rows, key=lambda r: r["doc_id"])]
                for task, rows in found["samples"].items()},
}
with open(os.path.join(HERE, "lm_eval_stories260K.json"), "w", encoding="utf-8") as f:
    json.dump(golden, f, separators=(",", ":"))
    f.write("\n")
