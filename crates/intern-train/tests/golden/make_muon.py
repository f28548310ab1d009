#!/usr/bin/env python3
"""Ten updates of torch.optim.Muon (its iteration in f64, where torch has bf16) for matrices and AdamW for
the rest, in groups, with clip_grad_norm_ and a running average of the weights → muon.json. Needs: torch >= 2.9.
"""
import json
import pathlib

import torch
import torch.optim._muon as source


def newton_schulz(grad, coefficients, steps, eps):
    a, b, c = coefficients
    x = grad.double()
    if grad.size(0) > grad.size(1):
        x = x.T
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.T if grad.size(0) > grad.size(1) else x
    theirs = bf16(grad, coefficients, steps, eps).double()
    assert (x - theirs).norm() < 0.2 * x.norm(), "torch's own, in bf16"
    return x.to(grad.dtype)


bf16 = source._zeropower_via_newtonschulz
source._zeropower_via_newtonschulz = newton_schulz
torch.manual_seed(0)
names = ["layers.0.w.weight", "layers.1.w.weight", "layers.0.norm.weight", "model.embed_tokens.weight", "lm_head.weight"]
shapes = [(6, 10), (10, 4), (5,), (4, 2), (4, 2)]
params = [torch.nn.Parameter(torch.randn(s)) for s in shapes]
settings = {"kind": "muon", "lr": 0.01, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "grad_clip": 1.0,
            "momentum": 0.95, "ema": 0.6,
            "group": [{"match": "layers.1.*", "lr": 0.5}, {"match": "*.norm.weight", "lr": 3.0, "weight_decay": 0.2}]}
lr, wd = settings["lr"], settings["weight_decay"]
muon = torch.optim.Muon(
    [{"params": [params[0]], "lr": lr}, {"params": [params[1]], "lr": 0.5 * lr}],
    weight_decay=wd, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw")
adamw = torch.optim.AdamW(
    [{"params": [params[2]], "lr": 3 * lr, "weight_decay": 0.2}, {"params": [params[3]], "weight_decay": 0.0},
     {"params": [params[4]], "weight_decay": wd}], lr=lr, betas=settings["betas"], eps=settings["eps"])
averages = [p.detach().clone() for p in params]
flat = lambda tensors: [t.detach().flatten().tolist() for t in tensors]
out = {"names": names, "shapes": shapes, "settings": settings, "start": flat(params), "steps": []}
for step in range(1, 11):
    for p in params:
        p.grad = torch.randn_like(p) * (0.1 if step % 3 == 1 else 1.0)
    gradients = flat([p.grad for p in params])
    norm = torch.nn.utils.clip_grad_norm_(params, settings["grad_clip"]).item()
    muon.step()
    adamw.step()
    decay = min(settings["ema"], (1 + step) / (10 + step))
    averages = [decay * a + (1 - decay) * p.detach() for a, p in zip(averages, params)]
    out["steps"].append({"gradients": gradients, "norm": norm, "after": flat(params), "averages": flat(averages)})
pathlib.Path(__file__).with_name("muon.json").write_text(json.dumps(out) + "\n")
