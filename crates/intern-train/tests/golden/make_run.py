#!/usr/bin/env python3
"""A hundred updates of a tiny Llama in PyTorch → run/: its start (a checkpoint), batches and losses,
and the gradients of the first update in f64.

Masked targets, two passes per update, clipping, weight decay on matrices but not embeddings, and
transformers' cosine schedule: what `intern_train::Trainer` does. Needs: torch transformers
safetensors.
"""
import copy
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup

STEPS, WARMUP, PASSES, B, T, V = 100, 4, 2, 2, 12, 48
settings = {"lr": 0.01, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "grad_clip": 1.0}
torch.manual_seed(0)
torch.set_num_threads(1)
config = LlamaConfig(vocab_size=V, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                     initializer_range=0.2, attn_implementation="eager", use_cache=False)
model = LlamaForCausalLM(config)
out = pathlib.Path(__file__).with_name("run")
model.save_pretrained(out)
(out / "generation_config.json").unlink(missing_ok=True)
named = dict(model.named_parameters())
decays = [p for n, p in named.items() if p.ndim >= 2 and "embed" not in n]
rest = [p for n, p in named.items() if p.ndim < 2 or "embed" in n]
optimizer = torch.optim.AdamW([{"params": decays, "weight_decay": settings["weight_decay"]},
                               {"params": rest, "weight_decay": 0.0}],
                              lr=settings["lr"], betas=settings["betas"], eps=settings["eps"])
schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
steps = []
for _ in range(STEPS):
    passes = []
    for _ in range(PASSES):
        # A walk over the vocabulary, so that there is something to learn.
        rows = (torch.randint(0, V, (B, 1)) + torch.cumsum(torch.randint(1, 4, (B, T + 1)), 1)) % V
        passes.append((rows, torch.rand(B, T) < 0.7))
    count = sum(int(mask.sum()) for _, mask in passes)
    if not steps:
        exact = copy.deepcopy(model).double()
        for rows, mask in passes:
            logits = exact(input_ids=rows[:, :-1]).logits
            each = torch.nn.functional.cross_entropy(logits.reshape(-1, V), rows[:, 1:].reshape(-1), reduction="none")
            ((each * mask.reshape(-1)).sum() / count).backward()
        save_file({n: p.grad.float() for n, p in exact.named_parameters()}, out / "gradients.safetensors")
    total = 0.0
    for rows, mask in passes:
        logits = model(input_ids=rows[:, :-1]).logits
        each = torch.nn.functional.cross_entropy(logits.reshape(-1, V), rows[:, 1:].reshape(-1), reduction="none")
        loss = (each * mask.reshape(-1)).sum() / count
        loss.backward()
        total += loss.item()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["grad_clip"]).item()
    steps.append({"passes": [{"rows": r.tolist(), "mask": m.flatten().tolist()} for r, m in passes],
                  "loss": total, "grad_norm": norm, "lr": schedule.get_last_lr()[0]})
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
golden = {"optimizer": settings, "warmup_steps": WARMUP, "steps": steps}
(out / "run.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
