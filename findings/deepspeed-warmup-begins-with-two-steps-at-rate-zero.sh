#!/usr/bin/env bash
# expected: that a warm-up over 4 steps trains from its second step on, as transformers' and torch's schedules do: there the first update has rate 0, the second
#           a quarter of the highest one. DeepSpeed: "Increase the learning rate of each parameter group from min lr to max lr over warmup_num_steps steps".
# happens:  the first two updates both run at the lowest rate, which is 0 unless it is given, and all that follows comes one update late: the schedule counts from -1,
#           and its step 0 gives the lowest rate once more. So do WarmupLR, WarmupDecayLR and WarmupCosineLR.
# since:    deepspeed 0.16.9, the oldest of those tried in which all three do; 0.14.5 made the very first update at the optimizer's own full rate, and the second at 0.
#           The same in 0.17.6, 0.19.3 and 0.19.8, the last.
# do:       count one update more than was asked for, or hand deepspeed.initialize a torch.optim.lr_scheduler.LambdaLR. A run of two updates, the usual smoke test,
#           changes nothing of a model under such a schedule.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'numpy==2.4.6' 'torch==2.13.0' 'setuptools==83.0.0'
"$folder/venv/bin/python" -m pip install --quiet 'deepspeed==0.19.8'

DS_ACCELERATOR=cpu "$folder/venv/bin/python" -W ignore - 2> "$folder/errors" <<'PYTHON' || { code=$?; tail -5 "$folder/errors" >&2; exit $code; }
import sys

import deepspeed
import torch
from deepspeed.runtime.lr_schedules import WarmupCosineLR, WarmupDecayLR, WarmupLR

print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")

HIGHEST, WARMUP, TOTAL = 0.5, 4, 10


def moves(make):
    """How far plain gradient descent moves a weight whose gradient is 1, update by update: the rate that each update had."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=HIGHEST)
    schedule, seen = make(optimizer), []
    for _ in range(6):
        before = weight.item()
        weight.grad = torch.ones(1)
        optimizer.step()
        schedule.step()
        seen.append(round(before - weight.item(), 4))
    return seen


torchs = moves(lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / WARMUP, 1.0)))
up = {"warmup_num_steps": WARMUP, "warmup_type": "linear"}
seen = {
    "WarmupLR": moves(lambda optimizer: WarmupLR(optimizer, warmup_max_lr=HIGHEST, **up)),
    "WarmupDecayLR": moves(lambda optimizer: WarmupDecayLR(optimizer, TOTAL, warmup_max_lr=HIGHEST, **up)),
    "WarmupCosineLR": moves(lambda optimizer: WarmupCosineLR(optimizer, TOTAL, **up)),
}
print(f"the rates of updates 1 to 6, warm-up of {WARMUP} steps to {HIGHEST}:")
for name, rates in {"torch's LambdaLR": torchs, **seen}.items():
    print(f"  {name:16} {rates}")

as_described = torchs[:3] == [0.0, 0.125, 0.25] and all(rates[:4] == [0.0, 0.0, 0.125, 0.25] for rates in seen.values())
sys.exit(0 if as_described else "it has changed: the first four rates were 0, 0, 0.125, 0.25")
PYTHON
