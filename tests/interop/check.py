#!/usr/bin/env python3
"""The tools that own our formats read what a finished quickstart wrote, and say the same.

usage: check.py RUN_DIR INTERN_BINARY     needs: torch transformers peft xllamacpp safetensors

Checks, each by greedy continuation of a few prompts and by logits:
  transformers  the tuned checkpoint, converted to Llama layout
  peft          the LoRA adapter over the converted base
  llama.cpp     the GGUF files
Prints one line per check and exits with 1 if any differs.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

run, binary = Path(sys.argv[1]), sys.argv[2]
PROMPTS = [
    "Question: Tom has 37 apples. Tom buys 12 more. How many apples does Tom have now?\nAnswer:",
    "问题：一张票25元，买4张票要多少元？\n回答：",
    "The number 372 has",
]
NEW = 24
failed = []


def intern(*args):
    return subprocess.run([binary, *map(str, args)], check=True, capture_output=True, text=True).stdout


def our_logits(model, tokens, *extra):
    with tempfile.TemporaryDirectory() as d:
        out = Path(d) / "logits.safetensors"
        intern("serve", "logits", model, "--tokens", ",".join(map(str, tokens)), "--out", out, *extra)
        return load_file(out)["logits"]


def our_greedy(model, tokens, *extra):
    tokens = list(tokens)
    start = len(tokens)
    for _ in range(NEW):
        tokens.append(int(our_logits(model, tokens, *extra)[-1].argmax()))
    return tokens[start:]


def report(name, same, detail):
    print(f"{'ok    ' if same else 'DIFFER'} {name}: {detail}", flush=True)
    if not same:
        failed.append(name)


def against_torch(name, model, ours, tokenizer, *extra):
    worst, same = 0.0, True
    for prompt in PROMPTS:
        tokens = tokenizer(prompt).input_ids
        with torch.no_grad():
            theirs = model(torch.tensor([tokens])).logits[0].float()
            out = model.generate(torch.tensor([tokens]), max_new_tokens=NEW, do_sample=False,
                                 eos_token_id=-1, pad_token_id=0)[0][len(tokens):].tolist()
        worst = max(worst, (theirs - our_logits(ours, tokens, *extra)).abs().max().item())
        same &= out == our_greedy(ours, tokens, *extra)
    report(name, same and worst < 1e-3, f"greedy tokens {'equal' if same else 'differ'}, logits within {worst:.1e}")


work = Path(tempfile.mkdtemp())
for step in ("base", "tuned"):
    intern("train", "convert", run / step / "checkpoint", "--to", "llama", "--out", work / step)
tokenizer = AutoTokenizer.from_pretrained(work / "tuned")
tuned = AutoModelForCausalLM.from_pretrained(work / "tuned", dtype=torch.float32).eval()
against_torch("transformers, tuned checkpoint", tuned, run / "tuned" / "checkpoint", tokenizer)

adapter = run / "lora" / "adapter"
if adapter.exists():
    intern("train", "convert", adapter, "--to", "llama", "--out", work / "adapter")
    base = AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, work / "adapter").eval()
    against_torch("peft, adapter", peft, run / "lora" / "checkpoint", tokenizer)

import xllamacpp  # noqa: E402  (last: it loads its own OpenMP)

for gguf in sorted(run.glob("q*/model.gguf")):
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx = 512
    params.sampling.temp = 0.0
    server = xllamacpp.Server(params)
    same = True
    for prompt in PROMPTS:
        tokens = tokenizer(prompt).input_ids
        answer = server.handle_completions({"prompt": tokens, "max_tokens": NEW, "temperature": 0,
                                            "return_tokens": True, "ignore_eos": True})
        text = answer["choices"][0]["text"]
        mine = tokenizer.decode(our_greedy(gguf, tokens), skip_special_tokens=True)
        equal = text.strip() == mine.strip()
        if not equal:
            print(f"  llama.cpp: {text!r}\n  ours:      {mine!r}")
        same &= equal
    report(f"llama.cpp, {gguf.parent.name}", same, f"greedy text {'equal' if same else 'differs'}")

sys.exit(1 if failed else 0)
