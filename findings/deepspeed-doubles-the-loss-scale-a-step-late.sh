#!/usr/bin/env bash
# expected: that fp16's loss scale is doubled after loss_scale_window steps on end without an overflow, as torch's GradScaler doubles its own after growth_interval
#           of them; DeepSpeed's documentation calls it "the window over which to raise/lower the dynamic loss scale value".
# happens:  the first doubling, and the first after every overflow, comes one step later: with a window of 4 after 5 steps, then after 9 and 13. A window of 1, which
#           should double at every step, leaves out the first. Two runs, one with each, have other scales from then on, and so skip other steps.
# since:    a release after deepspeed 0.16.9, which (as 0.12.6) counted as torch does, and no later than 0.17.6. The same in 0.19.3 and 0.19.8, the last.
# do:       for the scales of GradScaler give DeepSpeed a window one smaller where overflows are frequent, and do not compare skipped steps between the two.
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
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

print(f"deepspeed {deepspeed.__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}")

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # of no use here, and compiled for half a minute
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)

FIRST, WINDOW, STEPS, OVERFLOW_AT = 256.0, 4, 16, 10


def of_torch(overflow_at):
    """The scale after each step, from the two ops that GradScaler's own update is made of."""
    scale, good, seen = torch.tensor([FIRST]), torch.zeros(1, dtype=torch.int32), []
    for step in range(STEPS):
        found = torch.tensor([float(step == overflow_at)])
        torch._amp_update_scale_(scale, good, found, 2.0, 0.5, WINDOW)
        seen.append(int(scale.item()))
    return seen


def of_deepspeed(overflow_at):
    scaler, seen = DynamicLossScaler(FIRST, scale_window=WINDOW, min_scale=1.0, delayed_shift=1, consecutive_hysteresis=False), []
    for step in range(STEPS):
        scaler.update_scale(step == overflow_at)
        seen.append(int(scaler.cur_scale))
    return seen


found = {}
for overflow_at in (None, OVERFLOW_AT):
    print(f"the scale after steps 1 to {STEPS}, from {FIRST:g}, a window of {WINDOW}, " + ("no overflow:" if overflow_at is None else f"an overflow in step {overflow_at + 1}:"))
    for name, run in (("torch", of_torch), ("DeepSpeed", of_deepspeed)):
        found[name, overflow_at] = run(overflow_at)
        print(f"  {name:10} {found[name, overflow_at]}")


def doublings(scales):
    return [step + 1 for step, (before, after) in enumerate(zip([FIRST, *scales], scales)) if after > before]


as_described = (
    doublings(found["torch", None]) == [4, 8, 12, 16]
    and doublings(found["DeepSpeed", None]) == [5, 9, 13]
    and doublings(found["torch", OVERFLOW_AT]) == [4, 8, 15]
    and doublings(found["DeepSpeed", OVERFLOW_AT]) == [5, 9, 16]
)
sys.exit(0 if as_described else "it has changed: DeepSpeed doubled after steps 5, 9 and 13, and after step 16 where step 11 overflowed")
PYTHON
