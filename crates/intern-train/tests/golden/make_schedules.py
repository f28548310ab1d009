#!/usr/bin/env python3
"""Learning-rate factors of transformers.optimization → schedules.json. Needs: torch transformers."""
import json
import pathlib

import torch
from transformers import optimization as o


def factors(make, n):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, out = make(optimizer), []
    for _ in range(n):
        out.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return out


cases = []


def case(steps, make, **schedule):
    cases.append({"steps": steps, "schedule": schedule, "factors": factors(make, steps + 2)})


for steps, warmup in [(20, 4), (10, 0)]:
    case(steps, lambda x: o.get_cosine_schedule_with_warmup(x, warmup, steps),
         kind="cosine", warmup_steps=warmup, min_lr_ratio=0.0)
    case(steps, lambda x: o.get_linear_schedule_with_warmup(x, warmup, steps),
         kind="linear", warmup_steps=warmup, min_lr_ratio=0.0)
    case(steps, lambda x: o.get_constant_schedule_with_warmup(x, warmup), kind="constant", warmup_steps=warmup)
    case(steps, lambda x: o.get_cosine_with_min_lr_schedule_with_warmup(x, warmup, steps, min_lr_rate=0.1),
         kind="cosine", warmup_steps=warmup, min_lr_ratio=0.1)
    for ours, theirs in [("cosine", "cosine"), ("linear", "linear"), ("sqrt", "1-sqrt")]:
        case(steps, lambda x: o.get_wsd_schedule(x, warmup, 5, num_training_steps=steps, decay_type=theirs,
                                                 min_lr_ratio=0.05),
             kind="wsd", warmup_steps=warmup, min_lr_ratio=0.05, decay_steps=5, decay=ours)
path = pathlib.Path(__file__).with_name("schedules.json")
path.write_text("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")
