#!/usr/bin/env python3
"""Ten updates of torch.optim.AdamW with clip_grad_norm_ → adamw.json. Needs: torch."""
import json
import pathlib

import torch

torch.manual_seed(0)
names = ["layers.0.w.weight", "layers.0.norm.weight", "model.embed_tokens.weight"]
shapes = [(3, 5), (5,), (4, 2)]
params = [torch.nn.Parameter(torch.randn(s)) for s in shapes]
settings = {"lr": 0.01, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "grad_clip": 1.0}
groups = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=settings["lr"], betas=settings["betas"], eps=settings["eps"])
flat = lambda tensors: [t.detach().flatten().tolist() for t in tensors]
out = {"names": names, "shapes": shapes, "settings": settings, "start": flat(params), "steps": []}
for step in range(10):
    for p in params:
        p.grad = torch.randn_like(p) * (0.1 if step % 3 == 0 else 1.0)
    gradients = flat([p.grad for p in params])
    norm = torch.nn.utils.clip_grad_norm_(params, settings["grad_clip"]).item()
    optimizer.step()
    out["steps"].append({"gradients": gradients, "norm": norm, "after": flat(params)})
pathlib.Path(__file__).with_name("adamw.json").write_text(json.dumps(out) + "\n")
