#!/usr/bin/env python3
"""lm-evaluation-harness' local-completions against a server, and the same model's logits in process:
log-likelihoods must agree to 1e-4, and so must whether each continuation is the greedy one.

usage: lm_eval_scores.py MODEL INTERN_BINARY     needs: lm_eval safetensors torch
"""
import json
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from safetensors.torch import load_file

model, binary = sys.argv[1:3]
server = subprocess.Popen([binary, "serve", "api", model, "--port", "0", "--threads", "1"], stdout=subprocess.PIPE, text=True)
url = server.stdout.readline().split(" at ")[1].split("/v1")[0]
threading.Thread(target=server.stdout.read, daemon=True).start()
lm = LocalCompletionsAPI(model=Path(model).stem, base_url=url + "/v1/completions", tokenizer_backend="auto", batch_size=4, num_concurrent=1)
print("tokenizer:", type(lm.tokenizer).__name__)
pairs = [("What is 2 + 3?", " 5"), ("What is 2 + 3?", " 6"), ("", "The sum"), ("one two three ", "four"), ("Naïve 数字", " und mehr"),
         ("a b", " c d e f g h i j k"), ("2 + 2 =", " 4, and 3 + 3 = 6"), ("x", "y")]
requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
there = lm.loglikelihood(requests)
encode = lambda text: lm.tok_encode(text, add_special_tokens=False) if text else []
worst, faults = 0.0, 0
for (context, continuation), (score, greedy) in zip(pairs, there):
    if context:
        ctx, cont = lm._encode_pair(context, continuation)
    else:
        ctx, cont = [lm.prefix_token_id], encode(continuation)
    with tempfile.TemporaryDirectory() as d:
        out = Path(d) / "logits.safetensors"
        subprocess.run([binary, "serve", "logits", model, "--threads", "1", "--tokens", ",".join(map(str, ctx + cont)), "--out", out],
                       check=True, stdout=subprocess.DEVNULL)
        logits = load_file(out)["logits"].double()
    rows = logits.log_softmax(-1)[len(ctx) - 1:-1]
    target = torch.tensor(cont)
    here = rows[torch.arange(len(cont)), target].sum().item()
    same = bool((rows.argmax(-1) == target).all()) == bool(greedy)
    worst = max(worst, abs(here - score))
    faults += not (same and abs(here - score) <= 1e-4)
    print(f"{score:12.5f} {here:12.5f} {greedy!s:5} {context!r} → {continuation!r}")
server.terminate()
print(f"{len(pairs)} pairs, largest difference {worst:.1e}" + (f", {faults} DIFFER" if faults else ""))
sys.exit(bool(faults))
