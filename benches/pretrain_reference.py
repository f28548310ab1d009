#!/usr/bin/env python3
"""PyTorch pretraining the model of configs/train/gutenberg.toml on the same shards in the same order.

usage: pretrain_reference.py --train TOKENS/train --valid VALID/train --steps N [--lr 1e-3] ...
needs: torch transformers numpy. Tuned malloc as for `torch_train_bench.py`:
MALLOC_MMAP_THRESHOLD_=1000000000 MALLOC_TRIM_THRESHOLD_=8000000000
Prints one JSON line per 20 steps and, at the end, the held-out loss in nats per token over all of VALID.
The order of the sequences is the one of crates/intern-train/src/shuffle.rs, seed 0.
"""
import argparse
import json
import math
import resource
import time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

a = argparse.ArgumentParser()
a.add_argument("--train", required=True)
a.add_argument("--valid", required=True)
a.add_argument("--steps", type=int, required=True)
a.add_argument("--batch", type=int, default=8)
a.add_argument("--seq", type=int, default=512)
a.add_argument("--lr", type=float, default=1e-3)
a.add_argument("--warmup", type=int, default=100)
a.add_argument("--min-lr", type=float, default=0.1)
a.add_argument("--threads", type=int, default=2)
a.add_argument("--stop-after", type=int)
a = a.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(0)
U = (1 << 64) - 1


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & U
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & U
    return z ^ (z >> 31)


def place(i, n, epoch):
    """Element i of the permutation of 0..n in this epoch."""
    half = (((n - 1).bit_length()) + 1) // 2
    key = mix((mix(0x5348_5546_464C_4521) + epoch) & U)
    low = (1 << half) - 1
    x = i
    while True:
        left, right = x >> half, x & low
        for r in range(4):
            left, right = right, left ^ (mix((key + mix((right << 8 | r) & U)) & U) & low)
        x = left << half | right
        if x < n:
            return x


def shard(prefix):
    return np.fromfile(prefix + ".bin", dtype=np.uint16).astype(np.int64)


def window(tokens, i):
    return tokens[i * a.seq:(i + 1) * a.seq + 1]


def lr_at(step):
    if step < a.warmup:
        return a.lr * (step + 1) / a.warmup
    t = (step - a.warmup) / max(1, a.steps - a.warmup)
    return a.lr * (a.min_lr + (1 - a.min_lr) * 0.5 * (1 + math.cos(math.pi * t)))


config = LlamaConfig(vocab_size=4096, hidden_size=384, num_hidden_layers=6, num_attention_heads=6,
                     num_key_value_heads=6, intermediate_size=1024, rms_norm_eps=1e-5, tie_word_embeddings=False,
                     attn_implementation="sdpa", use_cache=False, initializer_range=0.02)
model = LlamaForCausalLM(config).train()
for name, p in model.named_parameters():  # GPT-2's depth scaling, as ours
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        p.data /= math.sqrt(2 * config.num_hidden_layers)
matrices = [p for n, p in model.named_parameters() if p.dim() >= 2 and "embed" not in n]
others = [p for n, p in model.named_parameters() if p.dim() < 2 or "embed" in n]
optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                              lr=a.lr, betas=(0.9, 0.95), fused=True)
train, valid = shard(a.train), shard(a.valid)
n = (len(train) - 1) // a.seq
start = time.perf_counter()


def cpu():
    return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])


print(json.dumps({"parameters": sum(p.numel() for p in model.parameters()), "sequences": n}), flush=True)
total = 0.0
for step in range(a.stop_after or a.steps):
    rows = [window(train, place(i % n, n, i // n)) for i in range(step * a.batch, (step + 1) * a.batch)]
    x = torch.from_numpy(np.stack(rows))
    for group in optimizer.param_groups:
        group["lr"] = lr_at(step)
    logits = model(input_ids=x[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 4096), x[:, 1:].reshape(-1))
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    total += loss.item()
    if (step + 1) % 20 == 0:
        print(json.dumps({"step": step + 1, "loss": round(total / 20, 5), "wall_s": round(time.perf_counter() - start, 2),
                          "cpu_s": round(cpu(), 2)}), flush=True)
        total = 0.0
model.eval()
nats = count = 0
with torch.no_grad():
    for i in range((len(valid) - 1) // a.seq):
        x = torch.from_numpy(window(valid, i))[None]
        logits = model(input_ids=x[:, :-1]).logits[0]
        nats += torch.nn.functional.cross_entropy(logits, x[0, 1:], reduction="sum").item()
        count += a.seq
print(json.dumps({"valid_loss": nats / count, "valid_tokens": count, "cpu_s": round(cpu(), 2),
                  "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
