#!/usr/bin/env python3
"""The tools that own our formats read what a finished quickstart wrote, and say the same.

usage: check.py RUN_DIR INTERN_BINARY     needs: torch transformers peft xllamacpp safetensors

Checks, each by greedy continuation of a few prompts and by logits:
  transformers  the tuned checkpoint, converted to Llama layout
  peft          a LoRA adapter trained over the converted base
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
NEW = 56  # a whole tool call
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
        tokens = tokenizer(prompt, add_special_tokens=False).input_ids
        with torch.no_grad():
            theirs = model(torch.tensor([tokens])).logits[0].float()
            out = model.generate(torch.tensor([tokens]), max_new_tokens=NEW, do_sample=False,
                                 eos_token_id=None, pad_token_id=0)[0][len(tokens):].tolist()
        worst = max(worst, (theirs - our_logits(ours, tokens, *extra)).abs().max().item())
        same &= until_end(out) == until_end(our_greedy(ours, tokens, *extra))
    report(name, same and worst < 1e-3, f"greedy tokens {'equal' if same else 'differ'}, logits within {worst:.1e}")


def until_end(tokens):
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    return tokens[:tokens.index(end)] if end in tokens else tokens


work = Path(tempfile.mkdtemp())
for step in ("base", "tuned"):
    intern("train", "convert", run / step / "checkpoint", "--to", "llama", "--out", work / step)
tokenizer = AutoTokenizer.from_pretrained(work / "tuned")
# What the tuned model is for: held-out problems in its chat template, rendered by transformers.
first = json.loads((run / "lessons/conversations/train.jsonl").read_text().splitlines()[0])
problems = (run / "lessons/heldout/problems.jsonl").read_text().splitlines()[:4]
PROMPTS = [
    tokenizer.apply_chat_template(
        [first["messages"][0], {"role": "user", "content": json.loads(p)["question"]}],
        tools=first["tools"], add_generation_prompt=True, tokenize=False)
    for p in problems
]
tuned = AutoModelForCausalLM.from_pretrained(work / "tuned", dtype=torch.float32).eval()
against_torch("transformers, tuned checkpoint", tuned, run / "tuned" / "checkpoint", tokenizer)

# transformers has no InternLM2, so PEFT's model is the converted base, and so is the adapter's.
(work / "lora.toml").write_text(f"""
model = "{work / "base"}"
steps = 30
batch_size = 4
merge = true
lora = {{ r = 8, alpha = 16 }}
data = {{ train = "{run / "lessons/conversations/train.jsonl"}", seq_len = 544 }}
optimizer = {{ lr = 1e-2 }}
""")
intern("tune", "run", work / "lora.toml", "--out", work / "lora", "--json")
base = AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.float32)
peft = PeftModel.from_pretrained(base, work / "lora" / "adapter").eval()
against_torch("peft, adapter", peft, work / "lora" / "checkpoint", tokenizer)

import xllamacpp  # noqa: E402  (last: it loads its own OpenMP)

for gguf in sorted(run.glob("q*/model.gguf")):
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx = 512
    params.sampling.temp = 0.0
    server = xllamacpp.Server(params)
    same = True
    for prompt in PROMPTS:
        tokens = tokenizer(prompt, add_special_tokens=False).input_ids
        answer = server.handle_completions({"prompt": tokens, "max_tokens": NEW, "temperature": 0,
                                            "return_tokens": True})
        text = answer["choices"][0]["text"]
        mine = tokenizer.decode(until_end(our_greedy(gguf, tokens)), skip_special_tokens=True)
        equal = text.strip() == mine.strip()
        if not equal:
            print(f"  llama.cpp: {text!r}\n  ours:      {mine!r}")
        same &= equal
    report(f"llama.cpp, {gguf.parent.name}", same, f"greedy text {'equal' if same else 'differs'}")

sys.exit(1 if failed else 0)
