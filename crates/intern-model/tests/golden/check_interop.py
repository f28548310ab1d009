#!/usr/bin/env python3
"""Opens what `cargo run -p intern-model --example interop -- OUT [ASSETS]` wrote in transformers and PEFT.

usage: check_interop.py OUT [ASSETS]        needs: torch transformers peft safetensors sentencepiece
Every directory must load unchanged and give our logits to 1e-4; the tokenizer rebuilt from llama2.c's
vocabulary must encode as the original SentencePiece model does. InternLM2 itself needs custom code, so
it is opened after conversion to Llama.
"""
import pathlib
import sys

import torch
import transformers as hf
from safetensors.torch import load_file

out = pathlib.Path(sys.argv[1])
worst = {}


def compare(name, model):
    ours = load_file(out / name / "interop.safetensors")
    with torch.no_grad():
        logits = model(input_ids=ours["tokens"]).logits[0]
    worst[name] = (logits - ours["logits"]).abs().max().item()


def load(name):
    model, info = hf.AutoModelForCausalLM.from_pretrained(out / name, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], (name, info)
    return model.eval()


names = ["internlm3", "llama", "mistral", "qwen2", "qwen3", "internlm2-as-llama"]
names += [n for n in ("stories-model", "stories-bin") if (out / n).exists()]
for name in names:
    compare(name, load(name))
from peft import PeftModel
for name in ("adapter-lora", "adapter-rslora"):
    compare(name, PeftModel.from_pretrained(load("internlm2-as-llama"), out / name).eval())
if len(sys.argv) > 2:
    import sentencepiece
    text = "Once upon a time, Zoë had 3 cats.\nShe said: \"Hi!\""
    original = sentencepiece.SentencePieceProcessor(model_file=f"{sys.argv[2]}/models/stories260K/tok512.model")
    rebuilt = sentencepiece.SentencePieceProcessor(model_file=str(out / "stories-bin/tokenizer.model"))
    assert rebuilt.encode(text) == original.encode(text), (rebuilt.encode(text), original.encode(text))
for name, error in worst.items():
    print(f"{name:20} {error:.1e}")
assert max(worst.values()) < 1e-4
